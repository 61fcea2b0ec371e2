//! The structs that the attention kernels take.

use bytemuck::{Pod, Zeroable};

/// Mirrors `Stat` in kernels/common/attention.cuh.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(super) struct Stat {
    pub(super) largest: f32,
    pub(super) sum: f32,
    pub(super) moment: f32,
}

/// Mirrors `Set` in kernels/attention_rows.cu.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(super) struct Set {
    pub(super) from: u64,
    pub(super) to: u64,
    pub(super) scales: u64,
    pub(super) per_temperature: f32,
    pub(super) padding: u32,
}

/// Mirrors `Arguments` in kernels/attention_rows.cu.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(crate) struct RowsArguments {
    pub(super) sets: [Set; 2],
    pub(super) rows: u32,
    pub(super) dim: u32,
    pub(super) pitch: u32,
    pub(super) format: u32,
    pub(super) normalize: u32,
    pub(super) padding: u32,
}

/// Mirrors `Attending` in kernels/common/attention.cuh.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(super) struct Attending {
    pub(super) keys: u64,
    pub(super) state: u64,
    pub(super) stats: u64,
    pub(super) means: u64,
    pub(super) row_count: u32,
    pub(super) key_count: u32,
    pub(super) dim: u32,
    pub(super) key_pitch: u32,
    pub(super) mean_pitch: u32,
    pub(super) padding: u32,
}

/// Mirrors `staging::Arguments` in kernels/common/attention_stage.cuh.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(crate) struct MmaArguments {
    pub(super) attending: Attending,
    pub(super) student: u64,
    pub(super) teacher: u64,
    pub(super) key_scales: u64,
    pub(super) per_temperature: [f32; 2],
    pub(super) samples: u32,
    pub(super) is_bf16: u32,
}

/// Mirrors `Arguments` in kernels/attention_simt.cu.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(crate) struct SimtArguments {
    pub(super) attending: Attending,
    pub(super) rows: u64,
    pub(super) scales: u64,
    pub(super) row_pitch: u32,
    pub(super) pass_over_own: u32,
}

/// Mirrors `Partials` in kernels/common/attention_merge.cuh.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(crate) struct Partials {
    pub(super) stats: u64,
    pub(super) means: u64,
    pub(super) rows: u32,
    pub(super) splits: u32,
    pub(super) pitch: u32,
    pub(super) differences: u32,
    pub(super) moments: u32,
    pub(super) padding: u32,
}

/// Mirrors `FinishArguments` in kernels/common/attention_merge.cuh.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(crate) struct FinishArguments {
    pub(super) student: u64,
    pub(super) teacher: u64,
    pub(super) partials: Partials,
    pub(super) gradient: u64,
    pub(super) losses: u64,
    pub(super) value: u64,
    pub(super) counter: u64,
    pub(super) factor: f64,
    pub(super) per_temperature: [f32; 2],
    pub(super) dim: u32,
    pub(super) normalized: u32,
    pub(super) format: u32,
    pub(super) padding: u32,
}
