//! KL(p‖q) of rows whose student is near its teacher.
//!
//! The difference of two log-sums and two mean logits has their rounding, which is more than a
//! small KL. So such a row goes over the keys once more. With v = y/τ_t − z/τ_s, the log-ratio
//! log p_k − log q_k is d_k = ⟨v, key_k⟩ − ⟨v, O_t⟩, but for a number that all keys share. As
//! Σ p (e^−d − 1 + d) has no negative term, nothing cancels:
//!
//! ```text
//! for each strip of such rows, for each part of the keys, in parallel:
//!     p = exp((⟨y, key⟩ − τ_t log-sum)/τ_t)
//!     P = Σ p      F = Σ p d      S = Σ p (e^−d − 1 + d)
//! for each row: add the parts
//!     KL = ln(1 + (S − F)/P) + F/P
//! ```
//!
//! P is 1 and F is 0, but for rounding. The formula is exact whatever they are.

use pulp::{Simd, WithSimd};

use super::attention::{Attention, CHUNK, lanes_of_strip, part_len};
use super::tiles::{Keys, STRIP, products};
use crate::batch::Batch;
use crate::cpu::buffer::Buffer;
use crate::cpu::embeddings::Embeddings;
use crate::cpu::parallel::try_map;
use crate::cpu::sums::dot;
use crate::element::{Element, Real};
use crate::error::Result;
use crate::simd::dispatch;

/// Rows of a smaller KL are near. Above, the rounding of the log-sums is at most 1e-4 of KL in f32.
pub(super) const NEAR: f64 = 1e-2;

/// KL(p‖q) of the rows `near`, in their order. `teacher` is the teacher's attention over the keys.
pub(super) fn divergence_of<T: Element>(
    near: &[usize],
    [student_temperature, teacher_temperature]: [f64; 2],
    batch: Batch<'_, T>,
    [z, y]: [&Embeddings<T::Real>; 2],
    keys: Keys<'_, T::Real>,
    teacher: &Attention<T::Real>,
) -> Result<Vec<f64>> {
    let lanes = lanes_of_strip::<T::Real>();
    let part = part_len(keys.len);
    let parts = keys.len.div_ceil(part);
    let strips: Vec<Rows<T::Real>> = try_map(near.len().div_ceil(lanes), &|strip| {
        let near = &near[strip * lanes..near.len().min((strip + 1) * lanes)];
        let mut rows = Rows::new(lanes, keys.dim)?;
        for (lane, &i) in near.iter().enumerate() {
            let y_row = &y.row(i)[..keys.dim];
            // From the rows as they came: y − z of the rounded ones has their rounding.
            let [factor_z, factor_y] = [
                z.factor(i) / student_temperature,
                y.factor(i) / teacher_temperature,
            ];
            let came = batch.student.row(i).iter().zip(batch.teacher.row(i));
            let difference: Vec<T::Real> = came
                .map(|(z, y)| T::Real::from_f64(y.to_f64() * factor_y - z.to_f64() * factor_z))
                .collect();
            for d in 0..keys.dim {
                rows.teacher[d * lanes + lane] = y_row[d];
                rows.difference[d * lanes + lane] = difference[d];
            }
            let mean = dot(&difference, &teacher.mean[i * keys.dim..][..keys.dim]);
            rows.mean[lane] = T::Real::from_f64(mean);
            rows.log_sum[lane] = T::Real::from_f64(teacher.log_sum[i] * teacher_temperature);
        }
        Ok(rows)
    })?;
    let sums: Vec<Vec<Sums>> = try_map(strips.len() * parts, &|task| {
        let (strip, p) = (task / parts, task % parts);
        dispatch(Strip {
            rows: &strips[strip],
            keys: keys.part(p * part, keys.len.min((p + 1) * part)),
            per_temperature: T::Real::from_f64(1.0 / teacher_temperature),
        })
    })?;
    let kl = |row: usize| {
        let (strip, lane) = (row / lanes, row % lanes);
        let of_parts = sums[strip * parts..][..parts].iter();
        let sums = of_parts.fold(Sums::default(), |sum, part| sum + part[lane]);
        let first_order = sums.first_order / sums.weight;
        ((sums.excess - sums.first_order) / sums.weight).ln_1p() + first_order
    };
    Ok((0..near.len()).map(kl).collect())
}

/// What the sweep needs of a strip of rows. Lanes without a row are zero.
struct Rows<R: Real> {
    /// y, `[dim, lanes]`
    teacher: Buffer<R>,
    /// y/τ_t − z/τ_s, `[dim, lanes]`
    difference: Buffer<R>,
    /// ⟨difference, O_t⟩, `[lanes]`
    mean: Buffer<R>,
    /// τ_t log-sum, `[lanes]`
    log_sum: Buffer<R>,
}

impl<R: Real> Rows<R> {
    fn new(lanes: usize, dim: usize) -> Result<Self> {
        Ok(Rows {
            teacher: Buffer::zeros(dim.saturating_mul(lanes))?,
            difference: Buffer::zeros(dim.saturating_mul(lanes))?,
            mean: Buffer::zeros(lanes)?,
            log_sum: Buffer::zeros(lanes)?,
        })
    }
}

/// P, F and S of a row, over some keys.
#[derive(Clone, Copy, Default)]
struct Sums {
    weight: f64,
    first_order: f64,
    excess: f64,
}

impl std::ops::Add for Sums {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Sums {
            weight: self.weight + other.weight,
            first_order: self.first_order + other.first_order,
            excess: self.excess + other.excess,
        }
    }
}

/// A strip of rows over a part of the keys.
struct Strip<'a, R: Real> {
    rows: &'a Rows<R>,
    keys: Keys<'a, R>,
    /// 1/τ_t
    per_temperature: R,
}

impl<R: Real> WithSimd for Strip<'_, R> {
    type Output = Result<Vec<Sums>>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) -> Result<Vec<Sums>> {
        let Strip { rows, keys, .. } = self;
        let lanes = STRIP * R::width::<S>();
        let [teacher, difference] =
            [&rows.teacher, &rows.difference].map(|rows| R::vectors::<S>(rows));
        let [mean, log_sum] = [&rows.mean, &rows.log_sum].map(|of| R::vectors::<S>(of));
        let per_temperature = R::splat(s, self.per_temperature);
        let zero = R::splat(s, R::ZERO);
        let one = R::splat(s, R::ONE);
        let quarter = R::splat(s, R::from_f64(0.25));

        let mut logits = Buffer::<R>::any(CHUNK * lanes)?;
        let mut differences = Buffer::<R>::any(CHUNK * lanes)?;
        let mut chunk_sums = Buffer::<R>::any(3 * lanes)?;
        let mut out = vec![Sums::default(); lanes];
        for from in (0..keys.len).step_by(CHUNK) {
            let chunk = keys.part(from, keys.len.min(from + CHUNK));
            let logits = R::vectors_mut::<S>(&mut logits[..chunk.len * lanes]);
            let differences = R::vectors_mut::<S>(&mut differences[..chunk.len * lanes]);
            products::<S, R>(s, teacher, chunk, logits);
            products::<S, R>(s, difference, chunk, differences);

            let (mut weight, mut first_order, mut excess) =
                ([zero; STRIP], [zero; STRIP], [zero; STRIP]);
            let of_keys = logits.chunks_exact(STRIP);
            for (logits, differences) in of_keys.zip(differences.chunks_exact(STRIP)) {
                for w in 0..STRIP {
                    let a = R::vmul(s, per_temperature, R::vsub(s, logits[w], log_sum[w]));
                    let d = R::vsub(s, differences[w], mean[w]);
                    let p = R::vexp(s, R::vmin(s, a, zero));
                    let first = R::vmul(s, p, d);
                    // Where |d| ≥ ½ the direct difference does not cancel. p e^−d is a weight of
                    // the student's, so its exponent is at most 0, but for rounding.
                    let shifted = R::vexp(s, R::vmin(s, R::vsub(s, a, d), one));
                    let far = R::vadd(s, R::vsub(s, shifted, p), first);
                    let series = R::vexp_excess(s, R::vsub(s, zero, d));
                    let near = R::vmul(s, p, series);
                    let close = R::vneg_mul_add(s, d, d, quarter);
                    weight[w] = R::vadd(s, weight[w], p);
                    first_order[w] = R::vadd(s, first_order[w], first);
                    excess[w] = R::vadd(s, excess[w], R::if_positive(s, close, near, far));
                }
            }
            let stored = R::vectors_mut::<S>(&mut chunk_sums);
            stored[..STRIP].copy_from_slice(&weight);
            stored[STRIP..2 * STRIP].copy_from_slice(&first_order);
            stored[2 * STRIP..].copy_from_slice(&excess);
            for (lane, out) in out.iter_mut().enumerate() {
                let [weight, first_order, excess] =
                    [0, 1, 2].map(|sum| chunk_sums[sum * lanes + lane].to_f64());
                *out = *out
                    + Sums {
                        weight,
                        first_order,
                        excess,
                    };
            }
        }
        Ok(out)
    }
}
