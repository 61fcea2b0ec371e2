//! RKD, distance and angle: relation → penalty → contraction.

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::buffer::Buffer;
use super::contraction::{Form, contract};
use super::embeddings::{Embeddings, Entry};
use super::pairs::{Block, for_all_pairs};
use super::relation::{A_Y, MINUS_A_X, R_X, Relations};
use super::rkd_angle;
use super::simd::{Lanes, dispatch};
use crate::element::{DType, Element, Real};
use crate::error::Result;
use crate::loss::Rkd;
use crate::problem::{Batch, Value};
use crate::reference;

/// Side of the squares in which S is made symmetric.
const SQUARE: usize = 64;

/// How far each way of computing is trusted, by the spread of the distances: the longest over the
/// shortest. The bar is twice the error of the definition evaluated in f32 (tests/numerics.rs).
mod trust {
    /// For angles in f32: the law of cosines loses about spread · ε, and where distances are alike the
    /// error stays within the bar.
    pub(super) const SPREAD_F32_ANGLE: f64 = 1.75;
    /// For distances in f32.
    pub(super) const SPREAD_F32_DISTANCE: f64 = 4.0;
    /// For the contraction as a product, which is within the bar for distances but not for angles.
    pub(super) const SPREAD_PRODUCT: f64 = 4.0;
    /// In f32, the least mean penalty: below, the difference of the cosines is mostly rounding.
    pub(super) const PENALTY_F32: f64 = 1e-4;
    /// In f64, for gradients that come back in f32: 2⁻⁵³ · 10⁸ is below their rounding.
    pub(super) const SPREAD_F64_AS_F32: f64 = 1e8;
    /// In f64, for gradients in f64: an error of 10⁻¹⁰.
    pub(super) const SPREAD_F64: f64 = 1e6;
}

pub(super) fn rkd<T: Element>(
    loss: &Rkd,
    batch: Batch<'_, T>,
    upstream: f64,
    gradient: &mut [T::Real],
) -> Result<Value> {
    let entry = if loss.normalize {
        Entry::Normalized
    } else {
        Entry::Scaled
    };
    if <T::Real as Element>::DTYPE == DType::F32
        && let Some(value) = attempt::<T, f32>(loss, entry, batch, upstream, gradient)?
    {
        return Ok(value);
    }
    if let Some(value) = attempt::<T, f64>(loss, entry, batch, upstream, gradient)? {
        return Ok(value);
    }
    by_definition(loss, entry, batch, upstream, gradient)
}

/// Computes in `R`, unless the data ask for more than `R` has: then `None`, and `gradient` is to be
/// overwritten.
fn attempt<T: Element, R: Real>(
    loss: &Rkd,
    entry: Entry,
    batch: Batch<'_, T>,
    upstream: f64,
    gradient: &mut [T::Real],
) -> Result<Option<Value>> {
    let x = Embeddings::<R>::new(batch.student, entry)?;
    let y = Embeddings::<R>::new(batch.teacher, entry)?;
    if !(x.finite && y.finite) {
        gradient.fill(T::Real::from_f64(f64::NAN));
        return Ok(Some(Value::new(f64::NAN)));
    }
    let n = x.rows;
    let relations = Relations::new(&x, &y)?;
    drop(y);
    if relations.spread > trusted_spread::<T, R>(loss) {
        return Ok(None);
    }
    // One number a pair: the angle's sums, then C.
    let mut matrix = Buffer::<R>::zeros(Relations::<R>::size(n))?;

    let nf = n as f64;
    let mut value = 0.0;
    if loss.angle_weight > 0.0 {
        let mean = rkd_angle::penalize(loss.delta, &relations, &mut matrix)? / (nf * nf * nf);
        if R::DTYPE == DType::F32 && mean < trust::PENALTY_F32 {
            return Ok(None);
        }
        value += loss.angle_weight * mean;
    }
    let distance = (loss.distance_weight > 0.0).then(|| {
        let penalty = DistancePenalty::new(loss.delta, &relations, n);
        value += loss.distance_weight * penalty.mean;
        penalty
    });

    let coefficients = Coefficients {
        relations: &relations,
        minus_angle_factor: -2.0 * loss.angle_weight / (nf * nf * nf),
        distance: distance
            .as_ref()
            .map(|penalty| (loss.distance_weight, penalty)),
    };
    for_all_pairs(
        &mut matrix,
        relations.stride(),
        SQUARE,
        |block| Ok(coefficients.within(block)),
        |a, b| Ok(coefficients.between(a, b)),
    )?;
    let form = if loss.angle_weight == 0.0 && relations.spread <= trust::SPREAD_PRODUCT {
        Form::Product
    } else {
        Form::Differences
    };
    contract(
        form,
        &x,
        &mut matrix,
        relations.stride(),
        upstream,
        gradient,
    )?;
    Ok(Some(Value::new(value)))
}

/// The largest spread at which computing in `R` is good enough for a gradient in `T::Real`.
fn trusted_spread<T: Element, R: Real>(loss: &Rkd) -> f64 {
    match (R::DTYPE, <T::Real as Element>::DTYPE) {
        (DType::F32, _) if loss.angle_weight > 0.0 => trust::SPREAD_F32_ANGLE,
        (DType::F32, _) => trust::SPREAD_F32_DISTANCE,
        // Distances alone do not go by the law of cosines.
        _ if loss.angle_weight == 0.0 => f64::INFINITY,
        (_, DType::F32) => trust::SPREAD_F64_AS_F32,
        _ => trust::SPREAD_F64,
    }
}

/// The last resort, O(N³D): every triple from its edges, as the reference does it.
fn by_definition<T: Element>(
    loss: &Rkd,
    entry: Entry,
    batch: Batch<'_, T>,
    upstream: f64,
    gradient: &mut [T::Real],
) -> Result<Value> {
    let distance = Rkd {
        angle_weight: 0.0,
        ..*loss
    };
    let mut value = attempt::<T, f64>(&distance, entry, batch, upstream, gradient)?
        .map_or(0.0, |value| value.loss);

    let x = Embeddings::<f64>::new(batch.student, entry)?;
    let y = Embeddings::<f64>::new(batch.teacher, entry)?;
    let compact = |x: &Embeddings<f64>| reference::Matrix {
        data: (0..x.rows)
            .flat_map(|i| &x.row(i)[..x.dim])
            .copied()
            .collect(),
        dim: x.dim,
    };
    let (angle, g) = reference::rkd_angle(loss.delta, &compact(&x), &compact(&y));
    value += loss.angle_weight * angle.loss;
    let mut row = vec![T::Real::ZERO; x.dim];
    for (i, out) in gradient.chunks_exact_mut(x.dim).enumerate() {
        let factor = upstream * loss.angle_weight;
        x.write_gradient(i, factor, &g[i * x.dim..][..x.dim], &mut row);
        for (out, g) in out.iter_mut().zip(&row) {
            *out += *g;
        }
    }
    Ok(Value::new(value))
}

/// The distance penalty of a batch, and what its slopes need to know of all pairs.
struct DistancePenalty {
    delta: f64,
    /// 2/μ of the student, which takes ½d to d/μ; 0 where all rows are equal.
    per_half_x: f64,
    /// 2/μ of the teacher.
    per_half_y: f64,
    /// 1/N² Σ_ij huber(e_ij)
    mean: f64,
    /// Σ_ij w_ij d_ij/(μP), w without its 1/N².
    mean_slope: f64,
    n: usize,
}

impl DistancePenalty {
    fn new<R: Real>(delta: f64, relations: &Relations<R>, n: usize) -> Self {
        let sums: Vec<(f64, f64)> = (0..n)
            .into_par_iter()
            .map(|i| {
                dispatch(HalfSums {
                    row: relations.row(i),
                })
            })
            .collect();
        let (x, y) = add_up(&sums);
        let pairs = (n * n.saturating_sub(1)) as f64;
        // ½d · 2/μ, with μ = 2 Σ ½d / P.
        let per_half = |sum: f64| if sum > 0.0 { pairs / sum } else { 0.0 };
        let mut penalty = DistancePenalty {
            delta,
            per_half_x: per_half(x),
            per_half_y: per_half(y),
            mean: 0.0,
            mean_slope: 0.0,
            n,
        };
        let sums: Vec<(f64, f64)> = (0..n)
            .into_par_iter()
            .map(|i| {
                dispatch(Penalties {
                    penalty: &penalty,
                    row: relations.row(i),
                })
            })
            .collect();
        let (sum, slope_sum) = add_up(&sums);
        penalty.mean = sum / (n * n) as f64;
        penalty.mean_slope = if pairs > 0.0 { slope_sum / pairs } else { 0.0 };
        penalty
    }

    /// What w_ij less the mean slope is multiplied by to give 2 ∂L/∂d_ij, which is C_ij d_ij:
    /// ∂L/∂d_ij = (w_ij − Σ_kl w_kl d_kl/(μP))/(N²μ).
    fn slope_factor(&self) -> f64 {
        self.per_half_x / (self.n * self.n) as f64
    }
}

fn add_up(sums: &[(f64, f64)]) -> (f64, f64) {
    sums.iter()
        .fold((0.0, 0.0), |total, sum| (total.0 + sum.0, total.1 + sum.1))
}

/// The sums of a row's ½d of student and teacher.
struct HalfSums<'a, R: Real> {
    row: &'a [R],
}

impl<R: Real> WithSimd for HalfSums<'_, R> {
    type Output = (f64, f64);

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) -> (f64, f64) {
        let zero = s.splat_f64s(0.0);
        let (mut x, mut y) = (zero, zero);
        for_halves::<S, R>(
            s,
            self.row,
            #[inline(always)]
            |half_x, half_y| {
                x = f64::vadd(s, x, half_x);
                y = f64::vadd(s, y, half_y);
            },
        );
        (f64::reduce_sum(s, x), f64::reduce_sum(s, y))
    }
}

/// Σ_j huber(e_ij) and Σ_j w_ij d_ij/μ of a row. In f64: an error that all pairs share, as that of a
/// rounded μ, would add up.
struct Penalties<'a, R: Real> {
    penalty: &'a DistancePenalty,
    row: &'a [R],
}

impl<R: Real> WithSimd for Penalties<'_, R> {
    type Output = (f64, f64);

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) -> (f64, f64) {
        let zero = s.splat_f64s(0.0);
        let one_half = s.splat_f64s(0.5);
        let per_half_x = s.splat_f64s(self.penalty.per_half_x);
        let per_half_y = s.splat_f64s(self.penalty.per_half_y);
        let delta = s.splat_f64s(self.penalty.delta);
        let minus_delta = s.splat_f64s(-self.penalty.delta);
        let (mut sum, mut slope_sum) = (zero, zero);
        for_halves::<S, R>(
            s,
            self.row,
            #[inline(always)]
            |half_x, half_y| {
                let scaled = f64::vmul(s, half_x, per_half_x);
                let e = f64::vneg_mul_add(s, half_y, per_half_y, scaled);
                let w = f64::vmin(s, delta, f64::vmax(s, minus_delta, e));
                sum = f64::vmul_add(s, w, f64::vneg_mul_add(s, one_half, w, e), sum);
                slope_sum = f64::vmul_add(s, w, scaled, slope_sum);
            },
        );
        (f64::reduce_sum(s, sum), f64::reduce_sum(s, slope_sum))
    }
}

/// Calls `f` with the ½d of student and teacher, register by register of f64.
#[inline(always)]
fn for_halves<S: Simd, R: Real>(s: S, row: &[R], mut f: impl FnMut(S::f64s, S::f64s)) {
    let zero = s.splat_f64s(0.0);
    let mut lines = [0.0f64; 64];
    let lines = &mut lines[..4 * R::PAD];
    for group in 0..row.len() / lines.len() {
        let reals = &row[group * lines.len()..][..lines.len()];
        for l in 0..lines.len() {
            lines[l] = reals[l].to_f64();
        }
        let registers = f64::vectors::<S>(lines);
        let per_line = registers.len() / 4;
        for v in 0..per_line {
            let at = |which: usize| registers[which * per_line + v];
            f(f64::vsub(s, zero, at(MINUS_A_X)), at(A_Y));
        }
    }
}

/// Turns the angle's sums S into the coefficients C, in place:
/// C_ij = r_ij (minus_angle_factor · (S_ij + S_ji) + the distance's 2 ∂L/∂d_ij).
struct Coefficients<'a, R: Real> {
    relations: &'a Relations<R>,
    minus_angle_factor: f64,
    distance: Option<(f64, &'a DistancePenalty)>,
}

impl<R: Real> Coefficients<'_, R> {
    /// The pairs within a block.
    fn within(&self, block: &mut Block<'_, R>) -> f64 {
        let stride = self.relations.stride();
        let of_pair = self.of_pair();
        for i in 0..block.rows {
            for j in 0..=i {
                let (ij, ji) = (i * stride + block.first + j, j * stride + block.first + i);
                let c = of_pair(
                    block.first + i,
                    block.first + j,
                    block.data[ij] + block.data[ji],
                );
                block.data[ij] = c;
                block.data[ji] = c;
            }
        }
        0.0
    }

    /// The pairs with one row in each block.
    fn between(&self, a: &mut Block<'_, R>, b: &mut Block<'_, R>) -> f64 {
        let stride = self.relations.stride();
        let of_pair = self.of_pair();
        for i in 0..a.rows {
            for j in 0..b.rows {
                let (ij, ji) = (i * stride + b.first + j, j * stride + a.first + i);
                let c = of_pair(a.first + i, b.first + j, a.data[ij] + b.data[ji]);
                a.data[ij] = c;
                b.data[ji] = c;
            }
        }
        0.0
    }

    /// C_ij from S_ij + S_ji. In f64, so that few roundings come together.
    fn of_pair(&self) -> impl Fn(usize, usize, R) -> R {
        let minus_angle_factor = self.minus_angle_factor;
        let distance = self.distance.map(|(weight, penalty)| {
            let factor = weight * penalty.slope_factor();
            let DistancePenalty {
                per_half_x,
                per_half_y,
                delta,
                mean_slope,
                ..
            } = *penalty;
            move |half_x: f64, half_y: f64| {
                let e = half_x * per_half_x - half_y * per_half_y;
                factor * (e.clamp(-delta, delta) - mean_slope)
            }
        });
        move |i, j, sum| {
            let at = |which| self.relations.get(i, j, which).to_f64();
            let angle = minus_angle_factor * sum.to_f64();
            let distance = distance.map_or(0.0, |slope| slope(-at(MINUS_A_X), at(A_Y)));
            R::from_f64(at(R_X) * (angle + distance))
        }
    }
}
