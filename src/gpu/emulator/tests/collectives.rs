//! Collectives and conversions of kernels/common, compared with plain loops.

use half::{bf16, f16};

use super::{Run, THREADS, numbers, seeded_bugs};

seeded_bugs!(
    seeded_bugs_shuffles,
    seeded_bugs_reductions,
    seeded_bugs_ticket,
    seeded_bugs_early_ticket,
    seeded_bugs_scatter,
    seeded_bugs_widen,
    seeded_bugs_narrow,
);

const WARP: usize = 32;

#[test]
fn shuffles() {
    let input = numbers(THREADS);
    for seed in 0..4 {
        let run = Run::new(&seeded_bugs_shuffles, &input);
        // The output has floats, then doubles.
        let got = run
            .run::<u64>(seed, (WARP / 2 + WARP) * THREADS)
            .expect("no fault");
        let (floats, doubles) = got.split_at(WARP / 2 * THREADS);
        let floats: &[f32] = bytemuck::cast_slice(floats);
        for index in 0..WARP {
            for thread in 0..THREADS {
                let (warp, lane) = (thread / WARP * WARP, thread % WARP);
                assert_eq!(
                    floats[index * THREADS + thread],
                    input[warp + (lane ^ index)]
                );
                let from = input[warp + (index + thread) % WARP];
                assert_eq!(
                    f64::from_bits(doubles[index * THREADS + thread]),
                    f64::from(from)
                );
            }
        }
    }
}

#[test]
fn reductions() {
    // With rounding the sums depend on the order of addition: a tree in each warp, then warp by
    // warp.
    let input: Vec<f32> = (0..THREADS)
        .map(|i| ((i * 37 + 11) % 64) as f32 * 1.1 - 20.0)
        .collect();
    let tree = |warp: &[f32]| {
        let mut values = warp.to_vec();
        for mask in [16, 8, 4, 2, 1] {
            values = (0..WARP).map(|i| values[i] + values[i ^ mask]).collect();
        }
        values[0]
    };
    let warps: Vec<&[f32]> = input.chunks(WARP).collect();
    let most = |x: &[f32]| x.iter().copied().fold(f32::MIN, f32::max);
    let least = |x: &[f32]| x.iter().copied().fold(f32::MAX, f32::min);
    let exact: f64 = input.iter().copied().map(f64::from).sum();
    for seed in 0..8 {
        let run = Run::new(&seeded_bugs_reductions, &input);
        let got = run.run::<f64>(seed, 8 * THREADS).expect("no fault");
        for thread in 0..THREADS {
            let warp = warps[thread / WARP];
            let want = [
                tree(warp),
                most(warp),
                least(warp),
                tree(warps[0]) + tree(warps[1]),
                most(&input),
                least(&input),
            ];
            let of = |result: usize| got[result * THREADS + thread];
            for (result, want) in want.into_iter().enumerate() {
                assert_eq!(
                    of(result),
                    f64::from(want),
                    "result {result} of thread {thread}"
                );
            }
            assert!((of(6) - exact).abs() < 1e-12);
            assert_eq!(of(7), 2.5);
        }
    }
}

#[test]
fn the_last_block_sees_all_others() {
    for blocks in [1, 2, 7, 70] {
        let input: Vec<f64> = (0..blocks * THREADS)
            .map(|i| (i * i % 1009) as f64)
            .collect();
        let mut run = Run::new(&seeded_bugs_ticket, &input);
        run.blocks = u32::try_from(blocks).expect("few blocks");
        for seed in 0..4 {
            let (got, counters) = run.run_counting::<f64>(seed, 1 + blocks).expect("no fault");
            assert_eq!(got[0], input.iter().sum::<f64>());
            // The ticket is 0 again, and every block has set its flag.
            assert_eq!(counters[0], 0);
            let flags: u32 = counters[1..].iter().map(|word| word.count_ones()).sum();
            assert_eq!(flags as usize, blocks);
        }
    }
}

#[test]
fn the_last_ticket_sees_all_others() {
    // The last count is more than a warp adds at once.
    for blocks in [1, 2, 7, 1100] {
        let input: Vec<f64> = (0..blocks * THREADS)
            .map(|i| (i * i % 1009) as f64)
            .collect();
        let mut run = Run::new(&seeded_bugs_early_ticket, &input);
        run.blocks = u32::try_from(blocks).expect("few blocks");
        for seed in 0..4 {
            let (got, counters) = run
                .run_counting::<f64>(seed, 2 + 2 * blocks)
                .expect("no fault");
            let sum = input.iter().sum::<f64>();
            assert_eq!(got[..2], [sum, 2.0 * sum]);
            assert_eq!(counters[0], 0);
        }
    }
}

#[test]
fn a_scattered_reduction_equals_single_reductions() {
    let input = numbers(THREADS);
    for seed in 0..4 {
        let run = Run::new(&seeded_bugs_scatter, &input);
        let got = run.run::<f32>(seed, 33 * THREADS).expect("no fault");
        for (i, pair) in got[..32 * THREADS].chunks(2 * THREADS).enumerate() {
            let (scattered, reduced) = pair.split_at(THREADS);
            let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(scattered), bits(reduced), "value {i}");
        }
        for (thread, &any) in got[32 * THREADS..].iter().enumerate() {
            let last = thread / WARP == THREADS / WARP - 1;
            assert_eq!(any, f32::from(u8::from(last)), "thread {thread}");
        }
    }
}

/// Whether both are the same number, or both NaN.
fn same(got: f32, want: f32) -> bool {
    got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan()
}

#[test]
fn every_half_becomes_its_float() {
    let input: Vec<u16> = (0..=u16::MAX).collect();
    let mut run = Run::new(&seeded_bugs_widen, &input).count(input.len());
    run.blocks = 16;
    let got = run.run::<f32>(0, 2 * input.len()).expect("no fault");
    for (i, &bits) in input.iter().enumerate() {
        let (half, brain) = (got[i], got[input.len() + i]);
        assert!(
            same(half, f16::from_bits(bits).to_f32()),
            "f16 {bits:#06x}: {half:e}"
        );
        assert!(
            same(brain, bf16::from_bits(bits).to_f32()),
            "bf16 {bits:#06x}: {brain:e}"
        );
    }
}

#[test]
fn floats_become_the_nearest_halves() {
    // Numbers around every half, and around the middle between two halves, where ties go to even.
    let mut input = vec![
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        -f32::NAN,
        f32::MAX,
        f32::MIN,
    ];
    input.extend([0x7F80_0001, 0xFFBF_FFFF, 1, 0x8000_0001, 0x007F_FFFF].map(f32::from_bits));
    let neighbours =
        |x: f32| [-1i32, 0, 1].map(|step| f32::from_bits(x.to_bits().wrapping_add_signed(step)));
    let mut around = |below: f32, above: f32| {
        input.extend(neighbours(below));
        input.extend(neighbours((below + above) * 0.5));
    };
    for bits in 0..0x7C00u16 {
        for sign in [0, 0x8000] {
            let [a, b] = [bits, bits + 1].map(|bits| f16::from_bits(bits | sign).to_f32());
            // The neighbour above the largest f16 would be 65536.
            let b = if b.is_finite() {
                b
            } else {
                65536f32.copysign(b)
            };
            around(a, b);
        }
    }
    for bits in 0..0x7F7Fu16 {
        for sign in [0, 0x8000] {
            let [a, b] = [bits, bits + 1].map(|bits| bf16::from_bits(bits | sign).to_f32());
            input.extend(neighbours(a));
            // The sum of the numbers may overflow. The sum of their bits does not.
            input.extend(neighbours(f32::from_bits(
                a.to_bits().midpoint(b.to_bits()),
            )));
        }
    }
    let mut run = Run::new(&seeded_bugs_narrow, &input).count(input.len());
    run.blocks = 16;
    let got = run.run::<u16>(0, 2 * input.len()).expect("no fault");
    for (i, &x) in input.iter().enumerate() {
        let (half, brain) = (
            f16::from_bits(got[i]),
            bf16::from_bits(got[input.len() + i]),
        );
        assert!(
            same(half.to_f32(), f16::from_f32(x).to_f32()),
            "{x:e} as f16: {half:e}"
        );
        assert!(
            same(brain.to_f32(), bf16::from_f32(x).to_f32()),
            "{x:e} as bf16: {brain:e}"
        );
    }
}
