//! How the work of RKD is dealt to blocks: pure functions of sizes.

use std::cmp::Reverse;
use std::collections::BTreeMap;

/// Side of the tiles in which matrices over pairs of rows are kept. Mirrors `rkd::TILE`.
pub(super) const TILE: usize = 64;

/// The tiles along a side of such a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tiles(usize);

impl Tiles {
    pub(super) fn of(rows: usize) -> Self {
        Tiles(rows.div_ceil(TILE))
    }

    /// Rows, with those that fill the last tile.
    pub(super) fn rows(self) -> usize {
        self.0 * TILE
    }

    pub(super) fn along(self) -> usize {
        self.0
    }

    /// Tiles (a ≤ b): what there is of a symmetric matrix.
    pub(super) fn pairs(self) -> usize {
        pairs(self.0)
    }
}

fn pairs(tiles: usize) -> usize {
    tiles * (tiles + 1) / 2
}

/// How many slots the angle's sums have for each tile (a ≤ b): not as many between two groups of tiles as within one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct PartialBuffers {
    pub(super) across: usize,
    pub(super) within: usize,
    pub(super) tiles_per_group: usize,
}

impl PartialBuffers {
    /// What they come to with so many tiles along a side: tiles with all their slots.
    pub(super) fn tiles(self, along: usize) -> usize {
        let each = self.tiles_per_group;
        let within = along / each * pairs(each) + pairs(along % each);
        (pairs(along) - within) * self.across + within * self.within
    }
}

/// How the triples of the angle loss are dealt to blocks.
///
/// A block takes all triples whose rows lie in three groups of tiles, A ≤ B ≤ C, whichever of the three has the
/// vertex: of those, its part of the vertices. What it sums for the edges between two of the groups goes to
/// the slot of the third and of the part, which no other block writes in these tiles.
///
/// Into how many parts the vertices are cut depends on how many of the groups differ. Where all three do, a block has most
/// to do, and each part takes a slot for nearly every group; the others come last, take few slots, and even out better the
/// smaller they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TriplePartition {
    pub(super) tiles_per_group: usize,
    pub(super) groups: usize,
    /// In triples of three groups, of two and of one.
    pub(super) parts: [Split; 3],
}

/// How the vertices of a group are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Split {
    pub(super) count: usize,
    pub(super) vertices: usize,
}

impl Split {
    /// Each of so many steps but the last.
    fn of(vertices: usize, count: usize) -> Self {
        let each = vertices
            .div_ceil(count)
            .next_multiple_of(TriplePartition::VERTICES);
        Split {
            count: vertices.div_ceil(each),
            vertices: each,
        }
    }
}

impl TriplePartition {
    /// Bytes of shared memory, as kernels/rkd_angle.cu counts them in floats.
    pub(super) const SHARED: u32 = 4 * 10_400;
    pub(super) const SHARED_ACCURATE: u32 = 4 * 14_624;
    /// Vertices are taken so many at a time.
    const VERTICES: usize = 4;
    /// PartialBuffers of a tile, on average: more of them make more blocks, which even out, and take more memory, 2 N² bytes each. Up to
    /// so many whatever the size, which is up to 55 bytes a pair of rows: what the papers' code keeps grows as N³, and with
    /// 16 some sizes up to 4096 would take half as long again, by this count.
    const MOST_SLOTS: usize = 24;
    /// Up to N = 512, where that code keeps least, slots come to so many tiles of 16 KiB: 9.4 MB, 16 slots at N = 512.
    const MOST_TILES: usize = 16 * 36;
    /// Split of a group's vertices. None of the sizes up to 4096 that were tried would take more.
    const MOST_PARTS: usize = 8;
    /// What a block does for a pair of tiles besides the triples, in vertices: it fills registers, and clears and
    /// adds to a slot.
    const OVERHEAD: usize = 2;
    /// So many tiles of a slot are cleared and read again, at 4 TB/s, in the time of one vertex and tile: 1200 cycles
    /// where two blocks share a multiprocessor.
    const TILES_PER_STEP: usize = 64;

    /// The partition that is done first by the count of its steps, of those that the slots allow.
    pub(super) fn new(rows: usize, multiprocessors: usize) -> Self {
        // Of the fast kernel.
        let resident = 2 * multiprocessors.max(1);
        let tiles = Tiles::of(rows);
        let most = Self::most_tiles(tiles);
        // From the smallest groups that the slots allow to such of three times the size; of very many rows not every size.
        let least = tiles.0.div_ceil(Self::MOST_SLOTS);
        let sizes = (least..=3 * least).step_by(least.div_ceil(16));
        let mut best: Option<((usize, usize), TriplePartition)> = None;
        for partition in sizes.flat_map(|each| Self::of_groups(each, rows)) {
            let slots = partition.slots().tiles(tiles.0);
            if slots > most {
                continue;
            }
            let reading = slots.div_ceil(Self::TILES_PER_STEP);
            let done = |last: usize| (last.saturating_add(reading), slots);
            // It is quickly seen of most that they are not.
            if best.is_none_or(|(least, _)| done(partition.even(resident)) < least) {
                let done = done(partition.last(resident));
                if best.is_none_or(|(least, _)| done < least) {
                    best = Some((done, partition));
                }
            }
        }
        best.expect("one part of groups of the smallest size").1
    }

    /// What the slots may come to.
    fn most_tiles(tiles: Tiles) -> usize {
        if tiles.rows() <= 512 {
            Self::MOST_TILES
        } else {
            Self::MOST_SLOTS * tiles.pairs()
        }
    }

    /// All ways to cut the vertices of groups of this size.
    fn of_groups(tiles_per_group: usize, rows: usize) -> Vec<Self> {
        let groups = Tiles::of(rows).0.div_ceil(tiles_per_group);
        let vertices = (tiles_per_group * TILE).min(rows);
        let mut ways: Vec<_> = (1..=Self::MOST_PARTS)
            .map(|count| Split::of(vertices, count))
            .collect();
        ways.dedup();
        // One way, where there are no triples of so many groups.
        let of = |differ: usize| &ways[..if differ > groups { 1 } else { ways.len() }];
        let mut deals = Vec::new();
        for &three in of(3) {
            for &two in of(2) {
                deals.extend(of(1).iter().map(|&one| TriplePartition {
                    tiles_per_group,
                    groups,
                    parts: [three, two, one],
                }));
            }
        }
        deals
    }

    /// Tiles have one slot for each part of the triples that they are an edge's of.
    pub(super) fn slots(self) -> PartialBuffers {
        let [three, two, one] = self.parts.map(|parts| parts.count);
        PartialBuffers {
            across: self.groups.saturating_sub(2) * three + 2 * two,
            within: (self.groups - 1) * two + one,
            tiles_per_group: self.tiles_per_group,
        }
    }

    /// Blocks for triples of three groups, of two and of one.
    fn blocks_of_kinds(self) -> [usize; 3] {
        let g = self.groups;
        let triples = [g * (g - 1) * g.saturating_sub(2) / 6, g * (g - 1), g];
        [0, 1, 2].map(|kind| triples[kind] * self.parts[kind].count)
    }

    pub(super) fn blocks(self) -> usize {
        self.blocks_of_kinds().into_iter().sum()
    }

    /// What each of them has to do: vertices times pairs of tiles.
    fn steps_of_kinds(self) -> [usize; 3] {
        let each = self.tiles_per_group;
        let (across, within) = (each * each, pairs(each));
        let tiles = [3 * across, across + within, within];
        // More rows than any memory holds are asked about, too.
        [0, 1, 2].map(|kind| tiles[kind].saturating_mul(self.parts[kind].vertices + Self::OVERHEAD))
    }

    /// The kinds in the order in which their blocks start: those with most to do first.
    fn order(self) -> [usize; 3] {
        let steps = self.steps_of_kinds();
        let mut order = [0, 1, 2];
        order.sort_by_key(|&kind| Reverse(steps[kind]));
        order
    }

    /// The first block for triples of three groups, of two and of one.
    pub(super) fn first_blocks(self) -> [usize; 3] {
        let blocks = self.blocks_of_kinds();
        let (mut first, mut next) = ([0; 3], 0);
        for kind in self.order() {
            first[kind] = next;
            next += blocks[kind];
        }
        first
    }

    /// When all would be done if the work were spread evenly over `resident` blocks at a time.
    fn even(self, resident: usize) -> usize {
        let (blocks, steps) = (self.blocks_of_kinds(), self.steps_of_kinds());
        let all = (0..3).fold(0usize, |all, kind| {
            all.saturating_add(blocks[kind].saturating_mul(steps[kind]))
        });
        all.div_ceil(resident)
    }

    /// When the last block is done, where `resident` run at a time, in the time one takes for a vertex and a tile.
    fn last(self, resident: usize) -> usize {
        let (blocks, steps) = (self.blocks_of_kinds(), self.steps_of_kinds());
        // How many are done at which time.
        let mut ends = BTreeMap::from([(0usize, resident)]);
        for kind in self.order() {
            let mut waiting = blocks[kind];
            while waiting > 0 {
                let Some((end, free)) = ends.pop_first() else {
                    break;
                };
                let start = waiting.min(free);
                if free > start {
                    ends.insert(end, free - start);
                }
                *ends.entry(end.saturating_add(steps[kind])).or_default() += start;
                waiting -= start;
            }
        }
        ends.last_key_value().map_or(0, |(&end, _)| end)
    }
}

/// Tiles of few rows' relation: their side, and the cycles one takes by the issue slots of sm_90a for 512 dimensions.
const SMALL_BATCH_TILES: [(usize, usize); 2] = [(8, 2356), (12, 3632)];

/// Side of the relation's tiles of few rows, of those that kernels/common/pair_tile.cuh has (`Few`): the one that is done
/// first, the smaller one if both are.
pub(super) fn small_batch_side(rows: usize, multiprocessors: usize) -> usize {
    // The matrices are filled up.
    let rows = Tiles::of(rows).rows();
    let cycles = |&(side, cycles): &(usize, usize)| {
        let tiles = rows.div_ceil(side);
        (tiles * (tiles + 1)).div_ceil(multiprocessors) * cycles
    };
    let first = SMALL_BATCH_TILES.into_iter().min_by_key(cycles);
    first.map_or(8, |tile| tile.0)
}

/// Side of the relation's tiles: the largest that gives every multiprocessor a block.
pub(super) fn relation_side(rows: usize, multiprocessors: usize) -> usize {
    let enough = |side: &usize| {
        let tiles = rows.div_ceil(*side);
        tiles.saturating_mul(tiles + 1) >= multiprocessors
    };
    [64, 32].into_iter().find(enough).unwrap_or(16)
}

/// How the coefficients are dealt: blocks that stride over pairs of patches of so many rows a side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CoefficientTiles {
    pub(super) side: usize,
    pub(super) blocks: usize,
}

impl CoefficientTiles {
    /// Of a multiprocessor, at a time.
    const RESIDENT: usize = 4;

    /// The largest of which every multiprocessor has one.
    pub(super) fn new(padded: usize, multiprocessors: usize) -> Self {
        let pairs = |side: usize| {
            let patches = padded / side;
            patches.saturating_mul(patches + 1) / 2
        };
        let side = if pairs(32) >= multiprocessors { 32 } else { 16 };
        CoefficientTiles {
            side,
            blocks: pairs(side).min(multiprocessors.saturating_mul(Self::RESIDENT)),
        }
    }
}

/// Tiles of the contraction: rows, those it sums over at a time, and the cycles that takes by the issue slots of sm_90a.
const CONTRACTION_TILES: [(usize, usize, usize); 3] =
    [(64, 32, 2630), (16, 64, 1550), (8, 64, 1000)];

/// Rows of the gradient that a block of the contraction makes, those that are done first: more of them take less for each
/// but leave multiprocessors idle.
pub(super) fn contraction_rows(rows: usize, dim: usize, multiprocessors: usize) -> usize {
    let cycles = |&(each, depth, cycles): &(usize, usize, usize)| {
        let blocks = rows.div_ceil(each).saturating_mul(dim.div_ceil(64));
        let waves = blocks.div_ceil(multiprocessors);
        waves.saturating_mul(rows.div_ceil(depth) * cycles)
    };
    let first = CONTRACTION_TILES.into_iter().min_by_key(cycles);
    first.map_or(64, |tile| tile.0)
}

#[cfg(test)]
mod tests;
