//! The largest product of each row with its keys but the own one, and the sum of all exponentials.

use pulp::{Simd, WithSimd};

use super::masks::{MaskedMeeting, Masks, guide_of};
use super::strips::{Compared, Strips, keys_of, own_lane};
use crate::cpu::buffer::Buffer;
use crate::cpu::contrastive::attention::CHUNK;
use crate::cpu::contrastive::tiles::{Keys, STRIP, products};
use crate::cpu::embeddings::Embeddings;
use crate::cpu::pairwise::pairs::Block;
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

impl LogSums {
    /// Of the keys so far, and of others whose largest product and sum these are. `per_temperature`
    /// is 1/τ.
    fn add(&mut self, largest: f64, sum: f64, lowest: f64, per_temperature: f64) {
        // The first key may be the own one, which weighs nothing.
        if largest == lowest {
            return;
        }
        let decay = ((self.largest - largest) * per_temperature).exp();
        self.sum = self.sum * decay + sum;
        self.largest = largest;
    }
}

/// Of all rows. Keys that a row's masks leave out count as none.
pub(super) fn log_sums<R: Real>(
    rows: &Embeddings<R>,
    strips: &Strips<R>,
    compared: Compared,
    temperature: f64,
    masks: Option<&Masks<'_, R>>,
) -> Result<Vec<LogSums>> {
    let nothing = LogSums {
        largest: R::LOWEST.to_f64(),
        sum: 0.0,
    };
    let mut all = vec![nothing; compared.rows];
    compared.for_all_meetings(&mut all, 1, |a, mut b| {
        let alone = b.is_none();
        let (first, len) = b.as_ref().map_or((a.first, a.rows), |b| (b.first, b.rows));
        for strip in (0..a.rows).step_by(strips.lanes) {
            let count = strips.lanes.min(a.rows - strip);
            let is_own = alone || compared.halves;
            let (first_row, first_key) = (a.first + strip, compared.first_key(first));
            let of_lanes = masks.map(|masks| masks.of_lanes(first_row, count, strips.lanes));
            let of_lanes = of_lanes.transpose()?;
            let masks = masks
                .zip(of_lanes.as_ref())
                .map(|(masks, of_lanes)| MaskedMeeting {
                    of_lanes,
                    fields: &masks.fields[first_key..][..len],
                    guide: masks
                        .guide
                        .map(|side| guide_of(side, first_row, [first_key, len])),
                });
            dispatch(Meeting {
                queries: strips.strip(first_row),
                keys: keys_of(rows, first_key, len),
                masks,
                own: is_own.then(|| first_row as isize - first as isize),
                per_temperature: R::from_f64(1.0 / temperature),
                of_rows: &mut a.data[strip..strip + count],
                of_keys: b
                    .as_mut()
                    .map(|b: &mut &mut Block<'_, LogSums>| &mut *b.data),
            })?;
        }
        Ok(0.0)
    })?;
    Ok(all)
}

/// A strip of rows with a block of keys.
struct Meeting<'a, R: Real> {
    /// `[dim, lanes]`
    queries: &'a [R],
    keys: Keys<'a, R>,
    masks: Option<MaskedMeeting<'a, R>>,
    /// The key that the first lane leaves out. Each next lane leaves out the next key.
    own: Option<isize>,
    per_temperature: R,
    /// One for each lane that is a row.
    of_rows: &'a mut [LogSums],
    of_keys: Option<&'a mut [LogSums]>,
}

impl<R: Real> WithSimd for Meeting<'_, R> {
    type Output = Result<()>;

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, s: S) -> Result<()> {
        let lanes = STRIP * R::width::<S>();
        let count = self.of_rows.len();
        let queries = R::vectors::<S>(self.queries);
        let mut buffer = Buffer::<R>::any(CHUNK.min(self.keys.len) * lanes)?;
        let masked_len = if self.masks.is_some() {
            buffer.len()
        } else {
            0
        };
        let mut masked = Buffer::<R>::any(masked_len)?;
        let mut by_lane = Buffer::<R>::any(2 * lanes)?;
        let per_temperature = self.per_temperature.to_f64();
        let lowest = R::LOWEST.to_f64();
        for from in (0..self.keys.len).step_by(CHUNK) {
            let chunk = self.keys.part(from, self.keys.len.min(from + CHUNK));
            let logits = &mut buffer[..chunk.len * lanes];
            products::<S, R>(s, queries, chunk, R::vectors_mut::<S>(logits));
            for (k, logits) in logits.chunks_exact_mut(lanes).enumerate() {
                if let Some(lane) = own_lane(self.own, from + k, count) {
                    logits[lane] = R::LOWEST;
                }
                logits[count..].fill(R::LOWEST);
            }
            // The logits as rows and as keys see them
            let mut by_row = &*logits;
            if let Some(masks) = &self.masks {
                let masked = &mut masked[..chunk.len * lanes];
                masked.copy_from_slice(logits);
                masks.apply::<S>(s, from, masked, logits)?;
                by_row = masked;
            }
            let (logits, by_key) = (R::vectors::<S>(by_row), R::vectors::<S>(logits));

            // The rows
            let (maxima, sums) = by_lane.split_at_mut(lanes);
            maxima.fill(R::LOWEST);
            for (max, of_row) in maxima.iter_mut().zip(&*self.of_rows) {
                *max = R::from_f64(of_row.largest);
            }
            let maxima = R::vectors_mut::<S>(maxima);
            for logits in logits.chunks_exact(STRIP) {
                for (max, &logit) in maxima.iter_mut().zip(logits) {
                    *max = R::vmax(s, *max, logit);
                }
            }
            let sum = R::vectors_mut::<S>(sums);
            sum.fill(R::splat(s, R::ZERO));
            for logits in logits.chunks_exact(STRIP) {
                for w in 0..STRIP {
                    sum[w] = R::vadd(s, sum[w], self.weight(s, logits[w], maxima[w]));
                }
            }
            for (lane, of_row) in self.of_rows.iter_mut().enumerate() {
                let [max, sum] = [by_lane[lane], by_lane[lanes + lane]].map(R::to_f64);
                of_row.add(max, sum, lowest, per_temperature);
            }

            // The keys
            let Some(of_keys) = self.of_keys.take() else {
                continue;
            };
            for (of_key, logits) in of_keys[from..].iter_mut().zip(by_key.chunks_exact(STRIP)) {
                let mut max = R::splat(s, R::from_f64(of_key.largest));
                for &logit in logits {
                    max = R::vmax(s, max, logit);
                }
                let largest = R::reduce_max(s, max);
                let max = R::splat(s, largest);
                let mut sum = R::splat(s, R::ZERO);
                for &logit in logits {
                    sum = R::vadd(s, sum, self.weight(s, logit, max));
                }
                let sum = R::reduce_sum(s, sum).to_f64();
                of_key.add(largest.to_f64(), sum, lowest, per_temperature);
            }
            self.of_keys = Some(of_keys);
        }
        Ok(())
    }
}

impl<R: Real> Meeting<'_, R> {
    /// exp((logit − max)/τ)
    #[inline(always)]
    fn weight<S: Simd>(&self, s: S, logit: R::Of<S>, max: R::Of<S>) -> R::Of<S> {
        let per_temperature = R::splat(s, self.per_temperature);
        R::vexp(s, R::vmul(s, per_temperature, R::vsub(s, logit, max)))
    }
}
