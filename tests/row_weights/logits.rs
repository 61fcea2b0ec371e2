//! Weights of rows, losses of rows, and classes that are left out, of the losses of logits.

use relata::{
    Batch, DType, Device, Element, Error, Evaluation, Family, KdKl, Loss, Problem, Reference,
    RkdDistance, Rows, Shapes, check,
};

use super::common::compare::{assert_gradient, assert_loss};
use super::common::losses::divergences;
use super::common::{Input, cast, on_every_device};
use super::{shares, weights};

/// What a device may be off by, and the loss of a row.
fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F64 => 1e-13,
        _ => 2e-6,
    }
}

/// Rows and classes: the smallest, and some whose rows are not aligned.
const SHAPES: [[usize; 2]; 6] = [[1, 1], [2, 3], [5, 17], [9, 64], [3, 1031], [2, 9001]];

fn evaluate<T: Element, D: Device<T>>(
    device: &D,
    loss: KdKl,
    [student, teacher]: [&[T]; 2],
    rows: usize,
    weights: Option<&[T::Real]>,
) -> Evaluation<D::Gradient> {
    let of = |data| Rows::new(data, [rows, data.len() / rows]).expect("whole rows");
    let mut batch = Batch::new(of(student), of(teacher));
    batch.row_weights = weights;
    let problem = Problem::new(loss, batch.shapes()).expect("accepted");
    let problem = problem.with_upstream(0.75);
    problem.evaluate_rows(device, batch).expect("evaluates")
}

/// Σ w ℓ/Σ w of single rows, by the reference.
fn weighted<T: Element>(
    loss: KdKl,
    [student, teacher]: [&[T]; 2],
    weights: &[f64],
) -> (f64, Vec<f64>, Vec<f64>) {
    let shares = shares(weights);
    let (mut value, mut losses, mut gradient) = (0.0, Vec::new(), Vec::new());
    let dims = [student, teacher].map(|rows| rows.len() / weights.len());
    for (row, &weight) in weights.iter().enumerate() {
        let rows = [student, teacher];
        let [x, y] = [0, 1].map(|of| &rows[of][row * dims[of]..][..dims[of]]);
        let single = evaluate(&Reference, loss, [x, y], 1, None);
        let counts = f64::from(u8::from(weight > 0.0));
        value += shares[row] * single.loss;
        losses.push(counts * single.loss);
        gradient.extend(single.gradient.iter().map(|g| shares[row] * g));
    }
    (value, losses, gradient)
}

fn kd_losses() -> Vec<KdKl> {
    let forward = KdKl::new(2.0);
    let others = divergences(forward).into_iter().map(|(_, loss)| loss);
    std::iter::once(forward).chain(others).collect()
}

fn assert_weights_are_shares_of_the_mean<T: Element, D: Device<T>>(device: &D) {
    for [rows, classes] in SHAPES {
        let input = Input::normal(rows as u64, Shapes::new(rows, classes, classes));
        let [student, teacher] = [cast::<T>(&input.student), cast::<T>(&input.teacher)];
        let both = [&student[..], &teacher[..]];
        let all = [weights(rows), vec![0.0; rows], vec![3.0; rows]];
        for (loss, weights) in kd_losses()
            .iter()
            .flat_map(|l| all.iter().map(move |w| (*l, w)))
        {
            let label = format!("{}, {rows}x{classes}, {loss:?}", device.name());
            let of_rows = cast::<T::Real>(weights);
            let got = evaluate(device, loss, both, rows, Some(&of_rows));
            let (value, losses, gradient) = weighted(loss, both, weights);
            let within = tolerance(D::Gradient::DTYPE);
            assert_loss(&label, got.loss, value, within);
            assert_gradient(&label, &got.gradient, &gradient, classes, within);
            assert_eq!(got.row_losses.len(), rows);
            for (got, want) in got.row_losses.iter().zip(losses) {
                assert_loss(&label, *got, want, within);
            }
        }
    }
}

fn assert_equal_weights_are_no_weights<T: Element, D: Device<T>>(device: &D) {
    // A power of two: a share is then exactly 1/N.
    let [rows, classes] = [8, 33];
    let input = Input::normal(4, Shapes::new(rows, classes, classes));
    let [student, teacher] = [cast::<T>(&input.student), cast::<T>(&input.teacher)];
    let equal = vec![T::Real::from_f64(0.7); rows];
    for loss in kd_losses() {
        let weighted = evaluate(device, loss, [&student, &teacher], rows, Some(&equal));
        let plain = evaluate(device, loss, [&student, &teacher], rows, None);
        let want: Vec<f64> = plain.gradient.iter().map(|g| g.to_f64()).collect();
        assert_gradient("gradient", &weighted.gradient, &want, classes, 1e-6);
        assert_loss("loss", weighted.loss, plain.loss, 1e-6);
    }
}

fn assert_a_row_of_weight_zero_may_hold_anything<T: Element, D: Device<T>>(device: &D) {
    let [rows, classes] = [3, 5];
    let input = Input::normal(5, Shapes::new(rows, classes, classes));
    for (bad_student, bad_teacher) in [
        (f64::NAN, 0.0),
        (0.0, f64::INFINITY),
        (f64::NEG_INFINITY, 1.0),
    ] {
        let [mut student, mut teacher] = [cast::<T>(&input.student), cast::<T>(&input.teacher)];
        student[classes] = T::from_f64(bad_student);
        teacher[classes] = T::from_f64(bad_teacher);
        let mask = cast::<T::Real>(&[1.0, 0.0, 1.0]);
        for loss in kd_losses() {
            let got = evaluate(device, loss, [&student, &teacher], rows, Some(&mask));
            assert!(got.loss.is_finite() && got.row_losses[1] == 0.0, "{loss:?}");
            assert!(
                got.gradient[classes..2 * classes]
                    .iter()
                    .all(|g| g.to_f64() == 0.0)
            );
            assert!(got.gradient.iter().all(|g| g.to_f64().is_finite()));
        }
    }
}

fn assert_classes_that_are_left_out_do_not_count<T: Element, D: Device<T>>(device: &D) {
    // Rows of both, the classes that are compared: the longer one of either side, and both padded.
    for (rows, [of_student, of_teacher], classes) in [
        (3, [7, 5], 5),
        (2, [5, 9], 5),
        (4, [24, 16], 16),
        (3, [40, 33], 32),
        (2, [6000, 5999], 5998),
    ] {
        let input = Input::normal(6, Shapes::new(rows, of_student, of_teacher));
        let [mut student, mut teacher] = [cast::<T>(&input.student), cast::<T>(&input.teacher)];
        let cut = |data: &[T], dim: usize| -> Vec<T> {
            data.chunks(dim)
                .flat_map(|row| row[..classes].to_vec())
                .collect()
        };
        let [x, y] = [cut(&student, of_student), cut(&teacher, of_teacher)];
        for row in 0..rows {
            // What is left out may hold anything.
            student[row * of_student..][classes..of_student].fill(T::from_f64(f64::NAN));
            teacher[row * of_teacher..][classes..of_teacher].fill(T::from_f64(f64::INFINITY));
        }
        for loss in kd_losses() {
            let label = format!(
                "{}, {of_student} {of_teacher} {classes}, {loss:?}",
                device.name()
            );
            let want = evaluate(&Reference, loss, [&x, &y], rows, None);
            let loss = KdKl { classes, ..loss };
            let got = evaluate(device, loss, [&student, &teacher], rows, None);
            let within = tolerance(D::Gradient::DTYPE);
            assert_loss(&label, got.loss, want.loss, within);
            let compared: Vec<f64> = got
                .gradient
                .chunks(of_student)
                .flat_map(|row| row[..classes].iter().map(|g| g.to_f64()))
                .collect();
            assert_gradient(&label, &compared, &want.gradient, classes, within);
            let mut rest = got
                .gradient
                .chunks(of_student)
                .flat_map(|row| &row[classes..]);
            assert!(rest.all(|g| g.to_f64() == 0.0), "{label}");
        }
    }
}

#[test]
fn weights_are_shares_of_the_mean() {
    on_every_device!(assert_weights_are_shares_of_the_mean);
}

#[test]
fn equal_weights_are_no_weights() {
    on_every_device!(assert_equal_weights_are_no_weights);
}

#[test]
fn a_row_of_weight_zero_may_hold_anything() {
    on_every_device!(assert_a_row_of_weight_zero_may_hold_anything);
}

#[test]
fn classes_that_are_left_out_do_not_count() {
    on_every_device!(assert_classes_that_are_left_out_do_not_count);
}

#[test]
fn weights_too_large_to_add_up_are_shares_too() {
    let rows = [[0.0, 1.0], [1.0, 0.0]].concat();
    let teacher = [0.0; 4];
    let weights = [f64::MAX, f64::MAX];
    let plain = evaluate(&relata::Cpu, KdKl::default(), [&rows, &teacher], 2, None);
    let got = evaluate(
        &relata::Cpu,
        KdKl::default(),
        [&rows, &teacher],
        2,
        Some(&weights),
    );
    assert_eq!(got.gradient, plain.gradient);
}

#[test]
fn central_differences_agree() {
    let shapes = Shapes::new(5, 7, 9).with_row_weights();
    let input = Input::normal(8, Shapes::new(5, 7, 9));
    let weights = weights(5);
    for loss in kd_losses() {
        let loss = KdKl { classes: 6, ..loss };
        let problem = Problem::new(loss, shapes).expect("accepted");
        let of = |data, dim| Rows::new(data, [5, dim]).expect("whole rows");
        let batch = Batch::new(of(&input.student[..], 7), of(&input.teacher[..], 9));
        let report = check(&problem, &relata::Cpu, batch.with_row_weights(&weights));
        let report = report.expect("evaluates");
        assert!(report.passed(), "{loss:?}: {report}");
    }
}

#[test]
fn errors_name_the_argument() {
    let rows = Rows::new(&[0.0f32; 6], [2, 3]).expect("rows");
    let batch = Batch::new(rows, rows);
    let loss = KdKl::default();
    let evaluate = |problem: &Problem, batch| problem.evaluate(&relata::Cpu, batch).err();
    for (weights, error) in [
        (
            &[1.0f32, -1.0][..],
            Error::Parameter {
                argument: "row_weights",
                expected: "finite numbers of at least 0",
                got: -1.0,
            },
        ),
        (
            &[f32::INFINITY, 1.0],
            Error::Parameter {
                argument: "row_weights",
                expected: "finite numbers of at least 0",
                got: f64::INFINITY,
            },
        ),
        (
            &[1.0],
            Error::Dimension {
                argument: "row_weights",
                expected: 2,
                got: 1,
            },
        ),
    ] {
        let batch = batch.with_row_weights(weights);
        let problem = Problem::new(loss, batch.shapes()).expect("accepted");
        assert_eq!(evaluate(&problem, batch), Some(error));
    }

    let unexpected = |argument, loss| Error::Unexpected { argument, loss };
    let plain = Problem::new(loss, batch.shapes()).expect("accepted");
    assert_eq!(
        evaluate(&plain, batch.with_row_weights(&[1.0, 1.0])),
        Some(unexpected("row_weights", "kd-kl"))
    );
    let weighted = Problem::new(loss, batch.shapes().with_row_weights()).expect("accepted");
    assert!(matches!(
        evaluate(&weighted, batch),
        Some(Error::Missing {
            argument: "row_weights",
            ..
        })
    ));
    let compares_rows =
        |loss: &Loss| matches!(loss.spec().family, Family::Pairwise(_) | Family::Triplet(_));
    for loss in Loss::all().into_iter().filter(compares_rows) {
        assert_eq!(
            Problem::new(loss, batch.shapes().with_row_weights()),
            Err(unexpected("row_weights", loss.name()))
        );
    }
    let other = Problem::new(RkdDistance::default(), batch.shapes()).expect("accepted");
    assert_eq!(
        other.evaluate_rows(&relata::Cpu, batch).err(),
        Some(unexpected("row_losses", "rkd-distance"))
    );
    let (mut gradient, mut losses) = ([7.0f32; 6], [7.0; 3]);
    let result = plain.evaluate_rows_into(&relata::Cpu, batch, &mut gradient, &mut losses);
    assert_eq!(
        result.err(),
        Some(Error::Length {
            argument: "row_losses",
            expected: 2,
            got: 3
        })
    );
    assert_eq!((gradient, losses), ([7.0; 6], [7.0; 3]));

    for (loss, shapes, most) in [
        (KdKl { classes: 4, ..loss }, Shapes::new(2, 3, 5), 3),
        (KdKl { classes: 4, ..loss }, Shapes::new(2, 5, 3), 3),
    ] {
        assert_eq!(
            Problem::new(loss, shapes),
            Err(Error::TooLarge {
                argument: "classes",
                most,
                got: 4
            })
        );
    }
}
