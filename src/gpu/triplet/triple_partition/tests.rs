use std::collections::{HashMap, HashSet};

use super::*;
use crate::gpu::tuning::triplet::groups::TILES_PER_STEP;
use crate::loss::Family;

/// An H200's multiprocessors, an A100's, a small GPU's, and what the emulator has.
const MULTIPROCESSORS: [usize; 5] = [132, 108, 24, 4, 1];

fn every_partition() -> impl Iterator<Item = (usize, usize, TriplePartition)> {
    MULTIPROCESSORS.into_iter().flat_map(|gpu| {
        (1..=4096)
            .chain([5000, 10_000, 65_536])
            // All sizes on one GPU; on the others where something changes, and around it.
            .filter(move |rows| gpu == 132 || rows % 64 < 3 || rows % 97 == 0)
            .map(move |rows| (gpu, rows, TriplePartition::new(rows, gpu)))
    })
}

/// The groups of all blocks' work, as `work_of_block` in kernels/rkd_angle.cu counts them.
fn works(groups: usize) -> Vec<[usize; 3]> {
    let mut works = Vec::new();
    for a in 0..groups {
        for b in a..groups {
            works.extend((b..groups).map(|c| [a, b, c]));
        }
    }
    works
}

/// The overlap of these groups: 0 if all three differ, 1 if two are the same, 2 if all are.
fn overlap(groups: [usize; 3]) -> usize {
    3 - HashSet::from(groups).len()
}

#[test]
fn every_triple_is_in_one_block() {
    for (gpu, rows, partition) in every_partition() {
        let title = format!("{rows} rows on {gpu}: {partition:?}");
        let tiles = rows.div_ceil(TILE);
        // Groups cover the tiles, and the last group has some.
        assert!(
            partition.groups * partition.tiles_per_group >= tiles,
            "{title}"
        );
        assert!(
            (partition.groups - 1) * partition.tiles_per_group < tiles,
            "{title}"
        );
        // The parts cover a group's vertices, and the last part has some.
        let vertices = (partition.tiles_per_group * TILE).min(rows);
        for split in partition.splits {
            assert!(split.count * split.len >= vertices, "{title}");
            assert!((split.count - 1) * split.len < vertices, "{title}");
            // Steps of VERTICES never run into the next part.
            assert!(split.len.is_multiple_of(VERTICES), "{title}");
        }
        let mut blocks = [0; 3];
        for work in works(partition.groups) {
            blocks[overlap(work)] += partition.splits[overlap(work)].count;
        }
        assert_eq!(partition.blocks_by_overlap(), blocks, "{title}");
        assert_eq!(partition.blocks(), blocks.iter().sum::<usize>(), "{title}");
    }
}

/// Overlaps follow one another without a gap, those whose blocks have most work first.
#[test]
fn the_longest_blocks_start_first() {
    let mut orders = HashSet::new();
    for (rows, each) in [(64, 1), (130, 1), (320, 1), (1024, 1), (449, 2), (1536, 2)] {
        for partition in TriplePartition::of_groups(each, rows) {
            let (first, blocks, steps) = (
                partition.first_blocks(),
                partition.blocks_by_overlap(),
                cost::steps_by_overlap(partition),
            );
            let mut overlaps: Vec<_> = (0..3).filter(|&overlap| blocks[overlap] > 0).collect();
            overlaps.sort_by_key(|&overlap| first[overlap]);
            let mut next = 0;
            for &overlap in &overlaps {
                assert_eq!(first[overlap], next, "{partition:?}");
                next += blocks[overlap];
            }
            assert_eq!(next, partition.blocks());
            assert!(
                overlaps.is_sorted_by_key(|&overlap| Reverse(steps[overlap])),
                "{partition:?}"
            );
            orders.insert(overlaps);
        }
    }
    // Any of the three may be the first.
    let firsts: HashSet<_> = orders.iter().map(|overlaps| overlaps[0]).collect();
    assert_eq!(firsts.len(), 3, "{orders:?}");
}

/// Any three groups, with the vertex in one of them, are in the work of one block, and there once.
#[test]
fn every_group_of_vertices_meets_every_two_of_ends() {
    for groups in 1..=16 {
        let mut seen = HashSet::new();
        for work in works(groups) {
            for role in 0..3 {
                if role > 0 && work[role] == work[role - 1] {
                    continue;
                }
                let ends = [
                    work[usize::from(role == 0)],
                    work[if role == 2 { 1 } else { 2 }],
                ];
                assert!(ends[0] <= ends[1]);
                assert!(seen.insert((work[role], ends)), "{work:?}");
            }
        }
        assert_eq!(seen.len(), groups * groups * (groups + 1) / 2);
    }
}

/// As kernels/rkd_angle.cu writes them: one block clears each partial buffer of each tile, and no
/// other block adds to it.
#[test]
fn every_partial_buffer_of_every_tile_belongs_to_one_block() {
    for (rows, each) in [
        (50, 1),
        (64, 2),
        (130, 1),
        (449, 1),
        (320, 2),
        (512, 2),
        (449, 3),
    ] {
        let tiles = Tiles::of(rows).along();
        let group = |tile: usize| tile / each;
        let partitions = TriplePartition::of_groups(each, rows).into_iter();
        for partition in
            partitions.filter(|partition| partition.splits.iter().all(|split| split.count <= 3))
        {
            // In the order of the third group, and of its parts.
            let buffer = |[a, b]: [usize; 2], third: usize, part: usize| {
                let of = |third| partition.splits[overlap([group(a), group(b), third])].count;
                assert!(part < of(third));
                (0..third).map(of).sum::<usize>() + part
            };
            let pair = |tile: usize, other: usize| [tile.min(other), tile.max(other)];
            let mut owner = HashMap::new();
            let mut added = Vec::new();
            for work in works(partition.groups) {
                for part in 0..partition.splits[overlap(work)].count {
                    for (role, third) in work.into_iter().enumerate() {
                        if role > 0 && third == work[role - 1] {
                            continue;
                        }
                        let ends = [
                            work[usize::from(role == 0)],
                            work[if role == 2 { 1 } else { 2 }],
                        ];
                        let tiles_of = |group: usize| group * each..((group + 1) * each).min(tiles);
                        for x in tiles_of(ends[0]) {
                            for y in tiles_of(ends[1]).filter(|&y| x <= y) {
                                let of_ends = (pair(x, y), buffer(pair(x, y), third, part));
                                let before = owner.insert(of_ends, (work, part));
                                assert!(before.is_none(), "{partition:?}: {of_ends:?}");
                                for v in tiles_of(third) {
                                    for (end, other) in [(x, y), (y, x)] {
                                        let edge = pair(v, end);
                                        added.push((
                                            (edge, buffer(edge, group(other), part)),
                                            (work, part),
                                        ));
                                    }
                                }
                            }
                        }
                    }
                }
            }
            for (to, by) in added {
                assert_eq!(owner.get(&to), Some(&by), "{partition:?}: {to:?}");
            }
            // All partial buffers that there are, and no others.
            let buffers = partition.partial_buffers();
            for ([a, b], buffer) in owner.keys() {
                let of = if group(*a) == group(*b) {
                    buffers.within_group
                } else {
                    buffers.between_groups
                };
                assert!(*buffer < of, "{partition:?}: {a}, {b}, {buffer}");
            }
            assert_eq!(owner.len(), buffers.tiles(tiles), "{partition:?}");
        }
    }
}

#[test]
fn partial_buffers_stay_within_their_bounds() {
    for (gpu, rows, partition) in every_partition() {
        let tiles = Tiles::of(rows);
        let bytes = 4 * partition.partial_buffers().tiles(tiles.along()) * TILE * TILE;
        let padded = tiles.rows();
        // 9.4 MB up to N = 512, 50 bytes a pair at 2048.
        let bound = if rows <= 512 {
            16 * 36 * 16384
        } else {
            2 * 24 * padded * (padded + TILE)
        };
        assert!(bytes <= bound, "{rows} rows on {gpu}: {bytes} of {bound}");
    }
}

#[test]
fn a_gpu_is_kept_busy_within_the_limit_of_partial_buffers() {
    // The time of an H200 if the work were even, over its time with the partial buffers to read.
    let busy = |rows: usize| {
        let partition = TriplePartition::new(rows, 132);
        let tiles = Tiles::of(rows);
        let resident = 264;
        let buffers = partition.partial_buffers().tiles(tiles.along());
        let steps = cost::last_block(partition, resident) + buffers / TILES_PER_STEP;
        (tiles.pairs() * rows) as f64 / resident as f64 / steps as f64
    };
    for (rows, least) in [
        (512, 0.6),
        (768, 0.8),
        (1024, 0.8),
        (1536, 0.9),
        (2048, 0.8),
        (4096, 0.9),
    ] {
        assert!(busy(rows) >= least, "{rows}: {}", busy(rows));
    }
    assert_eq!(relation_side(1024, 132), 64);
    assert_eq!(relation_side(300, 132), 16);
    // One tile for each multiprocessor. With tiles of 8 some would have three.
    assert_eq!(small_batch_side(128, 132), 12);
    assert_eq!(small_batch_side(64, 132), 8);
    assert_eq!(small_batch_side(64, 4), 12);
    let of_512 = |rows| contraction_rows(rows, 512, 132);
    assert_eq!([128, 256, 512, 1024, 4096].map(of_512), [8, 16, 16, 64, 64]);
    let tiles_of = |padded| CoefficientTiles::new(padded, 132);
    assert_eq!((tiles_of(128).side, tiles_of(128).blocks), (16, 36));
    assert_eq!((tiles_of(1024).side, tiles_of(1024).blocks), (32, 528));
}

/// Against PyTorch's peak for the papers' formula in eager mode, as recorded for N = D = 512 under
/// benches/results: 200 times less, gradient included.
#[test]
fn an_evaluation_takes_little_memory() {
    use crate::gpu::element::GpuDType;
    use crate::gpu::machine::Limits;
    use crate::gpu::triplet::Plan;
    use crate::gpu::workspace::Layout;
    use crate::{Problem, RkdAngle, Shapes};

    for (rows, most) in [
        (512, 3_224_924_160 / 200),
        (1024, 63_000_000),
        (2048, 239_000_000),
    ] {
        let problem = Problem::new(RkdAngle::default(), Shapes::new(rows, 512, 512)).unwrap();
        let Family::Triplet(loss) = problem.spec().family else {
            panic!("the angle is of this family");
        };
        let limits = Limits::HOPPER;
        let mut layout = Layout::new();
        Plan::new(loss, &problem, GpuDType::F32, limits, &mut layout).unwrap();
        let bytes = layout.bytes() + 4 * rows * 512;
        assert!(bytes <= most, "{rows}: {bytes} of {most}");
    }
}

/// More rows than memory has addresses for are an error, and planning finds it quickly.
#[test]
fn rows_beyond_all_memory_are_partitioned_too() {
    for rows in [1 << 20, 1 << 26, (1 << 31) - 1] {
        for gpu in [1, 132] {
            let partition = TriplePartition::new(rows, gpu);
            let tiles = Tiles::of(rows);
            assert!(
                partition.partial_buffers().tiles(tiles.along()) <= MAX_BUFFERS * tiles.pairs()
            );
            assert!(partition.groups * partition.tiles_per_group * TILE >= rows);
        }
    }
}

/// scripts/predict-rkd chooses as this does, by the same numbers.
#[test]
fn predict_rkd_has_the_same_numbers() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/predict-rkd");
    let script = std::fs::read_to_string(script).expect("a script of this crate");
    let split = (
        small_batch::SIDE,
        small_batch::VERTICES,
        small_batch::OVERHEAD,
        small_batch::TILES_PER_STEP,
    );
    for line in [
        format!("RELATION_TILES = {:?}\n", small_batch::RELATION_TILES),
        format!("CONTRACTION_TILES = {CONTRACTION_TILES:?}\n"),
        format!("ENDS, VERTICES, OVERHEAD, TILES_PER_STEP = {split:?}\n"),
    ] {
        assert!(script.contains(&line), "expected {line}");
    }
}
