//! What the kernels of RKD are launched with.

use bytemuck::{Pod, Zeroable};

use super::triple_partition::{PartialBuffers, TriplePartition};

/// Mirrors `Arguments` in kernels/rkd_relation.cu.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
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
    pub(super) padding: u32,
}

/// Mirrors `rkd::PartialBuffers` in kernels/common/rkd.cuh.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(crate) struct PartialBuffersArgument {
    pub(super) across: u32,
    pub(super) within: u32,
    pub(super) tiles_per_group: u32,
}

impl From<PartialBuffers> for PartialBuffersArgument {
    fn from(slots: PartialBuffers) -> Self {
        PartialBuffersArgument {
            across: slots.across as u32,
            within: slots.within as u32,
            tiles_per_group: slots.tiles_per_group as u32,
        }
    }
}

/// Mirrors `Kind` in kernels/rkd_angle.cu.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(crate) struct KindArgument {
    pub(super) first_block: u32,
    pub(super) parts: u32,
    pub(super) vertices_per_part: u32,
}

impl KindArgument {
    pub(super) fn all(partition: TriplePartition) -> [Self; 3] {
        let first = partition.first_blocks();
        [0, 1, 2].map(|kind| KindArgument {
            first_block: first[kind] as u32,
            parts: partition.parts[kind].count as u32,
            vertices_per_part: partition.parts[kind].vertices as u32,
        })
    }
}

/// Mirrors `Arguments` in kernels/rkd_angle.cu.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
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
    pub(super) slots: PartialBuffersArgument,
    pub(super) kinds: [KindArgument; 3],
    pub(super) delta: f32,
    pub(super) padding: u32,
}

/// Mirrors `Arguments` in kernels/rkd_angle_small_batch.cu.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(crate) struct SmallBatchAngleArguments {
    pub(super) h: [u64; 2],
    pub(super) r: [u64; 2],
    pub(super) sums: u64,
    pub(super) partials: u64,
    pub(super) lengths: u64,
    pub(super) scalars: u64,
    pub(super) n: u32,
    pub(super) length_count: u32,
    pub(super) shares: u32,
    pub(super) vertices_per_share: u32,
    pub(super) delta: f32,
    pub(super) padding: u32,
}

/// Mirrors `Arguments` in kernels/rkd_coefficients.cu.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
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
    pub(super) patch: u32,
    pub(super) angle_blocks: u32,
    pub(super) tile: u32,
    pub(super) slots: PartialBuffersArgument,
    pub(super) distance: u32,
    pub(super) delta: f32,
    pub(super) angle_factor: f32,
    pub(super) distance_factor: f32,
}

/// Mirrors `Arguments` in kernels/contraction.cu.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
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
