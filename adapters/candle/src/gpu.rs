//! Evaluations on a GPU, in candle's memory and on candle's stream. Nothing is copied and the host
//! does not wait.

use std::any::Any;
use std::cell::RefCell;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::cuda_backend::CudaDType;
use candle_core::cuda_backend::cudarc::driver::{
    CudaSlice, CudaStream, CudaView, DevicePtr, DevicePtrMut, DeviceRepr,
};
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, CudaStorage, DType, Error, Result, Storage, Tensor, WithDType};
use half::{bf16, f16};
use relata::cuda::{Buffers, Evaluator, OfRows, RawEvaluator, Teacher};
use relata::{GpuElement, Loss, Problem, Shapes};

use crate::error::OrCandle;
use crate::inputs::{Inputs, unsupported};
use crate::node::{Evaluated, Parameters};
use crate::queue::{Keys, Queue};

/// A type of embeddings on a GPU.
pub(crate) trait CudaElement: GpuElement + CudaDType + DeviceRepr + WithDType {
    /// The queue of a ring for this type.
    fn keys(keys: &mut Keys) -> Option<&mut Option<relata::cuda::Queue<Self>>>;
}

macro_rules! cuda_element {
    ($($element:ty: $keys:ident),*) => {$(
        impl CudaElement for $element {
            fn keys(keys: &mut Keys) -> Option<&mut Option<relata::cuda::Queue<Self>>> {
                match keys {
                    Keys::$keys(queue) => Some(queue),
                    _ => None,
                }
            }
        }
    )*};
}
cuda_element!(f32: F32, f16: F16, bf16: BF16);

pub(crate) fn evaluate(
    inputs: &Inputs,
    queue: Option<&mut Queue>,
    prefixes: Option<&[usize]>,
    loss: Loss,
    parameters: Parameters,
    device: &CudaDevice,
) -> Result<Evaluated> {
    match inputs.student.dtype() {
        DType::F32 => evaluate_as::<f32>(inputs, queue, prefixes, loss, parameters, device),
        DType::F16 => evaluate_as::<f16>(inputs, queue, prefixes, loss, parameters, device),
        DType::BF16 => evaluate_as::<bf16>(inputs, queue, prefixes, loss, parameters, device),
        dtype => Err(unsupported(dtype, loss.name())),
    }
}

fn evaluate_as<T: CudaElement>(
    inputs: &Inputs,
    queue: Option<&mut Queue>,
    prefixes: Option<&[usize]>,
    loss: Loss,
    parameters: Parameters,
    device: &CudaDevice,
) -> Result<Evaluated> {
    let name = loss.name();
    let [rows, dim] = inputs.student_shape;
    let shapes = Shapes {
        queue: queue.as_ref().map(|queue| queue.capacity()),
        ..inputs.shapes()
    };
    let spec = loss.spec();
    let mut problem = parameters.problem(loss, shapes).or_candle(name)?;
    if let Some(widths) = prefixes {
        problem = problem.with_prefixes(widths).or_candle(name)?;
    }
    problem = inputs.grouped(problem).or_candle(name)?;
    if let Some(queue) = &queue {
        if queue.normalize() != spec.normalize {
            return Err(relata::Error::QueueNormalization {
                loss: name,
                normalize: spec.normalize,
            })
            .or_candle(name);
        }
        problem = problem.with_weight_precision(queue.weight_precision());
    }
    let queue = queue.map(|queue| queue.gpu::<T>(rows, device, name));
    let queue = queue.transpose()?;

    let mut gradient = overwritten(device, rows * dim)?;
    let mut value = overwritten(device, relata::cuda::VALUE_LEN)?;
    on_gpu(&inputs.student, |student| {
        let evaluate = |teacher: Option<CudaView<'_, T>>| {
            let learned = parameters == Parameters::Learned;
            if queue.is_none() && (learned || inputs.labels.is_some()) {
                let results = (&mut gradient, &mut value);
                let teacher = teacher.unwrap_or_else(|| student.slice(..0));
                return once(&problem, device, [&student, &teacher], inputs, results);
            }
            let evaluate = |evaluator: &mut Evaluator<T>| match (&teacher, queue) {
                (Some(teacher), Some(queue)) => {
                    evaluator.launch_with_queue(&student, teacher, queue, &mut gradient, &mut value)
                }
                (teacher, _) => evaluator.launch_with(
                    &student,
                    teacher
                        .as_ref()
                        .map_or(Teacher::None, |teacher| Teacher::Rows(teacher)),
                    OfRows::default(),
                    &mut gradient,
                    &mut value,
                ),
            };
            let stream = device.cuda_stream();
            let done = match parameters {
                Parameters::Fixed => with_evaluator(&stream, &problem, evaluate),
                // No later step has the same problem.
                Parameters::Learned => {
                    Evaluator::new(&stream, &problem).and_then(|mut it| evaluate(&mut it))
                }
            };
            done.or_candle(name)
        };
        match &inputs.teacher {
            Some(teacher) => on_gpu(teacher, |teacher| evaluate(Some(teacher))),
            None => evaluate(None),
        }
    })?;
    let storage = |slice| Storage::Cuda(CudaStorage::wrap_cuda_slice(slice, device.clone()));
    Ok(Evaluated {
        value: storage(value),
        gradient: Tensor::from_storage(
            storage(gradient),
            inputs.student.shape().clone(),
            BackpropOp::none(),
            false,
        ),
    })
}

/// Evaluates a problem that no later step has again, or one with labels. The workspace comes from the memory that the driver keeps for the stream, and goes back
/// there. `inputs` are those of student and teacher.
#[allow(unsafe_code, reason = "passes addresses to the raw evaluator")]
fn once<T: CudaElement>(
    problem: &Problem,
    device: &CudaDevice,
    [student, teacher]: [&CudaView<'_, T>; 2],
    inputs: &Inputs,
    (gradient, value): (&mut CudaSlice<f32>, &mut CudaSlice<f32>),
) -> Result<()> {
    let name = problem.loss().name();
    let stream = device.cuda_stream();
    stream.context().bind_to_thread().map_err(Error::wrap)?;
    let evaluator = RawEvaluator::new::<T>(problem).or_candle(name)?;
    // SAFETY: any bits are a u8. Below, the evaluator prepares the workspace before it uses it.
    let mut workspace = unsafe { device.alloc::<u8>(evaluator.workspace_bytes()) }?;
    let handle = stream.cu_stream().cast();
    let mut launch = |labels: u64| {
        // While these guards live, other streams wait for the launches.
        let (student, _read_student) = student.device_ptr(&stream);
        let (teacher, _read_teacher) = teacher.device_ptr(&stream);
        let (gradient, _written_gradient) = gradient.device_ptr_mut(&stream);
        let (value, _written_value) = value.device_ptr_mut(&stream);
        let (workspace, _written_workspace) = workspace.device_ptr_mut(&stream);
        let buffers = Buffers {
            student,
            teacher,
            labels,
            gradient,
            value,
            workspace,
            ..Buffers::default()
        };
        // SAFETY: the workspace has this length. Memory and stream are of the context bound above.
        unsafe { evaluator.initialize(workspace, handle) }.or_candle(name)?;
        // SAFETY: the views are contiguous and of the shapes that the problem was made of; any u32 is
        // a label. What is written is borrowed mutably, so it overlaps nothing, and the workspace is
        // this call's own. cudarc frees memory only after the launches that use it.
        unsafe { evaluator.launch(&buffers, handle) }.or_candle(name)
    };
    match &inputs.labels {
        None => launch(0),
        Some(labels) => on_gpu(labels, |labels: CudaView<'_, u32>| {
            let (labels, _read_labels) = labels.device_ptr(&stream);
            launch(labels)
        }),
    }
}

/// Memory for a result. Its content is undefined until the evaluation has run.
#[allow(unsafe_code, reason = "memory that nothing has written")]
fn overwritten(device: &CudaDevice, len: usize) -> Result<CudaSlice<f32>> {
    // SAFETY: any bits are an f32. The evaluation writes the gradient, the loss and its terms
    // before any later work on the stream can read them. Nothing uses the elements behind the last
    // term. If the evaluation fails, the memory is dropped.
    unsafe { device.alloc(len) }
}

/// The elements of a contiguous tensor, at any offset in its storage.
pub(crate) fn on_gpu<T: CudaDType, R>(
    tensor: &Tensor,
    read: impl FnOnce(CudaView<'_, T>) -> Result<R>,
) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else {
        return Err(Error::msg("relata-candle: expected memory on a GPU"));
    };
    let elements = storage.as_cuda_slice::<T>()?;
    let elements = layout
        .contiguous_offsets()
        .and_then(|(start, end)| elements.try_slice(start..end))
        .ok_or_else(|| Error::RequiresContiguous { op: "relata" }.bt())?;
    read(elements)
}

/// How many evaluators a thread keeps at most.
const KEPT: usize = 16;

/// The evaluators that a thread used last, the most recent one at the end.
struct Kept(RefCell<Vec<Box<dyn Any + Send>>>);

thread_local! {
    /// Those of this thread. A training step finds its kernels loaded and its workspaces allocated.
    /// Threads do not share evaluators: a workspace belongs to one stream, and candle's device
    /// launches on a stream of each thread's own behind one handle.
    static EVALUATORS: Kept = const { Kept(RefCell::new(Vec::new())) };
}

/// Those of threads that have ended. A thread's destructors must not call the driver: what the
/// driver keeps for the thread may be gone. So the next evaluation on any thread frees them.
static ENDED: Mutex<Vec<Box<dyn Any + Send>>> = Mutex::new(Vec::new());

impl Drop for Kept {
    fn drop(&mut self) {
        ended().append(self.0.get_mut());
    }
}

fn ended() -> MutexGuard<'static, Vec<Box<dyn Any + Send>>> {
    ENDED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Frees what threads that have ended have kept.
fn free_ended() {
    let ended = std::mem::take(&mut *ended());
    drop(ended);
}

/// Calls `evaluate` with the evaluator of `problem` on `stream`.
fn with_evaluator<T: CudaElement>(
    stream: &Arc<CudaStream>,
    problem: &Problem,
    evaluate: impl FnOnce(&mut Evaluator<T>) -> relata::Result<()>,
) -> relata::Result<()> {
    free_ended();
    let mut evaluator = match take(stream, problem) {
        Some(evaluator) => evaluator,
        None => Box::new(Evaluator::<T>::new(stream, problem)?),
    };
    // An evaluator that fails is not kept: the launches that did run may have left the workspace in
    // a state that only the missing launches would repair.
    evaluate(&mut evaluator)?;
    EVALUATORS.with(|kept| {
        let mut kept = kept.0.borrow_mut();
        if kept.len() == KEPT {
            kept.remove(0);
        }
        kept.push(evaluator);
    });
    Ok(())
}

fn take<T: CudaElement>(stream: &Arc<CudaStream>, problem: &Problem) -> Option<Box<Evaluator<T>>> {
    EVALUATORS.with(|kept| {
        let mut kept = kept.0.borrow_mut();
        let at = kept.iter().rposition(|evaluator| {
            let evaluator = evaluator.downcast_ref::<Evaluator<T>>();
            evaluator.is_some_and(|it| it.stream() == stream && it.problem() == problem)
        })?;
        kept.remove(at).downcast().ok()
    })
}

/// Frees the GPU memory that this thread keeps from one evaluation to the next, and what threads
/// that have ended have left. The next evaluation frees the latter too.
pub fn release_workspaces() {
    free_ended();
    EVALUATORS.with(|kept| kept.0.take());
}
