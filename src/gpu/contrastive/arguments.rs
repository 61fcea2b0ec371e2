//! The structs that the kernels of this family take.

use crate::gpu::arguments::kernel_arguments;

kernel_arguments! {
    /// Mirrors `Stat` in kernels/common/attention.cuh.
    pub(super) struct Stat {
        pub(super) largest: f32,
        pub(super) sum: f32,
        pub(super) moment: f32,
    }

    /// Mirrors `RowSet` in kernels/attention_rows.cu.
    pub(super) struct RowSet {
        pub(super) from: u64,
        pub(super) to: u64,
        pub(super) scales: u64,
        pub(super) per_temperature: f32,
        pub(super) padding: u32,
    }

    /// Mirrors `Arguments` in kernels/attention_rows.cu.
    pub(crate) struct RowsArguments {
        pub(super) sets: [RowSet; 2],
        pub(super) rows: u32,
        pub(super) dim: u32,
        pub(super) pitch: u32,
        pub(super) format: u32,
        pub(super) normalize: u32,
        pub(super) padding: u32,
    }

    /// Mirrors `AttentionCommon` in kernels/common/attention.cuh.
    pub(super) struct AttentionCommon {
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
    pub(crate) struct MmaArguments {
        pub(super) common: AttentionCommon,
        pub(super) student: u64,
        pub(super) teacher: u64,
        pub(super) key_scales: u64,
        pub(super) per_temperature: [f32; 2],
        pub(super) samples: u32,
        pub(super) is_bf16: u32,
    }

    /// Mirrors `Arguments` in kernels/attention_simt.cu.
    pub(crate) struct SimtArguments {
        pub(super) common: AttentionCommon,
        pub(super) rows: u64,
        pub(super) scales: u64,
        pub(super) row_pitch: u32,
        pub(super) skip_own_key: u32,
    }

    /// Mirrors `Partials` in kernels/common/attention_merge.cuh.
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

    /// Mirrors `NearRow` in kernels/common/divergence.cuh.
    pub(super) struct NearRow {
        pub(super) factors: [f64; 2],
        pub(super) log_sum: f32,
        pub(super) mean: f32,
    }

    /// Mirrors `DivergenceSums` in kernels/rrd_divergence.cu.
    pub(super) struct DivergenceSums {
        pub(super) weight: f64,
        pub(super) first_order: f64,
        pub(super) excess: f64,
    }

    /// Mirrors `Arguments` in kernels/rrd_divergence.cu.
    pub(crate) struct DivergenceArguments {
        pub(super) common: AttentionCommon,
        pub(super) student: u64,
        pub(super) teacher: u64,
        pub(super) rows: u64,
        pub(super) losses: u64,
        pub(super) sums: u64,
        pub(super) value: u64,
        pub(super) counter: u64,
        pub(super) any_near: u64,
        pub(super) f16_keys: u32,
        pub(super) padding: u32,
    }

    /// Mirrors `FinishArguments` in kernels/common/attention_merge.cuh.
    pub(crate) struct FinishArguments {
        pub(super) student: u64,
        pub(super) teacher: u64,
        pub(super) partials: Partials,
        pub(super) gradient: u64,
        pub(super) losses: u64,
        pub(super) value: u64,
        pub(super) counter: u64,
        pub(super) near_rows: u64,
        pub(super) any_near: u64,
        pub(super) factor: f64,
        pub(super) per_temperature: [f32; 2],
        pub(super) dim: u32,
        pub(super) normalized: u32,
        pub(super) format: u32,
        pub(super) padding: u32,
    }
}
