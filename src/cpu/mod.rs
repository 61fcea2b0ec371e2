//! The fast path for machines without a GPU.

mod buffer;
mod contrastive;
mod embeddings;
mod logits;
mod pairwise;
pub(crate) mod simd;
mod triplet;

pub(crate) use logits::softmax::softmax;
pub(crate) use pairwise::relation::relation_matrix;

use crate::element::Element;
use crate::error::{Error, Result};
use crate::loss::Loss;
use crate::problem::{Batch, Problem, Value};

/// Evaluates any loss. Shapes have been checked.
pub(crate) fn evaluate<T: Element>(
    problem: &Problem,
    batch: Batch<'_, T>,
    gradient: &mut [T::Real],
) -> Result<Value> {
    // One of the pool's threads takes it from here, so that each parallel step below starts from within
    // the pool: from outside, every one of them would put the caller to sleep and wake it again.
    rayon::scope(|_| evaluate_in_pool(problem, batch, gradient))
}

fn evaluate_in_pool<T: Element>(
    problem: &Problem,
    batch: Batch<'_, T>,
    gradient: &mut [T::Real],
) -> Result<Value> {
    let upstream = problem.upstream_factor();
    match problem.loss() {
        Loss::RkdDistance(loss) => triplet::rkd(&(*loss).into(), batch, upstream, gradient),
        Loss::RkdAngle(loss) => triplet::rkd(&(*loss).into(), batch, upstream, gradient),
        Loss::Rkd(loss) => triplet::rkd(loss, batch, upstream, gradient),
        Loss::Rrd(loss) => match batch.queue {
            Some(queue) => contrastive::rrd::rrd(loss, batch, queue, upstream, gradient),
            // `Problem` lets no such batch through.
            None => Err(Error::Missing {
                argument: "queue",
                expected: "a queue of teacher keys",
            }),
        },
        Loss::InfoNce(loss) => contrastive::info_nce::info_nce(loss, batch, upstream, gradient),
        Loss::KdKl(loss) => logits::kd_kl(loss, batch, upstream, gradient),
    }
}
