//! Losses of two trained towers and of labels, against libtorch's autodiff of the official code's
//! formulas.

use relata::{Clip, SigLip, SupCon};
use relata_tch::{
    Error, clip, clip_with_scale, siglip, siglip_with_scale, sup_con, sup_con_with_scale,
};
use tch::{Kind, Tensor};

use crate::{F32, eye, numbers, relative, unit};

const SCALE: f64 = 7.5;
const BIAS: f64 = -2.5;
const CLIP: Clip = Clip {
    temperature: 1. / SCALE,
    teacher_temperature: 0.3,
    hard_weight: 0.25,
    soft_weight: 0.75,
    both_ways: true,
    guided: false,
    guide_margin: 0.,
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
    images: Tensor,
    texts: Tensor,
    /// Of the teacher: images, then texts.
    teacher: [Tensor; 2],
    /// Of both towers' rows.
    labels: Tensor,
    scale: Tensor,
    bias: Tensor,
}

impl Batch {
    fn rows(&self) -> Tensor {
        Tensor::cat(&[&self.images, &self.texts], 0)
    }

    fn teacher(&self) -> Option<(&Tensor, &Tensor)> {
        let [images, texts] = &self.teacher;
        Some((images, texts))
    }
}

/// open_clip's `ClipLoss`, and `DistillClipLoss` with weights.
fn clip_formula(it: &Batch, loss: Clip) -> Tensor {
    let student = unit(&it.images).matmul(&unit(&it.texts).tr()) * &it.scale;
    let [y, z] = &it.teacher;
    let teacher = unit(y).matmul(&unit(z).tr()) / loss.teacher_temperature;
    let direction = |student: &Tensor, teacher: &Tensor| {
        let log_q = student.log_softmax(1, Kind::Double);
        let hard = (&log_q * eye(student)).sum(Kind::Double) * loss.hard_weight;
        let p = teacher.softmax(1, Kind::Double);
        hard + (p * log_q).sum(Kind::Double) * loss.soft_weight
    };
    let both = direction(&student, &teacher) + direction(&student.tr(), &teacher.tr());
    both / (-2. * it.images.size()[0] as f64)
}

/// big_vision's `sigmoid_loss`.
fn siglip_formula(it: &Batch) -> Tensor {
    let logits = unit(&it.images).matmul(&unit(&it.texts).tr()) * &it.scale + &it.bias;
    let signs = eye(&logits) * 2. - 1.;
    -(logits * signs).log_sigmoid().sum(Kind::Double) / it.images.size()[0] as f64
}

/// `SupConLoss` of the paper's authors, without the rows that have no positive.
fn sup_con_formula(it: &Batch) -> Tensor {
    let rows = unit(&it.rows());
    let logits = rows.matmul(&rows.tr()) * &it.scale;
    let others: Tensor = 1. - eye(&logits);
    let sums = (logits.exp() * &others).sum_dim_intlist(1, true, Kind::Double);
    let log_p = logits - sums.log();
    let same = it.labels.unsqueeze(0).eq_tensor(&it.labels.unsqueeze(1));
    let positives = same.to_kind(Kind::Double) * others;
    let counts = positives.sum_dim_intlist(1, false, Kind::Double);
    let anchors = counts.gt(0.).sum(Kind::Double);
    let sums = (log_p * positives).sum_dim_intlist(1, false, Kind::Double);
    -(sums / counts.clamp_min(1.)).sum(Kind::Double) / anchors
}

type Fused = fn(&Batch) -> Result<Tensor, Error>;
type Formula = fn(&Batch) -> Tensor;

const HARD: Clip = Clip {
    hard_weight: 1.,
    ..CLIP
};
const HARD_ALONE: Clip = Clip {
    soft_weight: 0.,
    ..HARD
};

/// The losses, and how many of scale and bias get a gradient.
const CASES: [(&str, usize, Fused, Formula); 8] = [
    (
        "clip",
        0,
        |it| clip(&it.images, &it.texts, None, HARD),
        |it| clip_formula(it, HARD_ALONE),
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
        |it| clip_formula(it, HARD_ALONE),
    ),
    (
        "clip, teacher, learned",
        1,
        |it| clip_with_scale(&it.images, &it.texts, it.teacher(), &it.scale, CLIP),
        |it| clip_formula(it, CLIP),
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

/// Images and texts, the teacher's, and whether the first two are to be viewed as other matrices.
struct Numbers {
    towers: [Tensor; 2],
    teacher: [Tensor; 2],
    are_views: bool,
}

impl Numbers {
    fn new([n, dim, teacher_dim]: [i64; 3], are_views: bool) -> Self {
        let shapes = match are_views {
            true => [[dim, n], [n + 3, dim + 4]],
            false => [[n, dim]; 2],
        };
        Numbers {
            towers: [numbers(shapes[0], 1), numbers(shapes[1], 2)],
            teacher: [3, 4].map(|seed| numbers([n, teacher_dim], seed)),
            are_views,
        }
    }
}

/// The value of a loss, and its gradients in a graph, of leaves of `kind` that hold numbers of `held`.
fn evaluate(
    function: &dyn Fn(&Batch) -> Tensor,
    learned: usize,
    numbers: &Numbers,
    [held, kind]: [Kind; 2],
) -> Vec<Tensor> {
    let to = |x: &Tensor| x.to_kind(held).to_kind(kind).detach();
    let leaf = |x: &Tensor| to(x).copy().set_requires_grad(true);
    let [a, b] = numbers.towers.each_ref().map(leaf);
    let teacher = numbers.teacher.each_ref().map(to);
    let n = teacher[0].size()[0];
    let (images, texts) = match numbers.are_views {
        true => {
            let dim = a.size()[0];
            (a.tr(), b.narrow(0, 2, n).narrow(1, 3, dim))
        }
        false => (a.shallow_clone(), b.shallow_clone()),
    };
    let scale = leaf(&Tensor::from(SCALE));
    let bias = leaf(&Tensor::from_slice(&[BIAS]));
    // The last row is alone.
    let mut labels: Vec<i64> = (0..2 * n).map(|i| i % n / 2).collect();
    labels[2 * n as usize - 1] = u32::MAX.into();
    let batch = Batch {
        images,
        texts,
        teacher,
        labels: Tensor::from_slice(&labels),
        scale: scale.shallow_clone(),
        bias: bias.shallow_clone(),
    };
    let value = function(&batch).reshape([0i64; 0]);
    // An upstream factor that depends on the loss, and the loss twice.
    (&value * -2.5 - &value * &value).backward();
    let mut all = vec![value.detach()];
    for leaf in [a, b].iter().chain([scale, bias].iter().take(learned)) {
        assert_eq!(
            (leaf.grad().kind(), leaf.grad().size()),
            (kind, leaf.size())
        );
        all.push(leaf.grad());
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
        let numbers = Numbers::new(shape, are_views);
        for (name, learned, fused, formula) in CASES {
            for (kind, tolerance) in [
                (Kind::Double, 1e-9),
                (Kind::Float, F32),
                (Kind::Half, 2e-3),
                (Kind::BFloat16, 1e-2),
            ] {
                let of = |function: &dyn Fn(&Batch) -> Tensor, computed| {
                    evaluate(function, learned, &numbers, [kind, computed])
                };
                let got = of(&|it| fused(it).expect("a loss"), kind);
                let want = of(&formula, Kind::Double);
                assert_eq!(got.len(), 3 + learned);
                let parts = ["loss", "images", "texts", "scale", "bias"];
                for ((part, got), want) in parts.iter().zip(&got).zip(&want) {
                    let off = relative(got, want);
                    let label = format!("{name}, {shape:?}, views {are_views}, {kind:?}: {part}");
                    assert!(off <= tolerance, "{label}: off by {off:.2e}");
                }
            }
        }
    }
}

#[test]
fn what_does_not_fit_towers_is_refused() {
    let (a, wide, long) = (numbers([4, 3], 1), numbers([4, 5], 2), numbers([5, 3], 3));
    let narrow = a.to_kind(Kind::Float);
    let labels = |labels: &[i64]| Tensor::from_slice(labels);
    let four = labels(&[0, 1, 0, 1]);
    let number = |of: f64| Tensor::from(of);
    let two = Tensor::from_slice(&[1., 2.]);
    let plain = |a: &Tensor, b: &Tensor| clip(a, b, None, HARD);
    let taught = |y: &Tensor, z: &Tensor| clip(&a, &a, Some((y, z)), CLIP);
    for (result, text) in [
        (plain(&a, &long), "texts: expected the other tower's shape"),
        (
            plain(&a, &narrow),
            "texts: expected the other tower's shape, kind",
        ),
        (plain(&a.get(0), &a), "images: expected a matrix"),
        (
            siglip(&a, &wide, SIGLIP),
            "texts: expected the other tower's shape",
        ),
        (
            taught(&a, &wide),
            "teacher texts: expected the other tower's shape",
        ),
        (
            taught(&long, &long),
            "teacher images: expected as many rows",
        ),
        (
            taught(&narrow, &narrow),
            "teacher: expected the student's device and kind",
        ),
        (
            sup_con(&long, &four, SUP_CON),
            "labels: expected a vector, a label for each row",
        ),
        (
            sup_con(&a, &labels(&[0, -1, 0, 1]), SUP_CON),
            "labels: expected labels from 0",
        ),
        (
            sup_con(&a, &number(1.).expand([4], false), SUP_CON),
            "labels: expected i32, or i64",
        ),
        (
            clip_with_scale(&a, &a, None, &two, HARD),
            "scale: expected 1",
        ),
        (
            clip_with_scale(&a, &a, None, &number(-1.), HARD),
            "scale: expected a finite number",
        ),
        (
            sup_con_with_scale(&a, &four, &Tensor::from(1i64)),
            "scale: expected f64, f32",
        ),
        (
            siglip_with_scale(&a, &a, &number(1.), &number(f64::NAN)),
            "bias: expected a finite number",
        ),
    ] {
        let error = result.expect_err("refused").to_string();
        assert!(error.starts_with(text), "{error}, expected {text}");
    }
}
