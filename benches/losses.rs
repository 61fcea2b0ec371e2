//! Every case of the table that is worth timing, in f32 on [`Cpu`]: loss and gradient, the gradient
//! into memory that is used again, as a trainer would.
//!
//! `cargo bench --bench losses -- rkd-angle` runs one group. For numbers next to PyTorch's, see
//! `compare`.

#[path = "../tests/common/cases.rs"]
mod cases;

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, SamplingMode, Throughput};
use relata::Cpu;

use cases::{Case, Inputs};

/// Evaluations that take longer get few samples.
const SLOW: Duration = Duration::from_micros(1500);
/// A case with more triples takes seconds; `compare` has it.
const MOST_TRIPLETS: u64 = 1 << 31;

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    let mut cases: Vec<Case> = cases::benches()
        .filter(|case| case.triplets() < MOST_TRIPLETS)
        .collect();
    // `cargo test --benches` only asks whether it runs, without optimisation.
    if !std::env::args().any(|arg| arg == "--bench") {
        cases.sort_by_key(Case::flops);
        cases.truncate(3);
    }
    let mut names: Vec<_> = cases.iter().map(|case| case.loss.name()).collect();
    names.dedup();
    for name in names {
        let group = cases.iter().filter(|case| case.loss.name() == name);
        bench_group(&mut criterion, name, group);
    }
    criterion.final_summary();
}

fn bench_group<'a>(
    criterion: &mut Criterion,
    name: &str,
    cases: impl Iterator<Item = &'a Case> + 'a,
) {
    let mut group = criterion.benchmark_group(name);
    for case in cases {
        let size = case.name[name.len()..].trim_start_matches('-');
        group.throughput(Throughput::Elements(match case.triplets() {
            0 => case.elements(),
            triplets => triplets,
        }));
        let inputs = case.inputs::<f32>();
        let mut gradient = vec![0.0; case.rows * case.student_dim];
        let start = Instant::now();
        evaluate(&inputs, &mut gradient);
        if start.elapsed() > SLOW {
            group.sample_size(20).sampling_mode(SamplingMode::Flat);
        } else {
            group.sample_size(50).sampling_mode(SamplingMode::Auto);
        }
        group.bench_function(size, |bencher| {
            bencher.iter(|| black_box(evaluate(&inputs, &mut gradient)));
        });
    }
    group.finish();
}

fn evaluate(inputs: &Inputs<f32>, gradient: &mut [f32]) -> f64 {
    let value = inputs
        .problem
        .evaluate_into(&Cpu, inputs.batch(), gradient)
        .expect("a case that its loss accepts");
    value.loss
}
