//! Checks a queue's keys: before and after a loss, when the ring wraps, and through a checkpoint.

use std::collections::HashMap;

use candle_core::{DType, Device, Result, Tensor};
use relata_candle::{Enqueue, InfoNce, Queue, Rrd, info_nce_with_queue, rrd};

const DEVICE: &Device = &Device::Cpu;

/// The rows `first` to `first + count` of a sequence of unit vectors.
fn keys(first: usize, count: usize) -> Result<Tensor> {
    let angles: Vec<f64> = (first..first + count).map(|i| i as f64 * 0.7).collect();
    let row = |angle: f64| [angle.cos(), angle.sin()];
    Tensor::from_vec(
        angles.into_iter().flat_map(row).collect(),
        (count, 2),
        DEVICE,
    )
}

fn queue(capacity: usize) -> Result<Queue> {
    Queue::new(capacity, 2, DType::F64, DEVICE)
}

/// Asserts the keys, up to the rounding of their length to 1.
#[track_caller]
fn assert_holds(queue: &Queue, want: &Tensor) -> Result<()> {
    let got = queue.to_tensor()?;
    assert_eq!(got.dims(), want.dims());
    let off = (got - want)?.abs()?.max_all()?.to_scalar::<f64>()?;
    assert!(off < 1e-15, "off by {off}");
    Ok(())
}

#[test]
fn before_after_or_never() -> Result<()> {
    let (batch, others) = (keys(0, 3)?, keys(10, 3)?);
    for (enqueue, first, second) in [
        (Enqueue::Before, 6, 9),
        (Enqueue::After, 6, 9),
        (Enqueue::Never, 3, 3),
    ] {
        let mut queue = queue(9)?;
        queue.enqueue(&others)?;
        let first_loss = rrd(
            &batch,
            &batch,
            &mut queue,
            Rrd {
                enqueue,
                ..Rrd::default()
            },
        )?;
        assert_eq!(queue.len()?, first, "{enqueue:?}");
        info_nce_with_queue(
            &batch,
            &batch,
            &mut queue,
            InfoNce {
                enqueue,
                ..InfoNce::default()
            },
        )?;
        assert_eq!(queue.len()?, second, "{enqueue:?}");

        // The same loss with a queue filled by hand.
        let mut by_hand = self::queue(9)?;
        by_hand.enqueue(&others)?;
        if enqueue == Enqueue::Before {
            by_hand.enqueue(&batch)?;
        }
        let never = Rrd {
            enqueue: Enqueue::Never,
            ..Rrd::default()
        };
        let want = rrd(&batch, &batch, &mut by_hand, never)?.to_scalar::<f64>()?;
        let got = first_loss.to_scalar::<f64>()?;
        assert!((got - want).abs() < 1e-12, "{enqueue:?}: {got}, {want}");
    }
    Ok(())
}

#[test]
fn the_oldest_leave_first() -> Result<()> {
    let mut queue = queue(5)?;
    for first in [0, 3, 6] {
        queue.enqueue(&keys(first, 3)?)?;
    }
    assert_holds(&queue, &keys(4, 5)?)?;
    queue.enqueue(&keys(20, 12)?)?; // more than fit
    assert_holds(&queue, &keys(27, 5)?)
}

#[test]
fn batches_of_any_size_and_any_strides() -> Result<()> {
    let mut queue = queue(100)?;
    queue.enqueue(&keys(0, 7)?)?;
    queue.enqueue(&keys(0, 30)?.narrow(0, 7, 1)?)?;
    queue.enqueue(&keys(8, 4)?.t()?.contiguous()?.t()?)?;
    assert_holds(&queue, &keys(0, 12)?)
}

#[test]
fn to_a_checkpoint_and_back() -> Result<()> {
    for (dtype, stored) in [
        (DType::F64, DType::F64),
        (DType::F32, DType::F32),
        (DType::F16, DType::F32),
        (DType::BF16, DType::F32),
    ] {
        let mut queue = Queue::new(5, 2, dtype, DEVICE)?;
        let batches = [keys(0, 4)?, keys(4, 3)?].map(|keys| (keys * 3.)?.to_dtype(dtype));
        for batch in batches {
            queue.enqueue(&batch?)?;
        }
        let saved = queue.to_tensor()?;
        assert_eq!((saved.dtype(), saved.dims()), (stored, [5, 2].as_slice()));

        let mut restored = Queue::new(5, 2, dtype, DEVICE)?;
        restored.enqueue(&keys(50, 2)?.to_dtype(dtype)?)?; // replaced by restore
        restored.restore(&saved)?;
        let bits = |tensor: Tensor| tensor.to_dtype(DType::F64)?.to_vec2::<f64>();
        assert_eq!(
            bits(restored.to_tensor()?)?,
            bits(saved)?,
            "{dtype:?}: other bits"
        );

        // Both go on alike.
        for queue in [&mut queue, &mut restored] {
            queue.enqueue(&keys(9, 2)?.to_dtype(dtype)?)?;
        }
        assert_eq!(
            bits(restored.to_tensor()?)?,
            bits(queue.to_tensor()?)?,
            "{dtype:?}"
        );
    }
    Ok(())
}

/// Saved in a file and restored from it at any point, a training goes on with the same bits.
#[test]
fn a_resumed_run_has_the_bits_of_the_one_that_went_on() -> Result<()> {
    let file = tempfile::NamedTempFile::new()?;
    for dtype in [DType::F64, DType::F32, DType::F16, DType::BF16] {
        // Not full, just full, wrapped, and after a batch larger than the ring.
        for past in [&[3][..], &[5], &[4, 3], &[13]] {
            let mut queue = Queue::new(5, 2, dtype, DEVICE)?;
            for &count in past {
                queue.enqueue(&(keys(count, count)? * 3.)?.to_dtype(dtype)?)?;
            }
            candle_core::safetensors::save(&queue.state()?, file.path())?;
            let mut resumed = Queue::new(5, 2, dtype, DEVICE)?;
            resumed.enqueue(&keys(50, 2)?.to_dtype(dtype)?)?; // replaced
            resumed.restore_state(&candle_core::safetensors::load(file.path(), DEVICE)?)?;
            for step in 0..5 {
                let student = keys(7 * step, 2)?.to_dtype(dtype)?;
                let teacher = (keys(3 * step + 1, 2)? * 0.7)?.to_dtype(dtype)?;
                let [want, got] = [&mut queue, &mut resumed].map(|queue| -> Result<f64> {
                    let loss = rrd(&student, &teacher, queue, Rrd::default())?;
                    loss.to_dtype(DType::F64)?.to_scalar::<f64>()
                });
                assert_eq!(got?.to_bits(), want?.to_bits(), "{dtype:?} {past:?}");
                let bits = |queue: &Queue| -> Result<Vec<Vec<f64>>> {
                    queue.state()?[Queue::KEYS]
                        .to_dtype(DType::F64)?
                        .to_vec2::<f64>()
                };
                assert_eq!(bits(&resumed)?, bits(&queue)?, "{dtype:?} {past:?}");
            }
        }
    }
    Ok(())
}

#[test]
fn a_state_of_another_queue_changes_nothing() -> Result<()> {
    let mut queue = queue(5)?;
    queue.enqueue(&keys(0, 3)?)?;
    let good = queue.state()?;
    let with = |name: &str, tensor: Result<Tensor>| -> Result<HashMap<String, Tensor>> {
        let mut state = good.clone();
        state.insert(name.to_owned(), tensor?);
        Ok(state)
    };
    let position = |numbers: &[i64]| {
        with(
            Queue::POSITION,
            Tensor::from_slice(numbers, numbers.len(), DEVICE),
        )
    };
    let bad = [
        (HashMap::new(), "queue state: expected position, got none"),
        (position(&[3, 5])?, "position: expected 3 elements, got 2"),
        (position(&[2, 5, 1])?, "next slot: expected 3, got 2"),
        (position(&[-1, 5, 1])?, "next slot: expected 3, got"),
        (position(&[3, 6, 1])?, "queue capacity: expected 5, got 6"),
        (
            position(&[3, 5, 0])?,
            "queue: expected normalised keys, got raw ones",
        ),
        (
            with(Queue::POSITION, Tensor::new(&[3f32, 5., 1.], DEVICE))?,
            "unexpected dtype",
        ),
        (
            with(Queue::KEYS, keys(0, 2))?,
            "next slot: expected 2, got 3",
        ),
        (
            with(Queue::KEYS, &keys(0, 3)? * 2.)?,
            "queue keys: expected rows of length 1 or 0",
        ),
        (
            with(Queue::KEYS, &keys(0, 3)? / 0.)?,
            "queue keys: expected finite values",
        ),
        (
            with(Queue::KEYS, keys(0, 3)?.to_dtype(DType::F32))?,
            "unexpected dtype",
        ),
        (
            with(Queue::KEYS, keys(0, 3)?.t())?,
            "queue_dim: expected 2, got 3",
        ),
        (
            with(Queue::KEYS, keys(0, 3)?.flatten_all())?,
            "unexpected rank",
        ),
    ];
    for (state, why) in bad {
        let error = queue.restore_state(&state).expect_err(why).to_string();
        assert!(error.contains(why), "{why}: {error}");
        assert_holds(&queue, &keys(0, 3)?)?;
    }
    let mut empty = self::queue(5)?;
    empty.restore_state(&good)?;
    assert_holds(&empty, &keys(0, 3)?)?;
    empty.restore_state(&self::queue(5)?.state()?)?;
    assert!(empty.is_empty()?);
    Ok(())
}

#[test]
fn into_another_capacity() -> Result<()> {
    let saved = keys(0, 5)?;
    let mut smaller = queue(3)?;
    smaller.restore(&saved)?;
    assert_holds(&smaller, &keys(2, 3)?)?;
    let mut larger = queue(8)?;
    larger.restore(&saved)?;
    assert_holds(&larger, &saved)
}

#[test]
fn a_checkpoint_that_does_not_fit_changes_nothing() -> Result<()> {
    let mut queue = queue(5)?;
    queue.enqueue(&keys(0, 3)?)?;
    for bad in [
        Tensor::zeros((4, 3), DType::F64, DEVICE)?,
        Tensor::zeros((4, 2), DType::F32, DEVICE)?,
        Tensor::zeros(8, DType::F64, DEVICE)?,
        (Tensor::ones((4, 2), DType::F64, DEVICE)? / 0.)?,
    ] {
        assert!(queue.restore(&bad).is_err());
    }
    assert_holds(&queue, &keys(0, 3)?)
}

#[test]
fn an_empty_one() -> Result<()> {
    let mut queue = queue(5)?;
    let saved = queue.to_tensor()?;
    assert_eq!(saved.dims(), [0, 2]);
    queue.enqueue(&keys(0, 3)?)?;
    queue.restore(&saved)?;
    assert!(queue.is_empty()?);
    queue.enqueue(&keys(0, 3)?)?;
    queue.clear()?;
    assert!(queue.is_empty()?);
    assert_eq!(
        (queue.capacity(), queue.dim(), queue.dtype()),
        (5, 2, DType::F64)
    );
    Ok(())
}

#[test]
fn keys_as_they_come() -> Result<()> {
    let mut raw = queue(5)?.with_normalize(false);
    let long = (keys(0, 3)? * 3.)?;
    raw.enqueue(&long)?;
    assert_holds(&raw, &long)?;
    let saved = raw.to_tensor()?;
    raw.restore(&saved)?;
    raw.enqueue(&(keys(3, 1)? * 3.)?)?; // still as it comes
    assert_holds(&raw, &(keys(0, 4)? * 3.)?)
}
