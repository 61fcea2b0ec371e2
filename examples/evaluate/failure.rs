//! How a command fails: one clear line on standard error and exit code 2.

use std::io::Write;

/// Why the command stops early.
#[derive(Debug)]
pub(crate) enum Failure {
    /// An argument, a file or a value is not what was expected; the line that says so.
    Refused(String),
    /// There is nothing more to do: the help was printed, or the reader of standard output has
    /// gone.
    Quiet,
}

pub(crate) type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    /// Refuses `subject`: a file, an argument or a loss.
    pub(crate) fn refused(subject: impl std::fmt::Display, why: impl std::fmt::Display) -> Self {
        Failure::Refused(format!("{subject}: {why}"))
    }
}

impl From<clap::Error> for Failure {
    fn from(error: clap::Error) -> Self {
        if error.exit_code() == 0 {
            // The help or the version; if it cannot be printed there is nothing to be done.
            let _ = error.print();
            Failure::Quiet
        } else {
            Failure::Refused(on_one_line(&error.render().to_string()))
        }
    }
}

/// What clap says in several lines, without its hints on usage.
fn on_one_line(rendered: &str) -> String {
    let said: Vec<&str> = rendered
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information"))
        .filter(|line| !line.is_empty())
        .collect();
    let said = said.join(" ");
    said.strip_prefix("error: ").unwrap_or(&said).to_owned()
}

/// The longest line written to standard error. Names in files and arguments can be of any length.
const LONGEST_LINE: usize = 1000;

/// Writes `kind: text` to standard error, as exactly one line.
pub(crate) fn say(kind: &str, text: &str) {
    // In one write: other processes may write to the same terminal.
    let line = format!("{kind}: {}\n", one_line(text));
    // Nobody is left to tell if this fails.
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// `text` with control characters escaped, which names may hold, and not longer than a line may be.
fn one_line(text: &str) -> String {
    let mut line = String::new();
    for c in text.chars() {
        if line.len() >= LONGEST_LINE {
            line.push('…');
            break;
        }
        if c.is_control() {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
    }
    line
}
