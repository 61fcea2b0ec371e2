//! Foreign contexts, streams and memory.

use std::ffi::c_void;

use half::f16;
use relata::Error;
use relata::cuda::cudarc::driver::{CudaContext, DevicePtr, sys};
use relata::cuda::{Buffers, RawEvaluator};

use crate::fake_driver::{actions, calls, with_fake_driver};
use crate::{CLASSES, ROWS, problem, stream};

const LEN: usize = ROWS * CLASSES;

with_fake_driver!(a_foreign_stream_gets_the_launches, [], {
    let _somebody = CudaContext::new(0).expect("somebody's context");
    let evaluator = RawEvaluator::new::<f16>(&problem()).expect("an evaluator");
    assert!(evaluator.workspace_bytes() > 256);
    let stream = 0xf00 as *mut c_void;
    let buffers = Buffers {
        student: 0x10_0000,
        teacher: 0x20_0000,
        gradient: 0x30_0000,
        value: 0x40_0000,
        workspace: 0x50_0000,
        ..Buffers::default()
    };
    calls();
    for _ in 0..2 {
        // SAFETY: the fake driver launches nothing.
        unsafe { evaluator.launch(&buffers, stream) }.expect("launches");
    }
    let calls = actions(calls());
    assert_eq!(calls.len(), 2, "{calls:#?}");
    for call in calls {
        assert!(
            call.starts_with("cuLaunchKernel relata_kd_kl_f16 "),
            "{call}"
        );
        assert!(
            call.ends_with(" stream 0xf00 of 0x100000 0x200000"),
            "{call}"
        );
    }
});

with_fake_driver!(the_current_context_stays, [], {
    let context = CudaContext::new(0).expect("somebody's context");
    let workspace = context
        .default_stream()
        .alloc_zeros::<u8>(4096)
        .expect("memory");
    calls();
    let evaluator = RawEvaluator::new::<f32>(&problem()).expect("an evaluator");
    let stream = context.default_stream();
    let (address, _guard) = workspace.device_ptr(&stream);
    // SAFETY: memory of this length, and the default stream.
    unsafe { evaluator.initialize(address, std::ptr::null_mut()) }.expect("cleared");
    drop(evaluator);
    let calls = calls();
    for never in [
        "cuCtxSetCurrent",
        "cuCtxCreate",
        "cuCtxDestroy",
        "cuDevicePrimaryCtx",
        "cuStreamCreate",
    ] {
        assert!(
            !calls.iter().any(|call| call.starts_with(never)),
            "{never}: {calls:#?}"
        );
    }
});

with_fake_driver!(another_context_is_refused, [("FAKE_DRIVER_GPUS", "2")], {
    let none = RawEvaluator::new::<f32>(&problem()).expect_err("no context");
    assert_eq!(none, Error::NoContext { got: "none" });
    let first = CudaContext::new(0).expect("a context");
    let evaluator = RawEvaluator::new::<f32>(&problem()).expect("an evaluator");
    let second = CudaContext::new(1).expect("another");
    calls();
    // SAFETY: nothing is launched.
    let refused = unsafe { evaluator.launch(&Buffers::default(), std::ptr::null_mut()) };
    assert_eq!(refused, Err(Error::NoContext { got: "another one" }));
    assert!(actions(calls()).is_empty());
    first.bind_to_thread().expect("current again");
    // SAFETY: the fake driver launches nothing.
    unsafe { evaluator.launch(&Buffers::default(), std::ptr::null_mut()) }.expect("launches");
    drop(second);
    // SAFETY: null is no context, which is what a thread starts with.
    unsafe { sys::cuCtxSetCurrent(std::ptr::null_mut()) }
        .result()
        .expect("none");
    // SAFETY: nothing is launched.
    let refused = unsafe { evaluator.launch(&Buffers::default(), std::ptr::null_mut()) };
    assert_eq!(refused, Err(Error::NoContext { got: "none" }));
});

with_fake_driver!(foreign_memory_is_found, [("FAKE_DRIVER_GPUS", "2")], {
    let elsewhere = CudaContext::new(1).expect("another GPU").default_stream();
    let foreign = elsewhere.alloc_zeros::<f32>(LEN).expect("memory");
    let stream = stream();
    let memory = stream.alloc_zeros::<f32>(4096).expect("memory");
    let evaluator = RawEvaluator::new::<f32>(&problem()).expect("an evaluator");
    let (base, _guard) = memory.device_ptr(&stream);
    let (foreign, _guard) = foreign.device_ptr(&elsewhere);
    let good = Buffers {
        student: base,
        teacher: base + 4,
        gradient: base + 8,
        value: base + 12,
        workspace: base + 256,
        ..Buffers::default()
    };
    stream.context().bind_to_thread().expect("current");
    assert_eq!(evaluator.check(&good), Ok(()));
    let on_the_host = std::ptr::from_ref(&good).addr() as u64;
    for (buffers, argument, says) in [
        (
            Buffers {
                student: base + 2,
                ..good
            },
            "student",
            "no multiple of 4",
        ),
        (
            Buffers {
                teacher: foreign,
                ..good
            },
            "teacher",
            "memory of GPU 1",
        ),
        (
            Buffers {
                gradient: on_the_host,
                ..good
            },
            "gradient",
            "which the driver doesn't know (1)",
        ),
        (
            Buffers { value: 0, ..good },
            "value",
            "0x0, which the driver doesn't know",
        ),
        (
            Buffers {
                workspace: base + 4,
                ..good
            },
            "workspace",
            "no multiple of 256",
        ),
    ] {
        let error = evaluator.check(&buffers).expect_err(says);
        assert!(
            matches!(error, Error::ForeignMemory { argument: at, .. } if at == argument),
            "{error:?}"
        );
        assert!(error.to_string().contains(says), "{error}");
    }
});
