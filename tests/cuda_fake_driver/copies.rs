//! Host memory that the GPU copies from. Of pinned memory, and on GPUs that read the host's memory
//! themselves, a copy begins when the stream gets there. So no call may return before its copies
//! are done: also not with an error.

use half::bf16;
use relata::{Cuda, Error, InfoNce, Queue, Relation, Rows, Rrd, Shapes, relation_matrix, softmax};

use crate::fake_driver::{calls, with_fake_driver};
use crate::{CLASSES, ROWS, problem};

/// Asserts that each copy from or to host memory is followed by a wait for its stream.
fn assert_copies_are_done(calls: &[String]) {
    let is_wait = |call: &String| call.starts_with("cuStreamSynchronize stream 0");
    let waited = calls.iter().rposition(is_wait);
    for (at, call) in calls.iter().enumerate() {
        let host = ["cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync"];
        if host.iter().any(|name| call.starts_with(name)) {
            assert!(waited > Some(at), "{call} is not waited for: {calls:#?}");
        }
    }
}

/// Evaluates rows that are overwritten as soon as the evaluation has returned.
fn evaluate_and_overwrite(cuda: &Cuda) -> relata::Result<()> {
    let mut rows = [bf16::ONE; ROWS * CLASSES];
    let evaluated = {
        let rows = Rows::new(&rows, [ROWS, CLASSES]).expect("whole rows");
        problem().evaluate(cuda, relata::Batch::new(rows, rows))
    };
    rows.fill(bf16::ZERO);
    std::hint::black_box(&rows);
    evaluated.map(drop)
}

/// An evaluation that fails leaves no copy behind. A later one waits, so a copy that is still in
/// its stream then reads what has been overwritten, and `calls` would say so.
fn fails_and_leaves_nothing() {
    let cuda = Cuda::new(0).expect("the fake driver's GPU");
    calls();
    let error = evaluate_and_overwrite(&cuda).expect_err("a failure");
    assert!(
        matches!(error, Error::OutOfMemory { .. } | Error::Cuda { .. }),
        "{error}"
    );
    assert_copies_are_done(&calls());
    evaluate_and_overwrite(&cuda).expect("an evaluation");
    assert_copies_are_done(&calls());
}

with_fake_driver!(
    no_memory_for_the_teacher,
    [("FAKE_DRIVER_FAIL", "cuMemAllocAsync:2:2")],
    {
        fails_and_leaves_nothing();
    }
);

with_fake_driver!(
    no_memory_for_the_workspace,
    [("FAKE_DRIVER_FAIL", "cuMemAllocAsync:2:3")],
    {
        fails_and_leaves_nothing();
    }
);

with_fake_driver!(
    a_copy_that_is_refused,
    [("FAKE_DRIVER_FAIL", "cuMemcpyHtoDAsync_v2:1:2")],
    {
        fails_and_leaves_nothing();
    }
);

with_fake_driver!(
    a_launch_that_is_refused,
    [("FAKE_DRIVER_FAIL", "cuLaunchKernel:701:1")],
    {
        fails_and_leaves_nothing();
    }
);

with_fake_driver!(
    a_copy_back_that_is_refused,
    [("FAKE_DRIVER_FAIL", "cuMemcpyDtoHAsync_v2:1:2")],
    {
        fails_and_leaves_nothing();
    }
);

// What a queue packs for the GPU lives no longer than the copy.
with_fake_driver!(keys_are_copied_before_they_end, [], {
    const DIM: usize = 6;
    let cuda = Cuda::new(0).expect("the fake driver's GPU");
    let keys: Vec<f32> = (0..8 * DIM).map(|i| (i as f32 * 0.7).sin()).collect();
    let keys = Rows::new(&keys, [8, DIM]).expect("whole keys");
    let mut queue = Queue::<f32>::new(8, DIM).expect("a queue");
    queue.enqueue(keys).expect("finite keys");
    calls();
    for _ in 0..3 {
        Rrd::default()
            .evaluate_with_queue(&cuda, keys, keys, &mut queue)
            .expect("an evaluation");
        InfoNce::default()
            .evaluate_with_queue(&cuda, keys, keys, &mut queue)
            .expect("an evaluation");
    }
    assert_copies_are_done(&calls());

    let problem = Rrd::default()
        .problem(Shapes::new(8, DIM, DIM).with_queue(8))
        .expect("shapes that fit");
    let mut on_gpu = relata::cuda::Queue::<f32>::new(&crate::stream(), &problem).expect("a queue");
    for _ in 0..3 {
        on_gpu.restore(&queue).expect("a copy");
    }
    assert_copies_are_done(&calls());
});

with_fake_driver!(building_blocks_wait_for_their_copies, [], {
    let cuda = Cuda::new(0).expect("the fake driver's GPU");
    let data = vec![1.0f32; 6];
    let rows = Rows::new(&data, [3, 2]).expect("whole rows");
    calls();
    relation_matrix(&cuda, Relation::Cosine, rows).expect("a matrix");
    softmax(&cuda, rows, 0.5).expect("a softmax");
    assert_copies_are_done(&calls());
});

with_fake_driver!(
    a_building_block_that_fails_waits_too,
    [("FAKE_DRIVER_FAIL", "cuLaunchKernel:701")],
    {
        let cuda = Cuda::new(0).expect("the fake driver's GPU");
        let data = vec![1.0f32; 6];
        let rows = Rows::new(&data, [3, 2]).expect("whole rows");
        calls();
        relation_matrix(&cuda, Relation::Cosine, rows).expect_err("a refused launch");
        softmax(&cuda, rows, 0.5).expect_err("a refused launch");
        assert_copies_are_done(&calls());
    }
);
