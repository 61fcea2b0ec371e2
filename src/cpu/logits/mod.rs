//! The divergence of two softmaxes over given logits: Hinton's KL here, the others in
//! `divergence.rs`.
//!
//! With p of the teacher and q of the student, a = (logit − largest)/T for each of them, and
//! c = a_y − a_x:
//!
//! ```text
//! for each row:
//!     largest logits                                     first sweep
//!     Σ e^a_x, Σ e^a_y, c̄ = Σ p c                        second sweep
//!     KL = c̄ + ln Σ e^a_x − ln Σ e^a_y                   enough where KL is not small
//!     S = Σ p (e^(c̄−c) − 1)                              third sweep
//!     KL = ln(1 + S)
//!     gradient = T/N (p (e^(c̄−c) − 1) − p S)/(1 + S)     fourth sweep
//! ```
//!
//! 1. A task takes one row at a time. The row stays in the cache between its sweeps, so memory is
//!    read once and written once.
//! 2. Near the teacher, or at a high temperature, KL is the small difference of large logarithms,
//!    and q − p of two numbers that are almost equal. The last two sweeps have no such difference:
//!    log p − log q = c − c̄ + KL, so Σ p e^(c̄−c) = e^KL. The terms of S are computed from c − c̄,
//!    which is as exact as the logits, and as Σ p (c − c̄) = 0, no term of first order remains.
//! 3. With two temperatures a_y and a_x are rounded before c is formed.

mod divergence;
mod masked;
pub(super) mod softmax;
mod top_k;

use pulp::{Simd, WithSimd};

use crate::batch::Batch;
use crate::cpu::buffer::Buffer;
use crate::cpu::parallel::try_map_blocks;
use crate::element::{Element, Real};
use crate::error::Result;
use crate::loss::{Divergence, Logits};
use crate::problem::Problem;
use crate::simd::{Lanes, dispatch};
use softmax::{CHUNK, largest, present, split_whole};

/// Rows of a smaller KL are computed without the difference of logarithms. These are as large as
/// log C, so from here on their rounding is a few units in the last place of KL.
const NEAR: f64 = 1.0;

/// The loss. A row whose logits are not all finite has the value that `masked` gives it, and one of
/// weight 0 the value 0.
pub(super) fn evaluate<T: Element>(
    loss: &Logits,
    problem: &Problem,
    batch: Batch<'_, T>,
    row_losses: Option<&mut [f64]>,
    gradient: &mut [T::Real],
) -> Result<f64> {
    let (rows, classes) = (problem.mean_rows() as f64, problem.classes());
    let shares = batch.row_weights.map(|weights| problem.shares(weights));
    let t = loss.student_temperature;
    let of_row = |i: usize, out: &mut [T::Real]| {
        let (out, others) = out.split_at_mut(classes);
        let factor = match &shares {
            None => problem.upstream() * t / rows,
            Some(shares) => problem.upstream() * t * shares[i],
        };
        let value = if shares.as_ref().is_some_and(|shares| shares[i] == 0.0) {
            out.fill(T::Real::ZERO);
            0.0
        } else {
            let x = &batch.student.row(i)[..classes];
            match batch.top_k {
                Some(top_k) => top_k::evaluate_row::<T>(loss, x, top_k, i, factor, out)?,
                None => evaluate_row(loss, x, &batch.teacher.row(i)[..classes], factor, out)?,
            }
        };
        others.fill(T::Real::ZERO);
        Ok(value)
    };
    let values: Vec<f64> = try_map_blocks(gradient, batch.student.dim(), &of_row)?;
    let loss = match &shares {
        None => t * t / rows * values.iter().sum::<f64>(),
        Some(shares) => {
            let weighted = values
                .iter()
                .zip(shares)
                .map(|(value, share)| value * share);
            t * t * weighted.sum::<f64>()
        }
    };
    if let Some(losses) = row_losses {
        for (loss, value) in losses.iter_mut().zip(values) {
            *loss = t * t * value;
        }
    }
    Ok(loss)
}

/// The divergence of two rows, and its gradient in `out`.
fn evaluate_row<T: Element>(
    loss: &Logits,
    row_x: &[T],
    row_y: &[T],
    factor: f64,
    out: &mut [T::Real],
) -> Result<f64> {
    let classes = row_x.len();
    let padded = classes.next_multiple_of(T::Real::PAD);
    let mut x = Buffer::<T::Real>::any(padded)?;
    let mut y = Buffer::<T::Real>::any(padded)?;
    let mut difference = Buffer::<T::Real>::any(padded)?;
    T::widen(row_x, &mut x[..classes]);
    T::widen(row_y, &mut y[..classes]);
    let value = dispatch(Row {
        loss,
        x: &mut x,
        y: &mut y,
        difference: &mut difference,
        classes,
        factor,
    });
    if value.is_nan() {
        return masked::evaluate_row(loss, row_x, row_y, factor, out);
    }
    out.copy_from_slice(&x[..classes]);
    Ok(value)
}

/// One row of logits of each.
struct Row<'a, R> {
    loss: &'a Logits,
    /// The student's, padded; becomes the gradient.
    x: &'a mut [R],
    /// The teacher's, padded.
    y: &'a mut [R],
    /// Memory for T c, padded; for c, if there are two temperatures.
    difference: &'a mut [R],
    classes: usize,
    /// What q − p is multiplied by, or what it is for another divergence.
    factor: f64,
}

impl<R: Real> WithSimd for Row<'_, R> {
    /// The divergence, or NaN if a logit is not finite.
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) -> f64 {
        let Row {
            loss,
            x,
            y,
            difference,
            classes,
            factor,
        } = self;
        let max_x = largest::<S, R>(s, x, classes);
        let max_y = largest::<S, R>(s, y, classes);
        let maxima = Maxima::<S, R>::new(s, max_x, max_y, loss);
        let temperature = maxima.unit;

        // Σ e^a of student and teacher, and Σ e^a_y T c.
        let (mut sum_x, mut sum_y, mut sum_difference) = (0.0, 0.0, 0.0);
        // Adds up x · 0 and y · 0: 0, or NaN if a logit is not finite.
        let zero = R::splat(s, R::ZERO);
        let mut zeros = zero;
        let [whole_x, rest_x] = split_whole::<S, R>(x, classes);
        let [whole_y, rest_y] = split_whole::<S, R>(y, classes);
        let [whole, rest] = split_whole::<S, R>(difference, classes);
        let chunk = CHUNK / R::width::<S>();
        let chunks = whole_x.chunks_mut(chunk).zip(whole_y.chunks_mut(chunk));
        for ((x, y), difference) in chunks.zip(whole.chunks_mut(chunk)) {
            let (mut part_x, mut part_y, mut part_difference) = (zero, zero, zero);
            for ((x, y), difference) in x.iter_mut().zip(y).zip(difference) {
                zeros = R::vmul_add(s, *x, zero, R::vmul_add(s, *y, zero, zeros));
                *difference = maxima.exponentials(s, x, y);
                part_x = R::vadd(s, part_x, *x);
                part_y = R::vadd(s, part_y, *y);
                part_difference = R::vmul_add(s, *y, *difference, part_difference);
            }
            sum_x += R::reduce_sum(s, part_x).to_f64();
            sum_y += R::reduce_sum(s, part_y).to_f64();
            sum_difference += R::reduce_sum(s, part_difference).to_f64();
        }
        let present = present::<R>(classes % R::width::<S>());
        let rest = rest_x
            .first_mut()
            .zip(rest_y.first_mut())
            .zip(rest.first_mut());
        if let Some(((x, y), difference)) = rest {
            let present = R::vectors::<S>(&present)[0];
            zeros = R::vmul_add(s, *x, zero, R::vmul_add(s, *y, zero, zeros));
            *difference = maxima.exponentials(s, x, y);
            *x = R::vmul(s, *x, present);
            *y = R::vmul(s, *y, present);
            sum_x += R::reduce_sum(s, *x).to_f64();
            sum_y += R::reduce_sum(s, *y).to_f64();
            sum_difference += R::reduce_sum(s, R::vmul(s, *y, *difference)).to_f64();
        }

        let mean = R::from_f64(sum_difference / sum_y);
        let used = classes.div_ceil(R::width::<S>());
        let (x, y) = (R::vectors_mut::<S>(x), R::vectors_mut::<S>(y));
        let kl = sum_difference / temperature / sum_y + sum_x.ln() - sum_y.ln()
            + R::reduce_sum(s, zeros).to_f64();
        if loss.divergence != Divergence::Forward {
            if kl.is_nan() {
                return kl;
            }
            let row = divergence::Softmaxes {
                exponentials: [&mut x[..used], &mut y[..used]],
                differences: &mut R::vectors_mut::<S>(difference)[..used],
                sums: [sum_x, sum_y],
                kl,
                mean,
                unit: temperature,
                factor,
            };
            return row.evaluate(s, loss.divergence);
        }
        // What is not finite goes the short way.
        if kl < NEAR {
            let near = Near::<S, R>::new(s, mean, temperature, sum_y);
            let (excess, first_order) = near.sums(&mut x[..used], &y[..used], difference);
            let sum = excess - first_order;
            near.gradient(factor, sum, &mut x[..used], &y[..used]);
            let kl = first_order + sum.ln_1p();
            // The rounding of what is 0 may be negative.
            return if kl < 0.0 { 0.0 } else { kl };
        }
        let factor_x = R::splat(s, R::from_f64(factor / sum_x));
        let factor_y = R::splat(s, R::from_f64(factor / sum_y));
        for (x, y) in x.iter_mut().zip(y) {
            *x = R::vsub(s, R::vmul(s, *x, factor_x), R::vmul(s, *y, factor_y));
        }
        kl
    }
}

/// A row whose student is near its teacher: the sweeps in which nothing cancels.
struct Near<S: Simd, R: Real> {
    s: S,
    /// T c̄, as it was rounded.
    mean: R::Of<S>,
    per_temperature: R::Of<S>,
    /// What takes e^a_y to p.
    per_sum: R::Of<S>,
    /// What takes e^a_x to p e^(c̄−c).
    shifted_per_sum: R::Of<S>,
    sum_y: f64,
}

impl<S: Simd, R: Real> Near<S, R> {
    #[inline(always)]
    fn new(s: S, mean: R, temperature: f64, sum_y: f64) -> Self {
        let shift = (mean.to_f64() / temperature).exp();
        Near {
            s,
            mean: R::splat(s, mean),
            per_temperature: R::splat(s, R::from_f64(1.0 / temperature)),
            per_sum: R::splat(s, R::from_f64(1.0 / sum_y)),
            shifted_per_sum: R::splat(s, R::from_f64(shift / sum_y)),
            sum_y,
        }
    }

    /// Σ p (e^−d − 1 + d) and Σ p d, with d = c − c̄. The second is what the rounding of c̄ left.
    /// Turns `x` from e^a_x into p (e^−d − 1).
    #[inline(always)]
    fn sums(&self, x: &mut [R::Of<S>], y: &[R::Of<S>], difference: &[R]) -> (f64, f64) {
        let s = self.s;
        let quarter = R::splat(s, R::from_f64(0.25));
        let zero = R::splat(s, R::ZERO);
        let (mut excess, mut first_order) = (0.0, 0.0);
        let chunk = CHUNK / R::width::<S>();
        let chunks = x.chunks_mut(chunk).zip(y.chunks(chunk));
        for ((x, y), difference) in chunks.zip(R::vectors::<S>(difference).chunks(chunk)) {
            let (mut part_excess, mut part_first) = (zero, zero);
            for ((x, y), difference) in x.iter_mut().zip(y).zip(difference) {
                let d = R::vmul(s, R::vsub(s, *difference, self.mean), self.per_temperature);
                let p = R::vmul(s, *y, self.per_sum);
                // d may be infinite where p is 0.
                let first = R::if_positive(s, p, R::vmul(s, p, d), zero);
                // Where |d| ≥ ½ the direct differences do not cancel.
                let shifted = R::vsub(s, R::vmul(s, *x, self.shifted_per_sum), p);
                let close = R::vneg_mul_add(s, d, d, quarter);
                let minus_d = R::vsub(s, zero, d);
                let series = R::vmul(s, p, R::vexp_excess(s, minus_d));
                let slope = R::if_positive(s, close, R::vsub(s, series, first), shifted);
                let term = R::if_positive(s, close, series, R::vadd(s, shifted, first));
                part_excess = R::vadd(s, part_excess, term);
                part_first = R::vadd(s, part_first, first);
                *x = slope;
            }
            excess += R::reduce_sum(s, part_excess).to_f64();
            first_order += R::reduce_sum(s, part_first).to_f64();
        }
        (excess, first_order)
    }

    /// factor · (q − p), from p (e^−d − 1) in `x`, e^a_y in `y`, and S.
    #[inline(always)]
    fn gradient(&self, factor: f64, sum: f64, x: &mut [R::Of<S>], y: &[R::Of<S>]) {
        let s = self.s;
        let factor = factor / (1.0 + sum);
        let factor_x = R::splat(s, R::from_f64(factor));
        let factor_y = R::splat(s, R::from_f64(factor * sum / self.sum_y));
        for (x, y) in x.iter_mut().zip(y) {
            *x = R::vsub(s, R::vmul(s, *x, factor_x), R::vmul(s, *y, factor_y));
        }
    }
}

/// The largest logits of a row of student and teacher, in every lane, and the order in which
/// differences are formed.
struct Maxima<S: Simd, R: Real> {
    x: R::Of<S>,
    y: R::Of<S>,
    /// What takes a logit to one over its temperature.
    per_x: R::Of<S>,
    per_y: R::Of<S>,
    /// What is subtracted from each logit before the difference of the two, and what from the
    /// difference.
    first_x: R::Of<S>,
    first_y: R::Of<S>,
    last: R::Of<S>,
    /// What a logit is multiplied by before the difference is formed: 1, so that nothing is
    /// rounded, or what takes it to one over its temperature.
    scale_x: R::Of<S>,
    scale_y: R::Of<S>,
    /// What the differences are in units of: T, or 1.
    unit: f64,
}

impl<S: Simd, R: Real> Maxima<S, R> {
    #[inline(always)]
    fn new(s: S, x: R, y: R, loss: &Logits) -> Self {
        let [per_x, per_y] = [loss.student_temperature, loss.teacher_temperature]
            .map(|temperature| R::from_f64(1.0 / temperature));
        let temperature = loss.student_temperature;
        let one = temperature == loss.teacher_temperature;
        // a_y − a_x is the difference of two logits less that of their maxima. Near the teacher the
        // logits are almost equal, so their difference is exact if it is formed first. Where an
        // offset lies between the two, each logit's own maximum is subtracted first.
        let between = (y - x).to_f64();
        let (first_x, first_y, last) = if one && between.abs() <= temperature {
            (R::ZERO, R::ZERO, y - x)
        } else {
            (x, y, R::ZERO)
        };
        let [scale_x, scale_y] = if one { [R::ONE; 2] } else { [per_x, per_y] };
        Maxima {
            x: R::splat(s, x),
            y: R::splat(s, y),
            per_x: R::splat(s, per_x),
            per_y: R::splat(s, per_y),
            first_x: R::splat(s, first_x),
            first_y: R::splat(s, first_y),
            last: R::splat(s, last),
            scale_x: R::splat(s, scale_x),
            scale_y: R::splat(s, scale_y),
            unit: if one { temperature } else { 1.0 },
        }
    }

    /// Turns logits into e^a, with a = (logit − largest)/T, and returns a_y − a_x times the unit.
    #[inline(always)]
    fn exponentials(&self, s: S, x: &mut R::Of<S>, y: &mut R::Of<S>) -> R::Of<S> {
        let difference = R::vsub(
            s,
            R::vmul(s, R::vsub(s, *y, self.first_y), self.scale_y),
            R::vmul(s, R::vsub(s, *x, self.first_x), self.scale_x),
        );
        *x = R::vexp(s, R::vmul(s, R::vsub(s, *x, self.x), self.per_x));
        *y = R::vexp(s, R::vmul(s, R::vsub(s, *y, self.y), self.per_y));
        R::vsub(s, difference, self.last)
    }
}
