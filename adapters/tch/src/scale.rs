//! Scales and biases that are learned: an evaluation has their gradients as terms.

use relata::{InfoNce, Loss, Problem, Queue, Rrd, Shapes};
use tch::{Kind, Tensor};

use crate::{Error, Inputs, Result, Terms};

/// RRD with a learned `scale`, 1/τ_s: a tensor of one number, which gets a gradient too. It takes the
/// place of `loss.student_temperature`. The teacher's temperature stays. The scale is read to the host. On CUDA
/// this waits for the stream, once a step.
///
/// # Errors
/// As [`loss_with_queue`](crate::loss_with_queue); a scale that is no single number above 0. Nothing has
/// been enqueued then.
pub fn rrd_with_scale(
    student: &Tensor,
    teacher: &Tensor,
    queue: &mut Queue<f32>,
    scale: &Tensor,
    loss: Rrd,
) -> Result<Tensor> {
    let loss = Rrd {
        student_temperature: temperature(scale, student)?,
        ..loss
    };
    with_scale(student, teacher, Some(queue), scale, loss.into())
}

/// InfoNCE within the batch with a learned `scale`, 1/τ, as in [`rrd_with_scale`]. It takes the place of
/// `loss.temperature`.
///
/// # Errors
/// As [`loss`](crate::loss()); a scale that is no single number above 0.
pub fn info_nce_with_scale(
    student: &Tensor,
    teacher: &Tensor,
    scale: &Tensor,
    loss: InfoNce,
) -> Result<Tensor> {
    let loss = InfoNce {
        temperature: temperature(scale, student)?,
        ..loss
    };
    with_scale(student, teacher, None, scale, loss.into())
}

/// InfoNCE against the row's own teacher and the keys in `queue` with a learned `scale`, 1/τ, as in
/// [`rrd_with_scale`]. It takes the place of `loss.temperature`.
///
/// # Errors
/// As [`loss_with_queue`](crate::loss_with_queue); a scale that is no single number above 0. Nothing has
/// been enqueued then.
pub fn info_nce_with_queue_and_scale(
    student: &Tensor,
    teacher: &Tensor,
    queue: &mut Queue<f32>,
    scale: &Tensor,
    loss: InfoNce,
) -> Result<Tensor> {
    let loss = InfoNce {
        temperature: temperature(scale, student)?,
        ..loss
    };
    with_scale(student, teacher, Some(queue), scale, loss.into())
}

fn with_scale(
    student: &Tensor,
    teacher: &Tensor,
    queue: Option<&mut Queue<f32>>,
    scale: &Tensor,
    loss: Loss,
) -> Result<Tensor> {
    let inputs = Inputs::new(student, teacher, &loss.spec())?;
    let problem = |shapes: Shapes| Problem::new(loss, shapes)?.with_scale_gradient();
    let (value, terms) = match queue {
        None => inputs.fused(student, &problem),
        Some(queue) => inputs.fused_with_queue(student, queue, &problem),
    }?;
    learned(&value, scale, &terms, "scale_gradient")
}

/// τ of a scale.
pub(crate) fn temperature(scale: &Tensor, tower: &Tensor) -> Result<f64> {
    let argument = "scale";
    let got = number(argument, scale, tower)?;
    if got.is_finite() && got > 0.0 {
        return Ok(1.0 / got);
    }
    Err(Error::Relata(relata::Error::Parameter {
        argument,
        expected: "a finite number above 0",
        got,
    }))
}

/// The number in a tensor of one, copied to the host.
pub(crate) fn number(argument: &'static str, tensor: &Tensor, tower: &Tensor) -> Result<f64> {
    let is_float = matches!(
        tensor.kind(),
        Kind::Double | Kind::Float | Kind::Half | Kind::BFloat16
    );
    if !is_float || tensor.device() != tower.device() {
        return Err(Error::Unsupported {
            argument,
            expected: "f64, f32, f16 or bf16 on the device of the rows",
            got: format!("{:?} on {:?}", tensor.kind(), tensor.device()),
        });
    }
    if tensor.numel() != 1 {
        return Err(Error::Relata(relata::Error::Length {
            argument,
            expected: 1,
            got: tensor.numel(),
        }));
    }
    let tensor = tensor.f_detach()?.f_to_kind(Kind::Double)?;
    Ok(tensor.f_double_value(&vec![0; tensor.dim()])?)
}

/// `value` as a function of `parameter` too. Its derivative is the term of this name, which stays on
/// the device.
pub(crate) fn learned(
    value: &Tensor,
    parameter: &Tensor,
    terms: &Terms,
    name: &'static str,
) -> Result<Tensor> {
    let Some(at) = terms.names.iter().position(|&known| known == name) else {
        return Err(Error::Unsupported {
            argument: name,
            expected: "a loss with this term",
            got: format!("{:?}", terms.names),
        });
    };
    let parameter = parameter.f_to_kind(value.kind())?;
    let zero = parameter.f_sub(&parameter.f_detach()?)?;
    let zero = zero.f_sum(value.kind())?;
    let derivative = terms.values.f_select(0, at as i64)?;
    Ok(value.f_add(&zero.f_mul(&derivative)?)?)
}
