//! The relation matrix of a batch, a building block of its own.

use super::ops::{Positive, RelationOp, Root, Shifted};
use super::pair_sums::{BLOCK, PairSums, Triangle, mirror};
use crate::cpu::buffer::Buffer;
use crate::cpu::embeddings::{Embeddings, RowScaling};
use crate::cpu::parallel::{for_each_block, try_map_blocks};
use crate::element::Element;
use crate::error::Result;
use crate::loss::Relation;
use crate::rows::Rows;
use crate::simd::{dispatch, row_stride};

/// The relation of every two rows, `[N, N]`.
pub(crate) fn relation_matrix<T: Element>(
    relation: Relation,
    rows: Rows<'_, T>,
    matrix: &mut [T::Real],
) -> Result<()> {
    let scaling = match relation {
        Relation::Distance | Relation::SquaredDistance => RowScaling::Scaled,
        Relation::Dot => RowScaling::Raw,
        Relation::Cosine | Relation::PositiveCosine | Relation::ShiftedCosine => {
            RowScaling::Normalized { epsilon: 0.0 }
        }
    };
    let x = &Embeddings::<T::Real>::new(rows, scaling)?;
    let n = x.rows;
    let stride = row_stride::<T::Real>(n);
    let mut upper = Buffer::any(n.saturating_mul(stride))?;
    for_each_block(&mut upper, BLOCK * stride, &|block, out| {
        let first = block * BLOCK;
        match relation {
            Relation::Distance | Relation::SquaredDistance => {
                dispatch(PairSums::<_, true> {
                    x,
                    triangle: Triangle::Upper,
                    stride,
                    first,
                    out,
                });
            }
            Relation::Dot
            | Relation::Cosine
            | Relation::PositiveCosine
            | Relation::ShiftedCosine => {
                dispatch(PairSums::<_, false> {
                    x,
                    triangle: Triangle::Upper,
                    stride,
                    first,
                    out,
                });
            }
        }
    });
    let upper = &*upper;
    try_map_blocks(matrix, BLOCK * n, &|block, out| {
        let mut rows = Buffer::any(out.len() / n * stride)?;
        mirror(upper, Triangle::Upper, stride, n, block * BLOCK, &mut rows);
        for (out, row) in out.chunks_exact_mut(n).zip(rows.chunks_exact(stride)) {
            for (out, &r) in out.iter_mut().zip(row) {
                *out = T::Real::from_f64(match relation {
                    Relation::Distance => Root::of_sum(r.to_f64()) / x.scale,
                    Relation::SquaredDistance => r.to_f64() / x.scale / x.scale,
                    Relation::Dot | Relation::Cosine => r.to_f64(),
                    Relation::PositiveCosine => Positive::of_sum(r.to_f64()),
                    Relation::ShiftedCosine => Shifted::of_sum(r.to_f64()),
                });
            }
        }
        Ok(())
    })?;
    Ok(())
}
