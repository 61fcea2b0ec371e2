//! The second sweep: coefficients of pairs, and the rows under them.

use std::iter::Sum;

use pulp::{Simd, WithSimd};

use super::ops::{FIELDS, PairOp};
use super::strips::{Compared, Strips, keys_of, own_lane};
use crate::cpu::buffer::Buffer;
use crate::cpu::contrastive::attention::CHUNK;
use crate::cpu::contrastive::tiles::{Keys, STRIP, WeightsOf, add_rows, products};
use crate::cpu::embeddings::Embeddings;
use crate::cpu::pairwise::pairs::Block;
use crate::element::Real;
use crate::error::Result;
use crate::simd::dispatch;

/// Sums of what pairs add to the loss.
#[derive(Clone, Copy, Default)]
pub(super) struct Moments(pub(super) [f64; 2]);

impl Sum for Moments {
    fn sum<I: Iterator<Item = Self>>(moments: I) -> Self {
        moments.fold(Moments::default(), |Moments(a), Moments(b)| {
            Moments([a[0] + b[0], a[1] + b[1]])
        })
    }
}

/// The rows of student and teacher, and the first half of each in strips.
#[derive(Clone, Copy)]
pub(super) struct Side<'a, R: Real> {
    pub(super) rows: &'a Embeddings<R>,
    pub(super) strips: &'a Strips<R>,
}

/// Σ_j C_ij x_j of each row over its keys but the own one, `[N, stride]`, and the sums of the moments
/// over all pairs. `fields` are those of the rows.
pub(super) fn weighted_rows<R: Real>(
    op: impl PairOp<R>,
    student: Side<'_, R>,
    teacher: Option<Side<'_, R>>,
    compared: Compared,
    fields: &[[R; FIELDS]],
) -> Result<(Buffer<R>, Moments)> {
    let x = student.rows;
    let lanes = student.strips.lanes;
    let mut sums = Buffer::zeros(x.rows.saturating_mul(x.stride))?;
    let moments = compared.for_all_meetings(&mut sums, x.stride, |a, mut b| {
        let alone = b.is_none();
        let (first, len) = b.as_ref().map_or((a.first, a.rows), |b| (b.first, b.rows));
        let first_key = compared.first_key(first);
        let mut moments = Moments::default();
        for strip in (0..a.rows).step_by(lanes) {
            let count = lanes.min(a.rows - strip);
            let first_row = a.first + strip;
            let mut of_lanes = Buffer::<R>::zeros(FIELDS * lanes)?;
            for (lane, fields) in fields[first_row..][..count].iter().enumerate() {
                for (f, &field) in fields.iter().enumerate() {
                    of_lanes[f * lanes + lane] = field;
                }
            }
            let is_own = alone || compared.halves;
            let met = dispatch(Meeting {
                op,
                queries: student.strips.strip(first_row),
                rows: keys_of(x, first_row, count),
                keys: keys_of(x, first_key, len),
                teacher: teacher.map(|of| {
                    let keys = keys_of(of.rows, first_key, len);
                    (of.strips.strip(first_row), keys)
                }),
                own: is_own.then(|| first_row as isize - first as isize),
                of_lanes: &of_lanes,
                fields: &fields[first_key..][..len],
                of_rows: &mut a.data[strip * x.stride..][..count * x.stride],
                of_keys: b.as_mut().map(|b: &mut &mut Block<'_, R>| &mut *b.data),
            })?;
            moments = [moments, met].into_iter().sum();
        }
        // A block alone has met each of its pairs twice.
        let factor = if alone { 0.5 } else { 1.0 };
        Ok(Moments(moments.0.map(|moment| factor * moment)))
    })?;
    Ok((sums, moments))
}

/// A strip of rows with a block of keys.
struct Meeting<'a, R: Real, O> {
    op: O,
    /// `[dim, lanes]`
    queries: &'a [R],
    /// The same rows as they lie in memory.
    rows: Keys<'a, R>,
    keys: Keys<'a, R>,
    /// Queries and keys of the teacher.
    teacher: Option<(&'a [R], Keys<'a, R>)>,
    /// The key that the first lane leaves out. Each next lane leaves out the next key.
    own: Option<isize>,
    /// `[FIELDS, lanes]`
    of_lanes: &'a [R],
    /// Of the keys.
    fields: &'a [[R; FIELDS]],
    /// The sums of the rows, `[count, stride]`.
    of_rows: &'a mut [R],
    /// The sums of the keys, unless the keys are the same block: then each key has its turn as a row.
    of_keys: Option<&'a mut [R]>,
}

impl<R: Real, O: PairOp<R>> WithSimd for Meeting<'_, R, O> {
    type Output = Result<Moments>;

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, s: S) -> Result<Moments> {
        let lanes = STRIP * R::width::<S>();
        let count = self.rows.len;
        let queries = R::vectors::<S>(self.queries);
        let of_lanes = R::vectors::<S>(self.of_lanes);
        let chunk_len = CHUNK.min(self.keys.len);
        let mut of_student = Buffer::<R>::any(chunk_len * lanes)?;
        let of_teacher = if self.teacher.is_some() { chunk_len } else { 0 };
        let mut of_teacher = Buffer::<R>::any(of_teacher * lanes)?;
        let mut by_lane = Buffer::<R>::any(2 * lanes)?;
        let mut moments = Moments::default();
        let zero = R::splat(s, R::ZERO);
        for from in (0..self.keys.len).step_by(CHUNK) {
            let to = self.keys.len.min(from + CHUNK);
            let chunk = self.keys.part(from, to);
            let student = &mut of_student[..chunk.len * lanes];
            products::<S, R>(s, queries, chunk, R::vectors_mut::<S>(student));
            let mut teacher = &of_teacher[..0];
            if let Some((queries, keys)) = self.teacher {
                let out = &mut of_teacher[..chunk.len * lanes];
                let queries = R::vectors::<S>(queries);
                products::<S, R>(s, queries, keys.part(from, to), R::vectors_mut::<S>(out));
                teacher = out;
            }

            // Coefficients
            let teacher = R::vectors::<S>(teacher);
            let vectors = R::vectors_mut::<S>(student);
            let mut sums = [[zero; STRIP]; 2];
            for (k, products) in vectors.chunks_exact_mut(STRIP).enumerate() {
                let key = self.fields[from + k].map(|field| R::splat(s, field));
                let own = own_lane(self.own, from + k, count);
                for (w, product) in products.iter_mut().enumerate() {
                    let of_teacher = teacher.get(k * STRIP + w).copied().unwrap_or(zero);
                    let row = std::array::from_fn(|f| of_lanes[f * STRIP + w]);
                    let mut pair = self.op.pair::<S>(s, [*product, of_teacher], row, key);
                    if let Some(own) = own.filter(|own| own / R::width::<S>() == w) {
                        let keep = keep_others::<S, R>(s, own % R::width::<S>());
                        pair.coefficient = R::vmul(s, pair.coefficient, keep);
                        pair.moments = pair.moments.map(|moment| R::vmul(s, moment, keep));
                    }
                    *product = pair.coefficient;
                    for (sum, moment) in sums.iter_mut().zip(pair.moments) {
                        sum[w] = R::vadd(s, sum[w], moment);
                    }
                }
            }
            let vectors = R::vectors_mut::<S>(&mut by_lane);
            for (m, sums) in sums.iter().enumerate() {
                vectors[m * STRIP..][..STRIP].copy_from_slice(sums);
            }
            for (moment, by_lane) in moments.0.iter_mut().zip(by_lane.chunks_exact(lanes)) {
                *moment += by_lane[..count].iter().map(|m| m.to_f64()).sum::<f64>();
            }

            // Sums
            let weights = WeightsOf::Inputs(student, lanes);
            add_rows::<S, R>(s, weights, chunk, count, self.of_rows);
            if let Some(of_keys) = &mut self.of_keys {
                let out = &mut of_keys[from * chunk.stride..to * chunk.stride];
                let weights = WeightsOf::Outputs(student, lanes);
                add_rows::<S, R>(s, weights, self.rows, chunk.len, out);
            }
        }
        Ok(moments)
    }
}

/// 1 in all lanes but one, which is 0.
#[inline(always)]
fn keep_others<S: Simd, R: Real>(s: S, lane: usize) -> R::Of<S> {
    let mut keep = R::splat(s, R::ONE);
    let lanes: &mut [R] = bytemuck::cast_slice_mut(std::slice::from_mut(&mut keep));
    lanes[lane] = R::ZERO;
    keep
}
