//! The angle penalty: all triples by the law of cosines, each pair of ends once.
//!
//! With h = ½d², a = ½d and r = 1/d, the cosine at vertex j between the ends i and k is
//!
//! ```text
//! cos_jik = r_ij r_kj (h_ij + h_kj − h_ik) = r_ij (a_kj − h_ik r_kj) + a_ij r_kj
//! ```
//!
//! and with w the penalty's slope there, the coefficients ∂L/∂h of the three edges gather
//!
//! ```text
//! G_ik  = Σ_j w r_ij r_kj          the edge between the ends
//! S_ij += w (r_kj − cos r_ij)      the edges to the vertex, less a factor r_ij that waits for the end
//! S_kj += w (r_ij − cos r_kj)
//! ```
//!
//! Vertices lie along the lanes: for a pair (i,k) the rows i and k of each matrix are read in order,
//! h_ik is one number, and nothing is shuffled. 16 instructions a register of vertices, all of them
//! products and sums: the student's a comes with a minus, and with it cos, e, w, G and S.

use std::ops::Range;

use pulp::{Simd, WithSimd};

use super::buffer::Buffer;
use super::pairs::for_all_pairs;
use super::relation::{A_Y, MINUS_A_X, R_X, R_Y, ROWS, Relations};
use super::simd::{dispatch, unroll};
use crate::element::Real;
use crate::error::Result;

/// Ends i in a tile of pairs.
const ENDS_I: usize = 2;
/// Ends k in a tile of pairs, as many as ends i: a tile is then on the diagonal or off it.
const ENDS_K: usize = ENDS_I;
/// Ends k whose rows stay in the first-level cache while the ends i pass by.
const PANEL: usize = ROWS;
/// Lines of vertices at a time: 2 ends' rows, with their sums, fill 40 KiB.
const LINES: usize = 64;

/// Adds up the penalty over all ordered triples, and leaves in `sums`, zero at first, what makes
/// −r_ij (S_ij + S_ji) be N³/2 times ∂L/∂h_ij. Gives the sum of penalties.
pub(super) fn penalize<R: Real>(
    delta: f64,
    relations: &Relations<R>,
    sums: &mut [R],
) -> Result<f64> {
    let upper = for_all_pairs(
        sums,
        relations.stride(),
        block_side(relations.rows),
        |block| {
            let mut s_k = Buffer::zeros(block.data.len())?;
            let ends = (block.first, block.rows);
            let penalty = dispatch(Match {
                delta,
                relations,
                i: ends,
                k: ends,
                s_i: block.data,
                s_k: &mut s_k,
            });
            add(block.data, &s_k);
            Ok(penalty)
        },
        |a, b| {
            // Sums of this match alone: shorter sums round less.
            let mut s_i = Buffer::zeros(a.data.len())?;
            let mut s_k = Buffer::zeros(b.data.len())?;
            let penalty = dispatch(Match {
                delta,
                relations,
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

/// Rows in a block: enough that a round is worth its start, few enough for many matches at once.
fn block_side(rows: usize) -> usize {
    (rows / 16).next_multiple_of(ROWS).clamp(32, 64)
}

/// All pairs of ends with one in each of two blocks, given as their first row and how many; or with
/// both in one block, the second not before the first.
struct Match<'a, R: Real> {
    delta: f64,
    relations: &'a Relations<R>,
    i: (usize, usize),
    k: (usize, usize),
    s_i: &'a mut [R],
    s_k: &'a mut [R],
}

impl<R: Real> WithSimd for Match<'_, R> {
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) -> f64 {
        let relations = self.relations;
        let stride = relations.stride();
        let (first_i, rows_i) = self.i;
        let (first_k, rows_k) = self.k;
        let (two, one_half) = (R::from_f64(2.0), R::from_f64(0.5));
        let mut pairs = Pairs {
            stride: rows_k,
            h_x: Vec::with_capacity(rows_i * rows_k),
            minus_h_y: Vec::with_capacity(rows_i * rows_k),
            g: vec![R::splat(s, R::ZERO); rows_i * rows_k],
        };
        for i in first_i..first_i + rows_i {
            for k in first_k..first_k + rows_k {
                // From d², not from ½d: the rounding of d would count twice, and the same way at every
                // vertex.
                let (x, y) = relations.squares(i, k);
                pairs.h_x.push(one_half * x);
                pairs.minus_h_y.push(-one_half * y);
            }
        }

        let within = first_i == first_k;
        let mut penalty = 0.0;
        for line in (0..relations.used_lines).step_by(LINES) {
            let lines = line..relations.used_lines.min(line + LINES);
            for panel in (0..rows_k).step_by(PANEL) {
                for i in (0..rows_i).step_by(ENDS_I) {
                    let mut penalties = [R::splat(s, R::ZERO); ENDS_I];
                    for k in (panel..panel + PANEL).step_by(ENDS_K) {
                        if within && k < i {
                            continue;
                        }
                        let tile = Tile {
                            s,
                            delta: R::from_f64(self.delta),
                            i,
                            k,
                            rows_i: registers(relations, first_i + i, &lines),
                            rows_k: registers(relations, first_k + k, &lines),
                            sums_i: sums(&mut self.s_i[i * stride..], stride, &lines),
                            sums_k: sums(&mut self.s_k[k * stride..], stride, &lines),
                        };
                        // The tile of some ends with themselves has every pair in both orders, so all
                        // that comes of it counts half. So do its pairs of equal ends, whose cosines
                        // are 1, or 0 where the edge has no length.
                        if within && k == i {
                            tile.penalize::<true>(&mut pairs, &mut penalties);
                        } else {
                            tile.penalize::<false>(&mut pairs, &mut penalties);
                        }
                    }
                    for lanes in penalties {
                        penalty += R::reduce_sum(s, lanes).to_f64();
                    }
                }
            }
        }
        for i in 0..rows_i {
            for k in 0..rows_k {
                // The sums hold −S, and g is −G; −½d is at hand.
                let half = relations.get(first_i + i, first_k + k, MINUS_A_X);
                let g = R::reduce_sum(s, pairs.g[i * rows_k + k]);
                self.s_i[i * stride + first_k + k] += two * half * g;
            }
        }
        penalty
    }
}

/// What belongs to the edges between the ends of a match, `[i, k]`.
struct Pairs<R, V> {
    stride: usize,
    h_x: Vec<R>,
    minus_h_y: Vec<R>,
    /// −G, whose lanes are summed at the end.
    g: Vec<V>,
}

/// The pairs of `ENDS_I` ends from i on with `ENDS_K` ends from k on, at the vertices of some lines.
struct Tile<'a, S: Simd, R: Real> {
    s: S,
    delta: R,
    i: usize,
    k: usize,
    rows_i: [&'a [R::Of<S>]; ENDS_I],
    rows_k: [&'a [R::Of<S>]; ENDS_K],
    sums_i: [&'a mut [R::Of<S>]; ENDS_I],
    sums_k: [&'a mut [R::Of<S>]; ENDS_K],
}

impl<S: Simd, R: Real> Tile<'_, S, R> {
    /// Adds to the ends' rows of −S, to the pairs' −G and to the penalties; or half of it.
    #[inline(always)]
    fn penalize<const HALF: bool>(
        self,
        pairs: &mut Pairs<R, R::Of<S>>,
        penalties: &mut [R::Of<S>; ENDS_I],
    ) {
        let Tile {
            s,
            i,
            k,
            rows_i,
            rows_k,
            sums_i,
            sums_k,
            ..
        } = self;
        let per_line = R::PAD / R::width::<S>();
        let vectors = sums_i[0].len();
        let delta = R::splat(s, self.delta);
        let minus_delta = R::splat(s, -self.delta);
        let minus_half = R::splat(s, R::from_f64(-0.5));
        let one_half = R::splat(s, R::from_f64(0.5));
        let zero = R::splat(s, R::ZERO);

        let mut g_ik = [[zero; ENDS_K]; ENDS_I];
        let mut h_x = [[zero; ENDS_K]; ENDS_I];
        let mut minus_h_y = [[zero; ENDS_K]; ENDS_I];
        unroll::<ENDS_I>(
            #[inline(always)]
            |u| {
                let at = (i + u) * pairs.stride + k;
                g_ik[u].copy_from_slice(&pairs.g[at..at + ENDS_K]);
                let x = &pairs.h_x[at..at + ENDS_K];
                let y = &pairs.minus_h_y[at..at + ENDS_K];
                unroll::<ENDS_K>(
                    #[inline(always)]
                    |w| {
                        h_x[u][w] = R::splat(s, x[w]);
                        minus_h_y[u][w] = R::splat(s, y[w]);
                    },
                );
            },
        );
        for v in 0..vectors {
            let at = v / per_line * 4 * per_line + v % per_line;
            let end_i: [_; ENDS_I] = std::array::from_fn(
                #[inline(always)]
                |u| End::<S, R>::read(rows_i[u], at),
            );
            let end_k: [_; ENDS_K] = std::array::from_fn(
                #[inline(always)]
                |w| End::<S, R>::read(rows_k[w], at),
            );
            // Step by step for all pairs of the tile, rather than pair by pair: each step of a pair
            // waits for the one before.
            let mut minus_cos = [[zero; ENDS_K]; ENDS_I];
            let mut minus_e = [[zero; ENDS_K]; ENDS_I];
            let mut minus_w = [[zero; ENDS_K]; ENDS_I];
            tile(
                #[inline(always)]
                |u, w| {
                    let (i, k) = (end_i[u], end_k[w]);
                    minus_e[u][w] = R::vmul_add(s, h_x[u][w], k.rx, k.minus_ax);
                    minus_cos[u][w] = R::vmul(s, i.minus_ax, k.rx);
                },
            );
            tile(
                #[inline(always)]
                |u, w| {
                    minus_cos[u][w] = R::vmul_add(s, end_i[u].rx, minus_e[u][w], minus_cos[u][w]);
                    let k = end_k[w];
                    minus_w[u][w] = R::vmul_add(s, minus_h_y[u][w], k.ry, k.ay);
                },
            );
            tile(
                #[inline(always)]
                |u, w| {
                    minus_e[u][w] = R::vmul_add(s, end_i[u].ay, end_k[w].ry, minus_cos[u][w]);
                },
            );
            tile(
                #[inline(always)]
                |u, w| {
                    minus_e[u][w] = R::vmul_add(s, end_i[u].ry, minus_w[u][w], minus_e[u][w]);
                },
            );
            tile(
                #[inline(always)]
                |u, w| {
                    minus_w[u][w] = R::vmin(s, delta, R::vmax(s, minus_delta, minus_e[u][w]));
                },
            );
            tile(
                #[inline(always)]
                |u, w| {
                    let rest = R::vmul_add(s, minus_half, minus_w[u][w], minus_e[u][w]);
                    if HALF {
                        minus_w[u][w] = R::vmul(s, one_half, minus_w[u][w]);
                    }
                    penalties[u] = R::vmul_add(s, minus_w[u][w], rest, penalties[u]);
                },
            );
            tile(
                #[inline(always)]
                |u, w| {
                    let minus_wr = R::vmul(s, minus_w[u][w], end_i[u].rx);
                    g_ik[u][w] = R::vmul_add(s, minus_wr, end_k[w].rx, g_ik[u][w]);
                },
            );
            unroll::<ENDS_I>(
                #[inline(always)]
                |u| {
                    let mut sum = sums_i[u][v];
                    unroll::<ENDS_K>(
                        #[inline(always)]
                        |w| {
                            let r = R::vmul_add(s, minus_cos[u][w], end_i[u].rx, end_k[w].rx);
                            sum = R::vmul_add(s, minus_w[u][w], r, sum);
                        },
                    );
                    sums_i[u][v] = sum;
                },
            );
            unroll::<ENDS_K>(
                #[inline(always)]
                |w| {
                    let mut sum = sums_k[w][v];
                    unroll::<ENDS_I>(
                        #[inline(always)]
                        |u| {
                            let r = R::vmul_add(s, minus_cos[u][w], end_k[w].rx, end_i[u].rx);
                            sum = R::vmul_add(s, minus_w[u][w], r, sum);
                        },
                    );
                    sums_k[w][v] = sum;
                },
            );
        }
        unroll::<ENDS_I>(
            #[inline(always)]
            |u| {
                let at = (i + u) * pairs.stride + k;
                pairs.g[at..at + ENDS_K].copy_from_slice(&g_ik[u]);
            },
        );
    }
}

/// A register of vertices' edges to one end.
struct End<S: Simd, R: Real> {
    minus_ax: R::Of<S>,
    rx: R::Of<S>,
    ay: R::Of<S>,
    ry: R::Of<S>,
}

impl<S: Simd, R: Real> Clone for End<S, R> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<S: Simd, R: Real> Copy for End<S, R> {}

impl<S: Simd, R: Real> End<S, R> {
    #[inline(always)]
    fn read(row: &[R::Of<S>], at: usize) -> Self {
        let per_line = R::PAD / R::width::<S>();
        let row = &row[at..at + 3 * per_line + 1];
        End {
            minus_ax: row[MINUS_A_X * per_line],
            rx: row[R_X * per_line],
            ay: row[A_Y * per_line],
            ry: row[R_Y * per_line],
        }
    }
}

/// Calls `f` for every pair of a tile.
#[inline(always)]
fn tile(mut f: impl FnMut(usize, usize)) {
    unroll::<ENDS_I>(
        #[inline(always)]
        |u| {
            unroll::<ENDS_K>(
                #[inline(always)]
                |w| f(u, w),
            );
        },
    );
}

/// Some lines of `T` rows from `first` on.
#[inline(always)]
fn registers<'a, R: Real, S: Simd, const T: usize>(
    relations: &'a Relations<R>,
    first: usize,
    lines: &Range<usize>,
) -> [&'a [R::Of<S>]; T] {
    std::array::from_fn(
        #[inline(always)]
        |t| {
            let row = relations.row(first + t);
            R::vectors::<S>(&row[lines.start * 4 * R::PAD..lines.end * 4 * R::PAD])
        },
    )
}

/// Some lines of the first `T` rows of a matrix, to write.
#[inline(always)]
fn sums<'a, R: Real, S: Simd, const T: usize>(
    matrix: &'a mut [R],
    stride: usize,
    lines: &Range<usize>,
) -> [&'a mut [R::Of<S>]; T] {
    let mut rest = matrix;
    std::array::from_fn(
        #[inline(always)]
        |_| {
            let (row, tail) = std::mem::take(&mut rest).split_at_mut(stride);
            rest = tail;
            R::vectors_mut::<S>(&mut row[lines.start * R::PAD..lines.end * R::PAD])
        },
    )
}
