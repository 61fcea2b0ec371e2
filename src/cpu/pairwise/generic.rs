//! Every pairwise loss that is a sum over pairs: any relation, normalizer and penalty.
//!
//! ```text
//! r_ij(X), r_ij(Y)                              both relations, one triangle, then mirrored
//! s_i(X), s_i(Y)                                the normalizer, for each row
//! for each row i:                               first pass
//!     for each j:  u = r_ij(X)/s_i(X)    v = r_ij(Y)/s_i(Y)    w = ∂penalty(u, v)/∂u
//!     loss += Σ_j penalty(u, v)          t_i = Σ_j w u
//! T_i = t_i, or Σ_i t_i                         the sum of w u over the normalizer's scope
//! for each row i:                               second pass
//!     for each j:  C_ij = (w_ij − T_i ∂s/∂r_ij)/s_i      C_ji = (w_ji − T_j ∂s/∂r_ji)/s_j
//!                  r_ij(X) ← K_ij = C_ij + C_ji
//! gradient_i = 1/N² Σ_j K_ij ∂r_ij/∂x_i         the contraction
//! ```
//!
//! 1. Relations are symmetric. So C_ji comes from r_ij, which row i holds, and from s_j and T_j.
//!    No pass reads a matrix along its columns, and K takes the memory of r(X).
//! 2. The relations are stored in `R`. All arithmetic on them is in f64, as the difference e of
//!    two nearly equal relations cancels. The passes take O(N²), the relations and the contraction
//!    O(N²D).
//! 3. Products are computed in f32 for f32 gradients, unless the normalizer of some row is so
//!    small that products of that row lose digits: then in f64.
//! 4. A divergence is computed in f64 if a relation of the student is near 0, where the logarithm
//!    magnifies its rounding.
//! 5. Distances are computed in f64 always: in f32 the contraction of rows that differ much in
//!    their distances is not exact enough.

use pulp::{Simd, WithSimd};

use super::contraction::{Form, contract, contract_product};
use super::ops::{
    Divergence, Huber, PenaltyOp, Plain, Positive, RelationOp, Root, ScaleSlope, Shifted, Squared,
    inverse_scales, is_distance, row_scaling, scale_slopes,
};
use super::order::order;
use super::pair_sums::symmetric;
use super::ranking::{Ranking, ranking};
use crate::batch::Batch;
use crate::cpu::buffer::Buffer;
use crate::cpu::embeddings::Embeddings;
use crate::cpu::parallel::{for_each_block, map};
use crate::element::{DType, Element, Real};
use crate::error::Result;
use crate::loss::{Normalizer, Pairwise, Penalty, Relation};
use crate::simd::{dispatch, row_stride};

/// Elements of a row that are summed side by side, whatever the registers of the machine.
const LANES: usize = 8;

/// Relations of the student from which on their logarithm is known in f32: a cosine is rounded by
/// 6e-8, and so is its sum with 1, which is near 0 for rows that lie opposite to one another.
const LEAST_LOGARITHM_F32: f64 = 1.0 / 64.0;

/// 1/s up to which products are computed in f32: all that counts of them is then a normal number.
const MOST_INVERSE_F32: f64 = (1u64 << 60) as f64;

/// The loss. `None` if an input is not finite.
pub(super) fn pairwise<T: Element>(
    loss: &Pairwise,
    normalize: bool,
    batch: Batch<'_, T>,
    upstream: f64,
    gradient: &mut [T::Real],
) -> Result<Option<f64>> {
    match loss.penalty {
        Penalty::Squared => with_penalty(loss, Squared, normalize, batch, upstream, gradient),
        Penalty::Huber { delta } => {
            let penalty = Huber { delta };
            with_penalty(loss, penalty, normalize, batch, upstream, gradient)
        }
        Penalty::Divergence { epsilon } => {
            let penalty = Divergence { epsilon };
            with_penalty(loss, penalty, normalize, batch, upstream, gradient)
        }
        Penalty::Order { margin } => order(loss, margin, normalize, batch, upstream, gradient),
        Penalty::Ranking {
            alpha,
            beta,
            length,
        } => {
            let penalty = Ranking {
                alpha,
                beta,
                length,
            };
            ranking(loss, penalty, normalize, batch, upstream, gradient)
        }
    }
}

fn with_penalty<T: Element, P: PenaltyOp>(
    loss: &Pairwise,
    penalty: P,
    normalize: bool,
    batch: Batch<'_, T>,
    upstream: f64,
    gradient: &mut [T::Real],
) -> Result<Option<f64>> {
    let scaling = row_scaling(loss, normalize);
    if <T::Real as Element>::DTYPE == DType::F32 && !is_distance(loss.relation) {
        let Some((x, y)) = Embeddings::<f32>::both(batch, scaling)? else {
            return Ok(None);
        };
        if let Some(value) = evaluate(loss, penalty, &x, &y, upstream, gradient)? {
            return Ok(Some(value));
        }
    }
    let Some((x, y)) = Embeddings::<f64>::both(batch, scaling)? else {
        return Ok(None);
    };
    evaluate(loss, penalty, &x, &y, upstream, gradient)
}

/// Computes in `R`. `None` if that is f32 and the data need f64.
fn evaluate<R: Real, G: Real, P: PenaltyOp>(
    loss: &Pairwise,
    penalty: P,
    x: &Embeddings<R>,
    y: &Embeddings<R>,
    upstream: f64,
    gradient: &mut [G],
) -> Result<Option<f64>> {
    let n = x.rows;
    let stride = row_stride::<R>(n);
    let mut relation_x = relation_of(loss.relation, x)?;
    let relation_y = relation_of(loss.relation, y)?;
    let Some(value) = coefficients(loss, penalty, &mut relation_x, &relation_y, n) else {
        return Ok(None);
    };
    let factor = upstream / (n * n) as f64;
    match loss.relation {
        Relation::Distance => {
            let form = Form::Differences;
            contract(form, x, &mut relation_x, stride, factor, gradient)?;
        }
        Relation::SquaredDistance => {
            let form = Form::Differences;
            contract(form, x, &mut relation_x, stride, 2.0 * factor, gradient)?;
        }
        Relation::Dot | Relation::Cosine | Relation::PositiveCosine | Relation::ShiftedCosine => {
            contract_product(x, &relation_x, stride, factor, gradient)?;
        }
    }
    Ok(Some(value))
}

/// The loss of both relations, `[N, row_stride(N)]`. The student's becomes what the contraction
/// takes, times N². `None` if that is f32 and the data need f64.
pub(super) fn coefficients<R: Real, P: PenaltyOp>(
    loss: &Pairwise,
    penalty: P,
    relation_x: &mut [R],
    relation_y: &[R],
    n: usize,
) -> Option<f64> {
    let stride = row_stride::<R>(n);
    let per_x = scales(loss.normalizer, relation_x, n, stride);
    let per_y = scales(loss.normalizer, relation_y, n, stride);
    if R::DTYPE == DType::F32 && loss.normalizer != Normalizer::None {
        let exact = |&inverse: &f64| inverse != 0.0 && inverse.abs() <= MOST_INVERSE_F32;
        if !per_x[..n].iter().chain(&per_y[..n]).all(exact) {
            return None;
        }
    }

    if R::DTYPE == DType::F32 && matches!(loss.penalty, Penalty::Divergence { .. }) {
        let rows = relation_x.chunks_exact(stride).map(|row| &row[..n]);
        let known = |&r: &R| r.to_f64() >= LEAST_LOGARITHM_F32;
        if !rows.flatten().all(known) {
            return None;
        }
    }

    let sums: Vec<(f64, f64)> = map(n, &|i| {
        dispatch(RowPenalty {
            penalty,
            x: &relation_x[i * stride..][..stride],
            y: &relation_y[i * stride..][..stride],
            per_x: per_x[i],
            per_y: per_y[i],
        })
    });
    let n2 = (n * n) as f64;
    let value = sums.iter().map(|&(value, _)| value).sum::<f64>() / n2;
    let slopes: Vec<f64> = sums.iter().map(|&(_, slope)| slope).collect();
    let mut slopes = scale_slopes(loss.normalizer, &slopes);
    slopes.resize(stride, ScaleSlope::default());

    for_each_block(relation_x, stride, &|i, x| {
        let row = RowCoefficients {
            penalty,
            i,
            x,
            y: &relation_y[i * stride..][..stride],
            per_x: &per_x,
            per_y: &per_y,
            slopes: &slopes,
        };
        match loss.relation {
            Relation::Distance => dispatch(Coefficients(row, Root)),
            Relation::SquaredDistance | Relation::Dot | Relation::Cosine => {
                dispatch(Coefficients(row, Plain));
            }
            Relation::PositiveCosine => dispatch(Coefficients(row, Positive)),
            Relation::ShiftedCosine => dispatch(Coefficients(row, Shifted)),
        }
    });
    Some(value)
}

/// The relation of every two rows, `[N, row_stride(N)]`, with zeros in the padding.
pub(super) fn relation_of<R: Real>(relation: Relation, x: &Embeddings<R>) -> Result<Buffer<R>> {
    let mut matrix = if is_distance(relation) {
        symmetric::<R, true>(x)?
    } else {
        symmetric::<R, false>(x)?
    };
    let n = x.rows;
    let stride = row_stride::<R>(n);
    match relation {
        Relation::SquaredDistance | Relation::Dot | Relation::Cosine => {}
        Relation::Distance => {
            for_each_block(&mut matrix, stride, &|_, row| {
                dispatch(OfSums(&mut row[..n], Root))
            });
        }
        Relation::PositiveCosine => {
            for_each_block(&mut matrix, stride, &|_, row| {
                dispatch(OfSums(&mut row[..n], Positive))
            });
        }
        Relation::ShiftedCosine => {
            for_each_block(&mut matrix, stride, &|_, row| {
                dispatch(OfSums(&mut row[..n], Shifted))
            });
        }
    }
    Ok(matrix)
}

/// 1/s for each row; 0 in the padding.
fn scales<R: Real>(normalizer: Normalizer, relation: &[R], n: usize, stride: usize) -> Vec<f64> {
    let (mut sums, mut norms) = (vec![0.0; n], vec![0.0; n]);
    let row = |i: usize| &relation[i * stride..][..stride];
    let sum = |part| dispatch(Sum::<_, false>(part, 1.0));
    match normalizer {
        Normalizer::None => {}
        Normalizer::Mean => sums = map(n, &|i| sum(&row(i)[..i]) + sum(&row(i)[i + 1..])),
        Normalizer::RowSum => sums = map(n, &|i| sum(row(i))),
        Normalizer::RowL2 | Normalizer::Frobenius => norms = map(n, &|i| norm(row(i))),
    }
    let mut inverses = inverse_scales(normalizer, &sums, &norms);
    inverses.resize(stride, 0.0);
    inverses
}

/// The L2 norm of a row. A row whose squares overflow or vanish is scaled first.
fn norm<R: Real>(row: &[R]) -> f64 {
    let norm = dispatch(Sum::<_, true>(row, 1.0)).sqrt();
    if (1e-140..1e140).contains(&norm) {
        return norm;
    }
    let largest = row.iter().fold(0.0f64, |m, x| m.max(x.to_f64().abs()));
    if largest == 0.0 {
        return 0.0;
    }
    largest * dispatch(Sum::<_, true>(row, largest)).sqrt()
}

/// The sum of the elements, or of their squares (`SQUARES`), in units of the second field.
struct Sum<'a, R, const SQUARES: bool>(&'a [R], f64);

impl<R: Real, const SQUARES: bool> WithSimd for Sum<'_, R, SQUARES> {
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> f64 {
        let Sum(elements, unit) = self;
        let term = |x: R| {
            let x = x.to_f64() / unit;
            if SQUARES { x * x } else { x }
        };
        let (whole, rest) = elements.as_chunks::<LANES>();
        let mut sums = [0.0; LANES];
        for chunk in whole {
            for l in 0..LANES {
                sums[l] += term(chunk[l]);
            }
        }
        sums.iter().sum::<f64>() + rest.iter().map(|&x| term(x)).sum::<f64>()
    }
}

/// Replaces each sum by its relation. A plain loop, for the compiler to make vectors of.
struct OfSums<'a, R, Op>(&'a mut [R], Op);

impl<R: Real, Op: RelationOp> WithSimd for OfSums<'_, R, Op> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        for r in self.0 {
            *r = R::from_f64(Op::of_sum(r.to_f64()));
        }
    }
}

/// A row of both relations, for the first pass.
struct RowPenalty<'a, R, P> {
    penalty: P,
    x: &'a [R],
    y: &'a [R],
    /// 1/s of the row in student and teacher.
    per_x: f64,
    per_y: f64,
}

impl<R: Real, P: PenaltyOp> WithSimd for RowPenalty<'_, R, P> {
    /// Σ_j penalty(u_ij, v_ij) and Σ_j w_ij u_ij
    type Output = (f64, f64);

    /// Plain loops, for the compiler to make vectors of. The padding adds zeros.
    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> (f64, f64) {
        let (mut values, mut slopes) = ([0.0; LANES], [0.0; LANES]);
        let (x, y) = (self.x.as_chunks::<LANES>().0, self.y.as_chunks::<LANES>().0);
        for (x, y) in x.iter().zip(y) {
            for l in 0..LANES {
                let u = x[l].to_f64() * self.per_x;
                let v = y[l].to_f64() * self.per_y;
                values[l] += self.penalty.value(u, v);
                slopes[l] += self.penalty.slope(u, v) * u;
            }
        }
        (values.iter().sum(), slopes.iter().sum())
    }
}

/// A row of both relations, for the second pass.
struct RowCoefficients<'a, R, P> {
    penalty: P,
    /// The number of the row.
    i: usize,
    /// The student's relation, which becomes K.
    x: &'a mut [R],
    y: &'a [R],
    /// 1/s of each row in student and teacher, and the slopes of the student's s. All have the
    /// length of `x`.
    per_x: &'a [f64],
    per_y: &'a [f64],
    slopes: &'a [ScaleSlope],
}

/// Writes what the contraction takes: K_ij times the derivative of the relation.
struct Coefficients<'a, R, P, Op>(RowCoefficients<'a, R, P>, Op);

impl<R: Real, P: PenaltyOp, Op: RelationOp> WithSimd for Coefficients<'_, R, P, Op> {
    type Output = ();

    /// Plain loops, for the compiler to make vectors of.
    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let RowCoefficients {
            penalty,
            i,
            x,
            y,
            per_x,
            per_y,
            slopes,
        } = self.0;
        // C from a pair's relations, and the scales and slope of its first row.
        let coefficient = |r: f64, t: f64, per_x: f64, per_y: f64, slope: ScaleSlope| {
            let u = r * per_x;
            let w = penalty.slope(u, t * per_y);
            per_x * (w - slope.off_diagonal - slope.per_u * u)
        };
        let (i_x, i_y, i_slope) = (per_x[i], per_y[i], slopes[i]);
        // On the diagonal both orders are one pair.
        let of_diagonal = ScaleSlope {
            off_diagonal: i_slope.diagonal,
            ..i_slope
        };
        let r = x[i].to_f64();
        let diagonal = 2.0 * coefficient(r, y[i].to_f64(), i_x, i_y, of_diagonal);
        let diagonal = if Op::HAS_DIAGONAL {
            Op::weight(diagonal, r)
        } else {
            0.0
        };

        let (x_chunks, y) = (x.as_chunks_mut::<LANES>().0, y.as_chunks::<LANES>().0);
        let (per_x, per_y) = (per_x.as_chunks::<LANES>().0, per_y.as_chunks::<LANES>().0);
        let rows = per_x.iter().zip(per_y).zip(slopes.as_chunks::<LANES>().0);
        for ((x, y), ((j_x, j_y), j_slope)) in x_chunks.iter_mut().zip(y).zip(rows) {
            for l in 0..LANES {
                let (r, t) = (x[l].to_f64(), y[l].to_f64());
                let k = coefficient(r, t, i_x, i_y, i_slope)
                    + coefficient(r, t, j_x[l], j_y[l], j_slope[l]);
                x[l] = R::from_f64(Op::weight(k, r));
            }
        }
        x[i] = R::from_f64(diagonal);
    }
}

#[cfg(test)]
mod tests;
