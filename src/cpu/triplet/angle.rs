//! The angle penalty over all triples of rows, by the law of cosines.
//!
//! With h = ½d² and r = 1/d, the cosine at vertex j between the ends i and k is
//!
//! ```text
//! cos_jik = r_ij r_kj (h_ij + h_kj − h_ik)
//! ```
//!
//! The algorithm, where w is the slope of the penalty at the difference e of two cosines:
//!
//! ```text
//! for each pair of blocks of rows, in rounds of pairs that share no block:   for_all_pairs
//!     for each chunk of vertices j, for each panel of ends k, for each end i:
//!         G_ik ← 0
//!         for each vertex j of the chunk:                                    angle_tile
//!             e     = cos_jik(X) − cos_jik(Y)        w = clamp(e, −δ, δ)
//!             loss += w (e − ½w)
//!             G_ik += w r_ij r_kj                    the edge between the ends
//!             S_ij += w (r_kj − cos r_ij)            the edges to the vertex
//!             S_kj += w (r_ij − cos r_kj)
//!         S_ik −= 2 · ½d_ik · G_ik
//! ∂L/∂h_ij = −(2/N³) r_ij (S_ij + S_ji)                                      by the caller
//! ```
//!
//! 1. Each unordered pair of ends is visited once. The tile of some ends with themselves has every
//!    pair in both orders, so it counts half.
//! 2. Vertices lie along the lanes. For a pair (i, k) the rows i and k of each matrix are read in
//!    order, h_ik is one number, and no lane is shuffled.
//! 3. S leaves out a factor r_ij that all terms of an edge share. The caller multiplies by it. G
//!    therefore enters S with a factor d_ik.
//! 4. Chunks of vertices and panels of ends keep the rows in use in the first-level cache.
//! 5. If no e can exceed δ, w = e, and the clamp is left out.
//! 6. A pair of blocks has sums of its own. Shorter sums round less.

use std::ops::Range;

use pulp::{Simd, WithSimd};

use super::angle_tile::{ENDS, Tile};
use super::distance_penalty::half_distance;
use super::pair_table::{PairField, PairTable, ROWS};
use crate::cpu::buffer::Buffer;
use crate::cpu::pairwise::pairs::for_all_pairs;
use crate::element::Real;
use crate::error::Result;
use crate::simd::dispatch;

/// Ends k in a panel. Their rows stay in the first-level cache for all ends i of a block.
const PANEL: usize = ROWS;
/// Lines of vertices in a chunk. The rows of 2 ends and their sums fill 40 KiB.
const LINES: usize = 64;

/// The spread up to which no triangle has an obtuse angle: √2, less what rounding may do.
const ACUTE: f64 = 1.414;

/// Returns the sum of the penalty over all ordered triples. Accumulates S into `sums`, which must
/// start at zero. Then ∂L/∂h_ij = −(2/N³) r_ij (S_ij + S_ji).
pub(in crate::cpu) fn penalize<R: Real>(
    delta: f64,
    table: &PairTable<R>,
    sums: &mut [R],
) -> Result<f64> {
    // Cosines between 0 and 1 differ by no more than 1. (They are 0 where an edge has no length,
    // and 1 where the one between the ends has none.)
    let clamped = !(table.spread <= ACUTE && delta >= 1.0);
    let upper = for_all_pairs(
        sums,
        table.stride(),
        block_side(table.rows),
        |block| {
            let mut s_k = Buffer::zeros(block.data.len())?;
            let ends = (block.first, block.rows);
            let penalty = dispatch(BlockPair {
                delta,
                clamped,
                table,
                i: ends,
                k: ends,
                s_i: block.data,
                s_k: &mut s_k,
            });
            add(block.data, &s_k);
            Ok(penalty)
        },
        |a, b| {
            // Sums of this pair of blocks alone: shorter sums round less.
            let mut s_i = Buffer::zeros(a.data.len())?;
            let mut s_k = Buffer::zeros(b.data.len())?;
            let penalty = dispatch(BlockPair {
                delta,
                clamped,
                table,
                i: (a.first, a.rows),
                k: (b.first, b.rows),
                s_i: &mut s_i,
                s_k: &mut s_k,
            });
            add(a.data, &s_i);
            add(b.data, &s_k);
            Ok(penalty)
        },
    )?;
    Ok(2.0 * upper)
}

/// Adds up two slices.
struct Add<'a, R> {
    sums: &'a mut [R],
    terms: &'a [R],
}

impl<R: Real> WithSimd for Add<'_, R> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let terms = R::vectors::<S>(self.terms);
        let sums = R::vectors_mut::<S>(self.sums);
        for v in 0..sums.len().min(terms.len()) {
            sums[v] = R::vadd(s, sums[v], terms[v]);
        }
    }
}

fn add<R: Real>(sums: &mut [R], terms: &[R]) {
    dispatch(Add { sums, terms });
}

/// Rows in a block: enough to pay for the start of a round, and so few that many pairs of blocks
/// run at the same time.
fn block_side(rows: usize) -> usize {
    (rows / 16).next_multiple_of(ROWS).clamp(32, 64)
}

/// All pairs of ends (i, k) with i in one block and k in another, or both in one block with k ≥ i.
/// A block is its first row and its number of rows.
struct BlockPair<'a, R: Real> {
    delta: f64,
    /// Whether some |e| may exceed δ.
    clamped: bool,
    table: &'a PairTable<R>,
    i: (usize, usize),
    k: (usize, usize),
    s_i: &'a mut [R],
    s_k: &'a mut [R],
}

impl<R: Real> WithSimd for BlockPair<'_, R> {
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, s: S) -> f64 {
        let mut penalty = 0.0;
        for line in (0..self.table.used_lines).step_by(LINES) {
            let lines = line..self.table.used_lines.min(line + LINES);
            for panel in (0..self.k.1).step_by(PANEL) {
                for i in (0..self.i.1).step_by(ENDS) {
                    penalty += self.panel(s, &lines, i, panel);
                }
            }
        }
        penalty
    }
}

impl<R: Real> BlockPair<'_, R> {
    /// The pairs of the ends from `i` on with those of a panel, at the vertices of some lines.
    #[inline(always)]
    fn panel<S: Simd>(&mut self, s: S, lines: &Range<usize>, i: usize, panel: usize) -> f64 {
        let table = self.table;
        let stride = table.stride();
        let (first_i, first_k) = (self.i.0 + i, self.k.0 + panel);
        let within = self.i.0 == self.k.0;
        // The numbers of the edges between the ends: a panel lies within a line.
        let edges = |end: usize, field: PairField| -> &[R; PANEL] {
            let at = (first_k / R::PAD * 4 + field.line()) * R::PAD + first_k % R::PAD;
            table.row(first_i + end)[at..]
                .first_chunk()
                .expect("a panel in a line")
        };
        let h_x = [
            edges(0, PairField::StudentHalfSquare),
            edges(1, PairField::StudentHalfSquare),
        ];
        let h_y = [
            edges(0, PairField::TeacherHalfSquare),
            edges(1, PairField::TeacherHalfSquare),
        ];
        let delta = R::from_f64(self.delta);
        let ends_i = registers::<R, S>(table, first_i, lines);
        let [mut sums_0, mut sums_1] = sums::<R, S>(&mut self.s_i[i * stride..], stride, lines);
        let mut penalties = [R::splat(s, R::ZERO); ENDS];
        let mut g = [[R::splat(s, R::ZERO); ENDS]; PANEL];
        for tile in (0..PANEL).step_by(ENDS) {
            let k = panel + tile;
            if within && k < i {
                continue;
            }
            let pair = |h: [&[R; PANEL]; ENDS]| {
                [[h[0][tile], h[0][tile + 1]], [h[1][tile], h[1][tile + 1]]]
            };
            let tile = Tile {
                s,
                delta,
                h_x: pair(h_x),
                h_y: pair(h_y),
                ends_i,
                ends_k: registers::<R, S>(table, first_k + tile, lines),
                sums_i: [&mut sums_0, &mut sums_1],
                sums_k: sums::<R, S>(&mut self.s_k[k * stride..], stride, lines),
                g: g[tile..].first_chunk_mut().expect("a tile in a panel"),
            };
            // The tile of some ends with themselves has every pair in both orders, so its penalties
            // and slopes count half. So do its pairs of equal ends, whose cosines are 1, or 0 where
            // the edge has no length.
            match (within && k == i, self.clamped) {
                (false, false) => tile.penalize::<false, false>(&mut penalties),
                (false, true) => tile.penalize::<false, true>(&mut penalties),
                (true, false) => tile.penalize::<true, false>(&mut penalties),
                (true, true) => tile.penalize::<true, true>(&mut penalties),
            }
        }
        // The sums hold −S and g holds −G, which enters with a factor d.
        for u in 0..ENDS {
            let (h, r) = (h_x[u], edges(u, PairField::StudentInverse));
            let out = &mut self.s_i[(i + u) * stride + first_k..][..PANEL];
            for k in 0..PANEL {
                let (h, r) = (h[k].to_f64(), r[k].to_f64());
                // A masked close pair has no 1/d in the table.
                let half = if r > 0.0 {
                    half_distance(h, r)
                } else {
                    (0.5 * h).sqrt()
                };
                let g = R::reduce_sum(s, g[k][u]).to_f64();
                out[k] += R::from_f64(-2.0 * half * g);
            }
        }
        let sum: f64 = penalties
            .into_iter()
            .map(|lanes| R::reduce_sum(s, lanes).to_f64())
            .sum();
        // Without the clamp the tile adds up e².
        if self.clamped { sum } else { 0.5 * sum }
    }
}

/// Some lines of the rows from `first` on.
#[inline(always)]
fn registers<'a, R: Real, S: Simd>(
    table: &'a PairTable<R>,
    first: usize,
    lines: &Range<usize>,
) -> [&'a [R::Of<S>]; ENDS] {
    let lines = lines.start * 4 * R::PAD..lines.end * 4 * R::PAD;
    [
        R::vectors::<S>(&table.row(first)[lines.clone()]),
        R::vectors::<S>(&table.row(first + 1)[lines]),
    ]
}

/// Some lines of the first rows of a matrix, to write.
#[inline(always)]
fn sums<'a, R: Real, S: Simd>(
    matrix: &'a mut [R],
    stride: usize,
    lines: &Range<usize>,
) -> [&'a mut [R::Of<S>]; ENDS] {
    let lines = lines.start * R::PAD..lines.end * R::PAD;
    let (first, rest) = matrix.split_at_mut(stride);
    [
        R::vectors_mut::<S>(&mut first[lines.clone()]),
        R::vectors_mut::<S>(&mut rest[lines]),
    ]
}
