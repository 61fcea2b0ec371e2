//! Sums over the elements of pairs of rows: squared distances by differences, or products.
//!
//! ```text
//! for each block of 16 rows i, in parallel:
//!     for each 4 rows i of the block, for each 3 rows j of the triangle:
//!         for each chunk of 512 elements:
//!             12 registers += (x_i − x_j)², or x_i x_j
//!             add the lanes of each register to a sum in f64
//! ```
//!
//! 1. Only one triangle is computed. [`mirror`] and [`mirror_upper`] fill the other.
//! 2. A chunk bounds the error: each lane adds at most 64 terms in f32, so the error of the sum
//!    stays below that of its rounding to f32.
//! 3. With 16 registers, differences are summed for 4 rows i and 2 rows j. A difference takes a
//!    register before it is squared, and 12 sums would leave too few. All 8 rows i of half a block
//!    meet 2 rows j before the next ones, so half as many rows j are read from the outer caches.

use pulp::{Simd, WithSimd};

use super::pairs::{Block, for_all_pairs};
use crate::cpu::buffer::Buffer;
use crate::cpu::embeddings::Embeddings;
use crate::cpu::parallel::for_each_block;
use crate::element::Real;
use crate::error::Result;
use crate::simd::{dispatch, row_stride, unroll};

/// Rows that a task works on, and the side of the squares that matrices are transposed by.
pub(in crate::cpu) const BLOCK: usize = 16;
/// Rows i of a tile of pairs, whose sums are held in registers.
const TILE_I: usize = 4;
/// Elements that are summed in R before the sum moves on to f64.
const CHUNK: usize = 512;
/// Side of the squares that [`mirror_upper`] transposes.
const SQUARE: usize = 64;

/// Which half of a symmetric matrix.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::cpu) enum Triangle {
    /// Columns from the row's own on.
    Upper,
    /// Columns before the row's own.
    Lower,
}

/// Squared distances (`DISTANCE`) or products of a block of rows with the rows of a triangle.
pub(in crate::cpu) struct PairSums<'a, R: Real, const DISTANCE: bool> {
    pub(in crate::cpu) x: &'a Embeddings<R>,
    pub(in crate::cpu) triangle: Triangle,
    /// The distance between rows of `out`.
    pub(in crate::cpu) stride: usize,
    /// The first row of the block.
    pub(in crate::cpu) first: usize,
    /// The block, `[rows, stride]`. Elements outside the triangle are not written.
    pub(in crate::cpu) out: &'a mut [R],
}

impl<R: Real, const DISTANCE: bool> WithSimd for PairSums<'_, R, DISTANCE> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        match (S::REGISTER_COUNT < 32, DISTANCE) {
            (false, _) => self.sum::<S, 1, 3, 4>(s),
            (true, false) => self.sum::<S, 2, 3, 2>(s),
            (true, true) => self.sum::<S, 2, 2, 2>(s),
        }
    }
}

impl<R: Real, const DISTANCE: bool> PairSums<'_, R, DISTANCE> {
    /// In tiles of `J` rows j, which meet `TILES` tiles of rows i before the next rows j, and `STEP`
    /// registers of each row at a time.
    #[inline(always)]
    fn sum<S: Simd, const TILES: usize, const J: usize, const STEP: usize>(self, s: S) {
        let PairSums {
            x,
            triangle,
            stride,
            first,
            out,
        } = self;
        let n = x.rows;
        let rows = out.len() / stride;
        let used = x.dim.next_multiple_of(R::PAD);
        // Tiles at the edge repeat the last row. Their surplus sums are not stored.
        let row = |i: usize| R::vectors::<S>(&x.row(i.min(n - 1))[..used]);
        for held in (0..rows).step_by(TILES * TILE_I) {
            // Not by `from_fn`, which is a call of its own in here.
            let mut starts = [0; TILES];
            let mut tiles = [[row(0); TILE_I]; TILES];
            for (tile, (start, rows)) in starts.iter_mut().zip(&mut tiles).enumerate() {
                *start = held + tile * TILE_I;
                for (t, of_row) in rows.iter_mut().enumerate() {
                    *of_row = row(first + *start + t);
                }
            }
            let columns = match triangle {
                Triangle::Upper => first + held..n,
                Triangle::Lower => 0..n.min(first + held + TILES * TILE_I),
            };
            for j0 in columns.step_by(J) {
                let mut x_j = [row(0); J];
                for (t, of_row) in x_j.iter_mut().enumerate() {
                    *of_row = row(j0 + t);
                }
                for (&i0, &x_i) in starts.iter().zip(&tiles) {
                    let outside = match triangle {
                        Triangle::Upper => j0 + J <= first + i0,
                        Triangle::Lower => j0 >= first + i0 + TILE_I,
                    };
                    if i0 >= rows || outside {
                        continue;
                    }
                    let sums = tile::<R, S, DISTANCE, J, STEP>(s, x_i, x_j);
                    for (i, sums) in sums.iter().enumerate().take(rows - i0) {
                        for (j, &sum) in sums.iter().enumerate().take(n - j0) {
                            let (i, j) = (i0 + i, j0 + j);
                            if (j >= first + i) == (triangle == Triangle::Upper) {
                                out[i * stride + j] = R::from_f64(sum);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// ‖x_i − x_j‖², or ⟨x_i, x_j⟩, for a tile of pairs.
#[inline(always)]
fn tile<R: Real, S: Simd, const DISTANCE: bool, const J: usize, const STEP: usize>(
    s: S,
    x_i: [&[R::Of<S>]; TILE_I],
    x_j: [&[R::Of<S>]; J],
) -> [[f64; J]; TILE_I] {
    let vectors = x_i[0].len();
    let mut sums = [[0.0; J]; TILE_I];
    for chunk in (0..vectors).step_by(CHUNK / R::width::<S>()) {
        let mut sum = [[R::splat(s, R::ZERO); J]; TILE_I];
        let end = vectors.min(chunk + CHUNK / R::width::<S>());
        let whole = chunk + (end - chunk) / STEP * STEP;
        add::<R, S, DISTANCE, J, STEP>(
            s,
            x_i.map(|row| &row[chunk..whole]),
            x_j.map(|row| &row[chunk..whole]),
            &mut sum,
        );
        add::<R, S, DISTANCE, J, 1>(
            s,
            x_i.map(|row| &row[whole..end]),
            x_j.map(|row| &row[whole..end]),
            &mut sum,
        );
        for i in 0..TILE_I {
            for j in 0..J {
                sums[i][j] += R::reduce_sum(s, sum[i][j]).to_f64();
            }
        }
    }
    sums
}

/// Adds to the sums of a tile, `STEP` registers of each row at a time. There is one check of bounds
/// a step: all rows have the same number of steps.
#[inline(always)]
fn add<R: Real, S: Simd, const DISTANCE: bool, const J: usize, const STEP: usize>(
    s: S,
    x_i: [&[R::Of<S>]; TILE_I],
    x_j: [&[R::Of<S>]; J],
    sum: &mut [[R::Of<S>; J]; TILE_I],
) {
    let x_i = x_i.map(|row| row.as_chunks::<STEP>().0);
    let x_j = x_j.map(|row| row.as_chunks::<STEP>().0);
    let steps = x_i[0].len();
    assert!(x_i.iter().chain(&x_j).all(|row| row.len() == steps));
    let mut total = *sum;
    for step in 0..steps {
        unroll::<STEP>(
            #[inline(always)]
            |v| {
                let mut b = [R::splat(s, R::ZERO); J];
                unroll::<J>(
                    #[inline(always)]
                    |j| b[j] = x_j[j][step][v],
                );
                unroll::<TILE_I>(
                    #[inline(always)]
                    |i| {
                        let a = x_i[i][step][v];
                        unroll::<J>(
                            #[inline(always)]
                            |j| {
                                let (a, b) = if DISTANCE {
                                    let difference = R::vsub(s, a, b[j]);
                                    (difference, difference)
                                } else {
                                    (a, b[j])
                                };
                                total[i][j] = R::vmul_add(s, a, b, total[i][j]);
                            },
                        );
                    },
                );
            },
        );
    }
    *sum = total;
}

/// Fills a block of rows of a symmetric matrix from one triangle of it. The padding is 0.
pub(in crate::cpu) fn mirror<R: Real>(
    matrix: &[R],
    triangle: Triangle,
    stride: usize,
    n: usize,
    first: usize,
    out: &mut [R],
) {
    for row in out.chunks_exact_mut(stride) {
        row[n..].fill(R::ZERO);
    }
    let rows = out.len() / stride;
    for j0 in (0..n).step_by(BLOCK) {
        let columns = j0..n.min(j0 + BLOCK);
        let stored = match triangle {
            Triangle::Upper => j0 > first,
            Triangle::Lower => j0 < first,
        };
        for i in 0..rows {
            let row = &mut out[i * stride..][..n];
            let i = first + i;
            if j0 == first {
                for j in columns.clone() {
                    let here = i == j || (j > i) == (triangle == Triangle::Upper);
                    row[j] = if here {
                        matrix[i * stride + j]
                    } else {
                        matrix[j * stride + i]
                    };
                }
            } else if stored {
                row[columns.clone()].copy_from_slice(&matrix[i * stride..][columns.clone()]);
            } else {
                for j in columns.clone() {
                    row[j] = matrix[j * stride + i];
                }
            }
        }
    }
}

/// The whole matrix, `[N, row_stride(N)]`: ‖x_i − x_j‖² (`DISTANCE`) or ⟨x_i, x_j⟩. The padding is
/// 0.
pub(super) fn symmetric<R: Real, const DISTANCE: bool>(x: &Embeddings<R>) -> Result<Buffer<R>> {
    let mut matrix = upper::<R, DISTANCE>(x)?;
    mirror_upper(&mut matrix, row_stride::<R>(x.rows))?;
    Ok(matrix)
}

/// As [`symmetric`], but what is below the diagonal is not written.
pub(super) fn upper<R: Real, const DISTANCE: bool>(x: &Embeddings<R>) -> Result<Buffer<R>> {
    let stride = row_stride::<R>(x.rows);
    let mut matrix = Buffer::any(x.rows.saturating_mul(stride))?;
    for_each_block(&mut matrix, BLOCK * stride, &|block, out| {
        for row in out.chunks_exact_mut(stride) {
            row[x.rows..].fill(R::ZERO);
        }
        dispatch(PairSums::<_, DISTANCE> {
            x,
            triangle: Triangle::Upper,
            stride,
            first: block * BLOCK,
            out,
        });
    });
    Ok(matrix)
}

/// Fills what is below the diagonal from what is above it.
pub(super) fn mirror_upper<R: Real>(matrix: &mut [R], stride: usize) -> Result<()> {
    for_all_pairs(
        matrix,
        stride,
        SQUARE,
        |block| {
            for i in 0..block.rows {
                for j in 0..i {
                    block.data[i * stride + block.first + j] =
                        block.data[j * stride + block.first + i];
                }
            }
            Ok(0.0)
        },
        |a, b| {
            if a.first < b.first {
                transpose_into(b, a, stride);
            } else {
                transpose_into(a, b, stride);
            }
            Ok(0.0)
        },
    )?;
    Ok(())
}

/// Fills the square of two blocks below the diagonal from the square above it.
fn transpose_into<R: Real>(below: &mut Block<'_, R>, above: &Block<'_, R>, stride: usize) {
    for i0 in (0..below.rows).step_by(BLOCK) {
        let rows = BLOCK.min(below.rows - i0);
        for j0 in (0..above.rows).step_by(BLOCK) {
            let columns = BLOCK.min(above.rows - j0);
            // [j][i]. By way of a square of known size, there is one check of bounds a line.
            let mut square = [[R::ZERO; BLOCK]; BLOCK];
            for (j, line) in square.iter_mut().enumerate().take(columns) {
                let from = &above.data[(j0 + j) * stride + below.first + i0..];
                line[..rows].copy_from_slice(&from[..rows]);
            }
            for i in 0..rows {
                let to = &mut below.data[(i0 + i) * stride + above.first + j0..];
                for (to, line) in to[..columns].iter_mut().zip(&square) {
                    *to = line[i];
                }
            }
        }
    }
}
