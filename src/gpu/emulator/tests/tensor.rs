//! Asynchronous copies, matrices from shared memory, and products on tensor cores.

use half::{bf16, f16};

use super::{Run, THREADS, assert_caught, assert_shows, numbers, seeded_bugs};

seeded_bugs!(
    seeded_bugs_copies,
    seeded_bugs_matrices,
    seeded_bugs_multiply
);

const CHUNKS: usize = 4;

#[test]
fn asynchronous_copies() {
    let input = numbers(CHUNKS * THREADS * 4 + 1);
    for short in [0, 4, 8, 12, 16] {
        let run = Run::new(&seeded_bugs_copies, &input).count(short);
        let want: Vec<f32> = (0..THREADS)
            .rev()
            .map(|row| {
                let of = |chunk: usize, floats: usize| -> f32 {
                    input[(chunk * THREADS + row) * 4..][..floats].iter().sum()
                };
                of(0, 4) + of(1, 4) + of(2, 4) + of(3, 4 - short / 4)
            })
            .collect();
        // Bugs: no wait at all; a wait without a barrier, so that only the copying thread sees the
        // data; a wait for all groups but one.
        assert_shows(run, &[1, 2, 7], &want);
        let got = run.bug(1).run::<f32>(0, THREADS).expect("no fault");
        assert!(
            got.iter().all(|x| x.is_nan()),
            "data that has not arrived is NaN"
        );
    }
}

#[test]
fn asynchronous_copies_from_and_to_the_wrong_place() {
    let input = numbers(CHUNKS * THREADS * 4 + 1);
    let run = Run::new(&seeded_bugs_copies, &input);
    for (bug, part) in [
        (3, "addresses that are not multiples of 16"),
        (4, "addresses that are not multiples of 16"),
        (5, "cp.async to an address outside shared memory"),
        (6, "cp.async of more than 16 bytes"),
    ] {
        let outcome = run.bug(bug).run::<f32>(0, THREADS);
        assert_caught(outcome, run.kernel, &["thread ", "tensor.cu:", part]);
    }
}

#[test]
fn matrices_from_shared_memory() {
    let input: Vec<u16> = (0..32 * 8).collect();
    let mut run = Run::new(&seeded_bugs_matrices, &input);
    run.threads = 32;
    for transposed in [false, true] {
        for seed in 0..4 {
            let got = run
                .count(transposed.into())
                .run::<[u16; 2]>(seed, 128)
                .expect("no fault");
            for lane in 0..32 {
                for matrix in 0..4 {
                    // PTX: lane l holds elements 2(l % 4) and 2(l % 4) + 1 of row l / 4, or of
                    // column l / 4 if transposed.
                    let want = [0, 1].map(|half| {
                        let (major, minor) = (lane / 4, lane % 4 * 2 + half);
                        let (row, column) = if transposed {
                            (minor, major)
                        } else {
                            (major, minor)
                        };
                        input[(matrix * 8 + row) * 8 + column]
                    });
                    assert_eq!(
                        got[lane * 4 + matrix],
                        want,
                        "matrix {matrix} in lane {lane}"
                    );
                }
            }
        }
    }
    for (bug, part) in [
        (1, "not a multiple of 16"),
        (2, "ldmatrix of a row outside shared memory"),
    ] {
        assert_caught(
            run.bug(bug).run::<u32>(0, 128),
            run.kernel,
            &["thread 3 at tensor.cu:", part],
        );
    }
}

/// A `[16, 16]` and B `[16, 8]` of halves, as numbers and as bits. All rows and columns differ, and
/// all products and sums are exact.
fn operands(bits: impl Fn(f32) -> u16) -> (Vec<f32>, Vec<u16>) {
    let numbers: Vec<f32> = (0..16 * 16 + 16 * 8)
        .map(|i| ((i * 89 + i / 16 * 7) % 61) as f32 - 30.0)
        .collect();
    let halves = numbers.iter().map(|&x| bits(x)).collect();
    (numbers, halves)
}

#[test]
fn products_on_tensor_cores() {
    for bf16_operands in [false, true] {
        let (x, bits) = operands(|x| match bf16_operands {
            false => f16::from_f32(x).to_bits(),
            true => bf16::from_f32(x).to_bits(),
        });
        let (a, b) = x.split_at(256);
        let mut want = vec![0.0f32; 128];
        for (row, column) in (0..16).flat_map(|row| (0..8).map(move |column| (row, column))) {
            // The four sums of a lane start at 1, 2, 3 and 4. The second product swaps pairs in A.
            let start = 1 + column % 2 + row / 8 * 2;
            want[row * 8 + column] = start as f32
                + (0..16)
                    .map(|k| (a[row * 16 + k] + a[row * 16 + (k ^ 1)]) * b[k * 8 + column])
                    .sum::<f32>();
        }
        let mut run = Run::new(&seeded_bugs_multiply, &bits).count(bf16_operands.into());
        run.threads = 32;
        assert_shows(run, &[], &want);
        let parts = [
            "a barrier of a warp is reached by some lanes only",
            "thread 30 at its end",
        ];
        assert_caught(run.bug(1).run::<f32>(0, 128), run.kernel, &parts);
    }
}

#[test]
fn a_product_keeps_nan_and_infinity() {
    for (special, want) in [(f16::INFINITY, f32::INFINITY), (f16::NAN, f32::NAN)] {
        let mut bits = vec![f16::ONE.to_bits(); 16 * 16 + 16 * 8];
        bits[5 * 16 + 3] = special.to_bits();
        let mut run = Run::new(&seeded_bugs_multiply, &bits);
        run.threads = 32;
        let got = run.run::<f32>(0, 128).expect("no fault");
        for (at, got) in got.into_iter().enumerate() {
            let in_row = at / 8 == 5;
            assert!(if in_row {
                got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan()
            } else {
                got.is_finite()
            });
        }
    }
}
