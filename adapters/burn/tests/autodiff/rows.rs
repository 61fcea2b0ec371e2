//! Weights of rows, lists of the teacher's classes and losses of rows, against burn's autodiff of the
//! sums.

use burn_tensor::activation::log_softmax;
use burn_tensor::{DType, FloatDType, Int, Tensor, TensorData};
use relata::{Divergence, KdKl};
use relata_burn::{Error, Teacher, kd_kl_rows, kd_kl_weighted, loss};

use crate::{assert_close, device, numbers, wide};

const T: f64 = 2.0;
/// Two sequences of three rows, of five classes; lists of three.
const SHAPE: [usize; 3] = [2, 3, 5];
const CLASSES: [[[i64; 3]; 3]; 2] = [
    [[4, 0, 2], [1, 2, 3], [0, 1, 2]],
    [[3, 4, 1], [2, 0, 4], [1, 3, 0]],
];
const WEIGHTS: [f64; 6] = [0.5, 0.0, 2.0, 1.25, 1.0, 0.25];

fn losses() -> [KdKl; 3] {
    let forward = KdKl::new(T);
    let reverse = KdKl {
        divergence: Divergence::Reverse,
        ..forward
    };
    let tail = false;
    [forward, reverse, KdKl { tail, ..forward }]
}

fn logits(seed: u32) -> Tensor<3> {
    numbers([6, 5], seed).reshape(SHAPE) * 3.
}

fn vector(numbers: &[f64]) -> Tensor<1> {
    Tensor::from_data(TensorData::from(numbers), (&device(), DType::F64))
}

/// The classes of [`CLASSES`] and the logarithms of the teacher's probabilities.
fn listed(log_p: Tensor<3>) -> (Tensor<3, Int>, Tensor<3>) {
    let classes = Tensor::<3, Int>::from_data(TensorData::from(CLASSES), (&device(), DType::I64));
    (classes.clone(), log_p.gather(2, classes))
}

/// T² D of each row.
fn formula(x: Tensor<3>, y: Tensor<3>, loss: KdKl, lists: bool) -> Tensor<1> {
    let [mut log_q, mut log_p] = [x, y].map(|logits| log_softmax(logits / T, 2));
    if lists {
        let with_tail = |log: Tensor<3>| {
            let listed = listed(log).1;
            if !loss.tail {
                return listed;
            }
            let rest = (-(listed.clone().exp().sum_dim(2) - 1.)).log();
            Tensor::cat(vec![listed, rest], 2)
        };
        [log_q, log_p] = [log_q, log_p].map(with_tail);
    }
    let [v, w] = match loss.divergence {
        Divergence::Reverse => [log_q, log_p],
        _ => [log_p, log_q],
    };
    (v.clone().exp() * (v - w)).sum_dim(2).reshape([6]) * (T * T)
}

#[test]
fn weights_lists_and_rows_have_their_gradients() -> Result<(), Error> {
    // Each row times a number of its own, as an upstream gradient.
    let upstream = vector(&[1., -2., 0.5, 3., 0.25, -1.]);
    for (dtype, tolerance) in [(FloatDType::F64, 1e-10), (FloatDType::F32, 2e-5)] {
        for loss in losses() {
            for lists in [false, true] {
                if !lists && !loss.tail {
                    continue; // a tail is one of lists
                }
                let label = format!("{loss:?}, lists {lists}, {dtype:?}");
                let held = |x: Tensor<3>| x.cast(dtype).cast(FloatDType::F64);
                let (x, y) = (held(logits(1)), held(logits(2)));
                let gradient = |value: Tensor<1>, student: &Tensor<3>| {
                    let gradient = student.grad(&value.backward()).expect("a gradient");
                    assert_eq!(gradient.dims(), SHAPE);
                    wide(gradient.into_data())
                };
                let weights = vector(&WEIGHTS);
                // burn's graphs go backward once.
                let rows = || {
                    let student = x.clone().require_grad();
                    (formula(student.clone(), y.clone(), loss, lists), student)
                };
                let (of_rows, student) = rows();
                let mean = (of_rows * weights.clone()).sum() / vector(&[5.]);
                let want = [wide(mean.clone().into_data()), gradient(mean, &student)];
                let (of_rows, student) = rows();
                let weighed = (of_rows.clone() * upstream.clone()).sum();
                let want_rows = [wide(of_rows.into_data()), gradient(weighed, &student)];

                let student = x.clone().cast(dtype).require_grad();
                let (classes, log_p) = listed(log_softmax(y.clone() / T, 2));
                let (y, log_p) = (y.cast(dtype), log_p.cast(dtype));
                let teacher = match lists {
                    false => Teacher::Logits(&y),
                    true => Teacher::TopK {
                        classes: &classes,
                        log_probabilities: &log_p,
                    },
                };
                let weights = weights.cast(dtype);
                let got = kd_kl_weighted(&student, teacher, Some(&weights), loss)?;
                let got = [wide(got.clone().into_data()), gradient(got, &student)];
                for (got, want) in got.iter().zip(&want) {
                    assert_close(&label, got, want, tolerance);
                }
                let got = kd_kl_rows(&student, teacher, loss)?;
                assert_eq!(got.dims(), [6]);
                let weighed = (got.clone() * upstream.clone().cast(dtype)).sum();
                let got = [wide(got.into_data()), gradient(weighed, &student)];
                for (got, want) in got.iter().zip(&want_rows) {
                    assert_close(&format!("{label}, rows"), got, want, tolerance);
                }
            }
        }
    }
    Ok(())
}

#[test]
fn without_weights_it_is_the_loss() -> Result<(), Error> {
    let (x, y) = (logits(1), logits(2));
    let want = loss(&x, &y, KdKl::new(T))?;
    let got = kd_kl_weighted(&x, &y, None, KdKl::new(T))?;
    assert_eq!(wide(got.into_data()), wide(want.into_data()));
    Ok(())
}

#[test]
fn what_does_not_fit_rows_is_refused() {
    let (x, y) = (logits(1), logits(2));
    let (classes, log_p) = listed(log_softmax(y.clone() / T, 2));
    let loss = KdKl::new(T);
    let refused = |result: Result<Tensor<1>, Error>, want: &str| {
        let error = result.expect_err("refused").to_string();
        assert!(error.contains(want), "{error}");
    };
    let of_lists = |classes: &Tensor<3, Int>, log_probabilities: &Tensor<3>| {
        let teacher = Teacher::TopK {
            classes,
            log_probabilities,
        };
        kd_kl_rows(&x, teacher, loss)
    };
    let five = vector(&[1.; 5]);
    refused(
        kd_kl_weighted(&x, &y, Some(&five), loss),
        "row_weights: expected 6, got 5",
    );
    let negative = vector(&[1., 1., 1., 1., 1., -1.]);
    refused(
        kd_kl_weighted(&x, &y, Some(&negative), loss),
        "row_weights: expected",
    );
    refused(
        of_lists(&classes.clone().slice([0..1]), &log_p),
        "teacher classes: expected the leading dimensions of [2, 3, 5], got the shape [1, 3, 3]",
    );
    refused(
        of_lists(&classes, &log_p.clone().slice([0..2, 0..3, 0..2])),
        "teacher log_probabilities: expected that of the classes",
    );
    refused(
        of_lists(&(classes.clone() - 1), &log_p),
        "teacher classes: expected classes from 0 to 2^32 - 1, got -1",
    );
    refused(
        of_lists(&(classes + 1), &log_p),
        "teacher classes: expected at most 4, got 5",
    );
}
