//! softmax(x/τ) of every row, by kernels/softmax.cu.

use bytemuck::{Pod, Zeroable};

use super::kernels::SOFTMAX;
use super::machine::Launcher;
use super::plan::grid_size;
use crate::element::DType;
use crate::error::Result;

/// Mirrors `Arguments` in kernels/softmax.cu.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(crate) struct Arguments {
    rows: u64,
    probabilities: u64,
    dim: u32,
    inverse_temperature: f32,
}

/// Overwrites `probabilities` `[N, D]` f32.
pub(crate) fn launch(
    launcher: &mut impl Launcher,
    dtype: DType,
    [rows, dim]: [usize; 2],
    temperature: f64,
    addresses: [u64; 2],
) -> Result<()> {
    let arguments = Arguments {
        rows: addresses[0],
        probabilities: addresses[1],
        dim: grid_size("dim", dim)?,
        inverse_temperature: (1.0 / temperature) as f32,
    };
    SOFTMAX
        .of(dtype)
        .launch(launcher, [grid_size("rows", rows)?, 1, 1], 0, &arguments)
}
