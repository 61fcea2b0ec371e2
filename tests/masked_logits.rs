//! Logits of −∞: classes that are masked, or that a model rules out.
//!
//! A class that is −∞ in student and teacher is masked. Where the teacher's logit alone is −∞, p is
//! 0. Where the student's alone is, the loss is +∞ and the row's gradient NaN.

mod common;

use common::compare::relative_error;
use common::on_every_device;
use relata::{
    Batch, Cpu, DType, Device, Element, Error, Evaluation, KdKl, Problem, Reference, Result, Rows,
    softmax,
};

const MASKED: f64 = f64::NEG_INFINITY;

/// A device's own rounding, far above it.
fn tolerance<T: Element>() -> f64 {
    if T::DTYPE == DType::F64 { 1e-12 } else { 1e-5 }
}

fn evaluate<T: Element, D: Device<T>>(
    device: &D,
    loss: KdKl,
    [x, y]: [&[f64]; 2],
    classes: usize,
    checked: bool,
) -> Result<Evaluation<D::Gradient>> {
    let [x, y] = [x, y].map(|rows| rows.iter().map(|&l| T::from_f64(l)).collect::<Vec<T>>());
    let shape = [x.len() / classes, classes];
    let [x, y] = [&x, &y].map(|rows| Rows::new(rows, shape).unwrap());
    let batch = Batch::new(x, y);
    Problem::new(loss, batch.shapes())?
        .with_checked(checked)
        .evaluate(device, batch)
}

fn kd<T: Element, D: Device<T>>(
    device: &D,
    temperature: f64,
    rows: [&[f64]; 2],
    classes: usize,
) -> Evaluation<D::Gradient> {
    evaluate(device, KdKl::new(temperature), rows, classes, false).unwrap()
}

/// The gradient of a masked class is written, and is not what the memory held.
fn a_masked_gradient_is_written<T: Element, D: Device<T>>(device: &D) {
    let [x, y] = [[MASKED, 1.0, 2.0, MASKED], [MASKED, 3.0, 1.0, MASKED]]
        .map(|row| row.map(|l| T::from_f64(l)));
    let [x, y] = [&x, &y].map(|row| Rows::new(row, [1, 4]).unwrap());
    let problem = Problem::new(KdKl::default(), Batch::new(x, y).shapes()).unwrap();
    let mut gradient = vec![D::Gradient::from_f64(f64::NAN); 4];
    problem
        .evaluate_into(device, Batch::new(x, y), &mut gradient)
        .unwrap();
    let is_zero: Vec<bool> = gradient.iter().map(|g| g.to_f64() == 0.0).collect();
    let label = format!("{} in {}: {gradient:?}", device.name(), T::DTYPE);
    assert_eq!(is_zero, [true, false, false, true], "{label}");
}

#[test]
fn the_gradient_of_a_masked_class_is_written() {
    on_every_device!(a_masked_gradient_is_written);
}

/// Loss and gradient against values of the definition with 40 digits (mpmath).
#[track_caller]
fn assert_values<T: Element, D: Device<T>>(
    device: &D,
    temperature: f64,
    rows: [&[f64]; 2],
    loss: f64,
    gradient: &[f64],
) {
    let got = kd::<T, D>(device, temperature, rows, 3);
    let label = format!("{} in {}: {got:?}", device.name(), T::DTYPE);
    assert!(
        (got.loss - loss).abs() <= tolerance::<T>() * loss,
        "{label}"
    );
    assert!(
        relative_error(&got.gradient, gradient) <= tolerance::<T>(),
        "{label}"
    );
    for (got, want) in got.gradient.iter().zip(gradient) {
        if *want == 0.0 {
            assert_eq!(got.to_f64(), 0.0, "{label}");
        }
    }
}

fn a_masked_class<T: Element, D: Device<T>>(device: &D) {
    let rows: [&[f64]; 2] = [
        &[MASKED, 1.0, 2.0, 0.0, 1.0, -1.0],
        &[MASKED, 2.0, 1.0, 1.0, 0.0, 1.0],
    ];
    assert_values::<T, D>(
        device,
        1.0,
        rows,
        0.559_661_154_451_865,
        &[
            0.0,
            -0.23105857863000488,
            0.23105857863000488,
            -0.08879516359836027,
            0.25493927613892914,
            -0.16614411254056887,
        ],
    );
    assert_values::<T, D>(
        device,
        4.0,
        rows,
        0.625_929_658_913_531,
        &[
            0.0,
            -0.24870600354319242,
            0.24870600354319242,
            -0.06674326304699198,
            0.27792777251272605,
            -0.21118450946573407,
        ],
    );
}

#[test]
fn a_masked_class_counts_in_no_sum() {
    on_every_device!(a_masked_class);
}

fn a_class_that_the_teacher_excludes<T: Element, D: Device<T>>(device: &D) {
    assert_values::<T, D>(
        device,
        2.0,
        [
            &[0.5, 1.0, 2.0, 0.0, 1.0, -1.0],
            &[MASKED, 2.0, 1.0, 1.0, MASKED, 1.0],
        ],
        2.234_684_807_795_875,
        &[
            0.22721977301778058,
            -0.330_703_367_473_004_8,
            0.10348359445522423,
            -0.1928041142815016,
            0.506_480_391_055_654,
            -0.31367627677415242,
        ],
    );
}

#[test]
fn a_class_that_the_teacher_excludes_has_no_probability() {
    on_every_device!(a_class_that_the_teacher_excludes);
}

/// Rows of numbers, every second one of `student` near its teacher.
fn numbers(rows: usize, classes: usize) -> [Vec<f64>; 2] {
    let number = |at: usize, seed: f64| ((at as f64 + seed) * 12.9898).sin() * 3.0;
    let teacher: Vec<f64> = (0..rows * classes).map(|at| number(at, 0.3)).collect();
    let student = teacher.iter().enumerate().map(|(at, y)| {
        let size = if (at / classes).is_multiple_of(2) {
            1.0
        } else {
            1e-2
        };
        y + size * number(at, 1000.5)
    });
    [student.collect(), teacher]
}

/// Which classes of a row are masked: runs at its beginning and end, each third one, all but one.
fn masks(classes: usize) -> Vec<Vec<bool>> {
    let of = |masked: &dyn Fn(usize) -> bool| (0..classes).map(masked).collect();
    vec![
        of(&|c| c < classes / 2),
        of(&|c| c >= classes.div_ceil(2)),
        of(&|c| c % 3 == 1 || c == 0),
        of(&|c| c != classes / 2),
        of(&|c| c != 0),
    ]
}

/// A batch with masked classes has the loss and the gradient of the batch without them.
fn masks_leave_the_other_classes<T: Element, D: Device<T>>(device: &D) {
    for classes in [2, 3, 7, 16, 33, 130, 1000, 5003] {
        for masked in masks(classes) {
            let [student, teacher] = numbers(2, classes);
            let with = |rows: &[f64]| -> Vec<f64> {
                let classes = masked.iter().cycle();
                let rows = rows.iter().zip(classes);
                rows.map(|(&l, &masked)| if masked { MASKED } else { l })
                    .collect()
            };
            let without = |rows: &[f64]| -> Vec<f64> {
                let kept = rows.iter().zip(masked.iter().cycle());
                kept.filter(|&(_, &masked)| !masked)
                    .map(|(&l, _)| l)
                    .collect()
            };
            let kept = masked.iter().filter(|&&masked| !masked).count();
            if kept == 0 {
                continue;
            }
            for temperature in [1.0, 4.0, 1e3] {
                let got = kd::<T, D>(
                    device,
                    temperature,
                    [&with(&student), &with(&teacher)],
                    classes,
                );
                // The kernels' sums are in another order with fewer classes, so the oracle is the
                // reference.
                let rounded: [Vec<f64>; 2] = [&student, &teacher].map(|rows| {
                    without(rows)
                        .iter()
                        .map(|&l| T::from_f64(l).to_f64())
                        .collect()
                });
                let want = kd::<f64, _>(&Reference, temperature, [&rounded[0], &rounded[1]], kept);
                let label = format!(
                    "{} in {}, {kept} of {classes} classes, T = {temperature}",
                    device.name(),
                    T::DTYPE
                );
                let gradient: Vec<f64> = got.gradient.iter().map(|&g| g.to_f64()).collect();
                for (g, &masked) in gradient.iter().zip(masked.iter().cycle()) {
                    assert!(!masked || *g == 0.0, "{label}: {g}");
                }
                let largest = want.gradient.iter().fold(0.0f64, |m, g| m.max(g.abs()));
                // A kernel's gradient is q − p, rounded.
                let rounding = 3e-7 * temperature;
                let exact = T::DTYPE == DType::F64;
                let allowed = if exact {
                    1e-12 * largest
                } else {
                    rounding + 1e-5 * largest
                };
                for (got, want) in without(&gradient).iter().zip(&want.gradient) {
                    assert!(
                        (got - want).abs() <= allowed,
                        "{label}: {got:e}, want {want:e}"
                    );
                }
                let off = (got.loss - want.loss).abs();
                // One class has a loss of 0, but for rounding.
                let nothing = 1e-20 * temperature.powi(2);
                assert!(
                    off <= tolerance::<T>() * want.loss + nothing,
                    "{label}: {} {}",
                    got.loss,
                    want.loss
                );
            }
        }
    }
}

#[test]
fn masks_leave_the_other_classes_as_they_are() {
    on_every_device!(masks_leave_the_other_classes);
}

/// On the CPU the masked row is the row without those classes, bit for bit.
#[test]
fn the_cpu_computes_the_row_without_its_masked_classes() {
    let [x, y] = [
        [
            0.5f32,
            f32::NEG_INFINITY,
            2.0,
            -1.0,
            f32::NEG_INFINITY,
            0.25,
        ],
        [
            1.5f32,
            f32::NEG_INFINITY,
            0.5,
            -2.0,
            f32::NEG_INFINITY,
            1.25,
        ],
    ];
    let short = |row: &[f32; 6]| [row[0], row[2], row[3], row[5]];
    let evaluate = |x: &[f32], y: &[f32]| {
        let [x, y] = [x, y].map(|row| Rows::new(row, [1, row.len()]).unwrap());
        KdKl::default().evaluate(&Cpu, x, y).unwrap()
    };
    let got = evaluate(&x, &y);
    let want = evaluate(&short(&x), &short(&y));
    assert_eq!(got.loss.to_bits(), want.loss.to_bits());
    let gradient: [f32; 6] = got.gradient.clone().try_into().unwrap();
    assert_eq!(
        short(&gradient).map(f32::to_bits).to_vec(),
        want.gradient
            .iter()
            .map(|g| g.to_bits())
            .collect::<Vec<_>>()
    );
    assert_eq!([gradient[1], gradient[4]], [0.0; 2]);
}

/// What a row of three classes makes of the loss, beside a row that is as it should be.
fn hostile_rows<T: Element, D: Device<T>>(device: &D) {
    let nan = f64::NAN;
    let infinite = f64::INFINITY;
    // Student, teacher, loss: +∞, NaN, or 0 for a row that adds nothing.
    let cases = [
        ([MASKED, 1.0, 2.0], [0.0, 2.0, 1.0], infinite),
        // A probability that is too small for any type, but is not 0.
        ([1.0, MASKED, 2.0], [3e4, -3e4, 0.0], infinite),
        ([MASKED; 3], [1.0, 2.0, 3.0], infinite),
        ([MASKED; 3], [MASKED; 3], 0.0),
        // The teacher has no distribution.
        ([1.0, 2.0, 3.0], [MASKED; 3], nan),
        ([1.0, MASKED, 3.0], [MASKED; 3], nan),
        ([nan, 1.0, 2.0], [0.0, 1.0, 2.0], nan),
        ([0.0, 1.0, 2.0], [nan, 1.0, 2.0], nan),
        ([0.0, 1.0, 2.0], [infinite, 1.0, 2.0], nan),
        ([infinite, 1.0, 2.0], [0.0, 1.0, 2.0], nan),
        ([nan, MASKED, 2.0], [0.0, MASKED, 2.0], nan),
        // NaN counts for more than +∞.
        ([MASKED, 1.0, nan], [0.0, 2.0, 1.0], nan),
        ([MASKED, 1.0, 2.0], [0.0, infinite, 1.0], nan),
        ([MASKED, infinite, 2.0], [MASKED, infinite, 1.0], nan),
    ];
    let good = [[0.5, 1.0, -1.0], [1.0, 0.0, 0.25]];
    let alone = kd::<T, D>(device, 2.0, [&good[0], &good[1]], 3);
    for (student, teacher, want) in cases {
        let rows = [[good[0], student].concat(), [good[1], teacher].concat()];
        let got = kd::<T, D>(device, 2.0, [&rows[0], &rows[1]], 3);
        let label = format!(
            "{} in {}, {student:?} {teacher:?}: {got:?}",
            device.name(),
            T::DTYPE
        );
        let gradient: Vec<f64> = got.gradient.iter().map(|&g| g.to_f64()).collect();
        if want == 0.0 {
            let half = 0.5 * alone.loss;
            assert!((got.loss - half).abs() <= 1e-6 * half, "{label}");
            assert_eq!(gradient[3..], [0.0; 3], "{label}");
        } else {
            let is_right = if want.is_nan() {
                got.loss.is_nan()
            } else {
                got.loss == want
            };
            assert!(is_right, "{label}");
            assert!(gradient[3..].iter().all(|g| g.is_nan()), "{label}");
        }
    }
}

#[test]
fn what_a_row_rules_out_is_an_infinite_loss() {
    on_every_device!(hostile_rows);
}

fn softmax_of_masked<T: Element, D: Device<T>>(device: &D) {
    for classes in [1, 2, 5, 300, 1000] {
        for masked in masks(classes) {
            let [rows, _] = numbers(1, classes);
            let with = rows.iter().zip(&masked);
            let with: Vec<T> = with
                .map(|(&l, &masked)| T::from_f64(if masked { MASKED } else { l }))
                .collect();
            let without: Vec<f64> = with
                .iter()
                .map(|l| l.to_f64())
                .filter(|l| l.is_finite())
                .collect();
            let got = softmax(device, Rows::new(&with, [1, classes]).unwrap(), 2.0).unwrap();
            let got: Vec<f64> = got.iter().map(|&p| p.to_f64()).collect();
            let label = format!("{} in {}, {classes}", device.name(), T::DTYPE);
            if without.is_empty() {
                assert!(got.iter().all(|p| p.is_nan()), "{label}");
                continue;
            }
            let shape = [1, without.len()];
            let want = softmax(&Reference, Rows::new(&without, shape).unwrap(), 2.0).unwrap();
            let mut want = want.into_iter();
            for (got, &masked) in got.iter().zip(&masked) {
                let want = if masked { 0.0 } else { want.next().unwrap() };
                assert!((got - want).abs() <= 1e-6 * want, "{label}: {got} {want}");
            }
        }
    }
}

#[test]
fn a_masked_class_has_no_probability() {
    on_every_device!(softmax_of_masked);
}

/// The checked mode takes masks, and refuses what would make the loss NaN or infinite.
#[test]
fn the_checked_mode_knows_masks() {
    let check = |x: [f64; 4], y: [f64; 4]| {
        evaluate::<f64, _>(&Cpu, KdKl::default(), [&x, &y], 2, true).map(|e| e.loss)
    };
    assert!(check([MASKED, 1.0, 0.0, 1.0], [MASKED, 2.0, 1.0, MASKED]).is_ok());
    assert!(check([0.0, 1.0, MASKED, MASKED], [0.0, 2.0, MASKED, MASKED]).is_ok());
    let refused = |x, y, want: &str| match check(x, y) {
        Err(error @ Error::NotFinite { .. }) => assert_eq!(error.to_string(), want),
        other => panic!("{other:?}"),
    };
    refused(
        [0.0, 1.0, MASKED, 1.0],
        [0.0, 2.0, 1.0, 2.0],
        "student: expected finite values, got -inf at row 1, column 0",
    );
    refused(
        [0.0, 1.0, 0.0, 1.0],
        [0.0, 2.0, MASKED, MASKED],
        "teacher: expected finite values, got -inf at row 1, column 0",
    );
    refused(
        [0.0, f64::INFINITY, 0.0, 1.0],
        [0.0; 4],
        "student: expected finite values, got inf at row 0, column 1",
    );
    refused(
        [0.0; 4],
        [0.0, f64::NAN, 0.0, 1.0],
        "teacher: expected finite values, got NaN at row 0, column 1",
    );
}
