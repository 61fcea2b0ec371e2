//! The values and gradients of the official code in f64. `golden.json` says where its mathematics
//! were used instead. Twenty-four cases are losses of this crate. One is a loss made of its
//! building blocks, and so are two of the others once more.

mod common;

use common::compare::{assert_gradient, assert_loss, norm};
use relata::{
    Batch, Clip, Cpu, DarkRank, Device, Divergence, Gram, InfoNce, KdKl, Loss, Order, Pkt, Problem,
    Queue, Reference, Relation, Rkd, RkdAngle, RkdDistance, Rows, Rrd, SigLip, Sp, SupCon,
    relation_matrix, softmax,
};
use serde_json::Value;

/// A row-major matrix.
#[derive(Clone)]
struct Matrix {
    data: Vec<f64>,
    dim: usize,
}

impl Matrix {
    fn rows(&self) -> Rows<'_, f64> {
        Rows::new(&self.data, [self.data.len() / self.dim, self.dim]).expect("whole rows")
    }
}

struct Golden(Value);

impl Golden {
    fn load() -> Self {
        Golden(serde_json::from_str(include_str!("golden/golden.json")).expect("valid JSON"))
    }

    /// An input, by the formula in the file: scale · (sin(a·i + b·d + c) + ¼ cos(b·i·d + c)).
    fn input(&self, name: &str) -> Matrix {
        let spec = &self.0["inputs"][name];
        let number = |key: &str| spec[key].as_f64();
        let rows = number("K").or(self.0["inputs"]["N"].as_f64()).expect("N");
        let dim = number("D").or(number("C")).expect("D or C");
        let [a, b, c] = [0, 1, 2].map(|i| spec["abc"][i].as_f64().expect("a, b, c"));
        let scale = number("scale").unwrap_or(1.0);
        let mut data = Vec::new();
        for i in (0..rows as usize).map(|i| i as f64) {
            for d in (0..dim as usize).map(|d| d as f64) {
                data.push(scale * ((a * i + b * d + c).sin() + 0.25 * (b * i * d + c).cos()));
            }
        }
        let dim = dim as usize;
        Matrix { data, dim }
    }

    fn case(&self, name: &str) -> (f64, Vec<f64>) {
        let case = &self.0["cases"][name];
        let gradient = case["grad"].as_array().expect("rows of a gradient");
        let elements = gradient
            .iter()
            .flat_map(|row| row.as_array().expect("a row"));
        (
            case["loss"].as_f64().expect("a loss"),
            elements.map(|g| g.as_f64().expect("a number")).collect(),
        )
    }
}

/// Compares `loss` on both devices with a case. The official code adds in another order, which
/// changes a few units in the last place.
fn assert_golden(case: &str, loss: impl Into<Loss>, student: &str, teacher: &str, queue: bool) {
    let loss = loss.into();
    let golden = Golden::load();
    let (student, teacher) = (golden.input(student), golden.input(teacher));
    let queue = queue.then(|| {
        let keys = golden.input("queue");
        let mut queue = Queue::<f64>::new(keys.rows().len(), keys.dim).expect("a queue");
        queue.enqueue(keys.rows()).expect("finite keys");
        queue
    });
    let mut batch = Batch::new(student.rows(), teacher.rows());
    batch.queue = queue.as_ref();
    assert_golden_batch(&golden, case, loss, batch);
}

/// The same for any batch, and for the gradients of the loss's parameters where the case has them.
fn assert_golden_batch(golden: &Golden, case: &str, loss: Loss, batch: Batch<'_, f64>) {
    let (value, gradient) = golden.case(case);
    let dim = batch.student.dim();
    let problem = Problem::new(loss, batch.shapes()).expect("shapes that fit");

    let reference = problem.evaluate(&Reference, batch).expect("a valid batch");
    assert_loss(case, reference.loss, value, 1e-12);
    assert_gradient(case, &reference.gradient, &gradient, dim, 1e-11);
    let cpu = problem.evaluate(&Cpu, batch).expect("a valid batch");
    assert_loss(case, cpu.loss, value, 1e-10);
    assert_gradient(case, &cpu.gradient, &gradient, dim, 1e-10);

    let Some(of_parameters) = golden.0["cases"][case]["parameter_gradients"].as_array() else {
        return;
    };
    for evaluated in [reference.terms, cpu.terms] {
        let got = evaluated
            .iter()
            .filter(|(name, _)| name.ends_with("_gradient"));
        let got: Vec<f64> = got.map(|(_, value)| value).collect();
        assert_eq!(got.len(), of_parameters.len(), "{case}");
        for (got, want) in got.iter().zip(of_parameters) {
            assert_loss(case, *got, want.as_f64().expect("a number"), 1e-10);
        }
    }
}

#[test]
fn rkd_distance_gives_the_golden_values() {
    assert_golden("rkd_d", RkdDistance::default(), "student", "teacher", false);
}

#[test]
fn rkd_distance_of_normalised_rows_gives_the_golden_values() {
    let loss = RkdDistance {
        normalize: true,
        ..RkdDistance::default()
    };
    assert_golden("rkd_d_l2norm", loss, "student", "teacher", false);
}

#[test]
fn rkd_angle_gives_the_golden_values() {
    assert_golden("rkd_a", RkdAngle::default(), "student", "teacher", false);
}

#[test]
fn rkd_as_for_classification_gives_the_golden_values() {
    assert_golden(
        "rkd_25d_50a",
        Rkd::CLASSIFICATION,
        "student",
        "teacher",
        false,
    );
}

#[test]
fn sp_gives_the_golden_values() {
    assert_golden("sp", Sp, "student", "teacher", false);
}

#[test]
fn gram_gives_the_golden_values() {
    for (case, clamp) in [("gram", false), ("gram_remove_neg", true)] {
        assert_golden(case, Gram { clamp }, "student", "teacher", false);
    }
}

#[test]
fn pkt_gives_the_golden_values() {
    assert_golden("pkt_eps1e-7", Pkt, "student", "teacher", false);
}

#[test]
fn order_gives_the_golden_values() {
    assert_golden("order", Order::default(), "student", "teacher", false);
}

#[test]
fn dark_rank_gives_the_golden_values() {
    let other = DarkRank {
        alpha: 2.0,
        beta: 2.0,
        length: 3,
    };
    for (case, loss) in [
        ("dark_rank", DarkRank::default()),
        ("dark_rank_alpha2_beta2_length3", other),
    ] {
        assert_golden(case, loss, "student", "teacher", false);
    }
}

#[test]
fn clip_gives_the_golden_values() {
    let golden = Golden::load();
    let (student, teacher) = (golden.input("student"), golden.input("teacher"));
    let clip = Clip::default();
    let weighted = Clip {
        temperature: 0.05,
        teacher_temperature: 0.1,
        hard_weight: 0.25,
        soft_weight: 0.75,
        ..clip
    };
    let alone = Batch::of_student(student.rows());
    let taught = Batch::new(student.rows(), teacher.rows());
    for (case, loss, batch) in [
        ("clip_t0.07", clip, alone),
        ("clip_t0.07_soft", clip, taught),
        ("clip_t0.05_tt0.1_hard0.25_soft0.75", weighted, taught),
    ] {
        assert_golden_batch(&golden, case, loss.into(), batch);
    }
}

#[test]
fn sig_lip_gives_the_golden_values() {
    let golden = Golden::load();
    let student = golden.input("student");
    let batch = Batch::of_student(student.rows());
    assert_golden_batch(&golden, "siglip_a10_b-10", SigLip::default().into(), batch);
}

#[test]
fn sup_con_gives_the_golden_values() {
    let golden = Golden::load();
    let student = golden.input("student");
    let batch = Batch::of_student(student.rows()).with_labels(&[0, 1, 0, 1, 1, 0]);
    assert_golden_batch(&golden, "supcon_t0.07", SupCon::default().into(), batch);
}

#[test]
fn kd_gives_the_golden_values() {
    assert_golden(
        "kd_T4",
        KdKl::default(),
        "student_logits",
        "teacher_logits",
        false,
    );
}

#[test]
fn divergences_of_kd_give_the_golden_values() {
    for (case, divergence) in [
        ("kd_reverse_T1", Divergence::Reverse),
        ("kd_js0.5_T1", Divergence::Js { beta: 0.5 }),
        ("kd_js0.1_T1", Divergence::Js { beta: 0.1 }),
        ("kd_skew0.1_T1", Divergence::Skew { alpha: 0.1 }),
        (
            "kd_skew_reverse0.1_T1",
            Divergence::SkewReverse { alpha: 0.1 },
        ),
    ] {
        let loss = KdKl {
            divergence,
            ..KdKl::new(1.0)
        };
        assert_golden(case, loss, "student_logits", "teacher_logits", false);
    }
}

#[test]
fn rrd_with_a_queue_gives_the_golden_values() {
    assert_golden(
        "rrd_queue_ts0.1_tt0.02",
        Rrd::default(),
        "student",
        "teacher_sameD",
        true,
    );
}

#[test]
fn info_nce_in_batch_gives_the_golden_values() {
    assert_golden(
        "infonce_inbatch_t0.07",
        InfoNce::default(),
        "student",
        "teacher_sameD",
        false,
    );
}

#[test]
fn every_golden_case_has_a_test() {
    let golden = Golden::load();
    let cases = golden.0["cases"].as_object().expect("cases");
    let source = include_str!("golden.rs");
    for name in cases.keys() {
        assert!(source.contains(&format!("\"{name}\"")), "{name}");
    }
    assert_eq!(cases.len(), 25);
}

// Losses from the crate's building blocks: SP, PKT, and one that it does not have.

/// A device for f64 whose numbers come back in f64.
trait Device64: Device<f64, Gradient = f64> {}
impl<D: Device<f64, Gradient = f64>> Device64 for D {}

fn relation<D: Device64>(device: &D, relation: Relation, x: &Matrix) -> Matrix {
    let data = relation_matrix(device, relation, x.rows()).expect("a relation");
    let dim = x.rows().len();
    assert_eq!(data.len(), dim * dim);
    Matrix { data, dim }
}

/// Similarity-preserving (Tung & Mori; RepDistiller's `SP.py`): the mean square of the difference
/// of the Gram matrices, whose rows are L2-normalised.
fn similarity_preserving<D: Device64>(device: &D, x: &Matrix, y: &Matrix) -> f64 {
    let gram = |x: &Matrix| -> Vec<f64> {
        let gram = relation(device, Relation::Dot, x);
        let rows = gram.data.chunks(gram.dim);
        rows.flat_map(|row| row.iter().map(|g| g / norm(row).max(1e-12)))
            .collect()
    };
    let (g, h) = (gram(x), gram(y));
    let squares = g.iter().zip(&h).map(|(g, h)| (g - h).powi(2));
    squares.sum::<f64>() / g.len() as f64
}

/// Probabilistic knowledge transfer (Passalis & Tefas; RepDistiller's `PKT.py`): cosines, moved to
/// 0…1 and each row divided by its sum, compared by KL, averaged over all pairs. The code adds ε to
/// every norm and to both probabilities.
fn probabilistic_transfer<D: Device64>(device: &D, x: &Matrix, y: &Matrix) -> f64 {
    const EPSILON: f64 = 1e-7;
    let probabilities = |x: &Matrix| -> Vec<f64> {
        let cosines = relation(device, Relation::Cosine, x);
        let squares = relation(device, Relation::Dot, x);
        // ‖x‖/(‖x‖ + ε), from the Gram matrix's diagonal.
        let damped = |i: usize| {
            let norm = squares.data[i * squares.dim + i].sqrt();
            norm / (norm + EPSILON)
        };
        let mut p = Vec::with_capacity(cosines.data.len());
        for (i, row) in cosines.data.chunks(cosines.dim).enumerate() {
            let row: Vec<f64> = row
                .iter()
                .enumerate()
                .map(|(j, cos)| (cos * damped(i) * damped(j) + 1.0) / 2.0)
                .collect();
            let sum: f64 = row.iter().sum();
            p.extend(row.iter().map(|s| s / sum));
        }
        p
    };
    let (q, p) = (probabilities(x), probabilities(y));
    let terms = p
        .iter()
        .zip(&q)
        .map(|(p, q)| p * ((p + EPSILON) / (q + EPSILON)).ln());
    terms.sum::<f64>() / p.len() as f64
}

/// DIST (Huang et al.; hunto's `dist_kd.py`): one minus Pearson's correlation of the softmaxes, the
/// mean over samples and the mean over classes, added, times τ². ε = 1e-8 goes to the product of
/// the norms.
fn distillation_from_stronger<D: Device64>(device: &D, x: &Matrix, y: &Matrix) -> f64 {
    const TAU: f64 = 1.0;
    let transposed = |x: &Matrix| -> Matrix {
        let rows = x.rows().len();
        Matrix {
            data: (0..x.dim)
                .flat_map(|d| (0..rows).map(move |i| (i, d)))
                .map(|(i, d)| x.data[i * x.dim + d])
                .collect(),
            dim: rows,
        }
    };
    let uncorrelated = |x: &Matrix, y: &Matrix| -> f64 {
        let centred = |row: &[f64]| -> Vec<f64> {
            let mean = row.iter().sum::<f64>() / row.len() as f64;
            row.iter().map(|x| x - mean).collect()
        };
        let correlations = x
            .data
            .chunks(x.dim)
            .zip(y.data.chunks(y.dim))
            .map(|(x, y)| {
                let (x, y) = (centred(x), centred(y));
                let product: f64 = x.iter().zip(&y).map(|(x, y)| x * y).sum();
                product / (norm(&x) * norm(&y) + 1e-8)
            });
        1.0 - correlations.sum::<f64>() / x.rows().len() as f64
    };
    let distribution = |x: &Matrix| Matrix {
        data: softmax(device, x.rows(), TAU).expect("a softmax"),
        dim: x.dim,
    };
    let (q, p) = (distribution(x), distribution(y));
    TAU * TAU * (uncorrelated(&q, &p) + uncorrelated(&transposed(&q), &transposed(&p)))
}

/// Compares a composed loss with a case, and the case's gradient with differences of the composed
/// loss: (8 (L(h) − L(−h)) − (L(2h) − L(−2h)))/12h, whose error is of the order h⁴.
fn assert_composed(
    case: &str,
    student: &str,
    teacher: &str,
    loss: impl Fn(&Matrix, &Matrix) -> f64,
) {
    let golden = Golden::load();
    let (x, y) = (golden.input(student), golden.input(teacher));
    let (value, gradient) = golden.case(case);
    assert_loss(case, loss(&x, &y), value, 1e-9);

    let step = 1e-3;
    let differences: Vec<f64> = (0..x.data.len())
        .map(|at| {
            let moved = |t: f64| {
                let mut moved = x.clone();
                moved.data[at] += t;
                loss(&moved, &y)
            };
            let [one, two] = [step, 2.0 * step].map(|h| moved(h) - moved(-h));
            (8.0 * one - two) / (12.0 * step)
        })
        .collect();
    assert_gradient(case, &differences, &gradient, x.dim, 1e-9);
}

fn assert_all_composed<D: Device64>(device: &D) {
    assert_composed("sp", "student", "teacher", |x, y| {
        similarity_preserving(device, x, y)
    });
    assert_composed("pkt_eps1e-7", "student", "teacher", |x, y| {
        probabilistic_transfer(device, x, y)
    });
    assert_composed("dist_tau1", "student_logits", "teacher_logits", |x, y| {
        distillation_from_stronger(device, x, y)
    });
}

#[test]
fn losses_composed_on_the_reference_give_the_golden_values() {
    assert_all_composed(&Reference);
}

#[test]
fn losses_composed_on_the_cpu_give_the_golden_values() {
    assert_all_composed(&Cpu);
}
