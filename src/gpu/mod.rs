//! The losses as CUDA kernels: which kernels run, on what memory, in which order.
//!
//! A [plan](plan) says how a problem runs on a device: a pure function of the two. Its passes are
//! written once, against [`Launcher`](machine::Launcher); what runs a kernel is the CUDA driver or the
//! emulator.

#[cfg(feature = "cuda")]
pub mod cuda;
pub(crate) mod element;
#[cfg(feature = "emulator")]
pub(crate) mod emulator;
mod evaluate;
pub(crate) mod kernels;
pub(crate) mod machine;
pub(crate) mod plan;
pub(crate) mod workspace;

mod attention;
mod info_nce;
mod kd_kl;
mod normalize;
pub(crate) mod queue;
mod relation;
mod rkd;
mod rrd;
mod softmax;

pub(crate) use evaluate::{evaluate, relation_matrix, softmax};
