//! The command from end to end: what it prints, what it writes and what it refuses.

mod hostile;
mod refusals;
mod report;
mod support;
mod values;
