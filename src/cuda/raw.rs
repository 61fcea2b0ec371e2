//! Addresses and foreign streams.
#![allow(unsafe_code, reason = "takes addresses")]

use std::ffi::{c_int, c_void};
use std::ptr::null_mut;

use cudarc::driver::result;
use cudarc::driver::sys::{self, CUcontext, CUpointer_attribute};

use super::context::{Context, KernelContext};
use super::failure::{WithContext, code};
use super::raw_queue::RawQueue;
use crate::element::DType;
use crate::error::{Error, Result};
use crate::gpu::element::GpuElement;
use crate::gpu::plan::{Addresses, Plan, QueueAddresses};
use crate::gpu::workspace::Layout;
use crate::problem::Problem;

/// Where a batch and its results lie on the GPU. Addresses are multiples of their element's size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Buffers {
    /// `[N, D]`
    pub student: u64,
    /// `[N, D_t]`
    pub teacher: u64,
    /// The memory of the problem's [`RawQueue`]; 0 if it has none.
    pub queue: u64,
    /// `[N, D]` f32, overwritten.
    pub gradient: u64,
    /// `[2]` f32, overwritten: the loss and, for RRD, KL(p‖q).
    pub value: u64,
    /// [`RawEvaluator::workspace_bytes`] bytes, aligned to 256. Between evaluations it belongs to the
    /// evaluator: nothing else may write there.
    pub workspace: u64,
}

/// A problem in the CUDA context that was current when this was made, for memory and streams of any
/// library: what an adapter to a framework stands on. Nothing of cudarc shows.
///
/// It makes no context and no stream, changes neither, and never makes another context current.
#[derive(Clone, Debug)]
pub struct RawEvaluator {
    problem: Problem,
    dtype: DType,
    /// Of an element.
    bytes: u64,
    plan: Plan,
    queue: Option<RawQueue>,
    place: KernelContext,
    overlap: bool,
}

impl RawEvaluator {
    /// Plans `problem` for embeddings of type `T` on the GPU of the current context, and loads its
    /// kernels there. The keys of the problem's shapes are the capacity of its queue: a loss sees those
    /// that have entered.
    ///
    /// # Errors
    /// [`Error::NoContext`] if no context is current; otherwise as [`Cuda::new`](super::Cuda::new), and
    /// [`Error::TooLarge`] if the kernels cannot count the rows or columns.
    pub fn new<T: GpuElement>(problem: &Problem) -> Result<Self> {
        let place = KernelContext::current()?;
        Ok(RawEvaluator {
            problem: *problem,
            dtype: T::DTYPE,
            bytes: size_of::<T>() as u64,
            plan: Plan::new(problem, T::DTYPE, place.gpu.limits)?,
            queue: RawQueue::of(problem, T::DTYPE, &place)?,
            place,
            overlap: false,
        })
    }

    /// The problem it evaluates.
    #[must_use]
    pub fn problem(&self) -> &Problem {
        &self.problem
    }

    /// The queue of its problem, if that has one.
    #[must_use]
    pub fn queue(&self) -> Option<&RawQueue> {
        self.queue.as_ref()
    }

    /// The upstream gradient of the evaluations enqueued from now on. Costs nothing: a trainer that
    /// scales its loss may change it at every step.
    ///
    /// # Errors
    /// None that [`new`](Self::new) has not had.
    pub fn set_upstream(&mut self, upstream: f64) -> Result<()> {
        let problem = self.problem.with_upstream(upstream);
        self.plan = self
            .plan
            .with_upstream(&problem, self.dtype, self.place.gpu.limits)?;
        self.problem = problem;
        Ok(())
    }

    /// Lets the launches of an evaluation overlap from now on, by programmatic dependent launch: each but the
    /// first is made ready while the one before it runs, and begins when that is done. What comes out is the
    /// same to the bit, and so is what other work on the stream sees. It hides the time between launches,
    /// which is what small problems take most of theirs for; blocks that wait keep room on the GPU from
    /// other streams.
    ///
    /// Says whether they do: it takes a GPU of compute capability 9.0, kernels that were compiled for 9.0 or
    /// later, and a driver for CUDA 12.3. Elsewhere all is as without. Off at first: no GPU has been asked
    /// yet how much it gives.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn set_overlap(&mut self, overlap: bool) -> Result<bool> {
        self.overlap = overlap && self.place.can_overlap()?;
        Ok(self.overlap)
    }

    /// The scratch memory an evaluation takes.
    #[must_use]
    pub fn workspace_bytes(&self) -> usize {
        self.plan.workspace_bytes()
    }

    /// Makes a workspace ready: once, before its first evaluation. Enqueued on `stream`.
    ///
    /// # Errors
    /// [`Error::NoContext`] and [`Error::Cuda`].
    ///
    /// # Safety
    /// `workspace` is the address of [`workspace_bytes`](Self::workspace_bytes) bytes in the context's
    /// memory, and `stream` a `CUstream` of that context or null, which stands for its default stream.
    pub unsafe fn initialize(&self, workspace: u64, stream: *mut c_void) -> Result<()> {
        self.place.check()?;
        // SAFETY: the counters are the workspace's first bytes, and the caller promises both.
        let result =
            unsafe { result::memset_d8_async(workspace, 0, Layout::COUNTERS, stream.cast()) };
        result.context("clearing the workspace")
    }

    /// Enqueues an evaluation on `stream` and returns. Only launches are enqueued, always the same ones,
    /// so a graph may capture them. What goes wrong on the GPU shows when the stream is waited for.
    ///
    /// The batch does not enter the queue: that is [`RawQueue::enqueue`], before or after.
    ///
    /// # Errors
    /// [`Error::NoContext`] if another context is current than when this was made, [`Error::Missing`] if
    /// there is no queue and has to be one, and [`Error::Cuda`].
    ///
    /// # Safety
    /// The buffers are as [`Buffers`] says, for this problem's shapes, in the memory of the evaluator's
    /// context; `gradient`, `value` and `workspace` overlap nothing. The workspace has been
    /// [initialised](Self::initialize), and so has the queue, and no other evaluation uses the workspace
    /// at the same time. `stream` is a `CUstream` of that context or null, which stands for its default
    /// stream. All of it stays valid until the stream has done what was enqueued here, or for as long as
    /// a graph that captured it can be launched.
    pub unsafe fn launch(&self, buffers: &Buffers, stream: *mut c_void) -> Result<()> {
        let queue = match &self.queue {
            None => QueueAddresses::default(),
            Some(_) if buffers.queue == 0 => return Err(no_queue()),
            Some(queue) => queue.addresses(buffers.queue),
        };
        let addresses = Addresses {
            student: buffers.student,
            teacher: buffers.teacher,
            queue,
            gradient: buffers.gradient,
            value: buffers.value,
            workspace: buffers.workspace,
        };
        let mut launcher = if self.overlap {
            self.place.overlapping_launcher(stream.cast())?
        } else {
            self.place.launcher(stream.cast())?
        };
        self.plan.launch(&mut launcher, &addresses)
    }

    /// Asks the driver whether the buffers are memory of this evaluator's GPU and context, aligned as
    /// they have to be. A few microseconds; their lengths it does not know.
    ///
    /// # Errors
    /// [`Error::ForeignMemory`], naming the buffer.
    pub fn check(&self, buffers: &Buffers) -> Result<()> {
        self.place.check()?;
        let queue = self
            .queue
            .as_ref()
            .map(|_| ("queue", buffers.queue, RawQueue::ALIGNMENT as u64));
        let always = [
            ("student", buffers.student, self.bytes),
            ("teacher", buffers.teacher, self.bytes),
            ("gradient", buffers.gradient, 4),
            ("value", buffers.value, 4),
            ("workspace", buffers.workspace, 256),
        ];
        for (argument, address, alignment) in always.into_iter().chain(queue) {
            let foreign = |got| Error::ForeignMemory { argument, got };
            if !address.is_multiple_of(alignment) {
                let got = format!("{address:#x}, which is no multiple of {alignment}");
                return Err(foreign(got));
            }
            let gpu = gpu_of(address).map_err(foreign)?;
            if gpu != self.place.gpu.device {
                return Err(foreign(format!("memory of GPU {gpu}")));
            }
            if context_of(address).is_some_and(|context| context != self.place.context) {
                return Err(foreign("memory of another context".to_owned()));
            }
        }
        Ok(())
    }
}

pub(super) fn no_queue() -> Error {
    Error::Missing {
        argument: "queue",
        expected: "the queue of the problem",
    }
}

/// The GPU whose memory lies there, or what does.
fn gpu_of(address: u64) -> std::result::Result<c_int, String> {
    const ORDINAL: CUpointer_attribute = CUpointer_attribute::CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL;
    let mut ordinal: c_int = -1;
    // SAFETY: this attribute is an int. The address is looked up, not read from.
    let result = unsafe { sys::cuPointerGetAttribute((&raw mut ordinal).cast(), ORDINAL, address) };
    match result.result() {
        Ok(()) if ordinal >= 0 => Ok(ordinal),
        Ok(()) => Err("host memory".to_owned()),
        Err(error) => Err(format!(
            "{address:#x}, which the driver doesn't know ({})",
            code(error)
        )),
    }
}

/// The context whose memory lies there; memory from a pool belongs to none.
fn context_of(address: u64) -> Option<Context> {
    const CONTEXT: CUpointer_attribute = CUpointer_attribute::CU_POINTER_ATTRIBUTE_CONTEXT;
    let mut context: CUcontext = null_mut();
    // SAFETY: this attribute is a context's handle. The address is looked up, not read from.
    let result = unsafe { sys::cuPointerGetAttribute((&raw mut context).cast(), CONTEXT, address) };
    (result.result().is_ok() && !context.is_null()).then_some(Context(context))
}
