//! How often the driver is asked before the first launch, and where memory is freed.

use std::collections::BTreeSet;

use relata::cuda::cudarc::driver::result::DriverError;
use relata::cuda::cudarc::driver::sys::{self, cudaError_enum};
use relata::cuda::cudarc::driver::{CudaContext, CudaSlice};
use relata::cuda::{Evaluator, Queue, RawEvaluator, VALUE_LEN};
use relata::{Cuda, Problem, Rkd, RkdDistance, Rrd, Shapes};

use crate::fake_driver::{actions, calls, with_fake_driver};
use crate::{problem, stream};

fn count(calls: &[String], name: &str) -> usize {
    calls.iter().filter(|call| call.starts_with(name)).count()
}

/// The kernels of these calls, whose names are the second word.
fn kernels(calls: &[String], call: &str) -> BTreeSet<String> {
    let words = calls.iter().map(|line| line.split(' '));
    let names = words.filter_map(|mut words| (words.next() == Some(call)).then(|| words.next())?);
    names.map(str::to_owned).collect()
}

// A trainer whose framework keeps no evaluator makes one at every step.
with_fake_driver!(a_second_evaluator_asks_almost_nothing, [], {
    let _context = CudaContext::new(0).expect("the fake driver's GPU");
    calls();
    let evaluator = RawEvaluator::new::<f32>(&problem()).expect("an evaluator");
    let first = calls();
    assert_eq!(
        kernels(&first, "cuKernelSetAttribute"),
        BTreeSet::from(["relata_kd_kl_f32".to_owned()]),
        "only what the plan launches"
    );
    let again = RawEvaluator::new::<f32>(&problem()).expect("an evaluator");
    assert_eq!(calls(), ["cuCtxGetCurrent", "cuCtxGetId"]);
    drop((evaluator, again));
    let other = RkdDistance::default().problem(Shapes::new(40, 6, 6));
    RawEvaluator::new::<f32>(&other.expect("shapes that fit")).expect("an evaluator");
    let other = calls();
    assert!(count(&other, "cuKernelSetAttribute") > 1, "{other:#?}");
    assert_eq!(count(&other, "cuDeviceGet"), 0, "{other:#?}");
    assert_eq!(count(&other, "cuLibrary"), 0, "{other:#?}");
});

// Nothing is left for the first launch, which may be captured.
with_fake_driver!(what_is_launched_is_prepared, [], {
    const ROWS: usize = 40;
    const DIM: usize = 6;
    fn launches(problem: &Problem) {
        let stream = stream();
        let mut evaluator = Evaluator::<f32>::new(&stream, problem).expect("an evaluator");
        let mut queue = problem
            .shapes()
            .queue
            .map(|_| Queue::<f32>::new(&stream, problem).expect("a queue"));
        let of = |len| stream.alloc_zeros::<f32>(len).expect("memory");
        let rows = of(ROWS * DIM);
        let (mut gradient, mut value) = (of(ROWS * DIM), of(VALUE_LEN));
        let mut prepared = kernels(&calls(), "cuKernelSetAttribute");
        type Slice = CudaSlice<f32>;
        let mut launch = |gradient: &mut Slice, value: &mut Slice| match &mut queue {
            None => evaluator.launch(&rows, &rows, gradient, value),
            Some(queue) => evaluator.launch_with_queue(&rows, &rows, queue, gradient, value),
        };
        launch(&mut gradient, &mut value).expect("launches");
        let calls = actions(calls());
        let launched = kernels(&calls, "cuLaunchKernel");
        assert_eq!(count(&calls, "cuLaunchKernel"), calls.len(), "{calls:#?}");
        // For who asks for the losses of rows, which an evaluator cannot know beforehand.
        let has_row_losses = problem.shapes().queue.is_some();
        assert_eq!(prepared.remove("relata_weigh_rows"), has_row_losses);
        assert_eq!(launched, prepared, "{calls:#?}");
    }
    let shapes = Shapes::new(ROWS, DIM, DIM);
    launches(&Rkd::default().problem(shapes).expect("shapes that fit"));
    let rrd = Rrd::default().problem(shapes.with_queue(100));
    launches(&rrd.expect("shapes that fit"));
});

with_fake_driver!(overlap_is_asked_for_once, [], {
    let mut evaluator = Evaluator::<f32>::new(&stream(), &problem()).expect("an evaluator");
    assert_eq!(evaluator.set_overlap(true), Ok(true));
    calls();
    assert_eq!(evaluator.set_overlap(true), Ok(true));
    assert_eq!(count(&calls(), "cuKernelGetAttribute"), 0);
});

// A context that ends may leave its address to the next one, in which no kernel is loaded.
with_fake_driver!(a_context_made_again_is_another_one, [], {
    let _context = CudaContext::new(0).expect("the fake driver's GPU");
    RawEvaluator::new::<f32>(&problem()).expect("an evaluator");
    // SAFETY: nothing of the context is used any more.
    let reset = unsafe { sys::cuDevicePrimaryCtxReset_v2(0) };
    reset.result().expect("a new context");
    calls();
    RawEvaluator::new::<f32>(&problem()).expect("an evaluator");
    let calls = calls();
    assert_eq!(
        kernels(&calls, "cuKernelSetAttribute"),
        BTreeSet::from(["relata_kd_kl_f32".to_owned()]),
        "{calls:#?}"
    );
});

with_fake_driver!(each_gpu_is_prepared, [("FAKE_DRIVER_GPUS", "2")], {
    for gpu in 0..2 {
        calls();
        Cuda::new(gpu).expect("a GPU");
        let first = calls();
        assert!(count(&first, "cuKernelSetAttribute") > 50, "{first:#?}");
        Cuda::new(gpu).expect("a GPU");
        let again = calls();
        assert_eq!(count(&again, "cuKernel"), 0, "{again:#?}");
    }
});

// cudarc keeps an error that nobody has asked for, and returns it instead of making the context
// current.
with_fake_driver!(
    memory_is_freed_in_its_own_context,
    [("FAKE_DRIVER_GPUS", "2")],
    {
        let stream = stream();
        let evaluator = Evaluator::<f32>::new(&stream, &problem()).expect("an evaluator");
        let _other = CudaContext::new(1).expect("another GPU");
        let earlier = DriverError(cudaError_enum::CUDA_ERROR_LAUNCH_FAILED);
        stream.context().record_err(Err::<(), _>(earlier));
        calls();
        drop(evaluator);
        assert_eq!(
            actions(calls()),
            ["cuCtxSetCurrent 0x1000", "cuMemFreeAsync stream 0"]
        );
        assert_eq!(
            stream.context().check_err(),
            Err(earlier),
            "the earlier error is still to be reported, and the call above made none"
        );
    }
);
