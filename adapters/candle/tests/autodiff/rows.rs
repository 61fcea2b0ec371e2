//! Weights of rows, lists of the teacher's classes and losses of rows, against candle's autodiff of
//! the sums.

use candle_core::{D, DType, Device, Error, Result, Tensor, Var};
use relata_candle::{Divergence, KdKl, Teacher, cause, kd_kl, kd_kl_rows, kd_kl_weighted};

use crate::cases::numbers;
use crate::formulas::log_softmax;
use crate::{F32, assert_close, gradients};

const T: f64 = 2.0;
/// Two sequences of three rows, of five classes; lists of three.
const SHAPE: [usize; 3] = [2, 3, 5];
const CLASSES: [[[i64; 3]; 3]; 2] = [
    [[4, 0, 2], [1, 2, 3], [0, 1, 2]],
    [[3, 4, 1], [2, 0, 4], [1, 3, 0]],
];
const WEIGHTS: [[f64; 3]; 2] = [[0.5, 0.0, 2.0], [1.25, 1.0, 0.25]];

fn losses() -> [KdKl; 2] {
    let forward = KdKl::new(T);
    let divergence = Divergence::Reverse;
    [
        forward,
        KdKl {
            divergence,
            ..forward
        },
    ]
}

fn logits(seed: u32) -> Result<Tensor> {
    numbers((6, 5), seed)?.reshape(&SHAPE)? * 3.
}

/// The logarithms of the teacher's probabilities of [`CLASSES`].
fn listed(y: &Tensor) -> Result<(Tensor, Tensor)> {
    let classes = Tensor::new(&CLASSES, &Device::Cpu)?;
    let log_p = log_softmax(&(y / T)?)?.gather(&classes, D::Minus1)?;
    Ok((classes, log_p))
}

/// T² D of each row, of logarithms.
fn rows(log_p: &Tensor, log_q: &Tensor, loss: KdKl) -> Result<Tensor> {
    let [v, w] = match loss.divergence {
        Divergence::Forward => [log_p, log_q],
        _ => [log_q, log_p],
    };
    (v.exp()? * (v - w)?)?.sum(D::Minus1)? * (T * T)
}

/// The same of lists.
fn rows_of_lists(x: &Tensor, y: &Tensor, loss: KdKl) -> Result<Tensor> {
    let (classes, mut log_p) = listed(y)?;
    let mut log_q = log_softmax(&(x / T)?)?.gather(&classes, D::Minus1)?;
    if loss.tail {
        let with_tail = |listed: &Tensor| {
            let rest = (1. - listed.exp()?.sum_keepdim(D::Minus1)?)?.log()?;
            Tensor::cat(&[listed, &rest], D::Minus1)
        };
        (log_p, log_q) = (with_tail(&log_p)?, with_tail(&log_q)?);
    }
    rows(&log_p, &log_q, loss)
}

/// Checks `fused` against the formula of a teacher's rows or lists, `weigh` applied to both, in f64
/// and f32.
fn check(
    label: &str,
    loss: KdKl,
    is_list: bool,
    fused: impl Fn(&Tensor, Teacher) -> Result<Tensor>,
    weigh: impl Fn(Tensor) -> Result<Tensor>,
) -> Result<()> {
    let (x, y) = (Var::from_tensor(&logits(1)?)?, logits(2)?);
    let want = if is_list {
        rows_of_lists(&x, &y, loss)?
    } else {
        rows(
            &log_softmax(&(&y / T)?)?,
            &log_softmax(&(x.as_tensor() / T)?)?,
            loss,
        )?
    };
    let want = weigh(want)?;
    let want_gradient = &gradients(&want, &[&x])?[0];
    for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, F32)] {
        let label = format!("{label}, {loss:?}, {dtype:?}");
        let x = Var::from_tensor(&x.to_dtype(dtype)?)?;
        let (classes, log_p) = listed(&y)?;
        for classes in [classes.clone(), classes.to_dtype(DType::U32)?] {
            let (y, log_p) = (y.to_dtype(dtype)?, log_p.to_dtype(dtype)?);
            let teacher = if is_list {
                Teacher::TopK {
                    classes: &classes,
                    log_probabilities: &log_p,
                }
            } else {
                Teacher::from(&y)
            };
            let got = fused(&x, teacher)?;
            let got_gradient = &gradients(&got, &[&x])?[0];
            assert_close(&format!("{label}: loss"), &got, &want, tolerance)?;
            assert_close(&label, got_gradient, want_gradient, tolerance)?;
        }
    }
    Ok(())
}

fn weights(dtype: DType) -> Result<Tensor> {
    Tensor::new(&WEIGHTS, &Device::Cpu)?.to_dtype(dtype)
}

/// Σ w ℓ/Σ w.
fn weighted_mean(rows: Tensor) -> Result<Tensor> {
    let weights = weights(DType::F64)?;
    (rows * &weights)?.sum_all()? / weights.sum_all()?.to_scalar::<f64>()?
}

#[test]
fn weights_and_lists_agree_with_autodiff() -> Result<()> {
    for loss in losses() {
        let weighted = |x: &Tensor, teacher: Teacher| {
            let weights = weights(x.dtype())?;
            kd_kl_weighted(x, teacher, Some(&weights), loss)
        };
        check("weights", loss, false, weighted, weighted_mean)?;
        for tail in [true, false] {
            let loss = KdKl { tail, ..loss };
            let weighted = |x: &Tensor, teacher: Teacher| {
                let weights = weights(x.dtype())?;
                kd_kl_weighted(x, teacher, Some(&weights), loss)
            };
            check("both", loss, true, weighted, weighted_mean)?;
            let plain = |x: &Tensor, teacher: Teacher| kd_kl_weighted(x, teacher, None, loss);
            check("lists", loss, true, plain, |rows| rows.mean_all())?;
        }
    }
    Ok(())
}

/// Each row's loss is a number of its own in the graph.
#[test]
fn losses_of_rows_agree_with_autodiff() -> Result<()> {
    for loss in losses() {
        for is_list in [false, true] {
            let squares = |rows: Tensor| {
                assert_eq!(rows.dims(), &SHAPE[..2]);
                let weights = weights(DType::F64)?;
                (rows.to_dtype(DType::F64)?.sqr()? * weights)?.sum_all()
            };
            let fused = |x: &Tensor, teacher: Teacher| squares(kd_kl_rows(x, teacher, loss)?);
            check("rows", loss, is_list, fused, squares)?;
        }
    }
    Ok(())
}

#[test]
fn masks_of_bytes_and_halves_work_and_plain_rows_keep_their_bits() -> Result<()> {
    let mask = Tensor::new(&[[1u8, 0, 1], [1, 1, 0]], &Device::Cpu)?;
    for dtype in [DType::F64, DType::F32, DType::F16, DType::BF16] {
        let (x, y) = (Var::from_tensor(&logits(3)?.to_dtype(dtype)?)?, logits(4)?);
        let y = y.to_dtype(dtype)?;
        let loss = KdKl::new(T);
        let [got, want] = [kd_kl_weighted(&x, &y, None, loss)?, kd_kl(&x, &y, loss)?];
        let bits = |loss: &Tensor| loss.to_dtype(DType::F64)?.to_scalar::<f64>();
        assert_eq!(bits(&got)?, bits(&want)?);
        let of = |loss: &Tensor| gradients(loss, &[&x])?[0].flatten_all()?.to_vec1::<f64>();
        assert_eq!(of(&got)?, of(&want)?);

        let masked = kd_kl_weighted(&x, &y, Some(&mask), loss)?;
        let rows = kd_kl_rows(&x, &y, loss)?;
        let kept = (&rows * mask.to_dtype(rows.dtype())?)?;
        let mean = (kept.sum_all()? / 4.)?.to_dtype(DType::F64)?;
        assert_close("mask", &masked, &mean, 1e-6)?;
        let gradient = gradients(&masked, &[&x])?[0].get(0)?.get(1)?;
        assert_eq!(gradient.to_vec1::<f64>()?, [0.0; 5]);
    }
    Ok(())
}

/// The error without its context, and without the backtrace that `RUST_BACKTRACE` adds.
fn bare(error: &Error) -> &Error {
    match error {
        Error::WithBacktrace { inner, .. } | Error::Context { inner, .. } => bare(inner),
        error => error,
    }
}

#[test]
fn what_does_not_fit_is_refused() -> Result<()> {
    let (x, y) = (logits(1)?, logits(2)?);
    let loss = KdKl::new(T);
    let (classes, log_p) = listed(&y)?;
    let of_lists = |classes: &Tensor, log_probabilities: &Tensor| {
        let teacher = Teacher::TopK {
            classes,
            log_probabilities,
        };
        kd_kl_weighted(&x, teacher, None, loss).expect_err("refused")
    };
    let weighted =
        |weights: &Tensor| kd_kl_weighted(&x, &y, Some(weights), loss).expect_err("refused");
    for error in [
        of_lists(&classes.narrow(2, 0, 2)?, &log_p),
        of_lists(&classes.reshape((6, 3))?, &log_p.reshape((6, 3))?),
        weighted(&weights(DType::F64)?.flatten_all()?),
        weighted(&y),
        kd_kl_rows(&x, &y.reshape((3, 2, 5))?, loss).expect_err("refused"),
    ] {
        assert!(
            matches!(bare(&error), Error::ShapeMismatchBinaryOp { .. }),
            "{error}"
        );
    }
    for error in [
        of_lists(&log_p, &log_p),
        of_lists(&classes, &classes),
        weighted(&weights(DType::I64)?),
    ] {
        assert!(
            matches!(bare(&error), Error::UnsupportedDTypeForOp(..)),
            "{error}"
        );
    }
    let error = kd_kl_rows(&x.to_dtype(DType::F32)?, &y, loss).expect_err("refused");
    assert!(
        matches!(bare(&error), Error::DTypeMismatchBinaryOp { .. }),
        "{error}"
    );

    let negative = of_lists(&(&classes - &classes.ones_like()?)?, &log_p);
    let large = of_lists(&(&classes + &classes.ones_like()?)?, &log_p);
    let twice = of_lists(&classes.zeros_like()?, &log_p);
    for error in [negative, twice] {
        assert!(
            matches!(
                cause(&error),
                Some(relata::Error::Parameter {
                    argument: "teacher classes",
                    ..
                })
            ),
            "{error}"
        );
    }
    assert!(
        matches!(
            cause(&large),
            Some(relata::Error::TooLarge {
                argument: "teacher classes",
                most: 4,
                got: 5
            })
        ),
        "{large}"
    );
    let error = weighted(&(weights(DType::F64)? - 1.)?);
    assert!(
        matches!(
            cause(&error),
            Some(relata::Error::Parameter {
                argument: "row_weights",
                ..
            })
        ),
        "{error}"
    );
    // Without a probability it is no class.
    let none = (log_p.zeros_like()? + f64::NEG_INFINITY)?;
    let padded = Tensor::cat(&[&log_p, &none], 2)?;
    let wide = Tensor::cat(&[&classes, &(classes.zeros_like()? - 100.)?], 2)?;
    let teacher = |classes, log_probabilities| Teacher::TopK {
        classes,
        log_probabilities,
    };
    let got = kd_kl_rows(&x, teacher(&wide, &padded), loss)?.flatten_all()?;
    let want = kd_kl_rows(&x, teacher(&classes, &log_p), loss)?.flatten_all()?;
    assert_eq!(got.to_vec1::<f64>()?, want.to_vec1::<f64>()?);
    Ok(())
}
