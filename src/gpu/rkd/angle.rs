//! How the angle loss's triples are dealt, one way or the other.

use super::deal::{Deal, Slots, TILE, Tiles};
use super::few::{Shares, are_few};
use crate::gpu::machine::Limits;
use crate::problem::Shapes;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Angle {
    /// By kernels/rkd_angle_few.cu.
    Few(Shares),
    /// By kernels/rkd_angle.cu.
    Groups(Deal),
}

impl Angle {
    pub(super) fn new(shapes: Shapes, limits: Limits) -> Self {
        let (rows, multiprocessors) = (shapes.rows, limits.multiprocessors as usize);
        if are_few(shapes, limits) {
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

    /// Of the tiles of sums; of few rows every tile is a group.
    pub(super) fn slots(self) -> Slots {
        match self {
            Angle::Few(shares) => Slots {
                across: shares.slots(),
                within: shares.slots_on_diagonal(),
                tiles_per_group: 1,
            },
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
    pub(super) fn sums(self, rows: usize) -> [usize; 3] {
        let side = match self {
            Angle::Few(shares) => shares.tiles,
            Angle::Groups(_) => Tiles::of(rows).along(),
        };
        [self.slots().tiles(side), self.tile(), self.tile()]
    }
}
