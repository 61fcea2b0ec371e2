//! A row of logits that are not all finite.
//!
//! A class that is −∞ in student and teacher is masked: the row is one without it. Where the
//! teacher's logit alone is −∞, p is 0. Where the student's alone is, KL is +∞.

use super::Row;
use crate::cpu::buffer::Buffer;
use crate::element::Element;
use crate::error::Result;
use crate::simd::{Lanes, dispatch};

/// KL(p‖q), and factor · (q − p) in `out`; NaN there where KL is not finite.
pub(super) fn evaluate_row<T: Element>(
    x: &[T],
    y: &[T],
    temperature: f64,
    factor: f64,
    out: &mut [T::Real],
) -> Result<f64> {
    let is_masked = |l: &T| l.to_f64() == f64::NEG_INFINITY;
    let pairs = || x.iter().zip(y).enumerate();
    let kept: Vec<usize> = pairs()
        .filter(|(_, (x, y))| !(is_masked(x) && is_masked(y)))
        .map(|(class, _)| class)
        .collect();
    if kept.is_empty() {
        out.fill(T::Real::ZERO);
        return Ok(0.0);
    }
    let is_logit = |l: &T| l.to_f64() < f64::INFINITY;
    let no_distribution = y.iter().all(is_masked);
    if no_distribution || !x.iter().chain(y).all(is_logit) {
        out.fill(T::Real::from_f64(f64::NAN));
        return Ok(f64::NAN);
    }
    if kept.iter().any(|&class| is_masked(&x[class])) {
        out.fill(T::Real::from_f64(f64::NAN));
        return Ok(f64::INFINITY);
    }

    // A logit whose probability is 0 at every temperature. No difference from it overflows.
    let excluded = T::Real::LOWEST * T::Real::from_f64(0.25);
    let padded = kept.len().next_multiple_of(T::Real::PAD);
    let mut short_x = Buffer::any(padded)?;
    let mut short_y = Buffer::any(padded)?;
    for (at, &class) in kept.iter().enumerate() {
        short_x[at] = T::Real::from_f64(x[class].to_f64());
        short_y[at] = if is_masked(&y[class]) {
            excluded
        } else {
            T::Real::from_f64(y[class].to_f64())
        };
    }
    let kl = dispatch(Row {
        x: &mut short_x,
        y: &mut short_y,
        difference: &mut Buffer::any(padded)?,
        classes: kept.len(),
        temperature,
        factor,
    });
    out.fill(T::Real::ZERO);
    for (&class, &gradient) in kept.iter().zip(short_x.iter()) {
        out[class] = gradient;
    }
    Ok(kl)
}
