//! The memory of past teacher keys at an address.
#![allow(unsafe_code, reason = "takes addresses")]

use std::ffi::c_void;

use cudarc::driver::result;

use super::context::Place;
use super::failure::Doing;
use crate::element::DType;
use crate::error::{Error, Result};
use crate::gpu::plan::{QueueAddresses, queue_layout};
use crate::gpu::queue::{EnqueuePlan, Layout};
use crate::loss::Loss;
use crate::problem::Problem;

/// A problem's queue in memory of any library: one buffer, which knows how far the ring is filled. A batch
/// enters it by launches alone, so a graph that captured them fills it further each time it is launched.
#[derive(Clone, Debug)]
pub struct RawQueue {
    pub(super) layout: Layout,
    pub(super) normalize: bool,
    plan: EnqueuePlan,
    /// Where the keys lie, behind scratch memory and the state.
    keys: usize,
    bytes: usize,
    place: Place,
}

impl RawQueue {
    /// Of the buffer and of all that is in it.
    pub(super) const ALIGNMENT: usize = 256;

    /// That of `problem`, if it has one.
    pub(super) fn of(problem: &Problem, dtype: DType, place: &Place) -> Result<Option<Self>> {
        let Some(layout) = queue_layout(problem, dtype) else {
            return Ok(None);
        };
        let normalize = match problem.loss() {
            Loss::Rrd(loss) => loss.normalize,
            Loss::InfoNce(loss) => loss.normalize,
            _ => true,
        };
        let plan = EnqueuePlan::new(layout, problem.shapes().rows, dtype, normalize)?;
        let keys = plan.workspace_bytes().saturating_add(Self::ALIGNMENT);
        let bytes = keys.checked_add(layout.bytes()?);
        Ok(Some(RawQueue {
            layout,
            normalize,
            plan,
            keys,
            bytes: bytes.ok_or(Error::OutOfMemory {
                argument: "queue",
                bytes: usize::MAX,
            })?,
            place: place.clone(),
        }))
    }

    /// The memory it takes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Makes it empty. Enqueued on `stream`.
    ///
    /// # Errors
    /// [`Error::NoContext`] and [`Error::Cuda`].
    ///
    /// # Safety
    /// `queue` is the address of [`bytes`](Self::bytes) bytes, aligned to 256, in the context's memory, and
    /// `stream` a `CUstream` of that context or null, which stands for its default stream.
    pub unsafe fn initialize(&self, queue: u64, stream: *mut c_void) -> Result<()> {
        self.place.check()?;
        // SAFETY: counters, scratch memory and state are its first bytes, and the caller promises both.
        let result = unsafe { result::memset_d8_async(queue, 0, self.keys, stream.cast()) };
        result.doing("clearing the queue")
    }

    /// Enqueues the entry of a batch, `[N, D]` of the problem's element at `keys`, in order, over the
    /// oldest keys where there is no room. A batch that holds a NaN or an infinity does not enter.
    ///
    /// # Errors
    /// [`Error::NoContext`] and [`Error::Cuda`].
    ///
    /// # Safety
    /// As for [`RawEvaluator::enqueue`](super::RawEvaluator::enqueue): `keys` is a batch of the problem's
    /// shapes, `queue` memory that has been [initialised](Self::initialize), of which nothing else is
    /// reading or writing when the stream comes to this.
    pub unsafe fn enqueue(&self, keys: u64, queue: u64, stream: *mut c_void) -> Result<()> {
        let mut launcher = self.place.launcher(stream.cast())?;
        self.plan
            .enqueue(&mut launcher, keys, self.addresses(queue), queue)
    }

    pub(super) fn addresses(&self, queue: u64) -> QueueAddresses {
        let state = queue + self.plan.workspace_bytes() as u64;
        QueueAddresses {
            keys: state + Self::ALIGNMENT as u64,
            state,
        }
    }
}
