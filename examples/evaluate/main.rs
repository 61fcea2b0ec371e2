//! Embeddings in, losses and gradients out: evaluates the losses of a student against a teacher on
//! every device at hand. Without arguments it does so on the real embeddings in `examples/data`.
//!
//! ```sh
//! cargo run --release --example evaluate
//! cargo run --release --example evaluate -- --student s.npy --teacher t.npy --loss rkd-angle --json
//! ```

mod checks;
mod devices;
mod failure;
mod files;
mod finite;
mod inputs;
mod measure;
mod measurement;
mod options;
mod out_file;
mod out_files;
mod output;
mod plan;
mod plot;
mod report;
mod teacher;
mod towers;

use std::process::ExitCode;

use failure::{Failure, Result, say};
use inputs::Sources;
use measure::Bench;
use measurement::Measurement;
use options::Options;
use out_files::OutFiles;
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
    options.check_banks()?;
    options.check_divergence()?;
    towers::check(&options)?;
    let files = OutFiles::new(&options)?;
    let sources = {
        let _spinner = output::spinner("reading".to_owned());
        Sources::load(&options)?
    };
    let jobs = plan::plan(&options, &sources)?;
    if let Some(file) = &files.plot {
        let _spinner = output::spinner("drawing".to_owned());
        plot::draw(file, &sources.pictured()?)?;
    }
    let mut bench = Bench::new(options.checked, jobs.len());
    if options.json {
        report_json(&mut bench, &jobs, &files)
    } else {
        report_table(&mut bench, &jobs, &files, &options)
    }
}

/// A line of JSON per job, each as soon as it is known.
fn report_json(bench: &mut Bench, jobs: &[Job], files: &OutFiles) -> Result<()> {
    for job in jobs {
        let measured = bench.measure(job)?;
        write(files, job, &measured)?;
        output::print_line(&report::json(job, &measured))?;
    }
    Ok(())
}

/// One table of all jobs, row by row.
fn report_table(
    bench: &mut Bench,
    jobs: &[Job],
    files: &OutFiles,
    options: &Options,
) -> Result<()> {
    let mut table = report::Table::new(jobs);
    for job in jobs {
        let measured = bench.measure(job)?;
        write(files, job, &measured)?;
        let deviation = if job.device.is_reference() || !job.with_reference {
            None
        } else {
            Some(measured.deviation_from(&*bench.compared_with(job)?))
        };
        output::print_line(&table.row(job, &measured, deviation))?;
    }
    output::print_line(&table.finish(options))
}

/// Writes what was asked for, in the shape of the student's file. Of two towers each has a file for
/// its half of the gradient.
fn write(files: &OutFiles, job: &Job, measured: &Measurement) -> Result<()> {
    let student = job.inputs.student;
    let mut shape = match student.groups {
        Some(groups) => vec![groups, student.rows / groups],
        None => vec![student.rows],
    };
    if let Some(file) = &files.row_losses {
        file.write(&shape, measured.row_losses.iter().copied())?;
    }
    shape.push(student.dim);
    shape.resize(shape.len() + student.ones, 1);
    let (first, second) = measured.gradient.split_at(student.rows * student.dim);
    for (file, gradient) in [(&files.gradient, first), (&files.gradient_keys, second)] {
        match file {
            None => {}
            Some(file) if job.device.is_reference() => {
                file.write(&shape, gradient.iter().copied())?;
            }
            #[allow(clippy::cast_possible_truncation)] // f32 is what the file is to hold
            Some(file) => file.write(&shape, gradient.iter().map(|&g| g as f32))?,
        }
    }
    Ok(())
}
