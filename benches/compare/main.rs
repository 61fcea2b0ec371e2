//! relata against the papers' formulas in PyTorch: one command, one run, the two in turns.
//!
//! ```text
//! cargo bench --bench compare -- --python PATH [--threads N] [--case NAME]...
//! ```
//!
//! Check, then time: loss and gradient of both have to agree on the same numbers before a time
//! counts. benches/README.md says how it is measured and what becomes of the results.

#[path = "../../tests/common/cases.rs"]
mod cases;
mod floor;
mod machine;
mod memory;
mod ours;
mod record;
mod torch;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;

use cases::Case;
use floor::Floor;
use machine::Machine;
use ours::Ours;
use record::{Measurement, Peaks, Record};
use torch::{Torch, Worker};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// How long each side evaluates before it is the other's turn.
const TURN: Duration = Duration::from_millis(50);
/// Before each turn: OpenMP's threads keep a core busy for a while after PyTorch's.
const PAUSE: Duration = Duration::from_millis(30);
/// However long a case takes, it gets so many turns.
const FEWEST_TURNS: usize = 5;
/// Others may take this share of the cores. Threads that wait for each other at barriers, PyTorch's
/// more than ours, lose far more than that share to them.
const QUIET: f64 = 0.05;
/// What two f32 implementations of one formula may differ by, relative to PyTorch's.
const LOSS_TOLERANCE: f64 = 1e-4;
const GRADIENT_TOLERANCE: f64 = 1e-3;

/// Measures relata and PyTorch in turns, prints the ratios and records them.
#[derive(Debug, Parser)]
struct Options {
    /// The Python that has torch
    #[arg(long)]
    python: Option<PathBuf>,
    /// Threads of each side
    #[arg(long, default_value_t = machine::cores())]
    threads: usize,
    /// Only this case, and nothing is recorded unless --out is given
    #[arg(long = "case", value_name = "NAME")]
    cases: Vec<String>,
    /// The folder under --out; by default, from the CPU's model
    #[arg(long)]
    machine: Option<String>,
    /// Where to record, as MACHINE/DATE.csv [default: benches/results]
    #[arg(long)]
    out: Option<PathBuf>,
    /// Turns of each side in a case
    #[arg(long, default_value_t = 21)]
    turns: usize,
    /// A case that takes longer gets fewer turns
    #[arg(long, default_value_t = 30.0)]
    seconds: f64,
    /// PyTorch through torch.compile
    #[arg(long)]
    compile: bool,
    /// PyTorch sits out where its backward pass would keep more GiB than this
    #[arg(long, default_value_t = 6.0)]
    torch_memory: f64,
    /// Prints what an evaluation of this case adds to the memory of a fresh process
    #[arg(long, hide = true)]
    peak_memory: Option<String>,
    /// cargo passes it
    #[arg(long, hide = true)]
    bench: bool,
}

impl Options {
    fn worker(&self) -> Worker {
        let mut arguments = vec!["--threads".to_owned(), self.threads.to_string()];
        if self.compile {
            arguments.extend(["--provider", "compiled"].map(str::to_owned));
        }
        Worker::new(self.python.as_deref(), arguments)
    }
}

fn main() -> ExitCode {
    if !asked() {
        eprintln!("compare: skipped, needs --python PATH to a Python with torch; see --help");
        return ExitCode::SUCCESS;
    }
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("compare: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether the arguments are for us: `cargo bench` and `cargo test` start every benchmark with
/// arguments meant for others, or none.
fn asked() -> bool {
    let ours = ["--python", "--peak-memory", "--help"];
    let is_ours = |arg: &str| ours.contains(&arg.split('=').next().unwrap_or(arg));
    std::env::args().skip(1).any(|arg| is_ours(&arg))
}

fn run(options: &Options) -> Result<()> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(options.threads)
        .build_global()?;
    if let Some(name) = &options.peak_memory {
        println!("{}", memory::added_by(&find(name)?));
        return Ok(());
    }
    let cases: Vec<_> = match options.cases.as_slice() {
        [] => cases::benches().collect(),
        names => names.iter().map(|name| find(name)).collect::<Result<_>>()?,
    };
    compare(options, &cases)
}

fn find(name: &str) -> Result<Case> {
    let mut cases = cases::benches();
    cases.find(|case| case.name == name).ok_or_else(|| {
        let names: Vec<_> = cases::benches().map(|case| case.name).collect();
        format!("--case: expected one of {}, got {name}", names.join(", ")).into()
    })
}

fn compare(options: &Options, cases: &[Case]) -> Result<()> {
    let busy = machine::busy();
    if busy > QUIET {
        let percent = 100.0 * busy;
        eprintln!("compare: the machine is not quiet ({percent:.0} %): the ratios won't be right");
    }
    let mut torch = Torch::spawn(&options.worker(), &[])?;
    let machine = Machine::of(options.threads, &torch.version);
    let mut record = Record::new(machine);
    println!("{}", record::heading());
    for case in cases {
        let measurement = measure(options, case, &mut torch)
            .map_err(|error| format!("{}: {error}", case.name))?;
        println!("{measurement}");
        record.add(case, &measurement);
    }
    if options.out.is_none() && !options.cases.is_empty() {
        println!("Not recorded: these are not all cases.");
        return Ok(());
    }
    let path = record.write(options)?;
    println!("Recorded in {}", path.display());
    Ok(())
}

fn measure(options: &Options, case: &Case, torch: &mut Torch) -> Result<Measurement> {
    let mut ours = Ours::new(case);
    let files = torch::Files::new(case, &ours.inputs)?;
    let sits_out = torch::kept_bytes(case) > options.torch_memory * 1024f64.powi(3);
    let mut torch = (!sits_out).then_some(torch);
    if let Some(torch) = torch.as_deref_mut() {
        torch.open(case, &files)?;
        check(&mut ours, torch, &files)?;
    }
    let floor = Floor::of(case);
    let (ours, torch, units) = take_turns(options, &mut ours, torch, floor)?;
    let peaks = Peaks {
        ours: memory::of_ours(case, options.threads)?,
        torch: match &torch {
            Some(_) => Some(memory::of_torch(case, &files, options)?),
            None => None,
        },
    };
    let floor = floor.zip(units);
    Ok(Measurement::new(case, ours, torch, peaks, floor))
}

/// Refuses to time two things that are not the same.
fn check(ours: &mut Ours, torch: &mut Torch, files: &torch::Files) -> Result<()> {
    let theirs = torch.check(files)?;
    let loss = ours.evaluate();
    let off = (loss - theirs.loss).abs() / theirs.loss.abs();
    within("loss", off, LOSS_TOLERANCE)?;
    let pairs = || ours.gradient.iter().zip(&theirs.gradient);
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let difference = norm(&mut pairs().map(|(&a, &b)| f64::from(a) - f64::from(b)));
    let off = difference / norm(&mut pairs().map(|(_, &b)| f64::from(b)));
    within("gradient", off, GRADIENT_TOLERANCE)
}

/// NaN is not within anything.
fn within(what: &str, off: f64, tolerance: f64) -> Result<()> {
    if off <= tolerance {
        return Ok(());
    }
    Err(
        format!("{what}: expected PyTorch's to {tolerance:e}, relatively, got one off by {off:e}")
            .into(),
    )
}

/// Seconds of each evaluation of ours, of each of PyTorch's, and of each product of sgemm and the
/// exponentials of its results.
type Turns = (Vec<f64>, Option<Vec<f64>>, Option<[Vec<f64>; 2]>);

fn take_turns(
    options: &Options,
    ours: &mut Ours,
    mut torch: Option<&mut Torch>,
    floor: Option<Floor>,
) -> Result<Turns> {
    let start = Instant::now();
    let (mut a, mut b) = (Vec::new(), torch.is_some().then(Vec::new));
    let mut units = floor.and(torch.as_ref()).map(|_| [Vec::new(), Vec::new()]);
    for turn in 0..options.turns {
        if turn >= FEWEST_TURNS && start.elapsed().as_secs_f64() > options.seconds {
            break;
        }
        std::thread::sleep(PAUSE);
        a.extend(ours.turn(TURN));
        if let (Some(torch), Some(b)) = (torch.as_deref_mut(), b.as_mut()) {
            std::thread::sleep(PAUSE);
            b.extend(torch.turn(TURN)?);
            if let (Some(floor), Some(units)) = (floor, units.as_mut()) {
                let turn = torch.units(floor.shape, TURN)?;
                for (all, new) in units.iter_mut().zip(turn) {
                    all.extend(new);
                }
            }
        }
    }
    Ok((a, b, units))
}
