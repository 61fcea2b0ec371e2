//! Relational distillation losses: how a student network's embeddings relate to one another,
//! compared with how its teacher's do. One fused call returns the loss and its gradient with
//! respect to the student.
//!
//! | loss | compares | from |
//! |---|---|---|
//! | [`RkdDistance`] | pairwise distances in units of their mean | Park et al., arXiv 1904.05068 |
//! | [`RkdAngle`] | the cosines of all angles between triples | the same |
//! | [`Rkd`] | both, weighted; it computes the distances once | the same |
//! | [`Sp`] | the rows of two Gram matrices, normalised | Tung & Mori, arXiv 1907.09682 |
//! | [`Gram`] | cosine similarities | DINOv3, arXiv 2508.10104; Jasper and Stella, arXiv 2412.19048 |
//! | [`Pkt`] | probabilities of being neighbours | Passalis & Tefas, arXiv 1803.10837 |
//! | [`Order`] | which pairs are more alike than others | Jasper and Stella, arXiv 2412.19048 |
//! | [`DarkRank`] | which rows are a row's nearest, and in which order | Chen et al., arXiv 1707.01220 |
//! | [`Rrd`] | softmax similarities to a [`Queue`] of past teacher keys | Giakoumoglou & Stathaki, arXiv 2407.12073 |
//! | [`InfoNce`] | the own teacher row with others, in-batch or with a queue | van den Oord et al., arXiv 1807.03748 |
//! | [`Clip`] | two trained towers with one another, and with the teacher's | Radford et al., arXiv 2103.00020 |
//! | [`SigLip`] | each pair of two trained towers alone | Zhai et al., arXiv 2303.15343 |
//! | [`SupCon`] | rows of one label with all others | Khosla et al., arXiv 2004.11362 |
//! | [`Crd`] | sampled rows of a [`Bank`], each alone | Tian et al., arXiv 1910.10699 |
//! | [`RrdBank`] | softmax similarities to sampled rows of a [`Bank`] | Giakoumoglou & Stathaki, arXiv 2407.12073 |
//! | [`KdKl`] | softened logits | Hinton et al., arXiv 1503.02531 |
//!
//! # Example
//!
//! ```
//! use relata::{Cpu, RkdAngle, Rows};
//!
//! # fn main() -> relata::Result<()> {
//! // A batch of 3 samples: the student's embeddings have 2 dimensions, the teacher's 4.
//! let student = [0.1f32, 0.9, -0.4, 0.3, 0.8, -0.2];
//! let teacher = [0.2f32, 0.7, 0.1, 0.0, -0.3, 0.4, 0.2, 0.1, 0.9, -0.1, 0.0, 0.3];
//! let evaluation = RkdAngle::default().evaluate(
//!     &Cpu,
//!     Rows::new(&student, [3, 2])?,
//!     Rows::new(&teacher, [3, 4])?,
//! )?;
//! assert!(evaluation.loss > 0.0);
//! assert_eq!(evaluation.gradient.len(), student.len());
//! # Ok(()) }
//! ```
//!
//! With a queue:
//!
//! ```
//! use relata::{Cpu, Queue, Rows, Rrd};
//!
//! # fn main() -> relata::Result<()> {
//! let mut queue = Queue::<f32>::new(Rrd::QUEUE_CAPACITY, 2)?;
//! let (student, teacher) = ([0.3f32, 0.1, -0.5, 0.2], [0.4f32, 0.0, -0.3, 0.3]);
//! let (student, teacher) = (Rows::new(&student, [2, 2])?, Rows::new(&teacher, [2, 2])?);
//! // The teacher's rows enter the queue. The loss then compares with all keys in the queue.
//! let evaluation = Rrd::default().evaluate_with_queue(&Cpu, student, teacher, &mut queue)?;
//! assert!(evaluation.term("kl").is_some_and(|kl| kl >= 0.0));
//! # Ok(()) }
//! ```
//!
//! # Which loss, which weights
//!
//! The [`guide`] has losses, layers, weights and temperatures as the papers and their code use
//! them. It says what goes wrong, and how to move from PyTorch.
//!
//! # Devices
//!
//! [`Cpu`] is the fast path: SIMD chosen at run time, rayon's thread pool, O(N²) memory for the
//! angle loss, and no N × K matrix for a queue. [`Reference`] is the specification: the definitions
//! as printed, in f64 with plain loops. You choose a device by passing it. [`check`] compares a
//! device with the reference and with central differences.
//!
//! Inputs are [`f64`], [`f32`], [`half::f16`] or [`half::bf16`] ([`Element`]). Half types are
//! computed in f32, and their gradients are f32.
//!
//! The feature `cuda` adds `Cuda`, a GPU, and the module `cuda` for data that lies on one. The
//! feature `emulator` adds `Emulator`, which runs the same kernels on the CPU, thread for thread.
//!
//! The crates `relata-candle`, `relata-burn` and `relata-tch` take tensors of these frameworks.
//!
//! # What is promised
//!
//! - The same input gives the same bits, on every run and any number of threads.
//! - Duplicate rows, a batch of one, rows far from the origin or nearly equal give finite and right
//!   results. A NaN or an infinity in the input makes the loss NaN;
//!   [`Problem::with_checked`] names the first bad row instead.
//! - Bad arguments are a typed [`Error`] that names the argument, what was expected and what came.
//!   Nothing has been written or enqueued then.
//!
//! A [`Problem`] is a loss with shapes that have been checked. Use it to scale the gradient, to
//! reject NaN inputs, or to write the gradient into your own buffer.

#![cfg_attr(docsrs, feature(doc_cfg))]

/// The text of `docs/guide.md`. Only rustdoc reads it.
#[cfg(doc)]
#[doc = include_str!("../docs/guide.md")]
pub mod guide {}

mod bank;
mod batch;
mod check;
mod checks;
mod cpu;
mod device;
mod element;
mod error;
mod evaluate;
#[cfg(any(feature = "cuda", feature = "emulator"))]
mod gpu;
mod loss;
mod negative_sampler;
mod prefixes;
mod problem;
mod queue;
pub mod ranks;
mod recall;
mod reference;
mod row_weights;
mod rows;
mod sampler;
mod shapes;
mod simd;
mod top_k;

pub use bank::{Bank, SampledKeys};
pub use batch::Batch;
pub use check::{Report, check};
pub use cpu::Cpu;
pub use device::Device;
pub use element::{DType, Element, Real};
pub use error::{Error, Result};
pub use evaluate::{evaluate_with_queue, relation_matrix, softmax};
#[cfg(feature = "cuda")]
pub use gpu::cuda::{self, Cuda};
#[cfg(any(feature = "cuda", feature = "emulator"))]
pub use gpu::element::GpuElement;
#[cfg(feature = "emulator")]
pub use gpu::emulator::{ApproximationErrors, EmulatedGpu, Emulator};
pub use loss::{
    Clip, Contrastive, Crd, DarkRank, Divergence, Enqueue, Family, Gram, InfoNce, KdKl, LabelUse,
    Logits, Loss, Normalizer, Order, Pairwise, ParameterValue, Penalty, Pkt, QueueUse, Relation,
    Rkd, RkdAngle, RkdDistance, Rrd, RrdBank, Sampled, SigLip, Sp, Spec, SupCon, Target,
    TeacherUse, Towers, Triplet,
};
pub use negative_sampler::NegativeSampler;
pub use problem::{Evaluation, Problem, Terms, Value, WeightPrecision};
pub use queue::{Queue, QueueState};
pub use recall::recall_at_k;
pub use reference::Reference;
pub use rows::Rows;
pub use sampler::MPerClassSampler;
pub use shapes::Shapes;
pub use top_k::TopK;
