//! Losses that compare queries with keys: RRD and InfoNCE.

pub(super) mod attention;
mod divergence;
mod info_nce;
mod rrd;
pub(super) mod tiles;

use crate::batch::Batch;
use crate::cpu::embeddings::Embeddings;
use crate::cpu::parallel::map;
use crate::cpu::sums::{dot, sum_of};
use crate::element::{Element, Real};
use crate::error::{Error, Result};
use crate::loss::{Contrastive, Target};
use crate::problem::Problem;
use crate::queue::Queue;
use crate::row_weights::cleared;
use crate::rows::Rows;

/// The loss, and its terms: the divergence KL(p‖q) where the target is the teacher's softmax, and the
/// gradient of 1/τ. `None` if an input is not finite.
pub(super) fn evaluate<T: Element>(
    loss: &Contrastive,
    problem: &Problem,
    batch: Batch<'_, T>,
    row_losses: Option<&mut [f64]>,
    gradient: &mut [T::Real],
) -> Result<Option<(f64, Vec<f64>)>> {
    let mean = problem.row_mean(batch.row_weights);
    // A row that has no share may hold anything. A teacher's row in the batch is a key of the other
    // rows too.
    let clear = |rows| {
        mean.shares()
            .map_or(Ok(None), |shares| cleared(rows, shares))
    };
    let student = clear(batch.student)?;
    let teacher = match batch.queue {
        Some(_) => clear(batch.teacher)?,
        None => None,
    };
    let batch = Batch {
        student: cleared_or(batch.student, student.as_deref()),
        teacher: cleared_or(batch.teacher, teacher.as_deref()),
        ..batch
    };
    match (loss.target, batch.queue) {
        (Target::Teacher { temperature }, Some(queue)) => {
            let temperatures = [loss.temperature, temperature];
            let value = rrd::rrd(
                temperatures,
                problem,
                batch,
                queue,
                &mean,
                row_losses,
                gradient,
            )?;
            Ok(value.map(|(cross_entropy, terms)| (cross_entropy, terms.to_vec())))
        }
        // `Problem` lets no such batch through.
        (Target::Teacher { .. }, None) => Err(Error::Missing {
            argument: "queue",
            expected: "a queue of teacher keys",
        }),
        (Target::OwnKey, _) => {
            let value = info_nce::info_nce(
                loss.temperature,
                problem,
                batch,
                &mean,
                row_losses,
                gradient,
            )?;
            Ok(value.map(|(loss, of_scale)| (loss, vec![of_scale])))
        }
    }
}

/// The rows, or those of the copy if there is one.
fn cleared_or<'a, T: Element>(rows: Rows<'a, T>, copy: Option<&'a [T]>) -> Rows<'a, T> {
    copy.map_or(rows, |copy| Rows::of(copy, rows.dim()))
}

/// A lower bound of each row's largest product, from its product with one key. Where the batch has
/// just been enqueued that is the row's own key. At a small temperature few other keys weigh
/// anything. So many rows of other ranks have entered `after` the batch's own.
fn initial_maxima<R: Real>(rows: &Embeddings<R>, after: usize, queue: &Queue<R>) -> Vec<f64> {
    map(rows.rows, &|i| {
        initial_max(rows.row(i), queue.recent(after + rows.rows - 1 - i))
    })
}

/// ⟨row, key⟩ less the largest rounding error that the product in `R` may have. The running maximum
/// starts here. A start above the product as computed in `R`, by many temperatures, would underflow
/// every exponential.
fn initial_max<R: Real>(row: &[R], key: &[R]) -> f64 {
    let lengths = sum_of(row, key, |a, b| (a * b).abs());
    dot(row, key) - lengths * R::EPSILON * (key.len() + 1) as f64
}
