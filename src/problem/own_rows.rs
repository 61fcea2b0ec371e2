//! A mean over more rows than the batch has: the rows of all ranks.

use super::Problem;
use crate::element::Real;
use crate::row_weights::{AllRows, RowMean, WeightSum};
use crate::shapes::Shapes;

impl Problem {
    /// The problem of `rows` of its rows alone. An evaluation gives what these rows add to the loss
    /// and to the terms, and their gradient. No rows are a problem too, but no device takes it.
    pub(crate) fn of_own_rows(&self, rows: usize, all_rows: AllRows) -> Problem {
        Problem {
            shapes: Shapes {
                rows,
                ..self.shapes
            },
            all_rows: Some(all_rows),
            ..*self
        }
    }

    /// Whether the [checked mode](Self::with_checked) is on.
    pub(crate) fn checked(&self) -> bool {
        self.checked
    }

    /// Whether the batch has a part of the rows only.
    pub(crate) fn is_of_own_rows(&self) -> bool {
        self.all_rows.is_some()
    }

    /// The number of rows that the mean is taken over.
    pub(crate) fn mean_rows(&self) -> usize {
        self.all_rows.map_or(self.shapes.rows, |all| all.rows)
    }

    /// How many rows come after those of the batch.
    pub(crate) fn rows_after(&self) -> usize {
        self.all_rows.map_or(0, |all| all.after)
    }

    /// The part of the mean that the batch's rows have together: 1 if they are all.
    #[cfg(any(feature = "cuda", feature = "emulator"))]
    pub(crate) fn part(&self) -> f64 {
        self.all_rows.map_or(1.0, |all| all.part)
    }

    /// The share of each of the batch's rows in the mean, where they have weights.
    pub(crate) fn shares<R: Real>(&self, weights: &[R]) -> Vec<f64> {
        let sum = self.all_rows.and_then(|all| all.weights);
        sum.unwrap_or_else(|| WeightSum::new(weights))
            .shares(weights)
    }

    /// How the losses of the batch's rows become one.
    pub(crate) fn row_mean<R: Real>(&self, weights: Option<&[R]>) -> RowMean {
        let shares = weights.map(|weights| self.shares(weights));
        RowMean::new(self.mean_rows(), shares, self.upstream)
    }
}
