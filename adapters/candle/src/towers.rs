//! Losses of two trained towers and of labels. The student's rows are both towers, one after the
//! other: candle's `cat` joins them, and its backward pass divides the gradient.

use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, DType, Device, Error, Layout, Result, Shape,
    Tensor,
};
use relata::{Clip, Loss, SigLip, SupCon};

use crate::error::OrCandle;
use crate::inputs::{Inputs, same_device, unsupported};
use crate::node::{Again, fused_inputs};

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
    evaluate_clip(images, texts, teacher, None, loss, Again::Yes)
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
    evaluate_clip(images, texts, teacher, Some(labels), loss, Again::Yes)
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
    let value = evaluate_clip(images, texts, teacher, None, loss, Again::No)?;
    learn(&value, scale, "scale_gradient", loss)
}

fn evaluate_clip(
    images: &Tensor,
    texts: &Tensor,
    teacher: Option<(&Tensor, &Tensor)>,
    labels: Option<&Tensor>,
    loss: Clip,
    again: Again,
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
    Ok(fused_inputs(&inputs, None, None, loss, again)?.0)
}

/// SigLIP of two towers `[n, D]`: see [`SigLip`]. The gradient reaches both.
///
/// # Errors
/// As [`clip`].
pub fn siglip(images: &Tensor, texts: &Tensor, loss: SigLip) -> Result<Tensor> {
    evaluate_siglip(images, texts, loss, Again::Yes)
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
    let value = evaluate_siglip(images, texts, loss, Again::No)?;
    let value = learn(&value, scale, "scale_gradient", loss)?;
    learn(&value, bias, "bias_gradient", loss)
}

fn evaluate_siglip(images: &Tensor, texts: &Tensor, loss: SigLip, again: Again) -> Result<Tensor> {
    let loss = Loss::from(loss);
    let spec = loss.spec();
    let student = stacked([("images", images), ("texts", texts)], spec.name)?;
    let inputs = Inputs::of_student(&student, None, &spec)?;
    Ok(fused_inputs(&inputs, None, None, loss, again)?.0)
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
    evaluate_sup_con(rows, labels, loss, Again::Yes)
}

/// [`sup_con`] with a learned `scale`, 1/τ, as in [`clip_with_scale`].
///
/// # Errors
/// As [`sup_con`] and [`clip_with_scale`].
pub fn sup_con_with_scale(rows: &Tensor, labels: &Tensor, scale: &Tensor) -> Result<Tensor> {
    let op = Loss::from(SupCon::default()).name();
    let temperature = temperature(scale, rows.device(), op)?;
    let loss = SupCon { temperature };
    let value = evaluate_sup_con(rows, labels, loss, Again::No)?;
    learn(&value, scale, "scale_gradient", loss)
}

fn evaluate_sup_con(rows: &Tensor, labels: &Tensor, loss: SupCon, again: Again) -> Result<Tensor> {
    let loss = Loss::from(loss);
    let spec = loss.spec();
    let (count, _) = matrix("rows", rows, spec.name)?;
    same_device(rows.device(), labels.device(), spec.name)?;
    let labels = labels_of(labels, count, spec.name)?;
    let inputs = Inputs::of_student(rows, Some(labels), &spec)?;
    Ok(fused_inputs(&inputs, None, None, loss, again)?.0)
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

/// τ of a scale.
fn temperature(scale: &Tensor, device: &Device, op: &'static str) -> Result<f64> {
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
fn number(
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
fn learn(
    value: &Tensor,
    parameter: &Tensor,
    name: &'static str,
    loss: impl Into<Loss>,
) -> Result<Tensor> {
    let terms = loss.into().spec().terms;
    let Some(at) = terms.iter().position(|&term| term == name) else {
        return Err(Error::msg(format!(
            "relata-candle: expected the term {name}"
        )));
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
