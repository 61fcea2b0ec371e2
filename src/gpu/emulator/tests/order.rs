//! Stores of one block that another block reads.

use super::{Run, THREADS, assert_shows, numbers, seeded_bugs};

seeded_bugs!(seeded_bugs_fences);

const BLOCKS: usize = 7;

fn input() -> Vec<f32> {
    numbers(BLOCKS * THREADS)
}

fn run(input: &[f32]) -> Run<'_, f32> {
    let mut run = Run::new(&seeded_bugs_fences, input);
    run.blocks = BLOCKS as u32;
    run
}

/// The sums of the last block, then the doubles that all blocks leave.
fn want(input: &[f32]) -> Vec<f32> {
    let doubles: Vec<f32> = input.iter().map(|x| 2.0 * x).collect();
    let sum = |thread: usize| doubles.iter().skip(thread).step_by(THREADS).sum();
    (0..THREADS)
        .map(sum)
        .chain(doubles.iter().copied())
        .collect()
}

#[test]
fn a_block_sees_what_fences_order_and_no_more() {
    let input = input();
    // Bugs: no fence before the ticket; none after it; two after it; a store between the fence and
    // the ticket; no barrier between the stores of other threads and the fence.
    for bug in 1..=5 {
        assert_shows(run(&input), &[bug], &want(&input));
    }
}

/// The bug: the last block adds its own slots first.
#[test]
fn a_sum_that_depends_on_the_order_of_blocks() {
    let input: Vec<f32> = (0..BLOCKS * THREADS)
        .map(|i| 1.1f32.powi(i as i32 % 97))
        .collect();
    let sums = |bug, seed| {
        let got = run(&input)
            .bug(bug)
            .run::<f32>(seed, (BLOCKS + 1) * THREADS);
        let sums = &got.expect("no fault")[..THREADS];
        sums.iter().map(|sum| sum.to_bits()).collect::<Vec<_>>()
    };
    let differs = |bug| (1..8).any(|seed| sums(bug, seed) != sums(bug, 0));
    assert!(!differs(0));
    assert!(differs(6));
}

/// What a fence orders too late is there when the launch ends.
#[test]
fn a_launch_sees_what_launches_before_it_wrote() {
    let (input, right) = (input(), want(&input()));
    for bug in 1..=5 {
        for seed in [1, 3] {
            let got = run(&input)
                .bug(bug)
                .run::<f32>(seed, right.len())
                .expect("no fault");
            assert_eq!(got[THREADS..], right[THREADS..], "bug {bug}, seed {seed}");
        }
    }
}

/// Without a fence the last block has only its own slots, and NaN for those of the others. A block
/// alone needs no fence.
#[test]
fn a_missing_fence_hides_every_other_block() {
    let input = input();
    for bug in [1, 2] {
        for seed in [1, 3, 5, 7] {
            let all = run(&input).bug(bug);
            let got = all
                .run::<f32>(seed, (BLOCKS + 1) * THREADS)
                .expect("no fault");
            assert!(got[..THREADS].iter().all(|sum| sum.is_nan()), "{got:?}");
            let mut alone = all;
            alone.blocks = 1;
            let got = alone
                .run::<f32>(seed, (BLOCKS + 1) * THREADS)
                .expect("no fault");
            assert_eq!(got[..THREADS], got[THREADS..2 * THREADS]);
        }
    }
}
