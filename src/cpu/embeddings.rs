//! A batch in the form that the kernels read: padded rows of reals, scaled or normalised.

use std::ops::Range;

use pulp::{Simd, WithSimd};

use super::buffer::Buffer;
use super::parallel::{for_each_block, map_blocks};
use super::sums::{dot, sum_of};
use crate::batch::Batch;
use crate::element::{DType, Element, Real};
use crate::error::Result;
use crate::rows::Rows;
use crate::simd::{dispatch, row_stride};

/// Rows a task works on.
const BLOCK: usize = 16;

/// `[N, stride]`, each row padded with zeros to whole registers.
pub(crate) struct Embeddings<R: Real> {
    pub(crate) data: Buffer<R>,
    pub(crate) rows: usize,
    pub(crate) dim: usize,
    pub(crate) stride: usize,
    /// The factor that the elements were multiplied by, unless they were normalised.
    pub(crate) scale: f64,
    /// The lengths the rows had, if they were normalised, and ε.
    norms: Option<(Vec<f64>, f64)>,
    /// Whether every element is finite.
    finite: bool,
}

/// What is done to the rows when they are read.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum RowScaling {
    /// As they are.
    Raw,
    /// Times the power of two that brings the largest element to [1, 2): exact, and no square of a
    /// difference overflows or vanishes. For losses that do not depend on scale.
    Scaled,
    /// Divided by their length and ε; a zero row stays zero.
    Normalized {
        /// ε; 0 for rows of length 1.
        epsilon: f64,
    },
}

impl RowScaling {
    /// Normalised, or as they are.
    pub(crate) fn normalized_if(normalize: bool) -> Self {
        if normalize {
            RowScaling::Normalized { epsilon: 0.0 }
        } else {
            RowScaling::Raw
        }
    }
}

impl<R: Real> Embeddings<R> {
    pub(crate) fn new<T: Element>(rows: Rows<'_, T>, scaling: RowScaling) -> Result<Self> {
        Ok(Self::read(rows, scaling, Self::memory(rows)?))
    }

    /// Student and teacher, read at the same time. `None` if an element of them is not finite.
    pub(crate) fn both<T: Element>(
        batch: Batch<'_, T>,
        scaling: RowScaling,
    ) -> Result<Option<(Self, Self)>> {
        // This thread takes all memory: a buffer goes back to the pool of the thread that drops it.
        let x = Self::memory(batch.student)?;
        let y = Self::memory(batch.teacher)?;
        let (x, y) = rayon::join(
            || Self::read(batch.student, scaling, x),
            || Self::read(batch.teacher, scaling, y),
        );
        Ok((x.finite && y.finite).then_some((x, y)))
    }

    /// The columns of these numbers, each row times its factor, a power of two.
    pub(crate) fn of_columns<T: Element>(
        rows: Rows<'_, T>,
        columns: Range<usize>,
        scales: &[f64],
    ) -> Result<Self> {
        let dim = columns.len();
        let stride = row_stride::<R>(dim);
        let mut data = Buffer::any(rows.len().saturating_mul(stride))?;
        for_each_block(&mut data, stride, &|i, out| {
            widen(&rows.row(i)[columns.clone()], &mut out[..dim]);
            out[dim..].fill(R::ZERO);
            dispatch(Scale(out, R::from_f64(scales[i])));
        });
        Ok(Embeddings {
            data,
            rows: rows.len(),
            dim,
            stride,
            scale: 1.0,
            norms: None,
            finite: true,
        })
    }

    /// Whether every element was finite.
    pub(crate) fn is_finite(&self) -> bool {
        self.finite
    }

    fn memory<T: Element>(rows: Rows<'_, T>) -> Result<Buffer<R>> {
        Buffer::any(rows.len().saturating_mul(row_stride::<R>(rows.dim())))
    }

    fn read<T: Element>(rows: Rows<'_, T>, scaling: RowScaling, mut data: Buffer<R>) -> Self {
        let (n, dim) = (rows.len(), rows.dim());
        let stride = row_stride::<R>(dim);
        let extremes: Vec<(f64, bool)> = map_blocks(&mut data, BLOCK * stride, &|block, out| {
            for (i, out) in out.chunks_exact_mut(stride).enumerate() {
                widen(rows.row(block * BLOCK + i), &mut out[..dim]);
                out[dim..].fill(R::ZERO);
            }
            dispatch(Extremes(out))
        });
        let finite = extremes.iter().all(|&(_, finite)| finite);
        let largest = extremes
            .iter()
            .fold(0.0f64, |m, &(largest, _)| m.max(largest));

        let mut scale = 1.0;
        let mut norms = None;
        match scaling {
            RowScaling::Scaled if finite && largest > 0.0 => {
                scale = power_of_two_below::<R>(largest).recip();
                for_each_block(&mut data, BLOCK * stride, &|_, data| {
                    dispatch(Scale(data, R::from_f64(scale)));
                });
            }
            RowScaling::Raw | RowScaling::Scaled => {}
            RowScaling::Normalized { epsilon } => {
                let lengths = map_blocks(&mut data, stride, &|_, row| normalize(row, epsilon));
                norms = Some((lengths, epsilon));
            }
        }
        Embeddings {
            data,
            rows: n,
            dim,
            stride,
            scale,
            norms,
            finite,
        }
    }

    pub(crate) fn row(&self, i: usize) -> &[R] {
        &self.data[i * self.stride..][..self.stride]
    }

    /// What the elements of row i as they came were multiplied by.
    pub(crate) fn factor(&self, i: usize) -> f64 {
        match &self.norms {
            None => self.scale,
            Some((norms, epsilon)) if norms[i] > 0.0 => 1.0 / (norms[i] + epsilon),
            Some(_) => 0.0,
        }
    }

    /// Subtracts what all rows have in common, where that is exact, and scales the rest. Between rows
    /// that agree in nearly all digits a square vanishes that does not do so afterwards.
    ///
    /// A column whose elements are within a factor of 2 of one another loses its first element. All
    /// others are no longer than their differences.
    pub(crate) fn subtract_common_part(&mut self) {
        for d in 0..self.dim {
            let first = self.data[d];
            let column = || self.data.iter().skip(d).step_by(self.stride);
            let is_common = |x: &R| (0.5..=2.0).contains(&(x.to_f64() / first.to_f64()));
            if column().all(is_common) {
                let column = self.data.iter_mut().skip(d).step_by(self.stride);
                column.for_each(|x| *x = *x - first);
            }
        }
        let (largest, _) = dispatch(Extremes(&self.data));
        if largest > 0.0 {
            let scale = power_of_two_below::<R>(largest).recip();
            dispatch(Scale(&mut self.data, R::from_f64(scale)));
            self.scale *= scale;
        }
    }

    /// Each row that is a duplicate of one before it becomes that row. A row is only compared with
    /// rows that are no duplicates themselves.
    pub(crate) fn unite_duplicates(&mut self, are_duplicates: impl Fn(usize, usize) -> bool) {
        let mut distinct: Vec<usize> = Vec::new();
        for i in 0..self.rows {
            match distinct.iter().find(|&&j| are_duplicates(i, j)) {
                Some(&j) => {
                    let row = j * self.stride..(j + 1) * self.stride;
                    self.data.copy_within(row, i * self.stride);
                }
                None => distinct.push(i),
            }
        }
    }

    /// The rows less their mean.
    pub(crate) fn centred(&self) -> Result<Buffer<R>> {
        let mut mean = vec![0.0; self.stride];
        for row in self.data.chunks_exact(self.stride) {
            for (mean, x) in mean.iter_mut().zip(row) {
                *mean += x.to_f64();
            }
        }
        let mean: Vec<R> = mean
            .iter()
            .map(|m| R::from_f64(m / self.rows as f64))
            .collect();
        let mut centred = Buffer::any(self.data.len())?;
        for_each_block(&mut centred, self.stride, &|i, out| {
            for ((out, &x), &mean) in out.iter_mut().zip(self.row(i)).zip(&mean) {
                *out = x - mean;
            }
        });
        Ok(centred)
    }

    /// Turns the gradient g with respect to the scaled or normalised row i into that of the row as
    /// it came, times `factor`: (g − ⟨g,z⟩z)/‖x‖ if rows were normalised (0 for a zero row; with ε as
    /// z = x/(‖x‖ + ε) has it), and scale · g if not.
    pub(crate) fn write_gradient<G: Real>(&self, i: usize, factor: f64, g: &[R], out: &mut [G]) {
        let (factor, along) = match &self.norms {
            None => (factor * self.scale, 0.0),
            Some((norms, epsilon)) if norms[i] > 0.0 => {
                let (length, z) = (norms[i] + epsilon, self.row(i));
                (factor / length, dot(g, z) * (length / norms[i]))
            }
            Some(_) => return out.fill(G::ZERO),
        };
        for ((out, g), z) in out.iter_mut().zip(g).zip(self.row(i)) {
            *out = G::from_f64(factor * (g.to_f64() - along * z.to_f64()));
        }
    }
}

/// The elements as `R`; exact unless they are f64 and `R` is not.
fn widen<T: Element, R: Real>(elements: &[T], out: &mut [R]) {
    if R::DTYPE == <T::Real as Element>::DTYPE {
        T::widen(elements, bytemuck::cast_slice_mut(out));
    } else {
        for (out, x) in out.iter_mut().zip(elements) {
            *out = R::from_f64(x.to_f64());
        }
    }
}

/// Divides a row by its length and ε, and returns the length, which is summed in f64. A row whose
/// squares overflow or vanish is scaled for the sum.
fn normalize<R: Real>(row: &mut [R], epsilon: f64) -> f64 {
    let norm_by = |unit: f64| unit * sum_of(row, row, |a, _| (a / unit).powi(2)).sqrt();
    let mut norm = dot(row, row).sqrt();
    if !(1e-140..1e140).contains(&norm) {
        let largest = row.iter().fold(0.0f64, |m, x| m.max(x.to_f64().abs()));
        if largest == 0.0 {
            return 0.0;
        }
        norm = norm_by(largest);
    }
    dispatch(Divide(row, norm + epsilon));
    norm
}

/// Divides all elements.
struct Divide<'a, R>(&'a mut [R], f64);

impl<R: Real> WithSimd for Divide<'_, R> {
    type Output = ();

    // The compiler makes vectors of it: pulp has no conversion between f32 and f64.
    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        for x in self.0 {
            *x = R::from_f64(x.to_f64() / self.1);
        }
    }
}

/// The largest power of two that is at most x, for x within the range where it and its inverse are
/// normal numbers of `R`; else the end of that range.
pub(in crate::cpu) fn power_of_two_below<R: Real>(x: f64) -> f64 {
    const EXPONENT: u64 = 0x7ff << 52;
    let most = match R::DTYPE {
        DType::F64 => 2f64.powi(1000),
        _ => 2f64.powi(126),
    };
    f64::from_bits(x.to_bits() & EXPONENT).clamp(most.recip(), most)
}

/// The largest |x|, and whether all x are finite.
struct Extremes<'a, R>(&'a [R]);

impl<R: Real> WithSimd for Extremes<'_, R> {
    type Output = (f64, bool);

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) -> (f64, bool) {
        let zero = R::splat(s, R::ZERO);
        let (mut largest, mut zeros) = (zero, zero);
        for &x in R::vectors::<S>(self.0) {
            largest = R::vmax(s, largest, R::vmax(s, x, R::vsub(s, zero, x)));
            // x · 0 is 0, or NaN if x is not finite.
            zeros = R::vmul_add(s, x, zero, zeros);
        }
        (
            R::reduce_max(s, largest).to_f64(),
            R::reduce_sum(s, zeros).to_f64() == 0.0,
        )
    }
}

/// Multiplies all elements.
struct Scale<'a, R>(&'a mut [R], R);

impl<R: Real> WithSimd for Scale<'_, R> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let factor = R::splat(s, self.1);
        for x in R::vectors_mut::<S>(self.0) {
            *x = R::vmul(s, *x, factor);
        }
    }
}
