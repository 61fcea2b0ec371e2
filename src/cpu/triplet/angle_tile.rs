//! The kernel of the angle penalty: a tile of 2 × 2 pairs of ends, one register of vertices at a
//! time.
//!
//! The names are those of `angle`. A pair and register take 14 instructions, 4 of them differences,
//! and 3 more where e may exceed δ. The order of the differences gives −cos, and with it −e, −w, −G
//! and −S.

use pulp::Simd;

use super::pair_table::PairField;
use crate::element::Real;
use crate::simd::unroll;

/// Ends i in a tile of pairs, and ends k. The numbers are equal, so that a tile lies on the
/// diagonal or off it.
pub(in crate::cpu) const ENDS: usize = 2;

/// The pairs of `ENDS` ends i with as many ends k, at the vertices of some lines.
pub(in crate::cpu) struct Tile<'a, S: Simd, R: Real> {
    pub(in crate::cpu) s: S,
    pub(in crate::cpu) delta: R,
    pub(in crate::cpu) h_x: [[R; ENDS]; ENDS],
    pub(in crate::cpu) h_y: [[R; ENDS]; ENDS],
    pub(in crate::cpu) ends_i: [&'a [R::Of<S>]; ENDS],
    pub(in crate::cpu) ends_k: [&'a [R::Of<S>]; ENDS],
    pub(in crate::cpu) sums_i: [&'a mut [R::Of<S>]; ENDS],
    pub(in crate::cpu) sums_k: [&'a mut [R::Of<S>]; ENDS],
    /// −G of the pairs, `[k, i]`. The caller sums the lanes.
    pub(in crate::cpu) g: &'a mut [[R::Of<S>; ENDS]; ENDS],
}

impl<S: Simd, R: Real> Tile<'_, S, R> {
    /// Adds to the ends' rows of −S and to the penalties, and sets the pairs' −G. `HALF`: adds and
    /// sets half of each. Without `CLAMPED` no |e| may exceed δ; then w = e, and the penalties are
    /// doubled.
    #[inline(always)]
    pub(in crate::cpu) fn penalize<const HALF: bool, const CLAMPED: bool>(
        self,
        penalties: &mut [R::Of<S>; ENDS],
    ) {
        let s = self.s;
        let per_line = R::PAD / R::width::<S>();
        let delta = R::splat(s, self.delta);
        let minus_delta = R::splat(s, -self.delta);
        let one_half = R::splat(s, R::from_f64(0.5));
        let zero = R::splat(s, R::ZERO);

        let mut g = [[zero; ENDS]; ENDS];
        let mut h_x = [[zero; ENDS]; ENDS];
        let mut h_y = [[zero; ENDS]; ENDS];
        tile(
            #[inline(always)]
            |u, w| {
                h_x[u][w] = R::splat(s, self.h_x[u][w]);
                h_y[u][w] = R::splat(s, self.h_y[u][w]);
            },
        );
        let [i0, i1] = self.ends_i.map(
            #[inline(always)]
            |row| row.chunks_exact(4 * per_line),
        );
        let [k0, k1] = self.ends_k.map(
            #[inline(always)]
            |row| row.chunks_exact(4 * per_line),
        );
        let [s_i0, s_i1] = self.sums_i.map(
            #[inline(always)]
            |row| row.chunks_exact_mut(per_line),
        );
        let [s_k0, s_k1] = self.sums_k.map(
            #[inline(always)]
            |row| row.chunks_exact_mut(per_line),
        );
        let ends = i0.zip(i1).zip(k0.zip(k1));
        let sums = s_i0.zip(s_i1).zip(s_k0.zip(s_k1));
        for (((i0, i1), (k0, k1)), ((s_i0, s_i1), (s_k0, s_k1))) in ends.zip(sums) {
            for v in 0..per_line {
                let end_i = [End::<S, R>::read(i0, v), End::<S, R>::read(i1, v)];
                let end_k = [End::<S, R>::read(k0, v), End::<S, R>::read(k1, v)];
                // Each step runs for all pairs of the tile before the next step: a step of one pair
                // waits for the step before it.
                let mut q = [[zero; ENDS]; ENDS];
                let mut minus_cos = [[zero; ENDS]; ENDS];
                let mut minus_e = [[zero; ENDS]; ENDS];
                let mut minus_w = [[zero; ENDS]; ENDS];
                tile(
                    #[inline(always)]
                    |u, w| {
                        let (i, k) = (end_i[u], end_k[w]);
                        q[u][w] = R::vmul(s, i.rx, k.rx);
                        let h = R::vsub(s, R::vsub(s, h_x[u][w], k.hx), i.hx);
                        minus_cos[u][w] = R::vmul(s, q[u][w], h);
                    },
                );
                tile(
                    #[inline(always)]
                    |u, w| {
                        let (i, k) = (end_i[u], end_k[w]);
                        let r = R::vmul(s, i.ry, k.ry);
                        let h = R::vsub(s, R::vsub(s, h_y[u][w], k.hy), i.hy);
                        minus_e[u][w] = R::vneg_mul_add(s, r, h, minus_cos[u][w]);
                    },
                );
                tile(
                    #[inline(always)]
                    |u, w| {
                        minus_w[u][w] = if CLAMPED {
                            R::vmin(s, delta, R::vmax(s, minus_delta, minus_e[u][w]))
                        } else {
                            minus_e[u][w]
                        };
                    },
                );
                tile(
                    #[inline(always)]
                    |u, w| {
                        // w (e − ½w), or without its ½ where w = e.
                        let rest = if CLAMPED {
                            R::vneg_mul_add(s, one_half, minus_w[u][w], minus_e[u][w])
                        } else {
                            minus_e[u][w]
                        };
                        if HALF {
                            minus_w[u][w] = R::vmul(s, one_half, minus_w[u][w]);
                        }
                        penalties[u] = R::vmul_add(s, minus_w[u][w], rest, penalties[u]);
                    },
                );
                tile(
                    #[inline(always)]
                    |u, w| g[w][u] = R::vmul_add(s, minus_w[u][w], q[u][w], g[w][u]),
                );
                let mut sums_i = [s_i0[v], s_i1[v]];
                tile(
                    #[inline(always)]
                    |u, w| {
                        let r = R::vmul_add(s, minus_cos[u][w], end_i[u].rx, end_k[w].rx);
                        sums_i[u] = R::vmul_add(s, minus_w[u][w], r, sums_i[u]);
                    },
                );
                [s_i0[v], s_i1[v]] = sums_i;
                let mut sums_k = [s_k0[v], s_k1[v]];
                tile(
                    #[inline(always)]
                    |u, w| {
                        let r = R::vmul_add(s, minus_cos[u][w], end_k[w].rx, end_i[u].rx);
                        sums_k[w] = R::vmul_add(s, minus_w[u][w], r, sums_k[w]);
                    },
                );
                [s_k0[v], s_k1[v]] = sums_k;
            }
        }
        *self.g = g;
    }
}

/// A register of vertices' edges to one end.
struct End<S: Simd, R: Real> {
    hx: R::Of<S>,
    rx: R::Of<S>,
    hy: R::Of<S>,
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
    /// Register `v` of each of four lines.
    #[inline(always)]
    fn read(lines: &[R::Of<S>], v: usize) -> Self {
        let per_line = R::PAD / R::width::<S>();
        End {
            hx: lines[PairField::StudentHalfSquare.line() * per_line + v],
            rx: lines[PairField::StudentInverse.line() * per_line + v],
            hy: lines[PairField::TeacherHalfSquare.line() * per_line + v],
            ry: lines[PairField::TeacherInverse.line() * per_line + v],
        }
    }
}

/// Calls `f` for every pair of a tile.
#[inline(always)]
fn tile(mut f: impl FnMut(usize, usize)) {
    unroll::<ENDS>(
        #[inline(always)]
        |u| {
            unroll::<ENDS>(
                #[inline(always)]
                |w| f(u, w),
            );
        },
    );
}
