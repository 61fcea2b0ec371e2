//! Knowledge distillation with weights of rows, lists of the teacher's classes and losses of rows.

use candle_core::{DType, Device, Error, Result, Shape, Storage, Tensor, WithDType};
use half::{bf16, f16};
use relata::{Batch, Cpu, Element, Evaluation, KdKl, Loss, Problem, Rows, TopK};

use crate::cpu::on_host;
use crate::error::OrCandle;
use crate::inputs::{leading, rows_of, same_device, unsupported};
use crate::node::{Evaluated, place};

/// The teacher of [`kd_kl_weighted`](crate::kd_kl_weighted) and
/// [`kd_kl_rows`](crate::kd_kl_rows). A tensor of logits turns into one.
#[derive(Clone, Copy, Debug)]
pub enum Teacher<'a> {
    /// Logits, of the student's leading dimensions and dtype.
    Logits(&'a Tensor),
    /// The k most likely classes of each row: see [`relata::TopK`].
    TopK {
        /// `[N, k]` or `[B, T, k]`, u32 or i64.
        classes: &'a Tensor,
        /// The logarithms of their probabilities, of the same shape and any float dtype. An entry of
        /// −∞ is left out, whatever its class.
        log_probabilities: &'a Tensor,
    },
}

impl<'a> From<&'a Tensor> for Teacher<'a> {
    fn from(logits: &'a Tensor) -> Self {
        Teacher::Logits(logits)
    }
}

/// What a node returns.
#[derive(Clone, Copy)]
pub(crate) enum Of<'a> {
    /// The mean of the rows' losses, weighted if there are weights.
    Mean(Option<&'a Tensor>),
    /// The loss of each row.
    Rows,
}

/// Evaluates `loss` and puts it into the student's graph.
pub(crate) fn fused(student: &Tensor, teacher: Teacher, of: Of, loss: KdKl) -> Result<Tensor> {
    let op = Loss::from(loss).name();
    if !student.device().is_cpu() {
        let got = student.device().location();
        let why = "expected the CPU for weights, lists and losses of rows";
        return Err(Error::msg(format!("{op}: {why}, got {got:?}")).bt());
    }
    let student = student.contiguous()?;
    let evaluated = match student.dtype() {
        DType::F64 => evaluate::<f64>(&student, teacher, of, loss),
        DType::F32 => evaluate::<f32>(&student, teacher, of, loss),
        DType::F16 => evaluate::<f16>(&student, teacher, of, loss),
        DType::BF16 => evaluate::<bf16>(&student, teacher, of, loss),
        dtype => Err(unsupported(dtype, op)),
    }?;
    let shape = match of {
        Of::Mean(_) => Shape::from(()),
        Of::Rows => Shape::from(leading(&student)),
    };
    place(&student, evaluated, shape, op)
}

fn evaluate<T>(student: &Tensor, teacher: Teacher, of: Of, loss: KdKl) -> Result<Evaluated>
where
    T: Element<Real: WithDType> + WithDType,
{
    let spec = Loss::from(loss).spec();
    let op = spec.name;
    let shape = rows_of(student, "student", &spec)?;
    let weights = match of {
        Of::Rows | Of::Mean(None) => None,
        Of::Mean(Some(weights)) => {
            same_device(student.device(), weights.device(), op)?;
            same_leading(student, weights, weights.dims(), op)?;
            Some(reals::<T>(weights, op)?)
        }
    };
    let evaluation = on_host(student, |student_logits: &[T]| {
        let rows = Rows::new(student_logits, shape).or_candle(op)?;
        let run = |batch: Batch<'_, T>| {
            let batch = Batch {
                row_weights: weights.as_deref(),
                ..batch
            };
            run(batch, of, loss).or_candle(op)
        };
        match teacher {
            Teacher::Logits(logits) => {
                same_device(student.device(), logits.device(), op)?;
                if logits.dtype() != student.dtype() {
                    return Err(Error::DTypeMismatchBinaryOp {
                        lhs: student.dtype(),
                        rhs: logits.dtype(),
                        op,
                    }
                    .bt());
                }
                let shape = rows_of(logits, "teacher", &spec)?;
                same_leading(student, logits, &leading(logits), op)?;
                on_host(&logits.detach().contiguous()?, |logits: &[T]| {
                    run(Batch::new(rows, Rows::new(logits, shape).or_candle(op)?))
                })
            }
            Teacher::TopK {
                classes,
                log_probabilities,
            } => {
                let [_, k] = rows_of(classes, "teacher classes", &spec)?;
                for list in [classes, log_probabilities] {
                    same_device(student.device(), list.device(), op)?;
                }
                same_leading(student, classes, &leading(classes), op)?;
                if classes.dims() != log_probabilities.dims() {
                    return Err(mismatch(classes, log_probabilities, op));
                }
                let logarithms = reals::<T>(log_probabilities, op)?;
                let classes = classes_of::<T>(classes, &logarithms, op)?;
                let top_k = TopK::new(&classes, &logarithms, [shape[0], k]).or_candle(op)?;
                run(Batch::of_top_k(rows, top_k))
            }
        }
    })?;
    let value = match of {
        Of::Mean(_) => vec![evaluation.loss],
        Of::Rows => evaluation.row_losses,
    };
    let value: Vec<T::Real> = value
        .into_iter()
        .map(<T::Real as Element>::from_f64)
        .collect();
    Ok(Evaluated {
        value: Storage::Cpu(WithDType::to_cpu_storage_owned(value)),
        gradient: Tensor::from_vec(evaluation.gradient, student.shape(), &Device::Cpu)?,
    })
}

fn run<T: Element>(
    batch: Batch<'_, T>,
    of: Of,
    loss: KdKl,
) -> relata::Result<Evaluation<<Cpu as relata::Device<T>>::Gradient>>
where
    Cpu: relata::Device<T>,
{
    let problem = Problem::new(loss, batch.shapes())?;
    match of {
        Of::Mean(_) => problem.evaluate(&Cpu, batch),
        // The gradient of the rows' sum: each row is that of its own loss.
        Of::Rows => {
            let rows = batch.student.len() as f64;
            problem.with_upstream(rows).evaluate_rows(&Cpu, batch)
        }
    }
}

/// A tensor's numbers in the reals of `T`. Weights may be a mask that a comparison made.
fn reals<T: Element<Real: WithDType>>(tensor: &Tensor, op: &'static str) -> Result<Vec<T::Real>> {
    let dtype = tensor.dtype();
    if !(dtype.is_float() || dtype == DType::U8) {
        return Err(unsupported(dtype, op));
    }
    let reals = tensor.detach().to_dtype(<T::Real as WithDType>::DTYPE)?;
    reals.flatten_all()?.to_vec1()
}

/// The classes of a list. Where an entry has no probability, any number may stand for its class.
fn classes_of<T: Element>(
    classes: &Tensor,
    logarithms: &[T::Real],
    op: &'static str,
) -> Result<Vec<u32>> {
    if !matches!(classes.dtype(), DType::U32 | DType::I64) {
        return Err(unsupported(classes.dtype(), op));
    }
    let classes = classes
        .to_dtype(DType::I64)?
        .flatten_all()?
        .to_vec1::<i64>()?;
    let class = |(class, logarithm): (i64, &T::Real)| {
        if logarithm.to_f64() == f64::NEG_INFINITY {
            return Ok(0);
        }
        u32::try_from(class).map_err(|_| relata::Error::Parameter {
            argument: "teacher classes",
            expected: "classes from 0 to 2^32 - 1",
            got: class as f64,
        })
    };
    let classes: relata::Result<Vec<u32>> =
        classes.into_iter().zip(logarithms).map(class).collect();
    classes.or_candle(op)
}

/// Refuses `other` unless its rows, of dimensions `dims`, are those of the student.
fn same_leading(student: &Tensor, other: &Tensor, dims: &[usize], op: &'static str) -> Result<()> {
    if leading(student) == dims {
        Ok(())
    } else {
        Err(mismatch(student, other, op))
    }
}

fn mismatch(lhs: &Tensor, rhs: &Tensor, op: &'static str) -> Error {
    Error::ShapeMismatchBinaryOp {
        lhs: lhs.shape().clone(),
        rhs: rhs.shape().clone(),
        op,
    }
    .bt()
}
