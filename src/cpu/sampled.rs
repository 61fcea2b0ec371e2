//! Losses of rows with keys of their own, which are rows of a bank: CRD and RRD with a bank.
//!
//! ```text
//! for each row, in parallel:
//!     products with its keys                        the row at length 1, in f64
//!     loss, and the coefficient of each key
//!     Σ_k c_k key_k, back through the row's length
//! ```
//!
//! 1. All of it is in f64, for f32 and halves too. Keys lie scattered over the bank, so a row waits for
//!    memory and the arithmetic is hidden. And where the softmax is one of exponentials, it magnifies the
//!    rounding of a product by score/(T τ), which is thousands.
//! 2. A row's products are the only memory: K + 1 numbers for each thread.

use pulp::{Simd, WithSimd};

use super::parallel::try_map_blocks;
use crate::bank::{Bank, SampledKeys};
use crate::batch::Batch;
use crate::checks::zeroed;
use crate::element::{Element, Real};
use crate::error::{Error, Result};
use crate::loss::{Crd, Sampled};
use crate::problem::Problem;
use crate::row_weights::cleared;
use crate::rows::Rows;
use crate::simd::dispatch;

/// Terms that are summed side by side, whatever the registers of the machine.
const LANES: usize = 16;

/// The loss, and the divergence KL(p‖q) where there is a teacher. `None` if an input is not finite.
pub(super) fn evaluate<T: Element>(
    loss: &Sampled,
    problem: &Problem,
    batch: Batch<'_, T>,
    row_losses: Option<&mut [f64]>,
    gradient: &mut [T::Real],
) -> Result<Option<(f64, Option<f64>)>> {
    // `Problem` lets no such batch through.
    let Some(keys) = batch.keys else {
        return Err(Error::Missing {
            argument: "bank",
            expected: "a bank, and the indices of each row's keys",
        });
    };
    let (rows, dim) = (batch.student.len(), batch.student.dim());
    let mean = problem.row_mean(batch.row_weights);
    // A row that has no share may hold anything.
    let clear = |rows: Rows<'_, T>| match mean.shares() {
        Some(shares) if rows.dim() > 0 => cleared(rows, shares),
        _ => Ok(None),
    };
    let copies = [clear(batch.student)?, clear(batch.teacher)?];
    let [student, teacher] = [
        cleared_or(batch.student, copies[0].as_deref()),
        cleared_or(batch.teacher, copies[1].as_deref()),
    ];
    let is_finite = |rows: Rows<'_, T>| rows.check_finite("rows").is_ok();
    if !(is_finite(student) && is_finite(teacher)) {
        return Ok(None);
    }
    let pass = Pass { loss, keys, rows };
    let values: Vec<(f64, f64)> = try_map_blocks(gradient, dim, &|i, out| {
        let z = UnitRow::new(student.row(i));
        let mut coefficients = pass.products(0, i, &z)?;
        let value = match *loss {
            Sampled::Nce { temperature } => {
                let loss = pass.nce(temperature, &mut coefficients);
                (loss, 0.0)
            }
            Sampled::Teacher { .. } => {
                let y = UnitRow::new(teacher.row(i));
                let mut of_teacher = pass.products(1, i, &y)?;
                pass.divergence(&mut coefficients, &mut of_teacher)
            }
        };
        let [bank, _] = keys.banks();
        let mut g = vec![0.0; dim];
        dispatch(Weighted {
            bank,
            indices: pass.indices(i),
            coefficients: &coefficients,
            sum: &mut g,
        });
        z.write_gradient(mean.factor(i, 1.0), &g, out);
        Ok(value)
    })?;
    let losses = || values.iter().map(|&(loss, _)| loss);
    if let Some(out) = row_losses {
        mean.store(losses(), out);
    }
    let kl = match loss {
        Sampled::Nce { .. } => None,
        Sampled::Teacher { .. } => Some(mean.mean(values.iter().map(|&(_, kl)| kl))),
    };
    Ok(Some((mean.mean(losses()), kl)))
}

/// The rows, or those of the copy if there is one.
fn cleared_or<'a, T: Element>(rows: Rows<'a, T>, copy: Option<&'a [T]>) -> Rows<'a, T> {
    copy.map_or(rows, |copy| Rows::of(copy, rows.dim()))
}

/// What all rows of a batch share.
struct Pass<'a, R: Real> {
    loss: &'a Sampled,
    keys: SampledKeys<'a, R>,
    rows: usize,
}

impl<R: Real> Pass<'_, R> {
    /// The keys of row i.
    fn indices(&self, i: usize) -> &[u32] {
        let [_, count] = self.keys.shape(self.rows);
        &self.keys.indices[i * count..][..count]
    }

    /// ⟨row, key⟩ of row i's keys in the bank of this side: the student's is 0, the teacher's 1.
    fn products(&self, side: usize, i: usize, row: &UnitRow) -> Result<Vec<f64>> {
        let indices = self.indices(i);
        let mut products = zeroed("workspace", indices.len())?;
        dispatch(Products {
            bank: self.keys.banks()[side],
            indices,
            row: &row.unit,
            products: &mut products,
        });
        Ok(products)
    }

    /// log Z of the bank of this side.
    fn log_normalizer(&self, side: usize) -> f64 {
        // `Problem` lets no bank through that lacks one.
        self.keys.banks()[side]
            .normalizer()
            .unwrap_or(f64::NAN)
            .ln()
    }

    /// The loss of a row. Products become coefficients of the keys.
    ///
    /// With l = log P − log(c + ε), the own key adds log(1 + e^−l) and another log(1 + e^l), and what ε
    /// takes from its certainty.
    fn nce(&self, temperature: f64, products: &mut [f64]) -> f64 {
        let [samples, keys] = self.keys.shape(self.rows);
        let noise = (keys - 1) as f64 / samples as f64;
        let offset = self.log_normalizer(0) + (noise + Crd::EPSILON).ln();
        let mut loss = (keys - 1) as f64 * (Crd::EPSILON / noise).ln_1p();
        for (k, product) in products.iter_mut().enumerate() {
            let sign = if k == 0 { -1.0 } else { 1.0 };
            let logit = sign * (*product / temperature - offset);
            let decay = (-logit.abs()).exp();
            loss += logit.max(0.0) + decay.ln_1p();
            let sigma = if logit < 0.0 { decay } else { 1.0 } / (1.0 + decay);
            *product = sign * sigma / temperature;
        }
        loss
    }

    /// −Σ p log q and KL(p‖q) of a row. The student's products become coefficients of the keys.
    fn divergence(&self, student: &mut [f64], teacher: &mut [f64]) -> (f64, f64) {
        let Sampled::Teacher {
            student_temperature,
            teacher_temperature,
            score_temperature,
        } = *self.loss
        else {
            return (f64::NAN, f64::NAN);
        };
        let to_logits = |side: usize, products: &mut [f64], temperature: f64| {
            let log_normalizer = match score_temperature {
                None => 0.0,
                Some(_) => self.log_normalizer(side),
            };
            for x in products {
                if let Some(t) = score_temperature {
                    *x = (*x / t - log_normalizer).exp();
                }
                *x /= temperature;
            }
        };
        to_logits(0, student, student_temperature);
        to_logits(1, teacher, teacher_temperature);
        let [of_student, of_teacher] = [LogSum::new(student), LogSum::new(teacher)];
        let (mut cross_entropy, mut kl, mut weight, mut moment) = (0.0, 0.0, 0.0, 0.0);
        for (&s, &t) in student.iter().zip(&*teacher) {
            let (log_p, log_q) = (of_teacher.log_of(t), of_student.log_of(s));
            let p = log_p.exp();
            cross_entropy -= p * log_q;
            kl += p * (log_p - log_q);
            weight += p;
            moment += p * (t - s);
        }
        // Of distributions that are close, KL and q − p are what is left of terms that cancel. With d
        // the difference of the logits less its mean under p, and S = Σ p (e^−d − 1 + d), both are
        // formed without: KL = log(1 + S), q = p e^−d/(1 + S). NaN is not close.
        let close = kl < 1.0;
        let mut mean = moment / weight;
        if close {
            // Once more: the first mean is only as exact as the largest difference.
            let rest = student.iter().zip(&*teacher);
            let rest: f64 = rest
                .map(|(s, t)| of_teacher.log_of(*t).exp() * (t - s - mean))
                .sum();
            mean += rest / weight;
        }
        let excess: f64 = match close {
            false => 0.0,
            true => {
                let terms = student.iter().zip(&*teacher);
                terms
                    .map(|(s, t)| Ratio::new(of_teacher.log_of(*t), mean - (t - s)).excess)
                    .sum()
            }
        };
        if close {
            kl = excess.ln_1p();
        }
        for (s, &t) in student.iter_mut().zip(&*teacher) {
            let log_p = of_teacher.log_of(t);
            let difference = if close {
                let ratio = Ratio::new(log_p, mean - (t - *s));
                (ratio.less_p - log_p.exp() * excess) / (1.0 + excess)
            } else {
                of_student.log_of(*s).exp() - log_p.exp()
            };
            // ∂logit/∂product: of a score it is the score over T.
            let slope = match score_temperature {
                Some(t) => *s / t,
                None => 1.0 / student_temperature,
            };
            *s = difference * slope;
        }
        (cross_entropy, kl)
    }
}

/// p e^a against p.
struct Ratio {
    /// p (e^a − 1)
    less_p: f64,
    /// p (e^a − 1 − a)
    excess: f64,
}

impl Ratio {
    fn new(log_p: f64, a: f64) -> Self {
        let p = log_p.exp();
        if a.abs() < 0.1 {
            // e^a − 1 − a by its series: the direct difference cancels.
            let mut series = 0.0;
            for k in (3..14).rev() {
                series = (1.0 + series) * a / f64::from(k);
            }
            let excess = 0.5 * a * a * (1.0 + series);
            return Ratio {
                less_p: p * (a + excess),
                excess: p * excess,
            };
        }
        let less_p = (log_p + a).exp() - p;
        Ratio {
            less_p,
            excess: less_p - p * a,
        }
    }
}

/// log Σ exp of logits, in two parts: where one logit has nearly all of the softmax, the rest is not
/// lost.
#[derive(Clone, Copy)]
struct LogSum {
    most: f64,
    /// The log-sum less the largest logit; at least 0.
    excess: f64,
}

impl LogSum {
    fn new(logits: &[f64]) -> Self {
        let (mut at, mut most) = (0, f64::NEG_INFINITY);
        for (k, &logit) in logits.iter().enumerate() {
            if logit > most {
                (at, most) = (k, logit);
            }
        }
        let (before, rest) = logits.split_at(at);
        let others = before.iter().chain(&rest[1..]);
        let sum: f64 = others.map(|logit| (logit - most).exp()).sum();
        LogSum {
            most,
            excess: sum.ln_1p(),
        }
    }

    /// The logarithm of the softmax.
    fn log_of(self, logit: f64) -> f64 {
        logit - self.most - self.excess
    }
}

/// A row at length 1, or zeros; and what its length was.
struct UnitRow {
    unit: Vec<f64>,
    length: f64,
}

impl UnitRow {
    fn new<T: Element>(row: &[T]) -> Self {
        let mut unit: Vec<f64> = row.iter().map(|x| x.to_f64()).collect();
        // In units of the largest: no square overflows or vanishes.
        let largest = unit.iter().fold(0.0f64, |m, x| m.max(x.abs()));
        if largest == 0.0 {
            return UnitRow { unit, length: 0.0 };
        }
        unit.iter_mut().for_each(|x| *x /= largest);
        let length = unit.iter().map(|x| x * x).sum::<f64>().sqrt();
        unit.iter_mut().for_each(|x| *x /= length);
        UnitRow {
            unit,
            length: largest * length,
        }
    }

    /// (g − ⟨g, z⟩ z) factor/‖x‖; 0 for a row of zeros.
    fn write_gradient<G: Real>(&self, factor: f64, g: &[f64], out: &mut [G]) {
        if self.length == 0.0 {
            return out.fill(G::ZERO);
        }
        let along: f64 = g.iter().zip(&self.unit).map(|(g, z)| g * z).sum();
        for ((out, g), z) in out.iter_mut().zip(g).zip(&self.unit) {
            *out = G::from_f64((g - along * z) * factor / self.length);
        }
    }
}

/// Products of a row with its keys.
struct Products<'a, R: Real> {
    bank: &'a Bank<R>,
    indices: &'a [u32],
    row: &'a [f64],
    products: &'a mut [f64],
}

impl<R: Real> WithSimd for Products<'_, R> {
    type Output = ();

    // The compiler makes vectors of the lanes: pulp has no conversion from f32 to f64.
    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let rows = self.bank.rows();
        let (row, row_rest) = self.row.as_chunks::<LANES>();
        for (product, &index) in self.products.iter_mut().zip(self.indices) {
            let (key, key_rest) = rows.row(index as usize).as_chunks::<LANES>();
            let mut sums = [0.0; LANES];
            for (row, key) in row.iter().zip(key) {
                for lane in 0..LANES {
                    sums[lane] += row[lane] * key[lane].to_f64();
                }
            }
            for lane in 0..row_rest.len() {
                sums[lane] += row_rest[lane] * key_rest[lane].to_f64();
            }
            let mut width = LANES;
            while width > 1 {
                width /= 2;
                for lane in 0..width {
                    sums[lane] += sums[lane + width];
                }
            }
            *product = sums[0];
        }
    }
}

/// Σ_k c_k key_k, added to `sum`.
struct Weighted<'a, R: Real> {
    bank: &'a Bank<R>,
    indices: &'a [u32],
    coefficients: &'a [f64],
    sum: &'a mut [f64],
}

impl<R: Real> WithSimd for Weighted<'_, R> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let rows = self.bank.rows();
        for (&coefficient, &index) in self.coefficients.iter().zip(self.indices) {
            for (sum, key) in self.sum.iter_mut().zip(rows.row(index as usize)) {
                *sum += coefficient * key.to_f64();
            }
        }
    }
}
