//! Approximations and tensor cores, as inexact as those of a GPU.

use half::f16;

use super::super::{ApproximationErrors, EmulatedGpu, Emulator};
use super::{Run, THREADS, seeded_bugs};

seeded_bugs!(seeded_bugs_functions, seeded_bugs_root, seeded_bugs_sum);

const SHAPES: [ApproximationErrors; 5] = [
    ApproximationErrors::None,
    ApproximationErrors::Up,
    ApproximationErrors::Down,
    ApproximationErrors::Hashed(1),
    ApproximationErrors::Hashed(2),
];

/// 2^x and ln x of each input.
fn functions(errors: ApproximationErrors, seed: u64, input: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let mut run = Run::new(&seeded_bugs_functions, input).count(input.len());
    run.emulator = Emulator::new().approximation_errors(errors);
    let mut powers = run.run::<f32>(seed, 2 * input.len()).expect("no fault");
    let logarithms = powers.split_off(input.len());
    (powers, logarithms)
}

/// By how many floats `got` is above the float nearest to `exact`.
fn steps(got: f32, exact: f64) -> i64 {
    let place = |x: f32| {
        let magnitude = i64::from(x.abs().to_bits());
        if x < 0.0 { -magnitude } else { magnitude }
    };
    place(got) - place(exact as f32)
}

#[test]
fn approximations_are_off_by_what_cuda_allows() {
    let input: Vec<f32> = (1..4000).map(|i| i as f32 * 0.031).collect();
    for errors in SHAPES {
        let (powers, logarithms) = functions(errors, 0, &input);
        // A CPU's library is off by a float at most, and seldom.
        for (most, got, exact) in [
            (2, &powers, f64::exp2 as fn(f64) -> f64),
            (1, &logarithms, f64::ln),
        ] {
            let off: Vec<i64> = input
                .iter()
                .zip(got)
                .map(|(&x, &got)| steps(got, exact(x.into())))
                .collect();
            let count = |wanted: i64| off.iter().filter(|&&off| off == wanted).count();
            assert!(off.iter().all(|off| off.abs() <= most + 1), "{errors:?}");
            let nearly_all = off.len() * 9 / 10;
            match errors {
                ApproximationErrors::None => assert!(count(0) > nearly_all),
                ApproximationErrors::Up => assert!(count(most) > nearly_all),
                ApproximationErrors::Down => assert!(count(-most) > nearly_all),
                ApproximationErrors::Hashed(_) => {
                    let share = off.len() / (2 * most as usize + 2);
                    assert!((-most..=most).all(|steps| count(steps) > share), "{off:?}");
                }
            }
        }
    }
}

#[test]
fn an_approximation_depends_on_its_argument_and_its_seed_alone() {
    let input: Vec<f32> = (0..200).map(|i| (i / 2) as f32 * -0.31).collect();
    let bits = |errors, seed| {
        let (powers, _) = functions(errors, seed, &input);
        powers.iter().map(|x| x.to_bits()).collect::<Vec<_>>()
    };
    let first = bits(ApproximationErrors::Hashed(1), 0);
    assert_eq!(bits(ApproximationErrors::Hashed(1), 1), first);
    assert_ne!(bits(ApproximationErrors::Hashed(2), 0), first);
    for pair in first.chunks_exact(2) {
        assert_eq!(pair[0], pair[1]);
    }
}

/// The results that the manual names, whatever the errors.
#[test]
fn special_arguments_have_exact_results() {
    let cases = [
        (0.0, 1.0),
        (-0.0, 1.0),
        // Subnormal arguments count as 0, and subnormal results are 0.
        (1e-40, 1.0),
        (-126.5, 0.0),
        (f32::NEG_INFINITY, 0.0),
        (f32::INFINITY, f32::INFINITY),
        (200.0, f32::INFINITY),
    ];
    let mut input: Vec<f32> = cases.map(|(x, _)| x).to_vec();
    input.extend([f32::NAN, 1.0]);
    for errors in SHAPES {
        let (powers, logarithms) = functions(errors, 0, &input);
        for ((x, want), got) in cases.iter().zip(&powers) {
            assert_eq!(got, want, "2^{x}, {errors:?}");
        }
        assert!(powers[cases.len()].is_nan());
        assert_eq!(logarithms[cases.len() + 1], 0.0);
        assert_eq!(logarithms[0], f32::NEG_INFINITY);
        assert!(logarithms[4].is_nan());
    }
}

/// Where 2^x is rounded to the nearest, the bug does not show.
#[test]
fn a_bound_that_an_approximation_does_not_keep() {
    let input = vec![-1e-7f32; THREADS];
    let right = |errors, bug| {
        let mut run = Run::new(&seeded_bugs_root, &input).bug(bug);
        run.emulator = Emulator::new().approximation_errors(errors);
        let got = run.run::<f32>(0, THREADS).expect("no fault");
        got.iter().all(|&holds| holds == 1.0)
    };
    assert!(SHAPES.into_iter().all(|errors| right(errors, 0)));
    assert!(right(ApproximationErrors::None, 1));
    assert!(!right(ApproximationErrors::Up, 1));
}

#[test]
fn tensor_cores_add_as_those_of_the_gpu() {
    let sum = |gpu, products: [f32; 16]| {
        let halves = products.map(f16::from_f32);
        let mut run = Run::new(&seeded_bugs_sum, &halves);
        run.emulator = Emulator::new().gpu(gpu);
        run.threads = 32;
        run.run::<f32>(0, 1).expect("no fault")[0]
    };
    let power = |exponent: i32| 2f32.powi(exponent);
    // A float at 4 has 2^-21 as its last bit, and one below 4 has 2^-22.
    let of = |first: f32, ninth: f32| {
        let mut products = [0.0; 16];
        (products[0], products[8]) = (first, ninth);
        products
    };
    for (products, ampere, hopper) in [
        // Hopper keeps 2^-23, Ampere does not.
        ([power(-23); 16], 4.0, 4.0 + power(-19)),
        (of(-power(-23), 0.0), 4.0, 4.0 - power(-22)),
        // Ampere cuts off the sum of the first eight products.
        (of(power(-22), power(-22)), 4.0, 4.0 + power(-21)),
        // Both cut off, and do not round.
        (of(3.0 * power(-23), 0.0), 4.0, 4.0),
        (of(-power(-22), 0.0), 4.0 - power(-22), 4.0 - power(-22)),
    ] {
        for (gpu, want) in [
            (EmulatedGpu::Small, ampere),
            (EmulatedGpu::A100, ampere),
            (EmulatedGpu::Rtx4090, ampere),
            (EmulatedGpu::H200, hopper),
            (EmulatedGpu::B200, hopper),
        ] {
            assert_eq!(sum(gpu, products), want, "{products:?} on {gpu:?}");
        }
    }
}
