//! How the angle loss's triples are partitioned into blocks: in one of two ways.

use super::small_batch::{VertexSplit, is_small_batch};
use super::triple_partition::{PartialBuffers, Tiles, TriplePartition};
use crate::gpu::machine::Limits;
use crate::gpu::tuning::triplet::{TILE, small_batch};
use crate::shapes::Shapes;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AnglePartition {
    /// By kernels/rkd_angle_small_batch.cu.
    SmallBatch(VertexSplit),
    /// By kernels/rkd_angle.cu.
    Groups(TriplePartition),
}

impl AnglePartition {
    pub(super) fn new(shapes: Shapes, limits: Limits) -> Self {
        let (rows, multiprocessors) = (shapes.rows, limits.multiprocessors as usize);
        if is_small_batch(shapes, limits) {
            AnglePartition::SmallBatch(VertexSplit::new(rows, multiprocessors))
        } else {
            AnglePartition::Groups(TriplePartition::new(rows, multiprocessors))
        }
    }

    pub(super) fn blocks(self) -> usize {
        match self {
            AnglePartition::SmallBatch(split) => split.blocks(),
            AnglePartition::Groups(partition) => partition.blocks(),
        }
    }

    /// The partial buffers of a tile of sums. In a small batch every tile is a group.
    pub(super) fn partial_buffers(self) -> PartialBuffers {
        match self {
            AnglePartition::SmallBatch(split) => PartialBuffers {
                between_groups: split.partial_buffers(),
                within_group: split.partial_buffers_on_diagonal(),
                tiles_per_group: 1,
            },
            AnglePartition::Groups(partition) => partition.partial_buffers(),
        }
    }

    /// The side of a tile of sums.
    pub(super) fn sums_side(self) -> usize {
        match self {
            AnglePartition::SmallBatch(_) => small_batch::SIDE,
            AnglePartition::Groups(_) => TILE,
        }
    }

    /// The shape of all sums: `[partial buffers of all tiles, side, side]`.
    pub(super) fn sums_shape(self, rows: usize) -> [usize; 3] {
        let along = match self {
            AnglePartition::SmallBatch(split) => split.tiles,
            AnglePartition::Groups(_) => Tiles::of(rows).along(),
        };
        let side = self.sums_side();
        [self.partial_buffers().tiles(along), side, side]
    }
}
