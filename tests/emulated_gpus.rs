//! Plans depend on the GPU: on its multiprocessors, its shared memory and its f64 rate. Are the
//! results right for the plans of real GPUs?

#![cfg(feature = "emulator")]

mod common;

use std::panic::catch_unwind;

use common::Input;
use common::cases::{self, Case};
use common::compare::relative_error;
use common::compare_to_reference::Comparison;
use common::tolerances::Tolerance;
use half::{bf16, f16};
use rayon::prelude::*;
use relata::{
    ApproximationErrors, Divergence, EmulatedGpu, Emulator, Family, GpuElement, InfoNce, KdKl,
    Logits, Loss, Reference, Rrd, Shapes,
};

const GPUS: [EmulatedGpu; 4] = [
    EmulatedGpu::A100,
    EmulatedGpu::H200,
    EmulatedGpu::B200,
    EmulatedGpu::Rtx4090,
];

/// The approximations of the GPU with the same place in `GPUS`. Every kind of tensor cores meets two
/// kinds of errors.
const ERRORS: [ApproximationErrors; 4] = [
    ApproximationErrors::Up,
    ApproximationErrors::Down,
    ApproximationErrors::Hashed(1),
    ApproximationErrors::Hashed(2),
];

/// Every case of the table, the n-th of them on one GPU in one type. Its approximations are as far
/// off as CUDA allows, and the tolerances are those of exact ones.
#[test]
fn kernels_agree_with_the_reference_on_every_gpu() {
    fn assert_right<T: GpuElement<Real = f32>>(case: &Case, nth: usize) {
        let emulator = Emulator::new().seed(3).gpu(GPUS[nth]);
        let emulator = emulator.approximation_errors(ERRORS[nth]);
        Comparison::<T, _>::of_case(&emulator, case)
            .keys_as_stored()
            .and_within(of_approximations(case))
            .assert();
    }
    let cases: Vec<(usize, Case)> = cases::tests().enumerate().collect();
    let failure = |(at, case): &(usize, Case)| {
        let all = || {
            for nth in 0..GPUS.len() {
                match (at + nth) % 3 {
                    0 => assert_right::<f32>(case, nth),
                    1 => assert_right::<f16>(case, nth),
                    _ => assert_right::<bf16>(case, nth),
                }
            }
        };
        let why = catch_unwind(all).err()?;
        let why = why.downcast_ref::<String>().cloned();
        Some(why.unwrap_or_else(|| case.name.clone()))
    };
    let failed: Vec<String> = cases.par_iter().filter_map(failure).collect();
    assert!(failed.is_empty(), "{failed:#?}");
}

/// What approximations may add to the tolerances. KD's divergences take three exponentials of each
/// class, each up to 2 units in the last place off.
fn of_approximations(case: &Case) -> Tolerance {
    let takes_three = match case.loss.spec().family {
        Family::Logits(Logits {
            student_temperature,
            teacher_temperature,
            divergence,
            ..
        }) => divergence != Divergence::Forward || student_temperature != teacher_temperature,
        _ => false,
    };
    let [loss, gradient] = if takes_three {
        [2e-6, 2.5e-6]
    } else {
        [0.0; 2]
    };
    Tolerance { loss, gradient }
}

/// On a large GPU a small batch cuts the keys into many splits. The key that weighs most lies in
/// the last of them, far above all others.
#[test]
fn a_key_in_any_of_many_splits_counts() {
    fn assert_right<T: GpuElement<Real = f32>>(tolerance: f64) {
        let (rows, dim, keys) = (4, 8, 64 * 140);
        for at in [0, keys / 2, keys - 1] {
            let mut input = Input::normal(11, Shapes::new(rows, dim, dim).with_queue(keys));
            // The key is the first row of the teacher.
            let (first, _) = input.teacher.split_at(dim);
            input.keys[at * dim..][..dim].copy_from_slice(first);
            let losses: [Loss; 2] = [
                Rrd {
                    student_temperature: 0.02,
                    teacher_temperature: 0.02,
                    ..Rrd::default()
                }
                .into(),
                InfoNce {
                    temperature: 0.02,
                    ..InfoNce::default()
                }
                .into(),
            ];
            for loss in losses {
                let want = input.evaluate::<T, _>(&Reference, loss);
                let emulator = Emulator::new().gpu(EmulatedGpu::H200);
                let got = input.evaluate::<T, _>(&emulator, loss);
                let label = format!("{loss} in {}, key {at}", T::DTYPE);
                let off = (got.loss - want.loss).abs() / want.loss.abs();
                assert!(off <= tolerance, "{label}: {} {}", got.loss, want.loss);
                let off = relative_error(&got.gradient, &want.gradient);
                assert!(off <= tolerance, "{label}: {off:e}");
            }
        }
    }
    assert_right::<f32>(2e-5);
    assert_right::<bf16>(5e-3);
}

/// The largest product lies so far above those of the first 128 splits that a weight relative to
/// theirs would overflow.
#[test]
fn the_largest_product_is_found_in_any_of_many_splits() {
    let (rows, dim, keys) = (4, 8, 64 * 512);
    let mut input = Input::normal(11, Shapes::new(rows, dim, dim).with_queue(keys));
    let first = input.teacher[..dim].to_vec();
    for key in input.keys.chunks_exact_mut(dim) {
        for (k, first) in key.iter_mut().zip(&first) {
            *k = 0.3 * *k - 2.0 * first;
        }
    }
    input.keys[(keys - 1) * dim..].copy_from_slice(&first);
    let loss = Rrd {
        student_temperature: 0.01,
        teacher_temperature: 0.01,
        ..Rrd::default()
    };
    let want = input.evaluate::<f32, _>(&Reference, loss);
    let got = input.evaluate::<f32, _>(&Emulator::new().gpu(EmulatedGpu::H200), loss);
    let off = (got.loss - want.loss).abs() / want.loss;
    assert!(off <= 2e-5, "{} {}", got.loss, want.loss);
    let off = relative_error(&got.gradient, &want.gradient);
    assert!(off <= 2e-5, "{off:e}");
}

/// More multiprocessors take more splits of the keys, and so the sums are cut in other places.
#[test]
fn the_gpu_decides_where_sums_are_cut() {
    let input = Input::normal(3, Shapes::new(4, 8, 8).with_queue(64 * 140));
    let gradient = |gpu| {
        let emulator = Emulator::new().gpu(gpu);
        input
            .evaluate::<f32, _>(&emulator, InfoNce::default())
            .gradient
    };
    assert_ne!(gradient(EmulatedGpu::Small), gradient(EmulatedGpu::H200));
}

/// Rows of a length at which the smaller GPUs keep a part of the row in shared memory only.
#[test]
fn kd_of_rows_that_do_not_fit_has_the_same_bits() {
    let evaluate = |gpu, classes| {
        let input = Input::normal(2, Shapes::new(3, classes, classes));
        input.evaluate::<f32, _>(&Emulator::new().gpu(gpu), KdKl::default())
    };
    for classes in [3000, 5120, 5121, 30_001] {
        let want = evaluate(EmulatedGpu::H200, classes);
        for gpu in GPUS {
            let got = evaluate(gpu, classes);
            assert_eq!(got.loss.to_bits(), want.loss.to_bits(), "{gpu:?} {classes}");
            common::compare::assert_same_bits("gradient", &got.gradient, &want.gradient);
        }
    }
}
