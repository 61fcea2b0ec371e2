//! The divergences other than KL(p‖q) with one temperature, by kernels/kd_divergence.cu.

use crate::loss::{Divergence, Logits};

/// A divergence as the kernel takes it: its `Kind`, and 1 − α or 1 − β with the rest to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Kind {
    pub(super) kind: u32,
    pub(super) share: f32,
    pub(super) rest: f32,
}

impl Kind {
    /// How the kernel computes the loss, or `None` where kernels/kd_kl.cu does: rows
    /// are plain if they have no weights and are compared as a whole.
    pub(super) fn of(loss: &Logits, is_plain: bool) -> Option<Self> {
        if is_plain
            && loss.divergence == Divergence::Forward
            && loss.student_temperature == loss.teacher_temperature
        {
            return None;
        }
        let (kind, rest) = Self::code(loss.divergence);
        Some(Kind {
            kind,
            share: (1.0 - rest) as f32,
            rest: rest as f32,
        })
    }

    /// The kernels' `Kind`, and α or β.
    pub(super) fn code(divergence: Divergence) -> (u32, f64) {
        match divergence {
            Divergence::Forward => (0, 0.0),
            Divergence::Reverse => (1, 0.0),
            Divergence::Js { beta } => (2, beta),
            Divergence::Skew { alpha } => (3, alpha),
            Divergence::SkewReverse { alpha } => (4, alpha),
        }
    }
}
