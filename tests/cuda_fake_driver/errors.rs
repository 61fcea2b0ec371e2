//! Whatever is missing is a typed error in plain words, and never a panic.

use relata::cuda::{Evaluator, RawEvaluator};
use relata::{Cuda, Error};

use crate::{beside, problem, stream};

/// The error of making the device, which is that of making anything.
fn refused() -> Error {
    let error = Cuda::new(0).expect_err("no GPU to be had");
    assert_eq!(
        RawEvaluator::new::<f32>(&problem()).err(),
        Some(error.clone())
    );
    error
}

beside!(no_driver, Broken, [], {
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

beside!(
    a_stub_of_the_toolkit,
    StandIn,
    [("STAND_IN_FAIL", "cuInit:34")],
    {
        assert!(matches!(refused(), Error::NoDriver { why } if why.contains("STUB_LIBRARY (34)")));
    }
);

beside!(no_gpu, StandIn, [("STAND_IN_CARDS", "0")], {
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

beside!(no_such_gpu, StandIn, [("STAND_IN_CARDS", "2")], {
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

beside!(an_old_driver, StandIn, [("STAND_IN_DRIVER", "11040")], {
    let error = Cuda::new(0).expect_err("an old driver");
    assert!(
        matches!(&error, Error::OldDriver { driver, .. } if driver == "11.4"),
        "{error:?}"
    );
    assert!(
        error.to_string().ends_with("got one for CUDA 11.4"),
        "{error}"
    );
});

beside!(
    a_gpu_without_kernels,
    StandIn,
    [("STAND_IN_CAPABILITY", "75")],
    {
        let error = Cuda::new(0).expect_err("an old GPU");
        let Error::UnsupportedGpu {
            gpu,
            capability,
            built_for,
        } = &error
        else {
            panic!("{error:?}");
        };
        assert_eq!([gpu.as_str(), capability], ["stand-in 0", "7.5"]);
        assert!(
            built_for.contains("sm_80") && error.to_string().contains("RELATA_CUDA_TARGETS"),
            "{error}"
        );
    }
);

beside!(
    no_image_after_all,
    StandIn,
    [("STAND_IN_FAIL", "cuKernelGetFunction:209")],
    {
        assert!(matches!(Cuda::new(0), Err(Error::UnsupportedGpu { .. })));
    }
);

beside!(
    ptx_of_a_newer_compiler,
    StandIn,
    [("STAND_IN_FAIL", "cuLibraryLoadData:222")],
    {
        assert!(matches!(Cuda::new(0), Err(Error::OldDriver { .. })));
        // Not for ever.
        assert!(matches!(Cuda::new(0), Err(Error::OldDriver { .. })));
    }
);

beside!(
    kernels_that_do_not_load,
    StandIn,
    [("STAND_IN_FAIL", "cuLibraryLoadData:200:1")],
    {
        let error = Cuda::new(0).expect_err("a broken image");
        let Error::Cuda {
            doing,
            code,
            message,
        } = &error
        else {
            panic!("{error:?}");
        };
        assert_eq!((*doing, *code), ("loading the kernels", 200));
        assert_eq!(
            message,
            "CUDA_ERROR_INVALID_IMAGE (200): as the stand-in puts it"
        );
        assert!(Cuda::new(0).is_ok(), "a failure is not remembered");
    }
);

beside!(
    no_memory_for_the_workspace,
    StandIn,
    [("STAND_IN_FAIL", "cuMemAllocAsync:2")],
    {
        let error = Evaluator::<f32>::new(&stream(), &problem()).expect_err("no memory");
        assert!(
            matches!(error, Error::OutOfMemory { argument: "workspace", bytes } if bytes > 256),
            "{error:?}"
        );
    }
);
