//! x/‖x‖ of every row and the way back, by kernels/normalize.cu.

use bytemuck::{Pod, Zeroable};

use super::kernels::{NORMALIZE, NORMALIZE_BACKWARD};
use super::machine::Launcher;
use super::plan::grid_size;
use crate::element::DType;
use crate::error::Result;

/// Mirrors `Arguments` in kernels/normalize.cu.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(crate) struct Arguments {
    rows: [u64; 2],
    normalized: [u64; 2],
    norms: [u64; 2],
    dim: [u32; 2],
}

/// Mirrors `BackwardArguments` in kernels/normalize.cu.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(crate) struct BackwardArguments {
    normalized: u64,
    norms: u64,
    gradient: u64,
    dim: u32,
    padding: u32,
}

/// A matrix to normalise: `rows` `[N, D]`, `normalized` `[N, D]` f32, and 1/‖x‖ `[N]` f32 unless 0.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Matrix {
    pub(crate) rows: u64,
    pub(crate) dim: usize,
    pub(crate) normalized: u64,
    pub(crate) norms: u64,
}

/// Normalises `count` rows of one matrix or two.
pub(crate) fn launch(
    launcher: &mut impl Launcher,
    dtype: DType,
    count: usize,
    matrices: &[Matrix],
) -> Result<()> {
    debug_assert!((1..=2).contains(&matrices.len()));
    let mut arguments = Arguments::zeroed();
    for (which, matrix) in matrices.iter().enumerate() {
        arguments.rows[which] = matrix.rows;
        arguments.normalized[which] = matrix.normalized;
        arguments.norms[which] = matrix.norms;
        arguments.dim[which] = grid_size("dim", matrix.dim)?;
    }
    let grid = [
        grid_size("rows", count)?,
        if matrices.len() == 2 { 2 } else { 1 },
        1,
    ];
    NORMALIZE.of(dtype).launch(launcher, grid, 0, &arguments)
}

/// Takes `gradient` `[N, D]` from the normalised rows back to the rows, in place.
pub(crate) fn launch_backward(
    launcher: &mut impl Launcher,
    [rows, dim]: [usize; 2],
    normalized: u64,
    norms: u64,
    gradient: u64,
) -> Result<()> {
    let arguments = BackwardArguments {
        normalized,
        norms,
        gradient,
        dim: grid_size("dim", dim)?,
        padding: 0,
    };
    NORMALIZE_BACKWARD.launch(launcher, [grid_size("rows", rows)?, 1, 1], 0, &arguments)
}
