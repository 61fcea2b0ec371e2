//! The order of pairs: `Penalty::Order`, by sorting and counting.
//!
//! ```text
//! pairs a = (i < j) sorted by (t_a, a)           the one before is to be less alike: `low`, `high`
//! term(low, high) = max(0, s_low − s_high + margin)
//! net_a = #{high behind a: its term with a > 0} − #{low before a: its term with a > 0}
//! M ∂L/∂s_a = net_a           M L = Σ_a s_a net_a + margin · #{terms > 0}
//! gradient_i = 1/M Σ_j net_ij x_j                the contraction
//! ```
//!
//! 1. The numbers net_a come from a merge sort by s of pairs that are sorted by t. Where a left half
//!    meets a right half, both sorted by s, the terms above 0 of a pair are those with a range of the
//!    other half that moves one way. That takes O(P log P) for P = N(N − 1)/2 pairs.
//! 2. s_low − s_high > −margin has one answer with and without rounding the sum, and rounding the
//!    difference does not change that the range moves one way. So the counts are those of the
//!    definition, evaluated in f64.
//! 3. All of it is in f64. In f32, rounding s by 6e-8 would turn over terms near 0.

use rayon::slice::ParallelSliceMut;

use super::contraction::contract_product;
use super::generic::relation_of;
use super::ops::row_scaling;
use crate::batch::Batch;
use crate::checks::zeroed;
use crate::cpu::embeddings::Embeddings;
use crate::cpu::parallel::map;
use crate::cpu::sums::dot;
use crate::element::Element;
use crate::error::Result;
use crate::loss::Pairwise;
use crate::simd::row_stride;

/// Pairs that are compared one by one.
const DIRECT: usize = 16;
/// Pairs that a task counts by itself.
const TASK: usize = 1 << 13;

/// A pair of rows.
#[derive(Clone, Copy, bytemuck::Zeroable)]
struct Pair {
    /// t, and then s.
    similarity: f64,
    /// i · 2¹⁶ + j, i < j: it counts up row by row.
    rows: u32,
    net: i32,
}

impl Pair {
    fn row(self) -> [usize; 2] {
        [(self.rows >> 16) as usize, (self.rows & 0xffff) as usize]
    }
}

/// The loss. `None` if an input is not finite.
pub(super) fn order<T: Element>(
    loss: &Pairwise,
    margin: f64,
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
    let terms = terms(n);
    if terms == 0.0 {
        gradient.fill(T::Real::from_f64(0.0));
        return Ok(Some(0.0));
    }
    let stride = row_stride::<f64>(n);
    let s = relation_of(loss.relation, &x)?;
    let mut matrix = relation_of(loss.relation, &y)?;
    let value = coefficients(&s, &mut matrix, n, margin)?;
    contract_product(&x, &matrix, stride, upstream / terms, gradient)?;
    Ok(Some(value))
}

/// M: the number of terms.
pub(super) fn terms(n: usize) -> f64 {
    let count = n * (n - 1) / 2;
    count as f64 * (count as f64 - 1.0).max(0.0) / 2.0
}

/// The loss of the student's similarities and, in `matrix`, the teacher's, `[N, row_stride(N)]`.
/// `matrix` becomes the coefficients that the contraction takes, times M.
pub(super) fn coefficients(s: &[f64], matrix: &mut [f64], n: usize, margin: f64) -> Result<f64> {
    let count = n * (n - 1) / 2;
    if count < 2 {
        matrix.fill(0.0);
        return Ok(0.0);
    }
    let stride = row_stride::<f64>(n);

    let mut pairs = zeroed::<Pair>("workspace", count)?;
    let mut slots = pairs.iter_mut();
    for i in 0..n {
        let row = matrix[i * stride..][..n].iter().enumerate().skip(i + 1);
        for ((j, &t), slot) in row.zip(&mut slots) {
            slot.similarity = t;
            slot.rows = (i << 16 | j) as u32;
        }
    }
    pairs.par_sort_unstable_by(|a, b| {
        // Zeros of both signs are equal.
        let [t_a, t_b] = [a, b].map(|pair| pair.similarity + 0.0);
        t_a.total_cmp(&t_b).then(a.rows.cmp(&b.rows))
    });
    for pair in &mut pairs {
        let [i, j] = pair.row();
        pair.similarity = s[i * stride + j];
    }
    let positive = {
        let mut scratch = zeroed::<Pair>("workspace", count)?;
        count_terms(&mut pairs, &mut scratch, margin)
    };
    for i in 0..n {
        matrix[i * stride + i] = 0.0;
    }
    for pair in &pairs {
        let [i, j] = pair.row();
        matrix[i * stride + j] = f64::from(pair.net);
        matrix[j * stride + i] = f64::from(pair.net);
    }
    drop(pairs);

    let row =
        |matrix: &[f64], i: usize| dot(&matrix[i * stride..][..stride], &s[i * stride..][..stride]);
    // Each pair is in two rows.
    let sums = map(n, &|i| row(matrix, i));
    let terms = terms(n);
    Ok(0.5 * sums.iter().sum::<f64>() / terms + margin * (positive as f64 / terms))
}

/// Adds to each pair's `net`, sorts the pairs by similarity, and gives the number of terms above 0.
fn count_terms(pairs: &mut [Pair], scratch: &mut [Pair], margin: f64) -> u64 {
    if pairs.len() <= DIRECT {
        return count_directly(pairs, margin);
    }
    let middle = pairs.len() / 2;
    let large = pairs.len() > TASK;
    let (left, right) = pairs.split_at_mut(middle);
    let (for_left, for_right) = scratch.split_at_mut(middle);
    let (in_left, in_right) = if large {
        rayon::join(
            || count_terms(left, for_left, margin),
            || count_terms(right, for_right, margin),
        )
    } else {
        (
            count_terms(left, for_left, margin),
            count_terms(right, for_right, margin),
        )
    };
    let across = count_across(left, right, margin);
    merge(left, right, scratch);
    pairs.copy_from_slice(scratch);
    in_left + in_right + across
}

fn is_positive(low: Pair, high: Pair, margin: f64) -> bool {
    low.similarity - high.similarity > -margin
}

fn count_directly(pairs: &mut [Pair], margin: f64) -> u64 {
    let mut positive = 0;
    for high in 1..pairs.len() {
        for low in 0..high {
            if is_positive(pairs[low], pairs[high], margin) {
                pairs[low].net += 1;
                pairs[high].net -= 1;
                positive += 1;
            }
        }
    }
    pairs.sort_unstable_by(|a, b| {
        a.similarity
            .total_cmp(&b.similarity)
            .then(a.rows.cmp(&b.rows))
    });
    positive
}

/// The terms of pairs of `low` with pairs of `high`, both sorted by similarity.
fn count_across(low: &mut [Pair], high: &mut [Pair], margin: f64) -> u64 {
    let mut positive = 0;
    let mut end = 0; // terms with high[..end] are above 0
    for low in &mut *low {
        while end < high.len() && is_positive(*low, high[end], margin) {
            end += 1;
        }
        low.net += end as i32;
        positive += end as u64;
    }
    let mut start = 0; // terms with low[start..] are above 0
    for high in high {
        while start < low.len() && !is_positive(low[start], *high, margin) {
            start += 1;
        }
        high.net -= (low.len() - start) as i32;
    }
    positive
}

/// Merges two halves that are sorted by similarity.
fn merge(left: &[Pair], right: &[Pair], merged: &mut [Pair]) {
    let (mut l, mut r) = (0, 0);
    for slot in merged {
        let takes_left =
            r == right.len() || l < left.len() && left[l].similarity <= right[r].similarity;
        if takes_left {
            *slot = left[l];
            l += 1;
        } else {
            *slot = right[r];
            r += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sequence with ties, and differences of exactly the margin.
    fn pairs(count: u32) -> Vec<Pair> {
        let pair = |rows: u32| Pair {
            similarity: f64::from(rows.wrapping_mul(2_654_435_761) >> 24) / 256.0 - 0.5,
            rows,
            net: 0,
        };
        (0..count).map(pair).collect()
    }

    #[test]
    fn counts_are_those_of_plain_loops() {
        for count in [0, 1, 2, 16, 17, 100, 20_000] {
            for margin in [0.0, 3.0 / 256.0, 0.3, 5.0] {
                let (mut got, mut want) = (pairs(count), pairs(count));
                let mut scratch = got.clone();
                let positive = count_terms(&mut got, &mut scratch, margin);
                assert_eq!(
                    positive,
                    count_directly(&mut want, margin),
                    "{count}, {margin}"
                );
                assert!(got.is_sorted_by(|a, b| a.similarity <= b.similarity));
                got.sort_unstable_by_key(|pair| pair.rows);
                want.sort_unstable_by_key(|pair| pair.rows);
                let nets = |pairs: &[Pair]| pairs.iter().map(|pair| pair.net).collect::<Vec<_>>();
                assert_eq!(nets(&got), nets(&want), "{count}, {margin}");
            }
        }
    }
}
