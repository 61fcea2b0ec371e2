//! The definitions as the papers print them: f64, plain loops, no tricks.
//!
//! This is the specification. It is held against the official code's values and against central
//! differences, and it never changes to make another device pass. What little it shares with the
//! fast paths is the parameters of the losses.

mod info_nce;
mod kd_kl;
mod rkd_angle;
mod rkd_distance;
mod rrd;

use crate::element::Element;
use crate::error::Result;
use crate::loss::{Loss, Rkd};
use crate::problem::{Batch, Problem, Value};
use crate::relation::Relation;
use crate::rows::Rows;

use rkd_angle::rkd_angle;

/// Evaluates any loss on inputs of any type, all of it in f64.
pub(crate) fn evaluate<T: Element>(
    problem: &Problem,
    batch: Batch<'_, T>,
    gradient: &mut [f64],
) -> Result<Value> {
    let mut student = Matrix::new(batch.student);
    let mut teacher = Matrix::new(batch.teacher);
    let queue = batch.queue.map(|queue| Matrix {
        data: queue.keys().iter().map(|q| q.to_f64()).collect(),
        dim: queue.dim(),
    });
    if !(student.is_finite() && teacher.is_finite()) {
        gradient.fill(f64::NAN);
        return Ok(match problem.loss() {
            Loss::Rrd(_) => Value {
                loss: f64::NAN,
                kl: Some(f64::NAN),
            },
            _ => Value::new(f64::NAN),
        });
    }

    let norms = normalizes(problem.loss()).then(|| {
        teacher.normalize();
        student.normalize()
    });
    let (value, mut g) = match problem.loss() {
        Loss::RkdDistance(loss) => rkd_distance::rkd_distance(loss.delta, &student, &teacher),
        Loss::RkdAngle(loss) => rkd_angle(loss.delta, &student, &teacher),
        Loss::Rkd(loss) => rkd(loss, &student, &teacher),
        Loss::Rrd(loss) => rrd::rrd(loss, &student, &teacher, &expect_queue(queue)),
        Loss::InfoNce(loss) => info_nce::info_nce(loss, &student, &teacher, queue.as_ref()),
        Loss::KdKl(loss) => kd_kl::kd_kl(loss, &student, &teacher),
    };
    if let Some(norms) = norms {
        student.normalize_backward(&norms, &mut g);
    }
    for (out, g) in gradient.iter_mut().zip(g) {
        *out = problem.upstream_factor() * g;
    }
    Ok(value)
}

/// The relation of every two rows.
pub(crate) fn relation_matrix<T: Element>(
    relation: Relation,
    rows: Rows<'_, T>,
    matrix: &mut [f64],
) {
    let mut x = Matrix::new(rows);
    if relation == Relation::Cosine {
        x.normalize();
    }
    for i in 0..x.rows() {
        for j in 0..x.rows() {
            matrix[i * x.rows() + j] = match relation {
                Relation::Distance => distance(x.row(i), x.row(j)),
                Relation::SquaredDistance => squared_distance(x.row(i), x.row(j)),
                Relation::Dot | Relation::Cosine => dot(x.row(i), x.row(j)),
            };
        }
    }
}

/// softmax(x_i/τ) of every row.
pub(crate) fn softmax<T: Element>(rows: Rows<'_, T>, temperature: f64, probabilities: &mut [f64]) {
    for (row, p) in rows.iter().zip(probabilities.chunks_exact_mut(rows.dim())) {
        let logits: Vec<f64> = row.iter().map(|x| x.to_f64() / temperature).collect();
        for (p, log_p) in p.iter_mut().zip(log_softmax(&logits)) {
            *p = log_p.exp();
        }
    }
}

/// Whether the loss takes its rows L2-normalised.
fn normalizes(loss: &Loss) -> bool {
    match loss {
        Loss::RkdDistance(loss) => loss.normalize,
        Loss::RkdAngle(loss) => loss.normalize,
        Loss::Rkd(loss) => loss.normalize,
        Loss::Rrd(loss) => loss.normalize,
        Loss::InfoNce(loss) => loss.normalize,
        Loss::KdKl(_) => false,
    }
}

/// `Problem` refuses RRD without a queue; an empty one stands in so that this stays total.
fn expect_queue(queue: Option<Matrix>) -> Matrix {
    queue.unwrap_or(Matrix {
        data: Vec::new(),
        dim: 1,
    })
}

/// A loss of δ, student and teacher.
type Part = fn(f64, &Matrix, &Matrix) -> (Value, Vec<f64>);

/// Both RKD losses, each weighted; one of weight 0 is left out, even where it is not finite.
fn rkd(loss: &Rkd, student: &Matrix, teacher: &Matrix) -> (Value, Vec<f64>) {
    let mut value = 0.0;
    let mut gradient = vec![0.0; student.data.len()];
    let parts: [(f64, Part); 2] = [
        (loss.distance_weight, rkd_distance::rkd_distance),
        (loss.angle_weight, rkd_angle),
    ];
    for (weight, part) in parts {
        if weight != 0.0 {
            let (v, g) = part(loss.delta, student, teacher);
            value += weight * v.loss;
            for (sum, g) in gradient.iter_mut().zip(g) {
                *sum += weight * g;
            }
        }
    }
    (Value::new(value), gradient)
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
        self.data.len() / self.dim
    }

    fn row(&self, i: usize) -> &[f64] {
        &self.data[i * self.dim..][..self.dim]
    }

    fn is_finite(&self) -> bool {
        self.data.iter().all(|x| x.is_finite())
    }

    /// x ← x/‖x‖ for each row; returns the norms. A zero row stays zero.
    fn normalize(&mut self) -> Vec<f64> {
        self.data
            .chunks_exact_mut(self.dim)
            .map(|row| {
                // ‖x‖ as m·‖x/m‖, so that no square overflows or vanishes.
                let m = row.iter().fold(0.0f64, |m, x| m.max(x.abs()));
                if m == 0.0 {
                    return 0.0;
                }
                let norm = m * row.iter().map(|x| (x / m).powi(2)).sum::<f64>().sqrt();
                row.iter_mut().for_each(|x| *x /= norm);
                norm
            })
            .collect()
    }

    /// With z = x/‖x‖ in `self`: g ← (g − ⟨g,z⟩z)/‖x‖, and 0 for a zero row.
    fn normalize_backward(&self, norms: &[f64], gradient: &mut [f64]) {
        for ((g, z), &norm) in gradient
            .chunks_exact_mut(self.dim)
            .zip(self.data.chunks_exact(self.dim))
            .zip(norms)
        {
            let along = dot(g, z);
            for (g, z) in g.iter_mut().zip(z) {
                *g = if norm == 0.0 {
                    0.0
                } else {
                    (*g - along * z) / norm
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
