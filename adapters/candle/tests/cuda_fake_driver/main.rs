//! The adapter's host code for CUDA, without a GPU: a fake driver records the calls. No kernel
//! runs, so nothing here is about numbers.

mod support;

use std::cell::RefCell;

use candle_core::{DType, Device, Error, Result, Tensor, Var};
use relata_candle::{
    Clip, Enqueue, Gram, InfoNce, KdKl, Queue, Rkd, RkdAngle, Rrd, SigLip, Sp, SupCon,
    WeightPrecision, cause, clip, clip_with_scale, info_nce_with_queue_and_scale,
    info_nce_with_scale, kd_kl, loss, loss_and_terms, loss_and_terms_with_queue,
    release_workspaces, rkd, rkd_angle, rrd, rrd_with_scale, siglip, siglip_with_scale, sp,
    sup_con, sup_con_with_scale,
};

use crate::support::FakeDriver;

const ROWS: usize = 5;
const DIM: usize = 3;

/// The stream that candle's device has for each thread.
const STREAM: &str = "stream 0x2";

fn rows(device: &Device) -> Result<Tensor> {
    Tensor::zeros((ROWS, DIM), DType::F32, device)
}

/// The names of the kernels in these calls; relata's are without the prefix.
fn kernels(calls: &[String]) -> Vec<&str> {
    let launches = calls
        .iter()
        .filter_map(|call| call.strip_prefix("cuLaunchKernel "));
    let names = launches.map(|call| call.split(' ').next().unwrap_or_default());
    names
        .map(|name| name.strip_prefix("relata_").unwrap_or(name))
        .collect()
}

fn count(calls: &[String], name: &str) -> usize {
    calls.iter().filter(|call| call.starts_with(name)).count()
}

/// From the second step on an evaluation allocates the gradient and the loss, and launches; all on
/// candle's stream.
#[test]
fn a_step_is_launches_on_candles_stream() -> Result<()> {
    let Some(fake_driver) = FakeDriver::found() else {
        return Ok(());
    };
    let student = Var::zeros((ROWS, DIM), DType::F32, &fake_driver.device)?;
    let teacher = rows(&fake_driver.device)?;
    let losses: [(&str, &dyn Fn() -> Result<Tensor>); 4] = [
        ("kd-kl", &|| kd_kl(&student, &teacher, KdKl::default())),
        ("rkd", &|| rkd(&student, &teacher, Rkd::default())),
        ("rkd-angle", &|| {
            rkd_angle(&student, &teacher, RkdAngle::default())
        }),
        ("sp", &|| sp(&student, &teacher, Sp)),
    ];
    for (name, loss) in losses {
        let first = loss()?;
        assert!(first.device().is_cuda() && first.dtype() == DType::F32 && first.rank() == 0);
        fake_driver.calls();
        let second = loss()?;
        let calls = fake_driver.calls();
        let allocations = count(&calls, "cuMemAllocAsync");
        let launches = count(&calls, "cuLaunchKernel relata_");
        assert_eq!(allocations, 2, "{name}: {calls:#?}");
        assert!(
            launches > 0 && allocations + launches == calls.len(),
            "{name}: {calls:#?}"
        );
        assert!(
            calls.iter().all(|call| call.contains(STREAM)),
            "{name}: {calls:#?}"
        );
        drop((first, second));
    }
    Ok(())
}

/// Groups of rows are launches of one evaluation, and another plan than those of a matrix of as many
/// rows. A gradient has the student's shape.
#[test]
fn groups_are_launches_of_one_evaluation() -> Result<()> {
    let Some(fake_driver) = FakeDriver::found() else {
        return Ok(());
    };
    let student = Var::zeros((2, ROWS, DIM), DType::F32, &fake_driver.device)?;
    let teacher = Tensor::zeros((2, ROWS, DIM), DType::F32, &fake_driver.device)?;
    let flat = [student.flatten_to(1)?, teacher.flatten_to(1)?];
    loss(&flat[0], &flat[1], Gram::default())?;
    fake_driver.calls();
    let grouped = loss(&student, &teacher, Gram::default())?;
    let calls = fake_driver.calls();
    let (mean, groups) = kernels(&calls)
        .split_last()
        .map_or(("", Vec::new()), |(last, rest)| (*last, rest.to_vec()));
    assert_eq!(mean, "mean_of_groups", "{calls:#?}");
    let (first, second) = groups.split_at(groups.len() / 2);
    assert!(!first.is_empty() && first == second, "{groups:#?}");
    let gradients = grouped.backward()?;
    let gradient = gradients.get(&student).expect("a gradient");
    assert_eq!(gradient.dims(), [2, ROWS, DIM]);
    Ok(())
}

/// Terms lie in the loss's memory. Only reading them copies, and waits.
#[test]
fn terms_are_copied_when_they_are_read() -> Result<()> {
    let Some(fake_driver) = FakeDriver::found() else {
        return Ok(());
    };
    let device = &fake_driver.device;
    let (student, teacher) = (rows(device)?, rows(device)?);
    let mut queue = Queue::new(10, DIM, DType::F32, device)?;
    let (rkd, parts) = loss_and_terms(&student, &teacher, Rkd::default())?;
    let (rrd, divergence) =
        loss_and_terms_with_queue(&student, &teacher, &mut queue, Rrd::default())?;
    let (kd, none) = loss_and_terms(&student, &teacher, KdKl::default())?;
    assert!([&rkd, &rrd, &kd].iter().all(|loss| loss.rank() == 0));
    assert_eq!(count(&fake_driver.calls(), "cuMemcpyDtoH"), 0);
    let names = |terms: &relata_candle::Terms| -> Result<Vec<&str>> {
        Ok(terms.to_vec()?.iter().map(|&(name, _)| name).collect())
    };
    assert_eq!(names(&parts)?, ["distance", "angle"]);
    assert_eq!(names(&divergence)?, ["kl"]);
    let calls = fake_driver.calls();
    assert_eq!(count(&calls, "cuMemcpyDtoH"), 2, "{calls:#?}");
    assert!(names(&none)?.is_empty());
    assert!(fake_driver.calls().is_empty());
    Ok(())
}

/// Towers are joined on the GPU. A learned scale is read to the host in the forward pass; its gradient
/// stays on the GPU.
#[test]
fn towers_are_launches_and_a_learned_number_is_one_copy() -> Result<()> {
    let Some(fake_driver) = FakeDriver::found() else {
        return Ok(());
    };
    let device = &fake_driver.device;
    let images = Var::zeros((ROWS, DIM), DType::F32, device)?;
    let texts = Var::zeros((ROWS, DIM), DType::F32, device)?;
    let teacher = Tensor::zeros((ROWS, 2 * DIM), DType::F32, device)?;
    let labels = Tensor::zeros(ROWS, DType::U32, device)?;
    // The memory of a fake driver holds what was copied there.
    let number = |number: f32| Var::from_tensor(&Tensor::new(number, device)?);
    let (scale, bias) = (number(8.)?, number(-2.)?);
    let (both, loss) = (Some((&teacher, &teacher)), Clip::default());
    // Numbers that are copied, and leaves that get a gradient.
    type Case<'a> = (&'a str, [usize; 2], &'a dyn Fn() -> Result<Tensor>);
    let losses: [Case<'_>; 7] = [
        ("clip", [0, 2], &|| clip(&images, &texts, None, loss)),
        ("clip, teacher", [0, 2], &|| {
            clip(&images, &texts, both, loss)
        }),
        ("siglip", [0, 2], &|| {
            siglip(&images, &texts, SigLip::default())
        }),
        ("sup-con", [0, 1], &|| {
            sup_con(&images, &labels, SupCon::default())
        }),
        ("clip, scale", [1, 3], &|| {
            clip_with_scale(&images, &texts, both, &scale, loss)
        }),
        ("siglip, scale", [2, 4], &|| {
            siglip_with_scale(&images, &texts, &scale, &bias)
        }),
        ("sup-con, scale", [1, 2], &|| {
            sup_con_with_scale(&images, &labels, &scale)
        }),
    ];
    for (name, [copies, leaves], loss) in losses {
        loss()?;
        fake_driver.calls();
        let value = loss()?;
        let calls = fake_driver.calls();
        assert_eq!(count(&calls, "cuMemcpyDtoH"), copies, "{name}: {calls:#?}");
        let waits = count(&calls, "cuStreamSynchronize") + count(&calls, "cuCtxSynchronize");
        assert!(waits <= copies, "{name}: {calls:#?}");
        let towers = kernels(&calls)
            .iter()
            .filter(|name| name.starts_with("towers_"))
            .count();
        assert!(towers > 0, "{name}: {calls:#?}");
        let elsewhere = |call: &&String| call.contains("stream ") && !call.contains(STREAM);
        assert_eq!(calls.iter().find(elsewhere), None, "{name}");

        let gradients = value.backward()?;
        let calls = fake_driver.calls();
        assert_eq!(count(&calls, "cuMemcpyDtoH"), 0, "{name}: {calls:#?}");
        assert_eq!(
            count(&calls, "cuStreamSynchronize"),
            0,
            "{name}: {calls:#?}"
        );
        let reached = [&images, &texts, &scale, &bias];
        let reached = reached.into_iter().filter_map(|leaf| {
            let gradient = gradients.get(leaf)?;
            assert!(gradient.device().is_cuda() && gradient.dims() == leaf.dims());
            Some(())
        });
        assert_eq!(reached.count(), leaves, "{name}");
    }

    let signed = labels.to_dtype(DType::I64)?;
    let error = sup_con(&images, &signed, SupCon::default()).expect_err("refused");
    assert!(
        error
            .to_string()
            .contains("sup-con: labels: expected u32 on a GPU"),
        "{error}"
    );
    Ok(())
}

/// A learned temperature is read to the host once, and nothing is kept for a step that has another.
#[test]
fn a_learned_temperature_is_one_copy() -> Result<()> {
    let Some(fake_driver) = FakeDriver::found() else {
        return Ok(());
    };
    let device = &fake_driver.device;
    let student = Var::zeros((ROWS, DIM), DType::F32, device)?;
    let teacher = rows(device)?;
    let scale = Var::from_tensor(&Tensor::new(8f32, device)?)?;
    let queue = RefCell::new(Queue::new(10, DIM, DType::F32, device)?);
    type Case<'a> = (&'a str, &'a dyn Fn() -> Result<Tensor>);
    let losses: [Case<'_>; 3] = [
        ("rrd", &|| {
            let queue = &mut queue.borrow_mut();
            rrd_with_scale(&student, &teacher, queue, &scale, Rrd::default())
        }),
        ("info-nce", &|| {
            info_nce_with_scale(&student, &teacher, &scale, InfoNce::default())
        }),
        ("info-nce, queue", &|| {
            let (queue, loss) = (&mut queue.borrow_mut(), InfoNce::default());
            info_nce_with_queue_and_scale(&student, &teacher, queue, &scale, loss)
        }),
    ];
    for (name, loss) in losses {
        loss()?;
        fake_driver.calls();
        let value = loss()?;
        let calls = fake_driver.calls();
        assert_eq!(count(&calls, "cuMemcpyDtoH"), 1, "{name}: {calls:#?}");
        // The gradient of the scale.
        let weighs = kernels(&calls).contains(&"weigh_rows");
        assert!(weighs, "{name}: {calls:#?}");
        release_workspaces();
        assert_eq!(
            count(&fake_driver.calls(), "cuMemFree"),
            0,
            "{name}: a workspace was kept"
        );

        let gradients = value.backward()?;
        assert_eq!(count(&fake_driver.calls(), "cuMemcpyDtoH"), 0, "{name}");
        for leaf in [&student, &scale] {
            let gradient = gradients.get(leaf).expect("a gradient");
            assert!(gradient.device().is_cuda() && gradient.dims() == leaf.dims());
        }
    }
    Ok(())
}

/// The backward pass copies nothing to the host: the upstream factor stays on the GPU.
#[test]
fn backward_is_launches_too() -> Result<()> {
    let Some(fake_driver) = FakeDriver::found() else {
        return Ok(());
    };
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let student = Var::zeros((ROWS, DIM), dtype, &fake_driver.device)?;
        let teacher = rows(&fake_driver.device)?.to_dtype(dtype)?;
        let loss = (rkd(&student, &teacher, Rkd::default())? * 3.)?.sqr()?;
        fake_driver.calls();
        let gradients = loss.backward()?;
        let gradient = gradients.get(&student).expect("a gradient");
        assert_eq!((gradient.dtype(), gradient.dims()), (dtype, student.dims()));
        let calls = fake_driver.calls();
        assert_eq!(count(&calls, "cuMemcpyDtoH"), 0, "{calls:#?}");
        assert_eq!(count(&calls, "cuStreamSynchronize"), 0, "{calls:#?}");
        assert_eq!(count(&calls, "cuLaunchKernel relata_"), 0, "{calls:#?}");
        let casts = kernels(&calls)
            .iter()
            .filter(|name| name.starts_with("cast_f32_"))
            .count();
        assert_eq!(casts, usize::from(dtype != DType::F32), "{calls:#?}");
    }
    Ok(())
}

/// A view of whole rows is not copied. A view that is not contiguous is copied first, on the GPU.
#[test]
fn views_are_read_where_they_lie() -> Result<()> {
    let Some(fake_driver) = FakeDriver::found() else {
        return Ok(());
    };
    let device = &fake_driver.device;
    let (base, teacher) = (
        Tensor::zeros((ROWS + 7, DIM), DType::F32, device)?,
        rows(device)?,
    );
    let addresses = |student: &Tensor| -> Result<(Vec<u64>, Vec<String>)> {
        fake_driver.calls();
        kd_kl(student, &teacher, KdKl::default())?;
        let calls = fake_driver.calls();
        let launch = calls
            .iter()
            .find(|call| call.starts_with("cuLaunchKernel relata_"));
        let of = launch
            .and_then(|call| call.split(" of ").nth(1))
            .expect("a launch");
        let of = of
            .split(' ')
            .map(|hex| u64::from_str_radix(hex.trim_start_matches("0x"), 16));
        Ok((
            of.map(|address| address.expect("an address")).collect(),
            calls,
        ))
    };
    let (at_first, _) = addresses(&base.narrow(0, 0, ROWS)?)?;
    let (at_fourth, calls) = addresses(&base.narrow(0, 4, ROWS)?)?;
    assert_eq!(at_fourth[0] - at_first[0], 4 * (4 * DIM as u64));
    assert_eq!(at_fourth[1], at_first[1]);
    assert!(
        !kernels(&calls).iter().any(|name| name.starts_with("ucopy")),
        "{calls:#?}"
    );

    let transposed = Tensor::zeros((DIM, ROWS), DType::F32, device)?.t()?;
    let (_, calls) = addresses(&transposed)?;
    assert_eq!(kernels(&calls).first(), Some(&"ucopy_f32"), "{calls:#?}");
    assert_eq!(count(&calls, "cuMemcpyDtoH"), 0, "{calls:#?}");
    Ok(())
}

#[test]
fn the_batch_enters_when_the_loss_says() -> Result<()> {
    let Some(fake_driver) = FakeDriver::found() else {
        return Ok(());
    };
    let (student, teacher) = (rows(&fake_driver.device)?, rows(&fake_driver.device)?);
    let entry = ["measure_keys_f32", "write_keys_f32"];
    for enqueue in [Enqueue::Before, Enqueue::After, Enqueue::Never] {
        let loss = Rrd {
            enqueue,
            ..Rrd::default()
        };
        let mut queue = Queue::new(10, DIM, DType::F32, &fake_driver.device)?;
        if enqueue != Enqueue::Before {
            let error = rrd(&student, &teacher, &mut queue, loss).expect_err("an empty queue");
            assert_eq!(
                cause(&error),
                Some(&relata::Error::Empty {
                    argument: "queue keys"
                })
            );
            queue.enqueue(&teacher)?;
        }
        rrd(&student, &teacher, &mut queue, loss)?;
        fake_driver.calls();
        rrd(&student, &teacher, &mut queue, loss)?;
        let calls = fake_driver.calls();
        let launched = kernels(&calls);
        let entries: Vec<_> = launched
            .iter()
            .filter(|name| entry.contains(name))
            .collect();
        match enqueue {
            Enqueue::Before => assert_eq!(launched[..2], entry),
            Enqueue::After => assert_eq!(launched[launched.len() - 2..], entry),
            Enqueue::Never => assert!(entries.is_empty()),
        }
        assert_eq!(count(&calls, "cuMemcpy"), 0, "{calls:#?}");
        assert!(calls.iter().all(|call| call.contains(STREAM)), "{calls:#?}");
    }
    Ok(())
}

/// Weights in one f16 have kernels of their own; see [`WeightPrecision`].
#[test]
fn weights_are_as_precise_as_the_queue_says() -> Result<()> {
    let Some(fake_driver) = FakeDriver::found() else {
        return Ok(());
    };
    let device = &fake_driver.device;
    let batch = Tensor::zeros((ROWS, DIM), DType::BF16, device)?;
    let mut queue = Queue::new(10, DIM, DType::BF16, device)?;
    assert_eq!(queue.weight_precision(), WeightPrecision::Split);
    for (weights, attention) in [
        (WeightPrecision::Half, "attention_mma_64_half_pair"),
        (WeightPrecision::Split, "attention_mma_64"),
    ] {
        queue = queue.with_weight_precision(weights);
        let loss = Rrd {
            student_temperature: 0.1,
            teacher_temperature: 0.1,
            ..Rrd::default()
        };
        fake_driver.calls();
        rrd(&batch, &batch, &mut queue, loss)?;
        let calls = fake_driver.calls();
        assert!(kernels(&calls).contains(&attention), "{calls:#?}");
    }
    Ok(())
}

/// The last batch of an epoch is smaller, and one may be larger. The queue keeps its keys.
#[test]
fn batches_of_any_size_share_a_queue() -> Result<()> {
    let Some(fake_driver) = FakeDriver::found() else {
        return Ok(());
    };
    let device = &fake_driver.device;
    let mut queue = Queue::new(10, DIM, DType::F32, device)?;
    let keys = Tensor::new(&[[1f32, 0., 0.], [0., 1., 0.]], &Device::Cpu)?;
    queue.restore(&keys)?;
    for rows in [4, 1, 9, 2] {
        let batch = Tensor::zeros((rows, DIM), DType::F32, device)?;
        rrd(&batch, &batch, &mut queue, Rrd::default())?;
        queue.enqueue(&batch)?;
        queue.enqueue(&batch.narrow(0, 0, 0)?)?;
    }
    // No kernel runs, so no key enters; but none is lost.
    assert_eq!(queue.len()?, 2);
    assert_eq!(queue.to_tensor()?.to_vec2::<f32>()?, keys.to_vec2::<f32>()?);
    queue.clear()?;
    assert!(queue.is_empty()?);
    Ok(())
}

#[test]
fn keys_of_every_type_are_saved_and_restored() -> Result<()> {
    let Some(fake_driver) = FakeDriver::found() else {
        return Ok(());
    };
    let keys = Tensor::new(&[[0.6f32, 0.8], [1., 0.], [0., 1.]], &Device::Cpu)?;
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        for normalize in [true, false] {
            let mut queue = Queue::new(2, 2, dtype, &fake_driver.device)?.with_normalize(normalize);
            assert!(queue.is_empty()?);
            assert_eq!(queue.to_tensor()?.dims(), [0, 2]);
            queue.restore(&keys.narrow(0, 1, 2)?)?;
            assert_eq!(queue.to_tensor()?.to_vec2::<f32>()?, [[1., 0.], [0., 1.]]);
            queue.restore(&keys)?; // the newest stay
            assert_eq!(queue.to_tensor()?.to_vec2::<f32>()?, [[1., 0.], [0., 1.]]);
        }
    }
    Ok(())
}

/// A ring that has wrapped comes back slot by slot.
#[test]
fn a_state_of_every_type_is_saved_and_restored() -> Result<()> {
    let Some(fake_driver) = FakeDriver::found() else {
        return Ok(());
    };
    let device = &fake_driver.device;
    let keys = Tensor::new(&[[0.6f32, 0.8], [1., 0.], [0., 1.]], &Device::Cpu)?;
    let mut host = Queue::new(2, 2, DType::F32, &Device::Cpu)?;
    host.enqueue(&keys.narrow(0, 0, 2)?)?;
    host.enqueue(&keys.narrow(0, 2, 1)?)?;
    let wrapped = host.state()?;
    let slots = |queue: &Queue| -> Result<(Vec<Vec<f32>>, Vec<i64>)> {
        let state = queue.state()?;
        Ok((
            state[Queue::KEYS].to_vec2()?,
            state[Queue::POSITION].to_vec1()?,
        ))
    };
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let mut queue = Queue::new(2, 2, dtype, device)?;
        assert_eq!(slots(&queue)?, (vec![], vec![0, 2, 1]));
        queue.restore_state(&wrapped)?;
        assert_eq!(
            slots(&queue)?,
            (vec![vec![0., 1.], vec![1., 0.]], vec![1, 2, 1])
        );
        let raw = Queue::new(2, 2, dtype, device)?.with_normalize(false);
        assert_eq!(slots(&raw)?.1, [0, 2, 0]);
        assert!(queue.restore_state(&raw.state()?).is_err());
    }
    Ok(())
}

#[test]
fn what_does_not_fit_is_refused() -> Result<()> {
    let Some(fake_driver) = FakeDriver::found() else {
        return Ok(());
    };
    let device = &fake_driver.device;
    let (here, there) = (rows(device)?, rows(&Device::Cpu)?);
    let is_device = |error: &Error| format!("{error}").contains("device mismatch");
    let losses = [
        kd_kl(&here, &there, KdKl::default()),
        kd_kl(&there, &here, KdKl::default()),
    ];
    for loss in losses {
        assert!(is_device(&loss.expect_err("two devices")));
    }
    let mut queue = Queue::new(10, DIM, DType::F32, &Device::Cpu)?;
    let error = rrd(&here, &here, &mut queue, Rrd::default()).expect_err("a queue of the host");
    assert!(is_device(&error), "{error}");
    let mut queue = Queue::new(10, DIM, DType::F32, device)?;
    let error = rrd(&there, &there, &mut queue, Rrd::default()).expect_err("a queue of the GPU");
    assert!(is_device(&error), "{error}");

    let wide = Tensor::zeros((ROWS, DIM), DType::F64, device)?;
    let error = kd_kl(&wide, &wide, KdKl::default()).expect_err("no kernels");
    assert!(
        error.to_string().contains("unsupported dtype F64"),
        "{error}"
    );
    assert!(Queue::new(10, DIM, DType::F64, device).is_err());

    let short = Tensor::zeros((ROWS - 1, DIM), DType::F32, device)?;
    let error = kd_kl(&here, &short, KdKl::default()).expect_err("fewer rows");
    assert!(matches!(
        cause(&error),
        Some(relata::Error::Dimension {
            argument: "teacher rows",
            expected: ROWS,
            ..
        })
    ));
    let mut narrow = Queue::new(10, DIM + 1, DType::F32, device)?;
    for error in [
        rrd(&here, &here, &mut narrow, Rrd::default()).err(),
        narrow.enqueue(&here).err(),
    ] {
        let error = error.expect("longer keys");
        assert!(
            matches!(
                cause(&error),
                Some(relata::Error::Dimension {
                    argument: "queue_dim",
                    ..
                })
            ),
            "{error}"
        );
    }
    for (capacity, dim) in [(0, 3), (3, 0)] {
        let error = Queue::new(capacity, dim, DType::F32, device).expect_err("nothing");
        assert!(matches!(cause(&error), Some(relata::Error::Empty { .. })));
    }
    let unequal = InfoNce {
        normalize: false,
        enqueue: Enqueue::Before,
        ..InfoNce::default()
    };
    let mut unit = Queue::new(10, DIM, DType::F32, device)?;
    let error = relata_candle::info_nce_with_queue(&here, &here, &mut unit, unequal);
    assert_eq!(
        cause(&error.expect_err("unit keys")),
        Some(&relata::Error::QueueNormalization {
            loss: "info-nce",
            normalize: false
        })
    );
    Ok(())
}

/// A failed evaluation may leave the workspace in a bad state: the next one takes a new workspace.
#[test]
fn an_evaluator_that_failed_is_not_used_again() -> Result<()> {
    let Some(fake_driver) = FakeDriver::found() else {
        return Ok(());
    };
    let (student, teacher) = (rows(&fake_driver.device)?, rows(&fake_driver.device)?);
    let loss = || rkd(&student, &teacher, Rkd::default());
    loss()?;
    fake_driver.fail("cuLaunchKernel", 719);
    let error = loss().expect_err("a launch that fails");
    assert!(
        matches!(cause(&error), Some(relata::Error::Cuda { code: 719, .. })),
        "{error}"
    );
    fake_driver.work_again();
    fake_driver.calls();
    loss()?;
    let calls = fake_driver.calls();
    assert_eq!(count(&calls, "cuMemAllocAsync"), 3, "{calls:#?}");
    assert_eq!(count(&calls, "cuMemsetD8Async 256"), 1, "{calls:#?}");
    Ok(())
}

/// A workspace belongs to one stream, and each thread has its own behind one handle.
#[test]
fn threads_do_not_share() -> Result<()> {
    let Some(fake_driver) = FakeDriver::found() else {
        return Ok(());
    };
    let (student, teacher) = (rows(&fake_driver.device)?, rows(&fake_driver.device)?);
    let mut queue = Queue::new(10, DIM, DType::F32, &fake_driver.device)?;
    let mut step = || -> Result<()> {
        rkd(&student, &teacher, Rkd::default())?;
        rrd(&student, &teacher, &mut queue, Rrd::default())?;
        Ok(())
    };
    step()?;
    step()?;
    let calls = fake_driver.calls();
    assert_eq!(count(&calls, "cuCtxSynchronize"), 0, "{calls:#?}");
    let elsewhere = std::thread::scope(|scope| scope.spawn(&mut step).join());
    elsewhere.expect("no panic")?;
    let calls = fake_driver.calls();
    let workspaces = count(&calls, "cuMemAllocAsync") - 4;
    assert_eq!(workspaces, 2, "{calls:#?}");
    // The queue's keys were written on the other thread's stream.
    assert_eq!(count(&calls, "cuCtxSynchronize"), 1, "{calls:#?}");
    // A thread that ends calls the driver no more. The next evaluation frees its two workspaces.
    assert_eq!(count(&calls, "cuMemFreeAsync"), 4, "{calls:#?}");
    step()?;
    let calls = fake_driver.calls();
    assert_eq!(count(&calls, "cuCtxSynchronize"), 1, "{calls:#?}");
    let freed = |call: &&String| call.as_str() == "cuMemFreeAsync stream 0";
    // The stream of the thread that has ended is gone. The legacy stream waits for its work.
    assert_eq!(calls.iter().filter(freed).count(), 2, "{calls:#?}");
    Ok(())
}

#[test]
fn workspaces_can_be_given_back() -> Result<()> {
    let Some(fake_driver) = FakeDriver::found() else {
        return Ok(());
    };
    let (student, teacher) = (rows(&fake_driver.device)?, rows(&fake_driver.device)?);
    let loss = rkd(&student, &teacher, Rkd::default())?;
    fake_driver.calls();
    release_workspaces();
    assert!(count(&fake_driver.calls(), "cuMemFreeAsync") >= 1);
    drop(loss);

    // A thread frees them itself when there are too many.
    for rows in 1..40 {
        let rows = Tensor::zeros((rows, DIM), DType::F32, &fake_driver.device)?;
        kd_kl(&rows, &rows, KdKl::default())?;
    }
    fake_driver.calls();
    release_workspaces();
    assert_eq!(count(&fake_driver.calls(), "cuMemFreeAsync"), 16);
    Ok(())
}
