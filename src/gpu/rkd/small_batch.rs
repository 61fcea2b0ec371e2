//! How the triples of few rows are dealt to blocks: a pure function of sizes.

use super::triple_partition::TILE;
use crate::gpu::machine::Limits;
use crate::shapes::Shapes;

/// Up to so many rows it is launches that take the time: two fewer, the accurate path at once, and small tiles.
const SMALL_BATCH_ROWS: usize = 256;
/// Where f64 is this much slower than f32, or less, there is no more to it.
const FAST_F64: u32 = 4;
/// Elsewhere lengths in f64 may take so many cycles, 13 µs at 2.5 GHz: more than the two launches that they spare, and the pass in
/// f32. A guess, until such a GPU has been measured.
const CYCLES: u64 = 1 << 15;
/// What a multiprocessor does in f32 in a cycle.
const F32_LANES: u64 = 128;

/// Whether these rows are few.
pub(super) fn is_small_batch(shapes: Shapes, limits: Limits) -> bool {
    if shapes.rows > SMALL_BATCH_ROWS || limits.f32_over_f64 <= FAST_F64 {
        return shapes.rows <= SMALL_BATCH_ROWS;
    }
    // Two operations an element of every pair.
    let [n, student, teacher] =
        [shapes.rows, shapes.student_dim, shapes.teacher_dim].map(|size| size as u64);
    let operations = (n * n).saturating_mul(student.saturating_add(teacher));
    let lanes = F32_LANES * u64::from(limits.multiprocessors) / u64::from(limits.f32_over_f64);
    operations / lanes.max(1) <= CYCLES
}

/// A partition for the angle loss of so few rows that tiles of 64 ends would leave most of a GPU idle.
///
/// A block takes the ends of a pair of tiles of 32 rows and, of all vertices, its share. What it sums for the edge between
/// the ends goes to its share's slot; what it sums for an edge from an end to a vertex to the slot of the tile
/// that has the other end: of those slots there are two kinds, for the vertex may lie before the end or behind
/// it. Nothing is added to what is there, nothing has to be cleared, and a block passes once over its vertices, while
/// [groups of three](super::triple_partition::TriplePartition) take up to three passes one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct VertexSplit {
    /// Of ends.
    pub(super) tiles: usize,
    pub(super) shares: usize,
    pub(super) vertices_per_share: usize,
}

impl VertexSplit {
    /// Ends of a tile, as in kernels/rkd_angle_small_batch.cu.
    pub(super) const SIDE: usize = TILE / 2;
    /// Bytes of shared memory, as that counts them in floats.
    pub(super) const SHARED: u32 = 4 * 14_592;
    /// Vertices are taken so many at a time.
    pub(super) const VERTICES: usize = 4;
    /// What a block does besides: it brings the first edges and writes what it has summed, which takes as long as so many
    /// times four vertices.
    pub(super) const OVERHEAD: usize = 2;
    /// So many tiles of a slot are read again in that time.
    pub(super) const TILES_PER_STEP: usize = 256;

    /// The shares that are done first, where a multiprocessor holds one block.
    pub(super) fn new(rows: usize, multiprocessors: usize) -> Self {
        let tiles = rows.div_ceil(Self::SIDE);
        (1..=rows.div_ceil(Self::VERTICES))
            .map(|steps| VertexSplit {
                tiles,
                shares: rows.div_ceil(steps * Self::VERTICES),
                vertices_per_share: steps * Self::VERTICES,
            })
            .min_by_key(|partition| (partition.steps(multiprocessors), partition.shares))
            .expect("at least one vertex")
    }

    /// Pairs of tiles.
    pub(super) fn pairs(self) -> usize {
        self.tiles * (self.tiles + 1) / 2
    }

    pub(super) fn blocks(self) -> usize {
        self.pairs() * self.shares
    }

    /// Symmetric matrices of sums.
    pub(super) fn slots(self) -> usize {
        self.shares + 2 * self.tiles
    }

    /// Those of them that have tiles on the diagonal: no vertex there lies behind the tile of its end.
    pub(super) fn slots_on_diagonal(self) -> usize {
        self.shares + self.tiles
    }

    /// When the last block is done and the slots are added up, in the time that four vertices take.
    fn steps(self, multiprocessors: usize) -> usize {
        let each = self.vertices_per_share / Self::VERTICES + Self::OVERHEAD;
        let slots = (self.slots() * self.pairs()).div_ceil(Self::TILES_PER_STEP);
        self.blocks().div_ceil(multiprocessors) * each + slots
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_f64_takes_the_place_of_launches_only_where_it_is_little() {
        let slow = Limits {
            multiprocessors: 128,
            f32_over_f64: 64,
            ..Limits::HOPPER
        };
        let small_batch = |rows, dim, limits| is_small_batch(Shapes::new(rows, dim, dim), limits);
        for dim in [1, 512, 100_000] {
            assert!(small_batch(1, dim, Limits::HOPPER) && small_batch(256, dim, Limits::HOPPER));
            assert!(!small_batch(257, dim, Limits::HOPPER) && !small_batch(257, dim, slow));
        }
        assert!(
            small_batch(64, 512, slow) && small_batch(128, 128, slow) && small_batch(256, 32, slow)
        );
        assert!(!small_batch(128, 512, slow) && !small_batch(256, 128, slow));
        assert!(!small_batch(256, usize::MAX / 2, slow));
    }

    fn every_partition() -> impl Iterator<Item = (usize, usize, VertexSplit)> {
        let gpus = [132, 108, 24, 4, 1].into_iter();
        gpus.flat_map(|gpu| {
            (1..=SMALL_BATCH_ROWS).map(move |rows| (gpu, rows, VertexSplit::new(rows, gpu)))
        })
    }

    #[test]
    fn every_vertex_is_in_one_share() {
        for (gpu, rows, partition) in every_partition() {
            let title = format!("{rows} rows on {gpu}: {partition:?}");
            assert!(
                partition.shares * partition.vertices_per_share >= rows,
                "{title}"
            );
            // The last one too has some: a block passes at least once over its vertices.
            assert!(
                (partition.shares - 1) * partition.vertices_per_share < rows,
                "{title}"
            );
            assert!(
                partition
                    .vertices_per_share
                    .is_multiple_of(VertexSplit::VERTICES),
                "{title}"
            );
            assert!(
                partition.tiles * VertexSplit::SIDE >= rows
                    && (partition.tiles - 1) * VertexSplit::SIDE < rows,
                "{title}"
            );
        }
    }

    /// As kernels/rkd_angle_small_batch.cu writes them: what is written to a tile of a slot, and how often each of its rows.
    #[test]
    fn every_place_of_every_slot_is_written_once() {
        for (tiles, shares) in [(1, 1), (3, 2), (4, 11)] {
            let partition = VertexSplit {
                tiles,
                shares,
                vertices_per_share: 4,
            };
            let mut written = std::collections::HashMap::new();
            let mut write = |slot: usize, a: usize, b: usize, part: usize| {
                assert!(slot < partition.slots() && a <= b && b < tiles);
                assert!(a < b || slot < partition.slots_on_diagonal());
                let before = written.insert((slot, a, b, part), ());
                assert!(before.is_none(), "slot {slot}, tile {a}, {b}");
            };
            for x in 0..tiles {
                for y in x..tiles {
                    for share in 0..shares {
                        write(share, x, y, usize::MAX);
                        // A share may have vertices of any tile.
                        for vertex in 0..tiles {
                            let ends = if x == y {
                                vec![(x, y)]
                            } else {
                                vec![(x, y), (y, x)]
                            };
                            for (end, other) in ends {
                                if vertex <= end {
                                    write(shares + other, vertex, end, share);
                                } else {
                                    write(shares + tiles + other, end, vertex, share);
                                }
                            }
                        }
                    }
                }
            }
            let pairs = tiles * (tiles + 1) / 2;
            let across = partition.slots() - shares - tiles;
            // Every share in every tile of the slots of other ends; those of tiles across have no diagonal.
            let expected = shares * (pairs + tiles * pairs + across * (pairs - tiles));
            assert_eq!(written.len(), expected);
        }
    }

    #[test]
    fn a_gpu_is_kept_busy() {
        // Tiles and fours of vertices, spread evenly, over those of the multiprocessor that has most.
        let share = |rows: usize| {
            let partition = VertexSplit::new(rows, 132);
            let each = partition.vertices_per_share.div_ceil(VertexSplit::VERTICES);
            let even = (partition.pairs() * rows.div_ceil(VertexSplit::VERTICES)) as f64 / 132.0;
            even / (partition.blocks().div_ceil(132) * each) as f64
        };
        for (rows, least) in [(128, 0.8), (192, 0.75), (256, 0.75)] {
            assert!(share(rows) >= least, "{rows}: {}", share(rows));
        }
    }

    #[test]
    fn slots_is_small_batch() {
        for (gpu, rows, partition) in every_partition() {
            let bytes =
                4 * partition.slots() * partition.pairs() * VertexSplit::SIDE * VertexSplit::SIDE;
            assert!(bytes <= 5_000_000, "{rows} rows on {gpu}: {bytes}");
        }
    }
}
