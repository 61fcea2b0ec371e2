//! The CUDA kernels of RRD and InfoNCE in the emulator, against the reference.
#![cfg(feature = "emulator")]

#[path = "../common/mod.rs"]
mod common;

mod degenerate;
mod numerics;
mod right;
mod shapes;
