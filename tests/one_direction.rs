//! With `normalize`, are rows on one line through the origin duplicates to RKD, on every device? At
//! length 1 they differ by their rounding. An angle at such a pair would be noise, and its gradient
//! noise divided by that distance.

mod common;

use common::compare::{assert_finite, assert_gradient, assert_loss, assert_zero};
use common::losses::rkd_losses;
use common::{Input, on_every_device};
use relata::{Cpu, DType, Device, Element, Loss, Reference, Rkd, Shapes};

const NORMALIZED: Rkd = Rkd {
    distance_weight: 1.0,
    angle_weight: 2.0,
    delta: 1.0,
    normalize: true,
};

/// Lengths that rows of one direction get. With elements of up to 31 all products have 8 bits, so
/// each type has them.
const LENGTHS: [f64; 5] = [3.0, 5.0, 1.0, 7.0, 6.0];

/// Rows of whole numbers from −31 to 31.
fn whole_numbers(seed: u64, shapes: Shapes) -> Input {
    let mut input = Input::normal(seed, shapes);
    for x in input.student.iter_mut().chain(&mut input.teacher) {
        *x = (*x * 9.0).round().clamp(-31.0, 31.0);
    }
    input
}

/// Makes each of these rows the first of them times a length.
fn line_up(rows: &mut [f64], dim: usize, of_one_line: &[usize], lengths: &[f64]) {
    let first = rows[of_one_line[0] * dim..][..dim].to_vec();
    for (&row, length) in of_one_line.iter().zip(lengths.iter().cycle()) {
        for (x, first) in rows[row * dim..][..dim].iter_mut().zip(&first) {
            *x = first * length;
        }
    }
}

/// The reference on exact duplicates: its gradient at `length` times a row is that at the row,
/// divided by `length`.
fn assert_as_of_duplicates<T: Element, D: Device<T>>(
    device: &D,
    input: &Input,
    lines: [&[usize]; 2],
    tolerance: f64,
) {
    let Shapes {
        student_dim: dim,
        teacher_dim,
        ..
    } = input.shapes;
    let (mut duplicates, mut scaled) = (input.clone(), input.clone());
    let sides = |input: &mut Input, lengths: &[f64]| {
        line_up(&mut input.student, dim, lines[0], lengths);
        line_up(&mut input.teacher, teacher_dim, lines[1], lengths);
    };
    sides(&mut duplicates, &[1.0]);
    sides(&mut scaled, &LENGTHS);
    for loss in rkd_losses(NORMALIZED) {
        let label = format!("{loss} on {} in {}", device.name(), T::DTYPE);
        let want = duplicates.evaluate::<T, _>(&Reference, loss);
        let got = scaled.evaluate::<T, _>(device, loss);
        assert_loss(&label, got.loss, want.loss, tolerance);
        let mut gradient: Vec<f64> = got.gradient.iter().map(|g| g.to_f64()).collect();
        for (&row, length) in lines[0].iter().zip(LENGTHS.iter().cycle()) {
            for g in &mut gradient[row * dim..][..dim] {
                *g *= length;
            }
        }
        assert_gradient(&label, &gradient, &want.gradient, dim, 10.0 * tolerance);
    }
}

fn tolerance<T: Element>() -> f64 {
    if T::DTYPE == DType::F64 { 1e-12 } else { 2e-6 }
}

#[test]
fn rows_of_one_direction_are_duplicates() {
    fn assert_right<T: Element, D: Device<T>>(device: &D) {
        let shapes = Shapes::new(9, 5, 3);
        let input = whole_numbers(1, shapes);
        for lines in [
            [&[0, 4, 6][..], &[1][..]],
            [&[0], &[2, 3, 8]],
            [&[1, 3, 5, 7], &[5, 1, 2]],
        ] {
            assert_as_of_duplicates::<T, _>(device, &input, lines, tolerance::<T>());
        }
    }
    on_every_device!(assert_right);
}

/// The first row is the last one of the line, and the rows are long: norms are long sums.
#[test]
fn long_rows_of_one_direction_are_duplicates() {
    fn assert_right<T: Element>() {
        let input = whole_numbers(2, Shapes::new(6, 3000, 1200));
        let lines = [&[5, 2, 0, 3][..], &[1, 4][..]];
        assert_as_of_duplicates::<T, _>(&Reference, &input, lines, tolerance::<T>());
        assert_as_of_duplicates::<T, _>(&Cpu, &input, lines, tolerance::<T>());
    }
    assert_right::<f64>();
    assert_right::<f32>();
}

// Too many rows for the small-batch kernels.
#[cfg(feature = "emulator")]
#[test]
fn many_rows_of_one_direction_are_duplicates() {
    let input = whole_numbers(3, Shapes::new(260, 5, 4));
    let lines = [&[7, 200, 259, 100, 3][..], &[0, 1, 130][..]];
    assert_as_of_duplicates::<f32, _>(&relata::Emulator::new(), &input, lines, 2e-6);
}

/// Then all rows are equal, and no pair has a direction.
#[test]
fn a_batch_on_one_line_has_no_gradient() {
    fn assert_nothing<T: Element, D: Device<T>>(device: &D) {
        for dim in [2, 5, 40] {
            let mut input = whole_numbers(4, Shapes::new(5, dim, 3));
            line_up(&mut input.student, dim, &[0, 1, 2, 3, 4], &LENGTHS);
            let mut equal = input.clone();
            line_up(&mut equal.student, dim, &[0, 1, 2, 3, 4], &[1.0]);
            for loss in rkd_losses(NORMALIZED) {
                let label = format!("{loss} on {} in {}, {dim}", device.name(), T::DTYPE);
                let got = input.evaluate::<T, _>(device, loss);
                let want = equal.evaluate::<T, _>(&Reference, loss);
                assert_loss(&label, got.loss, want.loss, tolerance::<T>());
                assert_zero(&label, &got.gradient);
            }
        }
    }
    on_every_device!(assert_nothing);
}

/// Rows that `T` has rounded on their way to one line are duplicates too, but half types, whose
/// rounding is a distance that f32 holds.
#[test]
fn rows_rounded_to_one_direction_are_duplicates() {
    fn assert_right<T: Element, D: Device<T>>(device: &D) {
        let mut input = Input::normal(5, Shapes::new(7, 64, 9));
        let (first, others) = input.student.split_at_mut(64);
        for (x, first) in others.iter_mut().zip(first) {
            // In the type itself: f64 would round only once.
            let product = T::from_f64(*first).to_f64() * 0.7;
            *x = product;
        }
        let got = input.evaluate::<T, _>(device, angle());
        let mut equal = input.clone();
        equal.student.copy_within(..64, 64);
        let want = equal.evaluate::<T, _>(&Reference, angle());
        let label = format!("{} in {}", device.name(), T::DTYPE);
        assert_loss(&label, got.loss, want.loss, tolerance::<T>());
        assert_finite(&label, &got.gradient);
    }
    assert_right::<f64, _>(&Reference);
    assert_right::<f64, _>(&Cpu);
    assert_right::<f32, _>(&Reference);
    assert_right::<f32, _>(&Cpu);
    #[cfg(feature = "emulator")]
    assert_right::<f32, _>(&relata::Emulator::new());
}

fn angle() -> Loss {
    rkd_losses(NORMALIZED)[1]
}

/// A small spread that the type of the rows holds is none of rounding.
#[test]
fn directions_that_differ_are_not_duplicates() {
    fn assert_apart<T: Element, D: Device<T>>(device: &D, spread: f64) {
        let mut input = Input::normal(6, Shapes::new(7, 16, 9));
        let (first, others) = input.student.split_at_mut(16);
        for (x, first) in others[..16].iter_mut().zip(first) {
            *x = *first + spread * *x;
        }
        let mut equal = input.clone();
        equal.student.copy_within(..16, 16);
        let apart = input.evaluate::<T, _>(device, angle());
        let equal = equal.evaluate::<T, _>(device, angle());
        let label = format!("{} in {}", device.name(), T::DTYPE);
        let difference = (apart.loss - equal.loss).abs() / equal.loss;
        assert!(difference > 1e-3, "{label}: {difference:e}");
        // The gradient of the pair is 1/spread times as large as the others.
        let (apart, equal) = (apart.gradient_norm(), equal.gradient_norm());
        assert!(
            apart > 1e-3 / spread * equal,
            "{label}: {apart:e}, {equal:e}"
        );
    }
    for spread in [1e-3, 1e-7, 1e-12] {
        assert_apart::<f64, _>(&Reference, spread);
        assert_apart::<f64, _>(&Cpu, spread);
    }
    for spread in [1e-3, 3e-6] {
        assert_apart::<f32, _>(&Reference, spread);
        assert_apart::<f32, _>(&Cpu, spread);
        #[cfg(feature = "emulator")]
        assert_apart::<f32, _>(&relata::Emulator::new(), spread);
    }
}
