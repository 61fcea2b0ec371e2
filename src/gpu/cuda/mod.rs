//! The losses on a CUDA GPU, for data in three places.
//!
//! | your data | use | what a call does |
//! |---|---|---|
//! | in host memory | [`Cuda`], a [`Device`](crate::Device) | copies to the GPU, computes, copies back, waits |
//! | in slices on the GPU | [`Evaluator`], [`Queue`], [`Bank`] | launches kernels on a stream: no allocation, no copy, no wait |
//! | at addresses of any library | [`RawEvaluator`], [`RawQueue`] | the same, on any stream of the current context |
//!
//! A program with this feature starts on a machine without CUDA. A missing driver, a missing GPU or
//! missing kernels for the GPU are typed [`Error`](crate::Error)s of the constructors.

mod bank;
mod context;
mod driver;
mod evaluator;
mod failure;
mod gpu;
mod images;
mod launcher;
mod library;
mod machine;
mod memory;
mod queue;
mod raw;
mod raw_queue;
mod top_k;

use std::sync::Arc;

/// The crate whose slices and streams [`Evaluator`] takes.
pub use cudarc;
use cudarc::driver::CudaStream;

pub use self::bank::{Bank, Indices, SampledKeys};
pub use self::evaluator::{Evaluator, OfRows, Teacher};
pub use self::queue::Queue;
pub use self::raw::{Buffers, RawEvaluator};
pub use self::raw_queue::RawQueue;
pub use self::top_k::TopK;

use self::context::KernelContext;
use self::machine::CudaMachine;
use crate::error::Result;

/// How the kernels in this program were compiled.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BuildInfo {
    /// The release of nvcc, such as `13.0`.
    pub toolkit: String,
    /// The targets, such as `sm_80`, `sm_90a`, `compute_80`: nvcc's names of GPUs and of PTX.
    pub targets: Vec<String>,
}

/// How the kernels in this program were compiled. It needs no driver and no GPU.
#[must_use]
pub fn build() -> BuildInfo {
    BuildInfo {
        toolkit: images::toolkit().to_string(),
        targets: images::all_targets()
            .iter()
            .map(|&target| target.to_owned())
            .collect(),
    }
}

/// The number of f32 that `value` has on a GPU: the loss, and room for the most terms that a loss
/// reports ([`Spec::terms`](crate::Spec::terms)), in their order.
pub const VALUE_LEN: usize = 1 + crate::problem::MOST_TERMS;

/// A CUDA GPU as a [`Device`](crate::Device) for rows of [`f32`], [`half::f16`] or [`half::bf16`]
/// in host memory.
///
/// An evaluation copies the rows to the GPU, computes and copies the results back, on the default
/// stream of the GPU's primary context. If the embeddings are on the GPU already, use an
/// [`Evaluator`].
#[derive(Clone, Debug)]
pub struct Cuda {
    stream: Arc<CudaStream>,
    context: KernelContext,
}

crate::gpu::gpu_device!(Cuda, "cuda");

impl Cuda {
    /// The GPU with this number, counted from 0.
    ///
    /// # Errors
    /// [`Error::NoDriver`](crate::Error::NoDriver), [`Error::NoSuchGpu`](crate::Error::NoSuchGpu),
    /// [`Error::UnsupportedGpu`](crate::Error::UnsupportedGpu),
    /// [`Error::OldDriver`](crate::Error::OldDriver), or [`Error::Cuda`](crate::Error::Cuda) for
    /// any other error of the driver.
    pub fn new(ordinal: usize) -> Result<Self> {
        let stream = driver::context(ordinal)?.default_stream();
        let context = KernelContext::current()?;
        context.prepare_all()?;
        Ok(Cuda { stream, context })
    }

    /// The name that NVIDIA gives the GPU, such as `NVIDIA H100 80GB HBM3`.
    #[must_use]
    pub fn gpu_name(&self) -> &str {
        &self.context.gpu().name
    }

    /// The GPU for one evaluation.
    pub(crate) fn machine(&self) -> CudaMachine<'_> {
        CudaMachine::new(&self.stream, &self.context)
    }
}
