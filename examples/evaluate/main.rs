//! Embeddings in, losses and gradients out: evaluates the losses of a student against a teacher on
//! every device at hand. Without arguments it does so on the real embeddings in `examples/data`.
//!
//! ```sh
//! cargo run --release --example evaluate
//! cargo run --release --example evaluate -- --student s.npy --teacher t.npy --loss rkd-angle --json
//! ```

mod devices;
mod failure;
mod files;
mod gradient;
mod inputs;
mod measure;
mod options;
mod output;
mod plan;
mod report;

use std::process::ExitCode;

use failure::{Failure, Result, say};
use gradient::GradientFile;
use inputs::Sources;
use measure::Bench;
use options::Options;
use plan::Job;

fn main() -> ExitCode {
    match run() {
        Ok(()) | Err(Failure::Quiet) => ExitCode::SUCCESS,
        Err(Failure::Refused(why)) => {
            say("error", &why);
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<()> {
    let options = Options::from_command_line()?;
    // Whatever can be refused is refused before anything is computed.
    options.check_devices()?;
    options.check_divergence()?;
    let gradient_file = options.gradient_file()?;
    let sources = Sources::load(&options)?;
    let jobs = plan::plan(&options, &sources)?;
    let mut bench = Bench::new(options.checked, jobs.len());
    if options.json {
        report_json(&mut bench, &jobs, gradient_file.as_ref())
    } else {
        report_table(&mut bench, &jobs, gradient_file.as_ref(), &options)
    }
}

/// A line of JSON per job, each as soon as it is known.
fn report_json(bench: &mut Bench, jobs: &[Job], gradient: Option<&GradientFile>) -> Result<()> {
    for job in jobs {
        let measured = bench.measure(job)?;
        if let Some(file) = gradient {
            file.write(job, &measured.gradient)?;
        }
        output::print_line(&report::json(job, &measured))?;
    }
    Ok(())
}

/// One table of all jobs.
fn report_table(
    bench: &mut Bench,
    jobs: &[Job],
    gradient: Option<&GradientFile>,
    options: &Options,
) -> Result<()> {
    let mut table = report::Table::new();
    for job in jobs {
        let measured = bench.measure(job)?;
        if let Some(file) = gradient {
            file.write(job, &measured.gradient)?;
        }
        // Slow as it is, the reference runs only where it is among the devices asked for.
        let deviation = if job.device.is_reference() || !options.asks_for_reference() {
            None
        } else {
            Some(measured.deviation_from(&*bench.reference(job)?))
        };
        table.add(job, &measured, deviation);
    }
    output::print_line(&table.finish(options))
}
