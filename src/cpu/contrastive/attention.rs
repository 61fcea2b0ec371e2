//! Attention of rows over keys: softmax(⟨row, key⟩/τ), and the mean of the keys under it.
//!
//! RRD and InfoNCE are made of it. One pass reads the keys, and no matrix of rows × keys exists:
//!
//! ```text
//! for each part of the keys, for each strip of rows, in parallel:
//!     max ← initial_max        sum ← 0        weighted ← 0
//!     for each chunk of 64 keys:
//!         logit_k   = ⟨row, key_k⟩                          products
//!         new_max   = max(max, logit_k)
//!         decay     = exp((max − new_max)/τ)
//!         weight_k  = exp((logit_k − new_max)/τ)
//!         sum       = decay · sum + Σ_k weight_k
//!         weighted  = decay · weighted + Σ_k weight_k key_k  gather
//!         max       = new_max
//! for each row: merge its parts
//! ```
//!
//! 1. Rows lie along the lanes, `STRIP` registers of them. So the softmax needs no sums across lanes,
//!    and one broadcast of a key's element meets all rows of a strip.
//! 2. The maximum is a running one, as in online softmax. A bound known beforehand (1/τ) underflows
//!    at small τ.
//! 3. The running maximum starts at `initial_max`, a lower bound of the largest product. Where the
//!    bound is near, no later chunk decays what was gathered before.
//! 4. `gather` is skipped for a chunk whose keys all weigh less than rounding. With a sharp teacher
//!    that is nearly every chunk.
//! 5. The parts of the keys depend on the number of keys alone, so the sums are the same on any
//!    number of threads.

use pulp::{Simd, WithSimd};

use super::tiles::{Keys, STRIP, gather, products};
use crate::cpu::buffer::Buffer;
use crate::cpu::embeddings::Embeddings;
use crate::cpu::parallel::{map_blocks, try_map};
use crate::element::Real;
use crate::error::Result;
use crate::problem::Problem;
use crate::simd::{Lanes, dispatch};

/// Keys in a chunk: their logits are formed before their exponentials. Sums start anew with each
/// chunk, so that long sums round less.
pub(in crate::cpu) const CHUNK: usize = 64;
/// The largest number of parts of the keys, and the least number of keys in a part but the last.
const PARTS: usize = 8;
const PART: usize = 4096;

/// The result for each row.
pub(super) struct Attention<R: Real> {
    /// log Σ_k exp(⟨row, key_k⟩/τ), `[N]`.
    pub(super) log_sum: Vec<f64>,
    /// Σ_k softmax_k key_k, `[N, dim]`.
    pub(super) mean: Buffer<R>,
}

/// What the rows of a strip have to do with one another, and with the keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sharing {
    /// They leave out a chunk of keys together.
    Strips,
    /// The same, and row i leaves out key i.
    ExceptOwn,
    /// Each row has the same bits in whichever strip it lies, as ranks deal the rows.
    RowByRow,
}

impl Sharing {
    pub(super) fn of(problem: &Problem) -> Self {
        if problem.is_of_own_rows() {
            Sharing::RowByRow
        } else {
            Sharing::Strips
        }
    }
}

/// Attention of all rows over all keys. `initial_maxima` holds for each row a lower bound of its
/// largest product with a key, where the running maximum starts. The nearer the bound, the better.
pub(super) fn attention_forward<R: Real>(
    rows: &Embeddings<R>,
    keys: Keys<'_, R>,
    initial_maxima: &[f64],
    sharing: Sharing,
    temperature: f64,
) -> Result<Attention<R>> {
    let lanes = lanes_of_strip::<R>();
    let strips = rows.rows.div_ceil(lanes);
    let part = part_len(keys.len);
    let parts = keys.len.div_ceil(part);
    // All strips of a part follow each other, so that its keys stay in the cache.
    let partial: Vec<Partial<R>> = try_map(strips * parts, &|task| {
        let (p, strip) = (task / strips, task % strips);
        let mut out = Partial::new(lanes, keys.dim)?;
        let first = strip * lanes;
        for (max, &initial_max) in out.max.iter_mut().zip(&initial_maxima[first..]) {
            *max = initial_max;
        }
        dispatch(Strip {
            queries: &transpose(rows, first, lanes.min(rows.rows - first), lanes)?,
            keys: keys.part(p * part, keys.len.min((p + 1) * part)),
            left_out: (sharing == Sharing::ExceptOwn).then(|| first as isize - (p * part) as isize),
            row_by_row: sharing == Sharing::RowByRow,
            per_temperature: R::from_f64(1.0 / temperature),
            negligible: (R::EPSILON / (4.0 * keys.len as f64)).ln(),
            out: &mut out,
        })?;
        Ok(out)
    })?;

    let mut mean = Buffer::any(rows.rows.saturating_mul(keys.dim))?;
    let log_sum = map_blocks(&mut mean, lanes * keys.dim, &|strip, mean| {
        let partial: Vec<_> = partial.iter().skip(strip).step_by(strips).collect();
        merge(&partial, lanes, keys.dim, mean)
    });
    let log_sum = log_sum.concat();
    Ok(Attention { log_sum, mean })
}

/// Keys in a part but the last, of so many keys.
pub(super) fn part_len(keys: usize) -> usize {
    keys.div_ceil(PARTS).max(PART)
}

/// Rows in a strip.
pub(in crate::cpu) fn lanes_of_strip<R: Real>() -> usize {
    STRIP * dispatch(Width::<R>(std::marker::PhantomData))
}

/// Elements in a register.
struct Width<R>(std::marker::PhantomData<R>);

impl<R: Lanes> WithSimd for Width<R> {
    type Output = usize;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> usize {
        R::width::<S>()
    }
}

/// `count` rows from `first` on as `[dim, lanes]`; lanes beyond them are zero.
pub(in crate::cpu) fn transpose<R: Real>(
    rows: &Embeddings<R>,
    first: usize,
    count: usize,
    lanes: usize,
) -> Result<Buffer<R>> {
    let mut out = Buffer::zeros(rows.dim * lanes)?;
    for lane in 0..count {
        for (d, &x) in rows.row(first + lane)[..rows.dim].iter().enumerate() {
            out[d * lanes + lane] = x;
        }
    }
    Ok(out)
}

/// The sums of a strip's rows over a part of the keys.
struct Partial<R: Real> {
    /// The largest product, then the largest logit, `[lanes]`.
    max: Vec<f64>,
    /// Σ_k exp(logit_k − max), `[lanes]`.
    sum: Vec<f64>,
    /// Σ_k exp(logit_k − max) key_k, `[dim, lanes]`.
    weighted: Buffer<R>,
}

impl<R: Real> Partial<R> {
    fn new(lanes: usize, dim: usize) -> Result<Self> {
        Ok(Partial {
            max: vec![R::LOWEST.to_f64(); lanes],
            sum: vec![0.0; lanes],
            weighted: Buffer::zeros(dim.saturating_mul(lanes))?,
        })
    }
}

/// Merges the sums of a strip's rows over all parts of the keys into their means, `[rows, dim]`.
/// Returns their log-sums.
fn merge<R: Real>(parts: &[&Partial<R>], lanes: usize, dim: usize, mean: &mut [R]) -> Vec<f64> {
    let rows = mean.len() / dim;
    // Of each part, what its sums are multiplied by, `[parts, lanes]`.
    let mut factors = vec![0.0; parts.len() * lanes];
    let mut log_sums = vec![f64::NEG_INFINITY; rows];
    for lane in 0..rows {
        let maxima = parts.iter().map(|part| part.max[lane]);
        let max = maxima.fold(f64::NEG_INFINITY, f64::max);
        let weights = parts.iter().map(|part| (part.max[lane] - max).exp());
        let mut sum = 0.0;
        for ((part, weight), factors) in parts.iter().zip(weights).zip(factors.chunks_mut(lanes)) {
            sum += weight * part.sum[lane];
            factors[lane] = weight;
        }
        // A single row has no others: its mean is 0.
        let per_sum = if sum == 0.0 { 0.0 } else { 1.0 / sum };
        for factors in factors.chunks_mut(lanes) {
            factors[lane] *= per_sum;
        }
        if sum != 0.0 {
            log_sums[lane] = max + sum.ln();
        }
    }
    dispatch(Means {
        parts,
        factors: &factors,
        lanes,
        dim,
        mean,
    });
    log_sums
}

/// mean_i ← Σ_parts factor_i weighted_i, in f64.
struct Means<'a, 'b, R: Real> {
    parts: &'a [&'a Partial<R>],
    /// `[parts, lanes]`
    factors: &'a [f64],
    lanes: usize,
    dim: usize,
    /// `[rows, dim]`
    mean: &'b mut [R],
}

impl<R: Real> WithSimd for Means<'_, '_, R> {
    type Output = ();

    // The compiler makes vectors of the lanes: pulp has no conversion from f32 to f64.
    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let mut sums = vec![0.0; self.lanes];
        for d in 0..self.dim {
            sums.fill(0.0);
            for (part, factors) in self.parts.iter().zip(self.factors.chunks(self.lanes)) {
                let weighted = &part.weighted[d * self.lanes..][..self.lanes];
                for ((sum, factor), weighted) in sums.iter_mut().zip(factors).zip(weighted) {
                    *sum += factor * weighted.to_f64();
                }
            }
            for (mean, &sum) in self.mean.chunks_exact_mut(self.dim).zip(&sums) {
                mean[d] = R::from_f64(sum);
            }
        }
    }
}

/// Sets the weights of the rows to whom none of these keys weighs as much as `least` to 0, and says
/// whether a row is left.
#[inline(always)]
fn clear_negligible<S: Simd, R: Real>(s: S, weights: &mut [R::Of<S>], least: f64) -> bool {
    let least = R::splat(s, R::from_f64(least));
    let zero = R::splat(s, R::ZERO);
    let mut above = [R::splat(s, R::LOWEST); STRIP];
    for weights in weights.chunks_exact(STRIP) {
        for (above, &weight) in above.iter_mut().zip(weights) {
            *above = R::vmax(s, *above, R::vsub(s, weight, least));
        }
    }
    for weights in weights.chunks_exact_mut(STRIP) {
        for (weight, &above) in weights.iter_mut().zip(&above) {
            *weight = R::if_positive(s, above, *weight, zero);
        }
    }
    let above = above
        .iter()
        .skip(1)
        .fold(above[0], |max, &a| R::vmax(s, max, a));
    R::reduce_max(s, above).to_f64() > 0.0
}

/// A strip of rows over a part of the keys.
struct Strip<'a, 'b, R: Real> {
    /// `[dim, lanes]`
    queries: &'a [R],
    keys: Keys<'a, R>,
    /// The key that the first row leaves out, counted from the part's first key. Each next row
    /// leaves out the next key.
    left_out: Option<isize>,
    /// Whether a row leaves out a chunk that weighs nothing to it though not to its neighbours.
    row_by_row: bool,
    /// 1/τ
    per_temperature: R,
    /// If each logit of some keys is this far below the largest, all these keys together weigh less
    /// than half a unit in the last place.
    negligible: f64,
    out: &'b mut Partial<R>,
}

impl<R: Real> WithSimd for Strip<'_, '_, R> {
    type Output = Result<()>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) -> Result<()> {
        let Strip { keys, out, .. } = self;
        let lanes = STRIP * R::width::<S>();
        let queries = R::vectors::<S>(self.queries);
        let per_temperature = R::splat(s, self.per_temperature);
        let mut buffer = Buffer::<R>::any(CHUNK * lanes)?;
        let mut lane_sums = Buffer::<R>::any(2 * lanes)?;
        let weighted = R::vectors_mut::<S>(&mut out.weighted);

        let mut max = [R::splat(s, R::ZERO); STRIP];
        for (max, &initial_max) in lane_sums.iter_mut().zip(&out.max) {
            *max = R::from_f64(initial_max);
        }
        max.copy_from_slice(&R::vectors::<S>(&lane_sums)[..STRIP]);
        for from in (0..keys.len).step_by(CHUNK) {
            let chunk = keys.part(from, keys.len.min(from + CHUNK));
            let logits = &mut buffer[..chunk.len * lanes];
            products::<S, R>(s, queries, chunk, R::vectors_mut::<S>(logits));
            if let Some(key) = self.left_out {
                for lane in 0..lanes {
                    let k = key + lane as isize - from as isize;
                    if (0..chunk.len as isize).contains(&k) {
                        logits[k.unsigned_abs() * lanes + lane] = R::LOWEST;
                    }
                }
            }
            let logits = R::vectors_mut::<S>(logits);

            let old_max = max;
            for logits in logits.chunks_exact(STRIP) {
                for (max, &logit) in max.iter_mut().zip(logits) {
                    *max = R::vmax(s, *max, logit);
                }
            }
            // exp((old − new)/τ): the factor on all that was gathered so far.
            let mut decay = [R::splat(s, R::ZERO); STRIP];
            for w in 0..STRIP {
                let a = R::vmul(s, per_temperature, R::vsub(s, old_max[w], max[w]));
                decay[w] = R::vexp(s, a);
            }
            let mut sum = [R::splat(s, R::ZERO); STRIP];
            let mut largest = R::splat(s, R::LOWEST);
            for logits in logits.chunks_exact_mut(STRIP) {
                for w in 0..STRIP {
                    let a = R::vmul(s, per_temperature, R::vsub(s, logits[w], max[w]));
                    largest = R::vmax(s, largest, a);
                    logits[w] = R::vexp(s, a);
                    sum[w] = R::vadd(s, sum[w], logits[w]);
                }
            }
            let lanes_of = R::vectors_mut::<S>(&mut lane_sums);
            lanes_of[..STRIP].copy_from_slice(&decay);
            lanes_of[STRIP..].copy_from_slice(&sum);
            let (decays, sums) = lane_sums.split_at(lanes);
            for ((total, decay), sum) in out.sum.iter_mut().zip(decays).zip(sums) {
                *total = *total * decay.to_f64() + sum.to_f64();
            }
            // With a sharp teacher nearly all keys but the row's own weigh nothing. Then the
            // maximum does not change, and neither does what was gathered so far.
            let counts = if self.row_by_row {
                clear_negligible::<S, R>(s, logits, self.negligible.exp())
            } else {
                R::reduce_max(s, largest).to_f64() >= self.negligible
            };
            if counts {
                gather::<S, R>(s, logits, chunk, decay, weighted);
            }
        }

        let lanes_of = R::vectors_mut::<S>(&mut lane_sums);
        for (out, max) in lanes_of.iter_mut().zip(max) {
            *out = R::vmul(s, max, per_temperature);
        }
        for (out, max) in out.max.iter_mut().zip(lane_sums.iter()) {
            *out = max.to_f64();
        }
        Ok(())
    }
}
