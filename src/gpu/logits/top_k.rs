//! A teacher that is a list of classes, by kernels/kd_top_k.cu.

use super::divergence::Kind;
use crate::error::{Error, Result};
use crate::gpu::arguments::kernel_arguments;
use crate::gpu::element::GpuDType;
use crate::gpu::kernels::KD_TOP_K;
use crate::gpu::machine::Limits;
use crate::gpu::plan::grid_size;
use crate::gpu::tuning::logits::{CHUNK, REDUCTIONS};
use crate::loss::Logits;
use crate::top_k::TopK;

kernel_arguments! {
    /// Mirrors `Arguments` in kernels/kd_top_k.cu.
    pub(crate) struct Arguments {
        pub(super) student: u64,
        pub(super) ids: u64,
        pub(super) log_p: u64,
        pub(super) gradient: u64,
        pub(super) partials: u64,
        pub(super) value: u64,
        pub(super) counter: u64,
        pub(super) row_shares: u64,
        pub(super) row_losses: u64,
        pub(super) loss_factor: f64,
        pub(super) row_factor: f64,
        pub(super) inverse_temperature: f64,
        pub(super) share: f64,
        pub(super) rest: f64,
        pub(super) least_tail: f64,
        pub(super) gradient_factor: f32,
        pub(super) classes: u32,
        pub(super) columns: u32,
        pub(super) k: u32,
        pub(super) kind: u32,
        pub(super) tail: u32,
        pub(super) words: u32,
        pub(super) kept: u32,
    }
}

/// How the kernel runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct List {
    pub(super) k: u32,
    pub(super) kind: u32,
    /// 1 − α or 1 − β, and the rest to 1.
    pub(super) share: f64,
    pub(super) rest: f64,
    pub(super) tail: bool,
    /// 32-bit words of a bit for each class.
    pub(super) words: u32,
    /// Chunks that a thread keeps.
    pub(super) kept: u32,
}

impl List {
    pub(super) fn new(
        loss: &Logits,
        [classes, k]: [usize; 2],
        dtype: GpuDType,
        limits: Limits,
    ) -> Result<Self> {
        let words = classes.div_ceil(32).next_multiple_of(4);
        let room = (limits.shared_per_block as usize).saturating_sub(REDUCTIONS);
        let Some(room) = room.checked_sub(4 * words) else {
            return Err(Error::TooLarge {
                argument: "classes",
                most: room / 16 * 16 * 8,
                got: classes,
            });
        };
        let threads = KD_TOP_K.threads as usize;
        let chunks = classes.div_ceil(CHUNK / dtype.bytes());
        let kept = chunks.div_ceil(threads).min(room / (CHUNK * threads));
        let (kind, rest) = Kind::code(loss.divergence);
        Ok(List {
            k: grid_size("teacher k", k)?,
            kind,
            share: 1.0 - rest,
            rest,
            tail: loss.tail,
            words: grid_size("classes", words)?,
            kept: grid_size("classes", kept)?,
        })
    }

    /// Bytes of dynamic shared memory of a block.
    pub(super) fn shared(&self) -> u32 {
        4 * self.words + self.kept * CHUNK as u32 * KD_TOP_K.threads
    }

    /// The least probability of the tail: what rounding does to the sum of the others.
    pub(super) const LEAST_TAIL: f64 = TopK::<f32>::ROUNDING;
}
