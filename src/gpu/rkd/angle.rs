//! How the angle loss's triples are dealt, one way or the other.

use super::FEW_ROWS;
use super::deal::{Deal, TILE, Tiles};
use super::few::Shares;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Angle {
    /// By kernels/rkd_angle_few.cu.
    Few(Shares),
    /// By kernels/rkd_angle.cu.
    Groups(Deal),
}

impl Angle {
    pub(super) fn new(rows: usize, multiprocessors: usize) -> Self {
        if rows <= FEW_ROWS {
            Angle::Few(Shares::new(rows, multiprocessors))
        } else {
            Angle::Groups(Deal::new(rows, multiprocessors))
        }
    }

    pub(super) fn blocks(self) -> usize {
        match self {
            Angle::Few(shares) => shares.blocks(),
            Angle::Groups(deal) => deal.blocks(),
        }
    }

    /// Symmetric matrices of sums.
    pub(super) fn slots(self) -> usize {
        match self {
            Angle::Few(shares) => shares.slots(),
            Angle::Groups(deal) => deal.slots(),
        }
    }

    /// Those that have tiles on the diagonal.
    pub(super) fn slots_on_diagonal(self) -> usize {
        match self {
            Angle::Few(shares) => shares.slots_on_diagonal(),
            Angle::Groups(deal) => deal.slots(),
        }
    }

    /// Side of the tiles in which they are kept.
    pub(super) fn tile(self) -> usize {
        match self {
            Angle::Few(_) => Shares::SIDE,
            Angle::Groups(_) => TILE,
        }
    }

    /// Their shape.
    pub(super) fn sums(self, rows: usize) -> [usize; 4] {
        let pairs = match self {
            Angle::Few(shares) => shares.pairs(),
            Angle::Groups(_) => Tiles::of(rows).pairs(),
        };
        [self.slots(), pairs, self.tile(), self.tile()]
    }
}
