//! What the host does about a GPU, without one: a fake driver for the driver records the calls and fails
//! where it is told to. On Linux, where a driver can be put in another's place.

#![cfg(target_os = "linux")]
#![allow(unsafe_code, reason = "the raw entry")]

#[path = "../common/mod.rs"]
mod common;
mod device;
mod errors;
mod evaluator;
mod kernels;
mod overlap;
mod queue;
mod raw;
mod support;

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
        .expect("the stand-in's GPU")
        .default_stream()
}

/// A test beside a fake driver with these settings.
macro_rules! beside {
    ($name:ident, $driver:ident, [$(($setting:literal, $value:literal)),*], $body:block) => {
        #[test]
        fn $name() {
            let name = concat!(module_path!(), "::", stringify!($name));
            // Tests are named without the crate.
            let name = name.split_once("::").map_or(name, |(_, name)| name);
            crate::support::beside(
                name,
                crate::support::Driver::$driver,
                &[$(($setting, $value)),*],
                || $body,
            );
        }
    };
}
use beside;
