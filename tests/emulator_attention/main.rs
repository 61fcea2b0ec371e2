//! RRD and InfoNCE by their CUDA kernels, run thread for thread on the CPU, against the reference.
#![cfg(feature = "emulator")]

#[path = "../common/mod.rs"]
mod common;

mod check;
mod degenerate;
mod numerics;
mod shapes;
