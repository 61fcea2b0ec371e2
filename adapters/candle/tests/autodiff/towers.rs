//! Losses of two trained towers and of labels, against candle's autodiff of the official code's
//! formulas: the gradients of both towers, of the scale and of the bias.

mod refusals;

use candle_core::{D, DType, Device, Result, Tensor, Var};
use relata_candle::{
    Clip, SigLip, SupCon, clip, clip_with_labels, clip_with_scale, loss, siglip, siglip_with_scale,
    sup_con, sup_con_with_scale,
};

use crate::cases::numbers;
use crate::formulas::{log_softmax, unit};
use crate::{F32, assert_close, devices, gradients};

const SCALE: f64 = 7.5;
const BIAS: f64 = -2.5;

/// What the losses are functions of.
struct Batch {
    images: Tensor,
    texts: Tensor,
    /// Of the teacher: images, then texts.
    teacher: [Tensor; 2],
    /// Of both towers' rows.
    labels: Tensor,
    /// Of the pairs.
    pair_labels: Tensor,
    scale: Tensor,
    bias: Tensor,
}

impl Batch {
    fn rows(&self) -> Result<Tensor> {
        Tensor::cat(&[&self.images, &self.texts], 0)
    }

    fn teacher(&self) -> Option<(&Tensor, &Tensor)> {
        let [images, texts] = &self.teacher;
        Some((images, texts))
    }
}

type Function = Box<dyn Fn(&Batch) -> Result<Tensor>>;

struct Case {
    name: &'static str,
    /// How many of scale and bias get a gradient.
    learned: usize,
    fused: Function,
    formula: Function,
}

fn case(
    name: &'static str,
    learned: usize,
    fused: impl Fn(&Batch) -> Result<Tensor> + 'static,
    formula: impl Fn(&Batch) -> Result<Tensor> + 'static,
) -> Case {
    let (fused, formula) = (Box::new(fused), Box::new(formula));
    Case {
        name,
        learned,
        fused,
        formula,
    }
}

fn cases() -> Vec<Case> {
    let plain = Clip {
        temperature: 0.2,
        ..Clip::default()
    };
    let distil = Clip {
        teacher_temperature: 0.3,
        hard_weight: 0.25,
        soft_weight: 0.75,
        ..plain
    };
    let soft = Clip {
        hard_weight: 0.,
        ..distil
    };
    let (fixed, sup) = (
        SigLip {
            scale: 3.,
            bias: -1.,
        },
        SupCon { temperature: 0.2 },
    );
    let number = |batch: &Batch, number: f64| Tensor::new(number, batch.images.device());
    vec![
        case(
            "clip",
            0,
            move |it| clip(&it.images, &it.texts, None, plain),
            move |it| clip_formula(it, &number(it, 1. / 0.2)?, [1., 0.], 1.),
        ),
        case(
            "clip, teacher",
            0,
            move |it| clip(&it.images, &it.texts, it.teacher(), distil),
            move |it| clip_formula(it, &number(it, 1. / 0.2)?, [0.25, 0.75], 0.3),
        ),
        case(
            "clip, soft alone",
            0,
            move |it| clip(&it.images, &it.texts, it.teacher(), soft),
            move |it| clip_formula(it, &number(it, 1. / 0.2)?, [0., 0.75], 0.3),
        ),
        case(
            "clip, teacher, labels",
            0,
            move |it| {
                clip_with_labels(&it.images, &it.texts, &it.pair_labels, it.teacher(), distil)
            },
            move |it| {
                let (scale, mask) = (number(it, 1. / 0.2)?, mask_of(&it.pair_labels)?);
                masked_clip_formula(it, &scale, [0.25, 0.75], 0.3, &mask)
            },
        ),
        case(
            "clip, learned",
            1,
            move |it| clip_with_scale(&it.images, &it.texts, None, &it.scale, plain),
            move |it| clip_formula(it, &it.scale, [1., 0.], 1.),
        ),
        case(
            "clip, teacher, learned",
            1,
            move |it| clip_with_scale(&it.images, &it.texts, it.teacher(), &it.scale, distil),
            move |it| clip_formula(it, &it.scale, [0.25, 0.75], 0.3),
        ),
        case(
            "siglip",
            0,
            move |it| siglip(&it.images, &it.texts, fixed),
            move |it| siglip_formula(it, &number(it, 3.)?, &number(it, -1.)?),
        ),
        case(
            "siglip, learned",
            2,
            |it| siglip_with_scale(&it.images, &it.texts, &it.scale, &it.bias),
            |it| siglip_formula(it, &it.scale, &it.bias),
        ),
        case(
            "sup-con",
            0,
            move |it| sup_con(&it.rows()?, &it.labels, sup),
            move |it| sup_con_formula(it, &number(it, 1. / 0.2)?),
        ),
        case(
            "sup-con, learned",
            1,
            |it| sup_con_with_scale(&it.rows()?, &it.labels, &it.scale),
            |it| sup_con_formula(it, &it.scale),
        ),
    ]
}

/// open_clip's `ClipLoss` and `DistillClipLoss`: the products, the mean of both directions'
/// cross-entropies with the partner, and the same with the teacher's softmax.
fn clip_formula(it: &Batch, scale: &Tensor, weights: [f64; 2], of_teacher: f64) -> Result<Tensor> {
    let no_mask = Tensor::new(0f64, &Device::Cpu)?;
    masked_clip_formula(it, scale, weights, of_teacher, &no_mask)
}

/// `mask` is added to the logits.
fn masked_clip_formula(
    it: &Batch,
    scale: &Tensor,
    weights: [f64; 2],
    of_teacher: f64,
    mask: &Tensor,
) -> Result<Tensor> {
    let products = |a: &Tensor, b: &Tensor| unit(a)?.matmul(&unit(b)?.t()?);
    let student = products(&it.images, &it.texts)?.broadcast_mul(&scale.reshape(())?)?;
    let teacher = (products(&it.teacher[0], &it.teacher[1])? / of_teacher)?;
    let partner = eye(&student)?;
    let [student, teacher] = [student.broadcast_add(mask)?, teacher.broadcast_add(mask)?];
    let n = student.dim(0)? as f64;
    let mut sum = student.zeros_like()?.sum_all()?;
    for (student, teacher) in [
        (student.clone(), teacher.clone()),
        (student.t()?, teacher.t()?),
    ] {
        let log_q = log_softmax(&student)?;
        let hard = (&log_q * &partner)?.sum_all()?.neg()?;
        let soft = (log_softmax(&teacher)?.exp()? * log_q)?.sum_all()?.neg()?;
        let [hard, soft] = [(hard * weights[0])?, (soft * weights[1])?];
        sum = ((sum + hard)? + soft)?;
    }
    sum / (2. * n)
}

/// Far below 0 at pairs of one label that are no partners.
fn mask_of(labels: &Tensor) -> Result<Tensor> {
    let labels = labels.to_dtype(DType::F64)?;
    let same = labels.unsqueeze(0)?.broadcast_eq(&labels.unsqueeze(1)?)?;
    let same = same.to_dtype(DType::F64)?;
    (&same - eye(&same)?)? * -1e9
}

/// big_vision's `sigmoid_loss`.
fn siglip_formula(it: &Batch, scale: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let products = unit(&it.images)?.matmul(&unit(&it.texts)?.t()?)?;
    let logits = products.broadcast_mul(&scale.reshape(())?)?;
    let logits = logits.broadcast_add(&bias.reshape(())?)?;
    let signs = ((eye(&logits)? * 2.)? - 1.)?;
    // −log σ(u) = log(1 + exp(−u))
    let costs = ((logits * signs)?.neg()?.exp()? + 1.)?.log()?;
    costs.sum_all()? / it.images.dim(0)? as f64
}

/// `SupConLoss` of the paper's authors, without the rows that have no positive.
fn sup_con_formula(it: &Batch, scale: &Tensor) -> Result<Tensor> {
    let rows = unit(&it.rows()?)?;
    let logits = rows
        .matmul(&rows.t()?)?
        .broadcast_mul(&scale.reshape(())?)?;
    let others = (1. - eye(&logits)?)?;
    let sums = (logits.exp()? * &others)?.sum_keepdim(1)?;
    let log_p = logits.broadcast_sub(&sums.log()?)?;
    let labels = it.labels.to_dtype(DType::F64)?;
    let same = labels.unsqueeze(0)?.broadcast_eq(&labels.unsqueeze(1)?)?;
    let positives = (same.to_dtype(DType::F64)? * others)?;
    let counts = positives.sum(D::Minus1)?;
    let anchors = counts.gt(0f64)?.to_dtype(DType::F64)?;
    let means = ((log_p * positives)?.sum(1)? / counts.maximum(1f64)?)?;
    (means.neg()?.sum_all()? / anchors.sum_all()?)?.reshape(())
}

fn eye(square: &Tensor) -> Result<Tensor> {
    Tensor::eye(square.dim(0)?, square.dtype(), square.device())
}

/// The tensors of towers `[n, D]` that are views of the leaves, and the leaves.
fn leaves(n: usize, dim: usize, are_views: bool, held: DType) -> Result<[Tensor; 4]> {
    let shapes = if are_views {
        [(dim, n), (n + 3, dim + 4)]
    } else {
        [(n, dim); 2]
    };
    let held = |x: Tensor| x.to_dtype(held)?.to_dtype(DType::F64);
    Ok([
        held(numbers(shapes[0], 1)?)?,
        held(numbers(shapes[1], 2)?)?,
        Tensor::new(SCALE, &Device::Cpu)?,
        Tensor::new(&[BIAS], &Device::Cpu)?,
    ])
}

/// The value of a loss in a graph, and the gradients of images, texts and what is learned.
fn evaluate(
    function: &Function,
    learned: usize,
    [n, dim, teacher_dim]: [usize; 3],
    are_views: bool,
    [held, dtype]: [DType; 2],
    device: &Device,
) -> Result<(Tensor, Vec<Tensor>)> {
    let to = |x: &Tensor| x.to_dtype(dtype)?.to_device(device);
    let variables = leaves(n, dim, are_views, held)?;
    let variables = variables.iter().map(|x| Var::from_tensor(&to(x)?));
    let variables: Vec<Var> = variables.collect::<Result<_>>()?;
    let [images, texts, scale, bias] = &variables[..] else {
        unreachable!()
    };
    let (images, texts) = if are_views {
        (images.t()?, texts.narrow(0, 2, n)?.narrow(1, 3, dim)?)
    } else {
        (images.as_tensor().clone(), texts.as_tensor().clone())
    };
    // The last row is alone.
    let labels: Vec<u32> = (0..2 * n as u32).map(|i| i % n as u32 / 2).collect();
    let labels = [&labels[..2 * n - 1], &[u32::MAX]].concat();
    // The first pair is alone, so that two pairs are a comparison.
    let pair_labels: Vec<u32> = (0..n as u32).map(|i| i.div_ceil(2)).collect();
    let teacher = |seed| to(&numbers((n, teacher_dim), seed)?.to_dtype(held)?);
    let batch = Batch {
        images,
        texts,
        teacher: [teacher(3)?, teacher(4)?],
        labels: Tensor::new(labels, device)?,
        pair_labels: Tensor::new(pair_labels, device)?,
        scale: scale.as_tensor().clone(),
        bias: bias.as_tensor().clone(),
    };
    let value = function(&batch)?;
    // An upstream factor that depends on the loss, and the loss twice.
    let graph = ((&value * -2.5)? - value.sqr()?)?;
    let of: Vec<&Var> = variables.iter().take(2 + learned).collect();
    let others = graph.backward()?;
    for constant in &variables[2 + learned..] {
        assert!(others.get(constant).is_none());
    }
    Ok((value, gradients(&graph, &of)?))
}

#[track_caller]
fn check(shape: [usize; 3], are_views: bool, dtype: DType, tolerance: f64) -> Result<()> {
    for case in cases() {
        let label = format!("{}, {shape:?}, views {are_views}, {dtype:?}", case.name);
        let of = |function: &Function, dtypes, device: &Device| {
            evaluate(function, case.learned, shape, are_views, dtypes, device)
        };
        let (want, want_gradients) = of(&case.formula, [dtype, DType::F64], &Device::Cpu)?;
        for device in devices::computing(dtype) {
            let (got, got_gradients) = of(&case.fused, [dtype, dtype], &device)?;
            assert_eq!(got.rank(), 0);
            assert_close(&format!("{label}: loss"), &got, &want, tolerance)?;
            let names = ["images", "texts", "scale", "bias"];
            for ((name, got), want) in names.iter().zip(&got_gradients).zip(&want_gradients) {
                assert_close(&format!("{label}: {name}"), got, want, tolerance)?;
            }
        }
    }
    Ok(())
}

#[test]
fn gradients_of_both_towers_and_of_what_is_learned() -> Result<()> {
    for shape in [[2, 3, 7], [7, 5, 5], [13, 33, 4], [33, 17, 40]] {
        check(shape, false, DType::F64, 1e-9)?;
        check(shape, false, DType::F32, F32)?;
    }
    Ok(())
}

#[test]
fn views_of_both_towers() -> Result<()> {
    for shape in [[9, 6, 3], [9, 6, 8]] {
        check(shape, true, DType::F64, 1e-9)?;
        check(shape, true, DType::F32, F32)?;
    }
    Ok(())
}

#[test]
fn towers_of_half_types() -> Result<()> {
    for (dtype, tolerance) in [(DType::F16, 1e-3), (DType::BF16, 4e-3)] {
        check([7, 5, 5], false, dtype, tolerance)?;
        check([19, 21, 8], true, dtype, tolerance)?;
    }
    Ok(())
}

/// A tower against itself gets both parts of the gradient; the teacher is a constant; and towers that
/// are frozen leave the scale its gradient.
#[test]
fn what_is_shared_and_what_is_frozen() -> Result<()> {
    let both = Var::from_tensor(&numbers((6, 4), 1)?)?;
    let scale = Var::new(&[[SCALE]], &Device::Cpu)?;
    let teacher = numbers((6, 5), 2)?;
    let batch = |images: &Tensor, teacher: &Tensor| -> Result<Batch> {
        Ok(Batch {
            images: images.clone(),
            texts: images.sin()?,
            teacher: [teacher.clone(), teacher.cos()?],
            labels: Tensor::new(0u32, &Device::Cpu)?,
            pair_labels: Tensor::new(0u32, &Device::Cpu)?,
            scale: scale.as_tensor().clone(),
            bias: scale.as_tensor().clone(),
        })
    };
    let fused = |it: &Batch| {
        clip_with_scale(
            &it.images,
            &it.texts,
            it.teacher(),
            &it.scale,
            Clip::default(),
        )
    };
    let formula = |it: &Batch| clip_formula(it, &it.scale, [1., 1.], 0.07);
    let it = batch(&both, &teacher)?;
    let variables = [&both, &scale];
    let want = gradients(&formula(&it)?, &variables)?;
    for (got, want) in gradients(&fused(&it)?, &variables)?.iter().zip(&want) {
        assert_close("shared", got, want, 1e-9)?;
    }

    let frozen = fused(&batch(&both.detach(), &both)?)?.backward()?;
    assert!(frozen.get(&both).is_none());
    let (got, of_scale) = (frozen.get(&scale).expect("a gradient"), 1);
    let want = &gradients(&formula(&batch(&both, &both.detach())?)?, &variables)?[of_scale];
    assert_close("frozen", got, want, 1e-9)
}

/// A scale that is learned has the bits of a scale that is fixed, and labels of i64 those of u32.
#[test]
fn the_same_loss_by_another_way_has_the_same_bits() -> Result<()> {
    let rows = |seed| Var::from_tensor(&numbers((6, 4), seed)?.to_dtype(DType::F32)?);
    let (a, b) = (rows(1)?, rows(2)?);
    let number = |number: f32| Tensor::new(number, &Device::Cpu);
    let labels = Tensor::new(&[0u32, 1, 0, 2, 1, 2], &Device::Cpu)?;
    let signed = labels.to_dtype(DType::I64)?;
    let temperature = 0.125;
    let (of_clip, of_labels) = (
        Clip {
            temperature,
            ..Clip::default()
        },
        SupCon { temperature },
    );
    let (scale, bias) = (number(8.)?, number(-2.)?);
    let of_pairs = SigLip {
        scale: 8.,
        bias: -2.,
    };
    let both = Some((b.as_tensor(), a.as_tensor()));
    let stacked = Tensor::cat(&[a.as_tensor(), &b], 0)?;
    let crossed = Tensor::cat(&[b.as_tensor(), &a], 0)?;
    for (got, want) in [
        (
            clip_with_scale(&a, &b, both, &scale, of_clip)?,
            clip(&a, &b, both, of_clip)?,
        ),
        (
            loss(&stacked, &crossed, of_clip)?,
            clip(&a, &b, both, of_clip)?,
        ),
        (
            siglip_with_scale(&a, &b, &scale, &bias)?,
            siglip(&a, &b, of_pairs)?,
        ),
        (
            sup_con_with_scale(&a, &labels, &scale)?,
            sup_con(&a, &labels, of_labels)?,
        ),
        (
            sup_con(&a, &signed, of_labels)?,
            sup_con(&a, &labels, of_labels)?,
        ),
        (
            sup_con(&a, &labels.flip(&[0])?.flip(&[0])?, of_labels)?,
            sup_con(&a, &labels, of_labels)?,
        ),
    ] {
        assert_eq!(got.to_scalar::<f32>()?, want.to_scalar::<f32>()?);
        let of = |loss: &Tensor| gradients(loss, &[&a])?[0].flatten_all()?.to_vec1::<f64>();
        assert_eq!(of(&got)?, of(&want)?);
    }
    Ok(())
}
