//! The CUDA kernels, run by the emulator: every case of the table in every element type against the
//! reference, under several schedules, which must not show in a single bit.

#![cfg(feature = "emulator")]

mod common;

use std::panic::catch_unwind;

use common::cases::{self, Case};
use common::compare::{assert_gradient, assert_loss, assert_same_bits, assert_zero};
use common::compare_to_reference::assert_many_rows_right;
use common::tolerances::{conditioning, tolerance};
use common::{Input, Random, cast};
use half::{bf16, f16};
use rayon::prelude::*;
use relata::{
    Emulator, Evaluation, GpuElement, KdKl, Loss, Reference, Rkd, RkdDistance, Rows, Shapes,
    relation_matrix, softmax,
};

/// Schedules. Under those that 4 divides, inputs lie on aligned addresses, under others not.
const SEEDS: [u64; 4] = [0, 1, 2, 4];

/// Those with keys have their own tests, in `emulator_attention.rs`: what rounding the keys costs is part
/// of the comparison.
fn without_keys(loss: &Loss) -> bool {
    !matches!(loss, Loss::Rrd(_) | Loss::InfoNce(_))
}

/// `evaluate` under every schedule: the same bits under all, wherever inputs lie.
fn under_all_schedules(
    name: &str,
    evaluate: impl Fn(&Emulator) -> Evaluation<f32>,
) -> Evaluation<f32> {
    let first = evaluate(&Emulator::new().seed(SEEDS[0]));
    for &seed in &SEEDS[1..] {
        let name = format!("{name}, seed {seed}");
        let again = evaluate(&Emulator::new().seed(seed));
        assert_same_bits(&name, &again.gradient, &first.gradient);
        assert_same_bits(&name, &[again.loss], &[first.loss]);
    }
    first
}

fn against_reference<T: GpuElement>(case: &Case) {
    let inputs = case.inputs::<T>();
    let name = format!("{} in {}", case.name, T::DTYPE);
    let want = inputs
        .problem
        .evaluate(&Reference, inputs.batch())
        .expect("a case that fits");
    let got = under_all_schedules(&name, |emulator| {
        let got = inputs.problem.evaluate(emulator, inputs.batch());
        got.unwrap_or_else(|error| panic!("{name}: {error}"))
    });
    let tolerance = tolerance(&case.loss, T::DTYPE);
    let conditioning = conditioning(case, T::DTYPE);
    let of_loss = tolerance.loss * conditioning.loss;
    assert_loss(&name, got.loss, want.loss, of_loss);
    let of_gradient = tolerance.gradient * conditioning.gradient;
    let dim = case.student_dim;
    assert_gradient(&name, &got.gradient, &want.gradient, dim, of_gradient);
}

#[test]
fn every_case_in_every_dtype() {
    let cases: Vec<Case> = cases::tests()
        .filter(|case| without_keys(&case.loss))
        .collect();
    assert!(cases.len() > 50, "{}", cases.len());
    // All that fail, not only the first: each has said why.
    let fails = |case: &&Case| {
        let all = || {
            against_reference::<f32>(case);
            against_reference::<f16>(case);
            against_reference::<bf16>(case);
        };
        catch_unwind(all).is_err()
    };
    let failed: Vec<&String> = cases
        .par_iter()
        .filter(fails)
        .map(|case| &case.name)
        .collect();
    assert!(failed.is_empty(), "{failed:#?}");
}

/// Rows of one element are ±1 once they are normalised, to the bit, and so is what lies on a line through the origin: duplicates.
#[test]
fn normalized_rows_of_one_line_coincide() {
    fn check<T: GpuElement>(n: usize, [dim, teacher_dim]: [usize; 2], loss: Rkd) {
        let mut input = Input::normal(4, Shapes::new(n, dim, teacher_dim));
        for (rows, dim) in [(&mut input.student, dim), (&mut input.teacher, teacher_dim)] {
            let (first, others) = rows.split_at_mut(dim);
            // Powers of two: the rows of half types stay on the line.
            for (i, row) in others.chunks_exact_mut(dim).enumerate().take(n / 2) {
                let factor = 2f64.powi(i as i32 % 9 - 4);
                row.iter_mut()
                    .zip(&*first)
                    .for_each(|(x, first)| *x = factor * first);
            }
        }
        let want = input.evaluate::<T, _>(&Reference, loss);
        let got = input.evaluate::<T, _>(&Emulator::new(), loss);
        let name = format!(
            "{loss:?}, {n} rows, {dim} to {teacher_dim}, in {}",
            T::DTYPE
        );
        assert_loss(&name, got.loss, want.loss, 3e-7);
        assert_gradient(&name, &got.gradient, &want.gradient, dim, 2e-6);
    }
    let normalized = Rkd {
        normalize: true,
        ..Rkd::default()
    };
    for (n, dims) in [(40, [6, 1]), (40, [1, 3]), (33, [40, 7]), (260, [9, 1])] {
        check::<f32>(n, dims, normalized);
        check::<f16>(n, dims, normalized);
        check::<bf16>(n, dims, normalized);
    }
}

#[test]
fn many_rows_in_every_dtype() {
    fn right<T: GpuElement>(case: &Case) {
        assert_many_rows_right::<T, _>(&Emulator::new(), case);
    }
    cases::many_rows().par_iter().for_each(|case| {
        right::<f32>(case);
        right::<f16>(case);
        right::<bf16>(case);
    });
}

/// More rows than go to the accurate path at once: the fast one, which the table takes in f32 alone. Fewer, of which the
/// relation has tiles of 12: rows and dimensions that fill none of them.
#[test]
fn rkd_of_many_rows_in_half_types() {
    fn check<T: GpuElement>(n: usize, dims: [usize; 2]) {
        let input = Input::normal(9, Shapes::new(n, dims[0], dims[1]));
        let loss = RkdDistance::default();
        let tolerance = tolerance(&loss.into(), T::DTYPE);
        let want = input.evaluate::<T, _>(&Reference, loss);
        let name = format!("{n} rows in {}", T::DTYPE);
        let got = under_all_schedules(&name, |emulator| input.evaluate::<T, _>(emulator, loss));
        assert_loss(&name, got.loss, want.loss, tolerance.loss);
        assert_gradient(
            &name,
            &got.gradient,
            &want.gradient,
            dims[0],
            tolerance.gradient,
        );
    }
    for (n, dims) in [(260, [6, 10]), (101, [137, 264])] {
        check::<f16>(n, dims);
        check::<bf16>(n, dims);
    }
}

/// Around a warp's 32, a block's 256, and the elements of 16 bytes; and a few odd ones.
const DIMS: [usize; 12] = [1, 2, 7, 8, 31, 255, 256, 257, 1000, 2047, 2048, 5003];

#[test]
fn kd_of_any_number_of_classes() {
    fn check<T: GpuElement>(n: usize, classes: usize) {
        let input = Input::normal(classes as u64, Shapes::new(n, classes, classes));
        let loss = KdKl::default();
        let name = format!("{n} x {classes} in {}", T::DTYPE);
        let want = input.evaluate::<T, _>(&Reference, loss);
        let got = under_all_schedules(&name, |emulator| input.evaluate::<T, _>(emulator, loss));
        assert_loss(&name, got.loss, want.loss, 1e-6);
        assert_gradient(&name, &got.gradient, &want.gradient, classes, 1e-6);
    }
    // Long rows, which are kept whole or in part, beginning anywhere between two boundaries of 16 bytes.
    for classes in DIMS.into_iter().chain([10_251, 21_003, 41_005]) {
        for n in [1, 3] {
            check::<f32>(n, classes);
            check::<f16>(n, classes);
            check::<bf16>(n, classes);
        }
    }
}

#[test]
fn kd_of_a_logit_that_is_not_finite_is_nan() {
    let shapes = Shapes::new(3, 300, 300);
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        for (student, at) in [(true, 0), (true, 450), (false, 299), (false, 899)] {
            let mut input = Input::normal(5, shapes);
            let side = if student {
                &mut input.student
            } else {
                &mut input.teacher
            };
            side[at] = bad;
            for seed in 0..2 {
                let emulator = Emulator::new().seed(seed);
                let got = input.evaluate::<f32, _>(&emulator, KdKl::default());
                assert!(got.loss.is_nan(), "{bad} at {at}: {}", got.loss);
                // The other rows have nothing to do with it.
                let row = at / 300;
                let other = (row + 1) % 3 * 300;
                assert!(
                    got.gradient[other..other + 300]
                        .iter()
                        .all(|g| g.is_finite())
                );
            }
        }
    }
}

#[test]
fn kd_of_the_teacher_itself_is_nothing() {
    let mut input = Input::normal(6, Shapes::new(3, 1000, 1000));
    input.student = input.teacher.clone();
    for temperature in [0.25, 4.0] {
        let emulator = Emulator::new();
        let got = input.evaluate::<f32, _>(&emulator, KdKl { temperature });
        assert_eq!(got.loss, 0.0);
        assert_zero("gradient", &got.gradient);
    }
}

#[test]
fn kd_of_logits_as_large_as_they_come() {
    // f16's largest is 65504: neither it nor differences of two may overflow.
    let mut random = Random::new(7);
    let mut input = Input::normal(7, Shapes::new(4, 70, 70));
    for logit in input.student.iter_mut().chain(&mut input.teacher) {
        *logit = 65504.0 * (2.0 * random.uniform() - 1.0);
    }
    (input.student[0], input.student[1]) = (65504.0, -65504.0);
    for temperature in [1.0, 4.0, 5e4] {
        let loss = KdKl { temperature };
        let want = input.evaluate::<f16, _>(&Reference, loss);
        let name = format!("T = {temperature}");
        let got = under_all_schedules(&name, |emulator| input.evaluate::<f16, _>(emulator, loss));
        assert_loss(&name, got.loss, want.loss, 1e-6);
        assert_gradient(&name, &got.gradient, &want.gradient, 70, 1e-5);
    }
}

#[test]
fn an_upstream_factor_scales_the_gradient_alone() {
    for loss in Loss::all().into_iter().filter(without_keys) {
        let input = Input::normal(8, Shapes::new(6, 20, 20));
        let problem = input.problem(loss);
        let once = input.run::<f32, _>(&Emulator::new(), &problem);
        let twice = input.run::<f32, _>(&Emulator::new(), &problem.upstream(2.0));
        assert_eq!(once.loss, twice.loss, "{loss}");
        let doubled: Vec<f32> = once.gradient.iter().map(|g| 2.0 * g).collect();
        assert_same_bits(loss.name(), &twice.gradient, &doubled);
    }
}

#[test]
fn softmax_of_any_size() {
    fn check<T: GpuElement>(n: usize, dim: usize, temperature: f64) {
        let input = Input::normal(dim as u64, Shapes::new(n, dim, 1));
        let data = cast::<T>(&input.student);
        let rows = Rows::new(&data, [n, dim]).expect("whole rows");
        let want = softmax(&Reference, rows, temperature).expect("a softmax");
        let name = format!("softmax {n} x {dim}, T = {temperature}, {}", T::DTYPE);
        let of = |seed: u64| softmax(&Emulator::new().seed(seed), rows, temperature);
        let first = of(0).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_gradient(&name, &first, &want, dim, 1e-6 + 1e-7 / temperature);
        for seed in 1..4 {
            assert_same_bits(&name, &of(seed).expect("a softmax"), &first);
        }
    }
    for dim in DIMS {
        for temperature in [0.05, 1.0, 20.0] {
            check::<f32>(3, dim, temperature);
            check::<f16>(1, dim, temperature);
            check::<bf16>(2, dim, temperature);
        }
    }
}

#[test]
fn relation_matrices_of_any_size() {
    use relata::Relation::{Cosine, Distance, Dot, SquaredDistance};
    fn check<T: GpuElement>(n: usize, dim: usize) {
        let input = Input::normal(n as u64, Shapes::new(n, dim, 1));
        let data = cast::<T>(&input.student);
        let rows = Rows::new(&data, [n, dim]).expect("whole rows");
        for relation in [Distance, SquaredDistance, Dot, Cosine] {
            let want = relation_matrix(&Reference, relation, rows).expect("a relation");
            let name = format!("{relation:?} of {n} x {dim} in {}", T::DTYPE);
            let of = |seed: u64| relation_matrix(&Emulator::new().seed(seed), relation, rows);
            let first = of(0).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_gradient(&name, &first, &want, n, 1e-6);
            assert_same_bits(&name, &of(4).expect("a relation"), &first);
            let misaligned = of(1).expect("a relation");
            assert_gradient(&name, &misaligned, &want, n, 1e-6);
            assert_same_bits(&name, &of(3).expect("a relation"), &misaligned);
        }
    }
    for [n, dim] in [
        [1, 1],
        [2, 5],
        [17, 64],
        [33, 8],
        [64, 31],
        [65, 130],
        [130, 3],
    ] {
        check::<f32>(n, dim);
        check::<f16>(n, dim);
        check::<bf16>(n, dim);
    }
}
