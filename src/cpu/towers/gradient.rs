//! The second sweep: coefficients of pairs, and the mean of the keys under them.

use pulp::{Simd, WithSimd};

use super::Side;
use super::ops::{FIELDS, PairOp};
use crate::cpu::buffer::Buffer;
use crate::cpu::contrastive::attention::{CHUNK, lanes_of_strip, transpose};
use crate::cpu::contrastive::tiles::{Keys, STRIP, gather, products};
use crate::cpu::embeddings::Embeddings;
use crate::cpu::parallel::try_map;
use crate::element::Real;
use crate::error::Result;
use crate::simd::dispatch;

/// Of each row over its keys but the own one.
pub(super) struct Sums<R: Real> {
    /// Σ_j C_ij x_j, `[N, dim]`.
    pub(super) weighted: Buffer<R>,
    /// Sums of the moments.
    pub(super) moments: Vec<[f64; 2]>,
}

/// The sums of all rows. `fields` are those of the rows, `y` the teacher's rows if its products count.
pub(super) fn sums_of_strips<R: Real>(
    op: impl PairOp<R>,
    x: &Embeddings<R>,
    y: Option<&Embeddings<R>>,
    sides: &[Side],
    fields: &[[R; FIELDS]],
) -> Result<Sums<R>> {
    let lanes = lanes_of_strip::<R>();
    let mut weighted = Buffer::any(x.rows.saturating_mul(x.dim))?;
    let mut moments = Vec::with_capacity(x.rows);
    for side in sides {
        let strips = try_map(side.rows.div_ceil(lanes), &|strip| {
            let first = strip * lanes;
            let count = lanes.min(side.rows - first);
            let mut rows = Buffer::<R>::zeros(FIELDS * lanes)?;
            for lane in 0..count {
                for (f, &field) in fields[side.first_row + first + lane].iter().enumerate() {
                    rows[f * lanes + lane] = field;
                }
            }
            let queries = |of: &Embeddings<R>| transpose(of, side.first_row + first, count, lanes);
            let teacher = y.map(queries).transpose()?;
            dispatch(Strip {
                op,
                queries: &queries(x)?,
                keys: side.keys_of(x),
                teacher: teacher
                    .as_deref()
                    .zip(y)
                    .map(|(rows, y)| (rows, side.keys_of(y))),
                own: first,
                rows: &rows,
                fields: &fields[side.first_key..][..side.keys],
            })
        })?;
        for (strip, (sums, of_lanes)) in strips.iter().enumerate() {
            let first = strip * lanes;
            for lane in 0..lanes.min(side.rows - first) {
                let row = side.first_row + first + lane;
                for (d, out) in weighted[row * x.dim..][..x.dim].iter_mut().enumerate() {
                    *out = sums[d * lanes + lane];
                }
                moments.push(of_lanes[lane]);
            }
        }
    }
    Ok(Sums { weighted, moments })
}

struct Strip<'a, R: Real, O> {
    op: O,
    /// `[dim, lanes]`
    queries: &'a [R],
    keys: Keys<'a, R>,
    /// The same of the teacher.
    teacher: Option<(&'a [R], Keys<'a, R>)>,
    /// The key that the first lane leaves out. Each next lane leaves out the next key.
    own: usize,
    /// `[FIELDS, lanes]`
    rows: &'a [R],
    /// Of the keys.
    fields: &'a [[R; FIELDS]],
}

impl<R: Real, O: PairOp<R>> WithSimd for Strip<'_, R, O> {
    /// The weighted keys, `[dim, lanes]`, and the moments of each lane.
    type Output = Result<(Buffer<R>, Vec<[f64; 2]>)>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) -> Self::Output {
        let lanes = STRIP * R::width::<S>();
        let queries = R::vectors::<S>(self.queries);
        let rows = R::vectors::<S>(self.rows);
        let mut of_student = Buffer::<R>::any(CHUNK * lanes)?;
        let mut of_teacher = Buffer::<R>::zeros(if self.teacher.is_some() {
            CHUNK * lanes
        } else {
            0
        })?;
        let mut by_lane = Buffer::<R>::any(2 * lanes)?;
        let mut moments = vec![[0.0; 2]; lanes];
        let mut weighted = Buffer::<R>::zeros(self.keys.dim * lanes)?;
        let (zero, one) = (R::splat(s, R::ZERO), R::splat(s, R::ONE));
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
            let teacher = R::vectors::<S>(teacher);
            let student_vectors = R::vectors_mut::<S>(student);
            let mut sums = [[zero; STRIP]; 2];
            for (k, products) in student_vectors.chunks_exact_mut(STRIP).enumerate() {
                let key = self.fields[from + k].map(|field| R::splat(s, field));
                // In one of the lanes at most, the key is the row's own.
                let own = (from + k).wrapping_sub(self.own);
                for (w, product) in products.iter_mut().enumerate() {
                    let of_teacher = teacher.get(k * STRIP + w).copied().unwrap_or(zero);
                    let row = std::array::from_fn(|f| rows[f * STRIP + w]);
                    let mut pair = self.op.pair::<S>(s, [*product, of_teacher], row, key);
                    if own / R::width::<S>() == w {
                        let keep = keep_others::<S, R>(s, own % R::width::<S>(), one);
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
            for m in 0..2 {
                vectors[m * STRIP..][..STRIP].copy_from_slice(&sums[m]);
            }
            for (lane, moments) in moments.iter_mut().enumerate() {
                moments[0] += by_lane[lane].to_f64();
                moments[1] += by_lane[lanes + lane].to_f64();
            }
            let weights = R::vectors::<S>(student);
            gather::<S, R>(
                s,
                weights,
                chunk,
                [one; STRIP],
                R::vectors_mut::<S>(&mut weighted),
            );
        }
        Ok((weighted, moments))
    }
}

/// 1 in all lanes but one, which is 0.
#[inline(always)]
fn keep_others<S: Simd, R: Real>(_: S, lane: usize, one: R::Of<S>) -> R::Of<S> {
    let mut keep = one;
    let lanes: &mut [R] = bytemuck::cast_slice_mut(std::slice::from_mut(&mut keep));
    lanes[lane] = R::ZERO;
    keep
}
