//! What a row counts for.

use crate::element::Real;
use crate::error::{Error, Result};

/// Refuses weights that are negative or not finite.
pub(crate) fn check<R: Real>(weights: &[R]) -> Result<()> {
    let is_weight = |w: f64| w.is_finite() && w >= 0.0;
    match weights.iter().map(|w| w.to_f64()).find(|&w| !is_weight(w)) {
        None => Ok(()),
        Some(got) => Err(Error::Parameter {
            argument: "row_weights",
            expected: "finite numbers of at least 0",
            got,
        }),
    }
}

/// The share of each row in a mean: w_i/Σw, or 0 where all weights are.
pub(crate) fn shares<R: Real>(weights: &[R]) -> Vec<f64> {
    let weights = weights.iter().map(|w| w.to_f64());
    let largest = weights.clone().fold(0.0, f64::max);
    if largest == 0.0 {
        return vec![0.0; weights.len()];
    }
    // In units of the largest: the sum cannot overflow.
    let sum: f64 = weights.clone().map(|w| w / largest).sum();
    weights.map(|w| w / largest / sum).collect()
}
