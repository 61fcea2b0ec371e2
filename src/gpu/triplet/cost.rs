//! What launches are predicted to take: the cost models by which the plans choose. All numbers are
//! in [`tuning`](crate::gpu::tuning::triplet), with their origins.

use std::collections::BTreeMap;

use super::small_batch::VertexSplit;
use super::triple_partition::{TriplePartition, pairs};
use crate::gpu::machine::Limits;
use crate::gpu::tuning::triplet::{groups, small_batch};
use crate::shapes::Shapes;

/// Cycles of the lengths of student and teacher in f64: two operations for each element of every
/// pair.
pub(super) fn lengths_in_f64(shapes: Shapes, limits: Limits) -> u64 {
    let [n, student, teacher] =
        [shapes.rows, shapes.student_dim, shapes.teacher_dim].map(|size| size as u64);
    let operations = (n * n).saturating_mul(student.saturating_add(teacher));
    let lanes =
        small_batch::F32_LANES * u64::from(limits.multiprocessors) / u64::from(limits.f32_over_f64);
    operations / lanes.max(1)
}

/// Cycles of a small batch's relation, by tiles of `side` rows that take `cycles` each.
pub(super) fn small_batch_relation(
    padded: usize,
    multiprocessors: usize,
    (side, cycles): (usize, usize),
) -> usize {
    let tiles = padded.div_ceil(side);
    (tiles * (tiles + 1)).div_ceil(multiprocessors) * cycles
}

/// Cycles of the contraction, by tiles of so many rows that sum over `depth` rows in `cycles`.
pub(super) fn contraction(
    [rows, dim]: [usize; 2],
    dimensions: usize,
    multiprocessors: usize,
    (side, depth, cycles): (usize, usize, usize),
) -> usize {
    let blocks = rows.div_ceil(side).saturating_mul(dim.div_ceil(dimensions));
    let waves = blocks.div_ceil(multiprocessors);
    waves.saturating_mul(rows.div_ceil(depth) * cycles)
}

/// When the last block of a small batch's angle is done and its partial buffers are added up, in
/// steps: the time of four vertices. A multiprocessor holds one block.
pub(super) fn vertex_split(split: VertexSplit, multiprocessors: usize) -> usize {
    let each = split.vertices_per_range / small_batch::VERTICES + small_batch::OVERHEAD;
    let buffers = split.partial_buffers() * split.pairs();
    split.blocks().div_ceil(multiprocessors) * each + buffers.div_ceil(small_batch::TILES_PER_STEP)
}

/// The work of a block by groups of three, for each overlap of the groups, in steps: vertices times
/// pairs of tiles.
pub(super) fn steps_by_overlap(partition: TriplePartition) -> [usize; 3] {
    let each = partition.tiles_per_group;
    let (between, within) = (each * each, pairs(each));
    let tiles = [3 * between, between + within, within];
    // Callers also ask about more rows than any memory holds.
    [0, 1, 2].map(|overlap| {
        tiles[overlap].saturating_mul(partition.splits[overlap].len + groups::OVERHEAD)
    })
}

/// The time to clear and to read so many tiles of partial buffers, in steps.
pub(super) fn partial_buffers(tiles: usize) -> usize {
    tiles.div_ceil(groups::TILES_PER_STEP)
}

/// When all blocks would be done if their work were spread evenly over `resident` blocks at a time.
/// A lower bound of [`last_block`].
pub(super) fn even_work(partition: TriplePartition, resident: usize) -> usize {
    let (blocks, steps) = (partition.blocks_by_overlap(), steps_by_overlap(partition));
    let all = (0..3).fold(0usize, |all, overlap| {
        all.saturating_add(blocks[overlap].saturating_mul(steps[overlap]))
    });
    all.div_ceil(resident)
}

/// When the last block is done, if `resident` blocks run at a time, in steps of one of them.
pub(super) fn last_block(partition: TriplePartition, resident: usize) -> usize {
    let (blocks, steps) = (partition.blocks_by_overlap(), steps_by_overlap(partition));
    // How many places become free at which time.
    let mut ends = BTreeMap::from([(0usize, resident)]);
    for overlap in partition.order() {
        let mut waiting = blocks[overlap];
        while waiting > 0 {
            let Some((end, free)) = ends.pop_first() else {
                break;
            };
            let start = waiting.min(free);
            if free > start {
                ends.insert(end, free - start);
            }
            *ends.entry(end.saturating_add(steps[overlap])).or_default() += start;
            waiting -= start;
        }
    }
    ends.last_key_value().map_or(0, |(&end, _)| end)
}
