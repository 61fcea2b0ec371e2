//! The CUDA kernels on a GPU, at three depths.
//!
//! - [`Cuda`] is a [`Device`](crate::Device) like any other: host slices in, loss and gradient out. It
//!   copies both ways and waits.
//! - [`Evaluator`] takes slices that are on the GPU already. It owns its workspace; an evaluation is
//!   launches on a stream and nothing else: nothing is allocated or copied and nobody waits. RRD's and
//!   InfoNCE's [`Queue`] lives on the GPU too.
//! - [`RawEvaluator`] and [`RawQueue`] take addresses and any stream of any library, in the context that is
//!   current.
//!
//! The program starts without CUDA. What is missing, the driver, a GPU, kernels for the GPU, is a
//! typed [`Error`](crate::Error) of the constructors.

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

use std::sync::Arc;

/// The crate whose types [`Evaluator`] takes.
pub use cudarc;
use cudarc::driver::CudaStream;

pub use self::evaluator::Evaluator;
pub use self::queue::Queue;
pub use self::raw::{Buffers, RawEvaluator};
pub use self::raw_queue::RawQueue;

use self::gpu::Gpu;
use self::library::Library;
use self::machine::CudaMachine;
use crate::error::Result;

/// The release of nvcc that compiled the kernels, and what for: `13.0` and `sm_80, sm_90a, compute_80`.
#[must_use]
pub fn build() -> (String, String) {
    (images::toolkit().to_string(), images::targets())
}

/// A CUDA GPU, for data in host memory: copied there, computed, copied back, on the default stream of
/// the GPU's primary context. [`f32`], [`half::f16`] and [`half::bf16`].
///
/// A trainer whose embeddings are on the GPU already wants an [`Evaluator`].
#[derive(Clone, Debug)]
pub struct Cuda {
    stream: Arc<CudaStream>,
    gpu: Gpu,
    library: &'static Library,
}

crate::gpu::gpu_device!(Cuda, "cuda");

impl Cuda {
    /// The GPU of this number, from 0.
    ///
    /// # Errors
    /// [`Error::NoDriver`](crate::Error::NoDriver), [`Error::NoSuchGpu`](crate::Error::NoSuchGpu),
    /// [`Error::UnsupportedGpu`](crate::Error::UnsupportedGpu),
    /// [`Error::OldDriver`](crate::Error::OldDriver), or what else the driver says as
    /// [`Error::Cuda`](crate::Error::Cuda).
    pub fn new(ordinal: usize) -> Result<Self> {
        let context = driver::context(ordinal)?;
        let gpu = Gpu::of(context.cu_device())?;
        let library = Library::prepared(&gpu)?;
        Ok(Cuda {
            stream: context.default_stream(),
            gpu,
            library,
        })
    }

    /// What its maker calls it.
    #[must_use]
    pub fn gpu(&self) -> &str {
        &self.gpu.name
    }

    /// One evaluation's worth of the GPU.
    pub(crate) fn machine(&self) -> CudaMachine<'_> {
        CudaMachine::new(&self.stream, &self.gpu, self.library)
    }
}
