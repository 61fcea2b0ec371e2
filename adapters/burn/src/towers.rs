//! Losses of two trained towers and of labels. The student's rows are both towers, one after the
//! other: burn's `cat` joins them, and its backward pass divides the gradient.

use burn_tensor::{Int, Tensor};
use relata::{Clip, Loss, Problem, SigLip, SupCon, Terms};

use crate::scale::{learned, number, temperature};
use crate::{Error, Inputs, Result, same_device};

/// CLIP of two towers `[n, D]`, hard and soft: see [`Clip`]. The gradient reaches both. The teacher's
/// towers, images and texts, are `[n, D_t]`. Without them the soft term is left out.
///
/// ```
/// # use burn_tensor::{Device, Distribution, Tensor};
/// # fn main() -> Result<(), relata_burn::Error> {
/// # let device = Device::flex().autodiff();
/// # let random = || Tensor::<2>::random([8, 32], Distribution::Default, &device);
/// let (images, texts) = (random().require_grad(), random().require_grad());
/// let teacher = (&random(), &random());
/// let loss = relata_burn::clip(&images, &texts, Some(teacher), relata::Clip::default())?;
/// let gradients = loss.backward();
/// assert!(images.grad(&gradients).is_some() && texts.grad(&gradients).is_some());
/// # Ok(()) }
/// ```
///
/// # Errors
/// [`Error`], naming what does not fit.
pub fn clip(
    images: &Tensor<2>,
    texts: &Tensor<2>,
    teacher: Option<(&Tensor<2>, &Tensor<2>)>,
    loss: Clip,
) -> Result<Tensor<1>> {
    Ok(evaluate_clip(images, texts, teacher, None, loss)?.0)
}

/// [`clip`] of pairs with labels `[n]`: other pairs of a row's label are left out, as false negatives.
///
/// # Errors
/// As [`clip`]; labels that are not one for each pair, or not from 0 to 2³² − 1.
pub fn clip_with_labels(
    images: &Tensor<2>,
    texts: &Tensor<2>,
    labels: &Tensor<1, Int>,
    teacher: Option<(&Tensor<2>, &Tensor<2>)>,
    loss: Clip,
) -> Result<Tensor<1>> {
    Ok(evaluate_clip(images, texts, teacher, Some(labels), loss)?.0)
}

/// [`clip`] with a learned `scale`, 1/τ: a tensor of one number, which gets a gradient too. It takes
/// the place of `loss.temperature`. open_clip learns the logarithm of it, so there `scale` is
/// `logit_scale.exp()`. The scale is read to the host, as the towers are.
///
/// # Errors
/// As [`clip`]; a scale that is no single number above 0.
pub fn clip_with_scale(
    images: &Tensor<2>,
    texts: &Tensor<2>,
    teacher: Option<(&Tensor<2>, &Tensor<2>)>,
    scale: &Tensor<1>,
    loss: Clip,
) -> Result<Tensor<1>> {
    let loss = Clip {
        temperature: temperature(scale, images)?,
        ..loss
    };
    let (value, terms) = evaluate_clip(images, texts, teacher, None, loss)?;
    Ok(learned(value, scale, &terms, "scale_gradient"))
}

fn evaluate_clip(
    images: &Tensor<2>,
    texts: &Tensor<2>,
    teacher: Option<(&Tensor<2>, &Tensor<2>)>,
    labels: Option<&Tensor<1, Int>>,
    loss: Clip,
) -> Result<(Tensor<1>, Terms)> {
    let loss = Loss::from(loss);
    let student = stacked([("images", images), ("texts", texts)])?;
    let teacher = match teacher {
        None => None,
        Some((of_images, of_texts)) => {
            let rows = [images.dims()[0], of_images.dims()[0]];
            same("teacher images rows", rows)?;
            let towers = [("teacher images", of_images), ("teacher texts", of_texts)];
            Some(stacked(towers)?)
        }
    };
    let labels = labels.map(|labels| labels_of(labels, images.dims()[0]));
    let inputs = Inputs {
        // Of both towers' rows.
        labels: labels.transpose()?.map(|labels| labels.repeat(2)),
        ..Inputs::read(&student, teacher.as_ref(), &loss)?
    };
    inputs.fused(&student, &|shapes| Problem::new(loss, shapes))
}

/// SigLIP of two towers `[n, D]`: see [`SigLip`]. The gradient reaches both.
///
/// # Errors
/// As [`clip`].
pub fn siglip(images: &Tensor<2>, texts: &Tensor<2>, loss: SigLip) -> Result<Tensor<1>> {
    Ok(evaluate_siglip(images, texts, loss)?.0)
}

/// [`siglip`] with a learned `scale`, a, and a learned `bias`, b: tensors of one number, which get
/// gradients too. The authors learn the logarithm of a.
///
/// # Errors
/// As [`clip_with_scale`]; a bias that is no single finite number.
pub fn siglip_with_scale(
    images: &Tensor<2>,
    texts: &Tensor<2>,
    scale: &Tensor<1>,
    bias: &Tensor<1>,
) -> Result<Tensor<1>> {
    let loss = SigLip {
        scale: number("scale", scale, images)?,
        bias: number("bias", bias, images)?,
    };
    let (value, terms) = evaluate_siglip(images, texts, loss)?;
    let value = learned(value, scale, &terms, "scale_gradient");
    Ok(learned(value, bias, &terms, "bias_gradient"))
}

fn evaluate_siglip(
    images: &Tensor<2>,
    texts: &Tensor<2>,
    loss: SigLip,
) -> Result<(Tensor<1>, Terms)> {
    let loss = Loss::from(loss);
    let student = stacked([("images", images), ("texts", texts)])?;
    let inputs = Inputs::read(&student, None, &loss)?;
    inputs.fused(&student, &|shapes| Problem::new(loss, shapes))
}

/// Supervised contrastive learning of rows `[N, D]` with labels `[N]`: see [`SupCon`]. NT-Xent is this
/// with a label for each sample, which its views share.
///
/// # Errors
/// As [`clip`]; labels that are not one for each row, or not from 0 to 2³² − 1.
pub fn sup_con(rows: &Tensor<2>, labels: &Tensor<1, Int>, loss: SupCon) -> Result<Tensor<1>> {
    Ok(evaluate_sup_con(rows, labels, loss)?.0)
}

/// [`sup_con`] with a learned `scale`, 1/τ, as in [`clip_with_scale`].
///
/// # Errors
/// As [`sup_con`] and [`clip_with_scale`].
pub fn sup_con_with_scale(
    rows: &Tensor<2>,
    labels: &Tensor<1, Int>,
    scale: &Tensor<1>,
) -> Result<Tensor<1>> {
    let temperature = temperature(scale, rows)?;
    let (value, terms) = evaluate_sup_con(rows, labels, SupCon { temperature })?;
    Ok(learned(value, scale, &terms, "scale_gradient"))
}

fn evaluate_sup_con(
    rows: &Tensor<2>,
    labels: &Tensor<1, Int>,
    loss: SupCon,
) -> Result<(Tensor<1>, Terms)> {
    let labels = labels_of(labels, rows.dims()[0])?;
    let loss = Loss::from(loss);
    let inputs = Inputs {
        labels: Some(labels),
        ..Inputs::read(rows, None, &loss)?
    };
    inputs.fused(rows, &|shapes| Problem::new(loss, shapes))
}

/// Labels of `expected` rows.
fn labels_of(labels: &Tensor<1, Int>, expected: usize) -> Result<Vec<u32>> {
    let argument = "labels";
    let got = labels.dims()[0];
    if expected != got {
        return Err(Error::Relata(relata::Error::Length {
            argument,
            expected,
            got,
        }));
    }
    let data = labels.try_to_data().map_err(|why| Error::Unreadable {
        argument,
        why: format!("{why:?}"),
    })?;
    let label = |label: i64| {
        u32::try_from(label).map_err(|_| relata::Error::Parameter {
            argument,
            expected: "labels from 0 to 2^32 - 1",
            got: label as f64,
        })
    };
    let labels: relata::Result<Vec<u32>> = data.iter::<i64>().map(label).collect();
    Ok(labels?)
}

/// Two towers of one shape as the rows of one batch.
fn stacked(towers: [(&'static str, &Tensor<2>); 2]) -> Result<Tensor<2>> {
    let [(_, first), (argument, second)] = towers;
    if first.dims() != second.dims() {
        return Err(Error::Shape {
            argument,
            expected: format!("the other tower's shape, {:?}", first.dims()),
            got: second.dims().to_vec(),
        });
    }
    if first.dtype() != second.dtype() {
        return Err(Error::DType {
            argument,
            expected: format!("the other tower's, {:?}", first.dtype()),
            got: second.dtype(),
        });
    }
    same_device(argument, first, second)?;
    Ok(Tensor::cat(vec![first.clone(), second.clone()], 0))
}

fn same(argument: &'static str, [expected, got]: [usize; 2]) -> Result<()> {
    if expected == got {
        return Ok(());
    }
    Err(Error::Relata(relata::Error::Dimension {
        argument,
        expected,
        got,
    }))
}
