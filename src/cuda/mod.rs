//! The CUDA kernels on a card, at three depths.
//!
//! - [`Cuda`] is a [`Device`](crate::Device) like any other: host slices in, loss and gradient out. It
//!   copies both ways and waits.
//! - [`Evaluator`] takes slices that are on the card already. It owns its workspace; an evaluation is
//!   launches on a stream and nothing else: nothing is allocated or copied and nobody waits. RRD's and
//!   InfoNCE's [`Queue`] lives on the card too.
//! - [`RawEvaluator`] and [`RawQueue`] take addresses and any stream of any library, in the context that is
//!   current.
//!
//! The program starts without CUDA. What is missing, the driver, a card, kernels for the card, is a
//! typed [`Error`](crate::Error) of the constructors.

mod card;
mod context;
mod driver;
mod evaluator;
mod failure;
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

use self::card::Card;
use self::library::Library;
use self::machine::CudaMachine;
use crate::error::Result;

/// A CUDA card, for data in host memory: copied there, computed, copied back, on the default stream of
/// the card's primary context. [`f32`], [`half::f16`] and [`half::bf16`].
///
/// A trainer whose embeddings are on the card already wants an [`Evaluator`].
#[derive(Clone, Debug)]
pub struct Cuda {
    stream: Arc<CudaStream>,
    card: Card,
    library: &'static Library,
}

impl Cuda {
    /// The card of this number, from 0.
    ///
    /// # Errors
    /// [`Error::NoDriver`](crate::Error::NoDriver), [`Error::NoCard`](crate::Error::NoCard),
    /// [`Error::UnsupportedCard`](crate::Error::UnsupportedCard),
    /// [`Error::OldDriver`](crate::Error::OldDriver), or what else the driver says as
    /// [`Error::Cuda`](crate::Error::Cuda).
    pub fn new(ordinal: usize) -> Result<Self> {
        let context = driver::context(ordinal)?;
        let card = Card::of(context.cu_device())?;
        let library = Library::prepared(&card)?;
        Ok(Cuda {
            stream: context.default_stream(),
            card,
            library,
        })
    }

    /// What its maker calls it.
    #[must_use]
    pub fn card(&self) -> &str {
        &self.card.name
    }

    /// One evaluation's worth of the card.
    pub(crate) fn machine(&self) -> CudaMachine<'_> {
        CudaMachine::new(&self.stream, &self.card, self.library)
    }
}
