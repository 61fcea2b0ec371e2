//! From the sums of the slopes to the gradient of the rows.

use pulp::{Simd, WithSimd};

use super::clusters::{Level, Side, f64s};
use super::triples::Sums;
use crate::cpu::buffer::Buffer;
use crate::cpu::parallel::for_each_block;
use crate::element::Real;
use crate::error::Result;
use crate::simd::{Lanes, dispatch};

/// Rows that share the reads of all other rows.
const TILE: usize = 4;
/// Rows of a task. For them it takes two registers of all other rows at a time, which then stay in
/// the second-level cache. A multiple of `TILE`.
const BLOCK: usize = 32;

/// Calls `$columns::<W>(d)` for all registers d of a row, W of them at a time. Two registers of 32
/// bytes are a cache line.
macro_rules! for_columns {
    ($this:ident, $s:ident, $columns:ident) => {
        let registers = $this.x.stride / (size_of::<S::f64s>() / size_of::<f64>());
        for d in 0..registers / 2 {
            $this.$columns::<S, 2>($s, 2 * d);
        }
        if registers % 2 == 1 {
            $this.$columns::<S, 1>($s, registers - 1);
        }
    };
}

/// The derivatives by the student's rows, `[N, D]`. The rows of `x` are in this order.
pub(super) fn contract<R: Real>(x: &Side, order: &[usize], sums: &Sums) -> Result<Buffer<R>> {
    let mut gradient = Buffer::zeros(x.n.saturating_mul(x.stride))?;
    for_each_block(&mut gradient, x.stride, &|i, out| {
        dispatch(Lengths { x, sums, i, out });
    });
    let levels = x.levels.iter().enumerate();
    for (at, level) in levels.filter(|(_, level)| level.used) {
        // Σ_i T_ik u_i, for all k.
        let mut offsets = Buffer::zeros(level.members.len() * x.stride)?;
        for (out, &i) in offsets.chunks_exact_mut(x.stride).zip(&level.members) {
            let rows = x.row(i).iter().zip(x.row(level.first[i]));
            for (out, (x, first)) in out.iter_mut().zip(rows) {
                *out = (x - first) / level.unit;
            }
        }
        let offsets = &*offsets;
        for_each_block(&mut gradient, BLOCK * x.stride, &|block, out| {
            dispatch(Others {
                x,
                slopes: &slopes_to(sums, at, level, block * BLOCK, out.len() / x.stride),
                level,
                offsets,
                out,
            });
        });
        // Σ_k T_ik v_k, for all i.
        let mut own = Buffer::zeros(level.members.len() * x.stride)?;
        for_each_block(&mut own, BLOCK * x.stride, &|block, out| {
            let members = &level.members[block * BLOCK..];
            dispatch(Own {
                x,
                sums,
                at,
                level,
                members: &members[..members.len().min(BLOCK)],
                out,
            });
        });
        for (own, &i) in own.chunks_exact(x.stride).zip(&level.members) {
            let out = &mut gradient[i * x.stride..][..x.stride];
            for (out, own) in out.iter_mut().zip(own) {
                *out += own / level.unit;
            }
        }
    }
    let mut result = Buffer::any(x.n.saturating_mul(x.dim))?;
    for (&i, row) in order.iter().zip(gradient.chunks_exact(x.stride)) {
        for (out, &g) in result[i * x.dim..][..x.dim].iter_mut().zip(row) {
            // The two ends of a triple come in either order.
            *out = R::from_f64(2.0 * g);
        }
    }
    Ok(result)
}

/// −Σ_j (A_ij + A_ji) r_ij² (x_i − x_j) of a row: how the cosines change with the edges' lengths.
struct Lengths<'a> {
    x: &'a Side,
    sums: &'a Sums,
    i: usize,
    out: &'a mut [f64],
}

impl WithSimd for Lengths<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Lengths { x, sums, i, out } = self;
        let row = f64s::<S>(x.row(i));
        let out = S::as_mut_simd_f64s(out).0;
        for j in 0..x.n {
            let sum = sums.cosines(i)[j] + sums.cosines(j)[i];
            let r = x.inverse(i, j);
            if sum == 0.0 || r == 0.0 {
                continue;
            }
            // r² might overflow.
            let (r, factor) = (s.splat_f64s(r), s.splat_f64s(sum * r));
            let other = f64s::<S>(x.row(j));
            for d in 0..out.len() {
                let edge = s.mul_f64s(s.sub_f64s(row[d], other[d]), r);
                out[d] = f64::vneg_mul_add(s, factor, edge, out[d]);
            }
        }
    }
}

/// T_ik of all members i, for `rows` rows k from `first` on: tile by tile, so that a tile reads
/// them in order.
fn slopes_to(sums: &Sums, at: usize, level: &Level, first: usize, rows: usize) -> Vec<[f64; TILE]> {
    let tiles = (0..rows).step_by(TILE);
    let of_tile = |k| {
        // T is padded, and the padding is zero.
        let members = level.members.iter();
        members.map(move |&i| {
            let slopes = &sums.slopes(at, i)[first + k..];
            *slopes.first_chunk().expect("padded rows")
        })
    };
    tiles.flat_map(of_tile).collect()
}

/// Σ_i T_ik u_i of some rows k.
struct Others<'a> {
    x: &'a Side,
    /// T_ik, `[tiles, members]`
    slopes: &'a [[f64; TILE]],
    level: &'a Level,
    /// u_i/unit, `[members, stride]`
    offsets: &'a [f64],
    out: &'a mut [f64],
}

impl WithSimd for Others<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, s: S) {
        for_columns!(self, s, columns);
    }
}

impl Others<'_> {
    #[inline(always)]
    fn columns<S: Simd, const W: usize>(&mut self, s: S, d: usize) {
        let stride = self.x.stride;
        let slopes = self.slopes.chunks_exact(self.level.members.len());
        for (slopes, out) in slopes.zip(self.out.chunks_mut(TILE * stride)) {
            let mut sums = [[s.splat_f64s(0.0); W]; TILE];
            for (slopes, u) in slopes.iter().zip(self.offsets.chunks_exact(stride)) {
                let u = &f64s::<S>(u)[d..][..W];
                for t in 0..TILE {
                    let slope = s.splat_f64s(slopes[t]);
                    for w in 0..W {
                        sums[t][w] = s.mul_add_f64s(slope, u[w], sums[t][w]);
                    }
                }
            }
            for (out, sums) in out.chunks_exact_mut(stride).zip(sums) {
                let out = &mut S::as_mut_simd_f64s(out).0[d..][..W];
                for w in 0..W {
                    out[w] = s.add_f64s(out[w], sums[w]);
                }
            }
        }
    }
}

/// unit · Σ_k T_ik v_k of some members i.
struct Own<'a> {
    x: &'a Side,
    sums: &'a Sums,
    at: usize,
    level: &'a Level,
    members: &'a [usize],
    out: &'a mut [f64],
}

impl WithSimd for Own<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, s: S) {
        for_columns!(self, s, columns);
    }
}

impl Own<'_> {
    #[inline(always)]
    fn columns<S: Simd, const W: usize>(&mut self, s: S, d: usize) {
        let stride = self.x.stride;
        let first = &self.level.first;
        let mut start = 0;
        let clusters = self.members.chunk_by(|&i, &j| first[i] == first[j]);
        for run in clusters.flat_map(|cluster| cluster.chunks(TILE)) {
            let centre = &f64s::<S>(self.x.row(first[run[0]]))[d..][..W];
            // A tile that is not full has its last row more than once.
            let slopes: [&[f64]; TILE] =
                std::array::from_fn(|t| self.sums.slopes(self.at, run[t.min(run.len() - 1)]));
            let mut sums = [[s.splat_f64s(0.0); W]; TILE];
            for k in 0..self.x.n {
                let row = &f64s::<S>(self.x.row(k))[d..][..W];
                for w in 0..W {
                    let v = s.sub_f64s(row[w], centre[w]);
                    for t in 0..TILE {
                        sums[t][w] = s.mul_add_f64s(s.splat_f64s(slopes[t][k]), v, sums[t][w]);
                    }
                }
            }
            for t in 0..run.len() {
                let out = &mut self.out[(start + t) * stride..][..stride];
                S::as_mut_simd_f64s(out).0[d..][..W].copy_from_slice(&sums[t]);
            }
            start += run.len();
        }
    }
}
