//! Losses that compare queries with keys: RRD and InfoNCE.

mod attention;
mod divergence;
mod info_nce;
mod rrd;
mod tiles;

use crate::batch::Batch;
use crate::cpu::embeddings::{Embeddings, RowScaling};
use crate::cpu::parallel::map;
use crate::cpu::sums::{dot, sum_of};
use crate::element::{Element, Real};
use crate::error::{Error, Result};
use crate::loss::{Contrastive, Target};
use crate::queue::Queue;

/// The loss, and the divergence KL(p‖q) where the target is the teacher's softmax. `None` if an
/// input is not finite.
pub(super) fn evaluate<T: Element>(
    loss: &Contrastive,
    normalize: bool,
    batch: Batch<'_, T>,
    upstream: f64,
    gradient: &mut [T::Real],
) -> Result<Option<(f64, Option<f64>)>> {
    let scaling = RowScaling::normalized_if(normalize);
    match (loss.target, batch.queue) {
        (Target::Teacher { temperature }, Some(queue)) => {
            let temperatures = [loss.temperature, temperature];
            let value = rrd::rrd(temperatures, scaling, batch, queue, upstream, gradient)?;
            Ok(value.map(|(cross_entropy, kl)| (cross_entropy, Some(kl))))
        }
        // `Problem` lets no such batch through.
        (Target::Teacher { .. }, None) => Err(Error::Missing {
            argument: "queue",
            expected: "a queue of teacher keys",
        }),
        (Target::OwnKey, _) => {
            let value = info_nce::info_nce(loss.temperature, scaling, batch, upstream, gradient)?;
            Ok(value.map(|loss| (loss, None)))
        }
    }
}

/// A lower bound of each row's largest product, from its product with one key. Where the batch has
/// just been enqueued that is the row's own key. At a small temperature few other keys weigh
/// anything.
fn initial_maxima<R: Real>(rows: &Embeddings<R>, queue: &Queue<R>) -> Vec<f64> {
    map(rows.rows, &|i| {
        initial_max(rows.row(i), queue.recent(rows.rows - 1 - i))
    })
}

/// ⟨row, key⟩ less the largest rounding error that the product in `R` may have. The running maximum
/// starts here. A start above the product as computed in `R`, by many temperatures, would underflow
/// every exponential.
fn initial_max<R: Real>(row: &[R], key: &[R]) -> f64 {
    let lengths = sum_of(row, key, |a, b| (a * b).abs());
    dot(row, key) - lengths * R::EPSILON * (key.len() + 1) as f64
}
