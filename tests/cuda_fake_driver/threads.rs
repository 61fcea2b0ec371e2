//! Evaluators and queues that move from thread to thread. The per-thread stream is another stream
//! on each thread, behind one handle.

use std::thread;

use relata::cuda::cudarc::driver::{CudaContext, CudaStream};
use relata::cuda::{Evaluator, Queue, VALUE_LEN};
use relata::{Problem, Rkd, Rows, Rrd, Shapes};
use std::sync::Arc;

use crate::fake_driver::{actions, calls, with_fake_driver};

const ROWS: usize = 40;
const DIM: usize = 6;
const CAPACITY: usize = 10;

fn per_thread() -> Arc<CudaStream> {
    let context = CudaContext::new(0).expect("the fake driver's GPU");
    context.per_thread_stream()
}

fn rkd() -> Problem {
    let shapes = Shapes::new(ROWS, DIM, DIM);
    Rkd::default().problem(shapes).expect("shapes that fit")
}

fn rrd() -> Problem {
    let shapes = Shapes::new(ROWS, DIM, DIM).with_queue(CAPACITY);
    Rrd::default().problem(shapes).expect("shapes that fit")
}

/// An evaluation of slices that this thread's stream has allocated.
fn evaluate(evaluator: &mut Evaluator<f32>, queue: Option<&mut Queue<f32>>) {
    let stream = Arc::clone(evaluator.stream());
    let of = |len| stream.alloc_zeros::<f32>(len).expect("memory");
    let (student, teacher) = (of(ROWS * DIM), of(ROWS * DIM));
    let (mut gradient, mut value) = (of(ROWS * DIM), of(VALUE_LEN));
    let launched = match queue {
        None => evaluator.launch(&student, &teacher, &mut gradient, &mut value),
        Some(queue) => {
            evaluator.launch_with_queue(&student, &teacher, queue, &mut gradient, &mut value)
        }
    };
    launched.expect("launches");
}

fn count(calls: &[String], name: &str) -> usize {
    calls.iter().filter(|call| call.starts_with(name)).count()
}

/// Nothing was launched or freed while another stream used the same memory.
fn assert_ordered(calls: &[String]) {
    assert_eq!(count(calls, "unordered"), 0, "{calls:#?}");
}

with_fake_driver!(an_evaluator_moves_to_another_thread, [], {
    let mut evaluator = Evaluator::new(&per_thread(), &rkd()).expect("an evaluator");
    evaluate(&mut evaluator, None);
    evaluate(&mut evaluator, None);
    let here = calls();
    assert_ordered(&here);
    assert_eq!(count(&here, "cuCtxSynchronize"), 0, "{here:#?}");
    let mut evaluator = thread::spawn(move || {
        evaluate(&mut evaluator, None);
        evaluate(&mut evaluator, None);
        evaluator
    })
    .join()
    .expect("no panic");
    let there = calls();
    assert_ordered(&there);
    assert_eq!(count(&there, "cuCtxSynchronize"), 1, "{there:#?}");
    evaluate(&mut evaluator, None);
    let back = calls();
    assert_ordered(&back);
    assert_eq!(count(&back, "cuCtxSynchronize"), 1, "{back:#?}");
});

with_fake_driver!(a_queue_moves_to_another_thread, [], {
    let stream = per_thread();
    let mut evaluator = Evaluator::new(&stream, &rrd()).expect("an evaluator");
    let mut queue = Queue::<f32>::new(&stream, &rrd()).expect("a queue");
    evaluate(&mut evaluator, Some(&mut queue));
    drop(evaluator);
    let mut queue = thread::spawn(move || {
        let mut evaluator = Evaluator::new(&per_thread(), &rrd()).expect("an evaluator");
        evaluate(&mut evaluator, Some(&mut queue));
        queue
    })
    .join()
    .expect("no panic");
    let keys = stream.alloc_zeros::<f32>(ROWS * DIM).expect("memory");
    queue.enqueue(&keys).expect("launches");
    let mut queue = thread::spawn(move || {
        queue.reserve(10 * ROWS).expect("memory");
        queue
    })
    .join()
    .expect("no panic");
    queue.clear().expect("cleared");
    assert_ordered(&calls());
});

// No kernel runs here. So the copies and the fills are what a thread can see of another one's work.
with_fake_driver!(a_thread_reads_what_another_one_wrote, [], {
    let queue = Queue::<f32>::new(&per_thread(), &rrd()).expect("a queue");
    let (queue, len) = thread::spawn(move || {
        let len = queue.len();
        (queue, len)
    })
    .join()
    .expect("no panic");
    assert_eq!(len, Ok(0));
    let mut host = relata::Queue::<f32>::new(CAPACITY, DIM).expect("a queue");
    let keys = [0.5f32; 3 * DIM];
    host.enqueue(Rows::new(&keys, [3, DIM]).expect("whole keys"))
        .expect("finite keys");
    let mut queue = queue;
    queue.restore(&host).expect("a copy");
    queue.reserve(10 * ROWS).expect("memory");
    let back = thread::spawn(move || queue.to_host())
        .join()
        .expect("no panic");
    assert_eq!(back.expect("a copy").to_vec(), host.to_vec());
    assert_ordered(&calls());
});

with_fake_driver!(what_moved_is_freed_after_its_launches, [], {
    let stream = per_thread();
    let mut evaluator = Evaluator::new(&stream, &rrd()).expect("an evaluator");
    let mut queue = Queue::<f32>::new(&stream, &rrd()).expect("a queue");
    evaluate(&mut evaluator, Some(&mut queue));
    calls();
    thread::spawn(move || drop((evaluator, queue)))
        .join()
        .expect("no panic");
    let calls = calls();
    assert_ordered(&calls);
    assert_eq!(count(&calls, "cuMemFreeAsync"), 2, "{calls:#?}");
    // The host does not wait.
    assert_eq!(count(&calls, "cuCtxSynchronize"), 0, "{calls:#?}");
});

// A stream of one's own is the same stream on every thread.
with_fake_driver!(other_streams_move_without_waiting, [], {
    let context = CudaContext::new(0).expect("the fake driver's GPU");
    for stream in [
        context.default_stream(),
        context.new_stream().expect("a stream"),
    ] {
        let mut evaluator = Evaluator::new(&stream, &rkd()).expect("an evaluator");
        evaluate(&mut evaluator, None);
        calls();
        thread::spawn(move || evaluate(&mut evaluator, None))
            .join()
            .expect("no panic");
        let calls = actions(calls());
        assert_ordered(&calls);
        assert_eq!(count(&calls, "cuCtxSynchronize"), 0, "{calls:#?}");
    }
});
