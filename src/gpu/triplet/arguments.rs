//! The structs that the kernels of RKD take.

use super::triple_partition::{PartialBuffers, TriplePartition};
use crate::gpu::arguments::kernel_arguments;

kernel_arguments! {
    /// Mirrors `Arguments` in kernels/rkd_relation.cu.
    pub(crate) struct RelationArguments {
        pub(super) rows: [u64; 2],
        pub(super) h: [u64; 2],
        pub(super) r: [u64; 2],
        pub(super) partials: u64,
        pub(super) scalars: u64,
        pub(super) counter: u64,
        pub(super) n: u32,
        pub(super) dim: [u32; 2],
        pub(super) side: u32,
        pub(super) spread_limit: f32,
        pub(super) duplicate_square: f32,
    }

    /// Mirrors `rkd::PartialBuffers` in kernels/common/rkd.cuh.
    pub(crate) struct PartialBuffersArgument {
        pub(super) between_groups: u32,
        pub(super) within_group: u32,
        pub(super) tiles_per_group: u32,
    }

    /// Mirrors `GroupOverlap` in kernels/rkd_angle.cu.
    pub(crate) struct GroupOverlapArgument {
        pub(super) first_block: u32,
        pub(super) parts: u32,
        pub(super) vertices_per_part: u32,
    }

    /// Mirrors `Arguments` in kernels/rkd_angle.cu.
    pub(crate) struct AngleArguments {
        pub(super) h: [u64; 2],
        pub(super) r: [u64; 2],
        pub(super) sums: u64,
        pub(super) partials: u64,
        pub(super) scalars: u64,
        pub(super) counter: u64,
        pub(super) penalty_limit: f64,
        pub(super) n: u32,
        pub(super) groups: u32,
        pub(super) partial_buffers: PartialBuffersArgument,
        pub(super) overlaps: [GroupOverlapArgument; 3],
        pub(super) delta: f32,
        pub(super) padding: u32,
    }

    /// Mirrors `Arguments` in kernels/rkd_angle_small_batch.cu.
    pub(crate) struct SmallBatchAngleArguments {
        pub(super) h: [u64; 2],
        pub(super) r: [u64; 2],
        pub(super) sums: u64,
        pub(super) partials: u64,
        pub(super) lengths: u64,
        pub(super) scalars: u64,
        pub(super) n: u32,
        pub(super) length_count: u32,
        pub(super) ranges: u32,
        pub(super) vertices_per_range: u32,
        pub(super) delta: f32,
        pub(super) padding: u32,
    }

    /// Mirrors `Arguments` in kernels/rkd_coefficients.cu.
    pub(crate) struct CoefficientArguments {
        pub(super) sums: u64,
        pub(super) r: [u64; 2],
        pub(super) coefficients: u64,
        pub(super) penalties: u64,
        pub(super) partials: u64,
        pub(super) lengths: u64,
        pub(super) scalars: u64,
        pub(super) n: u32,
        pub(super) length_count: u32,
        pub(super) tile_side: u32,
        pub(super) angle_blocks: u32,
        pub(super) sums_side: u32,
        pub(super) partial_buffers: PartialBuffersArgument,
        pub(super) distance: u32,
        pub(super) delta: f32,
        pub(super) angle_factor: f32,
        pub(super) distance_factor: f32,
    }

    /// Mirrors `Arguments` in kernels/contraction.cu.
    pub(crate) struct ContractionArguments {
        pub(super) rows: u64,
        pub(super) coefficients: u64,
        pub(super) r: u64,
        pub(super) scalars: u64,
        pub(super) penalties: u64,
        pub(super) value: u64,
        pub(super) gradient: u64,
        pub(super) angle_value: f64,
        pub(super) distance_value: f64,
        pub(super) n: u32,
        pub(super) dim: u32,
        pub(super) penalty_count: u32,
        pub(super) tile_rows: u32,
        pub(super) upstream: f32,
        pub(super) distance_factor: f32,
        pub(super) distance: u32,
        pub(super) terms: u32,
    }
}

impl From<PartialBuffers> for PartialBuffersArgument {
    fn from(buffers: PartialBuffers) -> Self {
        PartialBuffersArgument {
            between_groups: buffers.between_groups as u32,
            within_group: buffers.within_group as u32,
            tiles_per_group: buffers.tiles_per_group as u32,
        }
    }
}

impl GroupOverlapArgument {
    /// For triples of three groups, of two and of one.
    pub(super) fn all(partition: TriplePartition) -> [Self; 3] {
        let first = partition.first_blocks();
        [0, 1, 2].map(|overlap| GroupOverlapArgument {
            first_block: first[overlap] as u32,
            parts: partition.splits[overlap].count as u32,
            vertices_per_part: partition.splits[overlap].len as u32,
        })
    }
}
