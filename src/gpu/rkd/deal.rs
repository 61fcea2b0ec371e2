//! How the work of RKD is dealt to blocks: pure functions of sizes.

use super::FEW_ROWS;

/// How the triples of the angle loss are dealt to blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Deal {
    /// Tiles of [`Deal::SIDE`] ends are dealt in groups: each has a slot of N² sums.
    pub(super) tiles_per_group: usize,
    pub(super) groups: usize,
    /// Vertices are dealt in splits: each has a slot of N² sums as well.
    pub(super) vertices_per_split: usize,
    pub(super) splits: usize,
}

impl Deal {
    /// Ends of a tile.
    const SIDE: usize = 64;
    /// Vertices are taken so many at a time.
    const VERTICES: usize = 8;
    /// More slots give more blocks and take more memory, 4 N² bytes each.
    const MOST_GROUPS: usize = 8;
    const MOST_SPLITS: usize = 8;
    /// The same for few rows, whose slots are small.
    const MOST_SPLITS_OF_FEW: usize = 32;

    /// Two blocks for every multiprocessor, if the slots allow.
    pub(super) fn new(rows: usize, multiprocessors: usize) -> Self {
        let tiles = rows.div_ceil(Self::SIDE);
        let tiles_per_group = tiles.div_ceil(Self::MOST_GROUPS);
        let groups = tiles.div_ceil(tiles_per_group);
        let pairs = groups * (groups + 1) / 2;
        let most = if rows <= FEW_ROWS {
            Self::MOST_SPLITS_OF_FEW
        } else {
            Self::MOST_SPLITS
        };
        let splits = (2 * multiprocessors).div_ceil(pairs).clamp(1, most);
        let vertices_per_split = rows.div_ceil(splits).next_multiple_of(Self::VERTICES);
        Deal {
            tiles_per_group,
            groups,
            vertices_per_split,
            splits: rows.div_ceil(vertices_per_split),
        }
    }
}

/// Side of the relation's tiles: the largest that gives every multiprocessor a block.
pub(super) fn relation_side(rows: usize, multiprocessors: usize) -> usize {
    let enough = |side: &usize| {
        let tiles = rows.div_ceil(*side);
        tiles.saturating_mul(tiles + 1) >= multiprocessors
    };
    [64, 32].into_iter().find(enough).unwrap_or(16)
}

/// Rows of the gradient that a thread of the contraction sums: the same consideration.
pub(super) fn contraction_rows(rows: usize, dim: usize, multiprocessors: usize) -> usize {
    let blocks = rows.div_ceil(64).saturating_mul(dim.div_ceil(64));
    if blocks >= multiprocessors { 4 } else { 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_triple_is_dealt() {
        for multiprocessors in [1, 4, 108, 132] {
            for rows in (1..200).chain([255, 256, 257, 512, 1000, 1024, 2048, 5000]) {
                let deal = Deal::new(rows, multiprocessors);
                assert!(deal.groups * deal.tiles_per_group * Deal::SIDE >= rows);
                assert!((deal.groups - 1) * deal.tiles_per_group * Deal::SIDE < rows);
                assert!(deal.splits * deal.vertices_per_split >= rows);
                assert!((deal.splits - 1) * deal.vertices_per_split < rows);
                assert!(deal.groups <= Deal::MOST_GROUPS);
            }
        }
    }

    #[test]
    fn a_card_is_kept_busy_where_the_slots_allow() {
        // Two blocks for each of an H200's multiprocessors.
        for rows in [512, 1024, 2048] {
            let deal = Deal::new(rows, 132);
            let blocks = deal.groups * (deal.groups + 1) / 2 * deal.splits;
            assert!(blocks >= 2 * 132, "{rows}: {blocks}");
        }
        assert_eq!(relation_side(1024, 132), 64);
        assert_eq!(relation_side(128, 132), 16);
    }
}
