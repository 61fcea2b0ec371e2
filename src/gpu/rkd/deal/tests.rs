use std::collections::HashSet;

use super::*;
use crate::gpu::rkd::few::Shares;

/// An H200's multiprocessors, an A100's, a small card's, and what the emulator has.
const CARDS: [usize; 5] = [132, 108, 24, 4, 1];

fn every_deal() -> impl Iterator<Item = (usize, usize, Deal)> {
    CARDS.into_iter().flat_map(|card| {
        (1..=4096)
            .chain([5000, 10_000, 65_536])
            // All sizes on one card; on the others where something changes, and around it.
            .filter(move |rows| card == 132 || rows % 64 < 3 || rows % 97 == 0)
            .map(move |rows| (card, rows, Deal::new(rows, card)))
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

#[test]
fn every_triple_is_dealt_once() {
    for (card, rows, deal) in every_deal() {
        let title = format!("{rows} rows on {card}: {deal:?}");
        let tiles = rows.div_ceil(TILE);
        // Groups cover the tiles, the last one too has some.
        assert!(deal.groups * deal.tiles_per_group >= tiles, "{title}");
        assert!((deal.groups - 1) * deal.tiles_per_group < tiles, "{title}");
        // Parts cover a group's vertices, the last one too has some.
        let vertices = (deal.tiles_per_group * TILE).min(rows);
        assert!(deal.parts * deal.vertices_per_part >= vertices, "{title}");
        assert!(
            (deal.parts - 1) * deal.vertices_per_part < vertices,
            "{title}"
        );
        // Steps of VERTICES never run into the next part.
        assert!(
            deal.vertices_per_part.is_multiple_of(Deal::VERTICES),
            "{title}"
        );
        assert_eq!(
            deal.blocks(),
            jobs(deal.groups).len() * deal.parts,
            "{title}"
        );
    }
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

#[test]
fn slots_stay_within_their_bounds() {
    for (card, rows, deal) in every_deal() {
        let tiles = Tiles::of(rows);
        let bytes = 4 * deal.slots() * tiles.pairs() * TILE * TILE;
        let padded = tiles.rows();
        // 9.4 MB up to N = 512, 50 bytes a pair at 2048.
        let bound = if rows <= 512 {
            16 * 36 * 16384
        } else {
            2 * 24 * padded * (padded + TILE)
        };
        assert!(bytes <= bound, "{rows} rows on {card}: {bytes} of {bound}");
    }
}

#[test]
fn a_card_is_kept_busy_where_the_slots_allow() {
    // What an H200 would take with every block alike, over what it takes.
    let share = |rows: usize| {
        let deal = Deal::new(rows, 132);
        let tiles = Tiles::of(rows);
        let resident = 264;
        (tiles.pairs() * rows) as f64 / resident as f64 / deal.steps(resident, tiles) as f64
    };
    for (rows, least) in [
        (512, 0.6),
        (768, 0.7),
        (1024, 0.75),
        (1536, 0.85),
        (2048, 0.8),
        (4096, 0.9),
    ] {
        assert!(share(rows) >= least, "{rows}: {}", share(rows));
    }
    assert_eq!(relation_side(1024, 132), 64);
    assert_eq!(relation_side(300, 132), 16);
    // One tile for each multiprocessor where a tile of 8 would be the third of some.
    assert_eq!(few_side(128, 132), 12);
    assert_eq!(few_side(64, 132), 8);
    assert_eq!(few_side(64, 4), 12);
    let of_512 = |rows| contraction_rows(rows, 512, 132);
    assert_eq!([128, 256, 512, 1024, 4096].map(of_512), [8, 16, 16, 64, 64]);
    let patches = |padded| Patches::new(padded, 132);
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
        (1024, 56_000_000),
        (2048, 281_000_000),
    ] {
        let loss = RkdAngle::default();
        let problem = Problem::new(loss, Shapes::new(rows, 512, 512)).unwrap();
        let limits = Limits {
            multiprocessors: 132,
            shared_per_block: 227 * 1024,
        };
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
        for card in [1, 132] {
            let deal = Deal::new(rows, card);
            assert!(deal.slots() <= Deal::MOST_SLOTS);
            assert!(deal.groups * deal.tiles_per_group * TILE >= rows);
        }
    }
}

/// scripts/predict-rkd deals as this does, by the same numbers.
#[test]
fn the_prediction_deals_by_the_same_numbers() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/predict-rkd");
    let script = std::fs::read_to_string(script).expect("a script of this crate");
    let few = (
        Shares::SIDE,
        Shares::VERTICES,
        Shares::OVERHEAD,
        Shares::TILES_PER_STEP,
    );
    for line in [
        format!("RELATION_TILES = {FEW_TILES:?}\n"),
        format!("CONTRACTION_TILES = {CONTRACTION_TILES:?}\n"),
        format!("ENDS, VERTICES, OVERHEAD, TILES_PER_STEP = {few:?}\n"),
    ] {
        assert!(script.contains(&line), "expected {line}");
    }
}
