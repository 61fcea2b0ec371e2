//! Missing barriers, and barriers that only some threads reach.

use super::{Run, THREADS, assert_caught, assert_shows, numbers, reversed, seeded_bugs};

seeded_bugs!(
    seeded_bugs_missing_barrier,
    seeded_bugs_missing_second_barrier,
    seeded_bugs_missing_warp_barrier,
    seeded_bugs_divergent_barrier,
);

#[test]
fn a_missing_barrier_of_the_block() {
    let input = numbers(THREADS);
    assert_shows(
        Run::new(&seeded_bugs_missing_barrier, &input),
        &[1],
        &reversed(&input),
    );
    assert_shows(
        Run::new(&seeded_bugs_missing_second_barrier, &input),
        &[1],
        &reversed(&input),
    );
}

#[test]
fn a_missing_barrier_of_a_warp() {
    let input = numbers(THREADS);
    // Each warp by itself: reversed, then the elements of its even lanes, twice.
    let want: Vec<f32> = input
        .chunks(32)
        .flat_map(|warp| {
            let reversed = reversed(warp);
            (0..32).map(move |lane| reversed[lane % 16 * 2])
        })
        .collect();
    assert_shows(
        Run::new(&seeded_bugs_missing_warp_barrier, &input),
        &[1, 2],
        &want,
    );
}

#[test]
fn barriers_that_only_some_threads_reach() {
    let input = numbers(THREADS);
    let run = Run::new(&seeded_bugs_divergent_barrier, &input);
    assert_shows(run, &[], &reversed(&input));
    let (of_block, of_warp) = (
        "a barrier of the block is not reached by all threads: ",
        "a barrier of a warp is reached by some lanes only: ",
    );
    // The message, and whether it names two lines, or one line and the end of a thread.
    let expected = [
        (
            1,
            of_block,
            "thread 0 is at barriers.cu:",
            "thread 32 at its end",
        ),
        (
            2,
            of_block,
            "thread 0 is at barriers.cu:",
            "thread 40 at its end",
        ),
        (
            3,
            of_block,
            "thread 0 is at barriers.cu:",
            "thread 32 at barriers.cu:",
        ),
        (
            4,
            of_block,
            "thread 0 is at its end",
            "thread 32 at barriers.cu:",
        ),
        (
            5,
            of_warp,
            "thread 0 is at barriers.cu:",
            "thread 16 at its end",
        ),
        (
            6,
            of_warp,
            "thread 0 is at barriers.cu:",
            "thread 16 at barriers.cu:",
        ),
        (
            7,
            of_warp,
            "thread 0 is at barriers.cu:",
            "thread 9 at barriers.cu:",
        ),
        (
            8,
            of_warp,
            "thread 0 is at its end",
            "thread 1 at barriers.cu:",
        ),
        (
            9,
            of_block,
            "thread 0 is at barriers.cu:",
            "thread 32 at barriers.cu:",
        ),
    ];
    for (bug, what, first, second) in expected {
        for seed in 0..4 {
            let outcome = run.bug(bug).run::<f32>(seed, THREADS);
            assert_caught(
                outcome,
                run.kernel,
                &["block (0, 0, 0): ", what, first, second],
            );
        }
    }
    // The two lines differ.
    let text = run
        .bug(3)
        .run::<f32>(0, THREADS)
        .expect_err("a divergence")
        .to_string();
    let lines: Vec<&str> = text
        .split("barriers.cu:")
        .skip(1)
        .map(|t| t.split(',').next().unwrap_or(t))
        .collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert_ne!(lines[0], lines[1], "{text}");
}

#[test]
fn the_emulator_works_after_a_failure() {
    let input = numbers(THREADS);
    let run = Run::new(&seeded_bugs_divergent_barrier, &input);
    for seed in 0..16 {
        let bug = 1 + seed as u32 % 9;
        assert!(run.bug(bug).run::<f32>(seed, THREADS).is_err());
        assert_eq!(run.run::<f32>(seed, THREADS), Ok(reversed(&input)));
    }
}

#[test]
fn the_first_of_several_failures_is_reported() {
    let input = numbers(THREADS);
    let mut run = Run::new(&seeded_bugs_divergent_barrier, &input).bug(3);
    run.blocks = 40;
    for seed in 0..4 {
        assert_caught(
            run.run::<f32>(seed, THREADS),
            run.kernel,
            &["block (0, 0, 0): "],
        );
    }
}
