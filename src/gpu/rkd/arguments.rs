//! What the kernels of RKD are launched with.

use bytemuck::{Pod, Zeroable};

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
    pub(super) tiles_per_group: u32,
    pub(super) parts: u32,
    pub(super) vertices_per_part: u32,
    pub(super) delta: f32,
}

/// Mirrors `Arguments` in kernels/rkd_angle_few.cu.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(crate) struct AngleFewArguments {
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
    pub(super) slots: u32,
    pub(super) slots_on_diagonal: u32,
    pub(super) tile: u32,
    pub(super) distance: u32,
    pub(super) delta: f32,
    pub(super) angle_factor: f32,
    pub(super) distance_factor: f32,
    pub(super) padding: u32,
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
    pub(super) padding: u32,
}
