//! How the work of RKD is dealt to blocks: pure functions of sizes.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

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

    /// Tiles (a ≤ b): what there is of a symmetric matrix.
    pub(super) fn pairs(self) -> usize {
        self.0 * (self.0 + 1) / 2
    }
}

/// How the triples of the angle loss are dealt to blocks.
///
/// A block takes all triples whose rows lie in three groups of tiles, A ≤ B ≤ C, whichever of the three has the
/// vertex: of those, its part of the vertices. What it sums for the edges between two of the groups goes to
/// the slot of the third: each slot is a symmetric matrix, of which no two blocks write the same tile.
///
/// Blocks that take pairs of groups and a share of all vertices (the layout before this one) need two kinds of slot,
/// for edges with the vertex and edges between ends, `groups` whole matrices and one symmetric for every
/// share: at N = 512 on 132 multiprocessors 64 bytes a pair of rows for 288 blocks, where this takes 36 for 240.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Deal {
    pub(super) tiles_per_group: usize,
    pub(super) groups: usize,
    /// Into which each group's vertices are cut.
    pub(super) parts: usize,
    pub(super) vertices_per_part: usize,
}

impl Deal {
    /// Bytes of shared memory, as kernels/rkd_angle.cu counts them in floats.
    pub(super) const SHARED: u32 = 4 * 10_400;
    pub(super) const SHARED_ACCURATE: u32 = 4 * 14_624;
    /// Vertices are taken so many at a time.
    const VERTICES: usize = 4;
    /// Slots: more of them make more blocks, which even out, and take more memory, 2 N² bytes each. Up to so
    /// many whatever the size, which is up to 55 bytes a pair of rows: what the papers' code keeps grows as N³, and 16
    /// would take 6 to 46 % longer, by this count, at all sizes from 576 to 4096 that were tried but 1024, where it is the same.
    const MOST_SLOTS: usize = 24;
    /// Up to N = 512, where that code keeps least, slots come to so many tiles of 16 KiB: 9.4 MB, 16 slots at N = 512.
    const MOST_TILES: usize = 16 * 36;
    /// What a block does for a pair of tiles besides the triples, in vertices: it fills registers, and clears and
    /// adds to a slot.
    const OVERHEAD: usize = 2;
    /// So many tiles of a slot are cleared and read again, at 4 TB/s, in the time of one vertex and tile: 1200 cycles
    /// where two blocks share a multiprocessor.
    const TILES_PER_STEP: usize = 64;

    /// The deal that is done first by the count of its steps, of those that the slots allow.
    pub(super) fn new(rows: usize, multiprocessors: usize) -> Self {
        // Of the fast kernel.
        let resident = 2 * multiprocessors;
        let tiles = Tiles::of(rows);
        let most = Self::most_slots(tiles);
        let of_groups = |tiles_per_group: usize| {
            let groups = tiles.0.div_ceil(tiles_per_group);
            let vertices = (tiles_per_group * TILE).min(rows);
            let parts = (most / groups).min(vertices.div_ceil(Self::VERTICES));
            (1..=parts).map(move |parts| {
                let vertices_per_part = vertices.div_ceil(parts).next_multiple_of(Self::VERTICES);
                Deal {
                    tiles_per_group,
                    groups,
                    parts: vertices.div_ceil(vertices_per_part),
                    vertices_per_part,
                }
            })
        };
        // From the smallest groups that the slots allow to such of three times the size; of very many rows not every size.
        let least = tiles.0.div_ceil(Self::MOST_SLOTS);
        (least..=3 * least)
            .step_by(least.div_ceil(16))
            .flat_map(of_groups)
            .min_by_key(|deal| (deal.steps(resident, tiles), deal.slots()))
            .expect("at least one part of at least one group")
    }

    /// What the slots may come to.
    fn most_slots(tiles: Tiles) -> usize {
        let within = Self::MOST_TILES / tiles.pairs();
        if tiles.rows() <= 512 {
            within
        } else {
            within.max(Self::MOST_SLOTS)
        }
    }

    /// Matrices of sums.
    pub(super) fn slots(self) -> usize {
        self.groups * self.parts
    }

    pub(super) fn blocks(self) -> usize {
        self.groups * (self.groups + 1) * (self.groups + 2) / 6 * self.parts
    }

    /// When the last block is done, and its slots are added up, where `resident` run at a time: in the time one takes for
    /// a vertex and a tile. Blocks start in order, those with most to do first.
    fn steps(self, resident: usize, tiles: Tiles) -> usize {
        let each = self.tiles_per_group;
        let (across, within) = (each * each, each * (each + 1) / 2);
        // More rows than any memory holds are asked about, too.
        let of = |pairs: usize| pairs.saturating_mul(self.vertices_per_part + Self::OVERHEAD);
        let g = self.groups;
        let kinds = [
            (g * (g - 1) * g.saturating_sub(2) / 6, of(3 * across)),
            (g * (g - 1), of(across + within)),
            (g, of(within)),
        ];
        let mut ends: BinaryHeap<Reverse<usize>> =
            std::iter::repeat_n(Reverse(0), resident).collect();
        for (jobs, steps) in kinds {
            for _ in 0..jobs * self.parts {
                let Reverse(end) = ends.pop().unwrap_or(Reverse(0));
                ends.push(Reverse(end.saturating_add(steps)));
            }
        }
        let last = ends.into_iter().map(|Reverse(end)| end).max();
        let slots = (self.slots() * tiles.pairs()).div_ceil(Self::TILES_PER_STEP);
        last.unwrap_or(0).saturating_add(slots)
    }
}

/// Tiles of few rows' relation: their side, and the cycles one takes by the issue slots of sm_90a for 512 dimensions.
const FEW_TILES: [(usize, usize); 2] = [(8, 2356), (12, 3632)];

/// Side of the relation's tiles of few rows, of those that kernels/common/pair_tile.cuh has (`Few`): the one that is done
/// first, the smaller one if both are.
pub(super) fn few_side(rows: usize, multiprocessors: usize) -> usize {
    // The matrices are filled up.
    let rows = Tiles::of(rows).rows();
    let cycles = |&(side, cycles): &(usize, usize)| {
        let tiles = rows.div_ceil(side);
        (tiles * (tiles + 1)).div_ceil(multiprocessors) * cycles
    };
    let first = FEW_TILES.into_iter().min_by_key(cycles);
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
pub(super) struct Patches {
    pub(super) side: usize,
    pub(super) blocks: usize,
}

impl Patches {
    /// Of a multiprocessor, at a time.
    const RESIDENT: usize = 4;

    /// The largest of which every multiprocessor has one.
    pub(super) fn new(padded: usize, multiprocessors: usize) -> Self {
        let pairs = |side: usize| {
            let patches = padded / side;
            patches.saturating_mul(patches + 1) / 2
        };
        let side = if pairs(32) >= multiprocessors { 32 } else { 16 };
        Patches {
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
