//! Evaluations of data at addresses, on any stream.
#![allow(unsafe_code, reason = "takes addresses")]

use std::ffi::{c_int, c_void};
use std::ptr::null_mut;

use cudarc::driver::result;
use cudarc::driver::sys::{self, CUcontext, CUpointer_attribute};

use super::context::{Context, KernelContext};
use super::failure::{WithContext, code};
use super::raw_queue::RawQueue;
use crate::error::{Error, Result};
use crate::gpu::element::GpuDType;
use crate::gpu::element::GpuElement;
use crate::gpu::plan::{Addresses, Plan, QueueAddresses};
use crate::gpu::sampled::KeyAddresses;
use crate::gpu::workspace::Layout;
use crate::loss::Family;
use crate::problem::Problem;

/// The addresses of a batch and of its results on the GPU. Each is a multiple of the size of its
/// element.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Buffers {
    /// The student's rows, `[N, D]`.
    pub student: u64,
    /// The teacher's rows, `[N, D_t]`, or 0 if the problem has no teacher. If the problem's teacher is
    /// a list of classes ([`TopK`](crate::TopK)), the logarithms of their probabilities, `[N, k]` f32.
    pub teacher: u64,
    /// The classes of such a list, `[N, k]` u32, or 0 if the problem has none.
    pub teacher_classes: u64,
    /// The weights of the rows, `[N]` f32, or 0 if the problem has none.
    pub row_weights: u64,
    /// The labels of the rows, `[N]` u32, or 0 if the problem has none.
    pub labels: u64,
    /// The memory of the problem's [`RawQueue`], or 0 if it has none.
    pub queue: u64,
    /// The banks of the student's and of the teacher's rows, `[n_data, D]` f32 each, or 0 if the
    /// problem has none. One that serves both stands here twice.
    pub banks: [u64; 2],
    /// Their normalizers, an f64 each, or 0. Only losses that [need](crate::Bank::calibrate) them
    /// read them.
    pub normalizers: [u64; 2],
    /// The keys of each row, `[N, K + 1]` u32, its own first, or 0 if the problem has no bank.
    pub indices: u64,
    /// The gradient, `[N, D]` f32. It is overwritten.
    pub gradient: u64,
    /// [`VALUE_LEN`](super::VALUE_LEN) f32: the loss, and then its terms. It is overwritten as far
    /// as the loss has terms.
    pub value: u64,
    /// The loss of each row, `[N]` f32, or 0 to leave it out. It is overwritten. Only a loss that
    /// is a mean of losses of rows has them.
    pub row_losses: u64,
    /// Scratch memory of [`RawEvaluator::workspace_bytes`] bytes, aligned to 256. Nothing else may
    /// write there, also between evaluations.
    pub workspace: u64,
}

/// Evaluates a problem on memory and streams of any library, at their addresses. Adapters to
/// frameworks use it. No type of cudarc is in its interface.
///
/// It belongs to the CUDA context that is current when it is made. It creates no context and no
/// stream, and it never makes another context current.
#[derive(Clone, Debug)]
pub struct RawEvaluator {
    problem: Problem,
    dtype: GpuDType,
    /// The size of an element.
    bytes: u64,
    plan: Plan,
    queue: Option<RawQueue>,
    context: KernelContext,
    overlap: bool,
}

impl RawEvaluator {
    /// Plans `problem` for embeddings of type `T` on the GPU of the current context, and loads the
    /// plan's kernels there, if they are not loaded yet. To make another one for the same problem
    /// costs some microseconds: it asks the driver for the context alone. `queue` in the problem's
    /// shapes is the capacity of the queue. A loss compares with the keys that have entered.
    ///
    /// # Errors
    /// [`Error::NoContext`] if no context is current. [`Error::TooLarge`] if there are more rows or
    /// columns than the kernels can count. Otherwise as [`Cuda::new`](super::Cuda::new).
    pub fn new<T: GpuElement>(problem: &Problem) -> Result<Self> {
        let context = KernelContext::current()?;
        let plan = Plan::new(problem, GpuDType::of::<T>(), context.gpu().limits)?;
        // Which kernels a plan launches depends on no address, but on whether someone asks for the
        // losses of rows.
        let addresses = Addresses {
            row_losses: problem.spec().family.has_row_losses().into(),
            ..Addresses::default()
        };
        context.prepare_for(|kernels| plan.launch(kernels, &addresses))?;
        Ok(RawEvaluator {
            problem: *problem,
            dtype: GpuDType::of::<T>(),
            bytes: size_of::<T>() as u64,
            plan,
            queue: RawQueue::of(problem, GpuDType::of::<T>(), &context)?,
            context,
            overlap: false,
        })
    }

    /// The problem it evaluates.
    #[must_use]
    pub fn problem(&self) -> &Problem {
        &self.problem
    }

    /// The queue of the problem, if it has one.
    #[must_use]
    pub fn queue(&self) -> Option<&RawQueue> {
        self.queue.as_ref()
    }

    /// Sets the upstream gradient of later evaluations. It costs nothing: a trainer that scales its
    /// loss may change it at every step.
    ///
    /// # Errors
    /// None, in practice: those of planning, which [`new`](Self::new) has already done for these
    /// shapes.
    pub fn set_upstream(&mut self, upstream: f64) -> Result<()> {
        let problem = self.problem.with_upstream(upstream);
        self.plan = self
            .plan
            .with_upstream(&problem, self.dtype, self.context.gpu().limits)?;
        self.problem = problem;
        Ok(())
    }

    /// Lets the launches of later evaluations overlap, with programmatic dependent launch. The
    /// driver then prepares each launch but the first while the launch before it runs.
    ///
    /// The results have the same bits, and other work on the stream sees no difference. Overlap
    /// hides the time between launches, which is most of the time of a small problem. The blocks
    /// that wait occupy multiprocessors that other streams could use.
    ///
    /// Returns whether launches overlap now. They do on a GPU of compute capability 9.0 or later,
    /// with kernels compiled for 9.0 or later and a driver for CUDA 12.3 or later. Elsewhere the
    /// setting has no effect. It is off at first, because the gain has not been measured on a GPU
    /// yet.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn set_overlap(&mut self, overlap: bool) -> Result<bool> {
        self.overlap = overlap && self.context.can_overlap()?;
        Ok(self.overlap)
    }

    /// The bytes of scratch memory that an evaluation needs.
    #[must_use]
    pub fn workspace_bytes(&self) -> usize {
        self.plan.workspace_bytes()
    }

    /// Prepares a workspace on `stream`. Call it once, before the first evaluation with the
    /// workspace.
    ///
    /// # Errors
    /// [`Error::NoContext`] and [`Error::Cuda`].
    ///
    /// # Safety
    /// `workspace` is the address of [`workspace_bytes`](Self::workspace_bytes) bytes in the memory
    /// of the evaluator's context. `stream` is a `CUstream` of that context, or null for its
    /// default stream.
    pub unsafe fn initialize(&self, workspace: u64, stream: *mut c_void) -> Result<()> {
        self.context.check()?;
        // SAFETY: the counters are the first bytes of the workspace. The caller promises the
        // workspace and the stream.
        let result =
            unsafe { result::memset_d8_async(workspace, 0, Layout::COUNTERS, stream.cast()) };
        result.context("clearing the workspace")
    }

    /// Launches an evaluation on `stream` and returns at once. It makes the same launches each time
    /// and nothing else, so a graph may capture it. A fault on the GPU becomes an error when you
    /// wait for the stream.
    ///
    /// The batch does not enter the queue. Call [`RawQueue::enqueue`] for that, before or after.
    ///
    /// # Errors
    /// [`Error::NoContext`] if the evaluator's context is not current. [`Error::Missing`] if the
    /// problem has a queue, weights, a list of classes or a bank and `buffers` has none.
    /// [`Error::Unexpected`] if `buffers` asks for losses of rows and the loss has none.
    /// [`Error::Cuda`] if the driver refuses a launch.
    ///
    /// # Safety
    /// - Each address is that of memory as [`Buffers`] describes it, for this problem's shapes, in
    ///   the memory of the evaluator's context.
    /// - Each of `teacher_classes` is less than the number of classes, and no row has one twice.
    /// - Each of `indices` is less than the number of samples of the bank.
    /// - Each of `row_weights` is finite and at least 0.
    /// - `gradient`, `value`, `row_losses` and `workspace` overlap nothing.
    /// - The workspace is [initialised](Self::initialize), and so is the queue. No other evaluation
    ///   uses the workspace at the same time.
    /// - `stream` is a `CUstream` of that context, or null for its default stream.
    /// - Memory and stream stay valid until the stream has finished these launches. If a graph
    ///   captured them, they stay valid as long as the graph can be launched.
    pub unsafe fn launch(&self, buffers: &Buffers, stream: *mut c_void) -> Result<()> {
        let queue = match &self.queue {
            None => QueueAddresses::default(),
            Some(_) if buffers.queue == 0 => return Err(no_queue()),
            Some(queue) => queue.addresses(buffers.queue),
        };
        self.complete(buffers)?;
        let addresses = Addresses {
            student: buffers.student,
            teacher: buffers.teacher,
            teacher_classes: buffers.teacher_classes,
            row_weights: buffers.row_weights,
            labels: buffers.labels,
            keys: KeyAddresses {
                banks: buffers.banks,
                indices: buffers.indices,
                normalizers: buffers.normalizers,
            },
            queue,
            gradient: buffers.gradient,
            value: buffers.value,
            row_losses: buffers.row_losses,
            workspace: buffers.workspace,
        };
        let mut launcher = if self.overlap {
            self.context.overlapping_launcher(stream.cast())?
        } else {
            self.context.launcher(stream.cast())?
        };
        self.plan.launch(&mut launcher, &addresses)
    }

    /// What a problem may have beside rows and a queue: whether it has, where, and a multiple of what.
    fn extras(&self, buffers: &Buffers) -> [(&'static str, bool, u64, u64); 8] {
        let shapes = self.problem.shapes();
        let (banks, normalizers) = match self.problem.spec().family {
            Family::Sampled(loss) => (loss.banks(), loss.normalizers()),
            _ => (0, 0),
        };
        let [bank, teacher_bank] = buffers.banks;
        let [normalizer, teacher_normalizer] = buffers.normalizers;
        let lists = shapes.top_k.is_some();
        [
            ("row_weights", shapes.row_weights, buffers.row_weights, 4),
            ("labels", shapes.labels, buffers.labels, 4),
            ("teacher_classes", lists, buffers.teacher_classes, 4),
            ("bank", banks > 0, bank, 4),
            ("teacher_bank", banks > 1, teacher_bank, 4),
            ("normalizer", normalizers > 0, normalizer, 8),
            ("teacher normalizer", normalizers > 1, teacher_normalizer, 8),
            ("indices", banks > 0, buffers.indices, 4),
        ]
    }

    /// Refuses buffers that lack what the problem has, or ask for what it has not.
    fn complete(&self, buffers: &Buffers) -> Result<()> {
        for (argument, is_needed, address, _) in self.extras(buffers) {
            if is_needed && address == 0 {
                return Err(Error::Missing {
                    argument,
                    expected: "an address, as the problem has them",
                });
            }
        }
        if buffers.row_losses != 0 && !self.problem.spec().family.has_row_losses() {
            return Err(Error::Unexpected {
                argument: "row_losses",
                loss: self.problem.loss().name(),
            });
        }
        Ok(())
    }

    /// Asks the driver whether the buffers are memory of this evaluator's GPU and context, and
    /// checks their alignment. It takes a few microseconds. The driver does not know their lengths.
    ///
    /// # Errors
    /// [`Error::ForeignMemory`], naming the buffer.
    pub fn check(&self, buffers: &Buffers) -> Result<()> {
        self.context.check()?;
        let queue = self
            .queue
            .as_ref()
            .map(|_| ("queue", buffers.queue, RawQueue::ALIGNMENT as u64));
        // The logarithms of a list's probabilities are f32.
        let teacher_bytes = match self.problem.shapes().top_k {
            Some(_) => 4,
            None => self.bytes,
        };
        let row_losses = ("row_losses", buffers.row_losses != 0, buffers.row_losses, 4);
        let sometimes = self.extras(buffers).into_iter().chain([row_losses]);
        let sometimes = sometimes
            .filter(|&(_, is_there, ..)| is_there)
            .map(|(argument, _, address, alignment)| (argument, address, alignment));
        let always = [
            ("student", buffers.student, self.bytes),
            ("teacher", buffers.teacher, teacher_bytes),
            ("gradient", buffers.gradient, 4),
            ("value", buffers.value, 4),
            ("workspace", buffers.workspace, 256),
        ];
        let shapes = self.problem.shapes();
        let has_teacher = shapes.teacher_dim > 0 || shapes.top_k.is_some();
        let always = always
            .into_iter()
            .filter(|&(argument, ..)| has_teacher || argument != "teacher");
        for (argument, address, alignment) in always.chain(queue).chain(sometimes) {
            let foreign = |got| Error::ForeignMemory { argument, got };
            if !address.is_multiple_of(alignment) {
                let got = format!("{address:#x}, which is no multiple of {alignment}");
                return Err(foreign(got));
            }
            let gpu = gpu_of(address).map_err(foreign)?;
            if gpu != self.context.gpu().device {
                return Err(foreign(format!("memory of GPU {gpu}")));
            }
            if context_of(address).is_some_and(|context| context != self.context.handle) {
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

/// The GPU that has memory at this address, or what the address is instead.
fn gpu_of(address: u64) -> std::result::Result<c_int, String> {
    const ORDINAL: CUpointer_attribute = CUpointer_attribute::CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL;
    let mut ordinal: c_int = -1;
    // SAFETY: this attribute is an int. The driver looks the address up and does not read from it.
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

/// The context that has memory at this address. Memory from a pool belongs to no context.
fn context_of(address: u64) -> Option<Context> {
    const CONTEXT: CUpointer_attribute = CUpointer_attribute::CU_POINTER_ATTRIBUTE_CONTEXT;
    let mut context: CUcontext = null_mut();
    // SAFETY: this attribute is a context's handle. The driver looks the address up and does not
    // read from it.
    let result = unsafe { sys::cuPointerGetAttribute((&raw mut context).cast(), CONTEXT, address) };
    (result.result().is_ok() && !context.is_null()).then_some(Context(context))
}
