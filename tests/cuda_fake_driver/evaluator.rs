//! Evaluations of slices on the GPU.

use relata::cuda::cudarc::driver::{CudaContext, CudaSlice, DevicePtr, sys::CUstream};
use relata::cuda::{Evaluator, OfRows, Teacher, TopK, VALUE_LEN};
use relata::{Error, Gram, KdKl, Shapes, SigLip, SupCon};

use crate::fake_driver::{actions, calls, with_fake_driver};
use crate::{CLASSES, ROWS, problem, stream};

const LEN: usize = ROWS * CLASSES;

with_fake_driver!(an_evaluation_only_launches, [], {
    let stream = stream();
    let mut evaluator = Evaluator::<f32>::new(&stream, &problem()).expect("an evaluator");
    let made = calls();
    assert!(
        made.iter()
            .any(|call| call.starts_with("cuMemsetD8Async 256 ")),
        "cleared counters: {made:#?}"
    );
    assert!(
        made.iter()
            .any(|call| call == "cuKernelSetAttribute relata_kd_kl_f32 232248"),
        "{made:#?}"
    );
    let student = stream.alloc_zeros::<f32>(LEN).expect("memory");
    let teacher = stream.alloc_zeros::<f32>(LEN).expect("memory");
    let mut gradient = stream.alloc_zeros::<f32>(LEN).expect("memory");
    let mut value = stream.alloc_zeros::<f32>(VALUE_LEN).expect("memory");
    calls();
    let mut launches = Vec::new();
    for _ in 0..3 {
        evaluator
            .launch(&student, &teacher, &mut gradient, &mut value)
            .expect("launches");
        launches.push(actions(calls()));
    }
    assert_eq!(launches[0].len(), 1, "{launches:#?}");
    assert!(
        launches[0][0].starts_with("cuLaunchKernel relata_kd_kl_f32 "),
        "{launches:#?}"
    );
    assert!(
        launches.iter().all(|again| *again == launches[0]),
        "{launches:#?}"
    );
    drop(evaluator);
    assert_eq!(actions(calls()), ["cuMemFreeAsync stream 0"]);
});

with_fake_driver!(prefixes_are_launches_of_one_evaluation, [], {
    let stream = stream();
    let problem = Gram::default()
        .problem(Shapes::new(ROWS, CLASSES, CLASSES))
        .and_then(|problem| problem.with_prefixes(&[1, 2, 3]))
        .expect("prefixes that fit");
    let mut evaluator = Evaluator::<f32>::new(&stream, &problem).expect("an evaluator");
    let student = stream.alloc_zeros::<f32>(LEN).expect("memory");
    let teacher = stream.alloc_zeros::<f32>(LEN).expect("memory");
    let mut gradient = stream.alloc_zeros::<f32>(LEN).expect("memory");
    let mut value = stream.alloc_zeros::<f32>(VALUE_LEN).expect("memory");
    calls();
    let mut launches = Vec::new();
    for _ in 0..2 {
        evaluator
            .launch(&student, &teacher, &mut gradient, &mut value)
            .expect("launches");
        launches.push(actions(calls()));
    }
    // Each prefix: rows normalised and back, relation, penalty, coefficients, contraction.
    assert_eq!(launches[0].len(), 3 * 6, "{launches:#?}");
    assert!(
        launches[0]
            .iter()
            .all(|call| call.starts_with("cuLaunchKernel relata_")),
        "{launches:#?}"
    );
    assert_eq!(launches[0], launches[1]);
});

with_fake_driver!(groups_are_launches_of_one_evaluation, [], {
    const GROUPS: usize = 3;
    const LEN: usize = 2 * GROUPS * CLASSES;
    let stream = stream();
    let problem = Gram::default()
        .problem(Shapes::new(2 * GROUPS, CLASSES, CLASSES))
        .and_then(|problem| problem.with_groups(GROUPS))
        .expect("groups that fit");
    let mut evaluator = Evaluator::<f32>::new(&stream, &problem).expect("an evaluator");
    let student = stream.alloc_zeros::<f32>(LEN).expect("memory");
    let teacher = stream.alloc_zeros::<f32>(LEN).expect("memory");
    let mut gradient = stream.alloc_zeros::<f32>(LEN).expect("memory");
    let mut value = stream.alloc_zeros::<f32>(VALUE_LEN).expect("memory");
    calls();
    let mut launches = Vec::new();
    for upstream in [1.0, 2.0] {
        evaluator.set_upstream(upstream).expect("a factor");
        evaluator
            .launch(&student, &teacher, &mut gradient, &mut value)
            .expect("launches");
        launches.push(actions(calls()));
    }
    // Each group: rows normalised and back, relation, penalty, coefficients, contraction. Then the
    // mean of the losses.
    let kernels: Vec<&str> = launches[0]
        .iter()
        .filter_map(|call| call.strip_prefix("cuLaunchKernel "))
        .filter_map(|call| call.split(' ').next())
        .collect();
    assert_eq!(kernels.len(), launches[0].len(), "{launches:#?}");
    let (mean, groups) = kernels.split_last().expect("launches");
    assert_eq!(*mean, "relata_mean_of_groups");
    assert_eq!(groups.len(), GROUPS * 6, "{kernels:#?}");
    assert!(groups.chunks(6).all(|group| *group == groups[..6]));
    assert_eq!(launches[0], launches[1]);
});

with_fake_driver!(views_and_the_stream_reach_the_launch, [], {
    let context = CudaContext::new(0).expect("the fake driver's GPU");
    let data = context
        .default_stream()
        .alloc_zeros::<f32>(3 * LEN)
        .expect("memory");
    let mut results = context
        .default_stream()
        .alloc_zeros::<f32>(LEN + VALUE_LEN)
        .expect("memory");
    // SAFETY: the fake driver has every stream.
    let stream = unsafe { context.wrap_borrowed_stream(0xabc0 as CUstream) };
    let mut evaluator = Evaluator::<f32>::new(&stream, &problem()).expect("an evaluator");
    let (mut gradient, mut value) = results.split_at_mut(LEN);
    calls();
    evaluator
        .launch(
            &data.slice(LEN..2 * LEN),
            &data.slice(2 * LEN..),
            &mut gradient,
            &mut value,
        )
        .expect("launches");
    let launches = actions(calls());
    let (_, addresses) = launches[0]
        .split_once("stream 0xabc0 of ")
        .expect("on that stream");
    let addresses: Vec<u64> = addresses
        .split(' ')
        .map(|address| u64::from_str_radix(&address[2..], 16).expect("an address"))
        .collect();
    assert_eq!(addresses[1] - addresses[0], 4 * LEN as u64, "{launches:#?}");
});

with_fake_driver!(other_streams_are_waited_for, [], {
    let stream = stream();
    // With a second stream, cudarc records an event for each use of a slice.
    let other = stream.context().new_stream().expect("a stream");
    let student = other.alloc_zeros::<f32>(LEN).expect("memory");
    let teacher = other.alloc_zeros::<f32>(LEN).expect("memory");
    let mut gradient = other.alloc_zeros::<f32>(LEN).expect("memory");
    let mut value = other.alloc_zeros::<f32>(VALUE_LEN).expect("memory");
    let mut evaluator = Evaluator::<f32>::new(&stream, &problem()).expect("an evaluator");
    calls();
    evaluator
        .launch(&student, &teacher, &mut gradient, &mut value)
        .expect("launches");
    let calls = actions(calls());
    let launch = calls
        .iter()
        .position(|call| call.starts_with("cuLaunchKernel"))
        .expect("a launch");
    assert!(
        calls[..launch]
            .iter()
            .all(|call| call == "cuStreamWaitEvent stream 0"),
        "{calls:#?}"
    );
    assert!(
        calls[launch + 1..]
            .iter()
            .all(|call| call == "cuEventRecord stream 0"),
        "{calls:#?}"
    );
    assert_eq!((launch, calls.len()), (6, 6 + 1 + 4), "{calls:#?}");
});

with_fake_driver!(
    slices_that_do_not_fit_are_refused_before_any_launch,
    [("FAKE_DRIVER_GPUS", "2")],
    {
        let stream = stream();
        let elsewhere = CudaContext::new(1).expect("another GPU").default_stream();
        let of = |len| stream.alloc_zeros::<f32>(len).expect("memory");
        let (rows, short, foreign) = (
            of(LEN),
            of(LEN - 1),
            elsewhere.alloc_zeros::<f32>(LEN).expect("memory"),
        );
        let (mut gradient, mut value, mut one) = (of(LEN), of(VALUE_LEN), of(1));
        let mut evaluator = Evaluator::<f32>::new(&stream, &problem()).expect("an evaluator");
        calls();
        let length = |argument, expected, got| {
            Some(Error::Length {
                argument,
                expected,
                got,
            })
        };
        type Slice = CudaSlice<f32>;
        let mut launch =
            |student: &Slice, teacher: &Slice, gradient: &mut Slice, value: &mut Slice| {
                evaluator.launch(student, teacher, gradient, value).err()
            };
        assert_eq!(
            launch(&short, &rows, &mut gradient, &mut value),
            length("student", LEN, LEN - 1)
        );
        assert_eq!(
            launch(&rows, &short, &mut gradient, &mut value),
            length("teacher", LEN, LEN - 1)
        );
        assert_eq!(
            launch(&rows, &rows, &mut one, &mut value),
            length("gradient", LEN, 1)
        );
        assert_eq!(
            launch(&rows, &rows, &mut gradient, &mut one),
            length("value", VALUE_LEN, 1)
        );
        let refused = launch(&rows, &foreign, &mut gradient, &mut value);
        assert!(
            matches!(
                refused,
                Some(Error::ForeignMemory {
                    argument: "teacher",
                    ..
                })
            ),
            "{refused:?}"
        );
        assert_eq!(calls(), [""; 0]);
    }
);

with_fake_driver!(the_upstream_factor_may_change, [], {
    let mut evaluator = Evaluator::<f32>::new(&stream(), &problem()).expect("an evaluator");
    let bytes = evaluator.workspace_bytes();
    calls();
    evaluator.set_upstream(1024.0).expect("a factor");
    assert_eq!(evaluator.problem().upstream(), 1024.0);
    assert_eq!(evaluator.workspace_bytes(), bytes);
    assert_eq!(calls(), [""; 0], "nothing is allocated");
});

with_fake_driver!(weights_and_lists_are_launches_alone, [], {
    let stream = stream();
    let shapes = Shapes::of_top_k(ROWS, CLASSES, 2).with_row_weights();
    let problem = KdKl::default().problem(shapes).expect("shapes that fit");
    let mut evaluator = Evaluator::<f32>::new(&stream, &problem).expect("an evaluator");
    let (classes, logarithms) = ([2, 0].repeat(ROWS), [-1.0f32; 2 * ROWS]);
    let host = relata::TopK::new(&classes, &logarithms, [ROWS, 2]).expect("lists");
    let mut lists = TopK::new(&stream, host, CLASSES).expect("memory");
    assert_eq!((lists.len(), lists.k()), (ROWS, 2));
    let student = stream.alloc_zeros::<f32>(LEN).expect("memory");
    let weights = stream.alloc_zeros::<f32>(ROWS).expect("memory");
    let mut losses = stream.alloc_zeros::<f32>(ROWS).expect("memory");
    let mut gradient = stream.alloc_zeros::<f32>(LEN).expect("memory");
    let mut value = stream.alloc_zeros::<f32>(VALUE_LEN).expect("memory");
    calls();
    let mut launches = Vec::new();
    for with_losses in [false, true, true] {
        let of_rows = OfRows {
            weights: Some(&weights),
            losses: with_losses.then_some(&mut losses as _),
            ..OfRows::default()
        };
        let teacher = Teacher::TopK(&mut lists);
        let launched = evaluator.launch_with(&student, teacher, of_rows, &mut gradient, &mut value);
        launched.expect("launches");
        launches.push(actions(calls()));
    }
    // The driver shows the first two words of a kernel's arguments.
    let address = |slice: &CudaSlice<f32>| format!("{:#x}", slice.device_ptr(&stream).0);
    let (weights, student) = (address(&weights), address(&student));
    for launched in &launches {
        let [shares, of_lists] = &launched[..] else {
            panic!("{launches:#?}");
        };
        assert!(shares.starts_with("cuLaunchKernel relata_row_shares "));
        assert!(shares.contains(&format!(" of {weights} ")), "{shares}");
        assert!(of_lists.starts_with("cuLaunchKernel relata_kd_top_k_f32 "));
        assert!(of_lists.contains(&format!(" of {student} ")), "{of_lists}");
    }
});

with_fake_driver!(weights_and_lists_that_do_not_fit_are_refused, [], {
    let stream = stream();
    let lists_of = |class: u32, rows: usize, below: usize| {
        let (classes, logarithms) = ([class, 0].repeat(rows), [-1.0f32].repeat(2 * rows));
        let host = relata::TopK::new(&classes, &logarithms, [rows, 2]).expect("lists");
        TopK::new(&stream, host, below)
    };
    let below = |most, got| Error::TooLarge {
        argument: "teacher classes",
        most,
        got,
    };
    assert_eq!(lists_of(3, ROWS, CLASSES).err(), Some(below(2, 3)));
    assert!(matches!(
        lists_of(0, ROWS, CLASSES).err(),
        Some(Error::Parameter {
            argument: "teacher classes",
            ..
        })
    ));

    let student = stream.alloc_zeros::<f32>(LEN).expect("memory");
    let weights = stream.alloc_zeros::<f32>(ROWS).expect("memory");
    let short = stream.alloc_zeros::<f32>(ROWS - 1).expect("memory");
    let mut losses = stream.alloc_zeros::<f32>(ROWS + 1).expect("memory");
    let mut gradient = stream.alloc_zeros::<f32>(LEN).expect("memory");
    let mut value = stream.alloc_zeros::<f32>(VALUE_LEN).expect("memory");
    let weighted = OfRows {
        weights: Some(&weights),
        ..OfRows::default()
    };
    let shortly = OfRows {
        weights: Some(&short),
        ..OfRows::default()
    };
    let longer = OfRows {
        weights: Some(&weights),
        losses: Some(&mut losses),
        ..OfRows::default()
    };
    let other_stream = stream.context().new_stream().expect("a stream");
    let (classes, logarithms) = ([1, 0].repeat(ROWS), [-1.0f32; 2 * ROWS]);
    let host = relata::TopK::new(&classes, &logarithms, [ROWS, 2]);
    let mut elsewhere = TopK::new(&other_stream, host.expect("lists"), CLASSES).expect("memory");
    let mut fine = lists_of(1, ROWS, CLASSES).expect("memory");
    let mut fewer = lists_of(1, ROWS - 1, CLASSES).expect("memory");
    let mut more_classes = lists_of(1, ROWS, CLASSES + 1).expect("memory");
    let missing = |argument| Error::Missing {
        argument,
        expected: "launch_with, with what the problem has",
    };
    let unexpected = |argument| Error::Unexpected {
        argument,
        loss: "kd-kl",
    };
    let length = |argument, got| Error::Length {
        argument,
        expected: ROWS,
        got,
    };
    let of_lists = Shapes::of_top_k(ROWS, CLASSES, 2).with_row_weights();
    let rows = Shapes::new(ROWS, CLASSES, CLASSES);
    calls();
    for (shapes, teacher, of_rows, error) in [
        (
            of_lists,
            Teacher::Rows(&student),
            OfRows::default(),
            missing("top_k"),
        ),
        (
            of_lists,
            Teacher::TopK(&mut fine),
            OfRows::default(),
            missing("row_weights"),
        ),
        (
            rows,
            Teacher::Rows(&student),
            weighted,
            unexpected("row_weights"),
        ),
        (
            of_lists,
            Teacher::TopK(&mut fewer),
            shortly,
            Error::Dimension {
                argument: "teacher rows",
                expected: ROWS,
                got: ROWS - 1,
            },
        ),
        (
            of_lists,
            Teacher::TopK(&mut more_classes),
            OfRows {
                weights: Some(&weights),
                ..OfRows::default()
            },
            below(CLASSES, CLASSES + 1),
        ),
        (
            of_lists,
            Teacher::TopK(&mut elsewhere),
            OfRows {
                weights: Some(&weights),
                ..OfRows::default()
            },
            Error::ForeignMemory {
                argument: "top_k",
                got: "lists of another stream".to_owned(),
            },
        ),
        (
            rows.with_row_weights(),
            Teacher::Rows(&student),
            OfRows {
                weights: Some(&short),
                ..OfRows::default()
            },
            length("row_weights", ROWS - 1),
        ),
        (
            rows.with_row_weights(),
            Teacher::Rows(&student),
            longer,
            length("row_losses", ROWS + 1),
        ),
    ] {
        let problem = KdKl::default().problem(shapes).expect("shapes that fit");
        let mut evaluator = Evaluator::<f32>::new(&stream, &problem).expect("an evaluator");
        let refused = evaluator.launch_with(&student, teacher, of_rows, &mut gradient, &mut value);
        assert_eq!(refused, Err(error));
    }
    assert!(
        !calls()
            .iter()
            .any(|call| call.starts_with("cuLaunchKernel"))
    );
});

with_fake_driver!(labels_are_launches_alone_and_take_no_teacher, [], {
    let stream = stream();
    let labelled = SupCon::default().problem(Shapes::new(ROWS, CLASSES, 0).with_labels());
    let labelled = labelled.expect("shapes that fit");
    let mut evaluator = Evaluator::<f32>::new(&stream, &labelled).expect("an evaluator");
    let student = stream.alloc_zeros::<f32>(LEN).expect("memory");
    let labels = stream.alloc_zeros::<u32>(ROWS).expect("memory");
    let short = stream.alloc_zeros::<u32>(ROWS - 1).expect("memory");
    let mut gradient = stream.alloc_zeros::<f32>(LEN).expect("memory");
    let mut value = stream.alloc_zeros::<f32>(VALUE_LEN).expect("memory");
    let of = |labels| OfRows {
        labels: Some(labels),
        ..OfRows::default()
    };
    calls();
    let mut launches = Vec::new();
    for _ in 0..2 {
        let launched = evaluator.launch_with(
            &student,
            Teacher::None,
            of(&labels),
            &mut gradient,
            &mut value,
        );
        launched.expect("launches");
        launches.push(actions(calls()));
    }
    let kernels: Vec<_> = launches[0]
        .iter()
        .filter_map(|call| call.strip_prefix("cuLaunchKernel ")?.split(' ').next())
        .collect();
    assert_eq!(
        kernels,
        [
            "relata_normalize_f32",
            "relata_towers_log_sums",
            "relata_towers_rows",
            "relata_towers_gradient_labels",
            "relata_towers_finish",
        ]
    );
    assert_eq!(launches[0].len(), kernels.len(), "{launches:#?}");
    assert_eq!(launches[0], launches[1]);

    let missing = |argument| Error::Missing {
        argument,
        expected: "launch_with, with what the problem has",
    };
    let unexpected = |argument, loss| Error::Unexpected { argument, loss };
    let pairs = SigLip::default().problem(Shapes::new(ROWS - 1, CLASSES, 0));
    let pairs = pairs.expect("shapes that fit");
    let against_teacher = problem();
    for (problem, teacher, of_rows, error) in [
        (
            &labelled,
            Teacher::None,
            OfRows::default(),
            missing("labels"),
        ),
        (
            &labelled,
            Teacher::Rows(&student),
            of(&labels),
            unexpected("teacher", "sup-con"),
        ),
        (
            &labelled,
            Teacher::None,
            of(&short),
            Error::Length {
                argument: "labels",
                expected: ROWS,
                got: ROWS - 1,
            },
        ),
        (
            &pairs,
            Teacher::None,
            of(&short),
            unexpected("labels", "siglip"),
        ),
        (
            &against_teacher,
            Teacher::None,
            OfRows::default(),
            missing("teacher"),
        ),
    ] {
        let mut evaluator = Evaluator::<f32>::new(&stream, problem).expect("an evaluator");
        calls();
        let refused = evaluator.launch_with(&student, teacher, of_rows, &mut gradient, &mut value);
        assert_eq!(refused, Err(error));
        assert_eq!(calls(), [""; 0]);
    }
});
