//! A row of logits that are not all finite.
//!
//! A class that is −∞ in student and teacher is masked: the row is one without it. Where the
//! teacher's logit alone is −∞, p is 0; where the student's alone is, q is 0. `Divergence` says
//! which of them make the divergence +∞.

use super::Row;
use crate::cpu::buffer::Buffer;
use crate::element::Element;
use crate::error::Result;
use crate::loss::{Divergence, Logits};
use crate::simd::{Lanes, dispatch};

/// The divergence, and its gradient in `out`; NaN there where the divergence is not finite.
pub(super) fn evaluate_row<T: Element>(
    loss: &Logits,
    x: &[T],
    y: &[T],
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
    let none = |row: &[T]| row.iter().all(is_masked);
    let forward = loss.divergence == Divergence::Forward;
    let no_distribution = none(y) || (none(x) && !forward);
    if no_distribution || !x.iter().chain(y).all(is_logit) {
        out.fill(T::Real::from_f64(f64::NAN));
        return Ok(f64::NAN);
    }
    let excludes = |row: &[T]| kept.iter().any(|&class| is_masked(&row[class]));
    let infinite = match loss.divergence {
        Divergence::Forward => excludes(x),
        Divergence::Reverse => excludes(y),
        Divergence::Js { .. } | Divergence::Skew { .. } | Divergence::SkewReverse { .. } => false,
    };
    if infinite {
        out.fill(T::Real::from_f64(f64::NAN));
        return Ok(f64::INFINITY);
    }

    // A logit whose probability is 0 at every temperature. No difference from it overflows.
    let excluded = T::Real::LOWEST * T::Real::from_f64(0.25);
    let padded = kept.len().next_multiple_of(T::Real::PAD);
    let mut short_x = Buffer::any(padded)?;
    let mut short_y = Buffer::any(padded)?;
    let logit = |l: &T| {
        if is_masked(l) {
            excluded
        } else {
            T::Real::from_f64(l.to_f64())
        }
    };
    for (at, &class) in kept.iter().enumerate() {
        short_x[at] = logit(&x[class]);
        short_y[at] = logit(&y[class]);
    }
    let value = dispatch(Row {
        loss,
        x: &mut short_x,
        y: &mut short_y,
        difference: &mut Buffer::any(padded)?,
        classes: kept.len(),
        factor,
    });
    out.fill(T::Real::ZERO);
    for (&class, &gradient) in kept.iter().zip(short_x.iter()) {
        out[class] = gradient;
    }
    Ok(value)
}
