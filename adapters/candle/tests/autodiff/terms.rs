//! The terms that an evaluation reports with the loss.

use candle_core::{DType, Result, Tensor};
use relata_candle::{
    Queue, Rkd, RkdAngle, RkdDistance, Rrd, loss, loss_and_terms, loss_and_terms_with_queue,
};

use crate::cases::numbers;
use crate::{F32, devices};

const DTYPES: [DType; 4] = [DType::F64, DType::F32, DType::F16, DType::BF16];

fn value(tensor: &Tensor) -> Result<f64> {
    tensor.to_dtype(DType::F64)?.to_scalar()
}

#[track_caller]
fn assert_near(got: f64, want: f64, tolerance: f64) {
    assert!(
        (got - want).abs() <= tolerance * want.abs(),
        "{got}, expected {want}"
    );
}

#[test]
fn terms_of_rkd_are_its_two_losses() -> Result<()> {
    for dtype in DTYPES {
        for device in devices::computing(dtype) {
            let on = |seed| numbers((9, 6), seed)?.to_dtype(dtype)?.to_device(&device);
            let (x, y) = (on(1)?, on(2)?);
            let (total, terms) = loss_and_terms(&x, &y, Rkd::CLASSIFICATION)?;
            let [distance, angle] = [
                loss(&x, &y, RkdDistance::default())?,
                loss(&x, &y, RkdAngle::default())?,
            ];
            let get = |name| Ok::<_, candle_core::Error>(terms.get(name)?.expect("a term"));
            assert_near(get("distance")?, value(&distance)?, F32);
            assert_near(get("angle")?, value(&angle)?, F32);
            let weighted = 25. * get("distance")? + 50. * get("angle")?;
            assert_near(value(&total)?, weighted, F32);
            let names: Vec<_> = terms.to_vec()?.iter().map(|&(name, _)| name).collect();
            assert_eq!(names, ["distance", "angle"]);
            assert_eq!(terms.get("kl")?, None);

            let (total, none) = loss_and_terms(&x, &y, RkdAngle::default())?;
            assert_eq!(value(&total)?, value(&angle)?);
            assert!(none.to_vec()?.is_empty());
        }
    }
    Ok(())
}

/// KL(p‖q) is the loss less the entropy of p: RRD of the teacher against itself.
#[test]
fn term_of_rrd_is_its_divergence() -> Result<()> {
    let rrd = Rrd {
        student_temperature: 0.2,
        teacher_temperature: 0.2,
        ..Rrd::default()
    };
    for dtype in DTYPES {
        for device in devices::computing(dtype) {
            let on = |seed| numbers((9, 6), seed)?.to_dtype(dtype)?.to_device(&device);
            let (x, y) = (on(1)?, on(2)?);
            let of = |student: &Tensor| -> Result<(f64, f64)> {
                let mut queue = Queue::new(20, 6, dtype, &device)?;
                let (loss, terms) = loss_and_terms_with_queue(student, &y, &mut queue, rrd)?;
                Ok((value(&loss)?, terms.get("kl")?.expect("a term")))
            };
            let ((loss, kl), (entropy, zero)) = (of(&x)?, of(&y)?);
            assert_near(kl, loss - entropy, 1e-4);
            assert!(zero.abs() <= 1e-6, "{zero}");
        }
    }
    Ok(())
}

/// Terms are constants, and keep their values when the graph is gone.
#[test]
fn terms_outlive_the_graph() -> Result<()> {
    let x = candle_core::Var::from_tensor(&numbers((9, 6), 1)?)?;
    let (total, terms) = loss_and_terms(&x, &numbers((9, 6), 2)?, Rkd::default())?;
    let before = terms.to_vec()?;
    let gradients = total.backward()?;
    assert!(gradients.get(&x).is_some());
    drop((total, gradients));
    assert_eq!(terms.to_vec()?, before);
    Ok(())
}
