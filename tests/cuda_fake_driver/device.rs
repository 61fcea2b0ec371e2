//! The device for host slices.

use std::collections::{BTreeMap, BTreeSet};

use half::bf16;
use relata::{Batch, Cuda, Error, Evaluation, Relation, Rows, relation_matrix, softmax};

use crate::support::{calls, deeds};
use crate::{CLASSES, ROWS, beside, problem};

fn evaluate(cuda: &Cuda) -> relata::Result<Evaluation<f32>> {
    let rows = [bf16::ONE; ROWS * CLASSES];
    let rows = Rows::new(&rows, [ROWS, CLASSES]).expect("whole rows");
    problem().evaluate(cuda, Batch::new(rows, rows))
}

beside!(copies_computes_and_copies_back, StandIn, [], {
    let cuda = Cuda::new(0).expect("the stand-in's GPU");
    assert_eq!(cuda.gpu(), "stand-in 0");
    calls();
    evaluate(&cuda).expect("an evaluation");
    let calls = deeds(calls());
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
    // Waited for before anything is looked at.
    let launched = names.iter().position(|&name| name == "cuLaunchKernel");
    let waited = names.iter().position(|&name| name == "cuStreamSynchronize");
    assert!(launched < waited, "{calls:#?}");
});

beside!(
    without_pools_memory_is_plain,
    StandIn,
    [("STAND_IN_POOLS", "0")],
    {
        let cuda = Cuda::new(0).expect("the stand-in's GPU");
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

// An error for each other library that is asked for a kernel is one that tools report.
beside!(each_kernel_is_asked_of_its_library, StandIn, [], {
    let cuda = Cuda::new(0).expect("the stand-in's GPU");
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

// Some need scratch memory and some don't, and a driver has none of no bytes to give.
beside!(
    relations_without_scratch_memory,
    StandIn,
    [("STAND_IN_POOLS", "0")],
    {
        let cuda = Cuda::new(0).expect("the stand-in's GPU");
        let rows = [1.0f32; 6];
        let rows = Rows::new(&rows, [3, 2]).expect("whole rows");
        for relation in [
            Relation::Distance,
            Relation::SquaredDistance,
            Relation::Cosine,
            Relation::Dot,
        ] {
            relation_matrix(&cuda, relation, rows).expect("a matrix");
        }
    }
);

// KL is RRD's alone: no other kernel writes it.
beside!(no_more_is_copied_back_than_was_written, StandIn, [], {
    let cuda = Cuda::new(0).expect("the stand-in's GPU");
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

beside!(
    what_fails_on_the_gpu_is_an_error,
    StandIn,
    [("STAND_IN_FAIL", "cuStreamSynchronize:700:1")],
    {
        let cuda = Cuda::new(0).expect("the stand-in's GPU");
        let error = evaluate(&cuda).expect_err("a fault on the GPU");
        assert_eq!(
            error.to_string(),
            "cuda: waiting for the kernels: CUDA_ERROR_ILLEGAL_ADDRESS (700): as the stand-in puts it"
        );
        assert!(matches!(error, Error::Cuda { code: 700, .. }));
    }
);

beside!(
    a_refused_launch_names_its_kernel,
    StandIn,
    [("STAND_IN_FAIL", "cuLaunchKernel:701")],
    {
        let cuda = Cuda::new(0).expect("the stand-in's GPU");
        let error = evaluate(&cuda).expect_err("no launch");
        assert!(
            matches!(
                error,
                Error::Cuda {
                    doing: "relata_kd_kl_bf16",
                    code: 701,
                    ..
                }
            ),
            "{error}"
        );
    }
);

beside!(
    no_memory_for_an_input,
    StandIn,
    [("STAND_IN_FAIL", "cuMemAllocAsync:2:2")],
    {
        let cuda = Cuda::new(0).expect("the stand-in's GPU");
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

beside!(softmax_is_a_launch_too, StandIn, [], {
    let cuda = Cuda::new(0).expect("the stand-in's GPU");
    let rows = [1.0f32; 6];
    softmax(&cuda, Rows::new(&rows, [2, 3]).expect("whole rows"), 0.5).expect("a softmax");
    assert!(
        calls()
            .iter()
            .any(|call| call.starts_with("cuLaunchKernel relata_softmax_f32 grid 2 1 1"))
    );
});
