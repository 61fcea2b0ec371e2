//! Weights of rows and losses of rows, of the losses with keys.

use relata::{
    Batch, DType, Device, Element, Error, Evaluation, InfoNce, KdKl, Loss, Problem, Real,
    Reference, Rows, Rrd, Shapes, check,
};

use super::common::compare::{assert_gradient, assert_loss, assert_same_bits, assert_zero};
use super::common::{Input, on_every_device};
use super::{shares, weights};

/// The losses with the shapes that they are tried on: N, D and the keys of the queue, on both sides
/// of what a kernel takes at a time. One is the student at its teacher, where KL is computed anew.
fn losses() -> Vec<(Loss, [usize; 3])> {
    let raw = Rrd {
        normalize: false,
        student_temperature: 5.0,
        teacher_temperature: 3.0,
        ..Rrd::default()
    };
    let mut all = Vec::new();
    for [n, d] in [[1, 3], [5, 16], [17, 33], [66, 130], [5, 300]] {
        all.extend([
            (Rrd::default().into(), [n, d, 70]),
            (raw.into(), [n, d, 5]),
            (InfoNce::default().into(), [n, d, 70]),
            (InfoNce::default().into(), [n, d, 0]),
        ]);
    }
    all
}

fn input([rows, dim, keys]: [usize; 3]) -> Input {
    let mut shapes = Shapes::new(rows, dim, dim);
    shapes.queue = (keys > 0).then_some(keys);
    Input::normal((rows + keys) as u64, shapes)
}

/// A student that has nearly converged: the KL of its rows is computed without a difference.
fn near_teacher(mut input: Input) -> Input {
    for (x, y) in input.student.iter_mut().zip(&input.teacher) {
        *x = y + 1e-3 * *x;
    }
    input
}

/// With its losses of rows.
fn evaluate<T: Element, D: Device<T>>(
    device: &D,
    loss: Loss,
    input: &Input,
    weights: Option<&[f64]>,
) -> Evaluation<D::Gradient> {
    let weights: Option<Vec<T::Real>> =
        weights.map(|weights| weights.iter().map(|&w| T::Real::from_f64(w)).collect());
    let inputs = input.inputs::<T>(&input.problem(loss));
    let mut batch = inputs.batch();
    batch.row_weights = weights.as_deref();
    let problem = Problem::new(loss, batch.shapes()).expect("accepted");
    let problem = problem.with_upstream(0.75);
    problem.evaluate_rows(device, batch).expect("evaluates")
}

fn widen<R: Real>(numbers: &[R]) -> Vec<f64> {
    numbers.iter().map(|x| x.to_f64()).collect()
}

/// A row's loss and gradient depend on no other row of the student. So a weighted evaluation
/// follows from one without weights.
fn assert_weights_are_shares_of_the_mean<T: Element, D: Device<T>>(device: &D) {
    for (loss, shape) in losses() {
        let [rows, dim, _] = shape;
        for input in [input(shape), near_teacher(input(shape))] {
            let plain = evaluate::<T, D>(device, loss, &input, None);
            let plain_gradient = widen(&plain.gradient);
            for weights in [weights(rows), vec![0.0; rows], vec![3.0; rows]] {
                let label = format!("{}, {loss:?}, {shape:?}, {weights:?}", device.name());
                let got = evaluate::<T, D>(device, loss, &input, Some(&weights));
                let shares = shares(&weights);
                let of_rows = plain.row_losses.iter().zip(&shares);
                let want: f64 = of_rows.map(|(loss, share)| loss * share).sum();
                assert_loss(&label, got.loss, want, 1e-6);
                let scaled: Vec<f64> = plain_gradient
                    .chunks(dim)
                    .zip(&shares)
                    .flat_map(|(row, share)| row.iter().map(move |g| g * share * rows as f64))
                    .collect();
                assert_gradient(&label, &got.gradient, &scaled, dim, 1e-6);
                for (row, &share) in shares.iter().enumerate() {
                    let want = if share == 0.0 {
                        0.0
                    } else {
                        plain.row_losses[row]
                    };
                    assert_eq!(got.row_losses[row], want, "{label}");
                    if share == 0.0 {
                        assert_zero(&label, &got.gradient[row * dim..][..dim]);
                    }
                }
            }
        }
    }
}

/// A share may be too small for f32. The row counts all the same.
fn assert_a_tiny_weight_is_not_zero<T: Element, D: Device<T>>(device: &D) {
    let keyed = losses().into_iter();
    let keyed = keyed.map(|(loss, [_, dim, keys])| (loss, [3, dim, keys]));
    for (loss, shape) in keyed.chain([(KdKl::new(1.0).into(), [3, 16, 0])]) {
        let input = input(shape);
        let label = format!("{}, {loss:?}", device.name());
        let plain = evaluate::<T, D>(device, loss, &input, None);
        let got = evaluate::<T, D>(device, loss, &input, Some(&[1e-44, 3e38, 0.0]));
        assert_loss(&label, got.loss, plain.row_losses[1], 1e-6);
        for row in [0, 1] {
            assert_loss(&label, got.row_losses[row], plain.row_losses[row], 1e-6);
        }
        assert_eq!(got.row_losses[2], 0.0, "{label}");
    }
}

/// To ask for the losses of rows changes nothing else, and they are those of the rows alone.
fn assert_the_loss_is_the_mean_of_those_of_rows<T: Element, D: Device<T>>(device: &D) {
    for (loss, shape) in losses() {
        let (input, label) = (
            input(shape),
            format!("{}, {loss:?}, {shape:?}", device.name()),
        );
        let problem = input.problem(loss).with_upstream(0.75);
        let plain = input.run::<T, D>(device, &problem);
        let with_rows = evaluate::<T, D>(device, loss, &input, None);
        assert_same_bits(&label, &with_rows.gradient, &plain.gradient);
        assert_eq!(with_rows.loss, plain.loss, "{label}");
        let mean = with_rows.row_losses.iter().sum::<f64>() / shape[0] as f64;
        assert_loss(&label, with_rows.loss, mean, 1e-6);

        let [rows, dim, keys] = shape;
        let within = match (T::DTYPE, D::Gradient::DTYPE) {
            (_, DType::F64) => 1e-12,
            (DType::F32, _) => 2e-5,
            // The queue's keys are rounded to f16.
            _ => 2e-3,
        };
        for row in (0..rows).filter(|_| keys > 0) {
            let single = Input {
                shapes: Shapes {
                    rows: 1,
                    ..input.shapes
                },
                student: input.student[row * dim..][..dim].to_vec(),
                teacher: input.teacher[row * dim..][..dim].to_vec(),
                ..input.clone()
            };
            let want = single.evaluate::<T, _>(&Reference, loss).loss;
            assert_loss(&label, with_rows.row_losses[row], want, within);
        }
    }
}

/// RRD's divergence has the same weights as its loss.
fn assert_terms_are_weighted<T: Element, D: Device<T>>(device: &D) {
    let shape = [4, 16, 30];
    let all = input(shape);
    let mut half_near = near_teacher(all.clone());
    half_near.student[2 * 16..].copy_from_slice(&all.student[2 * 16..]);
    for input in [all.clone(), near_teacher(all), half_near] {
        let of = |weights: &[f64]| {
            let evaluation = evaluate::<T, D>(device, Rrd::default().into(), &input, Some(weights));
            evaluation.term("kl").expect("RRD's divergence")
        };
        let single = [0, 1, 2, 3].map(|row| {
            let mut weights = [0.0; 4];
            weights[row] = 1.0;
            of(&weights)
        });
        let weighted = of(&[1.0, 0.0, 2.0, 5.0]);
        let want = (single[0] + 2.0 * single[2] + 5.0 * single[3]) / 8.0;
        assert_loss(device.name(), weighted, want, 1e-6);
    }
}

fn assert_a_row_of_weight_zero_may_hold_anything<T: Element, D: Device<T>>(device: &D) {
    let mask = [1.0, 0.0, 1.0, 1.0, 0.5];
    for (loss, shape) in losses().into_iter().filter(|(_, [rows, ..])| *rows == 5) {
        let [_, dim, keys] = shape;
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let clean = input(shape);
            let want = evaluate::<T, D>(device, loss, &clean, Some(&mask));
            let mut spoilt = clean.clone();
            spoilt.student[dim] = bad;
            if keys > 0 {
                spoilt.teacher[2 * dim - 1] = bad;
            }
            let got = evaluate::<T, D>(device, loss, &spoilt, Some(&mask));
            let label = format!("{}, {loss:?}, {shape:?}, {bad}", device.name());
            assert_same_bits(&label, &got.gradient, &want.gradient);
            assert_eq!((got.loss, got.terms), (want.loss, want.terms), "{label}");
            assert_eq!(got.row_losses, want.row_losses, "{label}");
            assert!(got.loss.is_finite(), "{label}");

            // In the batch, a teacher's row is a key of all others.
            if keys == 0 {
                spoilt.teacher[dim] = bad;
                let got = evaluate::<T, D>(device, loss, &spoilt, Some(&mask));
                assert!(got.loss.is_nan() && got.row_losses[0].is_nan(), "{label}");
            }
        }
    }
}

#[test]
fn weights_are_shares_of_the_mean() {
    on_every_device!(assert_weights_are_shares_of_the_mean);
}

#[test]
fn a_tiny_weight_is_not_zero() {
    on_every_device!(assert_a_tiny_weight_is_not_zero);
}

#[test]
fn the_loss_is_the_mean_of_those_of_rows() {
    on_every_device!(assert_the_loss_is_the_mean_of_those_of_rows);
}

#[test]
fn terms_are_weighted() {
    on_every_device!(assert_terms_are_weighted);
}

#[test]
fn a_row_of_weight_zero_may_hold_anything() {
    on_every_device!(assert_a_row_of_weight_zero_may_hold_anything);
}

/// −log softmax(⟨z_i, y_j⟩/τ)[i], from nothing of this crate.
#[test]
fn the_losses_of_rows_in_the_batch_are_as_defined() {
    let shape = [7, 5, 0];
    let input = input(shape);
    let unit = |rows: &[f64]| -> Vec<Vec<f64>> {
        let row = |row: &[f64]| {
            let length = row.iter().map(|x| x * x).sum::<f64>().sqrt();
            row.iter().map(|x| x / length).collect()
        };
        rows.chunks(5).map(row).collect()
    };
    let (z, y) = (unit(&input.student), unit(&input.teacher));
    let loss = InfoNce::default();
    let got = evaluate::<f64, _>(&relata::Cpu, loss.into(), &input, None);
    for i in 0..7 {
        let logit = |j: usize| {
            let product: f64 = z[i].iter().zip(&y[j]).map(|(a, b)| a * b).sum();
            product / loss.temperature
        };
        let sum: f64 = (0..7).map(|j| (logit(j) - logit(i)).exp()).sum();
        assert_loss("row", got.row_losses[i], sum.ln(), 1e-12);
    }
}

#[test]
fn central_differences_agree() {
    for (loss, shape) in losses().into_iter().filter(|(_, [rows, ..])| *rows == 5) {
        let input = input(shape);
        let inputs = input.inputs::<f64>(&input.problem(loss));
        let weights = weights(5);
        let batch = inputs.batch().with_row_weights(&weights);
        let problem = Problem::new(loss, batch.shapes()).expect("accepted");
        let report = check(&problem, &relata::Cpu, batch).expect("evaluates");
        assert!(report.passed(), "{loss:?}: {report}");
    }
}

/// The checked mode looks at the rows that count, and at all keys.
#[test]
fn the_checked_mode_skips_rows_of_weight_zero() {
    let rows = |data| Rows::new(data, [2, 2]).expect("rows");
    let (clean, spoilt) = ([1.0f32, 0.0, 0.5, 1.0], [1.0f32, 0.0, f32::NAN, 1.0]);
    let mut queue = relata::Queue::new(2, 2).expect("a queue");
    queue.enqueue(rows(&clean)).expect("finite keys");
    let refused = |loss: Loss, batch: Batch<'_, f32>| {
        let problem = Problem::new(loss, batch.shapes()).expect("accepted");
        let problem = problem.with_checked(true);
        problem.evaluate(&relata::Cpu, batch).err()
    };
    let not_finite = |argument, row| {
        move |error: Option<Error>| match error {
            Some(Error::NotFinite {
                argument: got,
                row: at,
                ..
            }) => got == argument && at == row,
            _ => false,
        }
    };
    let (rrd, info_nce) = (Rrd::default().into(), InfoNce::default().into());
    let (mask, other) = ([1.0, 0.0], [0.0, 1.0]);
    let both = Batch::new(rows(&spoilt), rows(&spoilt)).with_queue(&queue);
    for loss in [rrd, info_nce] {
        assert_eq!(refused(loss, both.with_row_weights(&mask)), None);
        assert!(not_finite("student", 1)(refused(
            loss,
            both.with_row_weights(&other)
        )));
    }
    let teacher = Batch::new(rows(&clean), rows(&spoilt));
    assert!(not_finite("teacher", 1)(refused(
        info_nce,
        teacher.with_row_weights(&mask)
    )));
    let student = Batch::new(rows(&spoilt), rows(&clean));
    assert_eq!(refused(info_nce, student.with_row_weights(&mask)), None);
}
