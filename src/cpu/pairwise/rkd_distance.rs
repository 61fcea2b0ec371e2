//! RKD's distance loss.
//!
//! ```text
//! d²_ij(X), d²_ij(Y)                      upper triangles, by differences
//! for each row i, for each j > i:         first pass
//!     d = √d²                             its sums, the longest and the shortest
//! for each row i, for each j > i:         second pass, μ being the mean distance
//!     u = d_ij(X)/μ(X)    e = u − d_ij(Y)/μ(Y)    w = huber'(e)
//!     Σ huber(e), Σ w u
//! for each row i, for each j > i:         third pass
//!     d²_ij(X) ← C_ij = (w_ij − Σ w u/P) 2/(N² μ d_ij)
//! gradient_i = Σ_j C_ij (x_i − x_j)       C mirrored, then the contraction
//! ```
//!
//! 1. Each pass reads two squares of a pair of rows, 8 bytes in f32, and takes their roots again.
//!    Roots and sums are in f64: an error that all pairs share, such as that of a rounded μ, would
//!    add up.
//! 2. Distances are computed in f32 for f32 gradients, and again in f64 if they differ by more than
//!    f32 allows for.

use pulp::{Simd, WithSimd};

use super::contraction::{Form, contract};
use super::distances::{Distances, Measured, Side, measure, most_inverse, vanishes};
use super::pair_sums::{mirror_upper, upper};
use crate::batch::Batch;
use crate::cpu::buffer::Buffer;
use crate::cpu::embeddings::{Embeddings, RowScaling};
use crate::cpu::parallel::{for_each_block, map};
use crate::element::{DType, Element, Real};
use crate::error::Result;
use crate::simd::{dispatch, row_stride};

/// Up to which spread of the distances, the longest over the shortest, distances are computed in
/// f32. The bar is twice the error of the definition evaluated in f32 (tests/numerics.rs).
const SPREAD_F32: f64 = 4.0;
/// The same for the contraction as a product.
const SPREAD_PRODUCT: f64 = 4.0;

/// Elements of a row that are summed side by side, whatever the registers of the machine.
const LANES: usize = 8;

/// `weight` times the loss, and the loss itself. `None` if an input is not finite.
pub(in crate::cpu) fn evaluate<T: Element>(
    delta: f64,
    weight: f64,
    normalize: bool,
    batch: Batch<'_, T>,
    upstream: f64,
    gradient: &mut [T::Real],
) -> Result<Option<(f64, f64)>> {
    let scaling = if normalize {
        RowScaling::Normalized { epsilon: 0.0 }
    } else {
        RowScaling::Scaled
    };
    let factor = upstream * weight;
    let weighted = |loss: f64| Some((weight * loss, loss));
    if <T::Real as Element>::DTYPE == DType::F32 {
        match measure::<T, f32, UpperTriangles<f32>>(batch, scaling)? {
            Measured::Rows(x, y, distances) if distances.spread() <= SPREAD_F32 => {
                drop(y);
                return Ok(weighted(distances.penalize(delta, &x, factor, gradient)?));
            }
            Measured::NotFinite => return Ok(None),
            Measured::Rows(..) | Measured::NeedsF64 => {}
        }
    }
    match measure::<T, f64, UpperTriangles<f64>>(batch, scaling)? {
        Measured::Rows(x, y, distances) => {
            drop(y);
            Ok(weighted(distances.penalize(delta, &x, factor, gradient)?))
        }
        Measured::NotFinite => Ok(None),
        Measured::NeedsF64 => unreachable!("f64 is always enough"),
    }
}

/// d² of student and teacher.
struct UpperTriangles<R: Real> {
    /// `[N, stride]`. What is below the diagonal is not written, and the padding is 0.
    x: Buffer<R>,
    y: Buffer<R>,
    rows: usize,
    stride: usize,
    /// Of student and teacher.
    extremes: [Extremes; 2],
}

/// Of all pairs of rows.
#[derive(Clone, Copy)]
struct Extremes {
    /// Σ_{i<j} d_ij
    sum: f64,
    longest: f64,
    /// The shortest distance that is not 0; 0 where the square of one vanished.
    shortest: f64,
}

impl<R: Real> Distances<R> for UpperTriangles<R> {
    fn new(x: &Embeddings<R>, y: &Embeddings<R>) -> Result<Self> {
        let (rows, stride) = (x.rows, row_stride::<R>(x.rows));
        let [of_x, of_y] = [upper::<R, true>(x)?, upper::<R, true>(y)?];
        let extremes = [(x, &of_x), (y, &of_y)].map(|(rows, squares)| {
            let of_rows = map(rows.rows, &|i| {
                let squares = &squares[i * stride..][i + 1..rows.rows];
                let mut of_row = dispatch(RowExtremes(squares));
                if vanishes(rows, i, i + 1, squares) {
                    of_row.shortest = 0.0;
                }
                of_row
            });
            of_rows.into_iter().fold(Extremes::NONE, Extremes::and)
        });
        Ok(UpperTriangles {
            x: of_x,
            y: of_y,
            rows,
            stride,
            extremes,
        })
    }

    fn longest(&self, side: Side) -> f64 {
        self.extremes[side as usize].longest
    }

    fn shortest(&self) -> f64 {
        self.extremes[0].shortest.min(self.extremes[1].shortest)
    }

    fn are_within(&self, side: Side, i: usize, j: usize, apart: f64) -> bool {
        let squares = match side {
            Side::Student => &self.x,
            Side::Teacher => &self.y,
        };
        i == j || squares[i.min(j) * self.stride + i.max(j)].to_f64().sqrt() <= apart
    }
}

impl<R: Real> UpperTriangles<R> {
    /// The longest distance over the shortest that is not 0, in student or teacher. Infinite where
    /// squares lose digits or vanish.
    fn spread(&self) -> f64 {
        if self.shortest() < 1.0 / most_inverse::<R>() {
            return f64::INFINITY;
        }
        let of = |extremes: &Extremes| extremes.longest / extremes.shortest;
        of(&self.extremes[0]).max(of(&self.extremes[1]))
    }

    /// The loss. Writes `factor` times the gradient.
    fn penalize<G: Real>(
        mut self,
        delta: f64,
        x: &Embeddings<R>,
        factor: f64,
        gradient: &mut [G],
    ) -> Result<f64> {
        let (n, stride) = (self.rows, self.stride);
        let form = if self.spread() <= SPREAD_PRODUCT {
            Form::Product
        } else {
            Form::Differences
        };
        // Of pairs in one order. The other order doubles all sums.
        let pairs = (n * n.saturating_sub(1) / 2) as f64;
        let per_mean = |sum: f64| if sum > 0.0 { pairs / sum } else { 0.0 };
        let penalty = Penalty {
            delta,
            per_x: per_mean(self.extremes[0].sum),
            per_y: per_mean(self.extremes[1].sum),
        };
        let sums = map(n, &|i| {
            dispatch(RowPenalty {
                penalty,
                x: &self.x[i * stride..][i + 1..n],
                y: &self.y[i * stride..][i + 1..n],
            })
        });
        let (value, slope) = sums.iter().fold((0.0, 0.0), |a, b| (a.0 + b.0, a.1 + b.1));
        let mean_slope = if pairs > 0.0 { slope / pairs } else { 0.0 };
        let n2 = (n * n) as f64;
        let y = &self.y;
        for_each_block(&mut self.x, stride, &|i, x| {
            x[i] = R::ZERO;
            dispatch(RowCoefficients {
                penalty,
                mean_slope,
                factor: 2.0 * penalty.per_x / n2,
                x: &mut x[i + 1..n],
                y: &y[i * stride..][i + 1..n],
            });
        });
        mirror_upper(&mut self.x, stride)?;
        contract(form, x, &mut self.x, stride, factor, gradient)?;
        Ok(2.0 * value / n2)
    }
}

impl Extremes {
    /// Of no pair.
    const NONE: Self = Extremes {
        sum: 0.0,
        longest: 0.0,
        shortest: f64::INFINITY,
    };

    fn and(self, other: Self) -> Self {
        Extremes {
            sum: self.sum + other.sum,
            longest: self.longest.max(other.longest),
            shortest: self.shortest.min(other.shortest),
        }
    }
}

/// The distances of a row, from their squares. A plain loop, for the compiler to make vectors of;
/// so are those below.
struct RowExtremes<'a, R>(&'a [R]);

impl<R: Real> WithSimd for RowExtremes<'_, R> {
    type Output = Extremes;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> Extremes {
        let mut sums = [0.0; LANES];
        let mut longest = [R::ZERO; LANES];
        let mut shortest = [R::from_f64(f64::INFINITY); LANES];
        let mut add = |l: usize, d2: R| {
            sums[l] += d2.to_f64().sqrt();
            longest[l] = if d2 > longest[l] { d2 } else { longest[l] };
            let is_shorter = d2 > R::ZERO && d2 < shortest[l];
            shortest[l] = if is_shorter { d2 } else { shortest[l] };
        };
        let (whole, rest) = self.0.as_chunks::<LANES>();
        for chunk in whole {
            for l in 0..LANES {
                add(l, chunk[l]);
            }
        }
        for (l, &d2) in rest.iter().enumerate() {
            add(l, d2);
        }
        let root = |of: R| of.to_f64().sqrt();
        Extremes {
            sum: sums.iter().sum(),
            longest: longest.into_iter().map(root).fold(0.0, f64::max),
            shortest: shortest.into_iter().map(root).fold(f64::INFINITY, f64::min),
        }
    }
}

/// The Huber penalty of distances in units of their mean.
#[derive(Clone, Copy)]
struct Penalty {
    delta: f64,
    /// 1/μ of student and teacher; 0 where all rows are equal.
    per_x: f64,
    per_y: f64,
}

impl Penalty {
    /// u, e and w = huber'(e) of a pair, from its distances.
    #[inline(always)]
    fn of(self, x: f64, y: f64) -> (f64, f64, f64) {
        let u = x * self.per_x;
        let e = u - y * self.per_y;
        // As `clamp`, which has a check that stands in the way of vectors.
        let w = if e < -self.delta { -self.delta } else { e };
        let w = if w > self.delta { self.delta } else { w };
        (u, e, w)
    }
}

struct RowPenalty<'a, R> {
    penalty: Penalty,
    x: &'a [R],
    y: &'a [R],
}

impl<R: Real> WithSimd for RowPenalty<'_, R> {
    /// Σ_j huber(e_ij) and Σ_j w_ij u_ij
    type Output = (f64, f64);

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> (f64, f64) {
        let (mut values, mut slopes) = ([0.0; LANES], [0.0; LANES]);
        let mut add = |l: usize, x: R, y: R| {
            let (u, e, w) = self.penalty.of(x.to_f64().sqrt(), y.to_f64().sqrt());
            values[l] += w * (e - 0.5 * w);
            slopes[l] += w * u;
        };
        let ((x, rest_x), (y, rest_y)) = (self.x.as_chunks::<LANES>(), self.y.as_chunks::<LANES>());
        for (x, y) in x.iter().zip(y) {
            for l in 0..LANES {
                add(l, x[l], y[l]);
            }
        }
        for (l, (&x, &y)) in rest_x.iter().zip(rest_y).enumerate() {
            add(l, x, y);
        }
        (values.iter().sum(), slopes.iter().sum())
    }
}

struct RowCoefficients<'a, R> {
    penalty: Penalty,
    mean_slope: f64,
    /// What (w − mean slope)/d is multiplied by.
    factor: f64,
    /// The student's d², which become C.
    x: &'a mut [R],
    y: &'a [R],
}

impl<R: Real> WithSimd for RowCoefficients<'_, R> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let RowCoefficients {
            penalty,
            mean_slope,
            factor,
            x,
            y,
        } = self;
        for (x, y) in x.iter_mut().zip(y) {
            let d = x.to_f64().sqrt();
            let (_, _, w) = penalty.of(d, y.to_f64().sqrt());
            // A distance of 0 has no gradient.
            let unit = if d > 0.0 { factor / d } else { 0.0 };
            *x = R::from_f64((w - mean_slope) * unit);
        }
    }
}
