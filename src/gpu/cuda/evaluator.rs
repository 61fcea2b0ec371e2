//! Evaluations of slices that are already on the GPU.
#![allow(
    unsafe_code,
    reason = "passes the addresses of slices to the raw evaluator"
)]

use std::marker::PhantomData;
use std::sync::Arc;

use cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut, DeviceSlice};

use super::VALUE_LEN;
use super::driver;
use super::memory::{Memory, bind};
use super::queue::Queue;
use super::raw::{Buffers, RawEvaluator, no_queue};
use crate::error::{Error, Result};
use crate::gpu::element::GpuElement;
use crate::loss::Enqueue;
use crate::problem::Problem;

/// Evaluates a problem on a stream of a GPU. It owns the workspace.
///
/// The inputs and the results are slices of [`cudarc`](super::cudarc) on the GPU. An evaluation
/// consists of kernel launches alone: it allocates nothing, copies nothing and does not wait.
///
/// It takes rows of student and teacher. Weights of rows and teachers that are lists of classes are
/// for [`RawEvaluator`].
///
/// ```no_run
/// use relata::cuda::{Evaluator, cudarc::driver::CudaContext};
/// use relata::{RkdAngle, Shapes};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let stream = CudaContext::new(0)?.default_stream();
/// let problem = RkdAngle::default().problem(Shapes::new(128, 512, 768))?;
/// let mut evaluator = Evaluator::<f32>::new(&stream, &problem)?;
///
/// let (student, teacher) = (stream.alloc_zeros(128 * 512)?, stream.alloc_zeros(128 * 768)?);
/// let (mut gradient, mut value) = (stream.alloc_zeros(128 * 512)?, stream.alloc_zeros(relata::cuda::VALUE_LEN)?);
/// evaluator.launch(&student, &teacher, &mut gradient, &mut value)?; // returns at once
/// let loss = stream.clone_dtoh(&value)?[0];
/// # Ok(()) }
/// ```
///
/// # Threads
/// It may move to another thread. On cudarc's per-thread stream, which is another stream on each
/// thread, the first launch after a move waits for the context: the host waits, once. A call and a
/// drop leave the stream's context current on the calling thread.
///
/// # Graphs
/// An evaluation can be captured in a CUDA graph. Each launch of the graph uses the evaluator's
/// workspace and the captured slices. Keep them all until the graph is gone: nothing checks this.
///
/// The default stream cannot be captured: use another one. With a second stream, cudarc waits for
/// events of the slices, and a capture does not allow that. Turn it off
/// (`CudaContext::disable_event_tracking`) before you make the slices.
#[derive(Debug)]
pub struct Evaluator<T> {
    raw: RawEvaluator,
    stream: Arc<CudaStream>,
    workspace: Memory,
    element: PhantomData<fn(T)>,
}

impl<T: GpuElement> Evaluator<T> {
    /// Plans `problem`, loads its kernels and allocates the workspace.
    ///
    /// # Errors
    /// As [`RawEvaluator::new`], and [`Error::OutOfMemory`].
    pub fn new(stream: &Arc<CudaStream>, problem: &Problem) -> Result<Self> {
        driver::ready()?;
        bind(stream)?;
        let raw = RawEvaluator::new::<T>(problem)?;
        let workspace = Memory::new(stream, "workspace", raw.workspace_bytes())?;
        // SAFETY: the memory has this length. The memory and the stream are of the context bound
        // above.
        unsafe { raw.initialize(workspace.address(), stream.cu_stream().cast()) }?;
        Ok(Evaluator {
            raw,
            stream: Arc::clone(stream),
            workspace,
            element: PhantomData,
        })
    }

    /// The problem it evaluates.
    #[must_use]
    pub fn problem(&self) -> &Problem {
        self.raw.problem()
    }

    /// The stream on which evaluations are launched.
    #[must_use]
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// The bytes of the workspace, which the evaluator holds on the GPU.
    #[must_use]
    pub fn workspace_bytes(&self) -> usize {
        self.raw.workspace_bytes()
    }

    /// As [`RawEvaluator::set_upstream`].
    ///
    /// # Errors
    /// None, in practice: those of planning, which [`new`](Self::new) has already done for these
    /// shapes.
    pub fn set_upstream(&mut self, upstream: f64) -> Result<()> {
        self.raw.set_upstream(upstream)
    }

    /// As [`RawEvaluator::set_overlap`].
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn set_overlap(&mut self, overlap: bool) -> Result<bool> {
        self.raw.set_overlap(overlap)
    }

    /// Launches an evaluation and returns at once.
    ///
    /// It reads `student` `[N, D]` and `teacher` `[N, D_t]`. It overwrites `gradient` `[N, D]` and
    /// `value` [`VALUE_LEN`](super::VALUE_LEN): the loss and its terms. It allocates nothing,
    /// copies nothing and does not wait.
    ///
    /// # Errors
    /// [`Error::Length`] and [`Error::ForeignMemory`] name the argument. [`Error::Missing`] if the
    /// problem has a queue. Nothing has been launched after these errors. [`Error::Cuda`] if the
    /// driver refuses a launch. A fault on the GPU becomes an error when you wait for the stream.
    pub fn launch(
        &mut self,
        student: &impl DevicePtr<T>,
        teacher: &impl DevicePtr<T>,
        gradient: &mut impl DevicePtrMut<f32>,
        value: &mut impl DevicePtrMut<f32>,
    ) -> Result<()> {
        if self.raw.queue().is_some() {
            return Err(no_queue());
        }
        self.launch_all(student, teacher, None, gradient, value)
    }

    /// The same with a queue. The teacher's rows enter the queue before the evaluation, after it or
    /// not at all, as the loss's `enqueue` says.
    ///
    /// # Errors
    /// As [`launch`](Self::launch). [`Error::Unexpected`] if the problem has no queue.
    /// [`Error::QueueNormalization`] if the queue is of a loss that treats its rows otherwise.
    /// [`Error::TooLarge`] if the batch has more rows than the queue has [room](Queue::reserve)
    /// for. [`Error::Empty`] if the queue is empty and the batch does not enter it before the
    /// evaluation.
    pub fn launch_with_queue(
        &mut self,
        student: &impl DevicePtr<T>,
        teacher: &impl DevicePtr<T>,
        queue: &mut Queue<T>,
        gradient: &mut impl DevicePtrMut<f32>,
        value: &mut impl DevicePtrMut<f32>,
    ) -> Result<()> {
        let Some(raw) = self.raw.queue() else {
            return Err(Error::Unexpected {
                argument: "queue",
                loss: self.problem().loss().name(),
            });
        };
        queue.fits(raw, self.problem(), &self.stream)?;
        if !queue.is_used() && self.enqueue() != Enqueue::Before {
            return Err(Error::Empty {
                argument: "queue keys",
            });
        }
        self.launch_all(student, teacher, Some(queue), gradient, value)
    }

    fn launch_all(
        &mut self,
        student: &impl DevicePtr<T>,
        teacher: &impl DevicePtr<T>,
        mut queue: Option<&mut Queue<T>>,
        gradient: &mut impl DevicePtrMut<f32>,
        value: &mut impl DevicePtrMut<f32>,
    ) -> Result<()> {
        let (shapes, enqueue) = (self.problem().shapes(), self.enqueue());
        let stream = &self.stream;
        if shapes.top_k.is_some() || shapes.row_weights {
            return Err(Error::Missing {
                argument: match shapes.top_k {
                    Some(_) => "teacher_classes",
                    None => "row_weights",
                },
                expected: "RawEvaluator, whose buffers have them",
            });
        }
        check("student", student, shapes.rows * shapes.student_dim, stream)?;
        check("teacher", teacher, shapes.rows * shapes.teacher_dim, stream)?;
        check(
            "gradient",
            gradient,
            shapes.rows * shapes.student_dim,
            stream,
        )?;
        check("value", value, VALUE_LEN, stream)?;
        self.workspace.bind()?;
        let queue_address = match &mut queue {
            Some(queue) => queue.bind()?,
            None => 0,
        };
        // While these guards live, other streams wait for the launches.
        let (student, _read_student) = student.device_ptr(stream);
        let (teacher, _read_teacher) = teacher.device_ptr(stream);
        let (gradient, _written_gradient) = gradient.device_ptr_mut(stream);
        let (value, _written_value) = value.device_ptr_mut(stream);
        let buffers = Buffers {
            student,
            teacher,
            queue: queue_address,
            gradient,
            value,
            workspace: self.workspace.address(),
            ..Buffers::default()
        };
        let mut queue = queue.zip(self.raw.queue());
        if let (Some((queue, raw)), Enqueue::Before) = (&mut queue, enqueue) {
            // SAFETY: the teacher is a batch of the problem's shapes. The queue is bound.
            unsafe { queue.enqueue_at(raw, teacher) }?;
        }
        // SAFETY: the slices have these lengths and are in the context of the evaluator. The slices
        // that are written are borrowed mutably, so they overlap nothing. cudarc frees a slice only
        // after the launches that use it. Workspace and queue are initialised and bound: no other
        // stream uses them.
        unsafe { self.raw.launch(&buffers, stream.cu_stream().cast()) }?;
        if let (Some((queue, raw)), Enqueue::After) = (&mut queue, enqueue) {
            // SAFETY: as above.
            unsafe { queue.enqueue_at(raw, teacher) }?;
        }
        Ok(())
    }

    /// When the batch enters the queue.
    fn enqueue(&self) -> Enqueue {
        self.problem().spec().enqueue
    }
}

/// Returns an error if the slice has another length, or is not in the context of the stream.
pub(super) fn check<E>(
    argument: &'static str,
    slice: &impl DeviceSlice<E>,
    expected: usize,
    stream: &CudaStream,
) -> Result<()> {
    if slice.len() != expected {
        return Err(Error::Length {
            argument,
            expected,
            got: slice.len(),
        });
    }
    if slice.stream().context().cu_ctx() != stream.context().cu_ctx() {
        return Err(Error::ForeignMemory {
            argument,
            got: "memory of another context".to_owned(),
        });
    }
    Ok(())
}
