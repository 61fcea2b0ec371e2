//! RRD: two attentions over the queue, the student's and the teacher's.
//!
//! With O_s, O_t the means of the keys under q and p:
//!
//! ```text
//! L_i = log-sum_s − ⟨z, O_t⟩/τ_s      H(p_i) = log-sum_t − ⟨y, O_t⟩/τ_t      ∂L_i/∂z = (O_s − O_t)/τ_s
//! ```

use rayon::prelude::*;

use super::attention::{Keys, attention_forward};
use super::buffer::Buffer;
use super::embeddings::{Embeddings, RowScaling};
use crate::element::{Element, Real};
use crate::error::Result;
use crate::loss::Rrd;
use crate::problem::{Batch, Value};
use crate::queue::Queue;

pub(super) fn rrd<T: Element>(
    loss: &Rrd,
    batch: Batch<'_, T>,
    queue: &Queue<T::Real>,
    upstream: f64,
    gradient: &mut [T::Real],
) -> Result<Value> {
    let entry = RowScaling::normalized_if(loss.normalize);
    let (z, y) = Embeddings::<T::Real>::both(batch, entry)?;
    if !(z.finite && y.finite) {
        gradient.fill(T::Real::from_f64(f64::NAN));
        return Ok(Value::with_terms(f64::NAN, [("kl", f64::NAN)]));
    }
    let keys = Keys {
        data: queue.keys(),
        len: queue.len(),
        dim: queue.dim(),
        stride: queue.dim(),
    };
    let student = attention_forward(
        &z,
        keys,
        &initial_maxima(&z, queue),
        false,
        loss.student_temperature,
    )?;
    let teacher = attention_forward(
        &y,
        keys,
        &initial_maxima(&y, queue),
        false,
        loss.teacher_temperature,
    )?;

    let (n, dim) = (z.rows, z.dim);
    let factor = upstream / (n as f64 * loss.student_temperature);
    let values: Vec<(f64, f64)> = gradient
        .par_chunks_exact_mut(dim)
        .enumerate()
        .map(|(i, out)| {
            let o_s = &student.mean[i * dim..][..dim];
            let o_t = &teacher.mean[i * dim..][..dim];
            let mut g = Buffer::any(dim)?;
            for ((g, &s), &t) in g.iter_mut().zip(o_s).zip(o_t) {
                *g = s - t;
            }
            z.write_gradient(i, factor, &g, out);
            let cross_entropy = student.log_sum[i] - dot(z.row(i), o_t) / loss.student_temperature;
            let entropy = teacher.log_sum[i] - dot(y.row(i), o_t) / loss.teacher_temperature;
            Ok((cross_entropy, cross_entropy - entropy))
        })
        .collect::<Result<_>>()?;
    let (cross_entropy, kl) = values
        .iter()
        .fold((0.0, 0.0), |sum, v| (sum.0 + v.0, sum.1 + v.1));
    Ok(Value::with_terms(
        cross_entropy / n as f64,
        [("kl", kl / n as f64)],
    ))
}

/// For each row its product with one key: with its own where the batch has just been enqueued, next to
/// which few others weigh anything at a small temperature.
pub(super) fn initial_maxima<R: Real>(rows: &Embeddings<R>, queue: &Queue<R>) -> Vec<f64> {
    (0..rows.rows)
        .map(|i| initial_max(rows.row(i), queue.recent(rows.rows - 1 - i)))
        .collect()
}

/// ⟨row, key⟩ less all that rounding can do to it. The maximum of the logits runs from here; begun above
/// the product as it comes out in `R`, by many temperatures, it would leave no exponential.
pub(super) fn initial_max<R: Real>(row: &[R], key: &[R]) -> f64 {
    let lengths: f64 = row
        .iter()
        .zip(key)
        .map(|(a, b)| (a.to_f64() * b.to_f64()).abs())
        .sum();
    dot(row, key) - lengths * R::EPSILON * (key.len() + 1) as f64
}

/// ⟨a, b⟩ in f64, over the length of `b`.
pub(super) fn dot<R: Real>(a: &[R], b: &[R]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a.to_f64() * b.to_f64()).sum()
}
