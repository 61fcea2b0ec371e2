//! RKD: the angle of all triples, and the distance of all pairs on request, in one evaluation.
//!
//! ```text
//! x, y    rows of student and teacher, padded and scaled              embeddings
//! h, r    ½d² and 1/d of every pair of both                           pair_table
//! S       sums of the angle penalty's slopes over all triples         angle, close
//! μ       the mean distances and the mean slope of the distances      distance_penalty
//! C_ij    r_ij (−2w/N³ (S_ij + S_ji) + the distance's slope)          Coefficients
//! g_i     Σ_j C_ij (x_i − x_j)                                        pairwise::contraction
//! ```
//!
//! It is attempted in f32, and repeated in f64 where what was measured on the way asks for it.

mod angle;
mod angle_tile;
mod close;
mod distance_penalty;
mod pair_table;

use pulp::{Simd, WithSimd};

use crate::batch::Batch;
use crate::cpu::buffer::Buffer;
use crate::cpu::embeddings::RowScaling;
use crate::cpu::pairwise::contraction::{Form, contract};
use crate::cpu::pairwise::distances::{Measured, measure};
use crate::cpu::pairwise::pairs::{Block, for_all_pairs};
use crate::cpu::pairwise::rkd_distance;
use crate::element::{DType, Element, Real};
use crate::error::Result;
use crate::loss::Triplet;
use crate::simd::{Lanes, dispatch};
use close::ClosePairs;
use distance_penalty::{DistancePenalty, half_distance};
use pair_table::{PairField, PairTable};

/// Side of the squares that S + Sᵀ is formed in.
const SQUARE: usize = 64;

/// Up to which spread of the distances, the longest over the shortest, each way of computing is
/// used. The bar is twice the error of the definition evaluated in f32 (tests/numerics.rs).
mod trust {
    /// In f32: the law of cosines loses about spread · ε, and where distances are alike the error
    /// stays within the bar.
    pub(in crate::cpu) const SPREAD_F32: f64 = 1.75;
    /// In f32, the least mean penalty. Below it the difference of the cosines is mostly rounding.
    pub(in crate::cpu) const PENALTY_F32: f64 = 1e-4;
    /// In f64, for gradients that come back in f32: 2⁻⁵³ · 10⁸ is below their rounding.
    pub(in crate::cpu) const SPREAD_F64_AS_F32: f64 = 1e8;
    /// In f64, for gradients in f64: an error of 10⁻¹⁰.
    pub(in crate::cpu) const SPREAD_F64: f64 = 1e6;
}

/// The loss, and its two parts, the distances' and the angles', which are not weighted (0 where the
/// weight is 0). `None` if an input is not finite.
pub(super) fn evaluate<T: Element>(
    loss: &Triplet,
    normalize: bool,
    batch: Batch<'_, T>,
    upstream: f64,
    gradient: &mut [T::Real],
) -> Result<Option<(f64, [f64; 2])>> {
    if loss.angle_weight == 0.0 {
        let (delta, weight) = (loss.delta, loss.distance_weight);
        let value = rkd_distance::evaluate(delta, weight, normalize, batch, upstream, gradient)?;
        let part = |distance| if weight > 0.0 { distance } else { 0.0 };
        return Ok(value.map(|(weighted, distance)| (weighted, [part(distance), 0.0])));
    }
    let scaling = if normalize {
        RowScaling::Normalized { epsilon: 0.0 }
    } else {
        RowScaling::Scaled
    };
    if <T::Real as Element>::DTYPE == DType::F32 {
        match attempt::<T, f32>(loss, scaling, batch, upstream, gradient)? {
            Attempt::Done(value, parts) => return Ok(Some((value, parts))),
            Attempt::NotFinite => return Ok(None),
            Attempt::NeedsF64 => {}
        }
    }
    match attempt::<T, f64>(loss, scaling, batch, upstream, gradient)? {
        Attempt::Done(value, parts) => Ok(Some((value, parts))),
        Attempt::NotFinite => Ok(None),
        Attempt::NeedsF64 => unreachable!("f64 is always enough"),
    }
}

/// How an attempt in one precision ended.
enum Attempt {
    /// The loss and its parts; the gradient has been written.
    Done(f64, [f64; 2]),
    /// An input is not finite.
    NotFinite,
    /// The data need more than f32. The gradient has not been written, or is to be overwritten.
    NeedsF64,
}

/// Computes in `R`. If that is f32 and the data need more, the answer is [`Attempt::NeedsF64`].
/// In f64 pairs of rows that are too close for the law of cosines are left to [`ClosePairs`].
fn attempt<T: Element, R: Real>(
    loss: &Triplet,
    scaling: RowScaling,
    batch: Batch<'_, T>,
    upstream: f64,
    gradient: &mut [T::Real],
) -> Result<Attempt> {
    let (x, y, mut table) = match measure::<T, R, PairTable<R>>(batch, scaling)? {
        Measured::Rows(x, y, table) => (x, y, table),
        Measured::NotFinite => return Ok(Attempt::NotFinite),
        Measured::NeedsF64 => return Ok(Attempt::NeedsF64),
    };
    let n = x.rows;
    let trusted = trusted_spread::<T, R>();
    let too_far = table.spread > trusted;
    if R::DTYPE == DType::F32 && too_far {
        return Ok(Attempt::NeedsF64);
    }
    let close = if too_far {
        Some(ClosePairs::find(&table, &x, &y, trusted)?)
    } else {
        None
    };
    // The teacher's rows are not needed any more.
    drop(y);
    // One number a pair: the angle's sums, then C.
    let mut matrix = Buffer::<R>::zeros(PairTable::<R>::size(n))?;

    let nf = n as f64;
    let sum = match &close {
        None => angle::penalize(loss.delta, &table, &mut matrix)?,
        Some(close) => {
            let masked = close.mask(&mut table)?;
            angle::penalize(loss.delta, &masked, &mut matrix)?
        }
    };
    let mut angle = sum / (nf * nf * nf);
    if R::DTYPE == DType::F32 && angle < trust::PENALTY_F32 {
        return Ok(Attempt::NeedsF64);
    }
    // The gradient of the triples of close pairs.
    let mut close_gradient = None;
    if let Some(close) = close {
        let (penalty, gradient) = close.penalize(loss.delta)?;
        angle += penalty / (nf * nf * nf);
        close_gradient = Some(gradient);
    }
    let distance =
        (loss.distance_weight > 0.0).then(|| DistancePenalty::new(loss.delta, &table, n));

    let coefficients = Coefficients {
        table: &table,
        minus_angle_factor: -2.0 * loss.angle_weight / (nf * nf * nf),
        distance: distance
            .as_ref()
            .map(|penalty| (loss.distance_weight, penalty)),
    };
    for_all_pairs(
        &mut matrix,
        table.stride(),
        SQUARE,
        |block| Ok(coefficients.within(block)),
        |a, b| Ok(coefficients.between(a, b)),
    )?;
    // A product is not exact enough for angles.
    let form = Form::Differences;
    contract(form, &x, &mut matrix, table.stride(), upstream, gradient)?;
    if let Some(close) = close_gradient {
        let factor = upstream * loss.angle_weight / (nf * nf * nf);
        let mut row = vec![T::Real::ZERO; x.dim];
        for (i, out) in gradient.chunks_exact_mut(x.dim).enumerate() {
            x.write_gradient(i, factor, &close[i * x.dim..][..x.dim], &mut row);
            for (out, g) in out.iter_mut().zip(&row) {
                *out += *g;
            }
        }
    }
    let distance = distance.map_or(0.0, |penalty| penalty.mean);
    let value = loss.angle_weight * angle + loss.distance_weight * distance;
    Ok(Attempt::Done(value, [distance, angle]))
}

/// The largest spread at which computing in `R` is good enough for a gradient in `T::Real`.
fn trusted_spread<T: Element, R: Real>() -> f64 {
    match (R::DTYPE, <T::Real as Element>::DTYPE) {
        (DType::F32, _) => trust::SPREAD_F32,
        (_, DType::F32) => trust::SPREAD_F64_AS_F32,
        _ => trust::SPREAD_F64,
    }
}

/// Turns the angle's sums S into the coefficients C, in place:
/// C_ij = r_ij (minus_angle_factor · (S_ij + S_ji) + the distance's 2 ∂L/∂d_ij).
struct Coefficients<'a, R: Real> {
    table: &'a PairTable<R>,
    minus_angle_factor: f64,
    distance: Option<(f64, &'a DistancePenalty)>,
}

impl<R: Real> Coefficients<'_, R> {
    /// The pairs within a block.
    fn within(&self, block: &mut Block<'_, R>) -> f64 {
        let (stride, first) = (self.table.stride(), block.first);
        for i in 0..block.rows {
            let ij = i * stride + first;
            for j in 0..=i {
                let ji = block.data[j * stride + first + i];
                block.data[ij + j] += ji;
            }
            let i = first + i;
            self.of_pairs(i, first, &mut block.data[ij..][..=i - first]);
            for j in 0..i - first {
                block.data[j * stride + i] = block.data[ij + j];
            }
        }
        0.0
    }

    /// The pairs with one row in each block.
    fn between(&self, a: &mut Block<'_, R>, b: &mut Block<'_, R>) -> f64 {
        let stride = self.table.stride();
        for i in 0..a.rows {
            let row = &mut a.data[i * stride + b.first..][..b.rows];
            let i = a.first + i;
            for (ij, ji) in row.iter_mut().zip(b.data[i..].iter().step_by(stride)) {
                *ij += *ji;
            }
            self.of_pairs(i, b.first, row);
            for (ij, ji) in row.iter().zip(b.data[i..].iter_mut().step_by(stride)) {
                *ji = *ij;
            }
        }
        0.0
    }

    /// Turns S_ij + S_ji into C_ij, for i and the columns from `first` on, a multiple of `PAD`.
    fn of_pairs(&self, i: usize, first: usize, sums: &mut [R]) {
        dispatch(OfPairs {
            coefficients: self,
            i,
            first,
            sums,
        });
    }
}

struct OfPairs<'a, R: Real> {
    coefficients: &'a Coefficients<'a, R>,
    i: usize,
    first: usize,
    sums: &'a mut [R],
}

impl<R: Real> WithSimd for OfPairs<'_, R> {
    type Output = ();

    /// In f64, so that few roundings add up. The compiler makes vectors of the lines: pulp has no
    /// conversion from f32 to f64.
    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Coefficients {
            table,
            minus_angle_factor,
            distance,
        } = *self.coefficients;
        for (line, sums) in self.sums.chunks_mut(R::PAD).enumerate() {
            let j = self.first + line * R::PAD;
            let of = |field| &table.line(self.i, j, field)[..sums.len()];
            let x_inverse = of(PairField::StudentInverse);
            let Some((weight, penalty)) = distance else {
                for (sum, r) in sums.iter_mut().zip(x_inverse) {
                    *sum = R::from_f64(r.to_f64() * (minus_angle_factor * sum.to_f64()));
                }
                continue;
            };
            let x_square = of(PairField::StudentHalfSquare);
            let (y_square, y_inverse) = (
                of(PairField::TeacherHalfSquare),
                of(PairField::TeacherInverse),
            );
            let factor = weight * penalty.slope_factor();
            let (delta, mean_slope) = (penalty.delta, penalty.mean_slope);
            for l in 0..sums.len() {
                let r = x_inverse[l].to_f64();
                let half_x = half_distance(x_square[l].to_f64(), r);
                let half_y = half_distance(y_square[l].to_f64(), y_inverse[l].to_f64());
                let e = half_x * penalty.per_half_x - half_y * penalty.per_half_y;
                // As `clamp`, which has a check that stands in the way of vectors.
                let e = if e < -delta { -delta } else { e };
                let e = if e > delta { delta } else { e };
                let angle = minus_angle_factor * sums[l].to_f64();
                sums[l] = R::from_f64(r * (angle + factor * (e - mean_slope)));
            }
        }
    }
}
