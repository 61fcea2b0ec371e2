//! The definitions as the papers print them: f64, plain loops, no tricks.
//!
//! This is the specification. Tests compare it with the official code's values and with central
//! differences. It never changes to make another device pass. It shares nothing with the fast paths
//! but the parameters of the losses, and what an input stands for: a weight for a share of the mean
//! (`row_weights.rs`), a list for a tail (`top_k.rs`). Each loss has a file of its own.

mod clip;
mod crd;
mod dark_rank;
mod divergence;
mod gram;
mod info_nce;
mod kd_kl;
mod order;
mod pkt;
mod rkd_angle;
mod rkd_distance;
mod rrd;
mod rrd_bank;
mod sig_lip;
mod sp;
mod sup_con;

use half::{bf16, f16};

use crate::bank::{Bank, SampledKeys};
use crate::batch::Batch;
use crate::device::{Device, sealed::Sealed};
use crate::element::{DType, Element, Real};
use crate::error::Result;
use crate::loss::{Family, Loss, Relation, Rkd, duplicate_distance};
use crate::problem::{Problem, Value};
use crate::rows::Rows;

use rkd_angle::rkd_angle;

/// The definitions as the papers print them, in f64 with plain loops: the specification that every
/// other device is compared with.
///
/// It is slow: the angle loss takes O(N³D). It forms squares of lengths as they are printed, so
/// rows longer than 1e154 or shorter than 1e-154 leave f64's range here, and not on
/// [`Cpu`](crate::Cpu).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reference;

impl Sealed for Reference {}

impl<T: Element> Device<T> for Reference {
    type Gradient = f64;

    fn name(&self) -> &'static str {
        "reference"
    }

    fn evaluate(
        &self,
        problem: &Problem,
        batch: Batch<'_, T>,
        gradient: &mut [f64],
        row_losses: Option<&mut [f64]>,
    ) -> Result<Value> {
        // Compiled here, once for each type, and not in every crate that calls it.
        match T::DTYPE {
            DType::F64 => evaluate::<f64>(problem, batch.cast(), gradient, row_losses),
            DType::F32 => evaluate::<f32>(problem, batch.cast(), gradient, row_losses),
            DType::F16 => evaluate::<f16>(problem, batch.cast(), gradient, row_losses),
            DType::BF16 => evaluate::<bf16>(problem, batch.cast(), gradient, row_losses),
        }
    }

    fn relation_matrix(
        &self,
        relation: Relation,
        rows: Rows<'_, T>,
        matrix: &mut [f64],
    ) -> Result<()> {
        relation_matrix(relation, rows, matrix);
        Ok(())
    }

    fn softmax(
        &self,
        rows: Rows<'_, T>,
        temperature: f64,
        probabilities: &mut [f64],
    ) -> Result<()> {
        softmax(rows, temperature, probabilities);
        Ok(())
    }
}

/// Evaluates any loss on inputs of any type, all of it in f64.
#[inline(never)]
fn evaluate<T: Element>(
    problem: &Problem,
    batch: Batch<'_, T>,
    gradient: &mut [f64],
    row_losses: Option<&mut [f64]>,
) -> Result<Value> {
    if problem.groups() == 1 {
        return Ok(evaluate_group(problem, batch, gradient, row_losses));
    }
    let group = problem.of_group();
    let gradients = gradient.chunks_mut(group.gradient_len()).enumerate();
    let values = gradients.map(|(nth, gradient)| {
        let batch = batch.group(nth, group.shapes().rows);
        evaluate_group(&group, batch, gradient, None)
    });
    Ok(problem.mean_of_groups(&values.collect::<Vec<_>>()))
}

/// Evaluates any loss of rows that are all compared with one another.
fn evaluate_group<T: Element>(
    problem: &Problem,
    batch: Batch<'_, T>,
    gradient: &mut [f64],
    row_losses: Option<&mut [f64]>,
) -> Value {
    let widths = problem.prefix_widths();
    if widths.is_empty() {
        return evaluate_rows(problem, batch, gradient, row_losses);
    }
    gradient.fill(0.0);
    let mut loss = 0.0;
    let dim = batch.student.dim();
    for &width in widths {
        let rows = batch.student.iter();
        let cut: Vec<T> = rows.flat_map(|row| &row[..width]).copied().collect();
        let prefix = Batch {
            student: Rows::of(&cut, width),
            ..batch
        };
        let mut of_prefix = vec![0.0; cut.len()];
        let value = evaluate_rows(&problem.of_prefix(width), prefix, &mut of_prefix, None);
        loss += value.loss / widths.len() as f64;
        for (sums, row) in gradient.chunks_mut(dim).zip(of_prefix.chunks(width)) {
            for (sum, g) in sums.iter_mut().zip(row) {
                *sum += g;
            }
        }
    }
    problem.value(loss, [])
}

/// Evaluates any loss of whole rows.
fn evaluate_rows<T: Element>(
    problem: &Problem,
    batch: Batch<'_, T>,
    gradient: &mut [f64],
    row_losses: Option<&mut [f64]>,
) -> Value {
    if let Family::Logits(logits) = problem.spec().family {
        let loss = kd_kl::kd_kl(&logits, problem, batch, gradient, row_losses);
        return problem.value(loss, []);
    }
    let mut student = Matrix::new(batch.student);
    let mut teacher = Matrix::new(batch.teacher);
    let queue = batch.queue.map(|queue| Matrix {
        data: queue.keys().iter().map(|q| q.to_f64()).collect(),
        dim: queue.dim(),
    });
    let shares = match batch.row_weights {
        Some(weights) => problem.shares(weights),
        None => vec![1.0 / problem.mean_rows() as f64; student.rows()],
    };
    // A row that counts for nothing may hold anything. A teacher's row in the batch is a key of the
    // other rows too.
    student.clear_rows(|i| shares[i] == 0.0);
    if queue.is_some() || batch.keys.is_some() {
        teacher.clear_rows(|i| shares[i] == 0.0);
    }
    if let Family::Towers(loss) = problem.spec().family {
        teacher.clear_rows(|_| !loss.reads_teacher());
    }
    if !(student.is_finite() && teacher.is_finite()) {
        gradient.fill(f64::NAN);
        if let Some(losses) = row_losses {
            losses.fill(f64::NAN);
        }
        return problem.not_a_number();
    }

    let epsilon = match problem.spec().family {
        Family::Pairwise(pairwise) => pairwise.norm_epsilon,
        Family::Triplet(_)
        | Family::Contrastive(_)
        | Family::Logits(_)
        | Family::Towers(_)
        | Family::Sampled(_) => 0.0,
    };
    let norms = problem.spec().normalize.then(|| {
        teacher.normalize(epsilon);
        student.normalize(epsilon)
    });
    let relates_distances = match problem.spec().family {
        Family::Pairwise(pairwise) => !pairwise.relation.is_of_directions(),
        Family::Triplet(_) => true,
        Family::Contrastive(_) | Family::Logits(_) | Family::Towers(_) | Family::Sampled(_) => {
            false
        }
    };
    if norms.is_some() && relates_distances {
        for rows in [&mut student, &mut teacher] {
            rows.unite_duplicates(duplicate_distance::<T>());
        }
    }
    let mut losses = vec![0.0; student.rows()];
    let (value, mut g) = match problem.loss() {
        Loss::RkdDistance(loss) => rkd_distance::rkd_distance(loss.delta, &student, &teacher),
        Loss::RkdAngle(loss) => rkd_angle(loss.delta, &student, &teacher),
        Loss::Rkd(loss) => rkd(loss, &student, &teacher),
        Loss::Sp(_) => sp::sp(&student, &teacher),
        Loss::Gram(loss) => gram::gram(loss, &student, &teacher),
        Loss::Pkt(_) => pkt::pkt(&student, &teacher),
        Loss::Order(loss) => order::order(loss, &student, &teacher),
        Loss::DarkRank(loss) => dark_rank::dark_rank(loss, &student, &teacher),
        Loss::Rrd(loss) => {
            let queue = expect_queue(queue);
            rrd::rrd(loss, &student, &teacher, &queue, &shares, &mut losses)
        }
        Loss::InfoNce(loss) => {
            let queue = queue.as_ref();
            info_nce::info_nce(loss, &student, &teacher, queue, &shares, &mut losses)
        }
        Loss::Clip(loss) => {
            let teacher = (teacher.dim > 0).then_some(&teacher);
            clip::clip(loss, &student, teacher, batch.labels)
        }
        Loss::SigLip(loss) => sig_lip::sig_lip(loss, &student),
        // `Problem` lets no such batch through without labels.
        Loss::SupCon(loss) => sup_con::sup_con(loss, &student, batch.labels.unwrap_or_default()),
        Loss::Crd(loss) => {
            let [keys, _] = Keys::of(batch.keys);
            crd::crd(loss, &student, &keys, &shares, &mut losses)
        }
        Loss::RrdBank(loss) => {
            let keys = Keys::of(batch.keys);
            rrd_bank::rrd_bank(loss, &student, &teacher, &keys, &shares, &mut losses)
        }
        // Its rows may hold infinities, and have weights.
        Loss::KdKl(_) => unreachable!("evaluated above"),
    };
    if let Some(norms) = norms {
        student.normalize_backward(&norms, epsilon, &mut g);
    }
    for (out, g) in gradient.iter_mut().zip(g) {
        *out = problem.upstream() * g;
    }
    if let Some(out) = row_losses {
        for ((out, loss), share) in out.iter_mut().zip(losses).zip(shares) {
            *out = if share == 0.0 { 0.0 } else { loss };
        }
    }
    // The terms that were asked for.
    let terms = problem.terms().filter_map(|name| value.term(name));
    problem.value(value.loss, terms.collect::<Vec<_>>())
}

/// The relation of every two rows.
fn relation_matrix<T: Element>(relation: Relation, rows: Rows<'_, T>, matrix: &mut [f64]) {
    let mut x = Matrix::new(rows);
    if relation.is_of_directions() {
        x.normalize(0.0);
    }
    for i in 0..x.rows() {
        for j in 0..x.rows() {
            matrix[i * x.rows() + j] = match relation {
                Relation::Distance => distance(x.row(i), x.row(j)),
                Relation::SquaredDistance => squared_distance(x.row(i), x.row(j)),
                Relation::Dot | Relation::Cosine => dot(x.row(i), x.row(j)),
                Relation::PositiveCosine => dot(x.row(i), x.row(j)).max(0.0),
                Relation::ShiftedCosine => 0.5 * (1.0 + dot(x.row(i), x.row(j))),
            };
        }
    }
}

/// softmax(x_i/τ) of every row.
fn softmax<T: Element>(rows: Rows<'_, T>, temperature: f64, probabilities: &mut [f64]) {
    for (row, p) in rows.iter().zip(probabilities.chunks_exact_mut(rows.dim())) {
        let logits: Vec<f64> = row.iter().map(|x| x.to_f64() / temperature).collect();
        for (p, log_p) in p.iter_mut().zip(log_softmax(&logits)) {
            *p = log_p.exp();
        }
    }
}

/// `Problem` refuses RRD without a queue; an empty one stands in so that this stays total.
fn expect_queue(queue: Option<Matrix>) -> Matrix {
    queue.unwrap_or(Matrix {
        data: Vec::new(),
        dim: 1,
    })
}

/// The rows of a bank that are keys.
struct Keys<'a> {
    bank: Matrix,
    normalizer: f64,
    /// `[N, K + 1]`
    indices: &'a [u32],
}

impl<'a> Keys<'a> {
    /// Those of the student's and of the teacher's rows. `Problem` refuses a batch that lacks them;
    /// none stand in so that this stays total.
    fn of<R: Real>(keys: Option<SampledKeys<'a, R>>) -> [Self; 2] {
        let banks = keys.map(|keys| keys.banks());
        let indices = keys.map_or(&[][..], |keys| keys.indices);
        [0, 1].map(|side| {
            let bank: Option<&Bank<R>> = banks.map(|banks| banks[side]);
            Keys {
                bank: match bank {
                    Some(bank) => Matrix::new(bank.rows()),
                    None => expect_queue(None),
                },
                normalizer: bank.and_then(Bank::normalizer).unwrap_or(f64::NAN),
                indices,
            }
        })
    }

    /// The keys of row i of `rows`.
    fn of_row(&self, i: usize, rows: usize) -> impl Iterator<Item = &[f64]> {
        let count = self.indices.len() / rows;
        let indices = &self.indices[i * count..][..count];
        indices.iter().map(|&index| self.bank.row(index as usize))
    }
}

/// A loss of δ, student and teacher.
type Part = fn(f64, &Matrix, &Matrix) -> (Value, Vec<f64>);

/// Both RKD losses, each weighted; one of weight 0 is left out, even where it is not finite.
fn rkd(loss: &Rkd, student: &Matrix, teacher: &Matrix) -> (Value, Vec<f64>) {
    let mut value = 0.0;
    let mut gradient = vec![0.0; student.data.len()];
    let mut terms = [("distance", 0.0), ("angle", 0.0)];
    let parts: [(f64, Part); 2] = [
        (loss.distance_weight, rkd_distance::rkd_distance),
        (loss.angle_weight, rkd_angle),
    ];
    for ((weight, part), (_, term)) in parts.into_iter().zip(&mut terms) {
        if weight != 0.0 {
            let (v, g) = part(loss.delta, student, teacher);
            *term = v.loss;
            value += weight * v.loss;
            for (sum, g) in gradient.iter_mut().zip(g) {
                *sum += weight * g;
            }
        }
    }
    (Value::with_terms(value, terms), gradient)
}

/// A batch in f64, row-major.
struct Matrix {
    data: Vec<f64>,
    dim: usize,
}

impl Matrix {
    fn new<T: Element>(rows: Rows<'_, T>) -> Self {
        Matrix {
            data: rows.as_slice().iter().map(|x| x.to_f64()).collect(),
            dim: rows.dim(),
        }
    }

    fn rows(&self) -> usize {
        self.data.len() / self.dim.max(1)
    }

    fn row(&self, i: usize) -> &[f64] {
        &self.data[i * self.dim..][..self.dim]
    }

    /// These rows, in this order.
    fn picked(&self, rows: &[usize]) -> Matrix {
        Matrix {
            data: rows.iter().flat_map(|&i| self.row(i)).copied().collect(),
            dim: self.dim,
        }
    }

    /// Makes some of the rows zero.
    fn clear_rows(&mut self, is_cleared: impl Fn(usize) -> bool) {
        for (i, row) in self.data.chunks_exact_mut(self.dim.max(1)).enumerate() {
            if is_cleared(i) {
                row.fill(0.0);
            }
        }
    }

    fn is_finite(&self) -> bool {
        self.data.iter().all(|x| x.is_finite())
    }

    /// x ← x/(‖x‖ + ε) for each row; returns the norms ‖x‖. A zero row stays zero.
    fn normalize(&mut self, epsilon: f64) -> Vec<f64> {
        self.data
            .chunks_exact_mut(self.dim.max(1))
            .map(|row| {
                // ‖x‖ as m·‖x/m‖, so that no square overflows or vanishes.
                let m = row.iter().fold(0.0f64, |m, x| m.max(x.abs()));
                if m == 0.0 {
                    return 0.0;
                }
                let norm = m * row.iter().map(|x| (x / m).powi(2)).sum::<f64>().sqrt();
                row.iter_mut().for_each(|x| *x /= norm + epsilon);
                norm
            })
            .collect()
    }

    /// Each unit row that is up to `apart` from one before it becomes that row: the two are on one
    /// line, and rounding is all that sets them apart.
    fn unite_duplicates(&mut self, apart: f64) {
        let mut distinct: Vec<usize> = Vec::new();
        for i in 0..self.rows() {
            let near = |&&j: &&usize| distance(self.row(i), self.row(j)) <= apart;
            match distinct.iter().find(near) {
                Some(&j) => self
                    .data
                    .copy_within(j * self.dim..(j + 1) * self.dim, i * self.dim),
                None => distinct.push(i),
            }
        }
    }

    /// With z = x/(‖x‖ + ε) in `self`: g ← (g − ⟨g,z⟩z (‖x‖ + ε)/‖x‖)/(‖x‖ + ε), and 0 for a zero
    /// row.
    fn normalize_backward(&self, norms: &[f64], epsilon: f64, gradient: &mut [f64]) {
        for ((g, z), &norm) in gradient
            .chunks_exact_mut(self.dim)
            .zip(self.data.chunks_exact(self.dim))
            .zip(norms)
        {
            let along = dot(g, z) * ((norm + epsilon) / norm);
            for (g, z) in g.iter_mut().zip(z) {
                *g = if norm == 0.0 {
                    0.0
                } else {
                    (*g - along * z) / (norm + epsilon)
                };
            }
        }
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn squared_distance(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum()
}

fn distance(a: &[f64], b: &[f64]) -> f64 {
    squared_distance(a, b).sqrt()
}

/// ½e² up to δ, linear beyond.
fn huber(delta: f64, e: f64) -> f64 {
    if e.abs() <= delta {
        0.5 * e * e
    } else {
        delta * (e.abs() - 0.5 * delta)
    }
}

/// The derivative of [`huber`].
fn huber_slope(delta: f64, e: f64) -> f64 {
    e.clamp(-delta, delta)
}

/// The logarithm of the softmax of `logits`.
fn log_softmax(logits: &[f64]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = logits.iter().map(|l| (l - max).exp()).sum();
    logits.iter().map(|l| l - max - sum.ln()).collect()
}
