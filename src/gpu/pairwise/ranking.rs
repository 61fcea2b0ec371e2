//! The ranking of neighbours, between relation and contraction.

use super::{RankingArguments, TILE};
use crate::error::Result;
use crate::gpu::element::GpuDType;
use crate::gpu::kernels::{PAIRWISE_RANKING_SELECT, PAIRWISE_RANKING_SPREAD};
use crate::gpu::machine::Launcher;
use crate::gpu::plan::grid_size;
use crate::gpu::workspace::{Layout, Region};

/// What the kernels of the ranking take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Ranking {
    alpha: f64,
    beta: f64,
    length: usize,
    /// `[N, length]`: a row, and its coefficient.
    neighbors: Region,
}

impl Ranking {
    pub(super) fn new(
        [alpha, beta]: [f64; 2],
        length: usize,
        rows: usize,
        layout: &mut Layout,
    ) -> Result<Self> {
        Ok(Ranking {
            alpha,
            beta,
            length,
            neighbors: layout.push::<u32>(&[rows, length, 2])?,
        })
    }

    /// `arguments` has the addresses that other passes know, of rows of `dtype`.
    pub(super) fn launch(
        &self,
        launcher: &mut impl Launcher,
        dtype: GpuDType,
        workspace: u64,
        arguments: RankingArguments,
    ) -> Result<()> {
        let rows = arguments.n;
        let length = self.length as u32;
        let arguments = RankingArguments {
            neighbors: self.neighbors.at(workspace),
            alpha: self.alpha,
            beta: self.beta,
            length,
            count: length.min(rows - 1),
            ..arguments
        };
        let padded = (rows as usize).next_multiple_of(TILE);
        let grid = [grid_size("rows", padded)?, 1, 1];
        let select = PAIRWISE_RANKING_SELECT.of(dtype);
        select.launch(launcher, grid, 0, &arguments)?;
        PAIRWISE_RANKING_SPREAD.launch(launcher, grid, 0, &arguments)
    }
}
