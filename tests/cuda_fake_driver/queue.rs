//! Queues on the GPU.

use half::f16;
use relata::cuda::{Buffers, Evaluator, Queue, RawEvaluator, VALUE_LEN};
use relata::{Enqueue, Error, InfoNce, Problem, Rows, Rrd, Shapes};

use crate::fake_driver::{actions, calls, kernels, with_fake_driver};
use crate::stream;

const ROWS: usize = 4;
const DIM: usize = 6;
const CAPACITY: usize = 10;

fn problem(enqueue: Enqueue) -> Problem {
    let loss = Rrd {
        enqueue,
        ..Rrd::default()
    };
    let shapes = Shapes::new(ROWS, DIM, DIM).with_queue(CAPACITY);
    loss.problem(shapes).expect("shapes that fit")
}

with_fake_driver!(the_batch_enters_when_the_loss_says, [], {
    let stream = stream();
    let rows = stream.alloc_zeros::<f16>(ROWS * DIM).expect("memory");
    let mut gradient = stream.alloc_zeros::<f32>(ROWS * DIM).expect("memory");
    let mut value = stream.alloc_zeros::<f32>(VALUE_LEN).expect("memory");
    let entry = ["measure_keys_f16", "write_keys_f16"];
    let mut evaluations = Vec::new();
    for enqueue in [Enqueue::Before, Enqueue::After, Enqueue::Never] {
        let problem = problem(enqueue);
        let mut evaluator = Evaluator::<f16>::new(&stream, &problem).expect("an evaluator");
        let mut queue = Queue::<f16>::new(&stream, &problem).expect("a queue");
        assert_eq!((queue.capacity(), queue.dim()), (CAPACITY, DIM));
        calls();
        if enqueue != Enqueue::Before {
            let empty =
                evaluator.launch_with_queue(&rows, &rows, &mut queue, &mut gradient, &mut value);
            assert_eq!(
                empty,
                Err(Error::Empty {
                    argument: "queue keys"
                })
            );
            queue.enqueue(&rows).expect("launches");
            assert_eq!(kernels(), entry);
        }
        evaluator
            .launch_with_queue(&rows, &rows, &mut queue, &mut gradient, &mut value)
            .expect("launches");
        let mut launched = kernels();
        match enqueue {
            Enqueue::Before => assert_eq!(launched.drain(..2).collect::<Vec<_>>(), entry),
            Enqueue::After => assert_eq!(launched.split_off(launched.len() - 2), entry),
            Enqueue::Never => {}
        }
        evaluations.push(launched);
    }
    assert!(evaluations[0].len() > 1, "{evaluations:#?}");
    assert!(
        evaluations
            .iter()
            .all(|launched| *launched == evaluations[0]),
        "{evaluations:#?}"
    );
});

with_fake_driver!(a_queue_that_does_not_fit_is_refused, [], {
    let stream = stream();
    let rows = stream.alloc_zeros::<f32>(ROWS * DIM).expect("memory");
    let mut gradient = stream.alloc_zeros::<f32>(ROWS * DIM).expect("memory");
    let mut value = stream.alloc_zeros::<f32>(VALUE_LEN).expect("memory");
    let other_shapes = |keys, dim| {
        let shapes = Shapes::new(ROWS, dim, dim).with_queue(keys);
        Rrd::default().problem(shapes).expect("shapes that fit")
    };
    let raw_rows = Rrd {
        normalize: false,
        ..Rrd::default()
    };
    let raw_rows = raw_rows
        .problem(problem(Enqueue::Before).shapes())
        .expect("shapes that fit");
    let mut evaluator =
        Evaluator::<f32>::new(&stream, &problem(Enqueue::Before)).expect("an evaluator");
    for (other, text) in [
        (other_shapes(CAPACITY + 1, DIM), "queue keys: expected "),
        (other_shapes(CAPACITY, DIM + 1), "queue_dim: expected "),
        (
            raw_rows,
            "queue: rrd takes normalised rows, but the queue stores raw keys",
        ),
    ] {
        let mut queue = Queue::<f32>::new(&stream, &other).expect("a queue");
        calls();
        let refused =
            evaluator.launch_with_queue(&rows, &rows, &mut queue, &mut gradient, &mut value);
        let error = refused.expect_err(text);
        assert!(error.to_string().starts_with(text), "{error}");
        assert_eq!(actions(calls()), [""; 0]);
    }
    let missing = evaluator.launch(&rows, &rows, &mut gradient, &mut value);
    assert!(matches!(
        missing,
        Err(Error::Missing {
            argument: "queue",
            ..
        })
    ));

    let in_batch = InfoNce::default()
        .problem(Shapes::new(ROWS, DIM, DIM))
        .expect("shapes that fit");
    assert!(matches!(
        Queue::<f32>::new(&stream, &in_batch),
        Err(Error::Missing { .. })
    ));
    let mut evaluator = Evaluator::<f32>::new(&stream, &in_batch).expect("an evaluator");
    let mut queue = Queue::<f32>::new(&stream, &problem(Enqueue::Before)).expect("a queue");
    let refused = evaluator.launch_with_queue(&rows, &rows, &mut queue, &mut gradient, &mut value);
    assert_eq!(
        refused,
        Err(Error::Unexpected {
            argument: "queue",
            loss: "info-nce"
        })
    );

    let raw = RawEvaluator::new::<f32>(&problem(Enqueue::Before)).expect("an evaluator");
    // SAFETY: nothing is launched.
    let missing = unsafe { raw.launch(&Buffers::default(), std::ptr::null_mut()) };
    assert!(matches!(
        missing,
        Err(Error::Missing {
            argument: "queue",
            ..
        })
    ));
});

/// The fake driver copies memory, so keys that are copied to it and back are the same.
fn keys_survive<T: relata::GpuElement>(len: usize) {
    let stream = stream();
    let mut queue = Queue::<T>::new(&stream, &problem(Enqueue::Before)).expect("a queue");
    assert!(queue.to_host().expect("an empty queue").is_empty());
    let mut host = relata::Queue::<f32>::new(len.max(1), DIM).expect("a queue");
    let keys: Vec<f32> = (0..len * DIM).map(|i| (i as f32 * 0.7).sin()).collect();
    host.enqueue(Rows::new(&keys, [len, DIM]).expect("whole keys"))
        .expect("finite keys");
    queue.restore(&host).expect("a copy");
    let back = queue.to_host().expect("a copy");
    let kept = len.min(CAPACITY);
    assert_eq!((back.len(), back.capacity()), (kept, CAPACITY));
    let want = host.to_vec().split_off((len - kept) * DIM);
    let half = T::DTYPE != relata::DType::F32;
    let rounded = |x: f32| if half { f16::from_f32(x).to_f32() } else { x };
    assert_eq!(
        back.to_vec(),
        want.into_iter().map(rounded).collect::<Vec<_>>()
    );
    queue.clear().expect("cleared");
    assert!(queue.to_host().expect("an empty queue").is_empty());
}

with_fake_driver!(keys_are_saved_and_restored, [], {
    for len in [0, 1, CAPACITY - 1, CAPACITY, CAPACITY + 7] {
        keys_survive::<f32>(len);
        keys_survive::<half::bf16>(len);
    }
    let other = relata::Queue::<f32>::new(3, DIM + 1).expect("a queue");
    let mut queue = Queue::<f32>::new(&stream(), &problem(Enqueue::Before)).expect("a queue");
    let refused = queue.restore(&other);
    assert_eq!(
        refused,
        Err(Error::Dimension {
            argument: "queue_dim",
            expected: DIM,
            got: DIM + 1
        })
    );
});

/// A ring of the GPU's capacity comes back slot by slot, with the position, and so does its state.
fn slots_survive<T: relata::GpuElement>(normalize: bool) {
    let stream = stream();
    let loss = Rrd {
        normalize,
        ..Rrd::default()
    };
    let shapes = Shapes::new(ROWS, DIM, DIM).with_queue(CAPACITY);
    let problem = loss.problem(shapes).expect("shapes that fit");
    // Not full, just full, wrapped, and after a batch larger than the ring.
    for batches in [&[3][..], &[CAPACITY], &[7, 8], &[CAPACITY + 7]] {
        let mut host = relata::Queue::<f32>::new(CAPACITY, DIM)
            .expect("a queue")
            .with_normalize(normalize);
        for &len in batches {
            let keys: Vec<f32> = (0..len * DIM).map(|i| (i as f32 * 0.7).sin()).collect();
            let exact: Vec<f32> = keys.iter().map(|&x| f16::from_f32(x).to_f32()).collect();
            host.enqueue(Rows::new(&exact, [len, DIM]).expect("whole keys"))
                .expect("finite keys");
        }
        let mut queue = Queue::<T>::new(&stream, &problem).expect("a queue");
        queue.restore(&host).expect("a copy");
        let once = queue.to_host().expect("a copy");
        assert_eq!(once.state().next, host.state().next, "{batches:?}");
        if T::DTYPE == relata::DType::F32 || !normalize {
            assert_eq!(once.keys(), host.keys(), "{batches:?}");
        }
        // Keys that a GPU has stored are not rounded again.
        let saved = relata::Queue::from_state(once.state()).expect("a state of a queue");
        let mut resumed = Queue::<T>::new(&stream, &problem).expect("a queue");
        resumed.restore(&saved).expect("a copy");
        let twice = resumed.to_host().expect("a copy");
        assert_eq!(twice.keys(), once.keys(), "{batches:?}");
        let numbers = |queue: &relata::Queue<f32>| {
            let state = queue.state();
            (state.next, state.capacity, state.normalize, queue.len())
        };
        assert_eq!(numbers(&twice), numbers(&host), "{batches:?}");
    }
}

with_fake_driver!(keys_keep_their_slots, [], {
    for normalize in [true, false] {
        slots_survive::<f32>(normalize);
        slots_survive::<f16>(normalize);
        slots_survive::<half::bf16>(normalize);
    }
    let raw = relata::Queue::<f32>::new(CAPACITY, DIM).expect("a queue");
    let raw = raw.with_normalize(false);
    let mut queue = Queue::<f32>::new(&stream(), &problem(Enqueue::Before)).expect("a queue");
    assert_eq!(
        queue.restore(&raw),
        Err(Error::OtherNormalization { normalize: true })
    );
});

// The last batch of an epoch is smaller, and the first batch after a checkpoint may be larger.
with_fake_driver!(batches_of_any_size_share_a_queue, [], {
    let stream = stream();
    let of_rows = |rows| {
        let shapes = Shapes::new(rows, DIM, DIM).with_queue(CAPACITY);
        Rrd::default().problem(shapes).expect("shapes that fit")
    };
    let mut queue = Queue::<f32>::new(&stream, &of_rows(ROWS)).expect("a queue");
    let mut host = relata::Queue::<f32>::new(7, DIM).expect("a queue");
    let keys: Vec<f32> = (0..7 * DIM).map(|i| (i as f32 * 0.7).sin()).collect();
    host.enqueue(Rows::new(&keys, [7, DIM]).expect("whole keys"))
        .expect("finite keys");
    queue.restore(&host).expect("a copy");

    let evaluate = |queue: &mut Queue<f32>, rows: usize| {
        let batch = stream.alloc_zeros::<f32>(rows * DIM).expect("memory");
        let mut gradient = stream.alloc_zeros::<f32>(rows * DIM).expect("memory");
        let mut value = stream.alloc_zeros::<f32>(VALUE_LEN).expect("memory");
        let mut evaluator = Evaluator::new(&stream, &of_rows(rows)).expect("an evaluator");
        evaluator.launch_with_queue(&batch, &batch, queue, &mut gradient, &mut value)
    };
    evaluate(&mut queue, ROWS).expect("launches");
    evaluate(&mut queue, 1).expect("launches");
    let refused = evaluate(&mut queue, 500);
    assert_eq!(
        refused,
        Err(Error::TooLarge {
            argument: "rows",
            most: ROWS,
            got: 500
        })
    );

    queue.reserve(500).expect("memory");
    assert_eq!(queue.rows(), 500);
    evaluate(&mut queue, 500).expect("launches");
    calls();
    queue.reserve(400).expect("nothing to do");
    assert_eq!(actions(calls()), [""; 0]);

    for (elements, fits) in [
        (DIM, true),
        (500 * DIM, true),
        (501 * DIM, false),
        (DIM + 1, false),
    ] {
        let keys = stream.alloc_zeros::<f32>(elements).expect("memory");
        assert_eq!(queue.enqueue(&keys).is_ok(), fits, "{elements} elements");
    }

    // No kernel runs here, so these keys are the ones that `reserve` copied.
    assert_eq!(queue.len().expect("a copy"), 7);
    assert_eq!(queue.to_host().expect("a copy").to_vec(), host.to_vec());
});

// The place of the ring in its buffer does not depend on the size of the batches.
with_fake_driver!(raw_queues_of_any_batch_size_share_a_buffer, [], {
    let stream = stream();
    let raw = |rows| {
        let shapes = Shapes::new(rows, DIM, DIM).with_queue(CAPACITY);
        let problem = Rrd::default().problem(shapes).expect("shapes that fit");
        let evaluator = RawEvaluator::new::<f32>(&problem).expect("an evaluator");
        evaluator.queue().cloned().expect("a queue")
    };
    let (small, large) = (raw(1), raw(500));
    assert!(small.bytes() <= large.bytes());
    let buffer = stream.alloc_zeros::<u8>(large.bytes()).expect("memory");
    let address = {
        use relata::cuda::cudarc::driver::DevicePtr;
        buffer.device_ptr(&stream).0
    };
    let launched = |queue: &relata::cuda::RawQueue| {
        calls();
        // SAFETY: nothing is launched.
        unsafe { queue.enqueue(0x100, address, std::ptr::null_mut()) }.expect("launches");
        let calls = actions(calls());
        let addresses = calls
            .iter()
            .map(|call| call.split(" of ").nth(1).map(str::to_owned));
        addresses.collect::<Vec<_>>()
    };
    // Each kernel takes the addresses of the batch and of the keys.
    assert_eq!(launched(&small).len(), 2);
    assert_eq!(launched(&small), launched(&large));
});
