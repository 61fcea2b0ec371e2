//! The softmax of rows.

use pulp::{Simd, WithSimd};

use crate::cpu::buffer::Buffer;
use crate::cpu::parallel::try_map_blocks;
use crate::element::{Element, Real};
use crate::error::Result;
use crate::rows::Rows;
use crate::simd::{Lanes, dispatch};

/// Elements that are summed in R before the sum moves on to f64.
pub(in crate::cpu) const CHUNK: usize = 1024;
/// Elements in the widest register.
const WIDEST: usize = 16;

/// softmax(x_i/τ) of every row.
pub(crate) fn softmax<T: Element>(
    rows: Rows<'_, T>,
    temperature: f64,
    probabilities: &mut [T::Real],
) -> Result<()> {
    let dim = rows.dim();
    try_map_blocks(probabilities, dim, &|i, out| {
        let mut row = Buffer::any(dim.next_multiple_of(T::Real::PAD))?;
        T::widen(rows.row(i), &mut row[..dim]);
        dispatch(Softmax {
            row: &mut row,
            dim,
            temperature,
        });
        out.copy_from_slice(&row[..dim]);
        Ok(())
    })?;
    Ok(())
}

/// One row, padded.
struct Softmax<'a, R> {
    row: &'a mut [R],
    dim: usize,
    temperature: f64,
}

impl<R: Real> WithSimd for Softmax<'_, R> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Softmax {
            row,
            dim,
            temperature,
        } = self;
        let max = R::splat(s, largest::<S, R>(s, row, dim));
        let per_temperature = R::splat(s, R::from_f64(1.0 / temperature));
        let [whole, rest] = split_whole::<S, R>(row, dim);
        let mut sum = 0.0;
        for chunk in whole.chunks_mut(CHUNK / R::width::<S>()) {
            let mut part = R::splat(s, R::ZERO);
            for v in chunk {
                *v = R::vexp(s, R::vmul(s, R::vsub(s, *v, max), per_temperature));
                part = R::vadd(s, part, *v);
            }
            sum += R::reduce_sum(s, part).to_f64();
        }
        let present = present::<R>(dim % R::width::<S>());
        if let Some(v) = rest.first_mut() {
            let exp = R::vexp(s, R::vmul(s, R::vsub(s, *v, max), per_temperature));
            *v = R::vmul(s, exp, R::vectors::<S>(&present)[0]);
            sum += R::reduce_sum(s, *v).to_f64();
        }
        let factor = R::splat(s, R::from_f64(1.0 / sum));
        for v in R::vectors_mut::<S>(row) {
            *v = R::vmul(s, *v, factor);
        }
    }
}

/// The largest of the first `classes` logits. Pads the row with it. [`present`] keeps the padding
/// out of the sums: no number is so far below all logits that its exponential vanishes at every
/// temperature.
#[inline(always)]
pub(in crate::cpu) fn largest<S: Simd, R: Real>(s: S, row: &mut [R], classes: usize) -> R {
    let last = row[classes - 1];
    row[classes..].fill(last);
    let mut largest = R::splat(s, R::LOWEST);
    for &v in R::vectors::<S>(row) {
        largest = R::vmax(s, v, largest);
    }
    let largest = R::reduce_max(s, largest);
    row[classes..].fill(largest);
    largest
}

/// A padded row, split into the registers that are full of classes and the rest, of which the first
/// register may hold some classes.
#[inline(always)]
pub(in crate::cpu) fn split_whole<S: Simd, R: Real>(
    row: &mut [R],
    classes: usize,
) -> [&mut [R::Of<S>]; 2] {
    R::vectors_mut::<S>(row)
        .split_at_mut(classes / R::width::<S>())
        .into()
}

/// 1 in the first `classes` elements of a register, 0 in the others.
#[inline(always)]
pub(in crate::cpu) fn present<R: Real>(classes: usize) -> [R; WIDEST] {
    let mut present = [R::ZERO; WIDEST];
    present[..classes].fill(R::ONE);
    present
}
