//! The memory of past teacher keys at an address.
#![allow(unsafe_code, reason = "takes addresses")]

use std::ffi::c_void;

use cudarc::driver::result;

use super::context::KernelContext;
use super::failure::WithContext;
use crate::element::DType;
use crate::error::{Error, Result};
use crate::gpu::plan::{QueueAddresses, queue_layout};
use crate::gpu::queue::{EnqueuePlan, Layout};
use crate::gpu::workspace;
use crate::problem::Problem;

/// A problem's queue in memory of any library: one buffer, which knows how far the ring is filled. A batch
/// enters it by launches alone, so a graph that captured them fills it further each time it is launched.
///
/// Where the ring lies in the buffer does not depend on the number of rows in a batch: one that is large
/// enough for the largest batch serves problems that differ in nothing else.
#[derive(Clone, Debug)]
pub struct RawQueue {
    pub(super) layout: Layout,
    pub(super) normalize: bool,
    plan: EnqueuePlan,
    /// Where the plan's scratch memory lies, behind the state and the keys.
    scratch: usize,
    bytes: usize,
    place: KernelContext,
}

impl RawQueue {
    /// Of the buffer and of all that is in it.
    pub(super) const ALIGNMENT: usize = 256;

    /// That of `problem`, if it has one.
    pub(super) fn of(
        problem: &Problem,
        dtype: DType,
        place: &KernelContext,
    ) -> Result<Option<Self>> {
        let Some(layout) = queue_layout(problem, dtype) else {
            return Ok(None);
        };
        let normalize = problem.spec().normalize;
        let rows = problem.shapes().rows;
        Self::new(layout, normalize, rows, dtype, place).map(Some)
    }

    fn new(
        layout: Layout,
        normalize: bool,
        rows: usize,
        dtype: DType,
        place: &KernelContext,
    ) -> Result<Self> {
        let plan = EnqueuePlan::new(layout, rows, dtype, normalize)?;
        let ring = layout.bytes()?.checked_add(Self::ALIGNMENT);
        let scratch = ring.and_then(|ring| ring.checked_next_multiple_of(Self::ALIGNMENT));
        let bytes = scratch.and_then(|scratch| scratch.checked_add(plan.workspace_bytes()));
        let (Some(scratch), Some(bytes)) = (scratch, bytes) else {
            return Err(Error::OutOfMemory {
                argument: "queue",
                bytes: usize::MAX,
            });
        };
        Ok(RawQueue {
            layout,
            normalize,
            plan,
            scratch,
            bytes,
            place: place.clone(),
        })
    }

    /// The same ring, for batches of `rows` rows of `dtype`.
    pub(super) fn with_rows(&self, rows: usize, dtype: DType) -> Result<Self> {
        Self::new(self.layout, self.normalize, rows, dtype, &self.place)
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
        // The keys too, which are copied with the state, whether or not one has entered.
        // SAFETY: the ring is its first bytes, and the caller promises both.
        let result = unsafe { result::memset_d8_async(queue, 0, self.ring_bytes(), stream.cast()) };
        result.context("clearing the queue")?;
        // SAFETY: as the caller promises.
        unsafe { self.initialize_scratch(queue, stream) }
    }

    /// Makes the scratch memory ready and leaves the ring as it is.
    ///
    /// # Safety
    /// As for [`initialize`](Self::initialize); the context is current.
    pub(super) unsafe fn initialize_scratch(&self, queue: u64, stream: *mut c_void) -> Result<()> {
        let counters = queue + self.scratch as u64;
        // SAFETY: the counters are the scratch memory's first bytes, and the caller promises both.
        let result = unsafe {
            result::memset_d8_async(counters, 0, workspace::Layout::COUNTERS, stream.cast())
        };
        result.context("clearing the queue's scratch memory")
    }

    /// Enqueues the entry of a batch, `[N, D]` of the problem's element at `keys`, in order, over the
    /// oldest keys where there is no room. A batch that holds a NaN or an infinity does not enter.
    ///
    /// # Errors
    /// [`Error::NoContext`] and [`Error::Cuda`].
    ///
    /// # Safety
    /// As for [`RawEvaluator::launch`](super::RawEvaluator::launch): `keys` is a batch of the problem's
    /// shapes, `queue` memory that has been [initialised](Self::initialize), of which nothing else is
    /// reading or writing when the stream comes to this.
    pub unsafe fn enqueue(&self, keys: u64, queue: u64, stream: *mut c_void) -> Result<()> {
        let mut launcher = self.place.launcher(stream.cast())?;
        let scratch = queue + self.scratch as u64;
        self.plan
            .enqueue(&mut launcher, keys, self.addresses(queue), scratch)
    }

    /// The state and all keys.
    pub(super) fn ring_bytes(&self) -> usize {
        self.scratch
    }

    pub(super) fn addresses(&self, queue: u64) -> QueueAddresses {
        QueueAddresses {
            keys: queue + Self::ALIGNMENT as u64,
            state: queue,
        }
    }
}
