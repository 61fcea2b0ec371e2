//! Times relata's kernels on a GPU and, in turns with them, the papers' formulas in PyTorch.
//!
//! ```text
//! cargo bench -p relata --features cuda --bench cuda -- [--python PATH] [--case NAME]... [--out FILE.csv]
//! ```
//!
//! It times a case only if its loss and gradient agree with those of the CPU path.
//! benches/README.md explains the measurement. Without a GPU it prints SKIPPED and succeeds, unless
//! RELATA_REQUIRE_CUDA=1.

#[path = "../../tests/common/cases.rs"]
mod cases;
mod gpu;
#[allow(dead_code, reason = "compare uses the rest")]
#[path = "../compare/machine.rs"]
mod machine;
mod ours;
mod provider;
mod record;
#[allow(dead_code, reason = "compare uses the rest")]
#[path = "../compare/torch.rs"]
mod torch;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use half::{bf16, f16};
use relata::cuda::cudarc::driver::DeviceRepr;
use relata::{Contrastive, Cuda, DType, Family, GpuElement, Target, WeightPrecision};

use cases::{Case, Purpose};
use gpu::Gpu;
use ours::Ours;
use provider::Provider;
use record::{Measurement, Record, Samples};
use torch::{Files, Worker};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// The seconds of a turn of each side.
const TURN: f64 = 0.05;
/// The relative difference that the kernels and the CPU path may have. For halves it is larger: a
/// queue stores keys as f16.
const F32_TOLERANCE: f64 = 1e-4;
const HALF_TOLERANCE: f64 = 2e-2;

/// Times the kernels on a GPU.
#[derive(Debug, Parser)]
struct Options {
    /// A Python with torch, to time PyTorch too
    #[arg(long)]
    python: Option<PathBuf>,
    /// The path of baseline_pytorch.py, if it is not in the folder of the sources
    #[arg(long)]
    baseline: Option<PathBuf>,
    /// Only this provider: eager, compiled (takes minutes: it compiles each case) or attention
    #[arg(long = "provider", value_name = "NAME", value_parser = record::PROVIDERS)]
    providers: Vec<String>,
    /// Only this case
    #[arg(long = "case", value_name = "NAME")]
    cases: Vec<String>,
    /// Only this type: f32, f16 or bf16 [default: f32, and bf16 for losses whose speed depends on
    /// it]
    #[arg(long = "dtype", value_name = "TYPE")]
    dtypes: Vec<String>,
    /// The file for the results, as CSV [default: none]
    #[arg(long)]
    out: Option<PathBuf>,
    /// Turns of each side in a case
    #[arg(long, default_value_t = 11)]
    turns: usize,
    /// Evaluates each case once and stops, for a profiler
    #[arg(long)]
    once: bool,
    /// Prints the name of the GPU and stops
    #[arg(long)]
    probe: bool,
    /// The number of the GPU
    #[arg(long, default_value_t = 0)]
    gpu: usize,
    /// cargo passes this
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    // `cargo test` starts benchmarks without arguments.
    if std::env::args().len() == 1 {
        eprintln!("cuda: skipped; see --help");
        return ExitCode::SUCCESS;
    }
    let options = Options::parse();
    let cuda = match Cuda::new(options.gpu) {
        Ok(cuda) => cuda,
        Err(why) if std::env::var("RELATA_REQUIRE_CUDA").is_ok_and(|required| required == "1") => {
            eprintln!("RELATA_REQUIRE_CUDA=1 and no GPU: {why}");
            return ExitCode::FAILURE;
        }
        Err(why) => {
            eprintln!("SKIPPED cuda: {why}");
            return ExitCode::SUCCESS;
        }
    };
    if options.probe {
        println!("{}", cuda.gpu_name());
        return ExitCode::SUCCESS;
    }
    match run(&options, &cuda) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cuda: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options, cuda: &Cuda) -> Result<()> {
    let known: Vec<Case> = cases::on_gpus().collect();
    if let Some(name) = options
        .cases
        .iter()
        .find(|&name| known.iter().all(|case| case.name != *name))
    {
        let names: Vec<_> = known.iter().map(|case| case.name.as_str()).collect();
        return Err(format!("--case: expected one of {}, got {name}", names.join(", ")).into());
    }
    let cases: Vec<Case> = known
        .into_iter()
        .filter(|case| options.cases.is_empty() || options.cases.contains(&case.name))
        .collect();
    let gpu = Gpu::new(cuda, options.gpu)?;
    if options.once {
        return once(options, &gpu, &cases);
    }
    let mut providers = Vec::new();
    if let Some(python) = &options.python {
        let asked = |name: &str| {
            options.providers.is_empty() || options.providers.iter().any(|other| other == name)
        };
        for (index, name) in record::PROVIDERS.into_iter().enumerate() {
            if asked(name) {
                let arguments = ["--device", "cuda", "--provider", name].map(str::to_owned);
                let mut worker = Worker::new(Some(python), arguments.into());
                worker.script = options.baseline.clone().unwrap_or(worker.script);
                providers.push(Provider::new(index, worker)?);
            }
        }
    }
    let version = providers.first().map(|provider| provider.version.clone());
    let mut record = Record::new(&gpu, version);
    println!("{}", record::heading());
    for case in &cases {
        // The tensors that eager PyTorch keeps for its backward pass must fit into memory.
        let fits = torch::kept_bytes(case) < 0.6 * gpu.memory as f64;
        // All types and weights have the same numbers. Write them once, and only if PyTorch reads
        // them.
        let files = (fits && !providers.is_empty())
            .then(|| Files::new(case, &case.inputs()))
            .transpose()
            .map_err(|error| format!("{}: {error}", case.name))?;
        let files = files.as_ref();
        for (dtype, weights) in variants(options, case)? {
            let measured = match dtype {
                DType::F16 => measure::<f16>(options, &gpu, case, weights, files, &mut providers),
                DType::BF16 => measure::<bf16>(options, &gpu, case, weights, files, &mut providers),
                _ => measure::<f32>(options, &gpu, case, weights, files, &mut providers),
            };
            let measured =
                measured.map_err(|error| format!("{} in {dtype}: {error}", case.name))?;
            println!("{measured}");
            record.add(case, &measured);
            // Save the results now, in case the next case fails.
            if let Some(path) = &options.out {
                record.write(path)?;
            }
        }
    }
    Ok(())
}

fn once(options: &Options, gpu: &Gpu, cases: &[Case]) -> Result<()> {
    for case in cases {
        for (dtype, weights) in variants(options, case)? {
            match dtype {
                DType::F16 => ours::once::<f16>(gpu, case, weights),
                DType::BF16 => ours::once::<bf16>(gpu, case, weights),
                _ => ours::once::<f32>(gpu, case, weights),
            }
            .map_err(|error| format!("{} in {dtype}: {error}", case.name))?;
        }
    }
    Ok(())
}

/// The types and, for halves of a contrastive loss, both precisions of the weights.
fn variants(options: &Options, case: &Case) -> Result<Vec<(DType, WeightPrecision)>> {
    let contrastive = matches!(case.loss.spec().family, Family::Contrastive(_));
    let mut variants = Vec::new();
    for dtype in dtypes(options, case)? {
        variants.push((dtype, WeightPrecision::Split));
        if dtype != DType::F32 && contrastive {
            variants.push((dtype, WeightPrecision::Half));
        }
    }
    Ok(variants)
}

fn dtypes(options: &Options, case: &Case) -> Result<Vec<DType>> {
    if options.dtypes.is_empty() {
        return Ok(match (case.loss.spec().family, case.purpose) {
            // These compute in f32 for every type of input.
            (
                Family::Pairwise(_) | Family::Triplet(_) | Family::Towers(_) | Family::Sampled(_),
                _,
            ) => vec![DType::F32],
            (Family::Contrastive(_) | Family::Logits(_), Purpose::Gpu) => vec![DType::BF16],
            (Family::Contrastive(_) | Family::Logits(_), _) => vec![DType::F32, DType::BF16],
        });
    }
    let known = [DType::F32, DType::F16, DType::BF16];
    let parse = |name: &String| {
        let dtype = known.into_iter().find(|dtype| dtype.name() == name);
        dtype.ok_or_else(|| format!("--dtype: expected f32, f16 or bf16, got {name}").into())
    };
    options.dtypes.iter().map(parse).collect()
}

/// Whether two calls of attention give the gradient of the loss: with a target from the teacher's
/// keys.
fn is_rrd(case: &Case) -> bool {
    matches!(
        case.loss.spec().family,
        Family::Contrastive(Contrastive {
            target: Target::Teacher { .. },
            ..
        })
    )
}

fn measure<T: GpuElement + DeviceRepr>(
    options: &Options,
    gpu: &Gpu,
    case: &Case,
    weights: WeightPrecision,
    files: Option<&Files>,
    providers: &mut [Provider],
) -> Result<Measurement> {
    let tolerance = if T::DTYPE == DType::F32 {
        F32_TOLERANCE
    } else {
        HALF_TOLERANCE
    };
    let mut ours = Ours::<T>::new(gpu, case, weights)?;
    ours.check(tolerance)?;
    for provider in &mut *providers {
        let asked = provider.name() != record::ATTENTION || is_rrd(case);
        match files.filter(|_| asked) {
            Some(files) => {
                provider.open(case, files, T::DTYPE.name(), ours.copies());
                // The first turn compiles.
                provider.turn(TURN);
            }
            None => provider.sit_out(),
        }
    }
    let mut samples = Samples::default();
    for _ in 0..options.turns {
        for overlap in ours.ways() {
            let times = if overlap {
                &mut samples.overlapping
            } else {
                &mut samples.ours
            };
            ours.turn(overlap, TURN, times)?;
        }
        for provider in &mut *providers {
            samples.torch[provider.index].extend(provider.turn(TURN));
        }
    }
    // The peak of the papers' formulas in eager mode.
    let eager = providers.iter_mut().find(|provider| provider.index == 0);
    let peak = eager.and_then(Provider::peak);
    let floor = gpu.floor(case, T::DTYPE);
    Ok(Measurement::new(
        case,
        (T::DTYPE, weights),
        samples,
        floor,
        [Some(ours.peak_bytes()), peak],
    ))
}
