//! `Cuda`, the device for host slices.

use std::collections::{BTreeMap, BTreeSet};

use half::bf16;
use relata::{Batch, Cuda, Error, Evaluation, Relation, Rows, relation_matrix, softmax};

use crate::fake_driver::{actions, calls, with_fake_driver};
use crate::{CLASSES, ROWS, problem};

fn evaluate(cuda: &Cuda) -> relata::Result<Evaluation<f32>> {
    let rows = [bf16::ONE; ROWS * CLASSES];
    let rows = Rows::new(&rows, [ROWS, CLASSES]).expect("whole rows");
    problem().evaluate(cuda, Batch::new(rows, rows))
}

with_fake_driver!(copies_computes_and_copies_back, [], {
    let cuda = Cuda::new(0).expect("the fake driver's GPU");
    assert_eq!(cuda.gpu_name(), "fake GPU 0");
    calls();
    evaluate(&cuda).expect("an evaluation");
    let calls = actions(calls());
    let names: Vec<&str> = calls
        .iter()
        .map(|call| call.split(' ').next().expect("a name"))
        .collect();
    let of = |name: &str| names.iter().filter(|&&other| other == name).count();
    assert_eq!(of("cuLaunchKernel"), 1, "{calls:#?}");
    assert_eq!(of("cuMemAllocAsync"), of("cuMemFreeAsync"), "{calls:#?}");
    let launch = calls
        .iter()
        .find(|call| call.starts_with("cuLaunchKernel"))
        .expect("a launch");
    let want = format!(
        "cuLaunchKernel relata_kd_kl_bf16 grid {ROWS} 1 1 block 256 1 1 shared 8192 stream 0 "
    );
    assert!(launch.starts_with(&want), "{launch}");
    // The device waits for the kernels before it reads the results.
    let launched = names.iter().position(|&name| name == "cuLaunchKernel");
    let waited = names
        .iter()
        .rposition(|&name| name == "cuStreamSynchronize");
    assert!(launched < waited, "{calls:#?}");
});

with_fake_driver!(
    without_pools_memory_is_plain,
    [("FAKE_DRIVER_POOLS", "0")],
    {
        let cuda = Cuda::new(0).expect("the fake driver's GPU");
        calls();
        evaluate(&cuda).expect("an evaluation");
        let calls = calls();
        let of = |name: &str| calls.iter().filter(|call| call.starts_with(name)).count();
        assert!(
            of("cuMemAlloc_v2") > 0 && of("cuMemAlloc_v2") == of("cuMemFree_v2"),
            "{calls:#?}"
        );
        assert_eq!(of("cuMemAllocAsync"), 0, "{calls:#?}");
    }
);

// Asking another library for a kernel is an error of the driver, and tools report such errors.
with_fake_driver!(each_kernel_is_looked_up_in_its_library, [], {
    let cuda = Cuda::new(0).expect("the fake driver's GPU");
    evaluate(&cuda).expect("an evaluation");
    let mut asked = BTreeMap::<String, BTreeSet<String>>::new();
    for call in calls() {
        let words: Vec<&str> = call.split(' ').collect();
        if let ["cuLibraryGetKernel", kernel, "library", library] = words[..] {
            let libraries = asked.entry(kernel.to_owned()).or_default();
            assert!(libraries.insert(library.to_owned()), "{kernel} twice");
        }
    }
    assert!(
        asked.values().all(|libraries| libraries.len() == 1),
        "{asked:#?}"
    );
    let library = |kernel: &str| &asked[kernel];
    assert_eq!(
        library("relata_kd_kl_f32"),
        library("relata_kd_kl_long_bf16")
    );
    assert_ne!(library("relata_kd_kl_f32"), library("relata_rrd_f32"));
});

/// The forms of the kernels that the driver was given.
fn loaded() -> BTreeSet<String> {
    let calls = calls().into_iter();
    let forms = calls.filter_map(|call| Some(call.strip_prefix("cuLibraryLoadData ")?.to_owned()));
    forms.collect()
}

with_fake_driver!(
    a_driver_of_the_compilers_release_gets_cubins,
    [("FAKE_DRIVER_CAPABILITY", "86")],
    {
        Cuda::new(0).expect("the fake driver's GPU");
        assert_eq!(loaded(), BTreeSet::from(["fatbin".to_owned()]));
    }
);

with_fake_driver!(
    an_older_driver_gets_ptx,
    [
        ("FAKE_DRIVER_CAPABILITY", "86"),
        ("FAKE_DRIVER_VERSION", "12000")
    ],
    {
        let cuda = Cuda::new(0).expect("the fake driver's GPU");
        // A compiler of 12 makes cubins for this driver.
        let of_13 = relata::cuda::build().toolkit.starts_with("13");
        let form = if of_13 { "ptx" } else { "fatbin" };
        assert_eq!(loaded(), BTreeSet::from([form.to_owned()]));
        evaluate(&cuda).expect("an evaluation");
    }
);

// Only the cosine needs scratch memory, and a driver refuses to allocate 0 bytes.
with_fake_driver!(
    relations_without_scratch_memory,
    [("FAKE_DRIVER_POOLS", "0")],
    {
        let cuda = Cuda::new(0).expect("the fake driver's GPU");
        let rows = [1.0f32; 6];
        let rows = Rows::new(&rows, [3, 2]).expect("whole rows");
        for relation in [
            Relation::Distance,
            Relation::SquaredDistance,
            Relation::Cosine,
            Relation::PositiveCosine,
            Relation::ShiftedCosine,
            Relation::Dot,
        ] {
            relation_matrix(&cuda, relation, rows).expect("a matrix");
        }
    }
);

// Only RRD's kernel writes a KL.
with_fake_driver!(only_written_values_are_copied_back, [], {
    let cuda = Cuda::new(0).expect("the fake driver's GPU");
    calls();
    evaluate(&cuda).expect("an evaluation");
    let copied: Vec<String> = calls()
        .into_iter()
        .filter(|call| call.starts_with("cuMemcpyDtoHAsync_v2 "))
        .collect();
    assert!(
        copied[0].starts_with("cuMemcpyDtoHAsync_v2 4 "),
        "{copied:#?}"
    );
});

with_fake_driver!(
    a_fault_on_the_gpu_is_an_error,
    [("FAKE_DRIVER_FAIL", "cuStreamSynchronize:700:1")],
    {
        let cuda = Cuda::new(0).expect("the fake driver's GPU");
        let error = evaluate(&cuda).expect_err("a fault on the GPU");
        assert_eq!(
            error.to_string(),
            "cuda: waiting for the kernels: CUDA_ERROR_ILLEGAL_ADDRESS (700): the text of the fake driver"
        );
        assert!(matches!(error, Error::Cuda { code: 700, .. }));
    }
);

with_fake_driver!(
    a_refused_launch_names_its_kernel,
    [("FAKE_DRIVER_FAIL", "cuLaunchKernel:701")],
    {
        let cuda = Cuda::new(0).expect("the fake driver's GPU");
        let error = evaluate(&cuda).expect_err("no launch");
        assert!(
            matches!(
                error,
                Error::Cuda {
                    during: "relata_kd_kl_bf16",
                    code: 701,
                    ..
                }
            ),
            "{error}"
        );
    }
);

with_fake_driver!(
    out_of_memory_names_the_input,
    [("FAKE_DRIVER_FAIL", "cuMemAllocAsync:2:2")],
    {
        let cuda = Cuda::new(0).expect("the fake driver's GPU");
        let error = evaluate(&cuda).expect_err("no memory");
        assert_eq!(
            error,
            Error::OutOfMemory {
                argument: "teacher",
                bytes: 2 * ROWS * CLASSES
            }
        );
        assert!(evaluate(&cuda).is_ok(), "and goes on when there is some");
    }
);

with_fake_driver!(softmax_is_one_launch, [], {
    let cuda = Cuda::new(0).expect("the fake driver's GPU");
    let rows = [1.0f32; 6];
    softmax(&cuda, Rows::new(&rows, [2, 3]).expect("whole rows"), 0.5).expect("a softmax");
    assert!(
        calls()
            .iter()
            .any(|call| call.starts_with("cuLaunchKernel relata_softmax_f32 grid 2 1 1"))
    );
});
