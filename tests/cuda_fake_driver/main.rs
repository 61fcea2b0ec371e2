//! What the host does with a GPU, tested without one: a fake driver records the calls and fails
//! where a test wants it to. Only on Linux, where `LD_LIBRARY_PATH` can put it in the driver's
//! place.

#![cfg(target_os = "linux")]
#![allow(unsafe_code, reason = "the raw entry")]

mod bank;
#[path = "../common/mod.rs"]
mod common;
mod copies;
mod device;
mod errors;
mod evaluator;
mod fake_driver;
mod kernels;
mod overlap;
mod prepared;
mod queue;
mod raw;
mod threads;

use std::sync::Arc;

use relata::cuda::cudarc::driver::{CudaContext, CudaStream};
use relata::{KdKl, Problem, Shapes};

const ROWS: usize = 5;
const CLASSES: usize = 3;

fn problem() -> Problem {
    KdKl::default()
        .problem(Shapes::new(ROWS, CLASSES, CLASSES))
        .expect("shapes that fit")
}

fn stream() -> Arc<CudaStream> {
    CudaContext::new(0)
        .expect("the fake driver's GPU")
        .default_stream()
}
