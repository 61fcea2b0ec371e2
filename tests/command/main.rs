//! The command from end to end: what it prints, what it writes and what it refuses.

#[path = "../common/example.rs"]
mod example;
mod hostile;
mod refusals;
mod report;
mod support;
mod values;
