//! Every kernel runs in the tests that benches/bundle/run runs under compute-sanitizer. It lists
//! those tests of tests/cuda.rs by name.

use std::collections::BTreeSet;

use half::{bf16, f16};
use relata::cuda::cudarc::driver::DeviceRepr;
use relata::cuda::{Bank, Queue};
use relata::{
    Cuda, GpuElement, Relation, RkdDistance, Rows, Rrd, Shapes, WeightPrecision, relation_matrix,
    softmax,
};

use crate::common::cases::{self, Case};
use crate::common::{self, Input};
use crate::fake_driver::{calls, with_fake_driver};
use crate::stream;

/// tests/cuda.rs has the tests that benches/bundle/run names. Otherwise the sanitizers would run
/// nothing.
#[test]
fn the_named_tests_exist() {
    let run = include_str!("../../benches/bundle/run");
    let (_, names) = run.split_once("tests=(").expect("a list of tests");
    let (names, _) = names.split_once(')').expect("the end of the list");
    for name in names.split_whitespace() {
        let mut lines = include_str!("../cuda.rs").lines();
        let is_there = lines.any(|line| line.starts_with("fn ") && line.contains(name));
        assert!(
            is_there,
            "{name}: no test of tests/cuda.rs is called like that"
        );
    }
}

with_fake_driver!(every_kernel_runs_under_sanitizers, [], {
    fn launch<T: GpuElement>(cuda: &Cuda, case: &Case) {
        let inputs = case.inputs::<T>();
        for weights in [WeightPrecision::Split, WeightPrecision::Half] {
            let problem = inputs.problem.with_weight_precision(weights);
            problem.evaluate(cuda, inputs.batch()).expect("launches");
        }
    }
    fn launch_blocks<T: GpuElement>(cuda: &Cuda) {
        let rows = Input::normal(0, Shapes::new(3, 2, 2)).student;
        let rows = common::cast::<T>(&rows);
        let rows = Rows::new(&rows, [3, 2]).expect("whole rows");
        relation_matrix(cuda, Relation::Dot, rows).expect("launches");
        softmax(cuda, rows, 1.0).expect("launches");
    }
    fn enqueue<T: GpuElement + DeviceRepr>() {
        let problem = Rrd::default().problem(Shapes::new(3, 2, 2).with_queue(5));
        let stream = stream();
        let queue = Queue::<T>::new(&stream, &problem.expect("shapes that fit"));
        let host = [T::from_f64(1.0); 6];
        let keys = stream.clone_htod(&host).expect("memory");
        // cudarc does not wait for the copy.
        stream.synchronize().expect("a copy");
        queue.expect("memory").enqueue(&keys).expect("launches");
    }
    fn launch_list<T: GpuElement>(cuda: &Cuda) {
        let student = [T::from_f64(1.0); 6];
        let student = Rows::new(&student, [2, 3]).expect("whole rows");
        let (logarithms, weights) = ([-1.0f32; 2], [1.0f32; 2]);
        let list = relata::TopK::new(&[0, 2], &logarithms, [2, 1]).expect("a class a row");
        let batch = relata::Batch::of_top_k(student, list).with_row_weights(&weights);
        let problem = relata::KdKl::default().problem(batch.shapes());
        let problem = problem.expect("shapes that fit");
        problem.evaluate(cuda, batch).expect("launches");
    }
    fn launch_weighted(cuda: &Cuda) {
        let rows = Rows::new(&[1.0f32; 6], [2, 3]).expect("whole rows");
        let batch = relata::Batch::new(rows, rows).with_row_weights(&[1.0, 0.0]);
        let problem = relata::InfoNce::default().problem(batch.shapes());
        let problem = problem.expect("shapes that fit");
        problem.evaluate_rows(cuda, batch).expect("launches");
    }
    fn sample<T: GpuElement<Real = f32> + DeviceRepr>(cuda: &Cuda) {
        let rows = [T::from_f64(1.0); 6];
        let rows = Rows::new(&rows, [2, 3]).expect("whole rows");
        let bank = relata::Bank::<f32>::new(4, 3, 0).expect("a bank");
        let batch = relata::Batch::new(rows, rows).with_bank(&bank, &[0, 1, 2, 3]);
        let loss = relata::RrdBank {
            double_exponential: false,
            ..relata::RrdBank::default()
        };
        let problem = loss.problem(batch.shapes()).expect("shapes that fit");
        problem.evaluate(cuda, batch).expect("launches");
        let stream = stream();
        let mut bank = Bank::new(&stream, &bank).expect("memory");
        let rows = stream.clone_htod(rows.as_slice()).expect("memory");
        stream.synchronize().expect("a copy");
        bank.update::<T>(&[3, 0], &rows, 0.5).expect("launches");
    }
    let cuda = Cuda::new(0).expect("the fake driver's GPU");
    launch_weighted(&cuda);
    sample::<f32>(&cuda);
    sample::<f16>(&cuda);
    sample::<bf16>(&cuda);
    launch_list::<f32>(&cuda);
    launch_list::<f16>(&cuda);
    launch_list::<bf16>(&cuda);
    launch_blocks::<f32>(&cuda);
    launch_blocks::<f16>(&cuda);
    launch_blocks::<bf16>(&cuda);
    enqueue::<f32>();
    enqueue::<f16>();
    enqueue::<bf16>();
    for case in cases::of_every_kernel()
        .into_iter()
        .chain(cases::many_rows())
    {
        launch::<f32>(&cuda, &case);
        launch::<f16>(&cuda, &case);
        launch::<bf16>(&cuda, &case);
    }
    let calls = calls();
    let of = |call: &str| -> BTreeSet<&str> {
        let rests = calls.iter().filter_map(|line| line.strip_prefix(call));
        rests.filter_map(|rest| rest.split(' ').next()).collect()
    };
    let (known, launched) = (of("cuLibraryGetKernel "), of("cuLaunchKernel "));
    // Combinations of the pairwise family that no loss uses: the emulator tests them.
    let without_loss = |kernel: &str| {
        let parts = [
            "distance_mean",
            "dot_none",
            "squared_frobenius",
            "difference",
        ];
        kernel.starts_with("relata_pairwise_") && parts.iter().any(|part| kernel.contains(part))
    };
    let never = known.difference(&launched);
    let never: Vec<_> = never.filter(|kernel| !without_loss(kernel)).collect();
    assert!(!known.is_empty() && never.is_empty(), "{never:#?}");
});

with_fake_driver!(
    slow_f64_is_used_at_once_only_for_small_batches,
    [("FAKE_DRIVER_F64", "64")],
    {
        let cuda = Cuda::new(0).expect("the fake driver's GPU");
        let first = |rows: usize| {
            let input = Input::normal(0, Shapes::new(rows, 512, 512));
            let rows_of = common::cast::<f32>(&input.student);
            let rows_of = Rows::new(&rows_of, [rows, 512]).expect("whole rows");
            calls();
            let evaluated = RkdDistance::default().evaluate(&cuda, rows_of, rows_of);
            evaluated.expect("launches");
            let calls = calls().into_iter();
            let mut launches = calls.filter(|call| call.starts_with("cuLaunchKernel"));
            launches.next().expect("a launch")
        };
        assert!(first(64).contains("relata_rkd_relation_small_batch_f32"));
        assert!(first(128).contains("relata_rkd_relation_f32"));
    }
);
