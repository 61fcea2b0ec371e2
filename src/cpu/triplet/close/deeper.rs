//! The teacher's cosines of the triples whose other end has the deeper level.

use std::ops::Range;

use pulp::Simd;

use super::clusters::{Side, f64s};
use crate::cpu::buffer::Buffer;
use crate::cpu::parallel::for_each_block;
use crate::error::Result;

/// The longest register has so many numbers. Blocks of ends have a multiple of them.
pub(super) const WIDTH: usize = 8;
/// The most ends of a block.
pub(super) const MOST_ENDS: usize = 32;

/// (h_ik − c_k)/unit of all levels of a side, in blocks of columns k: `[blocks, members of all levels,
/// side]`. What the vertices of a block need of it lies together.
pub(super) struct ByColumns {
    data: Buffer<f64>,
    /// Columns of a block.
    side: usize,
    /// Members of all levels before each one, and of all.
    starts: Vec<usize>,
    /// Of every two rows that are at a level beyond 0, `[N, N]`.
    edges: Vec<DeepEdge>,
}

/// What is needed of an edge from j to k, at their level.
#[derive(Clone, Copy, Default)]
struct DeepEdge {
    /// unit/d
    inverse: f64,
    /// ½d²/unit
    own: f64,
    /// Where the rows of j and k are among the members of all levels.
    at_j: u32,
    at_k: u32,
}

impl ByColumns {
    pub(super) fn new(side_y: &Side, side: usize) -> Result<Self> {
        let mut starts = vec![0];
        for level in &side_y.levels {
            // Level 0 is no deeper than any.
            let is_deep = level.used && starts.len() > 1;
            let members = if is_deep { level.members.len() } else { 0 };
            starts.push(starts[starts.len() - 1] + members);
        }
        let members = starts[starts.len() - 1];
        let blocks = side_y.n.div_ceil(side);
        let mut data = Buffer::zeros((blocks * side).saturating_mul(members))?;
        for_each_block(&mut data, (members * side).max(1), &|block, out| {
            let columns = block * side..side_y.pairs.min((block + 1) * side);
            let levels =
                (0..side_y.levels.len()).filter(|&level| starts[level + 1] > starts[level]);
            let rows = levels.flat_map(|level| side_y.all_half_squares(level));
            for (out, row) in out.chunks_exact_mut(side).zip(rows) {
                out[..columns.len()].copy_from_slice(&row[columns.clone()]);
            }
        });
        let n = side_y.n;
        let mut edges = vec![DeepEdge::default(); if members > 0 { n * n } else { 0 }];
        for_each_block(&mut edges, n, &|j, edges| {
            for (k, edge) in edges.iter_mut().enumerate() {
                let level = side_y.level(j, k);
                // A level that is not in use has no close pair.
                if starts[level + 1] == starts[level] || k == j {
                    continue;
                }
                let Edge { inverse, own, .. } = Edge::new(side_y, j, k);
                let at = |row| (starts[level] + side_y.levels[level].place(row)) as u32;
                *edge = DeepEdge {
                    inverse,
                    own,
                    at_j: at(j),
                    at_k: at(k),
                };
            }
        });
        Ok(ByColumns {
            data,
            side,
            starts,
            edges,
        })
    }

    /// Of a member of a level, the columns of a block.
    #[inline(always)]
    fn of(&self, block: usize, at: u32) -> &[f64] {
        let members = self.starts[self.starts.len() - 1];
        &self.data[(block * members + at as usize) * self.side..][..self.side]
    }
}

/// The teacher's cosines of a vertex where it is the other end that has the deeper level.
pub(super) struct DeeperCosines<'a> {
    half_squares: &'a ByColumns,
    /// The levels of the vertex with all rows, as the numbers that they are compared with.
    levels: Buffer<f64>,
    /// `[ends, stride]`: of some ends with all others.
    cosines: Buffer<f64>,
    stride: usize,
}

impl<'a> DeeperCosines<'a> {
    pub(super) fn new(half_squares: &'a ByColumns, pairs: usize) -> Result<Self> {
        // Rows of a power of two would share few places of the cache.
        let stride = pairs + WIDTH;
        Ok(DeeperCosines {
            half_squares,
            levels: Buffer::zeros(pairs)?,
            cosines: Buffer::zeros(half_squares.side.saturating_mul(stride))?,
            stride,
        })
    }

    /// Computes the cosines of these ends, of the block from `first` on, with all others that are
    /// at a deeper level with the vertex j than one of them. Returns whether there are any.
    #[inline(always)]
    pub(super) fn find<S: Simd>(
        &mut self,
        s: S,
        y: &Side,
        j: usize,
        order: &[f64],
        first: usize,
        ends: &[usize],
    ) -> bool {
        let least = ends.iter().map(|&i| y.level(j, i)).min();
        let Some(least) = least.filter(|&least| usize::from(y.deepest[j]) > least) else {
            return false;
        };
        for (k, level) in self.levels[..y.n].iter_mut().enumerate() {
            *level = y.level(j, k) as f64;
        }
        let half_squares = self.half_squares;
        let block = first / half_squares.side;
        let columns = first..y.pairs.min(first + half_squares.side);
        let inverses = f64s::<S>(&y.inverses(j)[columns.clone()]);
        let mut cosines = [0.0; MOST_ENDS];
        let edges = &half_squares.edges[j * y.n..][..y.n];
        let least = least as f64;
        let most = ends.iter().map(|&i| order[i]).fold(-1.0, f64::max);
        for (k, edge) in edges.iter().enumerate() {
            // A triple with one of these ends is visited from there only if k is before it.
            if self.levels[k] <= least || order[k] >= most {
                continue;
            }
            let half_squares_j = f64s::<S>(half_squares.of(block, edge.at_j));
            let half_squares_k = f64s::<S>(half_squares.of(block, edge.at_k));
            let (factor, own) = (s.splat_f64s(edge.inverse), s.splat_f64s(edge.own));
            let registers = S::as_mut_simd_f64s(&mut cosines).0;
            for v in 0..inverses.len() {
                let h = s.add_f64s(s.sub_f64s(half_squares_j[v], half_squares_k[v]), own);
                registers[v] = s.mul_f64s(s.mul_f64s(factor, inverses[v]), h);
            }
            let out = self.cosines[k..].iter_mut().step_by(self.stride);
            for (out, cos) in out.zip(&cosines[..columns.len()]) {
                *out = *cos;
            }
        }
        true
    }

    /// Of one end, by its place in the block: the levels, and the cosines at deeper ones.
    pub(super) fn of(&self, end: usize) -> (&[f64], &[f64]) {
        (
            &self.levels,
            &self.cosines[end * self.stride..][..self.levels.len()],
        )
    }
}

/// The edge from a vertex j to an end i, in the units of their level.
pub(super) struct Edge<'a> {
    pub(super) level: usize,
    /// unit/d
    pub(super) inverse: f64,
    /// ½d²/unit
    pub(super) own: f64,
    /// 1/d of j and all rows.
    inverses: &'a [f64],
    half_squares_j: &'a [f64],
    half_squares_i: &'a [f64],
}

impl<'a> Edge<'a> {
    #[inline(always)]
    pub(super) fn new(side: &'a Side, j: usize, i: usize) -> Self {
        let level = side.level(j, i);
        let half_squares_j = side.half_squares(level, j);
        Edge {
            level,
            inverse: side.inverse(j, i) * side.levels[level].unit,
            own: half_squares_j[i],
            inverses: side.inverses(j),
            half_squares_j,
            half_squares_i: side.half_squares(level, i),
        }
    }

    /// 1/d and both rows of ½d², in some columns.
    #[inline(always)]
    pub(super) fn registers<S: Simd>(&self, columns: &Range<usize>) -> [&'a [S::f64s]; 3] {
        [
            f64s::<S>(&self.inverses[columns.clone()]),
            f64s::<S>(&self.half_squares_j[columns.clone()]),
            f64s::<S>(&self.half_squares_i[columns.clone()]),
        ]
    }
}
