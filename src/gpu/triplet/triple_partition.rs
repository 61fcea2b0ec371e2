//! How the work of RKD is partitioned into blocks: pure functions of sizes.

use std::cmp::Reverse;

use super::cost;
use crate::gpu::tuning::triplet::groups::{
    MAX_BUFFERS, MAX_PARTS, MAX_SMALL_TILES, RESIDENT, VERTICES,
};
use crate::gpu::tuning::triplet::{
    CONTRACTION_DIMENSIONS, CONTRACTION_TILES, RELATION_SIDES, TILE, coefficients, small_batch,
};

/// The tiles along a side of a matrix over pairs of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tiles(usize);

impl Tiles {
    pub(super) fn of(rows: usize) -> Self {
        Tiles(rows.div_ceil(TILE))
    }

    /// Rows, rounded up to whole tiles.
    pub(super) fn rows(self) -> usize {
        self.0 * TILE
    }

    pub(super) fn along(self) -> usize {
        self.0
    }

    /// Tiles (a ≤ b): those that are stored of a symmetric matrix.
    pub(super) fn pairs(self) -> usize {
        pairs(self.0)
    }
}

pub(super) fn pairs(tiles: usize) -> usize {
    tiles * (tiles + 1) / 2
}

/// The number of partial buffers of the angle's sums for each tile (a ≤ b). A tile between two
/// groups of tiles has a different number of them than a tile within one group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct PartialBuffers {
    pub(super) between_groups: usize,
    pub(super) within_group: usize,
    pub(super) tiles_per_group: usize,
}

impl PartialBuffers {
    /// The tiles of all partial buffers, of matrices with so many tiles along a side.
    pub(super) fn tiles(self, along: usize) -> usize {
        let each = self.tiles_per_group;
        let within = along / each * pairs(each) + pairs(along % each);
        (pairs(along) - within) * self.between_groups + within * self.within_group
    }
}

/// A partition of the angle loss's triples into blocks.
///
/// A block takes all triples whose rows lie in three groups of tiles, A ≤ B ≤ C, with the vertex in
/// any of the three. Of each group's vertices it takes its part. Its sums for the edges between two
/// of the groups go to the partial buffer of the third group and the part. No other block writes
/// there in these tiles.
///
/// The number of parts depends on the overlap of the groups: all three differ, two are the same, or
/// all are. If all differ, a block has most work, and each part takes a partial buffer for nearly
/// every group. The other blocks come last and take few partial buffers, and the smaller they are,
/// the better they balance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TriplePartition {
    pub(super) tiles_per_group: usize,
    pub(super) groups: usize,
    /// By overlap: for triples of three groups, of two and of one.
    pub(super) splits: [Split; 3],
}

/// How the vertices of a group are split into parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Split {
    /// Parts.
    pub(super) count: usize,
    /// Vertices of a part.
    pub(super) len: usize,
}

impl Split {
    /// At most `count` parts, of whole steps except for the last.
    fn of(vertices: usize, count: usize) -> Self {
        let len = vertices.div_ceil(count).next_multiple_of(VERTICES);
        Split {
            count: vertices.div_ceil(len),
            len,
        }
    }
}

impl TriplePartition {
    /// The partition that is done first by the cost model, of those within the limit of partial
    /// buffers.
    pub(super) fn new(rows: usize, multiprocessors: usize) -> Self {
        let resident = RESIDENT * multiprocessors.max(1);
        let tiles = Tiles::of(rows);
        let limit = Self::max_tiles(tiles);
        // From the smallest groups that the limit allows to groups of three times the size. For
        // very many rows not every size.
        let least = tiles.0.div_ceil(MAX_BUFFERS);
        let sizes = (least..=3 * least).step_by(least.div_ceil(16));
        let mut best: Option<((usize, usize), TriplePartition)> = None;
        for partition in sizes.flat_map(|each| Self::of_groups(each, rows)) {
            let buffers = partition.partial_buffers().tiles(tiles.0);
            if buffers > limit {
                continue;
            }
            let reading = cost::partial_buffers(buffers);
            let done = |last: usize| (last.saturating_add(reading), buffers);
            // Cheap lower bound first: most candidates fail it.
            let bound = done(cost::even_work(partition, resident));
            if best.is_none_or(|(least, _)| bound < least) {
                let done = done(cost::last_block(partition, resident));
                if best.is_none_or(|(least, _)| done < least) {
                    best = Some((done, partition));
                }
            }
        }
        best.expect("one part of groups of the smallest size").1
    }

    /// The most tiles of all partial buffers.
    fn max_tiles(tiles: Tiles) -> usize {
        if tiles.rows() <= 512 {
            MAX_SMALL_TILES
        } else {
            MAX_BUFFERS * tiles.pairs()
        }
    }

    /// All ways to split the vertices of groups of this size.
    fn of_groups(tiles_per_group: usize, rows: usize) -> Vec<Self> {
        let groups = Tiles::of(rows).0.div_ceil(tiles_per_group);
        let vertices = (tiles_per_group * TILE).min(rows);
        let mut splits: Vec<_> = (1..=MAX_PARTS)
            .map(|count| Split::of(vertices, count))
            .collect();
        splits.dedup();
        // One way, if there are no triples of so many groups.
        let of = |differ: usize| &splits[..if differ > groups { 1 } else { splits.len() }];
        let mut partitions = Vec::new();
        for &three in of(3) {
            for &two in of(2) {
                partitions.extend(of(1).iter().map(|&one| TriplePartition {
                    tiles_per_group,
                    groups,
                    splits: [three, two, one],
                }));
            }
        }
        partitions
    }

    /// A tile has one partial buffer for each part of the triples that have an edge in it.
    pub(super) fn partial_buffers(self) -> PartialBuffers {
        let [three, two, one] = self.splits.map(|split| split.count);
        PartialBuffers {
            between_groups: self.groups.saturating_sub(2) * three + 2 * two,
            within_group: (self.groups - 1) * two + one,
            tiles_per_group: self.tiles_per_group,
        }
    }

    /// Blocks for triples of three groups, of two and of one.
    pub(super) fn blocks_by_overlap(self) -> [usize; 3] {
        let g = self.groups;
        let triples = [g * (g - 1) * g.saturating_sub(2) / 6, g * (g - 1), g];
        [0, 1, 2].map(|overlap| triples[overlap] * self.splits[overlap].count)
    }

    pub(super) fn blocks(self) -> usize {
        self.blocks_by_overlap().into_iter().sum()
    }

    /// The overlaps in the order in which their blocks start: the blocks with most work first.
    pub(super) fn order(self) -> [usize; 3] {
        let steps = cost::steps_by_overlap(self);
        let mut order = [0, 1, 2];
        order.sort_by_key(|&overlap| Reverse(steps[overlap]));
        order
    }

    /// The first block for triples of three groups, of two and of one.
    pub(super) fn first_blocks(self) -> [usize; 3] {
        let blocks = self.blocks_by_overlap();
        let (mut first, mut next) = ([0; 3], 0);
        for overlap in self.order() {
            first[overlap] = next;
            next += blocks[overlap];
        }
        first
    }
}

/// The side of the relation's tiles in a small batch: that of the tiles that are done first, or the
/// smaller one of two that are done at once.
pub(super) fn small_batch_side(rows: usize, multiprocessors: usize) -> usize {
    let padded = Tiles::of(rows).rows();
    let cycles = |&tile: &_| cost::small_batch_relation(padded, multiprocessors, tile);
    let tiles = small_batch::RELATION_TILES;
    let first = tiles.into_iter().min_by_key(cycles);
    first.unwrap_or(tiles[0]).0
}

/// The side of the relation's tiles: the largest that gives every multiprocessor a block.
pub(super) fn relation_side(rows: usize, multiprocessors: usize) -> usize {
    let enough = |side: &usize| {
        let tiles = rows.div_ceil(*side);
        tiles.saturating_mul(tiles + 1) >= multiprocessors
    };
    let [.., smallest] = RELATION_SIDES;
    RELATION_SIDES.into_iter().find(enough).unwrap_or(smallest)
}

/// How the coefficients are partitioned: blocks stride over pairs of tiles of so many rows a side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CoefficientTiles {
    pub(super) side: usize,
    pub(super) blocks: usize,
}

impl CoefficientTiles {
    /// The largest tiles that give every multiprocessor a block.
    pub(super) fn new(padded: usize, multiprocessors: usize) -> Self {
        let pairs = |side: usize| {
            let tiles = padded / side;
            tiles.saturating_mul(tiles + 1) / 2
        };
        let [large, small] = coefficients::SIDES;
        let side = if pairs(large) >= multiprocessors {
            large
        } else {
            small
        };
        CoefficientTiles {
            side,
            blocks: pairs(side).min(multiprocessors.saturating_mul(coefficients::RESIDENT)),
        }
    }
}

/// Rows of the gradient that a block of the contraction computes, by the time at which all blocks
/// are done. More rows take less time each, but leave multiprocessors idle.
pub(super) fn contraction_rows(rows: usize, dim: usize, multiprocessors: usize) -> usize {
    let cycles =
        |&tile: &_| cost::contraction([rows, dim], CONTRACTION_DIMENSIONS, multiprocessors, tile);
    let first = CONTRACTION_TILES.into_iter().min_by_key(cycles);
    first.unwrap_or(CONTRACTION_TILES[0]).0
}

#[cfg(test)]
mod tests;
