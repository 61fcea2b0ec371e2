//! Scales and biases that are learned: an evaluation has their gradients as terms.

use burn_tensor::Tensor;
use relata::{InfoNce, Loss, Problem, Queue, Rrd, Shapes, Terms};

use crate::{Error, Inputs, Result, same_device};

/// RRD with a learned `scale`, 1/τ_s: a tensor of one number, which gets a gradient too. It takes the
/// place of `loss.student_temperature`. The teacher's temperature stays. The scale is read to the host, as the rows are.
///
/// # Errors
/// As [`loss_with_queue`](crate::loss_with_queue); a scale that is no single number above 0. Nothing has
/// been enqueued then.
pub fn rrd_with_scale(
    student: &Tensor<2>,
    teacher: &Tensor<2>,
    queue: &mut Queue<f32>,
    scale: &Tensor<1>,
    loss: Rrd,
) -> Result<Tensor<1>> {
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
    student: &Tensor<2>,
    teacher: &Tensor<2>,
    scale: &Tensor<1>,
    loss: InfoNce,
) -> Result<Tensor<1>> {
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
    student: &Tensor<2>,
    teacher: &Tensor<2>,
    queue: &mut Queue<f32>,
    scale: &Tensor<1>,
    loss: InfoNce,
) -> Result<Tensor<1>> {
    let loss = InfoNce {
        temperature: temperature(scale, student)?,
        ..loss
    };
    with_scale(student, teacher, Some(queue), scale, loss.into())
}

fn with_scale(
    student: &Tensor<2>,
    teacher: &Tensor<2>,
    queue: Option<&mut Queue<f32>>,
    scale: &Tensor<1>,
    loss: Loss,
) -> Result<Tensor<1>> {
    let inputs = Inputs::read(student, Some(teacher), &loss)?;
    let problem = |shapes: Shapes| Problem::new(loss, shapes)?.with_scale_gradient();
    let (value, terms) = match queue {
        None => inputs.fused(student, &problem),
        Some(queue) => inputs.fused_with_queue(student, queue, &problem),
    }?;
    Ok(learned(value, scale, &terms, "scale_gradient"))
}

/// τ of a scale.
pub(crate) fn temperature(scale: &Tensor<1>, tower: &Tensor<2>) -> Result<f64> {
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

/// The number in a tensor of one.
pub(crate) fn number(argument: &'static str, tensor: &Tensor<1>, tower: &Tensor<2>) -> Result<f64> {
    same_device(argument, tower, tensor)?;
    let data = tensor.try_to_data().map_err(|why| Error::Unreadable {
        argument,
        why: format!("{why:?}"),
    })?;
    let numbers: Vec<f64> = data.iter::<f64>().collect();
    match numbers[..] {
        [number] => Ok(number),
        _ => Err(Error::Relata(relata::Error::Length {
            argument,
            expected: 1,
            got: numbers.len(),
        })),
    }
}

/// `value` as a function of `parameter` too. The term of this name is the derivative.
pub(crate) fn learned(
    value: Tensor<1>,
    parameter: &Tensor<1>,
    terms: &Terms,
    name: &str,
) -> Tensor<1> {
    let parameter = parameter.clone().cast(value.dtype());
    let zero = parameter.clone() - parameter.detach();
    // A loss without the term has no such parameter.
    value + zero * terms.get(name).unwrap_or(0.0)
}
