//! softmax(x/τ) of every row, by kernels/softmax.cu.

use crate::error::Result;
use crate::gpu::arguments::kernel_arguments;
use crate::gpu::element::GpuDType;
use crate::gpu::kernels::SOFTMAX;
use crate::gpu::machine::Launcher;
use crate::gpu::plan::grid_size;

kernel_arguments! {
    /// Mirrors `Arguments` in kernels/softmax.cu.
    pub(crate) struct Arguments {
        rows: u64,
        probabilities: u64,
        dim: u32,
        inverse_temperature: f32,
    }
}

/// Computes softmax(x/τ) of `shape` = `[N, D]` elements. `addresses` are those of the rows x, of
/// type
/// `dtype`, and of the probabilities, `[N, D]` f32, which are overwritten.
pub(crate) fn launch(
    launcher: &mut impl Launcher,
    dtype: GpuDType,
    shape: [usize; 2],
    temperature: f64,
    addresses: [u64; 2],
) -> Result<()> {
    let ([rows, dim], [input, probabilities]) = (shape, addresses);
    let arguments = Arguments {
        rows: input,
        probabilities,
        dim: grid_size("dim", dim)?,
        inverse_temperature: (1.0 / temperature) as f32,
    };
    SOFTMAX
        .of(dtype)
        .launch(launcher, [grid_size("rows", rows)?, 1, 1], 0, &arguments)
}
