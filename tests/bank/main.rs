//! The memory bank, and the losses with sampled negatives.

#[path = "../common/mod.rs"]
mod common;

mod losses;
mod memory;
mod sampler;
mod steps;
