use std::collections::{HashMap, HashSet};

use super::*;
use crate::gpu::rkd::small_batch::VertexSplit;

/// An H200's multiprocessors, an A100's, a small GPU's, and what the emulator has.
const CARDS: [usize; 5] = [132, 108, 24, 4, 1];

fn every_partition() -> impl Iterator<Item = (usize, usize, TriplePartition)> {
    CARDS.into_iter().flat_map(|gpu| {
        (1..=4096)
            .chain([5000, 10_000, 65_536])
            // All sizes on one GPU; on the others where something changes, and around it.
            .filter(move |rows| gpu == 132 || rows % 64 < 3 || rows % 97 == 0)
            .map(move |rows| (gpu, rows, TriplePartition::new(rows, gpu)))
    })
}

/// The sorted groups of a job, as `job_of` in kernels/rkd_angle.cu counts them.
fn jobs(groups: usize) -> Vec<[usize; 3]> {
    let mut jobs = Vec::new();
    for a in 0..groups {
        for b in a..groups {
            jobs.extend((b..groups).map(|c| [a, b, c]));
        }
    }
    jobs
}

/// Which of a partition's parts are those of a triple of these groups: 0 where all three differ.
fn kind(groups: [usize; 3]) -> usize {
    3 - HashSet::from(groups).len()
}

#[test]
fn every_triple_is_in_one_block() {
    for (gpu, rows, partition) in every_partition() {
        let title = format!("{rows} rows on {gpu}: {partition:?}");
        let tiles = rows.div_ceil(TILE);
        // Groups cover the tiles, the last one too has some.
        assert!(
            partition.groups * partition.tiles_per_group >= tiles,
            "{title}"
        );
        assert!(
            (partition.groups - 1) * partition.tiles_per_group < tiles,
            "{title}"
        );
        // Split cover a group's vertices, the last one too has some.
        let vertices = (partition.tiles_per_group * TILE).min(rows);
        for parts in partition.parts {
            assert!(parts.count * parts.vertices >= vertices, "{title}");
            assert!((parts.count - 1) * parts.vertices < vertices, "{title}");
            // Steps of VERTICES never run into the next part.
            assert!(
                parts.vertices.is_multiple_of(TriplePartition::VERTICES),
                "{title}"
            );
        }
        let mut blocks = [0; 3];
        for job in jobs(partition.groups) {
            blocks[kind(job)] += partition.parts[kind(job)].count;
        }
        assert_eq!(partition.blocks_of_kinds(), blocks, "{title}");
        assert_eq!(partition.blocks(), blocks.iter().sum::<usize>(), "{title}");
    }
}

/// Kinds follow one another without a gap, those whose blocks have most to do first.
#[test]
fn the_longest_blocks_start_first() {
    let mut orders = HashSet::new();
    for (rows, each) in [(64, 1), (130, 1), (320, 1), (1024, 1), (449, 2), (1536, 2)] {
        for partition in TriplePartition::of_groups(each, rows) {
            let (first, blocks, steps) = (
                partition.first_blocks(),
                partition.blocks_of_kinds(),
                partition.steps_of_kinds(),
            );
            let mut kinds: Vec<_> = (0..3).filter(|&kind| blocks[kind] > 0).collect();
            kinds.sort_by_key(|&kind| first[kind]);
            let mut next = 0;
            for &kind in &kinds {
                assert_eq!(first[kind], next, "{partition:?}");
                next += blocks[kind];
            }
            assert_eq!(next, partition.blocks());
            assert!(
                kinds.is_sorted_by_key(|&kind| Reverse(steps[kind])),
                "{partition:?}"
            );
            orders.insert(kinds);
        }
    }
    // Any of the three may be the first.
    let firsts: HashSet<_> = orders.iter().map(|kinds| kinds[0]).collect();
    assert_eq!(firsts.len(), 3, "{orders:?}");
}

/// Of any three groups with the vertex in one of them there is one job, and in it one turn.
#[test]
fn every_group_of_vertices_meets_every_two_of_ends() {
    for groups in 1..=16 {
        let mut seen = HashSet::new();
        for job in jobs(groups) {
            for role in 0..3 {
                if role > 0 && job[role] == job[role - 1] {
                    continue;
                }
                let ends = [
                    job[usize::from(role == 0)],
                    job[if role == 2 { 1 } else { 2 }],
                ];
                assert!(ends[0] <= ends[1]);
                assert!(seen.insert((job[role], ends)), "{job:?}");
            }
        }
        assert_eq!(seen.len(), groups * groups * (groups + 1) / 2);
    }
}

/// As kernels/rkd_angle.cu writes them: each slot of each tile is cleared by one block, and nobody else adds to it.
#[test]
fn every_slot_of_every_tile_belongs_to_one_block() {
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
        let deals = TriplePartition::of_groups(each, rows).into_iter();
        for partition in
            deals.filter(|partition| partition.parts.iter().all(|parts| parts.count <= 3))
        {
            // In the order of the third group, those of all its parts.
            let slot = |[a, b]: [usize; 2], third: usize, part: usize| {
                let of = |third| partition.parts[kind([group(a), group(b), third])].count;
                assert!(part < of(third));
                (0..third).map(of).sum::<usize>() + part
            };
            let pair = |tile: usize, other: usize| [tile.min(other), tile.max(other)];
            let mut owner = HashMap::new();
            let mut added = Vec::new();
            for job in jobs(partition.groups) {
                for part in 0..partition.parts[kind(job)].count {
                    for (role, third) in job.into_iter().enumerate() {
                        if role > 0 && third == job[role - 1] {
                            continue;
                        }
                        let ends = [
                            job[usize::from(role == 0)],
                            job[if role == 2 { 1 } else { 2 }],
                        ];
                        let tiles_of = |group: usize| group * each..((group + 1) * each).min(tiles);
                        for x in tiles_of(ends[0]) {
                            for y in tiles_of(ends[1]).filter(|&y| x <= y) {
                                let of_ends = (pair(x, y), slot(pair(x, y), third, part));
                                let before = owner.insert(of_ends, (job, part));
                                assert!(before.is_none(), "{partition:?}: {of_ends:?}");
                                for v in tiles_of(third) {
                                    for (end, other) in [(x, y), (y, x)] {
                                        let edge = pair(v, end);
                                        added.push((
                                            (edge, slot(edge, group(other), part)),
                                            (job, part),
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
            // All the slots that there are, and no others.
            let slots = partition.slots();
            for ([a, b], slot) in owner.keys() {
                let of = if group(*a) == group(*b) {
                    slots.within
                } else {
                    slots.across
                };
                assert!(*slot < of, "{partition:?}: {a}, {b}, {slot}");
            }
            assert_eq!(owner.len(), slots.tiles(tiles), "{partition:?}");
        }
    }
}

#[test]
fn slots_stay_within_their_bounds() {
    for (gpu, rows, partition) in every_partition() {
        let tiles = Tiles::of(rows);
        let bytes = 4 * partition.slots().tiles(tiles.along()) * TILE * TILE;
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
fn a_gpu_is_kept_busy_where_the_slots_allow() {
    // What an H200 would take with every block alike, over what it takes with slots to read.
    let share = |rows: usize| {
        let partition = TriplePartition::new(rows, 132);
        let tiles = Tiles::of(rows);
        let resident = 264;
        let slots = partition.slots().tiles(tiles.along());
        let steps = partition.last(resident) + slots / TriplePartition::TILES_PER_STEP;
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
        assert!(share(rows) >= least, "{rows}: {}", share(rows));
    }
    assert_eq!(relation_side(1024, 132), 64);
    assert_eq!(relation_side(300, 132), 16);
    // One tile for each multiprocessor where a tile of 8 would be the third of some.
    assert_eq!(small_batch_side(128, 132), 12);
    assert_eq!(small_batch_side(64, 132), 8);
    assert_eq!(small_batch_side(64, 4), 12);
    let of_512 = |rows| contraction_rows(rows, 512, 132);
    assert_eq!([128, 256, 512, 1024, 4096].map(of_512), [8, 16, 16, 64, 64]);
    let patches = |padded| CoefficientTiles::new(padded, 132);
    assert_eq!((patches(128).side, patches(128).blocks), (16, 36));
    assert_eq!((patches(1024).side, patches(1024).blocks), (32, 528));
}

/// Against PyTorch's peak for the papers' formula in eager mode, as recorded for N = D = 512 under benches/results:
/// 200 times less, gradient included.
#[test]
fn an_evaluation_takes_little_memory() {
    use crate::gpu::machine::Limits;
    use crate::gpu::rkd::Plan;
    use crate::gpu::workspace::Layout;
    use crate::{DType, Problem, RkdAngle, Shapes};

    for (rows, most) in [
        (512, 3_224_924_160 / 200),
        (1024, 63_000_000),
        (2048, 239_000_000),
    ] {
        let loss = RkdAngle::default();
        let problem = Problem::new(loss, Shapes::new(rows, 512, 512)).unwrap();
        let limits = Limits::HOPPER;
        let mut layout = Layout::new();
        Plan::new(&loss.into(), &problem, DType::F32, limits, &mut layout).unwrap();
        let bytes = layout.bytes() + 4 * rows * 512;
        assert!(bytes <= most, "{rows}: {bytes} of {most}");
    }
}

/// More rows than memory has addresses for are an error, and found to be one at once.
#[test]
fn rows_beyond_measure_are_dealt_as_well() {
    for rows in [1 << 20, 1 << 26, (1 << 31) - 1] {
        for gpu in [1, 132] {
            let partition = TriplePartition::new(rows, gpu);
            let tiles = Tiles::of(rows);
            assert!(
                partition.slots().tiles(tiles.along())
                    <= TriplePartition::MOST_SLOTS * tiles.pairs()
            );
            assert!(partition.groups * partition.tiles_per_group * TILE >= rows);
        }
    }
}

/// scripts/predict-rkd deals as this does, by the same numbers.
#[test]
fn the_prediction_deals_by_the_same_numbers() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/predict-rkd");
    let script = std::fs::read_to_string(script).expect("a script of this crate");
    let small_batch = (
        VertexSplit::SIDE,
        VertexSplit::VERTICES,
        VertexSplit::OVERHEAD,
        VertexSplit::TILES_PER_STEP,
    );
    for line in [
        format!("RELATION_TILES = {SMALL_BATCH_TILES:?}\n"),
        format!("CONTRACTION_TILES = {CONTRACTION_TILES:?}\n"),
        format!("ENDS, VERTICES, OVERHEAD, TILES_PER_STEP = {small_batch:?}\n"),
    ] {
        assert!(script.contains(&line), "expected {line}");
    }
}
