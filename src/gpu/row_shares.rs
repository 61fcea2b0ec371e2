//! The share of each row in a weighted mean, by kernels/row_shares.cu, and what weights make of a
//! plain mean, by kernels/weigh_rows.cu.

use super::arguments::kernel_arguments;
use super::kernels::{ROW_SHARES, WEIGH_ROWS};
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

kernel_arguments! {
    /// Mirrors `Arguments` in kernels/weigh_rows.cu.
    pub(crate) struct WeighArguments {
        losses: u64,
        shares: u64,
        gradient: u64,
        value: u64,
        row_losses: u64,
        rows: u32,
        dim: u32,
        width: u32,
        of_scale: u32,
    }
}

/// Turns the plain sum of the rows' gradients and the plain mean of their losses into weighted
/// ones, and gives the losses of rows and the gradient of the scale to who asks for them: one launch,
/// or none where there is nothing to do. `losses`, `[width + 1, N]` f64, are those of the rows, then
/// their terms, then their gradients of the scale.
pub(super) fn weigh(
    launcher: &mut impl Launcher,
    at: &Addresses,
    shares: Option<RowShares>,
    losses: u64,
    [rows, dim]: [u32; 2],
    width: u32,
    of_scale: bool,
) -> Result<()> {
    if shares.is_none() && at.row_losses == 0 && !of_scale {
        return Ok(());
    }
    let arguments = WeighArguments {
        losses,
        shares: shares.map_or(0, |shares| shares.at(at)),
        gradient: at.gradient,
        value: at.value,
        row_losses: at.row_losses,
        rows,
        dim,
        width,
        of_scale: of_scale.into(),
    };
    let blocks = if shares.is_some() { rows } else { 1 };
    WEIGH_ROWS.launch(launcher, [blocks, 1, 1], 0, &arguments)
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
