//! A missing driver, GPU or kernel is a typed error with a plain message, and never a panic.

use relata::cuda::cudarc::driver::CudaContext;
use relata::cuda::{Evaluator, RawEvaluator};
use relata::{Cuda, Error};

use crate::fake_driver::{calls, with_broken_driver, with_fake_driver};
use crate::{problem, stream};

/// The error of `Cuda::new`. A raw evaluator returns the same.
fn refused() -> Error {
    let error = Cuda::new(0).expect_err("no GPU to be had");
    assert_eq!(
        RawEvaluator::new::<f32>(&problem()).err(),
        Some(error.clone())
    );
    error
}

with_broken_driver!(no_driver, {
    let error = refused();
    assert!(
        matches!(&error, Error::NoDriver { why } if why.contains("libcuda.so.1")),
        "{error:?}"
    );
    assert!(
        error
            .to_string()
            .starts_with("cuda: expected NVIDIA's driver, got none: "),
        "{error}"
    );
});

with_fake_driver!(
    a_stub_of_the_toolkit,
    [("FAKE_DRIVER_FAIL", "cuInit:34")],
    {
        assert!(matches!(refused(), Error::NoDriver { why } if why.contains("STUB_LIBRARY (34)")));
    }
);

with_fake_driver!(no_gpu, [("FAKE_DRIVER_GPUS", "0")], {
    let error = refused();
    assert_eq!(
        error,
        Error::NoSuchGpu {
            ordinal: 0,
            gpus: 0
        }
    );
    assert_eq!(
        error.to_string(),
        "cuda: no GPU 0: this machine has 0, counted from 0"
    );
});

with_fake_driver!(no_such_gpu, [("FAKE_DRIVER_GPUS", "2")], {
    assert!(Cuda::new(1).is_ok());
    assert_eq!(
        Cuda::new(2).err(),
        Some(Error::NoSuchGpu {
            ordinal: 2,
            gpus: 2
        })
    );
    assert!(matches!(
        Cuda::new(usize::MAX),
        Err(Error::NoSuchGpu { .. })
    ));
});

with_fake_driver!(an_old_driver, [("FAKE_DRIVER_VERSION", "11040")], {
    let error = Cuda::new(0).expect_err("an old driver");
    assert!(
        matches!(&error, Error::OldDriver { driver, .. } if driver == "11.4"),
        "{error:?}"
    );
    assert!(
        error.to_string()
            == "cuda: expected a driver for CUDA 12.0 or later, got one for CUDA 11.4",
        "{error}"
    );
    let _context = CudaContext::new(0).expect("somebody's context");
    calls();
    let error = RawEvaluator::new::<f32>(&problem()).expect_err("an old driver");
    assert!(matches!(error, Error::OldDriver { .. }), "{error:?}");
    // cudarc panics where the driver lacks a function. A driver of 11.4 lacks these.
    let calls = calls();
    let newer = ["cuCtxGetId", "cuLibrary", "cuKernel"];
    let is_newer = |call: &String| newer.iter().any(|name| call.starts_with(name));
    assert!(!calls.iter().any(is_newer), "{calls:#?}");
});

with_fake_driver!(a_gpu_without_kernels, [("FAKE_DRIVER_CAPABILITY", "75")], {
    let error = Cuda::new(0).expect_err("an old GPU");
    let Error::UnsupportedGpu {
        gpu,
        capability,
        built_for,
    } = &error
    else {
        panic!("{error:?}");
    };
    assert_eq!([gpu.as_str(), capability], ["fake GPU 0", "7.5"]);
    assert!(
        built_for.contains("sm_80") && error.to_string().contains("RELATA_CUDA_TARGETS"),
        "{error}"
    );
});

with_fake_driver!(
    the_driver_finds_no_image,
    [("FAKE_DRIVER_FAIL", "cuKernelGetFunction:209")],
    {
        assert!(matches!(Cuda::new(0), Err(Error::UnsupportedGpu { .. })));
    }
);

with_fake_driver!(
    ptx_of_a_newer_compiler,
    [("FAKE_DRIVER_FAIL", "cuLibraryLoadData:222")],
    {
        assert!(matches!(Cuda::new(0), Err(Error::OldDriver { .. })));
        // The crate tries again: it does not keep the failure.
        assert!(matches!(Cuda::new(0), Err(Error::OldDriver { .. })));
    }
);

with_fake_driver!(
    kernels_that_do_not_load,
    [("FAKE_DRIVER_FAIL", "cuLibraryLoadData:200:1")],
    {
        let error = Cuda::new(0).expect_err("a broken image");
        let Error::Cuda {
            during,
            code,
            message,
        } = &error
        else {
            panic!("{error:?}");
        };
        assert_eq!((*during, *code), ("loading the kernels", 200));
        assert_eq!(
            message,
            "CUDA_ERROR_INVALID_IMAGE (200): the text of the fake driver"
        );
        assert!(Cuda::new(0).is_ok(), "a failure is not remembered");
    }
);

with_fake_driver!(
    no_memory_for_the_workspace,
    [("FAKE_DRIVER_FAIL", "cuMemAllocAsync:2")],
    {
        let error = Evaluator::<f32>::new(&stream(), &problem()).expect_err("no memory");
        assert!(
            matches!(error, Error::OutOfMemory { argument: "workspace", bytes } if bytes > 256),
            "{error:?}"
        );
    }
);
