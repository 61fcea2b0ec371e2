//! [relata]'s relational distillation losses on [candle](candle_core)'s tensors: differentiable,
//! on the CPU and on CUDA.
//!
//! [`loss`] and [`loss_with_queue`] evaluate any loss and return it as a scalar [`Tensor`] that
//! `loss.backward()` goes through: alone, added to a task loss, scaled, used twice. One fused call
//! computes the loss and its gradient when the function is called. The backward pass only
//! multiplies the gradient by the upstream factor.
//!
//! [`loss_and_terms`] and [`loss_and_terms_with_queue`] also return the loss's named [`Terms`], for
//! logging. The functions named after a loss, such as [`rkd`] and [`rrd`], are short for the first
//! two.
//!
//! `examples/train.rs` is a whole training loop.
//!
//! # What all of them share
//!
//! - `student` `[N, D]` and `teacher` `[N, D_t]` have one dtype and lie on one device. Views of any
//!   strides and offsets are accepted. A view that is not contiguous is copied first, on its
//!   device.
//! - Losses of pairs and triples also take `[B, N, D]` and `[B, N, D_t]`: B groups of N rows, for
//!   example the patches of B images. Rows of different groups are not compared, and the loss is the
//!   mean of the groups' losses: see [`relata::Problem::with_groups`]. Logits `[B, T, V]`, of any
//!   number of leading dimensions, are B · T rows. Losses of keys take matrices alone.
//! - The dtype is f64 (on the CPU), f32, f16 or bf16. The loss is f64 for f64, and f32 for all
//!   others.
//! - Only the student gets a gradient. The teacher is a constant, whether it is detached or not.
//! - [`clip`] and [`siglip`] train two towers, and both get a gradient. [`sup_con`] trains all rows of a
//!   batch.
//! - Functions that end in `_scale` also learn the scale, 1/τ, and [`siglip_with_scale`] the bias.
//! - For half types the gradient is kept in f32. The upstream factor multiplies in f32 and the
//!   rounding comes last, so loss scaling saves small gradients.
//! - Errors are candle's: its own variants for dtypes, devices, ranks and leading dimensions.
//!   relata's errors, such as different numbers of rows, are wrapped in candle's, and [`cause`]
//!   finds them. After an error nothing has been enqueued.

mod cpu;
mod error;
#[cfg(feature = "cuda")]
mod gpu;
mod inputs;
mod node;
mod queue;
mod rows;
mod scale;
mod terms;
mod towers;

use candle_core::{Result, Tensor};
pub use relata::{
    Clip, DarkRank, Divergence, Enqueue, Gram, InfoNce, KdKl, Loss, Order, Pkt, Rkd, RkdAngle,
    RkdDistance, Rrd, SigLip, Sp, SupCon, WeightPrecision,
};

pub use self::error::cause;
#[cfg(feature = "cuda")]
pub use self::gpu::release_workspaces;
pub use self::queue::Queue;
pub use self::rows::Teacher;
pub use self::scale::{info_nce_with_queue_and_scale, info_nce_with_scale, rrd_with_scale};
pub use self::terms::Terms;
pub use self::towers::{
    clip, clip_with_labels, clip_with_scale, siglip, siglip_with_scale, sup_con, sup_con_with_scale,
};

/// A loss without a queue, or InfoNCE within the batch.
///
/// # Errors
/// As [the crate](crate#what-all-of-them-share) says.
pub fn loss(student: &Tensor, teacher: &Tensor, loss: impl Into<Loss>) -> Result<Tensor> {
    Ok(loss_and_terms(student, teacher, loss)?.0)
}

/// A loss compared with the keys in `queue`: RRD or InfoNCE. The teacher's rows enter the queue
/// when the loss's `enqueue` says: see [`Loss::evaluate_with_queue`].
///
/// # Errors
/// As [the crate](crate#what-all-of-them-share) says; a loss that takes no queue; an empty queue
/// unless the batch enters before.
pub fn loss_with_queue(
    student: &Tensor,
    teacher: &Tensor,
    queue: &mut Queue,
    loss: impl Into<Loss>,
) -> Result<Tensor> {
    Ok(loss_and_terms_with_queue(student, teacher, queue, loss)?.0)
}

/// As [`loss`], with the loss's named terms from the same evaluation.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use relata_candle::{Rkd, loss_and_terms};
/// # fn main() -> candle_core::Result<()> {
/// let student = Tensor::randn(0f32, 1., (8, 4), &Device::Cpu)?;
/// let teacher = Tensor::randn(0f32, 1., (8, 6), &Device::Cpu)?;
/// let (loss, terms) = loss_and_terms(&student, &teacher, Rkd::default())?;
/// let angle = terms.get("angle")?.expect("Rkd has this term");
/// assert!(angle > 0. && f64::from(loss.to_scalar::<f32>()?) > angle);
/// # Ok(()) }
/// ```
///
/// # Errors
/// As [`loss`].
pub fn loss_and_terms(
    student: &Tensor,
    teacher: &Tensor,
    loss: impl Into<Loss>,
) -> Result<(Tensor, Terms)> {
    node::fused(student, teacher, None, None, loss.into())
}

/// As [`loss_with_queue`], with the loss's named terms from the same evaluation.
///
/// # Errors
/// As [`loss_with_queue`].
pub fn loss_and_terms_with_queue(
    student: &Tensor,
    teacher: &Tensor,
    queue: &mut Queue,
    loss: impl Into<Loss>,
) -> Result<(Tensor, Terms)> {
    node::fused(student, teacher, Some(queue), None, loss.into())
}

/// A loss of cosines as the mean over prefixes of the student's rows, for Matryoshka embeddings:
/// see [`relata::Problem::with_prefixes`]. The teacher's rows are whole.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use relata_candle::{Gram, loss_with_prefixes};
/// # fn main() -> candle_core::Result<()> {
/// let student = Tensor::randn(0f32, 1., (8, 64), &Device::Cpu)?;
/// let teacher = Tensor::randn(0f32, 1., (8, 96), &Device::Cpu)?;
/// let loss = loss_with_prefixes(&student, &teacher, &[16, 32, 64], Gram::default())?;
/// assert!(loss.to_scalar::<f32>()? > 0.);
/// # Ok(()) }
/// ```
///
/// # Errors
/// As [the crate](crate#what-all-of-them-share) says; a loss that is not one of cosines; widths that
/// do not increase from 1 to D at most, none, or more than 16.
pub fn loss_with_prefixes(
    student: &Tensor,
    teacher: &Tensor,
    widths: &[usize],
    loss: impl Into<Loss>,
) -> Result<Tensor> {
    Ok(node::fused(student, teacher, None, Some(widths), loss.into())?.0)
}

/// RKD's distance loss: see [`RkdDistance`].
///
/// # Errors
/// As [`loss`](crate::loss()).
pub fn rkd_distance(student: &Tensor, teacher: &Tensor, loss: RkdDistance) -> Result<Tensor> {
    crate::loss(student, teacher, loss)
}

/// RKD's angle loss: see [`RkdAngle`].
///
/// # Errors
/// As [`loss`](crate::loss()).
pub fn rkd_angle(student: &Tensor, teacher: &Tensor, loss: RkdAngle) -> Result<Tensor> {
    crate::loss(student, teacher, loss)
}

/// RKD's distance and angle losses, weighted, in one evaluation: see [`Rkd`].
///
/// # Errors
/// As [`loss`](crate::loss()).
pub fn rkd(student: &Tensor, teacher: &Tensor, loss: Rkd) -> Result<Tensor> {
    crate::loss(student, teacher, loss)
}

/// Similarity-preserving distillation of activations: see [`Sp`].
///
/// # Errors
/// As [`loss`](crate::loss()).
pub fn sp(student: &Tensor, teacher: &Tensor, loss: Sp) -> Result<Tensor> {
    crate::loss(student, teacher, loss)
}

/// Gram anchoring of patches or samples: see [`Gram`]. The patches of B images are `[B, N, D]`.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use relata_candle::{Gram, gram};
/// # fn main() -> candle_core::Result<()> {
/// let student = Tensor::randn(0f32, 1., (4, 49, 64), &Device::Cpu)?;
/// let teacher = Tensor::randn(0f32, 1., (4, 49, 96), &Device::Cpu)?;
/// let loss = gram(&student, &teacher, Gram::default())?;
/// assert!(loss.to_scalar::<f32>()? > 0.);
/// # Ok(()) }
/// ```
///
/// # Errors
/// As [`loss`](crate::loss()).
pub fn gram(student: &Tensor, teacher: &Tensor, loss: Gram) -> Result<Tensor> {
    crate::loss(student, teacher, loss)
}

/// Probabilistic knowledge transfer: see [`Pkt`].
///
/// # Errors
/// As [`loss`](crate::loss()).
pub fn pkt(student: &Tensor, teacher: &Tensor, loss: Pkt) -> Result<Tensor> {
    crate::loss(student, teacher, loss)
}

/// The order of similarities: see [`Order`].
///
/// # Errors
/// As [`loss`](crate::loss()).
pub fn order(student: &Tensor, teacher: &Tensor, loss: Order) -> Result<Tensor> {
    crate::loss(student, teacher, loss)
}

/// Hard DarkRank of embeddings: see [`DarkRank`].
///
/// # Errors
/// As [`loss`](crate::loss()).
pub fn dark_rank(student: &Tensor, teacher: &Tensor, loss: DarkRank) -> Result<Tensor> {
    crate::loss(student, teacher, loss)
}

/// A divergence between softened logits `[N, C]` or `[B, T, V]`, by default Hinton's: see [`KdKl`].
///
/// # Errors
/// As [`loss`](crate::loss()).
pub fn kd_kl(student_logits: &Tensor, teacher_logits: &Tensor, loss: KdKl) -> Result<Tensor> {
    crate::loss(student_logits, teacher_logits, loss)
}

/// [`kd_kl`] against logits or lists of classes, as the mean of the rows' losses weighted by
/// `row_weights`, `[N]` or `[B, T]`: see [`relata::Batch::with_row_weights`]. Weights are floats, or a
/// mask of u8. On the CPU.
///
/// ```
/// use candle_core::{Device, Tensor, Var};
/// use relata_candle::{KdKl, Teacher, kd_kl_weighted};
/// # fn main() -> candle_core::Result<()> {
/// let student = Var::randn(0f32, 1., (2, 3, 10), &Device::Cpu)?;
/// let classes = Tensor::new(&[[[7u32, 1], [0, 9], [3, 4]]; 2], &Device::Cpu)?;
/// let log_probabilities = Tensor::full(0.4f32.ln(), (2, 3, 2), &Device::Cpu)?;
/// let teacher = Teacher::TopK { classes: &classes, log_probabilities: &log_probabilities };
/// // The last position of each sequence is padding.
/// let mask = Tensor::new(&[[1f32, 1., 0.]; 2], &Device::Cpu)?;
/// let loss = kd_kl_weighted(&student, teacher, Some(&mask), KdKl::new(1.0))?;
/// let gradient = loss.backward()?.get(&student).expect("a gradient").clone();
/// assert_eq!(gradient.get(0)?.get(2)?.to_vec1::<f32>()?, [0.0; 10]);
/// # Ok(()) }
/// ```
///
/// # Errors
/// As [`loss`](crate::loss()); weights that are negative or not finite; a list that names a class
/// twice, or one that the student does not have.
pub fn kd_kl_weighted<'a>(
    student_logits: &Tensor,
    teacher: impl Into<Teacher<'a>>,
    row_weights: Option<&Tensor>,
    loss: KdKl,
) -> Result<Tensor> {
    rows::fused(
        student_logits,
        teacher.into(),
        rows::Of::Mean(row_weights),
        loss,
    )
}

/// [`kd_kl`] of each row, `[N]` or `[B, T]`, not reduced. The gradient goes through each of them. On
/// the CPU.
///
/// # Errors
/// As [`kd_kl_weighted`].
pub fn kd_kl_rows<'a>(
    student_logits: &Tensor,
    teacher: impl Into<Teacher<'a>>,
    loss: KdKl,
) -> Result<Tensor> {
    rows::fused(student_logits, teacher.into(), rows::Of::Rows, loss)
}

/// InfoNCE within the batch: see [`InfoNce`].
///
/// # Errors
/// As [`loss`](crate::loss()).
pub fn info_nce(student: &Tensor, teacher: &Tensor, loss: InfoNce) -> Result<Tensor> {
    crate::loss(student, teacher, loss)
}

/// InfoNCE against the row's own teacher and the keys in `queue`: see [`InfoNce`].
///
/// # Errors
/// As [`loss_with_queue`].
pub fn info_nce_with_queue(
    student: &Tensor,
    teacher: &Tensor,
    queue: &mut Queue,
    loss: InfoNce,
) -> Result<Tensor> {
    loss_with_queue(student, teacher, queue, loss)
}

/// Relational representation distillation against the keys in `queue`: see [`Rrd`].
///
/// # Errors
/// As [`loss_with_queue`].
pub fn rrd(student: &Tensor, teacher: &Tensor, queue: &mut Queue, loss: Rrd) -> Result<Tensor> {
    loss_with_queue(student, teacher, queue, loss)
}

/// The README's examples.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
