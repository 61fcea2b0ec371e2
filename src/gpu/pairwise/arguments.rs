//! The structs that the kernels of the pairwise family take.

use crate::gpu::arguments::kernel_arguments;

kernel_arguments! {
    /// Mirrors `Matrix` in kernels/pairwise_relation.cu.
    pub(crate) struct MatrixArgument {
        pub(super) rows: u64,
        pub(super) slots: u64,
        pub(super) dim: u32,
        pub(super) slices: u32,
        pub(super) slice: u32,
        pub(super) padding: u32,
    }

    /// Mirrors `Arguments` in kernels/pairwise_relation.cu.
    pub(crate) struct RelationArguments {
        pub(super) of: [MatrixArgument; 2],
        pub(super) maxima: u64,
        pub(super) units: u64,
        pub(super) n: u32,
        pub(super) maxima_pitch: u32,
    }

    /// Mirrors `Arguments` in kernels/pairwise_penalty.cu.
    pub(crate) struct PenaltyArguments {
        pub(super) r: [u64; 2],
        pub(super) units: u64,
        pub(super) sums: u64,
        pub(super) scales: u64,
        pub(super) losses: u64,
        pub(super) partials: u64,
        pub(super) weighted: u64,
        pub(super) counter: u64,
        pub(super) slices: [u32; 2],
        pub(super) n: u32,
        pub(super) parameter: f32,
    }

    /// Mirrors `Arguments` in kernels/pairwise_coefficients.cu.
    pub(crate) struct CoefficientArguments {
        pub(super) student: u64,
        pub(super) teacher: u64,
        pub(super) scales: u64,
        pub(super) weighted: u64,
        pub(super) n: u32,
        pub(super) parameter: f32,
    }

    /// Mirrors `Arguments` in kernels/pairwise_order.cu.
    pub(crate) struct OrderArguments {
        pub(super) r: [u64; 2],
        pub(super) pairs: u64,
        pub(super) rows: u64,
        pub(super) sums: u64,
        pub(super) poison: u64,
        pub(super) partials: u64,
        pub(super) losses: u64,
        pub(super) counter: u64,
        pub(super) slices: [u32; 2],
        pub(super) n: u32,
        pub(super) count: u32,
        pub(super) margin: f32,
        pub(super) padding: u32,
    }

    /// Mirrors `Arguments` in kernels/pairwise_ranking.cu.
    pub(crate) struct RankingArguments {
        pub(super) rows: u64,
        pub(super) r: [u64; 2],
        pub(super) neighbors: u64,
        pub(super) poisons: u64,
        pub(super) losses: u64,
        pub(super) units: u64,
        pub(super) alpha: f64,
        pub(super) beta: f64,
        pub(super) slices: [u32; 2],
        pub(super) n: u32,
        pub(super) dim: u32,
        pub(super) length: u32,
        pub(super) count: u32,
    }

    /// Mirrors `Arguments` in kernels/pairwise_contraction.cu.
    pub(crate) struct ContractionArguments {
        pub(super) rows: u64,
        pub(super) coefficients: u64,
        pub(super) losses: u64,
        pub(super) units: u64,
        pub(super) value: u64,
        pub(super) gradient: u64,
        pub(super) total: u64,
        pub(super) loss_factor: f64,
        pub(super) n: u32,
        pub(super) dim: u32,
        pub(super) tile_rows: u32,
        pub(super) factor: f32,
        pub(super) first: u32,
        pub(super) padding: u32,
    }
}
