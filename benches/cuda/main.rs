//! relata's kernels on a card, and the papers' formulas in PyTorch beside them, in turns.
//!
//! ```text
//! cargo bench -p relata --features cuda --bench cuda -- [--python PATH] [--case NAME]... [--out FILE.csv]
//! ```
//!
//! Check, then time: a case counts only once its loss and gradient agree with the CPU path's. benches/README.md says
//! how it is measured. Without a card it says SKIPPED and succeeds, unless RELATA_REQUIRE_CUDA=1.

mod card;
#[path = "../../tests/common/cases.rs"]
mod cases;
#[allow(dead_code, reason = "compare uses the rest")]
#[path = "../compare/machine.rs"]
mod machine;
mod ours;
mod record;
#[allow(dead_code, reason = "compare uses the rest")]
#[path = "../compare/torch.rs"]
mod torch;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use half::{bf16, f16};
use relata::cuda::cudarc::driver::DeviceRepr;
use relata::{Cuda, DType, GpuElement, WeightPrecision};

use card::Card;
use cases::{Case, Purpose};
use ours::Ours;
use record::{Measurement, Record, Samples};
use torch::{Files, Torch, Worker};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Seconds that each side evaluates before it is the other's turn.
const TURN: f64 = 0.05;
/// What the kernels and the CPU path may differ by, relatively; that halves are stored as f16 in a queue shows.
const F32_TOLERANCE: f64 = 1e-4;
const HALF_TOLERANCE: f64 = 2e-2;

/// Times the kernels on a card.
#[derive(Debug, Parser)]
struct Options {
    /// The Python that has torch, to time it too
    #[arg(long)]
    python: Option<PathBuf>,
    /// baseline_pytorch.py, where it isn't beside the source
    #[arg(long)]
    baseline: Option<PathBuf>,
    /// Only this case
    #[arg(long = "case", value_name = "NAME")]
    cases: Vec<String>,
    /// Only this type: f32, f16 or bf16 [default: f32, and bf16 for losses whose speed depends on it]
    #[arg(long = "dtype", value_name = "TYPE")]
    dtypes: Vec<String>,
    /// Where the results go, as CSV [default: nowhere]
    #[arg(long)]
    out: Option<PathBuf>,
    /// Turns of each side in a case
    #[arg(long, default_value_t = 11)]
    turns: usize,
    /// Names the card and stops
    #[arg(long)]
    probe: bool,
    /// The card's number
    #[arg(long, default_value_t = 0)]
    card: usize,
    /// cargo passes it
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
    let cuda = match Cuda::new(options.card) {
        Ok(cuda) => cuda,
        Err(why) if std::env::var("RELATA_REQUIRE_CUDA").is_ok_and(|required| required == "1") => {
            eprintln!("RELATA_REQUIRE_CUDA=1 and no card: {why}");
            return ExitCode::FAILURE;
        }
        Err(why) => {
            eprintln!("SKIPPED cuda: {why}");
            return ExitCode::SUCCESS;
        }
    };
    if options.probe {
        println!("{}", cuda.card());
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
    let cases: Vec<Case> = cases::on_cards()
        .filter(|case| options.cases.is_empty() || options.cases.contains(&case.name))
        .collect();
    if cases.is_empty() {
        let names: Vec<_> = cases::on_cards().map(|case| case.name).collect();
        return Err(format!("--case: expected one of {}", names.join(", ")).into());
    }
    let card = Card::new(cuda, options.card)?;
    let mut torches = Vec::new();
    if let Some(python) = &options.python {
        for provider in record::PROVIDERS {
            let arguments = ["--device", "cuda", "--provider", provider].map(str::to_owned);
            let mut worker = Worker::new(Some(python), arguments.into());
            worker.script = options.baseline.clone().unwrap_or(worker.script);
            torches.push(Torch::spawn(&worker, &[])?);
        }
    }
    let mut record = Record::new(&card, torches.first().map(|torch| torch.version.clone()));
    println!("{}", record::heading());
    for case in &cases {
        for (dtype, weights) in variants(options, case)? {
            let measured = match dtype {
                DType::F16 => measure::<f16>(options, &card, case, weights, &mut torches),
                DType::BF16 => measure::<bf16>(options, &card, case, weights, &mut torches),
                _ => measure::<f32>(options, &card, case, weights, &mut torches),
            };
            let measured =
                measured.map_err(|error| format!("{} in {dtype}: {error}", case.name))?;
            println!("{measured}");
            record.add(case, &measured);
            // What is known is kept, whatever becomes of the next case.
            if let Some(path) = &options.out {
                record.write(path)?;
            }
        }
    }
    Ok(())
}

/// The types, and of halves both precisions of an attention's weights.
fn variants(options: &Options, case: &Case) -> Result<Vec<(DType, WeightPrecision)>> {
    use relata::Loss::{InfoNce, Rrd};
    let mut variants = Vec::new();
    for dtype in dtypes(options, case)? {
        variants.push((dtype, WeightPrecision::Split));
        if dtype != DType::F32 && matches!(case.loss, Rrd(_) | InfoNce(_)) {
            variants.push((dtype, WeightPrecision::Half));
        }
    }
    Ok(variants)
}

fn dtypes(options: &Options, case: &Case) -> Result<Vec<DType>> {
    if options.dtypes.is_empty() {
        // RKD computes in f32 whatever comes.
        use relata::Loss::{InfoNce, KdKl, Rrd};
        return Ok(match (case.loss, case.purpose) {
            (Rrd(_) | InfoNce(_) | KdKl(_), Purpose::Card) => vec![DType::BF16],
            (Rrd(_) | InfoNce(_) | KdKl(_), _) => vec![DType::F32, DType::BF16],
            _ => vec![DType::F32],
        });
    }
    let known = [DType::F32, DType::F16, DType::BF16];
    let parse = |name: &String| {
        let dtype = known.into_iter().find(|dtype| dtype.name() == name);
        dtype.ok_or_else(|| format!("--dtype: expected f32, f16 or bf16, got {name}").into())
    };
    options.dtypes.iter().map(parse).collect()
}

fn measure<T: GpuElement + DeviceRepr>(
    options: &Options,
    card: &Card,
    case: &Case,
    weights: WeightPrecision,
    torches: &mut [Torch],
) -> Result<Measurement> {
    let tolerance = if T::DTYPE == DType::F32 {
        F32_TOLERANCE
    } else {
        HALF_TOLERANCE
    };
    let mut ours = Ours::<T>::new(card, case, weights)?;
    ours.check(tolerance)?;
    let files = Files::new(case, &case.inputs())?;
    // What eager PyTorch keeps for its backward pass has to fit beside everything else.
    let fits = torch::kept_bytes(case) < 0.6 * card.memory as f64;
    let torches = if fits { torches } else { &mut [] };
    let mut torches: Vec<_> = record::PROVIDERS
        .into_iter()
        .zip(torches)
        .filter(|(provider, _)| {
            *provider != record::ATTENTION || matches!(case.loss, relata::Loss::Rrd(_))
        })
        .map(|(_, torch)| torch)
        .collect();
    for torch in &mut torches {
        torch.open_copies(case, &files, T::DTYPE.name(), ours.copies())?;
        // Compiles, too.
        torch.turn(std::time::Duration::from_secs_f64(TURN))?;
    }
    let mut samples = Samples::default();
    for _ in 0..options.turns {
        samples.cold.extend(ours.cold(TURN)?);
        samples.warm.extend(ours.warm(TURN)?);
        samples.launches.extend(ours.launches(TURN)?);
        for (torch, samples) in torches.iter_mut().zip(&mut samples.torch) {
            samples.extend(torch.turn(std::time::Duration::from_secs_f64(TURN))?);
        }
    }
    let peak = match torches.first_mut() {
        Some(torch) => Some(torch.peak()?),
        None => None,
    };
    let floor = card.floor(case, T::DTYPE);
    Ok(Measurement::new(
        case,
        (T::DTYPE, weights),
        samples,
        floor,
        [Some(ours.peak_bytes()), peak],
    ))
}
