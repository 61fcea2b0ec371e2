//! Inputs that cannot be evaluated are refused with an error that says why, and the queue stays as
//! it was.

use candle_core::{DType, Device, Error, Result, Tensor};
use relata::{QueueUse, TeacherUse};
use relata_candle::{
    Enqueue, InfoNce, KdKl, Loss, Queue, Rkd, RkdAngle, RkdDistance, Rrd, Sp, cause, info_nce,
    info_nce_with_queue, kd_kl, loss, loss_with_queue, rkd, rkd_angle, rkd_distance, rrd, sp,
};

fn zeros(shape: impl Into<candle_core::Shape>, dtype: DType) -> Tensor {
    Tensor::zeros(shape, dtype, &Device::Cpu).expect("a small tensor")
}

fn queue(dim: usize) -> Queue {
    Queue::new(8, dim, DType::F32, &Device::Cpu).expect("a small queue")
}

/// The error without its context, and without the backtrace that `RUST_BACKTRACE` adds.
fn bare(error: &Error) -> &Error {
    match error {
        Error::WithBacktrace { inner, .. } | Error::Context { inner, .. } => bare(inner),
        error => error,
    }
}

/// The errors of every loss on these inputs, with empty queues of the student's width.
fn refusals(student: &Tensor, teacher: &Tensor) -> Vec<Error> {
    let dim = student.dims().last().copied().unwrap_or(0).max(1);
    let results = [
        rkd_distance(student, teacher, RkdDistance::default()),
        rkd_angle(student, teacher, RkdAngle::default()),
        rkd(student, teacher, Rkd::default()),
        sp(student, teacher, Sp),
        kd_kl(student, teacher, KdKl::default()),
        info_nce(student, teacher, InfoNce::default()),
        rrd(student, teacher, &mut queue(dim), Rrd::default()),
        info_nce_with_queue(
            student,
            teacher,
            &mut queue(dim),
            InfoNce {
                enqueue: Enqueue::Before,
                ..InfoNce::default()
            },
        ),
    ];
    results.map(|result| result.expect_err("refused")).into()
}

#[test]
fn rows_that_differ_in_number() {
    for error in refusals(&zeros((4, 3), DType::F32), &zeros((5, 3), DType::F32)) {
        let expected = relata::Error::Dimension {
            argument: "teacher rows",
            expected: 4,
            got: 5,
        };
        assert_eq!(cause(&error), Some(&expected));
        assert!(
            error
                .to_string()
                .contains("teacher rows: expected 4, got 5"),
            "{error}"
        );
    }
}

#[test]
fn nothing_at_all() {
    for shape in [(0, 3), (3, 0), (0, 0)] {
        for error in refusals(&zeros(shape, DType::F32), &zeros(shape, DType::F32)) {
            let Some(relata::Error::Empty { argument }) = cause(&error) else {
                panic!("{shape:?}: {error}");
            };
            assert!(
                ["rows", "student_dim", "teacher_dim"].contains(argument),
                "{argument}"
            );
        }
    }
}

#[test]
fn dimensions_that_have_to_agree() -> Result<()> {
    let (student, teacher) = (zeros((4, 3), DType::F32), zeros((4, 2), DType::F32));
    let expected = relata::Error::Dimension {
        argument: "teacher_dim",
        expected: 3,
        got: 2,
    };
    for result in [
        kd_kl(&student, &teacher, KdKl::default()),
        info_nce(&student, &teacher, InfoNce::default()),
        rrd(&student, &teacher, &mut queue(3), Rrd::default()),
    ] {
        assert_eq!(cause(&result.expect_err("refused")), Some(&expected));
    }
    rkd(&student, &teacher, Rkd::default())?;
    Ok(())
}

#[test]
fn tensors_that_are_no_matrices() {
    for shape in [vec![], vec![6]] {
        let tensor = zeros(shape, DType::F32);
        for error in refusals(&tensor, &zeros((2, 3), DType::F32)) {
            let Error::UnexpectedNumberOfDims { expected, got, .. } = *bare(&error) else {
                panic!("{error}");
            };
            assert_eq!((expected, got), (2, tensor.rank()));
        }
        assert_eq!(refusals(&zeros((2, 3), DType::F32), &tensor).len(), 8);
    }
}

#[test]
fn types_that_differ() {
    for error in refusals(&zeros((4, 3), DType::F32), &zeros((4, 3), DType::F16)) {
        let Error::DTypeMismatchBinaryOp {
            lhs: DType::F32,
            rhs: DType::F16,
            op,
        } = *bare(&error)
        else {
            panic!("{error}");
        };
        assert!(
            [
                "rkd",
                "rkd-distance",
                "rkd-angle",
                "sp",
                "kd-kl",
                "info-nce",
                "rrd"
            ]
            .contains(&op)
        );
    }
}

#[test]
fn types_that_are_no_embeddings() {
    for dtype in [DType::U8, DType::U32, DType::I64] {
        for error in refusals(&zeros((4, 3), dtype), &zeros((4, 3), dtype)) {
            assert!(
                matches!(*bare(&error), Error::UnsupportedDTypeForOp(got, _) if got == dtype),
                "{error}"
            );
        }
        assert!(Queue::new(8, 3, dtype, &Device::Cpu).is_err());
    }
}

#[test]
fn parameters_out_of_range() -> Result<()> {
    let (student, teacher) = (zeros((4, 3), DType::F32), zeros((4, 3), DType::F32));
    let mut queue = queue(3);
    for (argument, result) in [
        (
            "delta",
            rkd_angle(
                &student,
                &teacher,
                RkdAngle {
                    delta: 0.,
                    normalize: false,
                },
            ),
        ),
        (
            "student_temperature",
            kd_kl(&student, &teacher, KdKl::new(f64::NAN)),
        ),
        (
            "teacher_temperature",
            rrd(
                &student,
                &teacher,
                &mut queue,
                Rrd {
                    teacher_temperature: -1.,
                    ..Rrd::default()
                },
            ),
        ),
    ] {
        let error = result.expect_err("refused");
        assert!(
            matches!(cause(&error), Some(relata::Error::Parameter { argument: at, .. }) if *at == argument),
            "{error}"
        );
    }
    assert!(queue.is_empty()?);
    Ok(())
}

#[test]
fn queues_that_do_not_fit() -> Result<()> {
    for capacity_and_dim in [(0, 3), (8, 0)] {
        let error = Queue::new(
            capacity_and_dim.0,
            capacity_and_dim.1,
            DType::F32,
            &Device::Cpu,
        )
        .expect_err("refused");
        assert!(
            matches!(cause(&error), Some(relata::Error::Empty { .. })),
            "{error}"
        );
    }
    let error = Queue::new(usize::MAX, 16, DType::F32, &Device::Cpu).expect_err("refused");
    assert!(
        matches!(cause(&error), Some(relata::Error::OutOfMemory { .. })),
        "{error}"
    );

    let rows = zeros((4, 3), DType::F32);
    let error = rrd(&rows, &rows, &mut queue(5), Rrd::default()).expect_err("refused");
    let expected = relata::Error::Dimension {
        argument: "queue_dim",
        expected: 3,
        got: 5,
    };
    assert_eq!(cause(&error), Some(&expected));

    let wide = zeros((4, 3), DType::F64);
    let half = zeros((4, 3), DType::BF16);
    for rows in [wide, half] {
        let error = rrd(&rows, &rows, &mut queue(3), Rrd::default()).expect_err("refused");
        assert!(
            matches!(bare(&error), Error::DTypeMismatchBinaryOp { .. }),
            "{error}"
        );
        assert!(queue(3).enqueue(&rows).is_err());
    }
    Ok(())
}

#[test]
fn an_empty_queue_unless_it_is_filled_before() -> Result<()> {
    let rows = Tensor::rand(-1f32, 1., (4, 3), &Device::Cpu)?;
    let after = Rrd {
        enqueue: Enqueue::After,
        ..Rrd::default()
    };
    let mut queue = queue(3);
    let error = rrd(&rows, &rows, &mut queue, after).expect_err("refused");
    assert_eq!(
        cause(&error),
        Some(&relata::Error::Empty {
            argument: "queue keys"
        })
    );
    let error =
        info_nce_with_queue(&rows, &rows, &mut queue, InfoNce::default()).expect_err("refused");
    assert_eq!(
        cause(&error),
        Some(&relata::Error::Empty {
            argument: "queue keys"
        })
    );
    assert!(queue.is_empty()?);

    rrd(&rows, &rows, &mut queue, Rrd::default())?;
    assert_eq!(queue.len()?, 4);
    Ok(())
}

/// A bad batch neither spoils the queue nor goes unnoticed.
#[test]
fn numbers_that_are_none() -> Result<()> {
    let good = Tensor::rand(-1f32, 1., (4, 3), &Device::Cpu)?;
    let bad = (&good / 0.)?;
    for (student, teacher, enqueued) in [(&bad, &good, 4), (&good, &bad, 0)] {
        for loss in [
            rkd(student, teacher, Rkd::default())?,
            kd_kl(student, teacher, KdKl::default())?,
            info_nce(student, teacher, InfoNce::default())?,
        ] {
            assert!(loss.to_scalar::<f32>()?.is_nan());
        }
        let mut queue = queue(3);
        assert!(
            rrd(student, teacher, &mut queue, Rrd::default())?
                .to_scalar::<f32>()?
                .is_nan()
        );
        assert_eq!(queue.len()?, enqueued);
    }

    let mut queue = queue(3);
    let error = queue.enqueue(&bad).expect_err("refused");
    assert!(
        matches!(
            cause(&error),
            Some(relata::Error::NotFinite {
                argument: "keys",
                row: 0,
                column: 0,
                ..
            })
        ),
        "{error}"
    );
    assert!(queue.is_empty()?);
    Ok(())
}

#[test]
fn a_cause_behind_context() {
    let rows = zeros((4, 3), DType::F32);
    let error = rkd(&rows, &zeros((5, 3), DType::F32), Rkd::default()).expect_err("refused");
    let error = error.context("in step 7").with_path("model.rs");
    assert!(matches!(
        cause(&error),
        Some(relata::Error::Dimension { .. })
    ));
    assert!(cause(&Error::msg("something else")).is_none());
}

/// The loss's spec says whether it takes a queue, how the queue stores its keys, and whether the loss
/// takes a teacher at all.
#[test]
fn queues_that_are_not_for_the_loss() {
    let rows = zeros((4, 3), DType::F32);
    for kind in Loss::all() {
        let spec = kind.spec();
        let without = loss(&rows, &rows, kind);
        let with = loss_with_queue(&rows, &rows, &mut queue(3), kind);
        if spec.teacher == TeacherUse::Never {
            for error in [without, with].map(|result| result.expect_err("refused")) {
                let expected = relata::Error::Unexpected {
                    argument: "teacher",
                    loss: spec.name,
                };
                assert_eq!(cause(&error), Some(&expected));
            }
            continue;
        }
        match spec.queue {
            QueueUse::Never => assert!(matches!(
                cause(&with.expect_err("refused")),
                Some(relata::Error::Unexpected {
                    argument: "queue",
                    ..
                })
            )),
            QueueUse::Required => assert!(matches!(
                cause(&without.expect_err("refused")),
                Some(relata::Error::Missing {
                    argument: "queue",
                    ..
                })
            )),
            QueueUse::Optional => assert!(without.is_ok()),
        }
        if spec.queue != QueueUse::Never {
            let mut raw = queue(3).with_normalize(!spec.normalize);
            raw.enqueue(&rows).expect("zeros enter");
            let error = loss_with_queue(&rows, &rows, &mut raw, kind).expect_err("refused");
            let expected = relata::Error::QueueNormalization {
                loss: spec.name,
                normalize: spec.normalize,
            };
            assert_eq!(cause(&error), Some(&expected));
            assert_eq!(raw.len().expect("on the CPU"), 4);
        }
    }
}
