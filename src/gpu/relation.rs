//! The public relation matrices, by kernels/relation.cu.

use super::arguments::kernel_arguments;
use super::kernels::RELATION;
use super::machine::Launcher;
use super::normalize;
use super::plan::{grid_size, tile_pairs};
use super::tuning::relation::SIDE;
use crate::error::Result;
use crate::gpu::element::GpuDType;
use crate::loss::Relation;

kernel_arguments! {
    /// Mirrors `Arguments` in kernels/relation.cu.
    pub(crate) struct Arguments {
        rows: u64,
        matrix: u64,
        n: u32,
        dim: u32,
        relation: u32,
        padding: u32,
    }
}

/// Bytes of scratch memory for rows of shape `[N, D]`.
pub(crate) fn workspace_bytes(relation: Relation, [rows, dim]: [usize; 2]) -> usize {
    if relation.is_of_directions() {
        rows.saturating_mul(dim).saturating_mul(size_of::<f32>())
    } else {
        0
    }
}

/// Computes the relation of every two rows of `input`, `[N, D]` of `dtype`. `matrix`, `[N, N]` f32,
/// is overwritten.
pub(crate) fn launch(
    launcher: &mut impl Launcher,
    dtype: GpuDType,
    relation: Relation,
    [rows, dim]: [usize; 2],
    input: u64,
    matrix: u64,
    workspace: u64,
) -> Result<()> {
    let (dtype, input) = if relation.is_of_directions() {
        let normalized = normalize::Matrix {
            rows: input,
            dim,
            pitch: dim,
            normalized: workspace,
            norms: 0,
        };
        normalize::launch(launcher, dtype, rows, &[normalized], 0.0)?;
        (GpuDType::F32, workspace)
    } else {
        (dtype, input)
    };
    let arguments = Arguments {
        rows: input,
        matrix,
        n: grid_size("rows", rows)?,
        dim: grid_size("dim", dim)?,
        relation: match relation {
            Relation::Distance => 0,
            Relation::SquaredDistance => 1,
            Relation::Dot | Relation::Cosine => 2,
            Relation::PositiveCosine => 3,
            Relation::ShiftedCosine => 4,
        },
        padding: 0,
    };
    let grid = [tile_pairs(rows, SIDE)?, 1, 1];
    RELATION.of(dtype).launch(launcher, grid, 0, &arguments)
}
