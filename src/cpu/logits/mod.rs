//! Hinton's KL over given logits.
//!
//! A task takes one row at a time. The row stays in the cache between its three sweeps (largest,
//! sums, gradient), so memory is read once and written once.

pub(super) mod softmax;

use pulp::{Simd, WithSimd};

use crate::cpu::buffer::Buffer;
use crate::cpu::parallel::try_map_blocks;
use crate::element::{Element, Real};
use crate::error::Result;
use crate::loss::Logits;
use crate::problem::Batch;
use crate::simd::{Lanes, dispatch};
use softmax::{CHUNK, largest, present, split_whole};

/// The loss. NaN if a logit is not finite.
pub(super) fn evaluate<T: Element>(
    loss: &Logits,
    batch: Batch<'_, T>,
    upstream: f64,
    gradient: &mut [T::Real],
) -> Result<f64> {
    let (rows, classes) = (batch.student.len(), batch.student.dim());
    let temperature = loss.temperature;
    let padded = classes.next_multiple_of(T::Real::PAD);
    let sums: Vec<f64> = try_map_blocks(gradient, classes, &|i, out| {
        let mut x = Buffer::<T::Real>::any(padded)?;
        let mut y = Buffer::<T::Real>::any(padded)?;
        T::widen(batch.student.row(i), &mut x[..classes]);
        T::widen(batch.teacher.row(i), &mut y[..classes]);
        let kl = dispatch(Row {
            x: &mut x,
            y: &mut y,
            classes,
            temperature,
            factor: upstream * temperature / rows as f64,
        });
        out.copy_from_slice(&x[..classes]);
        Ok(kl)
    })?;
    let sum: f64 = sums.iter().sum();
    Ok(temperature * temperature / rows as f64 * sum)
}

/// One row of logits of each.
struct Row<'a, R> {
    /// The student's, padded; becomes the gradient.
    x: &'a mut [R],
    /// The teacher's, padded.
    y: &'a mut [R],
    classes: usize,
    temperature: f64,
    /// What q − p is multiplied by.
    factor: f64,
}

impl<R: Real> WithSimd for Row<'_, R> {
    /// KL(p‖q)
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) -> f64 {
        let Row {
            x,
            y,
            classes,
            temperature,
            factor,
        } = self;
        let max_x = largest::<S, R>(s, x, classes);
        let max_y = largest::<S, R>(s, y, classes);
        let maxima = Maxima::<S, R>::new(s, max_x, max_y, temperature);

        // Σ e^a of student and teacher, and Σ e^a_y (a_y − a_x), with a = (logit − largest)/T.
        let (mut sum_x, mut sum_y, mut sum_difference) = (0.0, 0.0, 0.0);
        // Adds up x · 0 and y · 0: 0, or NaN if a logit is not finite.
        let zero = R::splat(s, R::ZERO);
        let mut zeros = zero;
        let [whole_x, rest_x] = split_whole::<S, R>(x, classes);
        let [whole_y, rest_y] = split_whole::<S, R>(y, classes);
        let chunk = CHUNK / R::width::<S>();
        for (x, y) in whole_x.chunks_mut(chunk).zip(whole_y.chunks_mut(chunk)) {
            let (mut part_x, mut part_y, mut part_difference) = (zero, zero, zero);
            for (x, y) in x.iter_mut().zip(y) {
                zeros = R::vmul_add(s, *x, zero, R::vmul_add(s, *y, zero, zeros));
                let difference = maxima.exponentials(s, x, y);
                part_x = R::vadd(s, part_x, *x);
                part_y = R::vadd(s, part_y, *y);
                part_difference = R::vmul_add(s, *y, difference, part_difference);
            }
            sum_x += R::reduce_sum(s, part_x).to_f64();
            sum_y += R::reduce_sum(s, part_y).to_f64();
            sum_difference += R::reduce_sum(s, part_difference).to_f64();
        }
        let present = present::<R>(classes % R::width::<S>());
        if let (Some(x), Some(y)) = (rest_x.first_mut(), rest_y.first_mut()) {
            let present = R::vectors::<S>(&present)[0];
            zeros = R::vmul_add(s, *x, zero, R::vmul_add(s, *y, zero, zeros));
            let difference = maxima.exponentials(s, x, y);
            *x = R::vmul(s, *x, present);
            *y = R::vmul(s, *y, present);
            sum_x += R::reduce_sum(s, *x).to_f64();
            sum_y += R::reduce_sum(s, *y).to_f64();
            sum_difference += R::reduce_sum(s, R::vmul(s, *y, difference)).to_f64();
        }

        let factor_x = R::splat(s, R::from_f64(factor / sum_x));
        let factor_y = R::splat(s, R::from_f64(factor / sum_y));
        let (x, y) = (R::vectors_mut::<S>(x), R::vectors_mut::<S>(y));
        for (x, y) in x.iter_mut().zip(y) {
            *x = R::vsub(s, R::vmul(s, *x, factor_x), R::vmul(s, *y, factor_y));
        }
        sum_difference / temperature / sum_y + sum_x.ln() - sum_y.ln()
            + R::reduce_sum(s, zeros).to_f64()
    }
}

/// The largest logits of a row of student and teacher, in every lane, and the order in which
/// differences are formed.
struct Maxima<S: Simd, R: Real> {
    x: R::Of<S>,
    y: R::Of<S>,
    /// What is subtracted from each logit before the difference of the two, and what from the
    /// difference.
    first_x: R::Of<S>,
    first_y: R::Of<S>,
    last: R::Of<S>,
    per_temperature: R::Of<S>,
}

impl<S: Simd, R: Real> Maxima<S, R> {
    #[inline(always)]
    fn new(s: S, x: R, y: R, temperature: f64) -> Self {
        // a_y − a_x is the difference of two logits less that of their maxima. Near the teacher the
        // logits are almost equal, so their difference is exact if it is formed first. Where an
        // offset lies between the two, each logit's own maximum is subtracted first.
        let between = (y - x).to_f64();
        let (first_x, first_y, last) = if between.abs() <= temperature {
            (R::ZERO, R::ZERO, y - x)
        } else {
            (x, y, R::ZERO)
        };
        Maxima {
            x: R::splat(s, x),
            y: R::splat(s, y),
            first_x: R::splat(s, first_x),
            first_y: R::splat(s, first_y),
            last: R::splat(s, last),
            per_temperature: R::splat(s, R::from_f64(1.0 / temperature)),
        }
    }

    /// Turns logits into e^a, with a = (logit − largest)/T, and returns T (a_y − a_x).
    #[inline(always)]
    fn exponentials(&self, s: S, x: &mut R::Of<S>, y: &mut R::Of<S>) -> R::Of<S> {
        let difference = R::vsub(
            s,
            R::vsub(s, *y, self.first_y),
            R::vsub(s, *x, self.first_x),
        );
        *x = R::vexp(s, R::vmul(s, R::vsub(s, *x, self.x), self.per_temperature));
        *y = R::vexp(s, R::vmul(s, R::vsub(s, *y, self.y), self.per_temperature));
        R::vsub(s, difference, self.last)
    }
}
