//! The structs that the kernels of this family take.

use crate::gpu::arguments::kernel_arguments;

kernel_arguments! {
    /// Mirrors `Compared` in kernels/common/towers.cuh.
    pub(super) struct Compared {
        pub(super) rows: u32,
        pub(super) halves: u32,
    }

    /// Mirrors `Stat` in kernels/common/towers.cuh.
    pub(super) struct Stat {
        pub(super) largest: f32,
        pub(super) sum: f32,
    }

    /// Mirrors `Record` in kernels/common/towers.cuh.
    pub(super) struct Record {
        pub(super) largest: [f32; 2],
        pub(super) excess: [f32; 2],
        pub(super) counts: f32,
        /// Or `limit`, in a union.
        pub(super) per_target: f32,
        pub(super) own: f32,
        pub(super) label: u32,
    }

    /// Mirrors `Arguments` in kernels/towers_log_sums.cu.
    pub(crate) struct LogSumArguments {
        pub(super) rows: [u64; 2],
        pub(super) labels: u64,
        pub(super) stats: u64,
        pub(super) guide_margin: f64,
        pub(super) compared: Compared,
        pub(super) dim: [u32; 2],
        pub(super) scale: [f32; 2],
        pub(super) has_guide: u32,
        pub(super) padding: u32,
    }

    /// Mirrors `Arguments` in kernels/towers_rows.cu.
    pub(crate) struct RowArguments {
        pub(super) rows: [u64; 2],
        pub(super) stats: u64,
        pub(super) labels: u64,
        pub(super) records: u64,
        pub(super) losses: u64,
        pub(super) row_factor: u64,
        pub(super) counter: u64,
        pub(super) temperature: [f64; 2],
        pub(super) guide_margin: f64,
        pub(super) compared: Compared,
        pub(super) dim: [u32; 2],
        pub(super) scale: [f32; 2],
        pub(super) of_student: f32,
        pub(super) of_teacher: f32,
        pub(super) splits: u32,
        pub(super) kind: u32,
        pub(super) sigmoid_scale: f32,
        pub(super) bias: f32,
        pub(super) has_target: u32,
        pub(super) has_guide: u32,
        pub(super) both_ways: u32,
        pub(super) padding: u32,
    }

    /// Mirrors `Arguments` in kernels/towers_gradient.cu.
    pub(crate) struct GradientArguments {
        pub(super) rows: [u64; 2],
        pub(super) records: u64,
        pub(super) sums: u64,
        pub(super) moments: u64,
        pub(super) compared: Compared,
        pub(super) dim: [u32; 2],
        pub(super) scale: [f32; 2],
        pub(super) of_student: f32,
        pub(super) of_teacher: f32,
        pub(super) sigmoid_scale: f32,
        pub(super) bias: f32,
        pub(super) has_target: u32,
        pub(super) padding: u32,
    }

    /// Mirrors `Arguments` in kernels/towers_finish.cu.
    pub(crate) struct FinishArguments {
        pub(super) rows: u64,
        pub(super) norms: u64,
        pub(super) records: u64,
        pub(super) sums: u64,
        pub(super) moments: u64,
        pub(super) losses: u64,
        pub(super) row_factor: u64,
        pub(super) partials: u64,
        pub(super) gradient: u64,
        pub(super) value: u64,
        pub(super) counter: u64,
        pub(super) per_temperature: f64,
        pub(super) factor: f64,
        pub(super) gradient_factor: f64,
        pub(super) along_factor: f64,
        pub(super) compared: Compared,
        pub(super) dim: u32,
        pub(super) splits: u32,
        pub(super) kind: u32,
        pub(super) hard_weight: f32,
        pub(super) soft_weight: f32,
        pub(super) has_teacher: u32,
    }
}
