//! The triples that have a close pair as an edge to the vertex.
//!
//! At a vertex j each unordered pair of ends is visited once, from the end i whose level with j in
//! the student is deeper, or whose number is greater if the levels are equal. So the student's
//! cosine always is that of the level of i. In the teacher the other end may have the deeper level;
//! these cosines are put right one by one.
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
use super::clusters::{Side, f64s};
use crate::cpu::buffer::Buffer;
use crate::cpu::pairwise::pairs::{Block, for_all_pairs};
use crate::error::Result;
use crate::simd::{Lanes, dispatch};

/// The sums of the slopes, row by row: T of each of the student's levels, then A.
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
    let block = |a: Rows<'_>, b: Option<Rows<'_>>| {
        let cos_y = Buffer::zeros(pairs)?;
        Ok(dispatch(BlockPair {
            close,
            order: &order,
            delta,
            stride,
            a,
            b,
            cos_y,
        }))
    };
    // Enough blocks to be shared among threads, and few rounds.
    let side = (n / 32).clamp(1, 32);
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
    /// The teacher's cosines of an end with all others.
    cos_y: Buffer<f64>,
}

impl WithSimd for BlockPair<'_> {
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) -> f64 {
        let BlockPair {
            close,
            order,
            delta,
            stride,
            mut a,
            mut b,
            mut cos_y,
        } = self;
        let mut penalty = 0.0;
        let ways = match &b {
            None => [Some((a.range(), a.range())), None],
            Some(b) => [Some((a.range(), b.range())), Some((b.range(), a.range()))],
        };
        for (vertices, ends) in ways.into_iter().flatten() {
            for j in vertices {
                let close_ends = close.of(j);
                let start = close_ends.partition_point(|&i| i < ends.start);
                let end = close_ends.partition_point(|&i| i < ends.end);
                for &i in &close_ends[start..end] {
                    let (sums_j, sums_i) = two_rows(&mut a, b.as_mut(), stride, j, i);
                    let pair = Pair {
                        close,
                        order: &order[j * close.x.pairs..][..close.x.pairs],
                        delta,
                        j,
                        i,
                        sums_j,
                        sums_i,
                        cos_y: &mut cos_y,
                    };
                    penalty += pair.penalize(s);
                }
            }
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
    close: &'a ClosePairs,
    /// Of the ends at this vertex.
    order: &'a [f64],
    delta: f64,
    j: usize,
    i: usize,
    sums_j: &'a mut [f64],
    sums_i: &'a mut [f64],
    cos_y: &'a mut [f64],
}

impl Pair<'_> {
    /// Adds to the sums. Returns the sum of the penalties.
    #[inline(always)]
    fn penalize<S: Simd>(self, s: S) -> f64 {
        let Pair {
            close,
            order,
            delta,
            j,
            i,
            sums_j,
            sums_i,
            cos_y,
        } = self;
        let (x, y) = (&close.x, &close.y);
        let pairs = x.pairs;
        let y_edge = Edge::new(y, j, i);
        let [r_y, h_y_j, h_y_i] = y_edge.registers::<S>();
        let (factor, own) = (s.splat_f64s(y_edge.inverse), s.splat_f64s(y_edge.own));
        {
            let cos_y = S::as_mut_simd_f64s(cos_y).0;
            for v in 0..cos_y.len() {
                let h = s.add_f64s(s.sub_f64s(h_y_j[v], h_y_i[v]), own);
                cos_y[v] = s.mul_f64s(s.mul_f64s(factor, r_y[v]), h);
            }
        }
        let level_y = y.level(j, i);
        if usize::from(y.deepest[j]) > level_y {
            for k in (0..y.n).filter(|&k| k != j && y.level(j, k) > level_y) {
                if order[k] < order[i] {
                    let edge = Edge::new(y, j, k);
                    cos_y[k] = edge.cosine_to(y, j, i);
                }
            }
        }

        let x_edge = Edge::new(x, j, i);
        let [r_x, h_x_j, h_x_i] = x_edge.registers::<S>();
        let (factor, own) = (s.splat_f64s(x_edge.inverse), s.splat_f64s(x_edge.own));
        let level = x.level(j, i) * pairs;
        let last = x.levels.len() * pairs;
        let (mut penalty, mut sum_m, mut sum_cos) = (0.0, 0.0, 0.0);
        {
            let (slopes_j, cosines_j) = sums_j.split_at_mut(last);
            let slopes_j = S::as_mut_simd_f64s(&mut slopes_j[level..][..pairs]).0;
            let cosines_j = S::as_mut_simd_f64s(cosines_j).0;
            let slopes_i = S::as_mut_simd_f64s(&mut sums_i[level..][..pairs]).0;
            let (order_k, cos_y) = (f64s::<S>(order), f64s::<S>(cos_y));
            let order_i = s.splat_f64s(order[i]);
            let (zero, two) = (s.splat_f64s(0.0), s.splat_f64s(2.0));
            let one_half = s.splat_f64s(0.5);
            let (delta, minus_delta) = (s.splat_f64s(delta), s.splat_f64s(-delta));
            let (mut penalties, mut ms, mut coss) = (zero, zero, zero);
            for v in 0..order_k.len() {
                let h = s.add_f64s(s.sub_f64s(h_x_j[v], h_x_i[v]), own);
                let cos = s.mul_f64s(s.mul_f64s(factor, r_x[v]), h);
                let e = s.sub_f64s(cos, cos_y[v]);
                let w = s.min_f64s(delta, s.max_f64s(minus_delta, e));
                let huber = s.mul_f64s(w, f64::vneg_mul_add(s, one_half, w, e));
                // The two ends in either order.
                let times = s.less_than_f64s(order_k[v], order_i);
                let times = s.select_f64s(times, two, zero);
                let w = s.mul_f64s(times, w);
                penalties = s.mul_add_f64s(times, huber, penalties);
                let w_cos = s.mul_f64s(w, cos);
                cosines_j[v] = s.add_f64s(cosines_j[v], w_cos);
                coss = s.add_f64s(coss, w_cos);
                let m = s.mul_f64s(s.mul_f64s(w, factor), r_x[v]);
                slopes_i[v] = s.add_f64s(slopes_i[v], m);
                slopes_j[v] = s.sub_f64s(slopes_j[v], m);
                ms = s.add_f64s(ms, m);
            }
            penalty += s.reduce_sum_f64s(penalties);
            sum_m += s.reduce_sum_f64s(ms);
            sum_cos += s.reduce_sum_f64s(coss);
        }
        sums_j[last + i] += sum_cos;
        sums_i[level + j] -= sum_m;
        sums_j[level + j] += sum_m;
        // The end with itself: a cosine is 1, or 0 where the edge has no length.
        let cos = |r: f64| if r > 0.0 { 1.0 } else { 0.0 };
        let e: f64 = cos(x_edge.inverse) - cos(y_edge.inverse);
        let w = e.clamp(-delta, delta);
        penalty + w * (e - 0.5 * w)
    }
}

/// The edge from a vertex j to an end i, in the units of their level.
struct Edge<'a> {
    /// unit/d
    inverse: f64,
    /// ½d²/unit
    own: f64,
    /// 1/d of j and all rows.
    inverses: &'a [f64],
    half_squares_j: &'a [f64],
    half_squares_i: &'a [f64],
}

impl<'a> Edge<'a> {
    #[inline(always)]
    fn new(side: &'a Side, j: usize, i: usize) -> Self {
        let level = side.level(j, i);
        let half_squares_j = side.half_squares(level, j);
        Edge {
            inverse: side.inverse(j, i) * side.levels[level].unit,
            own: half_squares_j[i],
            inverses: side.inverses(j),
            half_squares_j,
            half_squares_i: side.half_squares(level, i),
        }
    }

    /// 1/d and both rows of ½d².
    #[inline(always)]
    fn registers<S: Simd>(&self) -> [&'a [S::f64s]; 3] {
        [
            f64s::<S>(self.inverses),
            f64s::<S>(self.half_squares_j),
            f64s::<S>(self.half_squares_i),
        ]
    }

    /// The cosine at j between this edge and that to k.
    fn cosine_to(&self, side: &Side, j: usize, k: usize) -> f64 {
        let h = self.half_squares_j[k] - self.half_squares_i[k] + self.own;
        self.inverse * side.inverse(j, k) * h
    }
}
