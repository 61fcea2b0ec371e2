//! The share of each row in a weighted mean, by kernels/row_shares.cu.

use super::arguments::kernel_arguments;
use super::kernels::ROW_SHARES;
use super::machine::Launcher;
use super::plan::{Addresses, grid_size};
use super::workspace::{Layout, Region};
use crate::error::Result;
use crate::shapes::Shapes;

kernel_arguments! {
    /// Mirrors `Arguments` in kernels/row_shares.cu.
    pub(crate) struct Arguments {
        weights: u64,
        shares: u64,
        rows: u32,
        padding: u32,
    }
}

/// The shares of a batch whose rows have weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct RowShares {
    shares: Region,
    rows: u32,
}

impl RowShares {
    /// `None` where rows have no weights.
    pub(super) fn new(shapes: Shapes, layout: &mut Layout) -> Result<Option<Self>> {
        if !shapes.row_weights {
            return Ok(None);
        }
        Ok(Some(RowShares {
            shares: layout.push::<f32>(&[shapes.rows])?,
            rows: grid_size("rows", shapes.rows)?,
        }))
    }

    /// Where the shares are.
    pub(super) fn at(&self, at: &Addresses) -> u64 {
        self.shares.at(at.workspace)
    }

    /// Computes them: one launch.
    pub(super) fn launch(&self, launcher: &mut impl Launcher, at: &Addresses) -> Result<()> {
        let arguments = Arguments {
            weights: at.row_weights,
            shares: self.at(at),
            rows: self.rows,
            padding: 0,
        };
        ROW_SHARES.launch(launcher, [1; 3], 0, &arguments)
    }
}
