//! A batch of embeddings in host memory, borrowed.

use crate::element::{Element, Real};
use crate::error::{Error, Result};

/// A row-major matrix `[rows, dim]` over a borrowed slice: one embedding a row.
///
/// ```
/// # fn main() -> relata::Result<()> {
/// let embeddings = [0.5f32, 1.0, -2.0, 0.0, 3.0, 1.5];
/// let rows = relata::Rows::new(&embeddings, [2, 3])?;
/// assert_eq!(rows.row(1), [0.0, 3.0, 1.5]);
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a, T> {
    data: &'a [T],
    rows: usize,
    dim: usize,
}

impl<'a, T: Element> Rows<'a, T> {
    /// Views `data` as `shape = [rows, dim]`.
    ///
    /// # Errors
    /// [`Error::Length`] if `data` does not hold `rows · dim` elements. Empty shapes are refused
    /// later, by the loss that cannot use them.
    pub fn new(data: &'a [T], shape: [usize; 2]) -> Result<Self> {
        let [rows, dim] = shape;
        // A product that overflows is no length any slice has.
        let expected = rows.saturating_mul(dim);
        if data.len() != expected {
            return Err(Error::Length {
                argument: "rows",
                expected,
                got: data.len(),
            });
        }
        Ok(Rows { data, rows, dim })
    }

    /// The whole rows in `data`; `dim` is not 0.
    pub(crate) fn of(data: &'a [T], dim: usize) -> Self {
        debug_assert_eq!(data.len() % dim, 0);
        Rows {
            data,
            rows: data.len() / dim,
            dim,
        }
    }

    /// `rows` rows of no elements.
    pub(crate) fn without_columns(rows: usize) -> Self {
        Rows {
            data: &[],
            rows,
            dim: 0,
        }
    }

    /// The number of rows, N.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows
    }

    /// Whether there are no rows.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// The number of elements in a row, D.
    #[must_use]
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// All elements, row after row.
    #[must_use]
    pub fn as_slice(&self) -> &'a [T] {
        self.data
    }

    /// One row.
    ///
    /// # Panics
    /// If `row` is not less than [`len`](Self::len), as indexing does.
    #[must_use]
    pub fn row(&self, row: usize) -> &'a [T] {
        // Not left to the slice: where `row * dim` wraps, it has a place there.
        assert!(row < self.rows, "row {row} of {}", self.rows);
        &self.data[row * self.dim..][..self.dim]
    }

    /// The rows, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &'a [T]> + use<'a, T> {
        // `chunks_exact` refuses 0; a matrix without columns has no elements to give either way.
        self.data.chunks_exact(self.dim.max(1))
    }

    /// The same rows as elements of the type that `T` is: for functions that are compiled once for
    /// each element type.
    pub(crate) fn cast<U: Element>(self) -> Rows<'a, U> {
        debug_assert_eq!(T::DTYPE, U::DTYPE);
        Rows {
            data: bytemuck::cast_slice(self.data),
            rows: self.rows,
            dim: self.dim,
        }
    }

    /// Refuses rows that hold a NaN or an infinity: the checked mode.
    ///
    /// # Errors
    /// [`Error::NotFinite`], naming `argument`, and the first such element.
    pub fn check_finite(&self, argument: &'static str) -> Result<()> {
        self.check_finite_where(argument, |_| true)
    }

    /// The same in the rows that `counts` picks.
    pub(crate) fn check_finite_where(
        &self,
        argument: &'static str,
        counts: impl Fn(usize) -> bool,
    ) -> Result<()> {
        let is_wrong = |&at: &usize| !self.data[at].to_f64().is_finite() && counts(at / self.dim);
        match (0..self.data.len()).find(is_wrong) {
            None => Ok(()),
            Some(at) => Err(Error::NotFinite {
                argument,
                row: at / self.dim,
                column: at % self.dim,
                got: self.data[at].to_f64(),
            }),
        }
    }
}

/// Scales `row` to length 1, or leaves it if it is zero. The arithmetic is f64, scaled so that no
/// row's square overflows or vanishes.
pub(crate) fn normalize_row<R: Real>(row: &mut [R]) {
    let largest = row.iter().fold(0.0, |m: f64, x| m.max(x.to_f64().abs()));
    if largest > 0.0 {
        let norm = row
            .iter()
            .map(|x| (x.to_f64() / largest).powi(2))
            .sum::<f64>()
            .sqrt();
        for x in row {
            *x = R::from_f64(x.to_f64() / largest / norm);
        }
    }
}
