//! Which kernel takes rows over keys, and in how many parts.

use half::f16;

use super::arguments::MmaArguments;
use crate::element::DType;
use crate::gpu::kernels::{
    self, ATTENTION_MMA_64, ATTENTION_MMA_128, ATTENTION_MMA_256, MmaVariant,
};
use crate::gpu::machine::Limits;
use crate::gpu::queue;
use crate::problem::WeightPrecision;

/// Keys of a tile, in every attention kernel.
pub(super) const KEYS: usize = 64;
/// Most parts the keys are attended to in; `MOST_SPLITS` in kernels/common/attention_merge.cuh.
const MOST_SPLITS: usize = 512;

/// How a row is prepared; `Format` in kernels/common/attention_row.cuh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Format {
    F32 = 1,
    ScaledF16 = 2,
}

/// How weights go into the product with the keys, on tensor cores; `Weights` in kernels/attention_mma.cu.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Weights {
    /// As sums of two f16.
    Split,
    /// As one f16.
    Half,
    /// As one f16, the student's less the teacher's.
    Difference,
}

impl Weights {
    /// What is rounded in a difference is of the size of the larger one, each being over its own largest. Where the teacher is
    /// the flatter, the student's would be lost beside it, and as it has not converged nothing cancels either.
    pub(super) fn new(precision: WeightPrecision, keys: Keys, temperatures: [f64; 2]) -> Self {
        let [student, teacher] = temperatures;
        match precision {
            WeightPrecision::Split => Weights::Split,
            WeightPrecision::Half if keys == Keys::QueueBoth && teacher <= student => {
                Weights::Difference
            }
            WeightPrecision::Half => Weights::Half,
        }
    }
}

/// Which rows attend to which keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keys {
    /// The student's rows and the teacher's, to a queue.
    QueueBoth,
    /// The student's rows alone, to a queue.
    Queue,
    /// The student's rows, to the teacher's of other samples.
    Others,
}

/// The kernel that takes rows over keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kernel {
    /// kernels/attention_simt.cu, on keys of this type.
    Simt(DType),
    /// kernels/attention_mma.cu, for rows up to a width.
    Mma(MmaWidth),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MmaWidth {
    W64,
    W128,
    W256,
}

impl MmaWidth {
    /// Most elements of a row.
    const fn elements(self) -> usize {
        match self {
            MmaWidth::W64 => 64,
            MmaWidth::W128 => 128,
            MmaWidth::W256 => 256,
        }
    }

    /// The entry point.
    pub(super) fn entry(self, keys: Keys, weights: Weights) -> kernels::Kernel<MmaArguments> {
        let family = match self {
            MmaWidth::W64 => &ATTENTION_MMA_64,
            MmaWidth::W128 => &ATTENTION_MMA_128,
            MmaWidth::W256 => &ATTENTION_MMA_256,
        };
        family.of(match (weights, keys) {
            (Weights::Split, Keys::QueueBoth | Keys::Queue) => MmaVariant::Split,
            (Weights::Split, Keys::Others) => MmaVariant::SplitBatch,
            (Weights::Half, Keys::QueueBoth | Keys::Queue) => MmaVariant::Half,
            (Weights::Half, Keys::Others) => MmaVariant::HalfBatch,
            (Weights::Difference, _) => MmaVariant::HalfPair,
        })
    }
}

impl Kernel {
    /// Unit rows of a half type go to the tensor cores as f16 times a power of two, as long as a tile of
    /// them fits shared memory.
    pub(super) fn new(
        dim: usize,
        dtype: DType,
        normalize: bool,
        keys: Keys,
        limits: Limits,
    ) -> Self {
        let width = match dim {
            ..=64 => Some(MmaWidth::W64),
            65..=128 => Some(MmaWidth::W128),
            129..=256 => Some(MmaWidth::W256),
            _ => None,
        };
        let key_type = queue::key_type(dtype, normalize);
        let mma = width
            .filter(|_| key_type == DType::F16)
            .map(Kernel::Mma)
            .filter(|kernel| kernel.shared() <= limits.shared_per_block as usize);
        mma.unwrap_or(Kernel::Simt(match keys {
            Keys::QueueBoth | Keys::Queue => key_type,
            // The batch's rows, as this kernel takes rows.
            Keys::Others => DType::F32,
        }))
    }

    /// What it takes its rows as.
    pub(super) fn format(self) -> Format {
        match self {
            Kernel::Simt(_) => Format::F32,
            Kernel::Mma(_) => Format::ScaledF16,
        }
    }

    /// Bytes of an element of a prepared row.
    pub(super) fn element(self) -> usize {
        match self {
            Kernel::Simt(_) => size_of::<f32>(),
            Kernel::Mma(_) => size_of::<f16>(),
        }
    }

    /// Whether rows have to be prepared for it. The other prepares them itself, on their way to shared memory.
    pub(super) fn takes_prepared_rows(self) -> bool {
        matches!(self, Kernel::Simt(_))
    }

    /// Whether the student's means are of its weights less the teacher's.
    pub(super) fn gives_differences(self, weights: Weights) -> bool {
        matches!(self, Kernel::Mma(_)) && weights == Weights::Difference
    }

    /// Rows of a block.
    pub(super) fn rows(self) -> usize {
        match self {
            Kernel::Mma(MmaWidth::W64 | MmaWidth::W128) => 128,
            Kernel::Mma(MmaWidth::W256) | Kernel::Simt(_) => 64,
        }
    }

    /// Columns of the mean of a block.
    pub(super) fn columns(self) -> usize {
        match self {
            Kernel::Simt(_) => 128,
            Kernel::Mma(_) => 256,
        }
    }

    /// Bytes of dynamic shared memory.
    pub(super) fn shared(self) -> usize {
        match self {
            Kernel::Simt(_) => 0,
            // The rows and two stages of keys, 16 bytes apart.
            Kernel::Mma(width) => {
                (self.rows() + 2 * KEYS) * (width.elements() + 8) * size_of::<f16>()
            }
        }
    }

    /// Blocks that a multiprocessor holds at once, by its registers and by its shared memory.
    pub(super) fn blocks_per_multiprocessor(self, limits: Limits) -> usize {
        let by_registers = match self {
            Kernel::Simt(_) | Kernel::Mma(MmaWidth::W128 | MmaWidth::W256) => 2,
            Kernel::Mma(MmaWidth::W64) => 3,
        };
        // A block has a KiB for the system, too.
        by_registers
            .min(limits.shared_per_block as usize / (self.shared() + 1024))
            .max(1)
    }
}

/// In how many parts to attend to `tiles` of keys, with `blocks` blocks for each part and room for `slots`
/// at once: few rows need many splits to fill a GPU, and each block costs its start, a write of its
/// means and, in the last pass, a read of them.
pub(super) fn splits(blocks: usize, tiles: usize, slots: usize) -> usize {
    // In 64ths of the time a tile takes. 128 means of 128 elements are written and read in L2 in about one.
    const TILE: usize = 64;
    const START: usize = TILE;
    const MERGE: usize = 1;
    let most = tiles.min(MOST_SPLITS).min(slots.div_ceil(blocks) * 4);
    let cost = |splits: usize| {
        let waves = blocks.saturating_mul(splits).div_ceil(slots);
        waves
            .saturating_mul(tiles.div_ceil(splits) * TILE + START)
            .saturating_add(blocks.saturating_mul(splits * MERGE))
    };
    (1..=most.max(1))
        .min_by_key(|&splits| cost(splits))
        .unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_types_go_to_tensor_cores_where_a_tile_fits() {
        let on =
            |dim, dtype, normalize, keys| Kernel::new(dim, dtype, normalize, keys, Limits::HOPPER);
        for dtype in [DType::F16, DType::BF16] {
            for keys in [Keys::QueueBoth, Keys::Queue, Keys::Others] {
                assert_eq!(on(1, dtype, true, keys), Kernel::Mma(MmaWidth::W64));
                assert_eq!(on(65, dtype, true, keys), Kernel::Mma(MmaWidth::W128));
                assert_eq!(on(256, dtype, true, keys), Kernel::Mma(MmaWidth::W256));
                // Rows as they come may be too large for f16, or too small.
                assert_eq!(on(64, dtype, false, keys), Kernel::Simt(DType::F32));
            }
            assert_eq!(on(257, dtype, true, Keys::Queue), Kernel::Simt(DType::F16));
            assert_eq!(on(257, dtype, true, Keys::Others), Kernel::Simt(DType::F32));
        }
        assert_eq!(
            on(64, DType::F32, true, Keys::Queue),
            Kernel::Simt(DType::F32)
        );
        // Shared memory is what the kernel's header says, all of it, and fits the least GPU there is.
        assert_eq!(Kernel::Mma(MmaWidth::W128).shared(), 256 * 136 * 2);
        let small = Limits {
            shared_per_block: 99 * 1024,
            ..Limits::HOPPER
        };
        for dim in [64, 128, 256] {
            let kernel = Kernel::new(dim, DType::F16, true, Keys::Queue, small);
            assert!(matches!(kernel, Kernel::Mma(_)), "D {dim}");
        }
        let none = Limits {
            shared_per_block: 48 * 1024,
            ..Limits::HOPPER
        };
        assert_eq!(
            Kernel::new(256, DType::F16, true, Keys::Queue, none),
            Kernel::Simt(DType::F16)
        );
    }

    #[test]
    fn splits_fill_a_gpu_and_no_more() {
        // Two blocks on each of 132 multiprocessors. A batch of 64, K = 16384: as many as fit at once.
        let small = splits(2, 256, 264);
        assert!((64..=132).contains(&small), "{small}");
        // As docs/kernels/rrd.md has them, of tiles of 128 rows up to D = 128 and of 64 beyond.
        let known = [
            (1, 256, 128),
            (4, 256, 64),
            (4, 1024, 64),
            (32, 1024, 8),
            (128, 1024, 2),
        ];
        for (blocks, tiles, want) in known {
            assert_eq!(
                splits(blocks, tiles, 264),
                want,
                "{blocks} blocks, {tiles} tiles"
            );
        }
        // Enough rows to fill the GPU: the keys are split only where that evens out the last wave.
        assert_eq!(splits(264, 1024, 264), 1);
        assert!(splits(200, 1024, 264) > 1);
        assert!(splits(100_000, 1024, 264) <= 4);
        // Never more than there are tiles, or than the last pass holds weights for.
        assert_eq!(splits(1, 1, 264), 1);
        assert!(splits(1, 1 << 20, 1 << 20) <= MOST_SPLITS);
    }
}
