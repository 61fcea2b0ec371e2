//! A queue of teacher keys at an address.
#![allow(unsafe_code, reason = "takes addresses")]

use std::ffi::c_void;

use cudarc::driver::result;

use super::context::KernelContext;
use super::failure::WithContext;
use crate::error::{Error, Result};
use crate::gpu::element::GpuDType;
use crate::gpu::plan::{QueueAddresses, queue_layout};
use crate::gpu::queue::{EnqueuePlan, Layout};
use crate::gpu::workspace;
use crate::problem::Problem;

/// A problem's queue of teacher keys in memory of any library: one buffer with the keys, their
/// number and the next slot.
///
/// A batch enters by launches alone, so a graph that captured them adds keys each time it is
/// launched.
///
/// The place of the ring in the buffer does not depend on the number of rows of a batch. So one
/// buffer, of the size for the largest batch, serves problems that differ in the number of rows
/// alone.
#[derive(Clone, Debug)]
pub struct RawQueue {
    pub(super) layout: Layout,
    pub(super) normalize: bool,
    plan: EnqueuePlan,
    /// The offset of the plan's scratch memory, which is behind the state and the keys.
    scratch: usize,
    bytes: usize,
    context: KernelContext,
}

impl RawQueue {
    /// The alignment of the buffer and of each part of it.
    pub(super) const ALIGNMENT: usize = 256;

    /// The queue of `problem`, if it has one.
    pub(super) fn of(
        problem: &Problem,
        dtype: GpuDType,
        context: &KernelContext,
    ) -> Result<Option<Self>> {
        let Some(layout) = queue_layout(problem, dtype) else {
            return Ok(None);
        };
        let normalize = problem.spec().normalize;
        let rows = problem.shapes().rows;
        Self::new(layout, normalize, rows, dtype, context).map(Some)
    }

    fn new(
        layout: Layout,
        normalize: bool,
        rows: usize,
        dtype: GpuDType,
        context: &KernelContext,
    ) -> Result<Self> {
        let plan = EnqueuePlan::new(layout, rows, dtype, normalize)?;
        context.prepare_for(|kernels| plan.enqueue(kernels, 0, QueueAddresses::default(), 0))?;
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
            context: context.clone(),
        })
    }

    /// The same ring, for batches of `rows` rows of `dtype`. The context is current.
    pub(super) fn with_rows(&self, rows: usize, dtype: GpuDType) -> Result<Self> {
        Self::new(self.layout, self.normalize, rows, dtype, &self.context)
    }

    /// The size of the buffer in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Makes the queue empty, on `stream`.
    ///
    /// # Errors
    /// [`Error::NoContext`] and [`Error::Cuda`].
    ///
    /// # Safety
    /// `queue` is the address of [`bytes`](Self::bytes) bytes, aligned to 256, in the memory of the
    /// context. `stream` is a `CUstream` of that context, or null for its default stream.
    pub unsafe fn initialize(&self, queue: u64, stream: *mut c_void) -> Result<()> {
        self.context.check()?;
        // Clear the keys too: copies of the queue copy all slots, also those that are still empty.
        // SAFETY: the ring is the first bytes of the buffer. The caller promises the buffer and the
        // stream.
        let result = unsafe { result::memset_d8_async(queue, 0, self.ring_bytes(), stream.cast()) };
        result.context("clearing the queue")?;
        // SAFETY: as the caller promises.
        unsafe { self.initialize_scratch(queue, stream) }
    }

    /// Prepares the scratch memory and leaves the ring unchanged.
    ///
    /// # Safety
    /// As for [`initialize`](Self::initialize), and the context is current.
    pub(super) unsafe fn initialize_scratch(&self, queue: u64, stream: *mut c_void) -> Result<()> {
        let counters = queue + self.scratch as u64;
        // SAFETY: the counters are the first bytes of the scratch memory. The caller promises the
        // buffer and the stream.
        let result = unsafe {
            result::memset_d8_async(counters, 0, workspace::Layout::COUNTERS, stream.cast())
        };
        result.context("clearing the queue's scratch memory")
    }

    /// Launches the entry of a batch and returns at once. The batch is `[N, D]` of the problem's
    /// element at `keys`.
    ///
    /// Keys enter in order. In a full queue they replace the oldest keys. A batch with a NaN or an
    /// infinity does not enter.
    ///
    /// # Errors
    /// [`Error::NoContext`] and [`Error::Cuda`].
    ///
    /// # Safety
    /// As for [`RawEvaluator::launch`](super::RawEvaluator::launch). `keys` is a batch of the
    /// problem's shapes. `queue` is memory that has been [initialised](Self::initialize). Nothing
    /// else reads or writes it when the stream reaches these launches.
    pub unsafe fn enqueue(&self, keys: u64, queue: u64, stream: *mut c_void) -> Result<()> {
        let mut launcher = self.context.launcher(stream.cast())?;
        let scratch = queue + self.scratch as u64;
        self.plan
            .enqueue(&mut launcher, keys, self.addresses(queue), scratch)
    }

    /// The bytes of the state and all keys.
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
