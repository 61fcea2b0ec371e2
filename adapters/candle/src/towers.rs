//! Losses of two trained towers and of labels. The student's rows are both towers, one after the
//! other: candle's `cat` joins them, and its backward pass divides the gradient.

use candle_core::{DType, Device, Error, Result, Tensor};
use relata::{Clip, Loss, SigLip, SupCon};

use crate::error::OrCandle;
use crate::inputs::{Inputs, same_device, unsupported};
use crate::node::{Parameters, fused_inputs};
use crate::scale::{learn, number, temperature};

/// CLIP of two towers `[n, D]`, hard and soft: see [`Clip`]. The gradient reaches both. The teacher's
/// towers, images and texts, are `[n, D_t]`. Without them the soft term is left out.
///
/// ```
/// use candle_core::{Device, Tensor, Var};
/// use relata_candle::{Clip, clip};
/// # fn main() -> candle_core::Result<()> {
/// let [images, texts] = [(); 2].map(|()| Var::randn(0f32, 1., (8, 32), &Device::Cpu));
/// let (images, texts) = (images?, texts?);
/// let teacher = Tensor::randn(0f32, 1., (8, 64), &Device::Cpu)?;
/// let loss = clip(&images, &texts, Some((&teacher, &teacher)), Clip::default())?;
/// let gradients = loss.backward()?;
/// assert!(gradients.get(&images).is_some() && gradients.get(&texts).is_some());
/// # Ok(()) }
/// ```
///
/// # Errors
/// As [`loss`](crate::loss()); towers of different shapes.
pub fn clip(
    images: &Tensor,
    texts: &Tensor,
    teacher: Option<(&Tensor, &Tensor)>,
    loss: Clip,
) -> Result<Tensor> {
    evaluate_clip(images, texts, teacher, None, loss, Parameters::Fixed)
}

/// [`clip`] of pairs with labels `[n]`, u32 or i64: other pairs of a row's label are left out, as false
/// negatives. On CUDA labels are u32, as in [`sup_con`].
///
/// ```
/// use candle_core::{Device, Tensor, Var};
/// use relata_candle::{Clip, clip_with_labels};
/// # fn main() -> candle_core::Result<()> {
/// let images = Var::randn(0f32, 1., (4, 32), &Device::Cpu)?;
/// let texts = Var::randn(0f32, 1., (4, 32), &Device::Cpu)?;
/// let captions = Tensor::new(&[0u32, 1, 0, 2], &Device::Cpu)?; // the first and the third are one
/// let loss = clip_with_labels(&images, &texts, &captions, None, Clip::default())?;
/// assert!(loss.backward()?.get(&images).is_some());
/// # Ok(()) }
/// ```
///
/// # Errors
/// As [`clip`]; labels that are not one for each pair, or below 0.
pub fn clip_with_labels(
    images: &Tensor,
    texts: &Tensor,
    labels: &Tensor,
    teacher: Option<(&Tensor, &Tensor)>,
    loss: Clip,
) -> Result<Tensor> {
    evaluate_clip(
        images,
        texts,
        teacher,
        Some(labels),
        loss,
        Parameters::Fixed,
    )
}

/// [`clip`] with a learned `scale`, 1/τ: a tensor of one number, which gets a gradient too. It takes
/// the place of `loss.temperature`. open_clip learns the logarithm of it, so there `scale` is
/// `logit_scale.exp()`.
///
/// The scale is read to the host. On CUDA this waits for the stream, once a step. The evaluation
/// keeps no workspace, because the next step has another scale.
///
/// ```
/// use candle_core::{Device, Tensor, Var};
/// use relata_candle::{Clip, clip_with_scale};
/// # fn main() -> candle_core::Result<()> {
/// let images = Var::randn(0f32, 1., (8, 32), &Device::Cpu)?;
/// let texts = Var::randn(0f32, 1., (8, 32), &Device::Cpu)?;
/// let logit_scale = Var::new((1f32 / 0.07).ln(), &Device::Cpu)?;
/// let scale = logit_scale.exp()?;
/// let loss = clip_with_scale(&images, &texts, None, &scale, Clip::default())?;
/// assert!(loss.backward()?.get(&logit_scale).is_some());
/// # Ok(()) }
/// ```
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
    let temperature = temperature(scale, images.device(), Loss::from(loss).name())?;
    let loss = Clip {
        temperature,
        ..loss
    };
    let value = evaluate_clip(images, texts, teacher, None, loss, Parameters::Learned)?;
    learn(&value, scale, "scale_gradient", loss)
}

fn evaluate_clip(
    images: &Tensor,
    texts: &Tensor,
    teacher: Option<(&Tensor, &Tensor)>,
    labels: Option<&Tensor>,
    loss: Clip,
    parameters: Parameters,
) -> Result<Tensor> {
    let loss = Loss::from(loss);
    let spec = loss.spec();
    let student = stacked([("images", images), ("texts", texts)], spec.name)?;
    let labels = match labels {
        None => None,
        Some(labels) => {
            same_device(images.device(), labels.device(), spec.name)?;
            let labels = labels_of(labels, images.dim(0)?, spec.name)?;
            // Of both towers' rows.
            Some(Tensor::cat(&[&labels, &labels], 0)?)
        }
    };
    let mut inputs = match teacher {
        None => Inputs::of_student(&student, None, &spec),
        Some((of_images, of_texts)) => {
            let towers = [("teacher images", of_images), ("teacher texts", of_texts)];
            let teacher = stacked(towers, spec.name)?;
            let [rows, of_teacher] = [images.dim(0)?, of_images.dim(0)?];
            same("teacher images rows", rows, of_teacher, spec.name)?;
            Inputs::new(&student, &teacher, &spec)
        }
    }?;
    inputs.labels = labels;
    Ok(fused_inputs(&inputs, None, None, loss, parameters)?.0)
}

/// SigLIP of two towers `[n, D]`: see [`SigLip`]. The gradient reaches both.
///
/// # Errors
/// As [`clip`].
pub fn siglip(images: &Tensor, texts: &Tensor, loss: SigLip) -> Result<Tensor> {
    evaluate_siglip(images, texts, loss, Parameters::Fixed)
}

/// [`siglip`] with a learned `scale`, a, and a learned `bias`, b: tensors of one number, which get
/// gradients too. The authors learn the logarithm of a. What [`clip_with_scale`] says of the host and
/// of CUDA holds here.
///
/// # Errors
/// As [`clip_with_scale`]; a bias that is no single finite number.
pub fn siglip_with_scale(
    images: &Tensor,
    texts: &Tensor,
    scale: &Tensor,
    bias: &Tensor,
) -> Result<Tensor> {
    let op = Loss::from(SigLip::default()).name();
    let loss = SigLip {
        scale: number("scale", scale, images.device(), op)?,
        bias: number("bias", bias, images.device(), op)?,
    };
    let value = evaluate_siglip(images, texts, loss, Parameters::Learned)?;
    let value = learn(&value, scale, "scale_gradient", loss)?;
    learn(&value, bias, "bias_gradient", loss)
}

fn evaluate_siglip(
    images: &Tensor,
    texts: &Tensor,
    loss: SigLip,
    parameters: Parameters,
) -> Result<Tensor> {
    let loss = Loss::from(loss);
    let spec = loss.spec();
    let student = stacked([("images", images), ("texts", texts)], spec.name)?;
    let inputs = Inputs::of_student(&student, None, &spec)?;
    Ok(fused_inputs(&inputs, None, None, loss, parameters)?.0)
}

/// Supervised contrastive learning of rows `[N, D]` with labels `[N]`, u32 or i64: see [`SupCon`].
/// NT-Xent is this with a label for each sample, which its views share.
///
/// On CUDA labels are u32, and lie on the same GPU. To find out whether labels of i64 are in the range
/// of u32, the host would have to wait.
///
/// ```
/// use candle_core::{Device, Tensor, Var};
/// use relata_candle::{SupCon, sup_con};
/// # fn main() -> candle_core::Result<()> {
/// let rows = Var::randn(0f32, 1., (8, 32), &Device::Cpu)?;
/// let views = Tensor::new(&[0u32, 1, 2, 3, 0, 1, 2, 3], &Device::Cpu)?;
/// let loss = sup_con(&rows, &views, SupCon { temperature: 0.5 })?; // NT-Xent
/// assert!(loss.backward()?.get(&rows).is_some());
/// # Ok(()) }
/// ```
///
/// # Errors
/// As [`loss`](crate::loss()); labels that are not one for each row, or below 0.
pub fn sup_con(rows: &Tensor, labels: &Tensor, loss: SupCon) -> Result<Tensor> {
    evaluate_sup_con(rows, labels, loss, Parameters::Fixed)
}

/// [`sup_con`] with a learned `scale`, 1/τ, as in [`clip_with_scale`].
///
/// # Errors
/// As [`sup_con`] and [`clip_with_scale`].
pub fn sup_con_with_scale(rows: &Tensor, labels: &Tensor, scale: &Tensor) -> Result<Tensor> {
    let op = Loss::from(SupCon::default()).name();
    let temperature = temperature(scale, rows.device(), op)?;
    let loss = SupCon { temperature };
    let value = evaluate_sup_con(rows, labels, loss, Parameters::Learned)?;
    learn(&value, scale, "scale_gradient", loss)
}

fn evaluate_sup_con(
    rows: &Tensor,
    labels: &Tensor,
    loss: SupCon,
    parameters: Parameters,
) -> Result<Tensor> {
    let loss = Loss::from(loss);
    let spec = loss.spec();
    let (count, _) = matrix("rows", rows, spec.name)?;
    same_device(rows.device(), labels.device(), spec.name)?;
    let labels = labels_of(labels, count, spec.name)?;
    let inputs = Inputs::of_student(rows, Some(labels), &spec)?;
    Ok(fused_inputs(&inputs, None, None, loss, parameters)?.0)
}

/// Two towers of one shape as the rows of one batch.
fn stacked(towers: [(&'static str, &Tensor); 2], op: &'static str) -> Result<Tensor> {
    let [(first_name, first), (second_name, second)] = towers;
    let expected = matrix(first_name, first, op)?;
    let got = matrix(second_name, second, op)?;
    same_device(first.device(), second.device(), op)?;
    let [rows, width] = match second_name {
        "texts" => ["texts rows", "texts_dim"],
        _ => ["teacher texts rows", "teacher texts_dim"],
    };
    same(rows, expected.0, got.0, op)?;
    same(width, expected.1, got.1, op)?;
    if first.dtype() != second.dtype() {
        let (lhs, rhs) = (first.dtype(), second.dtype());
        let error = Error::DTypeMismatchBinaryOp { lhs, rhs, op }.bt();
        return Err(error.context(format!("{op}: {second_name}")));
    }
    Tensor::cat(&[first, second], 0)
}

fn matrix(argument: &str, tensor: &Tensor, op: &str) -> Result<(usize, usize)> {
    let shape = tensor.dims2();
    shape.map_err(|error| error.context(format!("{op}: {argument}")))
}

fn same(argument: &'static str, expected: usize, got: usize, op: &'static str) -> Result<()> {
    if expected == got {
        return Ok(());
    }
    Err(relata::Error::Dimension {
        argument,
        expected,
        got,
    })
    .or_candle(op)
}

/// Labels as u32, on their device.
fn labels_of(labels: &Tensor, expected: usize, op: &'static str) -> Result<Tensor> {
    let argument = "labels";
    let of_labels = |error: Error| error.context(format!("{op}: {argument}"));
    let got = labels.dims1().map_err(of_labels)?;
    if got != expected {
        return Err(relata::Error::Length {
            argument,
            expected,
            got,
        })
        .or_candle(op);
    }
    match labels.dtype() {
        DType::U32 => labels.contiguous(),
        DType::I64 if labels.device().is_cpu() => {
            let label = |label: i64| {
                u32::try_from(label).map_err(|_| relata::Error::Parameter {
                    argument,
                    expected: "labels from 0 to 2^32 - 1",
                    got: label as f64,
                })
            };
            let labels = labels.to_vec1::<i64>()?.into_iter().map(label);
            let labels: relata::Result<Vec<u32>> = labels.collect();
            Tensor::from_vec(labels.or_candle(op)?, expected, &Device::Cpu)
        }
        DType::I64 => {
            let why = "expected u32 on a GPU, where the host does not see their range, got i64";
            Err(Error::msg(format!("{op}: {argument}: {why}")).bt())
        }
        dtype => Err(of_labels(unsupported(dtype, op))),
    }
}
