//! x/(‖x‖ + ε) of every row, and the gradient back through it, by kernels/normalize.cu.

use bytemuck::Zeroable;

use super::arguments::kernel_arguments;
use super::kernels::{NORMALIZE, NORMALIZE_BACKWARD};
use super::machine::Launcher;
use super::plan::grid_size;
use crate::error::Result;
use crate::gpu::element::GpuDType;

kernel_arguments! {
    /// Mirrors `Arguments` in kernels/normalize.cu.
    pub(crate) struct Arguments {
        rows: [u64; 2],
        normalized: [u64; 2],
        norms: [u64; 2],
        dim: [u32; 2],
        pitch: [u32; 2],
        epsilon: f64,
    }

    /// Mirrors `BackwardArguments` in kernels/normalize.cu.
    pub(crate) struct BackwardArguments {
        normalized: u64,
        norms: u64,
        gradient: u64,
        sum: u64,
        dim: u32,
        pitch: u32,
        first: u32,
        epsilon: f32,
    }
}

/// A matrix to normalise, by addresses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Matrix {
    /// x, `[N, pitch]`, of which the first D columns count.
    pub(crate) rows: u64,
    pub(crate) dim: usize,
    pub(crate) pitch: usize,
    /// x/(‖x‖ + ε), `[N, D]` f32, overwritten.
    pub(crate) normalized: u64,
    /// 1/(‖x‖ + ε), `[N]` f32, overwritten; or 0 where nothing needs it.
    pub(crate) norms: u64,
}

/// Normalises the `count` rows of each of one or two matrices of elements of `dtype`, with `epsilon`
/// added to the lengths.
pub(crate) fn launch(
    launcher: &mut impl Launcher,
    dtype: GpuDType,
    count: usize,
    matrices: &[Matrix],
    epsilon: f64,
) -> Result<()> {
    debug_assert!((1..=2).contains(&matrices.len()));
    let mut arguments = Arguments {
        epsilon,
        ..Arguments::zeroed()
    };
    for (which, matrix) in matrices.iter().enumerate() {
        arguments.rows[which] = matrix.rows;
        arguments.normalized[which] = matrix.normalized;
        arguments.norms[which] = matrix.norms;
        arguments.dim[which] = grid_size("dim", matrix.dim)?;
        arguments.pitch[which] = grid_size("dim", matrix.pitch)?;
    }
    let grid = [
        grid_size("rows", count)?,
        if matrices.len() == 2 { 2 } else { 1 },
        1,
    ];
    NORMALIZE.of(dtype).launch(launcher, grid, 0, &arguments)
}

/// Where the gradient of a prefix of the rows is added up with those of others.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sum {
    /// `[N, pitch]` f32.
    pub(crate) gradient: u64,
    pub(crate) pitch: usize,
    /// Whether nothing is in it yet. Then what lies beyond the prefix becomes 0.
    pub(crate) first: bool,
}

/// Turns the gradient with respect to the normalised rows into that with respect to the rows.
/// `gradient`, `[N, D]` f32, is overwritten in place, unless there is a `sum` to add it to.
pub(crate) fn launch_backward(
    launcher: &mut impl Launcher,
    [rows, dim]: [usize; 2],
    normalized: u64,
    norms: u64,
    epsilon: f64,
    gradient: u64,
    sum: Option<Sum>,
) -> Result<()> {
    let arguments = BackwardArguments {
        normalized,
        norms,
        gradient,
        sum: sum.map_or(0, |sum| sum.gradient),
        dim: grid_size("dim", dim)?,
        pitch: grid_size("dim", sum.map_or(dim, |sum| sum.pitch))?,
        first: u32::from(sum.is_some_and(|sum| sum.first)),
        epsilon: epsilon as f32,
    };
    NORMALIZE_BACKWARD.launch(launcher, [grid_size("rows", rows)?, 1, 1], 0, &arguments)
}
