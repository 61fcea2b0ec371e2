//! The structs that the kernels of this family take.

use crate::gpu::arguments::kernel_arguments;

kernel_arguments! {
    /// Mirrors `Arguments` in kernels/sampled_products.cu.
    pub(crate) struct ProductArguments {
        pub(super) rows: [u64; 2],
        pub(super) banks: [u64; 2],
        pub(super) indices: u64,
        pub(super) products: u64,
        pub(super) inverse_norms: u64,
        pub(super) row_count: u32,
        pub(super) dim: u32,
        pub(super) keys: u32,
        pub(super) keys_of_split: u32,
    }

    /// Mirrors `Arguments` in kernels/sampled_rows.cu.
    pub(crate) struct RowArguments {
        pub(super) products: u64,
        pub(super) normalizers: [u64; 2],
        pub(super) losses: u64,
        pub(super) temperature: [f64; 2],
        pub(super) score_temperature: f64,
        pub(super) noise: f64,
        pub(super) epsilon: f64,
        pub(super) rows: u32,
        pub(super) keys: u32,
        pub(super) kind: u32,
        pub(super) padding: u32,
    }

    /// Mirrors `Arguments` in kernels/sampled_gradient.cu.
    pub(crate) struct GradientArguments {
        pub(super) coefficients: u64,
        pub(super) bank: u64,
        pub(super) indices: u64,
        pub(super) sums: u64,
        pub(super) rows: u32,
        pub(super) dim: u32,
        pub(super) keys: u32,
        pub(super) keys_of_split: u32,
    }

    /// Mirrors `Arguments` in kernels/sampled_finish.cu.
    pub(crate) struct FinishArguments {
        pub(super) rows: u64,
        pub(super) inverse_norms: u64,
        pub(super) sums: u64,
        pub(super) losses: u64,
        pub(super) gradient: u64,
        pub(super) value: u64,
        pub(super) counter: u64,
        pub(super) factor: f64,
        pub(super) row_count: u32,
        pub(super) dim: u32,
        pub(super) splits: u32,
        pub(super) width: u32,
    }
}
