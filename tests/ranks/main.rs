//! One loss over the rows of many ranks is the loss of one rank that has them all.

#[path = "../common/mod.rs"]
mod common;

mod faults;
mod losses;
mod queues;
mod rows;
mod support;
