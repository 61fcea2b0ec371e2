//! Learned temperatures of losses with keys, against candle's autodiff of the formulas.

use candle_core::{DType, Device, Result, Tensor, Var};
use relata_candle::{
    Enqueue, InfoNce, Queue, Rrd, info_nce_with_queue_and_scale, info_nce_with_scale,
    rrd_with_scale,
};

use crate::cases::numbers;
use crate::formulas::{self, unit};
use crate::{F32, assert_close, devices, gradients};

const SCALE: f64 = 6.5;
const KEYS: usize = 9;

/// τ is in the student's rows: the formula has 1, and rows of whatever length.
const INFO_NCE: InfoNce = InfoNce {
    temperature: 1.0,
    normalize: false,
    enqueue: Enqueue::Never,
};

type Fused = fn(&Tensor, &Tensor, &mut Queue, &Tensor) -> Result<Tensor>;
/// Of the student's rows times the scale, the teacher's and the keys, at length 1.
type Formula = fn(&Tensor, &Tensor, &Tensor) -> Result<Tensor>;

const CASES: [(&str, Fused, Formula); 3] = [
    (
        "rrd",
        |x, y, queue, scale| {
            let loss = Rrd {
                student_temperature: 77.0, // not read
                teacher_temperature: 0.2,
                enqueue: Enqueue::After,
                ..Rrd::default()
            };
            rrd_with_scale(x, y, queue, scale, loss)
        },
        |x, y, keys| {
            let loss = Rrd {
                student_temperature: 1.0,
                teacher_temperature: 0.2,
                normalize: false,
                ..Rrd::default()
            };
            formulas::rrd(x, y, keys, loss)
        },
    ),
    (
        "info-nce",
        |x, y, _, scale| info_nce_with_scale(x, y, scale, InfoNce::default()),
        |x, y, _| formulas::info_nce(x, y, INFO_NCE),
    ),
    (
        "info-nce, queue",
        |x, y, queue, scale| {
            let loss = InfoNce {
                enqueue: Enqueue::After,
                ..InfoNce::default()
            };
            info_nce_with_queue_and_scale(x, y, queue, scale, loss)
        },
        |x, y, keys| formulas::info_nce_with_queue(x, y, keys, INFO_NCE),
    ),
];

#[test]
fn scale_and_student_have_their_gradients() -> Result<()> {
    for (dtype, tolerance) in [(DType::F64, 1e-9), (DType::F32, F32), (DType::BF16, 1e-2)] {
        for (n, dim) in [(1, 3), (7, 5), (33, 17)] {
            for (name, fused, formula) in CASES {
                if n == 1 && name == "info-nce" {
                    continue; // there is no other key
                }
                let label = format!("{name}, {n} x {dim}, {dtype:?}");
                let held = |x: Tensor| x.to_dtype(dtype)?.to_dtype(DType::F64);
                let rows = |count, seed| held(numbers((count, dim), seed)?);
                let (x, y, keys) = (rows(n, 1)?, rows(n, 2)?, unit(&rows(KEYS, 3)?)?);
                // An upstream factor that depends on the loss, and the loss twice.
                let graph = |loss: &Tensor| (loss * -2.5)? - loss.sqr()?;

                let (student, scale) = (Var::from_tensor(&x)?, Var::new(SCALE, &Device::Cpu)?);
                let scaled = unit(&student)?.broadcast_mul(&scale)?;
                let want = formula(&scaled, &unit(&y)?, &keys)?;
                let want_gradients = gradients(&graph(&want)?, &[&student, &scale])?;

                for device in devices::computing(dtype) {
                    let to = |x: &Tensor| x.to_dtype(dtype)?.to_device(&device);
                    let student = Var::from_tensor(&to(&x)?)?;
                    let scale = Var::from_tensor(&to(&Tensor::new(&[SCALE], &Device::Cpu)?)?)?;
                    let mut queue = Queue::new(KEYS + n, dim, dtype, &device)?;
                    queue.enqueue(&to(&keys)?)?;
                    let got = fused(&student, &to(&y)?, &mut queue, &scale)?;
                    assert_eq!(got.rank(), 0);
                    assert_close(&format!("{label}: loss"), &got, &want, tolerance)?;
                    let got = gradients(&graph(&got)?, &[&student, &scale])?;
                    let of_scale = got[1].reshape(())?;
                    assert_close(
                        &format!("{label}: student"),
                        &got[0],
                        &want_gradients[0],
                        tolerance,
                    )?;
                    assert_close(
                        &format!("{label}: scale"),
                        &of_scale,
                        &want_gradients[1],
                        tolerance,
                    )?;
                    let entered = if name == "info-nce" { 0 } else { n };
                    assert_eq!(queue.len()?, KEYS + entered, "{label}");
                }
            }
        }
    }
    Ok(())
}

#[test]
fn a_scale_that_is_none_changes_nothing() -> Result<()> {
    let rows = numbers((3, 4), 1)?;
    let mut queue = Queue::new(5, 4, DType::F64, &Device::Cpu)?;
    for (scale, want) in [
        (
            Tensor::new(0f64, &Device::Cpu)?,
            "scale: expected a finite number above 0, got 0",
        ),
        (
            Tensor::new(f64::NAN, &Device::Cpu)?,
            "scale: expected a finite number above 0, got NaN",
        ),
        (
            Tensor::new(&[1f64, 2.], &Device::Cpu)?,
            "scale: expected 1 elements, got 2",
        ),
    ] {
        let mut errors = Vec::new();
        errors.push(rrd_with_scale(
            &rows,
            &rows,
            &mut queue,
            &scale,
            Rrd::default(),
        ));
        errors.push(info_nce_with_scale(
            &rows,
            &rows,
            &scale,
            InfoNce::default(),
        ));
        let loss = InfoNce::default();
        errors.push(info_nce_with_queue_and_scale(
            &rows, &rows, &mut queue, &scale, loss,
        ));
        for error in errors {
            let error = error.expect_err("refused").to_string();
            assert!(error.contains(want), "{error}");
        }
    }
    assert!(queue.is_empty()?);
    Ok(())
}
