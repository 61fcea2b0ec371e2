//! Evaluates losses over the rows of many MPI processes, and compares with one that has all rows.
//!
//! ```sh
//! cargo build --release --example evaluate_ranks
//! mpirun -n 4 target/release/examples/evaluate_ranks --deal 5,1,0,26 --dtype f16
//! ```

mod compare;
#[path = "../../../../examples/evaluate/failure.rs"]
mod failure;
#[allow(dead_code)] // what `evaluate` reads besides
#[path = "../../../../examples/evaluate/files/mod.rs"]
mod files;
mod inputs;
mod odd;
mod options;

use std::process::ExitCode;
use std::time::Duration;

use half::{bf16, f16};
use mpi::Threading;
use mpi::traits::Communicator as _;
use relata::ranks::Communicator as _;
use relata::{DType, Element};
use relata_mpi::MpiRank;

use failure::{Failure, Result, say};
use inputs::Sources;
use odd::Odd;
use options::Options;

/// How long the others have to print what they found before the job is aborted.
const LAST_WORDS: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let Some((universe, _)) = mpi::initialize_with_threading(Threading::Funneled) else {
        say("error", "MPI: expected to be initialised once");
        return ExitCode::from(2);
    };
    let own = universe.world().rank();
    match run(&universe.world()) {
        Ok(agree) if agree => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(Stop::Failure(Failure::Quiet)) => ExitCode::SUCCESS,
        // All ranks read the same arguments and files.
        Err(Stop::Failure(Failure::Refused(why))) => {
            if own == 0 {
                say("error", &why);
            }
            ExitCode::from(2)
        }
        Err(Stop::Ranks(error)) => {
            say(&format!("error on rank {own}"), &error.to_string());
            if matches!(error, relata::Error::RankLate { .. }) {
                // To finalise would wait for the late one.
                std::thread::sleep(LAST_WORDS);
                universe.world().abort(2);
            }
            ExitCode::from(2)
        }
    }
}

/// Why the program stops early.
enum Stop {
    /// Before ranks do anything together.
    Failure(Failure),
    /// An evaluation failed.
    Ranks(relata::Error),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Stop::Failure(failure)
    }
}

impl From<relata::Error> for Stop {
    fn from(error: relata::Error) -> Self {
        Stop::Ranks(error)
    }
}

/// Whether all losses agree with those of one rank.
fn run(world: &impl mpi::traits::Communicator) -> std::result::Result<bool, Stop> {
    let options = Options::from_command_line()?;
    let mut rank = MpiRank::new(world).with_limit(options.limit()?);
    let deal = options.deal(rank.world())?;
    let sources = Sources::load(&options)?;
    let odd = options.odd.filter(|odd| odd.rank == rank.rank());
    if odd.is_some_and(|odd| odd.leaves()) {
        return Ok(true);
    }
    let dtype = odd.and_then(Odd::dtype).unwrap_or(options.dtype);
    let run = match dtype {
        DType::F64 => run_in::<f64>,
        DType::F32 => run_in::<f32>,
        DType::F16 => run_in::<f16>,
        DType::BF16 => run_in::<bf16>,
        other => return Err(Failure::refused("--dtype", format!("{other} is not known")).into()),
    };
    run(&options, &sources, &deal, odd, &mut rank)
}

fn run_in<T: Element>(
    options: &Options,
    sources: &Sources,
    deal: &[usize],
    odd: Option<Odd>,
    rank: &mut MpiRank,
) -> std::result::Result<bool, Stop> {
    let mut agree = true;
    for loss in options.losses(deal) {
        let inputs = sources.inputs::<T>(&loss, deal)?;
        let loss = odd.map_or(loss, |odd| odd.loss(loss));
        let outcome = compare::compare(rank, &loss, &inputs, deal, odd)?;
        if rank.rank() == 0 {
            println!("{outcome}");
        }
        agree &= outcome.agrees();
    }
    Ok(agree)
}

fn check(is_right: bool, argument: &str, why: impl FnOnce() -> String) -> Result<()> {
    if is_right {
        return Ok(());
    }
    Err(Failure::refused(argument, why()))
}
