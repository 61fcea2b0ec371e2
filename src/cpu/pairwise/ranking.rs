//! The ranking of neighbours: `Penalty::Ranking`.
//!
//! ```text
//! all distances of the teacher
//! for each row i, in parallel:
//!     π ← the nearest other rows of the teacher
//!     s_k = −α d_k^β                             the student's distances to these alone
//!     loss_i = Σ_k (log Σ_{m≥k} exp s_m − s_k)   w_m = Σ_{k≤m} exp(s_m − log Σ_{l≥k} exp s_l) − 1
//! gradient_i = 1/N Σ_j k_ij (x_i − x_j)          over i's neighbours, and the rows that i is one of
//! ```
//!
//! All of it is in f64: a score magnifies the rounding of a distance by its own size, and rounding a
//! distance of the teacher can exchange two neighbours.

use super::generic::relation_of;
use super::ops::row_scaling;
use crate::batch::Batch;
use crate::cpu::buffer::Buffer;
use crate::cpu::embeddings::Embeddings;
use crate::cpu::parallel::{map, try_map_blocks};
use crate::cpu::sums::sum_of;
use crate::element::Element;
use crate::error::Result;
use crate::loss::Pairwise;
use crate::simd::row_stride;

/// The parameters of `Penalty::Ranking`.
#[derive(Clone, Copy)]
pub(super) struct Ranking {
    pub(super) alpha: f64,
    pub(super) beta: f64,
    pub(super) length: usize,
}

/// A row and what x_i − x_j is multiplied by.
type Edge = (usize, f64);

/// The loss. `None` if an input is not finite.
pub(super) fn ranking<T: Element>(
    loss: &Pairwise,
    penalty: Ranking,
    normalize: bool,
    batch: Batch<'_, T>,
    upstream: f64,
    gradient: &mut [T::Real],
) -> Result<Option<f64>> {
    let scaling = row_scaling(loss, normalize);
    let Some((x, y)) = Embeddings::<f64>::both(batch, scaling)? else {
        return Ok(None);
    };
    let n = x.rows;
    let stride = row_stride::<f64>(n);
    let distances = relation_of(loss.relation, &y)?;
    let rows: Vec<(f64, Vec<Edge>)> = map(n, &|i| {
        let neighbors = nearest(&distances[i * stride..][..n], i, penalty.length);
        penalty.of_row(&x, i, &neighbors)
    });
    drop(distances);

    // Both rows of a pair have its edge, in the order of the rows whose neighbour it is.
    let mut edges: Vec<Vec<Edge>> = vec![Vec::new(); n];
    for (i, (_, of_row)) in rows.iter().enumerate() {
        for &(j, k) in of_row {
            edges[i].push((j, k));
            edges[j].push((i, k));
        }
    }
    let factor = upstream / n as f64;
    try_map_blocks(gradient, x.dim, &|i, out| {
        let mut g = Buffer::<f64>::zeros(x.stride)?;
        for &(j, k) in &edges[i] {
            for ((g, a), b) in g.iter_mut().zip(x.row(i)).zip(x.row(j)) {
                *g += k * (a - b);
            }
        }
        x.write_gradient(i, factor, &g, out);
        Ok(())
    })?;
    Ok(Some(
        rows.iter().map(|(loss, _)| loss).sum::<f64>() / n as f64,
    ))
}

/// The `length` nearest rows but row `i` itself, the nearest first, and of rows that are equally near
/// the lower index first.
fn nearest(distances: &[f64], i: usize, length: usize) -> Vec<usize> {
    let mut found: Vec<usize> = Vec::with_capacity(length + 1);
    for (j, &d) in distances.iter().enumerate() {
        let is_full = found.len() == length;
        if j == i || is_full && found.last().is_some_and(|&last| d >= distances[last]) {
            continue;
        }
        let at = found.partition_point(|&other| distances[other] <= d);
        found.insert(at, j);
        found.truncate(length);
    }
    found
}

impl Ranking {
    /// The row's loss, and the edges to its neighbours.
    fn of_row(self, x: &Embeddings<f64>, i: usize, neighbors: &[usize]) -> (f64, Vec<Edge>) {
        let square = |a: f64, b: f64| (a - b) * (a - b);
        let d: Vec<f64> = neighbors
            .iter()
            .map(|&j| sum_of(x.row(i), x.row(j), square).sqrt())
            .collect();
        let scores: Vec<f64> = d.iter().map(|d| -self.alpha * d.powf(self.beta)).collect();
        let mut loss = 0.0;
        let mut slopes = vec![-1.0; scores.len()];
        for k in 0..scores.len() {
            let left = &scores[k..];
            let max = left.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = left.iter().map(|s| (s - max).exp()).sum();
            loss += max - scores[k] + sum.ln();
            for (slope, s) in slopes[k..].iter_mut().zip(left) {
                *slope += (s - max).exp() / sum;
            }
        }
        let edge = |((&j, &d), slope): ((&usize, &f64), f64)| {
            let by_d = -slope * self.alpha * self.beta * d.powf(self.beta - 1.0);
            (j, if d == 0.0 { 0.0 } else { by_d / d })
        };
        (
            loss,
            neighbors.iter().zip(&d).zip(slopes).map(edge).collect(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_equally_near_rows_the_lower_index_is_first() {
        let distances = [2.0, 1.0, 0.0, 1.0, 2.0, 1.0, 0.5, 2.0];
        for length in 0..=8 {
            let want = [6, 1, 3, 5, 0, 4, 7];
            let got = nearest(&distances, 2, length);
            assert_eq!(got, want[..length.min(7)], "{length}");
        }
    }
}
