//! Evaluations on a GPU, in libtorch's memory and on libtorch's stream.
#![allow(unsafe_code, reason = "passes addresses to the raw evaluator")]

use std::any::Any;
use std::cell::RefCell;
use std::marker::PhantomData;
use std::ptr::null_mut;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

use half::{bf16, f16};
use relata::cuda::cudarc::driver::sys::CUcontext;
use relata::cuda::cudarc::driver::{CudaContext, DriverError, result};
use relata::cuda::{Buffers, RawEvaluator};
use relata::{GpuElement, Problem};
use tch::{Device, Kind, Tensor};

use crate::{Error, Evaluated, Inputs, Result, no_kernels, no_such_kind};

pub(crate) fn evaluate(inputs: &Inputs, problem: &Problem) -> Result<Evaluated> {
    match inputs.student.kind() {
        Kind::Float => evaluate_as::<f32>(inputs, problem),
        Kind::Half => evaluate_as::<f16>(inputs, problem),
        Kind::BFloat16 => evaluate_as::<bf16>(inputs, problem),
        kind => Err(no_such_kind(kind)),
    }
}

fn evaluate_as<T: GpuElement>(inputs: &Inputs, problem: &Problem) -> Result<Evaluated> {
    let device = inputs.student.device();
    let Device::Cuda(gpu) = device else {
        return Err(no_kernels(device));
    };
    let _current = Current::of(gpu)?;
    let evaluator = evaluator::<T>(gpu, problem)?;
    let evaluator = &evaluator.raw;
    // libtorch gives these from memory that it keeps: it asks the driver for none from the second
    // step on.
    let gradient = Tensor::f_empty(&inputs.student.size()[..], (Kind::Float, device))?;
    let value = Tensor::f_empty([relata::cuda::VALUE_LEN as i64], (Kind::Float, device))?;
    let bytes = i64::try_from(evaluator.workspace_bytes()).unwrap_or(i64::MAX);
    let workspace = Tensor::f_empty([bytes], (Kind::Uint8, device))?;

    let buffers = Buffers {
        student: address(&inputs.student),
        // 0 for what is not there.
        teacher: inputs.teacher.as_ref().map_or(0, address),
        labels: inputs.labels.as_ref().map_or(0, address),
        gradient: address(&gradient),
        value: address(&value),
        workspace: address(&workspace),
        ..Buffers::default()
    };
    // Above all, this checks that they are on the GPU whose context is current.
    evaluator.check(&buffers)?;
    // libtorch launches on the default stream, and tch cannot change that.
    let stream = null_mut();
    // SAFETY: memory of this length in the current context, as just checked, and a stream of it.
    unsafe { evaluator.initialize(buffers.workspace, stream) }?;
    // SAFETY: contiguous matrices of T of the problem's shapes, labels of which any bits will do, and
    // new tensors of the right lengths that overlap nothing. libtorch reuses freed memory in the stream's order, so the
    // workspace may be freed at once.
    unsafe { evaluator.launch(&buffers, stream) }?;
    Ok(Evaluated {
        value,
        names: problem.terms().collect(),
        gradient,
    })
}

fn address(tensor: &Tensor) -> u64 {
    tensor.data_ptr() as u64
}

/// How many evaluators a thread keeps at most.
const KEPT: usize = 16;

/// An evaluator with the number of its GPU. It holds plans and no memory of the GPU.
struct Kept {
    gpu: usize,
    evaluator: Rc<dyn Any>,
}

/// An evaluator of elements of type `T`.
struct Of<T> {
    raw: RawEvaluator,
    element: PhantomData<T>,
}

thread_local! {
    /// The evaluators that this thread used last, the most recent one at the end. A training step
    /// finds its kernels planned and loaded.
    static EVALUATORS: RefCell<Vec<Kept>> = const { RefCell::new(Vec::new()) };
}

/// The primary contexts of the GPUs that the process has used. They stay until it ends, as
/// libtorch's do.
static CONTEXTS: Mutex<Vec<Arc<CudaContext>>> = Mutex::new(Vec::new());

/// The evaluator of `problem` on this GPU, whose context is current.
fn evaluator<T: GpuElement>(gpu: usize, problem: &Problem) -> Result<Rc<Of<T>>> {
    EVALUATORS.with_borrow_mut(|kept| {
        let at = kept.iter().rposition(|it| {
            let of = it.evaluator.downcast_ref::<Of<T>>();
            it.gpu == gpu && of.is_some_and(|of| of.raw.problem() == problem)
        });
        let found = at.map(|at| kept.remove(at).evaluator);
        let evaluator = match found.and_then(|found| found.downcast::<Of<T>>().ok()) {
            Some(evaluator) => evaluator,
            None => Rc::new(Of {
                raw: RawEvaluator::new::<T>(problem)?,
                element: PhantomData,
            }),
        };
        if kept.len() == KEPT {
            kept.remove(0);
        }
        kept.push(Kept {
            gpu,
            evaluator: Rc::clone(&evaluator) as Rc<dyn Any>,
        });
        Ok(evaluator)
    })
}

/// While it lives, a GPU's primary context, which is libtorch's, is current on this thread. libtorch
/// makes it current when it launches or asks the driver for memory. On a thread that has done
/// neither, no context is current.
struct Current {
    /// The context that was current before, if it was another one. libtorch's current device goes
    /// with it.
    before: Option<CUcontext>,
}

impl Current {
    fn of(gpu: usize) -> Result<Self> {
        Self::make(gpu).map_err(|error| {
            Error::Relata(relata::Error::Cuda {
                during: "making the tensor's GPU current",
                code: error.0 as u32,
                message: format!("{:?}", error.0),
            })
        })
    }

    fn make(gpu: usize) -> std::result::Result<Self, DriverError> {
        let before = result::ctx::get_current()?;
        let mut contexts = CONTEXTS.lock().unwrap_or_else(PoisonError::into_inner);
        let known = contexts.iter().find(|context| context.ordinal() == gpu);
        let context = match known {
            Some(context) => context.cu_ctx(),
            None => {
                let context = CudaContext::new(gpu)?;
                let handle = context.cu_ctx();
                contexts.push(context);
                handle
            }
        };
        if result::ctx::get_current()? != Some(context) {
            // SAFETY: a primary context, which CONTEXTS keeps alive.
            unsafe { result::ctx::set_current(context) }?;
        }
        Ok(Current {
            before: before.filter(|&before| before != context),
        })
    }
}

impl Drop for Current {
    fn drop(&mut self) {
        if let Some(before) = self.before {
            // SAFETY: it was current on this thread when this was made. If the call fails, the next
            // call of the driver on this thread fails too, and says so.
            let _ = unsafe { result::ctx::set_current(before) };
        }
    }
}
