//! The CUDA kernels in the emulator: every case of the table in every element type against the
//! reference, under several schedules, which must not change a single bit.

#![cfg(feature = "emulator")]

mod common;

use std::panic::catch_unwind;

use common::cases::{self, Case};
use common::compare::{assert_gradient, assert_same_bits, assert_zero};
use common::compare_to_reference::{Comparison, assert_many_rows_right};
use common::{Input, Random, cast};
use half::{bf16, f16};
use rayon::prelude::*;
use relata::{
    Emulator, Family, GpuElement, KdKl, Loss, Reference, Rkd, RkdAngle, RkdDistance, Rows, Shapes,
    relation_matrix, softmax,
};

/// Schedules. A seed that 4 divides puts inputs and gradient on aligned addresses. The first of the
/// others shifts all three, and the second shifts all but the student.
const SEEDS: [u64; 4] = [0, 1, 2, 4];

/// Schedules that shift the gradient alone, the teacher alone and the student alone.
const ONE_SHIFTED: [u64; 3] = [5, 6, 7];

/// Losses with keys have their own tests, in `emulator_attention/`: there the comparison accounts
/// for the rounding of the keys.
fn has_no_keys(loss: &Loss) -> bool {
    !matches!(loss.spec().family, Family::Contrastive(_))
}

/// Asserts that the kernels are right, and give the same bits under every schedule and wherever the
/// inputs lie.
fn assert_right_under_all_schedules<T: GpuElement>(comparison: &Comparison<'_, T, Emulator>) {
    let evaluate = |seed| comparison.inputs.evaluate(&Emulator::new().seed(seed));
    let first = evaluate(SEEDS[0]);
    for &seed in &SEEDS[1..] {
        let name = format!("{}, seed {seed}", comparison.name);
        let again = evaluate(seed);
        assert_same_bits(&name, &again.gradient, &first.gradient);
        assert_same_bits(&name, &[again.loss], &[first.loss]);
    }
    comparison.assert_right(&first);
}

fn assert_case_right<T: GpuElement>(case: &Case) {
    assert_right_under_all_schedules(&Comparison::<T, _>::of_case(&Emulator::new(), case));
}

#[test]
fn kernels_agree_with_the_reference_on_every_case_in_every_dtype() {
    let cases: Vec<Case> = cases::tests()
        .filter(|case| has_no_keys(&case.loss))
        .collect();
    assert!(cases.len() > 50, "{}", cases.len());
    // Reports all failures, not only the first: each one has printed its reason.
    let fails = |case: &&Case| {
        let all = || {
            assert_case_right::<f32>(case);
            assert_case_right::<f16>(case);
            assert_case_right::<bf16>(case);
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

/// Normalised rows of one element are ±1, to the bit. So rows on one line through the origin become
/// duplicates.
#[test]
fn rkd_takes_normalized_rows_of_one_line_for_duplicates() {
    fn assert_right<T: GpuElement>(n: usize, [dim, teacher_dim]: [usize; 2], loss: Rkd) {
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
        let name = format!("{loss:?}, {n} rows, {dim} to {teacher_dim}");
        let inputs = input.inputs::<T>(&input.problem(loss));
        let emulator = Emulator::new();
        let comparison = Comparison::new(&emulator, &name, inputs);
        comparison.within(3e-7, 2e-6).assert();
    }
    let normalized = Rkd {
        normalize: true,
        ..Rkd::default()
    };
    for (n, dims) in [(40, [6, 1]), (40, [1, 3]), (33, [40, 7]), (260, [9, 1])] {
        assert_right::<f32>(n, dims, normalized);
        assert_right::<f16>(n, dims, normalized);
        assert_right::<bf16>(n, dims, normalized);
    }
}

/// All cosines of a line are ±1. Their derivatives would be rounding errors.
#[test]
fn rkd_angle_of_a_line_has_no_gradient() {
    for n in [13, 40] {
        let input = Input::normal(6, Shapes::new(n, 1, 3));
        let got = input.evaluate::<f32, _>(&Emulator::new(), RkdAngle::default());
        let want = input.evaluate::<f32, _>(&Reference, RkdAngle::default());
        assert!((got.loss - want.loss).abs() <= 1e-6 * want.loss, "{n}");
        assert_zero("the gradient", &got.gradient);
    }
}

#[test]
fn kernels_agree_with_the_cpu_on_many_rows_in_every_dtype() {
    fn right<T: GpuElement>(case: &Case) {
        assert_many_rows_right::<T, _>(&Emulator::new(), case);
    }
    cases::many_rows().par_iter().for_each(|case| {
        right::<f32>(case);
        right::<f16>(case);
        right::<bf16>(case);
    });
}

/// 260 rows are too many for the small-batch kernels, so the fast path takes them; the table has
/// that in f32 alone. 101 rows are a batch whose relation has tiles of 12, and neither rows nor
/// dimensions fill the tiles.
#[test]
fn rkd_distance_of_large_batches_is_right_in_half_types() {
    fn assert_right<T: GpuElement>(n: usize, dims: [usize; 2]) {
        let input = Input::normal(9, Shapes::new(n, dims[0], dims[1]));
        let loss = RkdDistance::default();
        let inputs = input.inputs::<T>(&input.problem(loss));
        let emulator = Emulator::new();
        let comparison = Comparison::new(&emulator, &format!("{n} rows"), inputs);
        assert_right_under_all_schedules(&comparison);
    }
    for (n, dims) in [(260, [6, 10]), (101, [137, 264])] {
        assert_right::<f16>(n, dims);
        assert_right::<bf16>(n, dims);
    }
}

/// Near a warp's 32 threads, a block's 256, and the elements of 16 bytes; and odd ones.
const DIMS: [usize; 12] = [1, 2, 7, 8, 31, 255, 256, 257, 1000, 2047, 2048, 5003];

#[test]
fn kd_is_right_for_any_number_of_classes() {
    fn assert_right<T: GpuElement>(n: usize, classes: usize) {
        let input = Input::normal(classes as u64, Shapes::new(n, classes, classes));
        let loss = KdKl::default();
        let inputs = input.inputs::<T>(&input.problem(loss));
        let emulator = Emulator::new();
        let comparison = Comparison::new(&emulator, &format!("{n} x {classes}"), inputs);
        assert_right_under_all_schedules(&comparison.within(1e-6, 1e-6));
    }
    // The kernel keeps long rows whole or in part. They start anywhere between two multiples of 16
    // bytes.
    for classes in DIMS.into_iter().chain([10_251, 21_003, 41_005]) {
        for n in [1, 3] {
            assert_right::<f32>(n, classes);
            assert_right::<f16>(n, classes);
            assert_right::<bf16>(n, classes);
        }
    }
}

/// KD's kernel reads and writes 16 bytes at once where student, teacher and gradient allow it.
#[test]
fn kd_asks_each_address_whether_it_is_aligned() {
    fn assert_same<T: GpuElement>(classes: usize) {
        let input = Input::normal(12, Shapes::new(3, classes, classes));
        let inputs = input.inputs::<T>(&input.problem(KdKl::default()));
        let first = inputs.evaluate(&Emulator::new());
        for seed in ONE_SHIFTED {
            let name = format!("3 x {classes} in {}, seed {seed}", T::DTYPE);
            let again = inputs.evaluate(&Emulator::new().seed(seed));
            assert_same_bits(&name, &again.gradient, &first.gradient);
            assert_same_bits(&name, &[again.loss], &[first.loss]);
        }
    }
    for classes in [8, 257, 21_003] {
        assert_same::<f32>(classes);
        assert_same::<f16>(classes);
        assert_same::<bf16>(classes);
    }
}

#[test]
fn kd_of_a_logit_that_is_not_finite_is_nan() {
    let shapes = Shapes::new(3, 300, 300);
    // Logits of −∞: tests/masked_logits.rs
    for bad in [f64::NAN, f64::INFINITY] {
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
                // The gradients of the other rows do not depend on that logit.
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
fn kd_of_the_teacher_itself_is_zero() {
    let mut input = Input::normal(6, Shapes::new(3, 1000, 1000));
    input.student = input.teacher.clone();
    for temperature in [0.25, 4.0] {
        let emulator = Emulator::new();
        let got = input.evaluate::<f32, _>(&emulator, KdKl::new(temperature));
        assert_eq!(got.loss, 0.0);
        assert_zero("gradient", &got.gradient);
    }
}

#[test]
fn kd_is_right_for_the_largest_logits_of_f16() {
    // f16's largest is 65504: neither it nor differences of two may overflow.
    let mut random = Random::new(7);
    let mut input = Input::normal(7, Shapes::new(4, 70, 70));
    for logit in input.student.iter_mut().chain(&mut input.teacher) {
        *logit = 65504.0 * (2.0 * random.uniform() - 1.0);
    }
    (input.student[0], input.student[1]) = (65504.0, -65504.0);
    for temperature in [1.0, 4.0, 5e4] {
        let loss = KdKl::new(temperature);
        let inputs = input.inputs::<f16>(&input.problem(loss));
        let emulator = Emulator::new();
        let comparison = Comparison::new(&emulator, &format!("T = {temperature}"), inputs);
        assert_right_under_all_schedules(&comparison.within(1e-6, 1e-5));
    }
}

#[test]
fn upstream_factor_scales_only_the_gradient() {
    for loss in common::losses::against_teachers()
        .into_iter()
        .filter(has_no_keys)
    {
        let input = Input::normal(8, Shapes::new(6, 20, 20));
        let problem = input.problem(loss);
        let once = input.run::<f32, _>(&Emulator::new(), &problem);
        let twice = input.run::<f32, _>(&Emulator::new(), &problem.with_upstream(2.0));
        assert_eq!(once.loss, twice.loss, "{loss}");
        let doubled: Vec<f32> = once.gradient.iter().map(|g| 2.0 * g).collect();
        assert_same_bits(loss.name(), &twice.gradient, &doubled);
    }
}

#[test]
fn softmax_is_right_for_any_size() {
    fn assert_right<T: GpuElement>(n: usize, dim: usize, temperature: f64) {
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
            assert_right::<f32>(3, dim, temperature);
            assert_right::<f16>(1, dim, temperature);
            assert_right::<bf16>(2, dim, temperature);
        }
    }
}

#[test]
fn relation_matrices_are_right_for_any_size() {
    use relata::Relation::{Cosine, Distance, Dot, PositiveCosine, ShiftedCosine, SquaredDistance};
    fn assert_right<T: GpuElement>(n: usize, dim: usize) {
        let input = Input::normal(n as u64, Shapes::new(n, dim, 1));
        let data = cast::<T>(&input.student);
        let rows = Rows::new(&data, [n, dim]).expect("whole rows");
        for relation in [
            Distance,
            SquaredDistance,
            Dot,
            Cosine,
            PositiveCosine,
            ShiftedCosine,
        ] {
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
        assert_right::<f32>(n, dim);
        assert_right::<f16>(n, dim);
        assert_right::<bf16>(n, dim);
    }
}

#[test]
fn distances_are_right_if_their_squares_leave_the_range_of_f32() {
    use relata::Relation::Distance;
    fn assert_right<T: GpuElement>(n: usize, dim: usize) {
        for scale in [1e-37, 1e-25, 1e-22, 1e-16, 1e18, 1e25, 1e37] {
            let input = Input::normal(n as u64, Shapes::new(n, dim, 1));
            let scaled: Vec<f64> = input.student.iter().map(|x| x * scale).collect();
            let data = cast::<T>(&scaled);
            let rows = Rows::new(&data, [n, dim]).expect("whole rows");
            let want = relation_matrix(&Reference, Distance, rows).expect("distances");
            let got = relation_matrix(&Emulator::new(), Distance, rows).expect("distances");
            let name = format!("{n} x {dim} times {scale:e} in {}", T::DTYPE);
            assert_gradient(&name, &got, &want, n, 1e-6);
        }
    }
    for [n, dim] in [[5, 3], [66, 9]] {
        assert_right::<f32>(n, dim);
        assert_right::<bf16>(n, dim);
    }
}
