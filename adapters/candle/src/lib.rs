//! [relata]'s relational distillation losses on [candle](candle_core)'s tensors: differentiable, on the CPU and on CUDA.
//!
//! Each function returns the loss as a scalar [`Tensor`] that `loss.backward()` goes through: alone, added to a task loss,
//! scaled, used twice. Loss and gradient are computed by one fused call when the function is called; the backward pass only
//! multiplies by what comes from upstream.
//!
//! # What all of them share
//!
//! - `student` `[N, D]` and `teacher` `[N, D_t]` are of one dtype on one device. Views of any strides and offsets are taken;
//!   one that is not contiguous is made so first, on its device.
//! - f64 (on the CPU), f32, f16 and bf16. The loss and the sum behind it are f64 for f64 and f32 for all others.
//! - The gradient goes to the student alone. The teacher is a constant, whether it is detached or not.
//! - The gradient is kept in f32 for half types, multiplied by the upstream factor there and rounded last: with loss scaling
//!   nothing underflows that need not.
//! - Errors are candle's: its own variants for dtypes, devices and ranks; relata's, such as rows that differ in number, come
//!   wrapped, and [`cause`] gets at them. Nothing has been enqueued then.

mod cpu;
mod error;
#[cfg(feature = "cuda")]
mod gpu;
mod inputs;
mod node;
mod queue;

use candle_core::{Result, Tensor};
pub use relata::{Enqueue, InfoNce, KdKl, Loss, Rkd, RkdAngle, RkdDistance, Rrd, WeightPrecision};

pub use self::error::cause;
#[cfg(feature = "cuda")]
pub use self::gpu::release_workspaces;
pub use self::queue::Queue;

/// RKD's distance loss: see [`RkdDistance`].
///
/// # Errors
/// As [the crate](crate#what-all-of-them-share) says.
pub fn rkd_distance(student: &Tensor, teacher: &Tensor, loss: RkdDistance) -> Result<Tensor> {
    node::fused(student, teacher, None, loss.into())
}

/// RKD's angle loss: see [`RkdAngle`].
///
/// # Errors
/// As [the crate](crate#what-all-of-them-share) says.
pub fn rkd_angle(student: &Tensor, teacher: &Tensor, loss: RkdAngle) -> Result<Tensor> {
    node::fused(student, teacher, None, loss.into())
}

/// RKD's distance and angle losses, weighted, in one evaluation: see [`Rkd`].
///
/// # Errors
/// As [the crate](crate#what-all-of-them-share) says.
pub fn rkd(student: &Tensor, teacher: &Tensor, loss: Rkd) -> Result<Tensor> {
    node::fused(student, teacher, None, loss.into())
}

/// Hinton's divergence between softened logits `[N, C]`: see [`KdKl`].
///
/// # Errors
/// As [the crate](crate#what-all-of-them-share) says.
pub fn kd_kl(student_logits: &Tensor, teacher_logits: &Tensor, loss: KdKl) -> Result<Tensor> {
    node::fused(student_logits, teacher_logits, None, loss.into())
}

/// InfoNCE within the batch: see [`InfoNce`].
///
/// # Errors
/// As [the crate](crate#what-all-of-them-share) says.
pub fn info_nce(student: &Tensor, teacher: &Tensor, loss: InfoNce) -> Result<Tensor> {
    node::fused(student, teacher, None, loss.into())
}

/// InfoNCE against the row's own teacher and the keys in `queue`, which the teacher's rows enter when `loss.enqueue` says:
/// see [`InfoNce::evaluate_with_queue`].
///
/// # Errors
/// As [the crate](crate#what-all-of-them-share) says, and an empty queue unless the batch is enqueued before.
pub fn info_nce_with(
    student: &Tensor,
    teacher: &Tensor,
    queue: &mut Queue,
    loss: InfoNce,
) -> Result<Tensor> {
    node::fused(student, teacher, Some(queue), loss.into())
}

/// Relational representation distillation against the keys in `queue`, which the teacher's rows enter when `loss.enqueue`
/// says: see [`Rrd::evaluate`].
///
/// # Errors
/// As [the crate](crate#what-all-of-them-share) says, and an empty queue unless the batch is enqueued before.
pub fn rrd(student: &Tensor, teacher: &Tensor, queue: &mut Queue, loss: Rrd) -> Result<Tensor> {
    node::fused(student, teacher, Some(queue), loss.into())
}

/// The examples of the README.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
