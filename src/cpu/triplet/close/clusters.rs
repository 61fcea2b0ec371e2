//! Clusters of close rows, and ½d² of their rows less what the rows outside share.
//!
//! A level is a distance. Rows closer than that, and rows linked by a chain of such pairs, are a
//! cluster of the level. The first level is the distance at which the law of cosines loses too many
//! digits; each other one is 2¹⁰ times shorter, or 2²⁰ times where levels would be many. Levels
//! without a pair between them and the next are left out. Two rows have the deepest level at which
//! they are in one cluster, or level 0, which is the whole batch.
//!
//! The numbers of a level are divided by its distance, so that none overflows or vanishes.

use std::ops::Range;

use pulp::{Simd, WithSimd};

use crate::cpu::buffer::Buffer;
use crate::cpu::embeddings::Embeddings;
use crate::cpu::pairwise::distances::{Distances, most_inverse};
use crate::cpu::parallel::for_each_block;
use crate::cpu::triplet::pair_table::{PairField, PairTable};
use crate::element::Real;
use crate::error::Result;
use crate::simd::{dispatch, row_stride};

/// From one level to the next the distance shrinks by 2 to this power. A cosine in a cluster loses
/// about as many bits.
const STEP: f64 = 10.0;
/// With more levels than this the distance shrinks by twice that power. The ordinary pass, which
/// takes pairs down to 1e-6 of the longest distance, then loses as many bits.
const FEW: usize = 4;
/// Rows of a cluster that share the reads of all other rows.
const TILE: usize = 4;
/// Rows of a task.
const BLOCK: usize = 32;
/// Other rows that a task takes at a time, which then stay in the second-level cache.
const PANEL: usize = 8;

/// Student or teacher.
pub(super) struct Side {
    pub(super) n: usize,
    pub(super) dim: usize,
    /// From row to row of `rows`.
    pub(super) stride: usize,
    /// From row to row of the matrices with one number a pair.
    pub(super) pairs: usize,
    /// `[N, stride]`, padded with zeros.
    pub(super) rows: Buffer<f64>,
    /// 1/d of every pair, `[N, pairs]`; 0 where d = 0.
    pub(super) inverses: Buffer<f64>,
    /// The level of every pair, `[N, N]`.
    level_of: Vec<u8>,
    /// The deepest level of each row.
    pub(super) deepest: Vec<u8>,
    /// The first is level 0.
    pub(super) levels: Vec<Level>,
}

/// The clusters of one level.
pub(super) struct Level {
    /// The distance, rounded to a power of two; 1 for level 0.
    pub(super) unit: f64,
    /// The first row of each row's cluster.
    pub(super) first: Vec<usize>,
    /// The rows in clusters of two or more, cluster by cluster.
    pub(super) members: Vec<usize>,
    /// The place of a row among the members.
    place: Vec<usize>,
    /// Whether a close pair of the batch is of this level, in this side.
    pub(super) used: bool,
    /// (h_ik − c_k)/unit for the members i, `[members, pairs]`. c_k is 0 for rows of the cluster of
    /// i, and ½d² to the cluster's first row for all others.
    half_squares: Buffer<f64>,
}

impl Side {
    /// Reads the rows, in this order, and finds the clusters. `field` is ½d² of this side.
    pub(super) fn new<R: Real>(
        embeddings: &Embeddings<R>,
        order: &[usize],
        table: &PairTable<R>,
        field: PairField,
        limit: f64,
    ) -> Result<Self> {
        let (n, dim) = (embeddings.rows, embeddings.dim);
        let (stride, pairs) = (row_stride::<f64>(dim), row_stride::<f64>(n));
        let mut rows = Buffer::zeros(n.saturating_mul(stride))?;
        for (i, out) in rows.chunks_exact_mut(stride).enumerate() {
            for (out, x) in out.iter_mut().zip(&embeddings.row(order[i])[..dim]) {
                *out = x.to_f64();
            }
        }
        let mut inverses = Buffer::zeros(n.saturating_mul(pairs))?;
        let all = &*rows;
        for_each_block(&mut inverses, pairs, &|i, out| {
            for j in (0..n).filter(|&j| j != i) {
                let r = table.get(order[i], order[j], field.inverse()).to_f64();
                // The square of so short a distance has lost digits, or all of them.
                out[j] = if r == 0.0 || r > most_inverse::<R>() {
                    inverse_distance(&all[i * stride..][..dim], &all[j * stride..][..dim])
                } else {
                    r
                };
            }
        });
        let mut side = Side {
            n,
            dim,
            stride,
            pairs,
            rows,
            inverses,
            level_of: vec![0; n * n],
            deepest: vec![0; n],
            levels: vec![Level::whole_batch(n)?],
        };
        side.find_clusters(table.longest(field.side()) / limit)?;
        Ok(side)
    }

    /// The clusters of all levels; `longest` is the distance of the first level.
    fn find_clusters(&mut self, longest: f64) -> Result<()> {
        // 0 where two rows are not close, and MAX where they are equal.
        let level = |r: f64| {
            if r == 0.0 {
                return u8::MAX;
            }
            let ratio = (r * longest).log2();
            if ratio > 0.0 {
                // 1/d may be infinite. No such level means that rows are equal.
                1 + (ratio / STEP).min(f64::from(u8::MAX - 2)) as u8
            } else {
                0
            }
        };
        let (n, pairs) = (self.n, self.pairs);
        let mut levels: Vec<u8> = (0..n * n)
            .map(|at| level(self.inverses[at / n * pairs + at % n]))
            .collect();
        let occurring = |levels: &[u8]| {
            let mut occurs = [false; 256];
            for &level in levels {
                occurs[usize::from(level)] = true;
            }
            occurs
        };
        let mut occurs = occurring(&levels);
        let mut step = STEP;
        let deep = occurs[1..usize::from(u8::MAX)].iter();
        if deep.filter(|&&occurs| occurs).count() > FEW {
            step *= 2.0;
            for level in levels.iter_mut().filter(|level| **level != u8::MAX) {
                *level = level.div_ceil(2);
            }
            occurs = occurring(&levels);
        }
        for level in (1..u8::MAX).filter(|&level| occurs[usize::from(level)]) {
            let first = linked(n, |i, j| levels[i * n + j] >= level);
            let mut sizes = vec![0; n];
            for &first in &first {
                sizes[first] += 1;
            }
            let mut members: Vec<usize> = (0..n).filter(|&i| sizes[first[i]] > 1).collect();
            members.sort_by_key(|&i| (first[i], i));
            let mut place = vec![usize::MAX; n];
            for (at, &i) in members.iter().enumerate() {
                place[i] = at;
            }
            let index = u8::try_from(self.levels.len()).unwrap_or(u8::MAX);
            for cluster in members.chunk_by(|&i, &j| first[i] == first[j]) {
                for &i in cluster {
                    self.deepest[i] = index;
                    for &j in cluster.iter().filter(|&&j| j != i) {
                        self.level_of[i * n + j] = index;
                    }
                }
            }
            // A power of two: dividing by it is exact.
            let unit = longest.log2() - step * f64::from(level - 1);
            self.levels.push(Level {
                unit: unit.floor().max(-1020.0).exp2(),
                first,
                members,
                place,
                used: false,
                half_squares: Buffer::zeros(0)?,
            });
        }
        Ok(())
    }

    /// The deepest level at which two rows are in one cluster.
    pub(super) fn level(&self, i: usize, j: usize) -> usize {
        usize::from(self.level_of[i * self.n + j])
    }

    /// Whether two rows are in one cluster and are not equal.
    pub(super) fn is_close(&self, i: usize, j: usize) -> bool {
        self.level(i, j) > 0 && self.inverse(i, j) > 0.0
    }

    /// Notes that this pair is close, in this side or the other.
    pub(super) fn use_level(&mut self, i: usize, j: usize) {
        let level = self.level(i, j);
        self.levels[level].used = true;
    }

    pub(super) fn inverse(&self, i: usize, j: usize) -> f64 {
        self.inverses[i * self.pairs + j]
    }

    /// 1/d from row i to all rows.
    pub(super) fn inverses(&self, i: usize) -> &[f64] {
        &self.inverses[i * self.pairs..][..self.pairs]
    }

    /// (h_ik − c_k)/unit of row i, which is in a cluster of this level, for all k.
    pub(super) fn half_squares(&self, level: usize, i: usize) -> &[f64] {
        let level = &self.levels[level];
        &level.half_squares[level.place[i] * self.pairs..][..self.pairs]
    }

    /// The same of all members, in their order.
    pub(super) fn all_half_squares(&self, level: usize) -> impl Iterator<Item = &[f64]> {
        self.levels[level].half_squares.chunks_exact(self.pairs)
    }

    pub(super) fn row(&self, i: usize) -> &[f64] {
        &self.rows[i * self.stride..][..self.stride]
    }

    /// Computes ½d² of the levels in use.
    pub(super) fn find_half_squares<R: Real>(
        &mut self,
        order: &[usize],
        table: &PairTable<R>,
        field: PairField,
    ) -> Result<()> {
        for at in (0..self.levels.len())
            .filter(|&at| self.levels[at].used)
            .collect::<Vec<_>>()
        {
            let this = &*self;
            let level = &this.levels[at];
            let mut half_squares = Buffer::zeros(level.members.len() * this.pairs)?;
            // The rows of a cluster less its first one, in units.
            let mut offsets = Buffer::zeros(level.members.len() * this.stride)?;
            for (out, &i) in offsets.chunks_exact_mut(this.stride).zip(&level.members) {
                let first = this.row(level.first[i]);
                for ((out, x), first) in out.iter_mut().zip(this.row(i)).zip(first) {
                    *out = (x - first) / level.unit;
                }
            }
            let offsets = &*offsets;
            for_each_block(&mut half_squares, BLOCK * this.pairs, &|block, out| {
                let members = &level.members[block * BLOCK..];
                let members = &members[..members.len().min(BLOCK)];
                if at > 0 {
                    dispatch(Outside {
                        side: this,
                        level,
                        members,
                        offsets: &offsets[block * BLOCK * this.stride..],
                        out,
                    });
                }
                for (&i, out) in members.iter().zip(out.chunks_exact_mut(this.pairs)) {
                    let half_square = |k: usize| table.get(order[i], order[k], field).to_f64();
                    this.finish::<R>(&half_square, level, i, out);
                }
            });
            self.levels[at].half_squares = half_squares;
        }
        Ok(())
    }

    /// From ⟨u_i, v_k⟩/unit in `out` to (h_ik − c_k)/unit. `half_squares` is ½d² of the row i.
    fn finish<R: Real>(
        &self,
        half_squares: &dyn Fn(usize) -> f64,
        level: &Level,
        i: usize,
        out: &mut [f64],
    ) {
        let first = level.first[i];
        let distance = |r: f64| if r > 0.0 { 1.0 / r } else { 0.0 };
        // ½d²/unit, also where d² vanishes.
        let half_square = |r: f64| 0.5 * distance(r) * (distance(r) / level.unit);
        let own = half_square(self.inverse(i, first));
        for k in 0..self.n {
            out[k] = if level.first[k] != first {
                own - out[k]
            } else if self.inverse(i, k) > most_inverse::<R>() {
                half_square(self.inverse(i, k))
            } else {
                half_squares(k) / level.unit
            };
        }
    }
}

impl Level {
    /// The place of a row among the members.
    pub(super) fn place(&self, i: usize) -> usize {
        self.place[i]
    }

    /// All rows as one cluster.
    fn whole_batch(n: usize) -> Result<Self> {
        Ok(Level {
            unit: 1.0,
            first: vec![0; n],
            members: (0..n).collect(),
            place: (0..n).collect(),
            used: false,
            half_squares: Buffer::zeros(0)?,
        })
    }
}

/// For each row the first of those that it is linked to, directly or by a chain.
fn linked(n: usize, link: impl Fn(usize, usize) -> bool) -> Vec<usize> {
    fn root(parents: &mut [usize], mut i: usize) -> usize {
        while parents[i] != i {
            parents[i] = parents[parents[i]];
            i = parents[i];
        }
        i
    }
    let mut parents: Vec<usize> = (0..n).collect();
    for i in 0..n {
        for j in (0..i).filter(|&j| link(i, j)) {
            let (a, b) = (root(&mut parents, i), root(&mut parents, j));
            parents[a.max(b)] = a.min(b);
        }
    }
    (0..n).map(|i| root(&mut parents, i)).collect()
}

/// 1/‖a − b‖, or 0; also where squares vanish.
fn inverse_distance(a: &[f64], b: &[f64]) -> f64 {
    let differences = || a.iter().zip(b).map(|(a, b)| a - b);
    let largest = differences().fold(0.0f64, |m, x| m.max(x.abs()));
    if largest == 0.0 {
        return 0.0;
    }
    let sum: f64 = differences().map(|x| (x / largest).powi(2)).sum();
    1.0 / sum.sqrt() / largest
}

/// ⟨u_i, v_k⟩/unit of some members i of a level for all k that are not in their cluster.
struct Outside<'a> {
    side: &'a Side,
    level: &'a Level,
    members: &'a [usize],
    /// u_i/unit, `[members, stride]`
    offsets: &'a [f64],
    /// `[members, pairs]`
    out: &'a mut [f64],
}

impl WithSimd for Outside<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, s: S) {
        for panel in (0..self.side.n).step_by(PANEL) {
            let mut start = 0;
            let (members, first) = (self.members, &self.level.first);
            let clusters = members.chunk_by(|&i, &j| first[i] == first[j]);
            for run in clusters.flat_map(|cluster| cluster.chunks(TILE)) {
                let rows = panel..self.side.n.min(panel + PANEL);
                self.products(s, start, run.len(), rows);
                start += run.len();
            }
        }
    }
}

impl Outside<'_> {
    /// The products of up to `TILE` members of one cluster, from `start` on, with some rows.
    #[inline(always)]
    fn products<S: Simd>(&mut self, s: S, start: usize, len: usize, rows: Range<usize>) {
        let (stride, pairs) = (self.side.stride, self.side.pairs);
        let first = &self.level.first;
        let cluster = first[self.members[start]];
        let centre = f64s::<S>(self.side.row(cluster));
        // A tile that is not full has its last row more than once.
        let u: [&[S::f64s]; TILE] = std::array::from_fn(|t| {
            let at = start + t.min(len - 1);
            f64s::<S>(&self.offsets[at * stride..][..stride])
        });
        for k in rows.filter(|&k| first[k] != cluster) {
            let row = f64s::<S>(self.side.row(k));
            let mut sums = [s.splat_f64s(0.0); TILE];
            for d in 0..row.len() {
                let v = s.sub_f64s(row[d], centre[d]);
                for t in 0..TILE {
                    sums[t] = s.mul_add_f64s(u[t][d], v, sums[t]);
                }
            }
            for t in 0..len {
                self.out[(start + t) * pairs + k] = s.reduce_sum_f64s(sums[t]);
            }
        }
    }
}

/// A row as registers.
#[inline(always)]
pub(super) fn f64s<S: Simd>(row: &[f64]) -> &[S::f64s] {
    S::as_simd_f64s(row).0
}
