//! Evaluations of slices that are already on the GPU.
#![allow(
    unsafe_code,
    reason = "passes the addresses of slices to the raw evaluator"
)]

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut, DeviceSlice};

use super::VALUE_LEN;
use super::bank::SampledKeys;
use super::driver;
use super::memory::{Memory, bind};
use super::queue::Queue;
use super::raw::{Buffers, RawEvaluator, no_queue};
use super::top_k::TopK;
use crate::error::{Error, Result};
use crate::gpu::element::GpuElement;
use crate::gpu::sampled::KeyAddresses;
use crate::loss::Enqueue;
use crate::problem::Problem;

/// The teacher of [`Evaluator::launch_with`].
pub enum Teacher<'a, T> {
    /// Rows, `[N, D_t]`.
    Rows(&'a dyn DevicePtr<T>),
    /// Lists of classes.
    TopK(&'a mut TopK),
    /// None, for a problem without a teacher.
    None,
}

impl<T> fmt::Debug for Teacher<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Teacher::Rows(rows) => f.debug_tuple("Rows").field(&rows.len()).finish(),
            Teacher::TopK(lists) => f.debug_tuple("TopK").field(lists).finish(),
            Teacher::None => f.write_str("None"),
        }
    }
}

/// What [`Evaluator::launch_with`] has for each row; nothing by default.
#[derive(Default)]
pub struct OfRows<'a> {
    /// `[N]`: the weights, if the problem has them. They are finite and at least 0: nothing checks
    /// this, and the results mean nothing otherwise.
    pub weights: Option<&'a dyn DevicePtr<f32>>,
    /// `[N]`: where the loss of each row goes, for a loss that is a mean of losses of rows. It is
    /// overwritten.
    pub losses: Option<&'a mut dyn DevicePtrMut<f32>>,
    /// `[N]`: the labels, if the problem has them. Rows of equal labels belong together.
    pub labels: Option<&'a dyn DevicePtr<u32>>,
    /// The keys of each row, if the problem has a bank.
    pub keys: Option<SampledKeys<'a>>,
}

impl fmt::Debug for OfRows<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OfRows")
            .field("weights", &self.weights.map(|weights| weights.len()))
            .field("losses", &self.losses.as_ref().map(|losses| losses.len()))
            .field("labels", &self.labels.map(|labels| labels.len()))
            .field("keys", &self.keys)
            .finish()
    }
}

/// Evaluates a problem on a stream of a GPU. It owns the workspace.
///
/// The inputs and the results are slices of [`cudarc`](super::cudarc) on the GPU. An evaluation
/// consists of kernel launches alone: it allocates nothing, copies nothing and does not wait.
///
/// [`launch`](Self::launch) takes rows of student and teacher. [`launch_with`](Self::launch_with) also
/// takes weights and labels of rows, keys of a [`Bank`](super::Bank), and a teacher that is a list of
/// classes or none, and writes the losses of rows.
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
    /// problem has a queue, weights, lists, labels or a bank. [`Error::Unexpected`] if it has no teacher.
    /// Nothing has been launched after these errors.
    /// [`Error::Cuda`] if the driver refuses a launch. A fault on the GPU becomes an error when you
    /// wait for the stream.
    pub fn launch(
        &mut self,
        student: &impl DevicePtr<T>,
        teacher: &impl DevicePtr<T>,
        gradient: &mut impl DevicePtrMut<f32>,
        value: &mut impl DevicePtrMut<f32>,
    ) -> Result<()> {
        self.launch_with(
            student,
            Teacher::Rows(teacher),
            OfRows::default(),
            gradient,
            value,
        )
    }

    /// As [`launch`](Self::launch), with what a batch may have beside rows: a teacher that is a list
    /// of classes or none, weights, labels, keys and losses of rows.
    ///
    /// ```no_run
    /// use relata::cuda::{Evaluator, OfRows, Teacher, TopK, VALUE_LEN, cudarc::driver::CudaContext};
    /// use relata::{KdKl, Shapes};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let stream = CudaContext::new(0)?.default_stream();
    /// let problem = KdKl::new(1.0).problem(Shapes::of_top_k(2, 1000, 1).with_row_weights())?;
    /// let mut evaluator = Evaluator::<f32>::new(&stream, &problem)?;
    ///
    /// let log_probabilities = [0.5f32.ln(); 2];
    /// let lists = relata::TopK::new(&[7, 3], &log_probabilities, [2, 1])?;
    /// let mut lists = TopK::new(&stream, lists, 1000)?;
    /// let (student, weights) = (stream.alloc_zeros(2 * 1000)?, stream.clone_htod(&[1f32, 0.])?);
    /// let (mut gradient, mut value) = (stream.alloc_zeros(2 * 1000)?, stream.alloc_zeros(VALUE_LEN)?);
    /// let of_rows = OfRows { weights: Some(&weights), ..OfRows::default() };
    /// evaluator.launch_with(&student, Teacher::TopK(&mut lists), of_rows, &mut gradient, &mut value)?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`launch`](Self::launch). [`Error::Missing`] and [`Error::Unexpected`] if the problem has
    /// weights, lists, labels, a bank or a teacher and the call has none, or the other way round, and for
    /// losses of rows that the loss has not. A problem with a queue and weights is for [`RawEvaluator`].
    /// [`Error::Dimension`] and [`Error::TooLarge`] for lists, banks and indices of other shapes or
    /// checked for more classes. [`Error::Missing`] for a bank without the normalizer that the loss
    /// needs.
    pub fn launch_with(
        &mut self,
        student: &impl DevicePtr<T>,
        teacher: Teacher<'_, T>,
        of_rows: OfRows<'_>,
        gradient: &mut impl DevicePtrMut<f32>,
        value: &mut impl DevicePtrMut<f32>,
    ) -> Result<()> {
        if self.raw.queue().is_some() {
            return Err(no_queue());
        }
        self.launch_all(student, teacher, None, of_rows, gradient, value)
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
        let teacher = Teacher::Rows(teacher);
        let of_rows = OfRows::default();
        self.launch_all(student, teacher, Some(queue), of_rows, gradient, value)
    }

    fn launch_all(
        &mut self,
        student: &impl DevicePtr<T>,
        teacher: Teacher<'_, T>,
        mut queue: Option<&mut Queue<T>>,
        of_rows: OfRows<'_>,
        gradient: &mut impl DevicePtrMut<f32>,
        value: &mut impl DevicePtrMut<f32>,
    ) -> Result<()> {
        let (shapes, enqueue) = (self.problem().shapes(), self.enqueue());
        self.check_extras(&teacher, &of_rows)?;
        let stream = &self.stream;
        check("student", student, shapes.rows * shapes.student_dim, stream)?;
        if let Teacher::Rows(teacher) = &teacher {
            check(
                "teacher",
                *teacher,
                shapes.rows * shapes.teacher_dim,
                stream,
            )?;
        }
        if let Some(weights) = of_rows.weights {
            check("row_weights", weights, shapes.rows, stream)?;
        }
        if let Some(losses) = &of_rows.losses {
            check("row_losses", &**losses, shapes.rows, stream)?;
        }
        if let Some(labels) = of_rows.labels {
            check("labels", labels, shapes.rows, stream)?;
        }
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
        let (teacher, teacher_classes, _read_teacher) = match teacher {
            Teacher::Rows(rows) => {
                let (address, guard) = rows.device_ptr(stream);
                (address, 0, Some(guard))
            }
            Teacher::TopK(lists) => {
                let [log_probabilities, classes] = lists.bind()?;
                (log_probabilities, classes, None)
            }
            Teacher::None => (0, 0, None),
        };
        let (row_weights, _read_weights) = match of_rows.weights {
            Some(weights) => {
                let (address, guard) = weights.device_ptr(stream);
                (address, Some(guard))
            }
            None => (0, None),
        };
        let (row_losses, _written_losses) = match of_rows.losses {
            Some(losses) => {
                let (address, guard) = losses.device_ptr_mut(stream);
                (address, Some(guard))
            }
            None => (0, None),
        };
        let (labels, _read_labels) = match of_rows.labels {
            Some(labels) => {
                let (address, guard) = labels.device_ptr(stream);
                (address, Some(guard))
            }
            None => (0, None),
        };
        let keys = match of_rows.keys {
            Some(keys) => keys.bind()?,
            None => KeyAddresses::default(),
        };
        let (gradient, _written_gradient) = gradient.device_ptr_mut(stream);
        let (value, _written_value) = value.device_ptr_mut(stream);
        let buffers = Buffers {
            student,
            teacher,
            teacher_classes,
            row_weights,
            labels,
            queue: queue_address,
            banks: keys.banks,
            normalizers: keys.normalizers,
            indices: keys.indices,
            gradient,
            value,
            row_losses,
            workspace: self.workspace.address(),
        };
        let mut queue = queue.zip(self.raw.queue());
        if let (Some((queue, raw)), Enqueue::Before) = (&mut queue, enqueue) {
            // SAFETY: the teacher is a batch of the problem's shapes. The queue is bound.
            unsafe { queue.enqueue_at(raw, teacher) }?;
        }
        // SAFETY: the slices have these lengths and are in the context of the evaluator. The lists
        // were checked when they were copied, for no more classes than these, and so were the indices
        // of the bank. The slices that are written are borrowed mutably, so they overlap nothing.
        // cudarc frees a slice only after the launches that use it. Workspace, queue and bank are
        // initialised and bound: no other stream uses them.
        unsafe { self.raw.launch(&buffers, stream.cu_stream().cast()) }?;
        if let (Some((queue, raw)), Enqueue::After) = (&mut queue, enqueue) {
            // SAFETY: as above.
            unsafe { queue.enqueue_at(raw, teacher) }?;
        }
        Ok(())
    }

    /// Refuses what comes beside the student's rows and the problem has not, or the lack of it.
    fn check_extras(&self, teacher: &Teacher<'_, T>, of_rows: &OfRows<'_>) -> Result<()> {
        let (problem, shapes) = (self.problem(), self.problem().shapes());
        let loss = problem.loss().name();
        let agree = |argument, is_wanted: bool, is_there: bool| match (is_wanted, is_there) {
            (true, false) => Err(Error::Missing {
                argument,
                expected: match shapes.queue {
                    None => "launch_with, with what the problem has",
                    Some(_) => "RawEvaluator, whose buffers have them beside a queue",
                },
            }),
            (false, true) => Err(Error::Unexpected { argument, loss }),
            (true, true) | (false, false) => Ok(()),
        };
        let lists = match teacher {
            Teacher::Rows(_) | Teacher::None => None,
            Teacher::TopK(lists) => Some(lists),
        };
        let has_teacher = shapes.top_k.is_some() || shapes.teacher_dim > 0;
        agree("teacher", has_teacher, !matches!(teacher, Teacher::None))?;
        agree("top_k", shapes.top_k.is_some(), lists.is_some())?;
        agree("row_weights", shapes.row_weights, of_rows.weights.is_some())?;
        agree("labels", shapes.labels, of_rows.labels.is_some())?;
        agree("bank", shapes.bank.is_some(), of_rows.keys.is_some())?;
        if let Some(keys) = &of_rows.keys {
            keys.fits(problem, &self.stream)?;
        }
        if let (Some(k), Some(lists)) = (shapes.top_k, lists) {
            lists.fits(problem, k, &self.stream)?;
        }
        match &of_rows.losses {
            Some(losses) => problem.check_row_losses(losses.len()),
            None => Ok(()),
        }
    }

    /// When the batch enters the queue.
    fn enqueue(&self) -> Enqueue {
        self.problem().spec().enqueue
    }
}

/// Returns an error if the slice has another length, or is not in the context of the stream.
pub(super) fn check<E>(
    argument: &'static str,
    slice: &(impl DeviceSlice<E> + ?Sized),
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
