//! Evaluations in host memory.
#![allow(unsafe_code, reason = "reads tensors at their addresses")]

use half::{bf16, f16};
use relata::{Batch, Cpu, Element, Evaluation, Problem, Queue, Rows};
use tch::{Kind, Tensor};

use crate::{Evaluated, Inputs, ProblemOf, Result, no_such_kind};

pub(crate) fn evaluate(inputs: &Inputs, problem: &Problem) -> Result<Evaluated> {
    match inputs.student.kind() {
        Kind::Double => evaluate_as::<f64>(inputs, problem),
        Kind::Float => evaluate_as::<f32>(inputs, problem),
        Kind::Half => evaluate_as::<f16>(inputs, problem),
        Kind::BFloat16 => evaluate_as::<bf16>(inputs, problem),
        kind => Err(no_such_kind(kind)),
    }
}

fn evaluate_as<T: Kinded<Real: Kinded>>(inputs: &Inputs, problem: &Problem) -> Result<Evaluated> {
    let labels = inputs.labels.as_ref().map(Vec::<i32>::try_from);
    let labels: Option<Vec<u32>> = labels
        .transpose()?
        .map(|labels| labels.into_iter().map(i32::cast_unsigned).collect());
    let batch = Batch {
        labels: labels.as_deref(),
        ..batch::<T>(inputs)?
    };
    evaluated(inputs, &problem.evaluate(&Cpu, batch)?)
}

pub(crate) fn evaluate_with_queue(
    inputs: &Inputs,
    queue: &mut Queue<f32>,
    problem: ProblemOf<'_>,
) -> Result<Evaluated> {
    match inputs.student.kind() {
        Kind::Float => evaluate_with_queue_as::<f32>(inputs, queue, problem),
        Kind::Half => evaluate_with_queue_as::<f16>(inputs, queue, problem),
        Kind::BFloat16 => evaluate_with_queue_as::<bf16>(inputs, queue, problem),
        kind => Err(no_such_kind(kind)),
    }
}

fn evaluate_with_queue_as<T: Kinded + Element<Real = f32>>(
    inputs: &Inputs,
    queue: &mut Queue<f32>,
    problem: ProblemOf<'_>,
) -> Result<Evaluated> {
    let batch = batch::<T>(inputs)?;
    let evaluation = relata::evaluate_with_queue(&Cpu, batch, queue, problem)?;
    evaluated(inputs, &evaluation)
}

fn evaluated<R: Kinded>(inputs: &Inputs, evaluation: &Evaluation<R>) -> Result<Evaluated> {
    let shape = inputs.student.size();
    let terms = evaluation.terms.iter().map(|(_, value)| value);
    let value: Vec<f64> = [evaluation.loss].into_iter().chain(terms).collect();
    Ok(Evaluated {
        value: Tensor::f_from_slice(&value)?.f_to_kind(R::KIND)?,
        names: evaluation.terms.iter().map(|(name, _)| name).collect(),
        gradient: Tensor::f_from_slice(&evaluation.gradient)?.f_view(&shape[..])?,
    })
}

/// An element type of libtorch.
trait Kinded: Element + tch::kind::Element {}
impl<T: Element + tch::kind::Element> Kinded for T {}

fn batch<T: Kinded>(inputs: &Inputs) -> Result<Batch<'_, T>> {
    // SAFETY: contiguous, on the CPU, and T was chosen by its kind. It is detached from its graph,
    // not from its memory, but nothing writes there while the caller lends it: no other function of
    // tch's is called.
    let student = unsafe { elements(&inputs.student) };
    let student = Rows::new(student, inputs.student_shape)?;
    let Some(teacher) = &inputs.teacher else {
        return Ok(Batch::of_student(student));
    };
    // SAFETY: as above.
    let teacher = unsafe { elements(teacher) };
    Ok(Batch::new(
        student,
        Rows::new(teacher, inputs.teacher_shape)?,
    ))
}

/// # Safety
/// The tensor is contiguous, on the CPU and of T's kind. Nothing writes to it while the elements
/// are borrowed.
unsafe fn elements<T: Kinded>(tensor: &Tensor) -> &[T] {
    let len = tensor.numel();
    if len == 0 {
        return &[]; // such a tensor has no address
    }
    // SAFETY: libtorch's memory of that many elements, aligned for them. It lives as long as the
    // tensor.
    unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast::<T>(), len) }
}
