//! The pairwise relation: all distances of a batch, from differences.

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use crate::cpu::buffer::Buffer;
use crate::cpu::embeddings::{Embeddings, RowScaling};
use crate::element::{DType, Element, Real};
use crate::error::Result;
use crate::loss::Relation;
use crate::rows::Rows;
use crate::simd::{by_fours, dispatch, row_stride, unroll};

/// Relations have a multiple of this many rows; the last ones may be zero, as if their distances to
/// all others were 0.
pub(in crate::cpu) const ROWS: usize = 8;
/// Rows a task works on. Also the side of the squares that matrices are transposed by.
pub(in crate::cpu) const BLOCK: usize = 16;
/// Rows i and j of the tile of pairs whose sums are held in registers.
const TILE_I: usize = 4;
const TILE_J: usize = 3;
/// Elements summed in R before the sum moves on to f64. Each lane adds up at most 32 of them in f32,
/// which keeps the sum's error below that of its rounding to f32.
const CHUNK: usize = 512;

/// Which of the four numbers of a pair of rows: see [`Relations`].
pub(in crate::cpu) const H_X: usize = 0;
pub(in crate::cpu) const R_X: usize = 1;
pub(in crate::cpu) const H_Y: usize = 2;
pub(in crate::cpu) const R_Y: usize = 3;

/// The distances of student and teacher. For every pair of rows h = ½d² and r = 1/d (0 where d = 0) of
/// both.
///
/// `[rows, lines, 4, PAD]`: the columns of a row in lines of `PAD`, and side by side the four lines
/// that belong together, so that the penalties read a row as one stream. Rows and columns from N on
/// are zero.
pub(in crate::cpu) struct Relations<R: Real> {
    data: Buffer<R>,
    /// N, or the next multiple of [`ROWS`].
    pub(in crate::cpu) rows: usize,
    /// Lines in a row, by which rows lie apart; a matrix with one number a pair has rows of
    /// `lines · PAD`.
    lines: usize,
    /// Lines in a row that hold the columns up to N.
    pub(in crate::cpu) used_lines: usize,
    /// The longest distance of student and teacher.
    longest: [f64; 2],
    /// The longest distance over the shortest that is not 0, in student or teacher; at least 1. Infinite
    /// where the square of some 1/d overflows, or nearly so, and in f32 where that of some d vanishes.
    pub(in crate::cpu) spread: f64,
}

impl<R: Real> Relations<R> {
    pub(in crate::cpu) fn new(x: &Embeddings<R>, y: &Embeddings<R>) -> Result<Self> {
        let n = x.rows;
        let stride = row_stride::<R>(n);
        // d²: the student's above the diagonal, the teacher's below.
        let mut squares = Buffer::<R>::any(n.saturating_mul(stride))?;
        squares
            .par_chunks_mut(BLOCK * stride)
            .enumerate()
            .for_each(|(block, out)| {
                let first = block * BLOCK;
                for (x, triangle) in [(x, Triangle::Upper), (y, Triangle::Lower)] {
                    dispatch(Pairs::<_, true> {
                        x,
                        triangle,
                        stride,
                        first,
                        out,
                    });
                }
            });
        let squares = &*squares;
        let mut data = Buffer::any(4usize.saturating_mul(Self::size(n)))?;
        data[n * 4 * stride..].fill(R::ZERO);
        let extremes: Vec<[(f64, f64); 2]> = data[..n * 4 * stride]
            .par_chunks_mut(BLOCK * 4 * stride)
            .enumerate()
            .map(|(block, rows)| {
                let mut mirrored = Buffer::any(rows.len() / 4)?;
                let mut of_rows = |x, triangle, place| {
                    let first = block * BLOCK;
                    mirror(squares, triangle, stride, n, first, &mut mirrored);
                    let (longest, inverse_shortest) = dispatch(Roots {
                        squares: &mirrored,
                        place,
                        rows,
                    });
                    if R::DTYPE == DType::F32 && vanishes(x, &mirrored, stride, first) {
                        return (longest, f64::INFINITY);
                    }
                    (longest, inverse_shortest)
                };
                Ok([
                    of_rows(x, Triangle::Upper, H_X),
                    of_rows(y, Triangle::Lower, H_Y),
                ])
            })
            .collect::<Result<_>>()?;
        let extremes = [0, 1].map(|which| {
            extremes
                .iter()
                .map(|of| of[which])
                .fold((0.0f64, 0.0f64), |a, b| (a.0.max(b.0), a.1.max(b.1)))
        });
        let spread = extremes
            .iter()
            .fold(1.0f64, |spread, &(longest, inverse_shortest)| {
                if inverse_shortest > most_inverse::<R>() {
                    return f64::INFINITY;
                }
                spread.max(longest * inverse_shortest)
            });
        Ok(Relations {
            data,
            rows: n.next_multiple_of(ROWS),
            lines: stride / R::PAD,
            used_lines: n.div_ceil(R::PAD),
            longest: extremes.map(|(longest, _)| longest),
            spread,
        })
    }

    /// How many elements a matrix with one number a pair takes.
    pub(in crate::cpu) fn size(n: usize) -> usize {
        n.next_multiple_of(ROWS).saturating_mul(row_stride::<R>(n))
    }

    /// The distance between rows of a matrix with one number a pair.
    pub(in crate::cpu) fn stride(&self) -> usize {
        self.lines * R::PAD
    }

    /// A row, `[lines, 4, PAD]`.
    #[inline(always)]
    pub(in crate::cpu) fn row(&self, i: usize) -> &[R] {
        &self.data[i * 4 * self.stride()..][..4 * self.stride()]
    }

    /// One number of one pair.
    #[inline(always)]
    pub(in crate::cpu) fn get(&self, i: usize, j: usize, which: usize) -> R {
        self.row(i)[Self::at(j, which)]
    }

    /// Where a number of the pair with row j lies in a row.
    #[inline(always)]
    fn at(j: usize, which: usize) -> usize {
        (j / R::PAD * 4 + which) * R::PAD + j % R::PAD
    }

    /// Whether two rows that differ are closer than 1/`limit` of the longest distance, in student or teacher, or so close that
    /// the square of 1/d overflows.
    pub(in crate::cpu) fn is_close(&self, i: usize, j: usize, limit: f64) -> bool {
        [R_X, R_Y]
            .into_iter()
            .zip(self.longest)
            .any(|(which, longest)| {
                let inverse = self.get(i, j, which).to_f64();
                inverse * longest > limit || inverse > most_inverse::<R>()
            })
    }

    /// Puts others in the places of 1/d of student and teacher in row i, and gives those that were there.
    pub(in crate::cpu) fn replace_inverses(
        &mut self,
        i: usize,
        j: usize,
        inverses: [R; 2],
    ) -> [R; 2] {
        let start = i * 4 * self.stride();
        let mut replace =
            |which, inverse| std::mem::replace(&mut self.data[start + Self::at(j, which)], inverse);
        [replace(R_X, inverses[0]), replace(R_Y, inverses[1])]
    }
}

/// Whether some d² of a block of rows is 0 although the two rows differ.
fn vanishes<R: Real>(x: &Embeddings<R>, squares: &[R], stride: usize, first: usize) -> bool {
    squares.chunks_exact(stride).enumerate().any(|(i, row)| {
        let row = &row[..x.rows];
        // The row's own is one; few rows have others.
        let zeros = row.iter().filter(|&&d2| d2 == R::ZERO).count();
        let differs = |j: usize| row[j] == R::ZERO && x.row(first + i) != x.row(j);
        zeros > 1 && (0..x.rows).any(differs)
    })
}

/// The largest 1/d whose square, and that of d, are far from the ends of the range.
fn most_inverse<R: Real>() -> f64 {
    match R::DTYPE {
        DType::F64 => 2f64.powi(500),
        _ => 2f64.powi(60),
    }
}

/// The relation of every two rows, `[N, N]`.
pub(crate) fn relation_matrix<T: Element>(
    relation: Relation,
    rows: Rows<'_, T>,
    matrix: &mut [T::Real],
) -> Result<()> {
    let entry = match relation {
        Relation::Distance | Relation::SquaredDistance => RowScaling::Scaled,
        Relation::Dot => RowScaling::Raw,
        Relation::Cosine => RowScaling::Normalized,
    };
    let x = &Embeddings::<T::Real>::new(rows, entry)?;
    let n = x.rows;
    let stride = row_stride::<T::Real>(n);
    let mut upper = Buffer::any(n.saturating_mul(stride))?;
    upper
        .par_chunks_mut(BLOCK * stride)
        .enumerate()
        .for_each(|(block, out)| {
            let first = block * BLOCK;
            match relation {
                Relation::Distance | Relation::SquaredDistance => {
                    dispatch(Pairs::<_, true> {
                        x,
                        triangle: Triangle::Upper,
                        stride,
                        first,
                        out,
                    });
                }
                Relation::Dot | Relation::Cosine => {
                    dispatch(Pairs::<_, false> {
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
    matrix
        .par_chunks_mut(BLOCK * n)
        .enumerate()
        .try_for_each(|(block, out)| {
            let mut rows = Buffer::any(out.len() / n * stride)?;
            mirror(upper, Triangle::Upper, stride, n, block * BLOCK, &mut rows);
            for (out, row) in out.chunks_exact_mut(n).zip(rows.chunks_exact(stride)) {
                for (out, &r) in out.iter_mut().zip(row) {
                    *out = T::Real::from_f64(match relation {
                        Relation::Distance => r.to_f64().sqrt() / x.scale,
                        Relation::SquaredDistance => r.to_f64() / x.scale / x.scale,
                        Relation::Dot | Relation::Cosine => r.to_f64(),
                    });
                }
            }
            Ok(())
        })
}

/// Which half of a symmetric matrix.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Triangle {
    /// Columns from the row's own on.
    Upper,
    /// Columns before the row's own.
    Lower,
}

/// Squared distances, or products, of a block of rows with the rows of a triangle.
struct Pairs<'a, R: Real, const DISTANCE: bool> {
    x: &'a Embeddings<R>,
    triangle: Triangle,
    stride: usize,
    first: usize,
    out: &'a mut [R],
}

impl<R: Real, const DISTANCE: bool> WithSimd for Pairs<'_, R, DISTANCE> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Pairs {
            x,
            triangle,
            stride,
            first,
            out,
        } = self;
        let n = x.rows;
        let rows = out.len() / stride;
        // Tiles at the edge repeat the last row; what comes of it is not stored.
        let row = |i: usize| R::vectors::<S>(x.used(i.min(n - 1)));
        for i0 in (0..rows).step_by(TILE_I) {
            let x_i: [_; TILE_I] = std::array::from_fn(|t| row(first + i0 + t));
            let columns = match triangle {
                Triangle::Upper => first + i0..n,
                Triangle::Lower => 0..n.min(first + i0 + TILE_I),
            };
            for j0 in columns.step_by(TILE_J) {
                let x_j: [_; TILE_J] = std::array::from_fn(|t| row(j0 + t));
                let sums = tile::<R, S, DISTANCE>(s, x_i, x_j);
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

/// ‖x_i − x_j‖², or ⟨x_i, x_j⟩, for a tile of pairs.
#[inline(always)]
fn tile<R: Real, S: Simd, const DISTANCE: bool>(
    s: S,
    x_i: [&[R::Of<S>]; TILE_I],
    x_j: [&[R::Of<S>]; TILE_J],
) -> [[f64; TILE_J]; TILE_I] {
    let vectors = x_i[0].len();
    assert!(x_i.iter().chain(&x_j).all(|row| row.len() == vectors));
    let mut sums = [[0.0; TILE_J]; TILE_I];
    for chunk in (0..vectors).step_by(CHUNK / R::width::<S>()) {
        let mut sum = [[R::splat(s, R::ZERO); TILE_J]; TILE_I];
        let end = vectors.min(chunk + CHUNK / R::width::<S>());
        by_fours(
            chunk..end,
            #[inline(always)]
            |v| {
                let mut b = [R::splat(s, R::ZERO); TILE_J];
                unroll::<TILE_J>(
                    #[inline(always)]
                    |j| b[j] = x_j[j][v],
                );
                unroll::<TILE_I>(
                    #[inline(always)]
                    |i| {
                        let a = x_i[i][v];
                        unroll::<TILE_J>(
                            #[inline(always)]
                            |j| {
                                let (a, b) = if DISTANCE {
                                    let difference = R::vsub(s, a, b[j]);
                                    (difference, difference)
                                } else {
                                    (a, b[j])
                                };
                                sum[i][j] = R::vmul_add(s, a, b, sum[i][j]);
                            },
                        );
                    },
                );
            },
        );
        for i in 0..TILE_I {
            for j in 0..TILE_J {
                sums[i][j] += R::reduce_sum(s, sum[i][j]).to_f64();
            }
        }
    }
    sums
}

/// Fills a block of rows of a symmetric matrix from a triangle of it; the padding is 0.
fn mirror<R: Real>(
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

/// Writes h and r of rows of d² to the places of student or teacher; gives the largest d and the
/// largest 1/d.
struct Roots<'a, R> {
    /// `[rows, stride]`
    squares: &'a [R],
    /// The place of h; that of r is the next.
    place: usize,
    rows: &'a mut [R],
}

impl<R: Real> WithSimd for Roots<'_, R> {
    type Output = (f64, f64);

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) -> (f64, f64) {
        let zero = R::splat(s, R::ZERO);
        let one = R::splat(s, R::ONE);
        let one_half = R::splat(s, R::from_f64(0.5));
        let (mut longest, mut inverse_shortest) = (zero, zero);
        let squares = R::vectors::<S>(self.squares);
        let rows = R::vectors_mut::<S>(self.rows);
        let per_line = R::PAD / R::width::<S>();
        for v in 0..squares.len() {
            let at = (v / per_line * 4 + self.place) * per_line + v % per_line;
            let distance = R::vsqrt(s, squares[v]);
            let inverse = R::if_positive(s, distance, R::vdiv(s, one, distance), zero);
            let h = R::vmul(s, one_half, squares[v]);
            // All triples of an edge share the rounding of its r: a step of Newton's method,
            // r + r (½ − h r²) with h r as it is before it is rounded, leaves one of the two.
            let hr = R::vmul(s, h, inverse);
            let minus_rest = R::vneg_mul_add(s, h, inverse, hr);
            let residue = R::vneg_mul_add(s, hr, inverse, one_half);
            let residue = R::vmul_add(s, minus_rest, inverse, residue);
            let inverse = R::vmul_add(s, inverse, residue, inverse);
            rows[at] = h;
            rows[at + per_line] = inverse;
            longest = R::vmax(s, longest, distance);
            inverse_shortest = R::vmax(s, inverse_shortest, inverse);
        }
        (
            R::reduce_max(s, longest).to_f64(),
            R::reduce_max(s, inverse_shortest).to_f64(),
        )
    }
}
