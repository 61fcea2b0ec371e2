//! A row of logits whose teacher is a list of classes.
//!
//! ```text
//! e^a of the classes that are not listed, a = (logit − their largest)/T    a sweep
//! Σ e: the tail                                                            a sweep
//! D of the listed classes and the tail, and ∂D                             f64, k + 1 classes
//! gradient = e · what the tail has                                         a sweep
//! gradient of the listed classes
//! ```
//!
//! The tail is a sum of its own and not 1 less the others: a small one keeps all digits. With a
//! tail the k + 1 classes are two rows of logits like others, at temperature 1.

use pulp::{Simd, WithSimd};

use super::softmax::largest;
use crate::cpu::buffer::Buffer;
use crate::cpu::sums::sum_of;
use crate::element::{Element, Real};
use crate::error::Result;
use crate::loss::{Divergence, Logits};
use crate::simd::{Lanes, dispatch};
use crate::top_k::TopK;

/// The divergence, and its gradient in `out`; NaN there where the divergence is not finite.
pub(super) fn evaluate_row<T: Element>(
    loss: &Logits,
    row: &[T],
    teacher: TopK<'_, T::Real>,
    at: usize,
    factor: f64,
    out: &mut [T::Real],
) -> Result<f64> {
    let t = loss.student_temperature;
    let listed: Vec<(usize, f64)> = teacher.row(at).collect();
    if !listed.iter().all(|&(_, log_p)| log_p < f64::INFINITY) {
        out.fill(T::Real::from_f64(f64::NAN));
        return Ok(f64::NAN);
    }
    // Those of the listed classes are taken by themselves, in f64.
    let logits: Vec<f64> = listed
        .iter()
        .map(|&(class, _)| row[class].to_f64())
        .collect();
    let mut e = Buffer::<T::Real>::any(row.len().next_multiple_of(T::Real::PAD))?;
    T::widen(row, &mut e[..row.len()]);
    for &(class, _) in &listed {
        e[class] = T::Real::from_f64(f64::NEG_INFINITY);
    }
    let largest_of_tail = exponentials(&mut e, row.len(), t);
    let (Some(largest_of_tail), true) =
        (largest_of_tail, logits.iter().all(|&l| l < f64::INFINITY))
    else {
        out.fill(T::Real::from_f64(f64::NAN));
        return Ok(f64::NAN);
    };
    let e = &e[..row.len()];
    // In units of its own largest, so that it is a number however far it is below the listed ones.
    let tail = sum_of(e, e, |e, _| e);
    let from = if tail > 0.0 {
        largest_of_tail
    } else {
        f64::NEG_INFINITY
    };
    let largest = logits.iter().copied().fold(from, f64::max);
    if largest == f64::NEG_INFINITY {
        // No class is left.
        out.fill(T::Real::from_f64(f64::NAN));
        let forward = loss.divergence == Divergence::Forward;
        return Ok(if forward { f64::INFINITY } else { f64::NAN });
    }
    let log_tail = tail.ln()
        + if tail > 0.0 {
            (from - largest) / t
        } else {
            0.0
        };
    let a: Vec<f64> = logits.iter().map(|l| (l - largest) / t).collect();
    let log_sum = (log_tail.exp() + a.iter().map(|a| a.exp()).sum::<f64>()).ln();
    let list = List {
        log_p: listed.iter().map(|&(_, log_p)| log_p).collect(),
        log_q: a.iter().map(|a| a - log_sum).collect(),
        log_tail: log_tail - log_sum,
        factor,
    };
    // The gradient of all classes of the tail together, and of each that is listed.
    let (value, of_tail, slopes) = if loss.tail && listed.len() < row.len() {
        list.with_tail::<T::Real>(loss)?
    } else {
        list.alone(loss.divergence)
    };
    if !value.is_finite() {
        out.fill(T::Real::from_f64(f64::NAN));
        return Ok(value);
    }
    let of_tail = T::Real::from_f64(if tail > 0.0 { of_tail / tail } else { 0.0 });
    for (out, &e) in out.iter_mut().zip(e) {
        *out = e * of_tail;
    }
    for (&(class, _), slope) in listed.iter().zip(slopes) {
        out[class] = T::Real::from_f64(slope);
    }
    Ok(value)
}

/// The listed classes of a row, and the tail.
struct List {
    log_p: Vec<f64>,
    log_q: Vec<f64>,
    /// log q of the tail.
    log_tail: f64,
    /// What the gradient is multiplied by.
    factor: f64,
}

impl List {
    /// D of the listed classes and the tail; the gradient of all classes of the tail together, and
    /// of each that is listed.
    fn with_tail<R: Real>(mut self, loss: &Logits) -> Result<(f64, f64, Vec<f64>)> {
        let of_listed = self.log_p.iter().map(|log_p| log_p.exp()).sum();
        let has_tail = self.log_tail > f64::NEG_INFINITY;
        self.log_q.push(self.log_tail);
        self.log_p.push(TopK::<R>::tail(of_listed, has_tail).ln());
        let one = Logits {
            student_temperature: 1.0,
            teacher_temperature: 1.0,
            ..*loss
        };
        let mut slopes = vec![0.0; self.log_q.len()];
        let value = super::evaluate_row(&one, &self.log_q, &self.log_p, self.factor, &mut slopes)?;
        Ok((value, slopes.pop().unwrap_or(0.0), slopes))
    }

    /// The sum over the listed classes alone, and the same gradients.
    fn alone(&self, divergence: Divergence) -> (f64, f64, Vec<f64>) {
        let classes = self.log_p.iter().zip(&self.log_q);
        let (terms, slopes): (Vec<f64>, Vec<f64>) = classes
            .map(|(&log_p, &log_q)| plain_term(divergence, log_p, log_q))
            .unzip();
        let per_q = -self.factor * slopes.iter().sum::<f64>();
        let slopes = slopes.iter().zip(&self.log_q);
        let slopes = slopes.map(|(slope, log_q)| self.factor * slope + log_q.exp() * per_q);
        let of_tail = self.log_tail.exp() * per_q;
        (terms.iter().sum(), of_tail, slopes.collect())
    }
}

/// A class's term of D as it is defined, and q times the term's derivative by q.
fn plain_term(divergence: Divergence, log_p: f64, log_q: f64) -> (f64, f64) {
    let (p, q) = (log_p.exp(), log_q.exp());
    let product = |v: f64, log: f64| if v > 0.0 { v * log } else { 0.0 };
    match divergence {
        Divergence::Forward => (product(p, log_p - log_q), -p),
        Divergence::Reverse => {
            let term = product(q, log_q - log_p);
            (term, term + q)
        }
        Divergence::Js { beta } => {
            let log_m = (beta * p + (1.0 - beta) * q).ln();
            let of_q = (1.0 - beta) * product(q, log_q - log_m);
            (beta * product(p, log_p - log_m) + of_q, of_q)
        }
        Divergence::Skew { alpha } => {
            let of_q = (1.0 - alpha) * q;
            let m = alpha * p + of_q;
            (product(p, log_p - m.ln()), -p * of_q / m)
        }
        Divergence::SkewReverse { alpha } => {
            let of_p = (1.0 - alpha) * p;
            let m = alpha * q + of_p;
            let term = product(q, log_q - m.ln());
            (term, term + q * of_p / m)
        }
    }
}

/// Turns logits into e^((logit − largest)/T) and gives the largest; nothing if one is NaN or +∞.
fn exponentials<R: Real>(row: &mut [R], classes: usize, temperature: f64) -> Option<f64> {
    struct Exponentials<'a, R> {
        row: &'a mut [R],
        classes: usize,
        temperature: f64,
    }
    impl<R: Real> WithSimd for Exponentials<'_, R> {
        type Output = Option<f64>;

        #[inline(always)]
        fn with_simd<S: Simd>(self, s: S) -> Option<f64> {
            let largest = largest::<S, R>(s, self.row, self.classes);
            let max = R::splat(s, largest);
            let per_temperature = R::splat(s, R::from_f64(1.0 / self.temperature));
            // The largest of numbers and NaN is a number, but the exponential stays NaN.
            let zero = R::splat(s, R::ZERO);
            let mut zeros = zero;
            for v in R::vectors_mut::<S>(self.row) {
                let a = R::vmul(s, R::vsub(s, *v, max), per_temperature);
                *v = R::vexp(s, a);
                zeros = R::vmul_add(s, *v, zero, zeros);
            }
            let finite = largest.to_f64().is_finite() && R::reduce_sum(s, zeros).to_f64() == 0.0;
            finite.then_some(largest.to_f64())
        }
    }
    dispatch(Exponentials {
        row,
        classes,
        temperature,
    })
}
