//! Losses over pairs of rows, and what they share with RKD's triples.

pub(in crate::cpu) mod contraction;
pub(in crate::cpu) mod distances;
mod generic;
mod ops;
mod order;
pub(in crate::cpu) mod pair_sums;
pub(in crate::cpu) mod pairs;
pub(in crate::cpu) mod prefixes;
mod ranking;
pub(in crate::cpu) mod relation;
pub(in crate::cpu) mod rkd_distance;

use crate::batch::Batch;
use crate::element::Element;
use crate::error::Result;
use crate::loss::Pairwise;

/// The loss. `None` if an input is not finite.
pub(super) fn evaluate<T: Element>(
    loss: &Pairwise,
    normalize: bool,
    batch: Batch<'_, T>,
    upstream: f64,
    gradient: &mut [T::Real],
) -> Result<Option<f64>> {
    match loss.as_triplet() {
        // RKD's distance has an evaluation of its own, with measured rules for its precision.
        Some(loss) => {
            let (delta, weight) = (loss.delta, loss.distance_weight);
            let value =
                rkd_distance::evaluate(delta, weight, normalize, batch, upstream, gradient)?;
            Ok(value.map(|(weighted, _)| weighted))
        }
        None => generic::pairwise(loss, normalize, batch, upstream, gradient),
    }
}
