//! What a row counts for.

use crate::checks::zeroed;
use crate::element::{Element, Real};
use crate::error::{Error, Result};
use crate::rows::Rows;

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

/// The sum of the weights of all rows that a mean is taken over.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct WeightSum {
    largest: f64,
    /// In units of the largest, so that it cannot overflow.
    sum: f64,
}

impl WeightSum {
    pub(crate) fn new<R: Real>(weights: &[R]) -> Self {
        let weights = weights.iter().map(|w| w.to_f64());
        let largest = weights.clone().fold(0.0, f64::max);
        let sum = if largest == 0.0 {
            0.0
        } else {
            weights.map(|w| w / largest).sum()
        };
        WeightSum { largest, sum }
    }

    /// The share of a row in the mean: w/Σw, or 0 where all weights are.
    fn share<R: Real>(&self, weight: R) -> f64 {
        if self.largest == 0.0 {
            return 0.0;
        }
        weight.to_f64() / self.largest / self.sum
    }

    /// The shares of these rows.
    pub(crate) fn shares<R: Real>(&self, weights: &[R]) -> Vec<f64> {
        weights.iter().map(|&w| self.share(w)).collect()
    }
}

/// The rows of all ranks, over which the mean is taken where a batch has a part of them only.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct AllRows {
    /// How many there are.
    pub(crate) rows: usize,
    /// How many come after those of the batch.
    pub(crate) after: usize,
    /// The sum of their weights, if they have some.
    pub(crate) weights: Option<WeightSum>,
    /// The part of the mean that the batch's rows have together.
    pub(crate) part: f64,
}

/// A copy of the rows with zeros in place of those that have no share in the mean, which may hold
/// anything; `None` if all have one.
pub(crate) fn cleared<T: Element>(rows: Rows<'_, T>, shares: &[f64]) -> Result<Option<Vec<T>>> {
    if shares.iter().all(|&share| share != 0.0) {
        return Ok(None);
    }
    let mut copy = zeroed("workspace", rows.as_slice().len())?;
    let out = copy.chunks_exact_mut(rows.dim().max(1));
    for ((row, out), &share) in rows.iter().zip(out).zip(shares) {
        if share != 0.0 {
            out.copy_from_slice(row);
        }
    }
    Ok(Some(copy))
}

/// How the losses of rows become one: by their mean, weighted where rows have weights.
pub(crate) struct RowMean {
    rows: usize,
    shares: Option<Vec<f64>>,
    /// The factor of the gradient.
    upstream: f64,
}

impl RowMean {
    /// Over so many rows, or by the shares of the batch's rows where they have weights.
    pub(crate) fn new(rows: usize, shares: Option<Vec<f64>>, upstream: f64) -> Self {
        RowMean {
            rows,
            shares,
            upstream,
        }
    }

    /// The shares of rows that have weights.
    pub(crate) fn shares(&self) -> Option<&[f64]> {
        self.shares.as_deref()
    }

    /// What the gradient of row i's loss is multiplied by, divided by a temperature.
    pub(crate) fn factor(&self, i: usize, temperature: f64) -> f64 {
        match &self.shares {
            None => self.upstream / (self.rows as f64 * temperature),
            Some(shares) => self.upstream * shares[i] / temperature,
        }
    }

    /// The mean of the rows' values.
    pub(crate) fn mean(&self, values: impl Iterator<Item = f64>) -> f64 {
        match &self.shares {
            None => values.sum::<f64>() / self.rows as f64,
            Some(shares) => values.zip(shares).map(|(value, share)| value * share).sum(),
        }
    }

    /// Stores the losses of rows. A row without a share has none.
    pub(crate) fn store(&self, losses: impl Iterator<Item = f64>, out: &mut [f64]) {
        for (i, (out, loss)) in out.iter_mut().zip(losses).enumerate() {
            let counts = self.shares().is_none_or(|shares| shares[i] != 0.0);
            *out = if counts { loss } else { 0.0 };
        }
    }
}
