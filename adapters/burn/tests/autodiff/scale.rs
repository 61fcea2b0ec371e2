//! Learned temperatures of losses with keys, against burn's autodiff of the formulas.

use burn_tensor::activation::log_softmax;
use burn_tensor::{DType, FloatDType, Tensor, TensorData};
use relata::{Enqueue, InfoNce, Queue, Rows, Rrd};
use relata_burn::{Result, info_nce_with_queue_and_scale, info_nce_with_scale, rrd_with_scale};

use crate::{assert_close, device, numbers, unit, wide};

const SCALE: f64 = 6.5;
const KEYS: usize = 9;

type Fused = fn(&Tensor<2>, &Tensor<2>, &mut Queue<f32>, &Tensor<1>) -> Result<Tensor<1>>;
/// Of the student's rows times the scale, the teacher's and the keys, at length 1.
type Formula = fn(Tensor<2>, Tensor<2>, Tensor<2>) -> Tensor<1>;

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
            let p = log_softmax(y.matmul(keys.clone().transpose()) * 5., 1).exp();
            let log_q = log_softmax(x.matmul(keys.transpose()), 1);
            -(p * log_q).sum_dim(1).mean()
        },
    ),
    (
        "info-nce",
        |x, y, _, scale| info_nce_with_scale(x, y, scale, InfoNce::default()),
        |x, y, _| {
            let own = (x.clone() * y.clone()).sum_dim(1);
            (x.matmul(y.transpose()).exp().sum_dim(1).log() - own).mean()
        },
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
        |x, y, keys| {
            let own = (x.clone() * y).sum_dim(1);
            let all = x.matmul(keys.transpose()).exp().sum_dim(1) + own.clone().exp();
            (all.log() - own).mean()
        },
    ),
];

#[test]
fn scale_and_student_have_their_gradients() -> Result<()> {
    for (dtype, tolerance) in [(FloatDType::F32, 1e-5), (FloatDType::BF16, 1e-2)] {
        for [n, dim] in [[2, 3], [7, 5], [33, 17]] {
            for (name, fused, formula) in CASES {
                let label = format!("{name}, {n} x {dim}, {dtype:?}");
                let held = |x: Tensor<2>| x.cast(dtype).cast(FloatDType::F64);
                let (x, y) = (held(numbers([n, dim], 1)), held(numbers([n, dim], 2)));
                let keys = unit(numbers([KEYS, dim], 3));
                let number =
                    |dtype| Tensor::from_data(TensorData::from([SCALE]), (&device(), dtype));
                let gradients = |loss: Tensor<1>, student: &Tensor<2>, scale: &Tensor<1>| {
                    // An upstream factor that depends on the loss, and the loss twice.
                    let value = wide(loss.clone().into_data());
                    let gradients = (loss.clone() * -2.5 - loss.clone() * loss).backward();
                    let of_scale = scale.grad(&gradients).expect("a gradient");
                    let of_student = student.grad(&gradients).expect("a gradient");
                    [
                        value,
                        wide(of_student.into_data()),
                        wide(of_scale.into_data()),
                    ]
                };

                let student = x.clone().require_grad();
                let scale: Tensor<1> = number(DType::F64).require_grad();
                let scaled = unit(student.clone()) * scale.clone().unsqueeze_dim::<2>(0);
                let want = formula(scaled, unit(y.clone()), keys.clone());
                let want = gradients(want, &student, &scale);

                let mut queue = Queue::new(KEYS + n, dim)?;
                let entering: Vec<f32> = keys.into_data().iter::<f32>().collect();
                queue.enqueue(Rows::new(&entering, [KEYS, dim])?)?;
                let student = x.cast(dtype).require_grad();
                let scale: Tensor<1> = number(dtype.into()).require_grad();
                let got = fused(&student, &y.cast(dtype), &mut queue, &scale)?;
                let got = gradients(got, &student, &scale);
                for ((part, got), want) in ["loss", "student", "scale"].iter().zip(&got).zip(&want)
                {
                    assert_close(&format!("{label}: {part}"), got, want, tolerance);
                }
                let entered = if name == "info-nce" { 0 } else { n };
                assert_eq!(queue.len(), KEYS + entered, "{label}");
            }
        }
    }
    Ok(())
}

#[test]
fn a_scale_that_is_none_changes_nothing() -> Result<()> {
    let rows = numbers([3, 4], 1).cast(FloatDType::F32);
    let mut queue = Queue::new(5, 4)?;
    for (scale, want) in [
        (vec![0f32], "scale: expected a finite number above 0, got 0"),
        (
            vec![f32::NAN],
            "scale: expected a finite number above 0, got NaN",
        ),
        (vec![1., 2.], "scale: expected 1 elements, got 2"),
    ] {
        let scale = Tensor::from_data(TensorData::from(&scale[..]), (&device(), DType::F32));
        let loss = InfoNce::default();
        let errors = [
            rrd_with_scale(&rows, &rows, &mut queue, &scale, Rrd::default()),
            info_nce_with_scale(&rows, &rows, &scale, loss),
            info_nce_with_queue_and_scale(&rows, &rows, &mut queue, &scale, loss),
        ];
        for error in errors {
            assert_eq!(error.expect_err("refused").to_string(), want);
        }
    }
    assert!(queue.is_empty());
    Ok(())
}
