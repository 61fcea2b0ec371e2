//! Random input, of which most is wrong, for the public API and for the command's readers of files.
//!
//! `RELATA_FUZZ_SECONDS=1800 cargo test -p relata --release --test fuzz -- --nocapture` runs each
//! test for so long. Without it a test takes a second.

mod calls;
#[path = "../common/mod.rs"]
mod common;
mod damaged_files;
// The command's own readers, and the error they return.
#[allow(dead_code, reason = "the command alone prints")]
#[path = "../../examples/evaluate/failure.rs"]
mod failure;
#[allow(dead_code, reason = "the command alone fits files")]
#[path = "../../examples/evaluate/files/mod.rs"]
mod files;

use std::env;
use std::time::{Duration, Instant};

/// Whether a test that began at `begin` may stop.
fn long_enough(begin: Instant) -> bool {
    let seconds = env::var("RELATA_FUZZ_SECONDS")
        .map_or(1.0, |seconds| seconds.parse().expect("a number of seconds"));
    begin.elapsed() > Duration::from_secs_f64(seconds)
}
