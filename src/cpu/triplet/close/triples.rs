//! The triples that have a close pair as an edge to the vertex.
//!
//! At a vertex j each unordered pair of ends is visited once, from the end i whose level with j in
//! the student is deeper, or whose number is greater if the levels are equal. So the student's
//! cosine always is that of the level of i. In the teacher the other end k may have the deeper
//! level. For some ends i at a time these cosines are computed before, from the rows of each such
//! k ([`super::deeper`]).
//!
//! The rows of a cluster are neighbours, at every level of the student ([`ClosePairs`]). So whole
//! columns of ends are visited from the other end only, and are skipped.
//!
//! The slopes are kept as two kinds of sums. With w the slope of the penalty, u and v the rows less
//! the first row of the cluster of i and j, and M = w r_ij r_kj:
//!
//! ```text
//! cos = r_ij r_kj ⟨u_i − u_j, v_k − u_j⟩
//! T_ik += M    T_jk −= M    T_ij −= M    T_jj += M       by level: ∂L/∂x_i = Σ_k T_ik v_k and
//!                                                                  ∂L/∂x_k = Σ_i T_ik u_i
//! A_ji += w cos    A_jk += w cos                         ∂L/∂x_i = −Σ_j (A_ij + A_ji) r_ij² (x_i − x_j)
//! ```

use std::ops::Range;

use pulp::{Simd, WithSimd};

use super::ClosePairs;
use super::clusters::f64s;
use super::deeper::{ByColumns, DeeperCosines, Edge, MOST_ENDS, WIDTH};
use crate::cpu::buffer::Buffer;
use crate::cpu::pairwise::pairs::{Block, for_all_pairs};
use crate::error::Result;
use crate::simd::{Lanes, dispatch};

/// Ends that are taken at a time. What a vertex has for them stays in the first-level cache.
const COLUMNS: usize = 128;

/// The sums of the slopes, row by row: T of each of the student's levels, then A. They have each
/// pair of ends once, of the two orders.
pub(super) struct Sums {
    data: Buffer<f64>,
    pairs: usize,
    levels: usize,
}

impl Sums {
    /// T of a row in units: unit · Σ M.
    pub(super) fn slopes(&self, level: usize, i: usize) -> &[f64] {
        let stride = (self.levels + 1) * self.pairs;
        &self.data[i * stride + level * self.pairs..][..self.pairs]
    }

    /// A of a row.
    pub(super) fn cosines(&self, j: usize) -> &[f64] {
        self.slopes(self.levels, j)
    }
}

/// The sum of the penalties, and the sums of their slopes.
pub(super) fn penalize(close: &ClosePairs, delta: f64) -> Result<(f64, Sums)> {
    let (n, pairs, levels) = (close.x.n, close.x.pairs, close.x.levels.len());
    let stride = (levels + 1) * pairs;
    let mut data = Buffer::zeros(n.saturating_mul(stride))?;
    let order = order(close)?;
    // Enough blocks to be shared among threads, and few rounds.
    let side = (n / 16).clamp(1, MOST_ENDS).next_multiple_of(WIDTH);
    let half_squares_y = ByColumns::new(&close.y, side)?;
    let block = |a: Rows<'_>, b: Option<Rows<'_>>| {
        Ok(dispatch(BlockPair {
            close,
            order: &order,
            delta,
            stride,
            a,
            b,
            deeper: DeeperCosines::new(&half_squares_y, pairs)?,
            extremes: Vec::new(),
        }))
    };
    let penalty = for_all_pairs(
        &mut data,
        stride,
        side,
        |a| block(a.into(), None),
        |a, b| block(a.into(), Some(b.into())),
    )?;
    let sums = Sums {
        data,
        pairs,
        levels,
    };
    Ok((penalty, sums))
}

/// For each vertex the order of its ends, `[N, pairs]`: of two ends, the triple is visited from the
/// one with the greater number. Ends that are not close have −1. The vertex itself and the padding
/// have ∞, so that no triple with them counts.
fn order(close: &ClosePairs) -> Result<Buffer<f64>> {
    let (x, y) = (&close.x, &close.y);
    let mut order = Buffer::zeros(x.n.saturating_mul(x.pairs))?;
    order.fill(f64::INFINITY);
    for (j, order) in order.chunks_exact_mut(x.pairs).enumerate() {
        for k in (0..x.n).filter(|&k| k != j) {
            order[k] = if x.is_close(j, k) || y.is_close(j, k) {
                (x.level(j, k) * x.n + k) as f64
            } else {
                -1.0
            };
        }
    }
    Ok(order)
}

/// A block's rows.
struct Rows<'a> {
    first: usize,
    rows: usize,
    data: &'a mut [f64],
}

impl Rows<'_> {
    fn range(&self) -> Range<usize> {
        self.first..self.first + self.rows
    }

    fn row(&mut self, stride: usize, i: usize) -> &mut [f64] {
        &mut self.data[(i - self.first) * stride..][..stride]
    }
}

impl<'a> From<&'a mut Block<'_, f64>> for Rows<'a> {
    fn from(block: &'a mut Block<'_, f64>) -> Self {
        Rows {
            first: block.first,
            rows: block.rows,
            data: block.data,
        }
    }
}

/// The triples whose vertex and close end are in one block, or one in each of two blocks.
struct BlockPair<'a> {
    close: &'a ClosePairs,
    order: &'a [f64],
    delta: f64,
    stride: usize,
    a: Rows<'a>,
    b: Option<Rows<'a>>,
    deeper: DeeperCosines<'a>,
    /// Of the orders of the vertex: the least and the most of each chunk of columns.
    extremes: Vec<(f64, f64)>,
}

impl WithSimd for BlockPair<'_> {
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, s: S) -> f64 {
        let mut penalty = 0.0;
        let ways = match &self.b {
            None => [Some((self.a.range(), self.a.range())), None],
            Some(b) => [
                Some((self.a.range(), b.range())),
                Some((b.range(), self.a.range())),
            ],
        };
        for (vertices, ends) in ways.into_iter().flatten() {
            for j in vertices {
                penalty += self.vertex(s, j, ends.clone());
            }
        }
        penalty
    }
}

impl BlockPair<'_> {
    /// The triples at the vertex j with a close end among `ends`.
    #[inline(always)]
    fn vertex<S: Simd>(&mut self, s: S, j: usize, ends: Range<usize>) -> f64 {
        let close = self.close;
        let all = close.of(j);
        let start = all.partition_point(|&i| i < ends.start);
        let end = all.partition_point(|&i| i < ends.end);
        let close_ends = &all[start..end];
        let pairs = close.x.pairs;
        let order = &self.order[j * pairs..][..pairs];
        let are_deeper = self
            .deeper
            .find(s, &close.y, j, order, ends.start, close_ends);
        self.extremes.clear();
        self.extremes.extend(order.chunks(COLUMNS).map(|order| {
            let (least, most) = (f64::INFINITY, -1.0);
            let orders = order.iter().copied();
            orders.fold((least, most), |(least, most), order| {
                (f64::min(least, order), f64::max(most, order))
            })
        }));
        let mut penalty = 0.0;
        for &i in close_ends {
            let (sums_j, sums_i) = two_rows(&mut self.a, self.b.as_mut(), self.stride, j, i);
            let level = close.x.level(j, i) * pairs;
            let (slopes_j, cosines_j) = sums_j.split_at_mut(close.x.levels.len() * pairs);
            let mut pair = Pair {
                delta: self.delta,
                order,
                order_i: order[i],
                x: Edge::new(&close.x, j, i),
                y: Edge::new(&close.y, j, i),
                deeper: are_deeper.then(|| self.deeper.of(i - ends.start)),
                slopes_j: &mut slopes_j[level..][..pairs],
                slopes_i: &mut sums_i[level..][..pairs],
                cosines_j,
                sum_m: 0.0,
                sum_cos: 0.0,
            };
            for (chunk, &(least, most)) in self.extremes.iter().enumerate() {
                let columns = chunk * COLUMNS..pairs.min((chunk + 1) * COLUMNS);
                // The two ends in either order.
                if most < order[i] {
                    penalty += 2.0 * pair.penalize::<S, true>(s, columns);
                } else if least < order[i] {
                    penalty += 2.0 * pair.penalize::<S, false>(s, columns);
                }
            }
            pair.cosines_j[i] += pair.sum_cos;
            pair.slopes_i[j] -= pair.sum_m;
            pair.slopes_j[j] += pair.sum_m;
        }
        // An end with itself: a cosine is 1, or 0 where the edge has no length.
        let cos = |r: f64| if r > 0.0 { 1.0 } else { 0.0 };
        for &i in close_ends {
            let e: f64 = cos(close.x.inverse(j, i)) - cos(close.y.inverse(j, i));
            let w = e.clamp(-self.delta, self.delta);
            penalty += w * (e - 0.5 * w);
        }
        penalty
    }
}

/// The rows j and i of one block, or of two blocks with one of them each.
fn two_rows<'a>(
    a: &'a mut Rows<'_>,
    b: Option<&'a mut Rows<'_>>,
    stride: usize,
    j: usize,
    i: usize,
) -> (&'a mut [f64], &'a mut [f64]) {
    let Some(b) = b else {
        let (low, high) = (j.min(i) - a.first, j.max(i) - a.first);
        let (before, from) = a.data.split_at_mut(high * stride);
        let (low, high) = (&mut before[low * stride..][..stride], &mut from[..stride]);
        return if j < i { (low, high) } else { (high, low) };
    };
    if a.range().contains(&j) {
        (a.row(stride, j), b.row(stride, i))
    } else {
        (b.row(stride, j), a.row(stride, i))
    }
}

/// The triples at the vertex j with the close end i.
struct Pair<'a> {
    delta: f64,
    /// Of the ends at this vertex, and of i.
    order: &'a [f64],
    order_i: f64,
    x: Edge<'a>,
    y: Edge<'a>,
    /// See [`DeeperCosines::of`].
    deeper: Option<(&'a [f64], &'a [f64])>,
    /// T_j and T_i of the student's level, and A_j.
    slopes_j: &'a mut [f64],
    slopes_i: &'a mut [f64],
    cosines_j: &'a mut [f64],
    /// What is to be added to T_jj and A_ji.
    sum_m: f64,
    sum_cos: f64,
}

impl Pair<'_> {
    /// The triples with the other ends of some columns, or `ALL` of them. Adds to the sums. Returns
    /// the sum of the penalties.
    #[inline(always)]
    fn penalize<S: Simd, const ALL: bool>(&mut self, s: S, columns: Range<usize>) -> f64 {
        let [r_y, h_y_j, h_y_i] = self.y.registers::<S>(&columns);
        let [r_x, h_x_j, h_x_i] = self.x.registers::<S>(&columns);
        let (y_factor, y_own) = (s.splat_f64s(self.y.inverse), s.splat_f64s(self.y.own));
        let (factor, own) = (s.splat_f64s(self.x.inverse), s.splat_f64s(self.x.own));
        let level_y = s.splat_f64s(self.y.level as f64);
        let deeper = self.deeper.map(|(levels, cosines)| {
            (
                f64s::<S>(&levels[columns.clone()]),
                f64s::<S>(&cosines[columns.clone()]),
            )
        });
        let slopes_j = S::as_mut_simd_f64s(&mut self.slopes_j[columns.clone()]).0;
        let slopes_i = S::as_mut_simd_f64s(&mut self.slopes_i[columns.clone()]).0;
        let cosines_j = S::as_mut_simd_f64s(&mut self.cosines_j[columns.clone()]).0;
        let order_k = f64s::<S>(&self.order[columns]);
        let order_i = s.splat_f64s(self.order_i);
        let zero = s.splat_f64s(0.0);
        let one_half = s.splat_f64s(0.5);
        let (delta, minus_delta) = (s.splat_f64s(self.delta), s.splat_f64s(-self.delta));
        let (mut penalties, mut ms, mut coss) = (zero, zero, zero);
        for v in 0..order_k.len() {
            let h = s.add_f64s(s.sub_f64s(h_y_j[v], h_y_i[v]), y_own);
            let mut cos_y = s.mul_f64s(s.mul_f64s(y_factor, r_y[v]), h);
            if let Some((levels, cosines)) = deeper {
                let is_deeper = s.less_than_f64s(level_y, levels[v]);
                cos_y = s.select_f64s(is_deeper, cosines[v], cos_y);
            }
            let h = s.add_f64s(s.sub_f64s(h_x_j[v], h_x_i[v]), own);
            let rr = s.mul_f64s(factor, r_x[v]);
            let cos = s.mul_f64s(rr, h);
            let e = s.sub_f64s(cos, cos_y);
            let mut w = s.min_f64s(delta, s.max_f64s(minus_delta, e));
            let rest = f64::vneg_mul_add(s, one_half, w, e);
            if !ALL {
                w = s.select_f64s(s.less_than_f64s(order_k[v], order_i), w, zero);
            }
            penalties = s.mul_add_f64s(w, rest, penalties);
            let w_cos = s.mul_f64s(w, cos);
            cosines_j[v] = s.add_f64s(cosines_j[v], w_cos);
            coss = s.add_f64s(coss, w_cos);
            let m = s.mul_f64s(w, rr);
            slopes_i[v] = s.add_f64s(slopes_i[v], m);
            slopes_j[v] = s.sub_f64s(slopes_j[v], m);
            ms = s.add_f64s(ms, m);
        }
        self.sum_m += s.reduce_sum_f64s(ms);
        self.sum_cos += s.reduce_sum_f64s(coss);
        s.reduce_sum_f64s(penalties)
    }
}
