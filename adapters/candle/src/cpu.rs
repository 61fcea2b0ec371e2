//! Evaluations in host memory.

use candle_core::{DType, Device, Error, Result, Storage, Tensor, WithDType};
use half::{bf16, f16};
use relata::{Batch, Cpu, Element, Loss, Rows, evaluate_with_queue};

use crate::error::OrCandle;
use crate::inputs::{Inputs, unsupported};
use crate::node::{Evaluated, Parameters};
use crate::queue::{HostReal, Queue};

pub(crate) fn evaluate(
    inputs: &Inputs,
    queue: Option<&mut Queue>,
    prefixes: Option<&[usize]>,
    loss: Loss,
    parameters: Parameters,
) -> Result<Evaluated> {
    match inputs.student.dtype() {
        DType::F64 => evaluate_as::<f64>(inputs, queue, prefixes, loss, parameters),
        DType::F32 => evaluate_as::<f32>(inputs, queue, prefixes, loss, parameters),
        DType::F16 => evaluate_as::<f16>(inputs, queue, prefixes, loss, parameters),
        DType::BF16 => evaluate_as::<bf16>(inputs, queue, prefixes, loss, parameters),
        dtype => Err(unsupported(dtype, loss.name())),
    }
}

fn evaluate_as<T>(
    inputs: &Inputs,
    queue: Option<&mut Queue>,
    prefixes: Option<&[usize]>,
    loss: Loss,
    parameters: Parameters,
) -> Result<Evaluated>
where
    T: Element<Real: HostReal> + WithDType,
{
    let name = loss.name();
    let queue = queue.map(|queue| queue.host::<T>(name)).transpose()?;
    let run = |batch: Batch<'_, T>| {
        if let Some(queue) = queue {
            let problem = |shapes| parameters.problem(loss, shapes);
            return evaluate_with_queue(&Cpu, batch, queue, problem).or_candle(name);
        }
        let mut problem = parameters.problem(loss, batch.shapes()).or_candle(name)?;
        if let Some(widths) = prefixes {
            problem = problem.with_prefixes(widths).or_candle(name)?;
        }
        let problem = inputs.grouped(problem).or_candle(name)?;
        problem.evaluate(&Cpu, batch).or_candle(name)
    };
    let evaluation = on_host(&inputs.student, |student| {
        let student = Rows::<T>::new(student, inputs.student_shape).or_candle(name)?;
        let run = |batch: Batch<'_, T>| match &inputs.labels {
            None => run(batch),
            Some(labels) => on_host(labels, |labels| run(batch.with_labels(labels))),
        };
        match &inputs.teacher {
            None => run(Batch::of_student(student)),
            Some(teacher) => on_host(teacher, |teacher| {
                let teacher = Rows::new(teacher, inputs.teacher_shape).or_candle(name)?;
                run(Batch::new(student, teacher))
            }),
        }
    })?;
    let terms = evaluation.terms.iter().map(|(_, value)| value);
    let value = [evaluation.loss].into_iter().chain(terms);
    let value: Vec<T::Real> = value.map(<T::Real as Element>::from_f64).collect();
    Ok(Evaluated {
        value: Storage::Cpu(WithDType::to_cpu_storage_owned(value)),
        gradient: Tensor::from_vec(evaluation.gradient, inputs.student.shape(), &Device::Cpu)?,
    })
}

/// The elements of a contiguous tensor, at any offset in its storage.
pub(crate) fn on_host<T: WithDType, R>(
    tensor: &Tensor,
    read: impl FnOnce(&[T]) -> Result<R>,
) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else {
        return Err(Error::msg("relata-candle: expected host memory"));
    };
    let elements = storage.as_slice::<T>()?;
    let elements = layout
        .contiguous_offsets()
        .and_then(|(start, end)| elements.get(start..end))
        .ok_or_else(|| Error::RequiresContiguous { op: "relata" }.bt())?;
    read(elements)
}
