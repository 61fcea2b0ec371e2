//! The command from end to end: the values it prints, the files it writes and the arguments it
//! refuses.

#[allow(dead_code, reason = "the command's tests need its norm alone")]
#[path = "../common/compare.rs"]
mod compare;
#[path = "../common/example.rs"]
mod example;
mod files;
mod hostile;
mod outputs;
mod plot;
mod refusals;
mod report;
mod row_options;
mod support;
mod teachers;
mod towers;
mod values;
