//! Losses of two trained towers and of labels. The student's rows are both towers, one after the
//! other: libtorch's `cat` joins them, and its backward pass divides the gradient.

use relata::{Clip, Loss, Problem, SigLip, SupCon};
use tch::{Device, Kind, Tensor};

use crate::scale::{learned, number, temperature};
use crate::{Error, Inputs, Result, Terms};

/// CLIP of two towers `[n, D]`, hard and soft: see [`Clip`]. The gradient reaches both. The teacher's
/// towers, images and texts, are `[n, D_t]`. Without them the soft term is left out.
///
/// ```no_run
/// use tch::{Device, Kind, Tensor};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let random = |width| Tensor::randn([64, width], (Kind::Float, Device::Cpu));
/// let (images, texts) = (random(128).set_requires_grad(true), random(128).set_requires_grad(true));
/// let teacher = (&random(512), &random(512));
/// relata_tch::clip(&images, &texts, Some(teacher), relata::Clip::default())?.backward();
/// println!("{:?} {:?}", images.grad(), texts.grad());
/// # Ok(()) }
/// ```
///
/// # Errors
/// [`Error`], naming what does not fit.
pub fn clip(
    images: &Tensor,
    texts: &Tensor,
    teacher: Option<(&Tensor, &Tensor)>,
    loss: Clip,
) -> Result<Tensor> {
    Ok(evaluate_clip(images, texts, teacher, None, loss)?.0)
}

/// [`clip`] of pairs with labels `[n]`, i64 or i32: other pairs of a row's label are left out, as false
/// negatives. On CUDA labels are i32, as in [`sup_con`].
///
/// # Errors
/// As [`clip`]; labels that are not one for each pair, or, on the CPU, not from 0 to 2³² − 1.
pub fn clip_with_labels(
    images: &Tensor,
    texts: &Tensor,
    labels: &Tensor,
    teacher: Option<(&Tensor, &Tensor)>,
    loss: Clip,
) -> Result<Tensor> {
    Ok(evaluate_clip(images, texts, teacher, Some(labels), loss)?.0)
}

/// [`clip`] with a learned `scale`, 1/τ: a tensor of one number, which gets a gradient too. It takes
/// the place of `loss.temperature`. open_clip learns the logarithm of it, so there `scale` is
/// `logit_scale.exp()`.
///
/// The scale is read to the host. On CUDA this waits for the stream, once a step.
///
/// # Errors
/// As [`clip`]; a scale that is no single number above 0.
pub fn clip_with_scale(
    images: &Tensor,
    texts: &Tensor,
    teacher: Option<(&Tensor, &Tensor)>,
    scale: &Tensor,
    loss: Clip,
) -> Result<Tensor> {
    let loss = Clip {
        temperature: temperature(scale, images)?,
        ..loss
    };
    let (value, terms) = evaluate_clip(images, texts, teacher, None, loss)?;
    learned(&value, scale, &terms, "scale_gradient")
}

fn evaluate_clip(
    images: &Tensor,
    texts: &Tensor,
    teacher: Option<(&Tensor, &Tensor)>,
    labels: Option<&Tensor>,
    loss: Clip,
) -> Result<(Tensor, Terms)> {
    let loss = Loss::from(loss);
    let spec = loss.spec();
    let student = stacked([("images", images), ("texts", texts)])?;
    let labels = match labels {
        None => None,
        Some(labels) => {
            let labels = labels_of(labels, images)?;
            // Of both towers' rows.
            Some(Tensor::f_cat(&[&labels, &labels], 0)?)
        }
    };
    let mut inputs = match teacher {
        None => Inputs::of_student(&student, None, &spec)?,
        Some((of_images, of_texts)) => {
            let towers = [("teacher images", of_images), ("teacher texts", of_texts)];
            let teacher = stacked(towers)?;
            if of_images.size()[0] != images.size()[0] {
                return Err(Error::Unsupported {
                    argument: "teacher images",
                    expected: "as many rows as the student's images",
                    got: format!("the shape {:?}", of_images.size()),
                });
            }
            Inputs::new(&student, &teacher, &spec)?
        }
    };
    inputs.labels = labels;
    inputs.fused(&student, &|shapes| Problem::new(loss, shapes))
}

/// SigLIP of two towers `[n, D]`: see [`SigLip`]. The gradient reaches both.
///
/// # Errors
/// As [`clip`].
pub fn siglip(images: &Tensor, texts: &Tensor, loss: SigLip) -> Result<Tensor> {
    Ok(evaluate_siglip(images, texts, loss)?.0)
}

/// [`siglip`] with a learned `scale`, a, and a learned `bias`, b: tensors of one number, which get
/// gradients too. The authors learn the logarithm of a. Both are read to the host, as in
/// [`clip_with_scale`].
///
/// # Errors
/// As [`clip_with_scale`]; a bias that is no single finite number.
pub fn siglip_with_scale(
    images: &Tensor,
    texts: &Tensor,
    scale: &Tensor,
    bias: &Tensor,
) -> Result<Tensor> {
    let loss = SigLip {
        scale: number("scale", scale, images)?,
        bias: number("bias", bias, images)?,
    };
    let (value, terms) = evaluate_siglip(images, texts, loss)?;
    let value = learned(&value, scale, &terms, "scale_gradient")?;
    learned(&value, bias, &terms, "bias_gradient")
}

fn evaluate_siglip(images: &Tensor, texts: &Tensor, loss: SigLip) -> Result<(Tensor, Terms)> {
    let loss = Loss::from(loss);
    let student = stacked([("images", images), ("texts", texts)])?;
    let inputs = Inputs::of_student(&student, None, &loss.spec())?;
    inputs.fused(&student, &|shapes| Problem::new(loss, shapes))
}

/// Supervised contrastive learning of rows `[N, D]` with labels `[N]`, i64 or i32: see [`SupCon`].
/// NT-Xent is this with a label for each sample, which its views share.
///
/// On CUDA labels are i32, on the same GPU, and may be any: to find out their range, the host would
/// have to wait.
///
/// # Errors
/// As [`clip`]; labels that are not one for each row, or, on the CPU, not from 0 to 2³² − 1.
pub fn sup_con(rows: &Tensor, labels: &Tensor, loss: SupCon) -> Result<Tensor> {
    Ok(evaluate_sup_con(rows, labels, loss)?.0)
}

/// [`sup_con`] with a learned `scale`, 1/τ, as in [`clip_with_scale`].
///
/// # Errors
/// As [`sup_con`] and [`clip_with_scale`].
pub fn sup_con_with_scale(rows: &Tensor, labels: &Tensor, scale: &Tensor) -> Result<Tensor> {
    let temperature = temperature(scale, rows)?;
    let (value, terms) = evaluate_sup_con(rows, labels, SupCon { temperature })?;
    learned(&value, scale, &terms, "scale_gradient")
}

fn evaluate_sup_con(rows: &Tensor, labels: &Tensor, loss: SupCon) -> Result<(Tensor, Terms)> {
    let loss = Loss::from(loss);
    let labels = labels_of(labels, rows)?;
    let inputs = Inputs::of_student(rows, Some(labels), &loss.spec())?;
    inputs.fused(rows, &|shapes| Problem::new(loss, shapes))
}

/// Two towers of one shape as the rows of one batch.
fn stacked(towers: [(&'static str, &Tensor); 2]) -> Result<Tensor> {
    let [(first_name, first), (second_name, second)] = towers;
    if first.dim() != 2 {
        return Err(Error::Unsupported {
            argument: first_name,
            expected: "a matrix",
            got: format!("the shape {:?}", first.size()),
        });
    }
    let of = |tower: &Tensor| (tower.size(), tower.kind(), tower.device());
    if of(first) != of(second) {
        return Err(Error::Unsupported {
            argument: second_name,
            expected: "the other tower's shape, kind and device",
            got: format!("{:?}, not {:?}", of(second), of(first)),
        });
    }
    Ok(Tensor::f_cat(&[first, second], 0)?)
}

/// Labels as the bits of u32, on their device.
fn labels_of(labels: &Tensor, rows: &Tensor) -> Result<Tensor> {
    let argument = "labels";
    let unsupported = |expected, got| Error::Unsupported {
        argument,
        expected,
        got,
    };
    if labels.device() != rows.device() {
        let got = format!("{:?}", labels.device());
        return Err(unsupported("the device of the rows", got));
    }
    if rows.dim() == 2 && labels.size() != rows.size()[..1] {
        let got = format!("the shape {:?}", labels.size());
        return Err(unsupported("a vector, a label for each row", got));
    }
    match (labels.kind(), labels.device()) {
        (Kind::Int | Kind::Int64, Device::Cpu) => {
            let label = |label: i64| match u32::try_from(label) {
                Ok(label) => Ok(label.cast_signed()),
                Err(_) => Err(relata::Error::Parameter {
                    argument,
                    expected: "labels from 0 to 2^32 - 1",
                    got: label as f64,
                }),
            };
            let labels = Vec::<i64>::try_from(labels.f_to_kind(Kind::Int64)?)?;
            let labels: relata::Result<Vec<i32>> = labels.into_iter().map(label).collect();
            Ok(Tensor::f_from_slice(&labels?)?)
        }
        (Kind::Int, _) => Ok(labels.f_contiguous()?),
        (kind, _) => Err(unsupported("i32, or i64 on the CPU", format!("{kind:?}"))),
    }
}
