//! How the work of a small batch is partitioned into blocks: a pure function of sizes.

use super::cost;
use crate::gpu::machine::Limits;
use crate::gpu::tuning::triplet::small_batch::{FAST_F64, MAX_CYCLES, MAX_ROWS, SIDE, VERTICES};
use crate::shapes::Shapes;

/// Whether a batch takes the small-batch path: f64 directly, by kernels of its own.
pub(super) fn is_small_batch(shapes: Shapes, limits: Limits) -> bool {
    shapes.rows <= MAX_ROWS
        && (limits.f32_over_f64 <= FAST_F64 || cost::lengths_in_f64(shapes, limits) <= MAX_CYCLES)
}

/// A partition of the angle loss for batches so small that tiles of 64 ends would leave most of a
/// GPU idle.
///
/// A block takes the ends of a pair of tiles of 32 rows, and a range of all vertices. Its sums for
/// the edge between the ends go to the partial buffer of the range. Its sums for an edge from an
/// end to a vertex go to the partial buffer of the tile that has the other end. There are two such
/// buffers for each tile, since the vertex lies either before the end or after it. A block adds to
/// nothing and clears nothing. It passes over its vertices once, while [groups of
/// three](super::triple_partition::TriplePartition) take up to three passes, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct VertexSplit {
    /// Tiles of ends.
    pub(super) tiles: usize,
    pub(super) ranges: usize,
    pub(super) vertices_per_range: usize,
}

impl VertexSplit {
    /// The split that is done first, where a multiprocessor holds one block.
    pub(super) fn new(rows: usize, multiprocessors: usize) -> Self {
        let tiles = rows.div_ceil(SIDE);
        (1..=rows.div_ceil(VERTICES))
            .map(|steps| VertexSplit {
                tiles,
                ranges: rows.div_ceil(steps * VERTICES),
                vertices_per_range: steps * VERTICES,
            })
            .min_by_key(|&split| (cost::vertex_split(split, multiprocessors), split.ranges))
            .expect("at least one vertex")
    }

    /// Pairs of tiles.
    pub(super) fn pairs(self) -> usize {
        self.tiles * (self.tiles + 1) / 2
    }

    pub(super) fn blocks(self) -> usize {
        self.pairs() * self.ranges
    }

    /// Partial buffers of a tile: symmetric matrices of sums.
    pub(super) fn partial_buffers(self) -> usize {
        self.ranges + 2 * self.tiles
    }

    /// Partial buffers of a tile on the diagonal. There no vertex comes after the tile of its end.
    pub(super) fn partial_buffers_on_diagonal(self) -> usize {
        self.ranges + self.tiles
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_f64_replaces_launches_only_if_it_is_little_work() {
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

    fn every_split() -> impl Iterator<Item = (usize, usize, VertexSplit)> {
        let gpus = [132, 108, 24, 4, 1].into_iter();
        gpus.flat_map(|gpu| {
            (1..=MAX_ROWS).map(move |rows| (gpu, rows, VertexSplit::new(rows, gpu)))
        })
    }

    #[test]
    fn every_vertex_is_in_one_range() {
        for (gpu, rows, split) in every_split() {
            let title = format!("{rows} rows on {gpu}: {split:?}");
            assert!(split.ranges * split.vertices_per_range >= rows, "{title}");
            // The last range has vertices too: a block passes at least once over its vertices.
            assert!(
                (split.ranges - 1) * split.vertices_per_range < rows,
                "{title}"
            );
            assert!(split.vertices_per_range.is_multiple_of(VERTICES), "{title}");
            assert!(
                split.tiles * SIDE >= rows && (split.tiles - 1) * SIDE < rows,
                "{title}"
            );
        }
    }

    /// As kernels/rkd_angle_small_batch.cu writes them: the tiles of the partial buffers, and how
    /// often each of their rows is written.
    #[test]
    fn every_row_of_every_partial_buffer_is_written_once() {
        for (tiles, ranges) in [(1, 1), (3, 2), (4, 11)] {
            let split = VertexSplit {
                tiles,
                ranges,
                vertices_per_range: 4,
            };
            let mut written = std::collections::HashMap::new();
            let mut write = |buffer: usize, a: usize, b: usize, part: usize| {
                assert!(buffer < split.partial_buffers() && a <= b && b < tiles);
                assert!(a < b || buffer < split.partial_buffers_on_diagonal());
                let before = written.insert((buffer, a, b, part), ());
                assert!(before.is_none(), "buffer {buffer}, tile {a}, {b}");
            };
            for x in 0..tiles {
                for y in x..tiles {
                    for range in 0..ranges {
                        write(range, x, y, usize::MAX);
                        // A range may have vertices of any tile.
                        for vertex in 0..tiles {
                            let ends = if x == y {
                                vec![(x, y)]
                            } else {
                                vec![(x, y), (y, x)]
                            };
                            for (end, other) in ends {
                                if vertex <= end {
                                    write(ranges + other, vertex, end, range);
                                } else {
                                    write(ranges + tiles + other, end, vertex, range);
                                }
                            }
                        }
                    }
                }
            }
            let pairs = tiles * (tiles + 1) / 2;
            let after = split.partial_buffers() - ranges - tiles;
            // Every range writes to every tile of the buffers of other ends. The buffers for
            // vertices after the end have no diagonal.
            let expected = ranges * (pairs + tiles * pairs + after * (pairs - tiles));
            assert_eq!(written.len(), expected);
        }
    }

    #[test]
    fn a_gpu_is_kept_busy() {
        // Tiles times steps of four vertices, spread evenly, over those of the multiprocessor that
        // has most.
        let busy = |rows: usize| {
            let split = VertexSplit::new(rows, 132);
            let each = split.vertices_per_range.div_ceil(VERTICES);
            let even = (split.pairs() * rows.div_ceil(VERTICES)) as f64 / 132.0;
            even / (split.blocks().div_ceil(132) * each) as f64
        };
        for (rows, least) in [(128, 0.8), (192, 0.75), (256, 0.75)] {
            assert!(busy(rows) >= least, "{rows}: {}", busy(rows));
        }
    }

    #[test]
    fn partial_buffers_take_little_memory() {
        for (gpu, rows, split) in every_split() {
            let bytes = 4 * split.partial_buffers() * split.pairs() * SIDE * SIDE;
            assert!(bytes <= 5_000_000, "{rows} rows on {gpu}: {bytes}");
        }
    }
}
