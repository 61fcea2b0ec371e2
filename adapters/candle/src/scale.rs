//! Scales and biases that are learned: an evaluation has their gradients as terms, and a node hands them
//! to candle's graph.

use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, DType, Device, Error, Layout, Result, Shape,
    Tensor,
};
use relata::{Family, InfoNce, Loss, Rrd};

use crate::error::OrCandle;
use crate::inputs::{Inputs, same_device, unsupported};
use crate::node::{Parameters, fused_inputs};
use crate::queue::Queue;

/// [`rrd`](crate::rrd) with a learned `scale`, 1/τ_s: a tensor of one number, which gets a gradient too.
/// It takes the place of `loss.student_temperature`. The teacher's temperature stays.
///
/// The scale is read to the host. On CUDA this waits for the stream, once a step. The evaluation
/// keeps no workspace, because the next step has another scale.
///
/// ```
/// use candle_core::{DType, Device, Tensor, Var};
/// use relata_candle::{Queue, Rrd, rrd_with_scale};
/// # fn main() -> candle_core::Result<()> {
/// let student = Var::randn(0f32, 1., (8, 32), &Device::Cpu)?;
/// let teacher = Tensor::randn(0f32, 1., (8, 32), &Device::Cpu)?;
/// let mut queue = Queue::new(64, 32, DType::F32, &Device::Cpu)?;
/// let log_scale = Var::new((1f32 / 0.1).ln(), &Device::Cpu)?;
/// let scale = log_scale.exp()?;
/// let loss = rrd_with_scale(&student, &teacher, &mut queue, &scale, Rrd::default())?;
/// assert!(loss.backward()?.get(&log_scale).is_some());
/// # Ok(()) }
/// ```
///
/// # Errors
/// As [`rrd`](crate::rrd); a scale that is no single number above 0. Nothing has been enqueued then.
pub fn rrd_with_scale(
    student: &Tensor,
    teacher: &Tensor,
    queue: &mut Queue,
    scale: &Tensor,
    loss: Rrd,
) -> Result<Tensor> {
    let student_temperature = temperature(scale, student.device(), Loss::from(loss).name())?;
    let loss = Rrd {
        student_temperature,
        ..loss
    };
    with_scale(student, teacher, Some(queue), scale, loss.into())
}

/// [`info_nce`](crate::info_nce) with a learned `scale`, 1/τ, as in [`rrd_with_scale`]. It takes the
/// place of `loss.temperature`.
///
/// # Errors
/// As [`info_nce`](crate::info_nce); a scale that is no single number above 0.
pub fn info_nce_with_scale(
    student: &Tensor,
    teacher: &Tensor,
    scale: &Tensor,
    loss: InfoNce,
) -> Result<Tensor> {
    let loss = at_scale(loss, scale, student)?;
    with_scale(student, teacher, None, scale, loss)
}

/// [`info_nce_with_queue`](crate::info_nce_with_queue) with a learned `scale`, 1/τ, as in
/// [`rrd_with_scale`]. It takes the place of `loss.temperature`.
///
/// # Errors
/// As [`info_nce_with_queue`](crate::info_nce_with_queue); a scale that is no single number above 0.
/// Nothing has been enqueued then.
pub fn info_nce_with_queue_and_scale(
    student: &Tensor,
    teacher: &Tensor,
    queue: &mut Queue,
    scale: &Tensor,
    loss: InfoNce,
) -> Result<Tensor> {
    let loss = at_scale(loss, scale, student)?;
    with_scale(student, teacher, Some(queue), scale, loss)
}

fn at_scale(loss: InfoNce, scale: &Tensor, student: &Tensor) -> Result<Loss> {
    let temperature = temperature(scale, student.device(), Loss::from(loss).name())?;
    Ok(Loss::from(InfoNce {
        temperature,
        ..loss
    }))
}

fn with_scale(
    student: &Tensor,
    teacher: &Tensor,
    queue: Option<&mut Queue>,
    scale: &Tensor,
    loss: Loss,
) -> Result<Tensor> {
    let inputs = Inputs::new(student, teacher, &loss.spec())?;
    let (value, _) = fused_inputs(&inputs, queue, None, loss, Parameters::Learned)?;
    learn(&value, scale, "scale_gradient", loss)
}

/// τ of a scale.
pub(crate) fn temperature(scale: &Tensor, device: &Device, op: &'static str) -> Result<f64> {
    let argument = "scale";
    let got = number(argument, scale, device, op)?;
    if got.is_finite() && got > 0.0 {
        return Ok(1.0 / got);
    }
    Err(relata::Error::Parameter {
        argument,
        expected: "a finite number above 0",
        got,
    })
    .or_candle(op)
}

/// The number in a tensor of one, copied to the host.
pub(crate) fn number(
    argument: &'static str,
    tensor: &Tensor,
    device: &Device,
    op: &'static str,
) -> Result<f64> {
    same_device(device, tensor.device(), op)?;
    if tensor.elem_count() != 1 {
        return Err(relata::Error::Length {
            argument,
            expected: 1,
            got: tensor.elem_count(),
        })
        .or_candle(op);
    }
    if !tensor.dtype().is_float() {
        let error = unsupported(tensor.dtype(), op);
        return Err(error.context(format!("{op}: {argument}")));
    }
    // The copy comes first, so that a GPU launches no kernel for it.
    let number = tensor.detach().to_device(&Device::Cpu)?;
    number.to_dtype(DType::F64)?.reshape(())?.to_scalar()
}

/// `value` as a function of `parameter` too. Its derivative is the loss's term of this name.
pub(crate) fn learn(
    value: &Tensor,
    parameter: &Tensor,
    name: &'static str,
    loss: impl Into<Loss>,
) -> Result<Tensor> {
    let spec = loss.into().spec();
    let at = match (
        spec.terms.iter().position(|&term| term == name),
        spec.family,
    ) {
        (Some(at), _) => at,
        // It was asked for, and comes last.
        (None, Family::Contrastive(_)) => spec.terms.len(),
        (None, _) => {
            let why = format!("relata-candle: expected the term {name}");
            return Err(Error::msg(why));
        }
    };
    // The loss comes before its terms.
    value.apply_op2(parameter, Learned { at: 1 + at, name })
}

/// The loss, with the terms behind it, as a function of a parameter that its evaluation has had
/// already.
struct Learned {
    /// Where the derivative lies behind the loss.
    at: usize,
    name: &'static str,
}

impl CustomOp2 for Learned {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(
        &self,
        value: &CpuStorage,
        layout: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        Ok((value.try_clone(layout)?, Shape::from(())))
    }

    fn cuda_fwd(
        &self,
        value: &CudaStorage,
        layout: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        Ok((value.try_clone(layout)?, Shape::from(())))
    }

    fn bwd(
        &self,
        value: &Tensor,
        parameter: &Tensor,
        _: &Tensor,
        upstream: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let derivative = value.detach().apply_op1_no_bwd(&Term { at: self.at })?;
        // As for the rows, the rounding comes last.
        let gradient = (derivative * upstream)?.to_dtype(parameter.dtype())?;
        let gradient = gradient.reshape(parameter.shape())?;
        Ok((Some(upstream.clone()), Some(gradient)))
    }
}

/// A term behind a loss as a tensor, where the loss lies.
struct Term {
    at: usize,
}

impl Term {
    fn of<S: BackendStorage>(&self, value: &S) -> Result<(S, Shape)> {
        let layout = Layout::contiguous_with_offset((), self.at);
        Ok((value.to_dtype(&layout, value.dtype())?, Shape::from(())))
    }
}

impl CustomOp1 for Term {
    fn name(&self) -> &'static str {
        "term"
    }

    fn cpu_fwd(&self, value: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.of(value)
    }

    fn cuda_fwd(&self, value: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.of(value)
    }
}
