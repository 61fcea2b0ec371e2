//! Standard output, which may be a pipe whose reader leaves, and the progress on standard error.

use std::io::{self, ErrorKind, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressFinish, ProgressStyle};

use crate::failure::{Failure, Result};

/// Writes a line to standard output. A reader that has gone (`| head -1`) ends the command quietly.
pub(crate) fn print_line(line: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{line}")
        .and_then(|()| stdout.flush())
        .map_err(|error| match error.kind() {
            ErrorKind::BrokenPipe => Failure::Quiet,
            _ => Failure::refused("standard output", error),
        })
}

/// A spinner that says what is being done until it is dropped; nothing where standard error is
/// not a terminal.
pub(crate) fn spinner(message: String) -> ProgressBar {
    let bar = ProgressBar::new_spinner()
        .with_message(message)
        .with_finish(ProgressFinish::AndClear);
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
        bar.set_style(style);
    }
    if !bar.is_hidden() {
        bar.enable_steady_tick(Duration::from_millis(250));
    }
    bar
}
