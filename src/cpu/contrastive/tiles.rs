//! The two products of attention, in tiles whose sums stay in registers.
//!
//! ```text
//! products: logit_k  = ⟨row, key_k⟩          a tile: TILE keys × STRIP registers of rows
//! gather:   weighted = Σ_k weight_k key_k    a tile: TILE elements × STRIP registers of rows
//! ```
//!
//! A step of either adds `TILE` numbers of the keys, each in all lanes, times `STRIP` registers of
//! rows. How many sums fit depends on the registers of the instruction set. The order in which a sum
//! is formed does not depend on the tile, so neither do its bits.

use pulp::Simd;

use crate::element::Real;
use crate::simd::unroll;

/// Registers of rows in a strip.
pub(in crate::cpu) const STRIP: usize = 4;
/// Keys, or elements of keys, in a tile, where there are 32 registers. Its sums are held in 16.
const TILE: usize = 4;
/// The same for 16 registers: 12 sums, 3 elements and one register of rows.
const NARROW_TILE: usize = 3;

/// Keys, which are the values too: `[len, stride]`. The first `dim` columns count.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Keys<'a, R> {
    pub(in crate::cpu) data: &'a [R],
    pub(in crate::cpu) len: usize,
    pub(in crate::cpu) dim: usize,
    pub(in crate::cpu) stride: usize,
}

impl<'a, R> Keys<'a, R> {
    /// Keys from..to.
    pub(in crate::cpu) fn part(self, from: usize, to: usize) -> Self {
        Keys {
            data: &self.data[from * self.stride..to * self.stride],
            len: to - from,
            ..self
        }
    }
}

/// ⟨row, key⟩ for all keys of a chunk, `[key, STRIP]`.
#[inline(always)]
pub(in crate::cpu) fn products<S: Simd, R: Real>(
    s: S,
    queries: &[R::Of<S>],
    keys: Keys<'_, R>,
    out: &mut [R::Of<S>],
) {
    if S::REGISTER_COUNT < 32 {
        products_by::<S, R, NARROW_TILE>(s, queries, keys, out);
    } else {
        products_by::<S, R, TILE>(s, queries, keys, out);
    }
}

/// In tiles of `T` keys.
#[inline(always)]
fn products_by<S: Simd, R: Real, const T: usize>(
    s: S,
    queries: &[R::Of<S>],
    keys: Keys<'_, R>,
    out: &mut [R::Of<S>],
) {
    let whole = keys.len / T * T;
    for k in (0..whole).step_by(T) {
        products_tile::<S, R, T>(s, queries, keys, k, &mut out[k * STRIP..]);
    }
    let out = &mut out[whole * STRIP..];
    match keys.len - whole {
        0 => {}
        1 => products_tile::<S, R, 1>(s, queries, keys, whole, out),
        2 => products_tile::<S, R, 2>(s, queries, keys, whole, out),
        _ => products_tile::<S, R, 3>(s, queries, keys, whole, out),
    }
}

#[inline(always)]
fn products_tile<S: Simd, R: Real, const T: usize>(
    s: S,
    queries: &[R::Of<S>],
    keys: Keys<'_, R>,
    k: usize,
    out: &mut [R::Of<S>],
) {
    let mut key: [&[R]; T] = [&[]; T];
    for (t, key) in key.iter_mut().enumerate() {
        *key = &keys.data[(k + t) * keys.stride..][..keys.dim];
    }
    let mut sum = [[R::splat(s, R::ZERO); STRIP]; T];
    // Two elements at a time: half the work of counting and of checking bounds.
    let (pairs, last) = queries.split_at(keys.dim / 2 * 2 * STRIP);
    for (pair, queries) in pairs.chunks_exact(2 * STRIP).enumerate() {
        let (first, second) = queries.split_at(STRIP);
        add_tile::<S, R, T, STRIP>(s, column(&key, 2 * pair), first, &mut sum);
        add_tile::<S, R, T, STRIP>(s, column(&key, 2 * pair + 1), second, &mut sum);
    }
    if !last.is_empty() {
        add_tile::<S, R, T, STRIP>(s, column(&key, keys.dim - 1), last, &mut sum);
    }
    let out = &mut out[..T * STRIP];
    unroll::<T>(
        #[inline(always)]
        |t| {
            unroll::<STRIP>(
                #[inline(always)]
                |w| out[t * STRIP + w] = sum[t][w],
            );
        },
    );
}

/// Element d of each key.
#[inline(always)]
fn column<R: Real, const T: usize>(keys: &[&[R]; T], d: usize) -> [R; T] {
    let mut column = [R::ZERO; T];
    unroll::<T>(
        #[inline(always)]
        |t| column[t] = keys[t][d],
    );
    column
}

/// sum_tw += elements_t rows_w. With few registers all elements are held and one register of rows
/// at a time: so nothing is written to memory.
#[inline(always)]
fn add_tile<S: Simd, R: Real, const T: usize, const W: usize>(
    s: S,
    elements: [R; T],
    rows: &[R::Of<S>],
    sum: &mut [[R::Of<S>; W]; T],
) {
    let mut splat = [R::splat(s, R::ZERO); T];
    unroll::<T>(
        #[inline(always)]
        |t| splat[t] = R::splat(s, elements[t]),
    );
    unroll::<W>(
        #[inline(always)]
        |w| {
            let row = rows[w];
            unroll::<T>(
                #[inline(always)]
                |t| sum[t][w] = R::vmul_add(s, splat[t], row, sum[t][w]),
            );
        },
    );
}

/// weighted ← decay · weighted + Σ_k weights_k key_k, `[dim, STRIP]`.
#[inline(always)]
pub(in crate::cpu) fn gather<S: Simd, R: Real>(
    s: S,
    weights: &[R::Of<S>],
    keys: Keys<'_, R>,
    decay: [R::Of<S>; STRIP],
    weighted: &mut [R::Of<S>],
) {
    if S::REGISTER_COUNT < 32 {
        gather_by::<S, R, NARROW_TILE>(s, weights, keys, decay, weighted);
    } else {
        gather_by::<S, R, TILE>(s, weights, keys, decay, weighted);
    }
}

/// In tiles of `T` elements of the keys.
#[inline(always)]
fn gather_by<S: Simd, R: Real, const T: usize>(
    s: S,
    weights: &[R::Of<S>],
    keys: Keys<'_, R>,
    decay: [R::Of<S>; STRIP],
    weighted: &mut [R::Of<S>],
) {
    let whole = keys.dim / T * T;
    for d in (0..whole).step_by(T) {
        gather_tile::<S, R, T>(s, weights, keys, decay, d, weighted);
    }
    match keys.dim - whole {
        0 => {}
        1 => gather_tile::<S, R, 1>(s, weights, keys, decay, whole, weighted),
        2 => gather_tile::<S, R, 2>(s, weights, keys, decay, whole, weighted),
        _ => gather_tile::<S, R, 3>(s, weights, keys, decay, whole, weighted),
    }
}

/// Elements d..d + T of the keys.
#[inline(always)]
fn gather_tile<S: Simd, R: Real, const T: usize>(
    s: S,
    weights: &[R::Of<S>],
    keys: Keys<'_, R>,
    decay: [R::Of<S>; STRIP],
    d: usize,
    weighted: &mut [R::Of<S>],
) {
    let mut sum = [[R::splat(s, R::ZERO); STRIP]; T];
    let whole = keys.len / 2 * 2;
    let (pairs, last) = weights[..keys.len * STRIP].split_at(whole * STRIP);
    // Two keys at a time, as above.
    let elements = keys.data[d..].chunks(2 * keys.stride);
    for (weights, elements) in pairs.chunks_exact(2 * STRIP).zip(elements) {
        let (first, second) = elements.split_at(keys.stride);
        let (weights, next_weights) = weights.split_at(STRIP);
        add_tile::<S, R, T, STRIP>(s, first_of(first), weights, &mut sum);
        add_tile::<S, R, T, STRIP>(s, first_of(second), next_weights, &mut sum);
    }
    if !last.is_empty() {
        let key = &keys.data[whole * keys.stride + d..];
        add_tile::<S, R, T, STRIP>(s, first_of(key), last, &mut sum);
    }
    let out = &mut weighted[d * STRIP..][..T * STRIP];
    unroll::<T>(
        #[inline(always)]
        |t| {
            unroll::<STRIP>(
                #[inline(always)]
                |w| out[t * STRIP + w] = R::vmul_add(s, out[t * STRIP + w], decay[w], sum[t][w]),
            );
        },
    );
}

/// Weights of rows of `inputs` in the sums for rows of `out`, both ways of lying in memory.
#[derive(Clone, Copy)]
pub(in crate::cpu) enum WeightsOf<'a, R> {
    /// `[out, lanes]`: the weights of an output follow each other.
    Outputs(&'a [R], usize),
    /// `[inputs, lanes]`: the weights of an input do.
    Inputs(&'a [R], usize),
}

/// out_o ← out_o + Σ_i weight_oi input_i, for `count` outputs; `out` is `[count, stride]` as the
/// inputs are.
#[inline(always)]
pub(in crate::cpu) fn add_rows<S: Simd, R: Real>(
    s: S,
    weights: WeightsOf<'_, R>,
    inputs: Keys<'_, R>,
    count: usize,
    out: &mut [R],
) {
    if S::REGISTER_COUNT < 32 {
        add_rows_by::<S, R, NARROW_TILE>(s, weights, inputs, count, out);
    } else {
        add_rows_by::<S, R, TILE>(s, weights, inputs, count, out);
    }
}

/// In tiles of `T` outputs.
#[inline(always)]
fn add_rows_by<S: Simd, R: Real, const T: usize>(
    s: S,
    weights: WeightsOf<'_, R>,
    inputs: Keys<'_, R>,
    count: usize,
    out: &mut [R],
) {
    let whole = count / T * T;
    for o in (0..whole).step_by(T) {
        add_rows_of::<S, R, T>(s, weights, inputs, o, out);
    }
    match count - whole {
        0 => {}
        1 => add_rows_of::<S, R, 1>(s, weights, inputs, whole, out),
        2 => add_rows_of::<S, R, 2>(s, weights, inputs, whole, out),
        _ => add_rows_of::<S, R, 3>(s, weights, inputs, whole, out),
    }
}

/// Outputs o..o + T, in tiles of `STRIP` registers of their elements.
#[inline(always)]
fn add_rows_of<S: Simd, R: Real, const T: usize>(
    s: S,
    weights: WeightsOf<'_, R>,
    inputs: Keys<'_, R>,
    o: usize,
    out: &mut [R],
) {
    let width = R::width::<S>();
    let registers = inputs.dim.div_ceil(width);
    let whole = registers / STRIP * STRIP;
    let out = &mut out[o * inputs.stride..];
    for w in (0..whole).step_by(STRIP) {
        add_rows_tile::<S, R, T, STRIP>(s, weights, inputs, o, w * width, out);
    }
    let d = whole * width;
    match registers - whole {
        0 => {}
        1 => add_rows_tile::<S, R, T, 1>(s, weights, inputs, o, d, out),
        2 => add_rows_tile::<S, R, T, 2>(s, weights, inputs, o, d, out),
        _ => add_rows_tile::<S, R, T, 3>(s, weights, inputs, o, d, out),
    }
}

#[inline(always)]
fn add_rows_tile<S: Simd, R: Real, const T: usize, const W: usize>(
    s: S,
    weights: WeightsOf<'_, R>,
    inputs: Keys<'_, R>,
    o: usize,
    d: usize,
    out: &mut [R],
) {
    let len = W * R::width::<S>();
    let mut sum = [[R::splat(s, R::ZERO); W]; T];
    let rows = inputs.data[d..].chunks(inputs.stride).take(inputs.len);
    match weights {
        WeightsOf::Outputs(data, lanes) => {
            let mut of: [&[R]; T] = [&[]; T];
            for (t, of) in of.iter_mut().enumerate() {
                *of = &data[(o + t) * lanes..][..inputs.len];
            }
            for (i, row) in rows.enumerate() {
                add_tile::<S, R, T, W>(s, column(&of, i), R::vectors::<S>(&row[..len]), &mut sum);
            }
        }
        WeightsOf::Inputs(data, lanes) => {
            for (row, weights) in rows.zip(data[o..].chunks(lanes)) {
                add_tile::<S, R, T, W>(
                    s,
                    first_of(weights),
                    R::vectors::<S>(&row[..len]),
                    &mut sum,
                );
            }
        }
    }
    for (t, sum) in sum.iter().enumerate() {
        let out = R::vectors_mut::<S>(&mut out[t * inputs.stride + d..][..len]);
        for (out, &sum) in out.iter_mut().zip(sum) {
            *out = R::vadd(s, *out, sum);
        }
    }
}

/// The first elements of a slice.
#[inline(always)]
fn first_of<R: Real, const T: usize>(slice: &[R]) -> [R; T] {
    let mut first = [R::ZERO; T];
    let slice = &slice[..T];
    unroll::<T>(
        #[inline(always)]
        |t| first[t] = slice[t],
    );
    first
}
