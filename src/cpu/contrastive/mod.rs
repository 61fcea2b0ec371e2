//! Losses that compare queries with keys: RRD and InfoNCE.

mod attention;
pub(super) mod info_nce;
pub(super) mod rrd;

use crate::cpu::embeddings::Embeddings;
use crate::element::Real;
use crate::queue::Queue;

/// For each row its product with one key: with its own where the batch has just been enqueued, next to
/// which few others weigh anything at a small temperature.
fn initial_maxima<R: Real>(rows: &Embeddings<R>, queue: &Queue<R>) -> Vec<f64> {
    (0..rows.rows)
        .map(|i| initial_max(rows.row(i), queue.recent(rows.rows - 1 - i)))
        .collect()
}

/// ⟨row, key⟩ less all that rounding can do to it. The maximum of the logits runs from here; begun above
/// the product as it comes out in `R`, by many temperatures, it would leave no exponential.
fn initial_max<R: Real>(row: &[R], key: &[R]) -> f64 {
    let lengths: f64 = row
        .iter()
        .zip(key)
        .map(|(a, b)| (a.to_f64() * b.to_f64()).abs())
        .sum();
    dot(row, key) - lengths * R::EPSILON * (key.len() + 1) as f64
}

/// ⟨a, b⟩ in f64, over the length of `b`.
fn dot<R: Real>(a: &[R], b: &[R]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a.to_f64() * b.to_f64()).sum()
}
