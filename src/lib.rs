//! Relational distillation losses: how a student network's embeddings relate to one another, compared
//! with how its teacher's do. One fused call gives the loss and its gradient with respect to the
//! student.
//!
//! | loss | compares | from |
//! |---|---|---|
//! | [`RkdDistance`] | pairwise distances in units of their mean | Park et al., arXiv 1904.05068 |
//! | [`RkdAngle`] | the cosines of all angles between triples | the same |
//! | [`Rkd`] | both, weighted, sharing all but the penalties | the same |
//! | [`Rrd`] | softmax similarities to a [`Queue`] of past teacher keys | Giakoumoglou & Stathaki, arXiv 2407.12073 |
//! | [`InfoNce`] | the own teacher row against others, in-batch or with a queue | van den Oord et al., arXiv 1807.03748 |
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
//! // Enqueues the teacher's rows, then compares with all keys in the queue.
//! let evaluation = Rrd::default().evaluate(&Cpu, student, teacher, &mut queue)?;
//! assert!(evaluation.kl.is_some_and(|kl| kl >= 0.0));
//! # Ok(()) }
//! ```
//!
//! # Which loss, which weights
//!
//! The [`guide`]: losses, layers, weights and temperatures in the papers and in their code, what goes wrong, and how to move from
//! PyTorch.
//!
//! # Devices
//!
//! [`Cpu`] is the fast path: SIMD chosen at run time, rayon's thread pool, O(N²) memory for the angle
//! loss, the queue streamed. [`Reference`] is the specification: the definitions as printed, f64, plain
//! loops. A device is chosen by passing it; [`check`] holds one against the other and against central
//! differences. Inputs are [`f64`], [`f32`], [`half::f16`] or [`half::bf16`] ([`Element`]); half types
//! are computed in f32, and their gradients come back in f32.
//!
//! With the feature `cuda`, `Cuda` is a GPU, and the module of that name is for data that lies on one; with the feature
//! `emulator`, `Emulator` runs the same kernels on the CPU, thread for thread.
//!
//! For tensors of candle, burn and tch there are adapters, crates of their own: `relata-candle`, `relata-burn`, `relata-tch`.
//!
//! # What is promised
//!
//! - The same input gives the same bits, run after run, on any number of threads.
//! - Duplicate rows, a batch of one, rows far from the origin or all but equal: finite and right. A NaN
//!   or an infinity in the input makes the loss NaN; [`Problem::checked`] names the first bad row instead.
//! - Bad arguments are a typed [`Error`] that names the argument, what was expected and what came.
//!   Nothing has been written or enqueued then.
//!
//! [`Problem`] is a loss with shapes that have been checked; it takes an upstream gradient factor and
//! can write into memory of the caller's ([`Problem::evaluate_into`]).

/// Read only by rustdoc; the same text as `docs/guide.md`.
#[cfg(doc)]
#[doc = include_str!("../docs/guide.md")]
pub mod guide {}

mod check;
mod checks;
mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod device;
mod element;
mod error;
mod evaluate;
#[cfg(any(feature = "cuda", feature = "emulator"))]
mod gpu;
mod loss;
mod problem;
mod queue;
mod reference;
mod rows;
mod shapes;
mod simd;

pub use check::{Report, check};
pub use cpu::Cpu;
#[cfg(feature = "cuda")]
pub use cuda::Cuda;
pub use device::Device;
pub use element::{DType, Element, Real};
pub use error::{Error, Result};
pub use evaluate::{relation_matrix, softmax};
#[cfg(any(feature = "cuda", feature = "emulator"))]
pub use gpu::element::GpuElement;
#[cfg(feature = "emulator")]
pub use gpu::emulator::Emulator;
pub use loss::{
    Contrastive, Enqueue, Family, InfoNce, KdKl, Logits, Loss, Normalizer, Pairwise,
    ParameterValue, Penalty, QueueUse, Relation, Rkd, RkdAngle, RkdDistance, Rrd, Sp, Spec, Target,
    Triplet,
};
pub use problem::{Batch, Evaluation, Problem, Terms, Value, WeightPrecision};
pub use queue::Queue;
pub use reference::Reference;
pub use rows::Rows;
pub use shapes::Shapes;
