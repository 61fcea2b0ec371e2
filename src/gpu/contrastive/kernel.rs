//! Which attention kernel a loss takes, and into how many splits it cuts the keys.

use half::f16;

use super::arguments::MmaArguments;
use crate::gpu::element::{GpuDType, KeyType};
use crate::gpu::kernels::{
    self, ATTENTION_MMA_64, ATTENTION_MMA_128, ATTENTION_MMA_256, MmaVariant,
};
use crate::gpu::machine::Limits;
use crate::gpu::queue;
use crate::gpu::tuning::contrastive::{KEYS, MAX_SPLITS, SYSTEM_SHARED, cost, mma, simt};
use crate::problem::WeightPrecision;

/// The rows that attend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Queries {
    /// The student's.
    Student,
    /// The student's and the teacher's.
    Both,
}

impl Queries {
    /// The number of sets of rows.
    pub(super) const fn sets(self) -> u32 {
        match self {
            Queries::Student => 1,
            Queries::Both => 2,
        }
    }
}

/// The keys that rows attend to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeySource {
    /// The keys of a queue.
    Queue,
    /// The teacher's rows of the batch, except that of the row's own sample. No kernel offers it
    /// with [`Queries::Both`].
    BatchExceptSelf,
}

/// How a row is prepared; `Format` in kernels/common/attention_row.cuh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Format {
    F32 = 1,
    ScaledF16 = 2,
}

/// How weights enter the product with the keys on tensor cores; `Weights` in
/// kernels/attention_mma.cu.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Weights {
    /// As the sum of two f16.
    Split,
    /// As one f16.
    Half,
    /// As one f16: the student's weight minus the teacher's.
    Difference,
}

impl Weights {
    /// The student's weights w and the teacher's v are each relative to their own largest. Rounding
    /// w − v to f16 costs 2⁻¹² of the larger of the two. If the teacher's softmax is flatter, that
    /// can exceed w, so we round w and v separately: such a student has not converged, and nothing
    /// cancels.
    pub(super) fn new(
        precision: WeightPrecision,
        queries: Queries,
        temperatures: [f64; 2],
    ) -> Self {
        let [student, teacher] = temperatures;
        match precision {
            WeightPrecision::Split => Weights::Split,
            WeightPrecision::Half if queries == Queries::Both && teacher <= student => {
                Weights::Difference
            }
            WeightPrecision::Half => Weights::Half,
        }
    }
}

/// An attention kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kernel {
    /// kernels/attention_simt.cu, on keys of this type.
    Simt(KeyType),
    /// kernels/attention_mma.cu, for rows up to a width.
    Mma(MmaWidth),
}

/// The widths that kernels/attention_mma.cu is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MmaWidth {
    W64,
    W128,
    W256,
}

impl MmaWidth {
    /// The most elements of a row.
    const fn elements(self) -> usize {
        match self {
            MmaWidth::W64 => 64,
            MmaWidth::W128 => 128,
            MmaWidth::W256 => 256,
        }
    }

    /// The entry point.
    pub(super) fn entry(self, keys: KeySource, weights: Weights) -> kernels::Kernel<MmaArguments> {
        let family = match self {
            MmaWidth::W64 => &ATTENTION_MMA_64,
            MmaWidth::W128 => &ATTENTION_MMA_128,
            MmaWidth::W256 => &ATTENTION_MMA_256,
        };
        family.of(match (weights, keys) {
            (Weights::Split, KeySource::Queue) => MmaVariant::Split,
            (Weights::Split, KeySource::BatchExceptSelf) => MmaVariant::SplitBatch,
            (Weights::Half, KeySource::Queue) => MmaVariant::Half,
            (Weights::Half, KeySource::BatchExceptSelf) => MmaVariant::HalfBatch,
            (Weights::Difference, _) => MmaVariant::HalfPair,
        })
    }
}

impl Kernel {
    /// Rows of f16 and bf16 at unit length go to the tensor cores, as f16 times a power of two, if
    /// a tile of them fits in shared memory.
    pub(super) fn new(
        dim: usize,
        dtype: GpuDType,
        normalize: bool,
        keys: KeySource,
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
            .filter(|_| key_type == KeyType::F16)
            .map(Kernel::Mma)
            .filter(|kernel| kernel.shared() <= limits.shared_per_block as usize);
        mma.unwrap_or(Kernel::Simt(match keys {
            KeySource::Queue => key_type,
            // The keys are rows of the batch, in the format in which this kernel reads rows.
            KeySource::BatchExceptSelf => KeyType::F32,
        }))
    }

    /// The format in which it reads rows.
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

    /// Whether another kernel prepares its rows. The tensor-core kernel prepares them itself, on
    /// their way to shared memory.
    pub(super) fn takes_prepared_rows(self) -> bool {
        matches!(self, Kernel::Simt(_))
    }

    /// Whether its means for the student have the weights w − v, with the teacher's weights v.
    pub(super) fn gives_differences(self, weights: Weights) -> bool {
        matches!(self, Kernel::Mma(_)) && weights == Weights::Difference
    }

    /// Rows of a block.
    pub(super) fn rows(self) -> usize {
        match self {
            Kernel::Mma(MmaWidth::W64 | MmaWidth::W128) => mma::ROWS,
            Kernel::Mma(MmaWidth::W256) => mma::ROWS_WIDE,
            Kernel::Simt(_) => simt::ROWS,
        }
    }

    /// Columns of the mean of a block.
    pub(super) fn columns(self) -> usize {
        match self {
            Kernel::Simt(_) => simt::COLUMNS,
            Kernel::Mma(_) => mma::COLUMNS,
        }
    }

    /// Bytes of dynamic shared memory of a block.
    pub(super) fn shared(self) -> usize {
        match self {
            Kernel::Simt(_) => 0,
            Kernel::Mma(width) => {
                let stride = width.elements() + mma::PADDING;
                (self.rows() + mma::STAGES * KEYS) * stride * size_of::<f16>()
            }
        }
    }

    /// Blocks that a multiprocessor holds at once, by registers and by shared memory.
    pub(super) fn blocks_per_multiprocessor(self, limits: Limits) -> usize {
        let by_registers = match self {
            Kernel::Simt(_) => simt::BLOCKS,
            Kernel::Mma(MmaWidth::W64) => mma::BLOCKS_NARROW,
            Kernel::Mma(MmaWidth::W128 | MmaWidth::W256) => mma::BLOCKS,
        };
        by_registers
            .min(limits.shared_per_block as usize / (self.shared() + SYSTEM_SHARED))
            .max(1)
    }
}

/// The number of splits of the keys, which have `tiles` tiles. A split takes `blocks` blocks, and
/// the GPU holds `resident` blocks at once.
///
/// A small batch needs many splits to fill the GPU. But each block costs its start, and its means
/// are written once and read once in the last pass. So we take the cheapest number.
pub(super) fn splits(blocks: usize, tiles: usize, resident: usize) -> usize {
    let most = tiles
        .min(MAX_SPLITS)
        .min(resident.div_ceil(blocks) * cost::MAX_WAVES);
    let cost = |splits: usize| {
        let waves = blocks.saturating_mul(splits).div_ceil(resident);
        waves
            .saturating_mul(tiles.div_ceil(splits) * cost::TILE + cost::START)
            .saturating_add(blocks.saturating_mul(splits * cost::MERGE))
    };
    (1..=most.max(1))
        .min_by_key(|&splits| cost(splits))
        .unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_types_take_tensor_cores_if_a_tile_fits() {
        let on =
            |dim, dtype, normalize, keys| Kernel::new(dim, dtype, normalize, keys, Limits::HOPPER);
        for dtype in [GpuDType::F16, GpuDType::BF16] {
            for keys in [KeySource::Queue, KeySource::BatchExceptSelf] {
                assert_eq!(on(1, dtype, true, keys), Kernel::Mma(MmaWidth::W64));
                assert_eq!(on(65, dtype, true, keys), Kernel::Mma(MmaWidth::W128));
                assert_eq!(on(256, dtype, true, keys), Kernel::Mma(MmaWidth::W256));
                // Rows that are not normalised may be too large or too small for f16.
                assert_eq!(on(64, dtype, false, keys), Kernel::Simt(KeyType::F32));
            }
            assert_eq!(
                on(257, dtype, true, KeySource::Queue),
                Kernel::Simt(KeyType::F16)
            );
            assert_eq!(
                on(257, dtype, true, KeySource::BatchExceptSelf),
                Kernel::Simt(KeyType::F32)
            );
        }
        assert_eq!(
            on(64, GpuDType::F32, true, KeySource::Queue),
            Kernel::Simt(KeyType::F32)
        );
        // Shared memory is what the header of the kernel says, and it fits the smallest GPU.
        assert_eq!(Kernel::Mma(MmaWidth::W128).shared(), 256 * 136 * 2);
        let small = Limits {
            shared_per_block: 99 * 1024,
            ..Limits::HOPPER
        };
        for dim in [64, 128, 256] {
            let kernel = Kernel::new(dim, GpuDType::F16, true, KeySource::Queue, small);
            assert!(matches!(kernel, Kernel::Mma(_)), "D {dim}");
        }
        let none = Limits {
            shared_per_block: 48 * 1024,
            ..Limits::HOPPER
        };
        assert_eq!(
            Kernel::new(256, GpuDType::F16, true, KeySource::Queue, none),
            Kernel::Simt(KeyType::F16)
        );
    }

    #[test]
    fn splits_fill_the_gpu_once() {
        // 132 multiprocessors hold two blocks each. At N = 64, K = 16384 all blocks fit at once.
        let small = splits(2, 256, 264);
        assert!((64..=132).contains(&small), "{small}");
        // The values in docs/kernels/rrd.md, where tiles have 128 rows up to D = 128 and 64 beyond.
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
        // Where the rows fill the GPU, the keys are split only to even out the last wave.
        assert_eq!(splits(264, 1024, 264), 1);
        assert!(splits(200, 1024, 264) > 1);
        assert!(splits(100_000, 1024, 264) <= 4);
        // There are never more splits than tiles, or than the last pass holds weights for.
        assert_eq!(splits(1, 1, 264), 1);
        assert!(splits(1, 1 << 20, 1 << 20) <= MAX_SPLITS);
    }
}
