//! The largest product of each row with its keys but the own one, and the sum of all exponentials.

use pulp::{Simd, WithSimd};

use super::Side;
use crate::cpu::buffer::Buffer;
use crate::cpu::contrastive::attention::{CHUNK, lanes_of_strip, transpose};
use crate::cpu::contrastive::tiles::{Keys, STRIP, products};
use crate::cpu::embeddings::Embeddings;
use crate::cpu::parallel::try_map;
use crate::element::Real;
use crate::error::Result;
use crate::simd::dispatch;

/// Of a row over its keys but the own one.
#[derive(Clone, Copy)]
pub(super) struct LogSums {
    /// The largest product.
    pub(super) largest: f64,
    /// Σ exp((product − largest)/τ); 0 where there is no such key.
    pub(super) sum: f64,
}

/// Of all rows of a side.
pub(super) fn log_sums<R: Real>(
    rows: &Embeddings<R>,
    side: Side,
    temperature: f64,
) -> Result<Vec<LogSums>> {
    let lanes = lanes_of_strip::<R>();
    let strips = try_map(side.rows.div_ceil(lanes), &|strip| {
        let first = strip * lanes;
        let count = lanes.min(side.rows - first);
        dispatch(Strip {
            queries: &transpose(rows, side.first_row + first, count, lanes)?,
            keys: side.keys_of(rows),
            own: first,
            per_temperature: R::from_f64(1.0 / temperature),
            count,
        })
    })?;
    Ok(strips.concat())
}

struct Strip<'a, R: Real> {
    /// `[dim, lanes]`
    queries: &'a [R],
    keys: Keys<'a, R>,
    /// The key that the first lane leaves out. Each next lane leaves out the next key.
    own: usize,
    per_temperature: R,
    /// Lanes that are rows.
    count: usize,
}

impl<R: Real> WithSimd for Strip<'_, R> {
    type Output = Result<Vec<LogSums>>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) -> Self::Output {
        let lanes = STRIP * R::width::<S>();
        let queries = R::vectors::<S>(self.queries);
        let per_temperature = R::splat(s, self.per_temperature);
        let mut buffer = Buffer::<R>::any(CHUNK * lanes)?;
        let mut by_lane = Buffer::<R>::any(3 * lanes)?;
        let mut sums = vec![0.0; lanes];
        let mut largest = [R::splat(s, R::LOWEST); STRIP];
        for from in (0..self.keys.len).step_by(CHUNK) {
            let chunk = self.keys.part(from, self.keys.len.min(from + CHUNK));
            let logits = &mut buffer[..chunk.len * lanes];
            products::<S, R>(s, queries, chunk, R::vectors_mut::<S>(logits));
            for lane in 0..lanes {
                let own = (self.own + lane).wrapping_sub(from);
                if own < chunk.len {
                    logits[own * lanes + lane] = R::LOWEST;
                }
            }
            let logits = R::vectors::<S>(logits);
            let before = largest;
            for logits in logits.chunks_exact(STRIP) {
                for (largest, &logit) in largest.iter_mut().zip(logits) {
                    *largest = R::vmax(s, *largest, logit);
                }
            }
            let mut sum = [R::splat(s, R::ZERO); STRIP];
            for logits in logits.chunks_exact(STRIP) {
                for w in 0..STRIP {
                    let below = R::vmul(s, per_temperature, R::vsub(s, logits[w], largest[w]));
                    sum[w] = R::vadd(s, sum[w], R::vexp(s, below));
                }
            }
            let vectors = R::vectors_mut::<S>(&mut by_lane);
            for w in 0..STRIP {
                let decay = R::vmul(s, per_temperature, R::vsub(s, before[w], largest[w]));
                vectors[w] = R::vexp(s, decay);
                vectors[STRIP + w] = sum[w];
                vectors[2 * STRIP + w] = largest[w];
            }
            for (lane, total) in sums.iter_mut().enumerate() {
                let [decay, sum] = [by_lane[lane], by_lane[lanes + lane]].map(R::to_f64);
                // The first key may be the own one, which weighs nothing.
                let none_yet = by_lane[2 * lanes + lane] == R::LOWEST;
                *total = if none_yet { 0.0 } else { *total * decay + sum };
            }
        }
        let last = &by_lane[2 * lanes..];
        let of_lane = |lane: usize| LogSums {
            largest: last[lane].to_f64(),
            sum: sums[lane],
        };
        Ok((0..self.count).map(of_lane).collect())
    }
}
