//! What RKD needs to know of every pair of rows: ½d² and 1/d of student and teacher.

use pulp::{Simd, WithSimd};

use crate::cpu::buffer::Buffer;
use crate::cpu::embeddings::Embeddings;
use crate::cpu::pairwise::distances::{Distances, Side, most_inverse, vanishes};
use crate::cpu::pairwise::pair_sums::{BLOCK, PairSums, Triangle, mirror};
use crate::cpu::parallel::{for_each_block, try_map_blocks};
use crate::element::Real;
use crate::error::Result;
use crate::simd::{dispatch, row_stride};

/// A table has a multiple of this many rows. The last ones may be zero, as if their distances to
/// all others were 0.
pub(in crate::cpu) const ROWS: usize = 8;

/// Which of the four numbers of a pair of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cpu) enum PairField {
    /// ½d² of the student.
    StudentHalfSquare,
    /// 1/d of the student; 0 where d = 0.
    StudentInverse,
    /// ½d² of the teacher.
    TeacherHalfSquare,
    /// 1/d of the teacher; 0 where d = 0.
    TeacherInverse,
}

impl PairField {
    /// How many fields a pair has.
    const COUNT: usize = 4;

    /// 1/d of the side whose ½d² this is.
    pub(in crate::cpu) const fn inverse(self) -> Self {
        match self {
            PairField::StudentHalfSquare | PairField::StudentInverse => PairField::StudentInverse,
            PairField::TeacherHalfSquare | PairField::TeacherInverse => PairField::TeacherInverse,
        }
    }

    /// Whose rows it is about.
    pub(in crate::cpu) const fn side(self) -> Side {
        match self {
            PairField::StudentHalfSquare | PairField::StudentInverse => Side::Student,
            PairField::TeacherHalfSquare | PairField::TeacherInverse => Side::Teacher,
        }
    }

    /// The place of the field's line among the four lines of a group.
    #[inline(always)]
    pub(in crate::cpu) const fn line(self) -> usize {
        self as usize
    }
}

/// For every pair of rows h = ½d² and r = 1/d (0 where d = 0) of student and teacher.
///
/// The layout is `[rows, lines, 4, PAD]`. The columns of a row are cut into lines of `PAD`, and the
/// four lines of the same columns lie side by side, so that the penalties read a row as one stream.
/// Rows and columns from N on are zero.
pub(in crate::cpu) struct PairTable<R: Real> {
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
    /// The shortest distance that is not 0, of student or teacher; ∞ where there is none.
    shortest: f64,
    /// The longest distance over the shortest that is not 0, in student or teacher; at least 1.
    /// Infinite where the square of some 1/d overflows, or nearly so, and where that of some d
    /// vanishes.
    pub(in crate::cpu) spread: f64,
}

impl<R: Real> Distances<R> for PairTable<R> {
    fn new(x: &Embeddings<R>, y: &Embeddings<R>) -> Result<Self> {
        let n = x.rows;
        let stride = row_stride::<R>(n);
        // d²: the student's above the diagonal, the teacher's below.
        let mut squares = Buffer::<R>::any(n.saturating_mul(stride))?;
        for_each_block(&mut squares, BLOCK * stride, &|block, out| {
            let first = block * BLOCK;
            for (x, triangle) in [(x, Triangle::Upper), (y, Triangle::Lower)] {
                dispatch(PairSums::<_, true> {
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
        let used = &mut data[..n * 4 * stride];
        let extremes = try_map_blocks(used, BLOCK * 4 * stride, &|block, rows| {
            let mut mirrored = Buffer::any(rows.len() / 4)?;
            let mut of_rows = |x, triangle, half_square| {
                let first = block * BLOCK;
                mirror(squares, triangle, stride, n, first, &mut mirrored);
                let (longest, inverse_shortest) = dispatch(Roots {
                    squares: &mirrored,
                    half_square,
                    rows,
                });
                let mut mirrored = mirrored.chunks_exact(stride).enumerate();
                if mirrored.any(|(i, row)| vanishes(x, first + i, 0, &row[..n])) {
                    return (longest, f64::INFINITY);
                }
                (longest, inverse_shortest)
            };
            Ok([
                of_rows(x, Triangle::Upper, PairField::StudentHalfSquare),
                of_rows(y, Triangle::Lower, PairField::TeacherHalfSquare),
            ])
        })?;
        let extremes: [(f64, f64); 2] = [0, 1].map(|side| {
            extremes
                .iter()
                .map(|block| block[side])
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
        Ok(PairTable {
            data,
            rows: n.next_multiple_of(ROWS),
            lines: stride / R::PAD,
            used_lines: n.div_ceil(R::PAD),
            longest: extremes.map(|(longest, _)| longest),
            shortest: 1.0 / extremes[0].1.max(extremes[1].1),
            spread,
        })
    }

    fn longest(&self, side: Side) -> f64 {
        self.longest[side as usize]
    }

    fn shortest(&self) -> f64 {
        self.shortest
    }

    fn are_within(&self, side: Side, i: usize, j: usize, apart: f64) -> bool {
        let inverse = match side {
            Side::Student => PairField::StudentInverse,
            Side::Teacher => PairField::TeacherInverse,
        };
        let inverse = self.get(i, j, inverse).to_f64();
        inverse == 0.0 || inverse * apart >= 1.0
    }
}

impl<R: Real> PairTable<R> {
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
    pub(in crate::cpu) fn get(&self, i: usize, j: usize, field: PairField) -> R {
        self.row(i)[Self::at(j, field)]
    }

    /// One number of the `PAD` pairs from j on, a multiple of `PAD`.
    #[inline(always)]
    pub(in crate::cpu) fn line(&self, i: usize, j: usize, field: PairField) -> &[R] {
        &self.row(i)[Self::at(j, field)..][..R::PAD]
    }

    /// Where a number of the pair with row j lies in a row.
    #[inline(always)]
    fn at(j: usize, field: PairField) -> usize {
        (j / R::PAD * PairField::COUNT + field.line()) * R::PAD + j % R::PAD
    }

    /// Replaces 1/d of student and teacher in row i, and returns the old numbers.
    pub(in crate::cpu) fn replace_inverses(
        &mut self,
        i: usize,
        j: usize,
        inverses: [R; 2],
    ) -> [R; 2] {
        let start = i * 4 * self.stride();
        let mut replace =
            |field, inverse| std::mem::replace(&mut self.data[start + Self::at(j, field)], inverse);
        [
            replace(PairField::StudentInverse, inverses[0]),
            replace(PairField::TeacherInverse, inverses[1]),
        ]
    }
}

/// Writes h and r of rows of d² to the fields of student or teacher. Returns the largest d and the
/// largest 1/d.
struct Roots<'a, R> {
    /// `[rows, stride]`
    squares: &'a [R],
    /// Where h goes. The line of r is the next one.
    half_square: PairField,
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
            let at = (v / per_line * 4 + self.half_square.line()) * per_line + v % per_line;
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
