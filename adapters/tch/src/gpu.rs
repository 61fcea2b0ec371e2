//! Evaluations on a GPU, in libtorch's memory and on libtorch's stream.
#![allow(unsafe_code, reason = "passes addresses to the raw evaluator")]

use std::ptr::null_mut;

use half::{bf16, f16};
use relata::cuda::{Buffers, RawEvaluator};
use relata::{GpuElement, Problem};
use tch::{Kind, Tensor};

use crate::{Evaluated, Inputs, Result, no_such_kind};

pub(crate) fn evaluate(inputs: &Inputs, problem: &Problem) -> Result<Evaluated> {
    match inputs.student.kind() {
        Kind::Float => evaluate_as::<f32>(inputs, problem),
        Kind::Half => evaluate_as::<f16>(inputs, problem),
        Kind::BFloat16 => evaluate_as::<bf16>(inputs, problem),
        kind => Err(no_such_kind(kind)),
    }
}

fn evaluate_as<T: GpuElement>(inputs: &Inputs, problem: &Problem) -> Result<Evaluated> {
    // libtorch makes its context current on this thread when it allocates. A trainer would keep the
    // evaluator and the workspace from step to step; this adapter does not.
    let device = inputs.student.device();
    let gradient = Tensor::f_empty(&inputs.student.size()[..], (Kind::Float, device))?;
    let value = Tensor::f_empty([relata::cuda::VALUE_LEN as i64], (Kind::Float, device))?;
    let evaluator = RawEvaluator::new::<T>(problem)?;
    let bytes = i64::try_from(evaluator.workspace_bytes()).unwrap_or(i64::MAX);
    let workspace = Tensor::f_empty([bytes], (Kind::Uint8, device))?;

    let buffers = Buffers {
        student: address(&inputs.student),
        teacher: address(&inputs.teacher),
        queue: 0,
        gradient: address(&gradient),
        value: address(&value),
        workspace: address(&workspace),
    };
    // Above all, this checks that they are on the GPU whose context is current.
    evaluator.check(&buffers)?;
    // libtorch launches on the default stream, and tch cannot change that.
    let stream = null_mut();
    // SAFETY: memory of this length in the current context, as just checked, and a stream of it.
    unsafe { evaluator.initialize(buffers.workspace, stream) }?;
    // SAFETY: contiguous matrices of T of the problem's shapes, and new tensors of the right
    // lengths that overlap nothing. libtorch reuses freed memory in the stream's order, so the
    // workspace may be freed at once.
    unsafe { evaluator.launch(&buffers, stream) }?;
    Ok(Evaluated { value, gradient })
}

fn address(tensor: &Tensor) -> u64 {
    tensor.data_ptr() as u64
}
