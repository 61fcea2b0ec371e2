//! Losses of two trained towers and of labels, against burn's autodiff of the official code's
//! formulas.

use burn_tensor::activation::{log_sigmoid, log_softmax};
use burn_tensor::{DType, FloatDType, Int, Tensor, TensorData};
use relata::{Clip, SigLip, SupCon};
use relata_burn::{
    Error, clip, clip_with_labels, clip_with_scale, siglip, siglip_with_scale, sup_con,
    sup_con_with_scale,
};

use crate::{assert_close, device, numbers, unit, wide};

// Numbers that an f32 holds: burn's operations with numbers round them, or what they divide by.
const SCALE: f64 = 8.;
const BIAS: f64 = -2.5;
const CLIP: Clip = Clip {
    temperature: 1. / SCALE,
    teacher_temperature: 0.25,
    hard_weight: 0.25,
    soft_weight: 0.75,
    both_ways: true,
    guided: false,
    guide_margin: 0.,
};
const HARD: Clip = Clip {
    hard_weight: 1.,
    ..CLIP
};
const SUP_CON: SupCon = SupCon {
    temperature: 1. / SCALE,
};
const SIGLIP: SigLip = SigLip {
    scale: SCALE,
    bias: BIAS,
};

/// What the losses are functions of.
struct Batch {
    images: Tensor<2>,
    texts: Tensor<2>,
    /// Of the teacher: images, then texts.
    teacher: [Tensor<2>; 2],
    /// Of both towers' rows.
    labels: Tensor<1, Int>,
    /// Of the pairs.
    pair_labels: Tensor<1, Int>,
    scale: Tensor<1>,
    bias: Tensor<1>,
}

impl Batch {
    fn rows(&self) -> Tensor<2> {
        Tensor::cat(vec![self.images.clone(), self.texts.clone()], 0)
    }

    fn teacher(&self) -> Option<(&Tensor<2>, &Tensor<2>)> {
        let [images, texts] = &self.teacher;
        Some((images, texts))
    }
}

fn eye(n: usize) -> Tensor<2> {
    Tensor::<2>::eye(n, &device()).cast(FloatDType::F64)
}

fn number(number: f64, dtype: DType) -> Tensor<1> {
    Tensor::from_data(TensorData::from([number]), (&device(), dtype))
}

fn integers(labels: &[i64]) -> Tensor<1, Int> {
    Tensor::from_data(TensorData::from(labels), (&device(), DType::I64))
}

fn products(a: &Tensor<2>, b: &Tensor<2>) -> Tensor<2> {
    unit(a.clone()).matmul(unit(b.clone()).transpose())
}

/// open_clip's `ClipLoss`, and `DistillClipLoss` with weights.
fn clip_formula(it: &Batch, loss: Clip) -> Tensor<1> {
    let n = it.images.dims()[0];
    masked_clip_formula(it, loss, eye(n) * 0.)
}

/// `mask` is added to the logits.
fn masked_clip_formula(it: &Batch, loss: Clip, mask: Tensor<2>) -> Tensor<1> {
    let n = it.images.dims()[0];
    let student = products(&it.images, &it.texts) * it.scale.clone().unsqueeze_dim(0);
    let teacher = products(&it.teacher[0], &it.teacher[1]) / loss.teacher_temperature;
    let [student, teacher] = [student + mask.clone(), teacher + mask];
    let directions = [
        (student.clone(), teacher.clone()),
        (student.transpose(), teacher.transpose()),
    ];
    let [first, second] = directions.map(|(student, teacher)| {
        let log_q = log_softmax(student, 1);
        let hard = (log_q.clone() * eye(n)).sum() * loss.hard_weight;
        hard + (log_softmax(teacher, 1).exp() * log_q).sum() * loss.soft_weight
    });
    -(first + second) / number(2. * n as f64, DType::F64)
}

/// Far below 0 at pairs of one label that are no partners.
fn mask_of(labels: &Tensor<1, Int>) -> Tensor<2> {
    let n = labels.dims()[0];
    let rows = labels.clone().unsqueeze_dim::<2>(0).repeat_dim(0, n);
    let same = rows.clone().equal(rows.transpose());
    let same = eye(n) * 0. + same.float().cast(FloatDType::F64);
    // An f32 holds it.
    (same - eye(n)) * -1048576.
}

/// big_vision's `sigmoid_loss`.
fn siglip_formula(it: &Batch) -> Tensor<1> {
    let n = it.images.dims()[0];
    let logits = products(&it.images, &it.texts) * it.scale.clone().unsqueeze_dim(0)
        + it.bias.clone().unsqueeze_dim(0);
    let signs = eye(n) * 2. - 1.;
    -log_sigmoid(logits * signs).sum() / number(n as f64, DType::F64)
}

/// `SupConLoss` of the paper's authors, without the rows that have no positive.
fn sup_con_formula(it: &Batch) -> Tensor<1> {
    let rows = it.rows();
    let n = rows.dims()[0];
    let logits = products(&rows, &rows) * it.scale.clone().unsqueeze_dim(0);
    let others = -(eye(n) - 1.);
    let sums = (logits.clone().exp() * others.clone()).sum_dim(1);
    let log_p = logits - sums.log();
    let labels = it.labels.clone();
    let same = labels.clone().unsqueeze_dim::<2>(0).repeat_dim(0, n);
    let same = same.equal(labels.unsqueeze_dim::<2>(1).repeat_dim(1, n));
    let positives = same.float().cast(FloatDType::F64) * others;
    let counts = positives.clone().sum_dim(1);
    let anchors = wide(counts.clone().into_data());
    let anchors = anchors.iter().filter(|&&count| count > 0.).count();
    let means = (log_p * positives).sum_dim(1) / counts.clamp_min(1.);
    -means.sum() / number(anchors as f64, DType::F64)
}

type Fused = fn(&Batch) -> Result<Tensor<1>, Error>;
type Formula = fn(&Batch) -> Tensor<1>;

/// The losses, and how many of scale and bias get a gradient.
const CASES: [(&str, usize, Fused, Formula); 9] = [
    (
        "clip",
        0,
        |it| clip(&it.images, &it.texts, None, HARD),
        |it| {
            clip_formula(
                it,
                Clip {
                    soft_weight: 0.,
                    ..HARD
                },
            )
        },
    ),
    (
        "clip, teacher",
        0,
        |it| clip(&it.images, &it.texts, it.teacher(), CLIP),
        |it| clip_formula(it, CLIP),
    ),
    (
        "clip, learned",
        1,
        |it| clip_with_scale(&it.images, &it.texts, None, &it.scale, HARD),
        |it| {
            clip_formula(
                it,
                Clip {
                    soft_weight: 0.,
                    ..HARD
                },
            )
        },
    ),
    (
        "clip, teacher, learned",
        1,
        |it| clip_with_scale(&it.images, &it.texts, it.teacher(), &it.scale, CLIP),
        |it| clip_formula(it, CLIP),
    ),
    (
        "clip, teacher, labels",
        0,
        |it| {
            let labels = &it.pair_labels;
            clip_with_labels(&it.images, &it.texts, labels, it.teacher(), CLIP)
        },
        |it| masked_clip_formula(it, CLIP, mask_of(&it.pair_labels)),
    ),
    (
        "siglip",
        0,
        |it| siglip(&it.images, &it.texts, SIGLIP),
        siglip_formula,
    ),
    (
        "siglip, learned",
        2,
        |it| siglip_with_scale(&it.images, &it.texts, &it.scale, &it.bias),
        siglip_formula,
    ),
    (
        "sup-con",
        0,
        |it| sup_con(&it.rows(), &it.labels, SUP_CON),
        sup_con_formula,
    ),
    (
        "sup-con, learned",
        1,
        |it| sup_con_with_scale(&it.rows(), &it.labels, &it.scale),
        sup_con_formula,
    ),
];

/// The value of a loss, and its gradients in a graph, of leaves of `dtype` that hold numbers of
/// `held`.
fn evaluate(
    function: &dyn Fn(&Batch) -> Tensor<1>,
    learned: usize,
    [n, dim, teacher_dim]: [usize; 3],
    are_views: bool,
    [held, dtype]: [FloatDType; 2],
) -> Vec<Vec<f64>> {
    let leaf = |x: Tensor<2>| x.cast(held).cast(dtype).detach().require_grad();
    let [image_leaf, text_leaf] = if are_views {
        [
            leaf(numbers([dim, n], 1)),
            leaf(numbers([n + 3, dim + 4], 2)),
        ]
    } else {
        [1, 2].map(|seed| leaf(numbers([n, dim], seed)))
    };
    let (images, texts) = if are_views {
        let texts = text_leaf.clone().slice([2..n + 2, 3..dim + 3]);
        (image_leaf.clone().transpose(), texts)
    } else {
        (image_leaf.clone(), text_leaf.clone())
    };
    let [scale, bias] = [SCALE, BIAS].map(|of| number(of, dtype.into()).require_grad());
    // The last row is alone.
    let mut labels: Vec<i64> = (0..2 * n).map(|i| (i % n / 2) as i64).collect();
    labels[2 * n - 1] = u32::MAX.into();
    // The first pair is alone, so that two pairs are a comparison.
    let pair_labels: Vec<i64> = (0..n as i64).map(|i| (i + 1) / 2).collect();
    let batch = Batch {
        images,
        texts,
        teacher: [3, 4].map(|seed| numbers([n, teacher_dim], seed).cast(held).cast(dtype)),
        labels: integers(&labels),
        pair_labels: integers(&pair_labels),
        scale: scale.clone(),
        bias: bias.clone(),
    };
    let value = function(&batch);
    // An upstream factor that depends on the loss, and the loss twice.
    let gradients = (value.clone() * -2.5 - value.clone() * value.clone()).backward();
    let mut all = vec![wide(value.into_data())];
    for leaf in [image_leaf, text_leaf] {
        let gradient = leaf.grad(&gradients).expect("a gradient");
        assert_eq!(
            (gradient.dims(), gradient.dtype()),
            (leaf.dims(), dtype.into())
        );
        all.push(wide(gradient.into_data()));
    }
    for number in [scale, bias].iter().take(learned) {
        let gradient = number.grad(&gradients).expect("a gradient");
        assert_eq!(gradient.dtype(), dtype.into());
        all.push(wide(gradient.into_data()));
    }
    all
}

#[test]
fn gradients_of_both_towers_and_of_what_is_learned() {
    for (shape, are_views) in [
        ([2, 3, 7], false),
        ([13, 33, 4], false),
        ([9, 6, 3], true),
        ([9, 6, 8], true),
    ] {
        for (name, learned, fused, formula) in CASES {
            let held = [
                (FloatDType::F64, 1e-10),
                (FloatDType::F32, 1e-5),
                (FloatDType::F16, 1e-3),
                (FloatDType::BF16, 4e-3),
            ];
            for (dtype, tolerance) in held {
                let of = |function: &dyn Fn(&Batch) -> Tensor<1>, computed| {
                    evaluate(function, learned, shape, are_views, [dtype, computed])
                };
                let got = of(&|it| fused(it).expect("a loss"), dtype);
                let want = of(&|it| formula(it), FloatDType::F64);
                assert_eq!(got.len(), 3 + learned);
                let parts = ["loss", "images", "texts", "scale", "bias"];
                for ((part, got), want) in parts.iter().zip(&got).zip(&want) {
                    let label = format!("{name}, {shape:?}, views {are_views}, {dtype:?}: {part}");
                    assert_close(&label, got, want, tolerance);
                }
            }
        }
    }
}

#[test]
fn the_teacher_of_towers_is_a_constant() -> Result<(), Error> {
    let [images, texts, teacher] = [1, 2, 3].map(|seed| numbers([6, 4], seed).require_grad());
    let loss = clip(&images, &texts, Some((&teacher, &images)), CLIP)?;
    let gradients = loss.backward();
    assert!(texts.grad(&gradients).is_some() && teacher.grad(&gradients).is_none());
    Ok(())
}

#[test]
fn what_does_not_fit_towers_is_refused() {
    let of = |shape| numbers(shape, 1);
    let (a, wide, long) = (of([4, 3]), of([4, 5]), of([5, 3]));
    let narrow = a.clone().cast(FloatDType::F32);
    let one = number(1., DType::F64);
    let two = Tensor::cat(vec![one.clone(), one.clone()], 0);
    let labels = integers(&[0, 1, 0, 1]);
    let plain = |a: &Tensor<2>, b: &Tensor<2>| clip(a, b, None, HARD);
    let taught = |y: &Tensor<2>, z: &Tensor<2>| clip(&a, &a, Some((y, z)), CLIP);
    for (result, text) in [
        (
            plain(&a, &long),
            "texts: expected the other tower's shape, [4, 3], got the shape [5, 3]",
        ),
        (
            siglip(&a, &wide, SIGLIP),
            "texts: expected the other tower's shape, [4, 3]",
        ),
        (
            plain(&a, &narrow),
            "texts: expected the other tower's, F64, got F32",
        ),
        (
            taught(&a, &wide),
            "teacher texts: expected the other tower's shape, [4, 3]",
        ),
        (
            taught(&long, &long),
            "teacher images rows: expected 4, got 5",
        ),
        (
            taught(&narrow, &narrow),
            "teacher: expected the student's, F64, got F32",
        ),
        (
            sup_con(&long, &labels, SUP_CON),
            "labels: expected 5 elements, got 4",
        ),
        (
            sup_con(&a, &integers(&[0, -1, 0, 1]), SUP_CON),
            "labels: expected labels from 0",
        ),
        (
            clip_with_scale(&a, &a, None, &two, HARD),
            "scale: expected 1 elements, got 2",
        ),
        (
            clip_with_scale(&a, &a, None, &-one.clone(), HARD),
            "scale: expected a finite number",
        ),
        (
            sup_con_with_scale(&a, &labels, &(one.clone() * 0.)),
            "scale: expected a finite number",
        ),
        (
            siglip_with_scale(&a, &a, &one, &(one.clone() / 0.)),
            "bias: expected a finite number",
        ),
    ] {
        let error = result.expect_err("refused").to_string();
        assert!(error.starts_with(text), "{error}, expected {text}");
    }
}
