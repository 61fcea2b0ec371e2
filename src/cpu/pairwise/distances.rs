//! The distances of all pairs of rows, and rows that are fit for them.

use crate::batch::Batch;
use crate::cpu::embeddings::{Embeddings, RowScaling};
use crate::element::{DType, Element, Real};
use crate::error::Result;
use crate::loss::duplicate_distance;

/// Whose rows.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::cpu) enum Side {
    Student,
    Teacher,
}

/// What is known of all pairs of rows of student and teacher.
pub(in crate::cpu) trait Distances<R: Real>: Sized {
    /// Of the rows x of the student and y of the teacher.
    fn new(x: &Embeddings<R>, y: &Embeddings<R>) -> Result<Self>;

    /// The longest distance.
    fn longest(&self, side: Side) -> f64;

    /// The shortest distance that is not 0, of student or teacher; ∞ where there is none.
    fn shortest(&self) -> f64;

    /// Whether rows i and j are at most `apart` from one another.
    fn are_within(&self, side: Side, i: usize, j: usize, apart: f64) -> bool;
}

/// The rows of a batch with their distances, or why there are none.
#[expect(clippy::large_enum_variant, reason = "made once in an evaluation")]
pub(in crate::cpu) enum Measured<R: Real, D> {
    /// Rows of student and teacher, and the distances.
    Rows(Embeddings<R>, Embeddings<R>, D),
    /// An input is not finite.
    NotFinite,
    /// Rows lie so close together that f32 is not enough.
    NeedsF64,
}

/// Reads the rows and measures all distances. In f64 squares that vanish are avoided, and unit rows
/// that are duplicates become equal.
pub(in crate::cpu) fn measure<T: Element, R: Real, D: Distances<R>>(
    batch: Batch<'_, T>,
    scaling: RowScaling,
) -> Result<Measured<R, D>> {
    let Some((mut x, mut y)) = Embeddings::<R>::both(batch, scaling)? else {
        return Ok(Measured::NotFinite);
    };
    let mut distances = D::new(&x, &y)?;
    if R::DTYPE == DType::F64 && scaling == RowScaling::Scaled {
        // The largest element is about 1. Where the longest distance is so short, squares vanish.
        let vanish = |side| distances.longest(side) < 2f64.powi(-400);
        let sides = [
            (&mut x, vanish(Side::Student)),
            (&mut y, vanish(Side::Teacher)),
        ];
        if sides[0].1 || sides[1].1 {
            for (rows, _) in sides.into_iter().filter(|&(_, vanish)| vanish) {
                rows.subtract_common_part();
            }
            distances = D::new(&x, &y)?;
        }
    }
    if matches!(scaling, RowScaling::Normalized { .. }) {
        let apart = duplicate_distance::<T>();
        // In f32 the rounding of unit rows may double a distance this short.
        if R::DTYPE == DType::F32 && distances.shortest() <= 2.0 * apart {
            return Ok(Measured::NeedsF64);
        }
        if distances.shortest() <= apart {
            x.unite_duplicates(|i, j| distances.are_within(Side::Student, i, j, apart));
            y.unite_duplicates(|i, j| distances.are_within(Side::Teacher, i, j, apart));
            distances = D::new(&x, &y)?;
        }
    }
    Ok(Measured::Rows(x, y, distances))
}

/// Whether some d² of row i and the rows from `first` on is 0 although the two rows differ.
pub(in crate::cpu) fn vanishes<R: Real>(
    x: &Embeddings<R>,
    i: usize,
    first: usize,
    squares: &[R],
) -> bool {
    let own = usize::from((first..first + squares.len()).contains(&i));
    // Few rows have a 0 beside their own.
    let zeros = squares.iter().filter(|&&d2| d2 == R::ZERO).count();
    let differs = |(k, &d2): (usize, &R)| d2 == R::ZERO && x.row(i) != x.row(first + k);
    zeros > own && squares.iter().enumerate().any(differs)
}

/// The largest 1/d whose square, and that of d, are far from the ends of the range.
pub(in crate::cpu) fn most_inverse<R: Real>() -> f64 {
    match R::DTYPE {
        DType::F64 => 2f64.powi(500),
        _ => 2f64.powi(60),
    }
}
