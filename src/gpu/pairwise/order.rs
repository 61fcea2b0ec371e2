//! The order of pairs, between relation and contraction.

use super::{OrderArguments, TILE};
use crate::checks::at_most;
use crate::error::Result;
use crate::gpu::kernels::{PAIRWISE_ORDER_COLLECT, PAIRWISE_ORDER_COUNT};
use crate::gpu::machine::Launcher;
use crate::gpu::plan::grid_size;
use crate::gpu::tuning::order::{MAX_ROWS, PAIRS_PER_BLOCK};
use crate::gpu::workspace::{Layout, Region};

/// The pairs i < j of N rows.
pub(super) fn pairs(rows: usize) -> usize {
    rows * rows.saturating_sub(1) / 2
}

/// What the kernels of the order have in the workspace.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Order {
    margin: f64,
    /// `[C]`: s and t of each pair.
    similarities: Region,
    /// `[C]`
    rows: Region,
    /// One for each block.
    partials: Region,
}

impl Order {
    pub(super) fn new(margin: f64, rows: usize, layout: &mut Layout) -> Result<Self> {
        at_most("rows", MAX_ROWS, rows)?;
        let count = pairs(rows);
        Ok(Order {
            margin,
            similarities: layout.push::<f32>(&[count, 2])?,
            rows: layout.push::<u32>(&[count])?,
            partials: layout.push::<f64>(&[blocks(count)])?,
        })
    }

    /// `arguments` has the addresses that other passes know.
    pub(super) fn launch(
        &self,
        launcher: &mut impl Launcher,
        workspace: u64,
        arguments: OrderArguments,
    ) -> Result<()> {
        let rows = arguments.n as usize;
        let count = pairs(rows);
        let arguments = OrderArguments {
            pairs: self.similarities.at(workspace),
            rows: self.rows.at(workspace),
            partials: self.partials.at(workspace),
            count: grid_size("rows", count)?,
            margin: self.margin as f32,
            ..arguments
        };
        let grid = [grid_size("rows", rows.next_multiple_of(TILE))?, 1, 1];
        PAIRWISE_ORDER_COLLECT.launch(launcher, grid, 0, &arguments)?;
        let grid = [grid_size("rows", blocks(count))?, 1, 1];
        PAIRWISE_ORDER_COUNT.launch(launcher, grid, 0, &arguments)
    }
}

/// One at least: it adds up the loss.
fn blocks(pairs: usize) -> usize {
    pairs.div_ceil(PAIRS_PER_BLOCK).max(1)
}
