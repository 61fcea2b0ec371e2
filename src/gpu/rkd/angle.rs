//! How the angle loss's triples are dealt, one way or the other.

use super::small_batch::{VertexSplit, is_small_batch};
use super::triple_partition::{PartialBuffers, TILE, Tiles, TriplePartition};
use crate::gpu::machine::Limits;
use crate::shapes::Shapes;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Angle {
    /// By kernels/rkd_angle_small_batch.cu.
    SmallBatch(VertexSplit),
    /// By kernels/rkd_angle.cu.
    Groups(TriplePartition),
}

impl Angle {
    pub(super) fn new(shapes: Shapes, limits: Limits) -> Self {
        let (rows, multiprocessors) = (shapes.rows, limits.multiprocessors as usize);
        if is_small_batch(shapes, limits) {
            Angle::SmallBatch(VertexSplit::new(rows, multiprocessors))
        } else {
            Angle::Groups(TriplePartition::new(rows, multiprocessors))
        }
    }

    pub(super) fn blocks(self) -> usize {
        match self {
            Angle::SmallBatch(shares) => shares.blocks(),
            Angle::Groups(partition) => partition.blocks(),
        }
    }

    /// Of the tiles of sums; of few rows every tile is a group.
    pub(super) fn slots(self) -> PartialBuffers {
        match self {
            Angle::SmallBatch(shares) => PartialBuffers {
                across: shares.slots(),
                within: shares.slots_on_diagonal(),
                tiles_per_group: 1,
            },
            Angle::Groups(partition) => partition.slots(),
        }
    }

    /// Side of the tiles in which they are kept.
    pub(super) fn tile(self) -> usize {
        match self {
            Angle::SmallBatch(_) => VertexSplit::SIDE,
            Angle::Groups(_) => TILE,
        }
    }

    /// Their shape.
    pub(super) fn sums(self, rows: usize) -> [usize; 3] {
        let side = match self {
            Angle::SmallBatch(shares) => shares.tiles,
            Angle::Groups(_) => Tiles::of(rows).along(),
        };
        [self.slots().tiles(side), self.tile(), self.tile()]
    }
}
