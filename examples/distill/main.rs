//! Measures whether distillation helps: trains a teacher, and small students with and without each
//! of the losses, on characters in many typefaces. Recall is measured on characters that no network
//! was trained on.
//!
//! ```sh
//! cargo run --release --example distill
//! cargo run --release --example distill -- --method rkd-angle=100 --recall-on validation \
//!     --first-seed 100 --seeds 3
//! ```

mod data;
#[path = "../evaluate/failure.rs"]
mod failure;
mod method;
mod metrics;
mod model;
mod options;
mod plot;
mod statistics;
mod study;
mod table;
mod task;
mod train;

use std::fs;
use std::io::Write;
use std::process::ExitCode;

use failure::{Failure, Result, say};
use options::Options;
use study::Study;

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
    let out = &options.out;
    // Everything that can be refused is refused before the training.
    fs::create_dir_all(out).map_err(|e| Failure::refused(format!("--out {}", out.display()), e))?;
    let study = Study::run(&options)?;
    let write = |name: &str, text: String| {
        let path = out.join(name);
        fs::write(&path, text).map_err(|e| Failure::refused(path.display(), e))
    };
    write("results.md", table::markdown(&study))?;
    write("runs.csv", table::csv(&study))?;
    plot::recall(&study, &out.join("recall.svg"))?;
    plot::distances(&study, &out.join("distances.svg"))?;
    let message = format!(
        "{}\n\nwritten to {}\n",
        table::terminal(&study),
        out.display()
    );
    // If standard output is closed, the files are written all the same.
    std::io::stdout()
        .write_all(message.as_bytes())
        .map_err(|_| Failure::Quiet)
}

impl From<candle_core::Error> for Failure {
    fn from(error: candle_core::Error) -> Self {
        Failure::Refused(error.to_string())
    }
}
