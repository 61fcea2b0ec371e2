//! Pairs of rows that are too close for the law of cosines.
//!
//! Where a pair is much closer than the longest distance, the law of cosines has no digits left for
//! the angles at the pair, even in f64. The triples of such pairs are formed from edges instead, as
//! the definition has them:
//!
//! ```text
//! mask: set 1/d of each close pair to 0              the law of cosines then adds nothing for a
//! run the law of cosines over all triples            triple with that pair as an edge to the vertex
//! drop the mask: restore 1/d
//! for each vertex j with close ends, for each close end i, for each row k ≠ j:
//!     add the triple (i, j, k) from the edges x_i − x_j and x_k − x_j
//! ```
//!
//! The second part takes O(N D) for each close pair.

use std::ops::Deref;

use pulp::{Simd, WithSimd};

use crate::cpu::buffer::Buffer;
use crate::cpu::embeddings::Embeddings;
use crate::cpu::pairwise::pair_table::PairTable;
use crate::cpu::parallel::try_map;
use crate::element::Real;
use crate::error::{Error, Result};
use crate::simd::dispatch;

/// How many sets of vertices are summed separately. The number is fixed, so that the sums are the
/// same on any number of threads.
const SETS: usize = 16;

/// The close pairs of a batch.
pub(in crate::cpu) struct ClosePairs {
    /// The rows that are close to a row, in order, row by row.
    close: Vec<usize>,
    /// Where those of a row begin; N + 1.
    starts: Vec<usize>,
}

impl ClosePairs {
    /// Finds the pairs closer than 1/`limit` of the longest distance, in student or teacher.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]
    pub(in crate::cpu) fn find<R: Real>(
        table: &PairTable<R>,
        n: usize,
        limit: f64,
    ) -> Result<Self> {
        let (mut close, mut starts) = (Vec::new(), vec![0]);
        for i in 0..n {
            for j in (0..n).filter(|&j| table.is_close(i, j, limit)) {
                close.try_reserve(1).map_err(|_| Error::OutOfMemory {
                    argument: "workspace",
                    bytes: (close.len() + 1).saturating_mul(size_of::<usize>()),
                })?;
                close.push(j);
            }
            starts.push(close.len());
        }
        Ok(ClosePairs { close, starts })
    }

    /// Sets 1/d of these pairs to 0 until the mask is dropped.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]; the table is as it was then.
    pub(in crate::cpu) fn mask<'a, R: Real>(
        &'a self,
        table: &'a mut PairTable<R>,
    ) -> Result<Mask<'a, R>> {
        let mut mask = Mask {
            inverses: Buffer::zeros(2 * self.close.len())?,
            pairs: self,
            table,
        };
        mask.swap();
        Ok(mask)
    }

    /// The sum of the penalties of the triples that have one of these pairs as an edge to the
    /// vertex, and its derivatives by the student's rows, `[N, D]`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]
    pub(in crate::cpu) fn penalize<R: Real>(
        &self,
        delta: f64,
        x: &Embeddings<R>,
        y: &Embeddings<R>,
    ) -> Result<(f64, Buffer<R>)> {
        let of_row = |j: usize| &self.close[self.starts[j]..self.starts[j + 1]];
        let vertices: Vec<usize> = (0..x.rows).filter(|&j| !of_row(j).is_empty()).collect();
        let size = vertices.len().div_ceil(SETS).max(1);
        let sets: Vec<(f64, Buffer<f64>)> = try_map(vertices.len().div_ceil(size), &|set| {
            let mut gradient = Buffer::zeros(x.rows.saturating_mul(x.dim))?;
            let mut penalty = 0.0;
            for &j in vertices.iter().skip(set * size).take(size) {
                let close = of_row(j);
                let edges = |dim: usize| Buffer::any(close.len().saturating_mul(dim));
                penalty += dispatch(Vertex {
                    j,
                    close,
                    delta,
                    x,
                    y,
                    gradient: &mut gradient,
                    edges_x: edges(x.dim)?,
                    edges_y: edges(y.dim)?,
                    slopes: Buffer::zeros(close.len().saturating_mul(x.dim))?,
                    of_end: [
                        Buffer::any(x.dim)?,
                        Buffer::any(y.dim)?,
                        Buffer::any(x.dim)?,
                    ],
                });
            }
            Ok((penalty, gradient))
        })?;
        let penalty = sets.iter().map(|(penalty, _)| penalty).sum();
        let mut gradient = Buffer::any(x.rows.saturating_mul(x.dim))?;
        for (at, out) in gradient.iter_mut().enumerate() {
            *out = R::from_f64(sets.iter().map(|(_, gradient)| gradient[at]).sum());
        }
        Ok((penalty, gradient))
    }
}

/// A table without the 1/d of close pairs. Dropping it restores them.
pub(in crate::cpu) struct Mask<'a, R: Real> {
    pairs: &'a ClosePairs,
    table: &'a mut PairTable<R>,
    /// 1/d of student and teacher, `[close pairs, 2]`.
    inverses: Buffer<R>,
}

impl<R: Real> Mask<'_, R> {
    /// Exchanges the numbers in the table with those kept here.
    fn swap(&mut self) {
        let ClosePairs { close, starts } = self.pairs;
        for i in 0..starts.len() - 1 {
            for at in starts[i]..starts[i + 1] {
                let kept: &mut [R; 2] = self.inverses[2 * at..]
                    .first_chunk_mut()
                    .expect("two numbers a pair");
                *kept = self.table.replace_inverses(i, close[at], *kept);
            }
        }
    }
}

impl<R: Real> Deref for Mask<'_, R> {
    type Target = PairTable<R>;

    fn deref(&self) -> &PairTable<R> {
        self.table
    }
}

impl<R: Real> Drop for Mask<'_, R> {
    fn drop(&mut self) {
        self.swap();
    }
}

/// The triples at vertex j with an end in `close`.
struct Vertex<'a, R: Real> {
    j: usize,
    close: &'a [usize],
    delta: f64,
    x: &'a Embeddings<R>,
    y: &'a Embeddings<R>,
    /// The gradient of the student's rows, which is added to.
    gradient: &'a mut [f64],
    /// The edges of student and teacher to the ends in `close`, scaled to length 1 (or 0).
    edges_x: Buffer<f64>,
    edges_y: Buffer<f64>,
    /// Σ w (e_k − cos e_i) of each end i, zero at first. Here ∂cos/∂(x_i − x_j) is
    /// (e_k − cos e_i)/d_ij.
    slopes: Buffer<f64>,
    /// The two edges and the sum of one other end.
    of_end: [Buffer<f64>; 3],
}

impl<R: Real> WithSimd for Vertex<'_, R> {
    /// The sum of penalties.
    type Output = f64;

    /// Plain loops, for the compiler to make vectors of.
    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> f64 {
        let Vertex {
            j,
            close,
            delta,
            x,
            y,
            gradient,
            mut edges_x,
            mut edges_y,
            mut slopes,
            of_end: [mut edge_x, mut edge_y, mut slope],
        } = self;
        let (dim, dim_y) = (x.dim, y.dim);
        for (at, &i) in close.iter().enumerate() {
            edge(x, i, j, &mut edges_x[at * dim..][..dim]);
            edge(y, i, j, &mut edges_y[at * dim_y..][..dim_y]);
        }
        let mut penalty = 0.0;
        for k in (0..x.rows).filter(|&k| k != j) {
            let inverse = edge(x, k, j, &mut edge_x);
            edge(y, k, j, &mut edge_y);
            slope.fill(0.0);
            // Two close ends meet twice. Only one of the times counts.
            let ends = close.binary_search(&k).map_or(close.len(), |at| at + 1);
            for (at, &i) in close[..ends].iter().enumerate() {
                let edge_i = &edges_x[at * dim..][..dim];
                let cos = dot(edge_i, &edge_x);
                let e = cos - dot(&edges_y[at * dim_y..][..dim_y], &edge_y);
                let w = e.clamp(-delta, delta);
                let huber = w * (e - 0.5 * w);
                if i == k {
                    // The cosine is constant: 1, or 0 where the edge has no length.
                    penalty += huber;
                    continue;
                }
                // The two ends in either order.
                penalty += 2.0 * huber;
                let edges = edge_i.iter().zip(&*edge_x);
                let sums = slopes[at * dim..][..dim].iter_mut().zip(&mut *slope);
                for ((slope_i, slope_k), (e_i, e_k)) in sums.zip(edges) {
                    *slope_i += w * (e_k - cos * e_i);
                    *slope_k += w * (e_i - cos * e_k);
                }
            }
            add_slope(&slope, 2.0 * inverse, k, j, gradient);
        }
        for (at, &i) in close.iter().enumerate() {
            let inverse = edge(x, i, j, &mut edge_x);
            add_slope(&slopes[at * dim..][..dim], 2.0 * inverse, i, j, gradient);
        }
        penalty
    }
}

/// Adds a slope to the end's gradient and subtracts it from the vertex's.
#[inline(always)]
fn add_slope(slope: &[f64], factor: f64, end: usize, vertex: usize, gradient: &mut [f64]) {
    let dim = slope.len();
    for (d, slope) in slope.iter().enumerate() {
        gradient[end * dim + d] += factor * slope;
        gradient[vertex * dim + d] -= factor * slope;
    }
}

/// The edge from a vertex to an end, scaled to length 1 (0 if it has no length). Returns 1/d, or 0.
#[inline(always)]
fn edge<R: Real>(rows: &Embeddings<R>, end: usize, vertex: usize, out: &mut [f64]) -> f64 {
    let ends = rows.row(end).iter().zip(rows.row(vertex));
    for (out, (end, vertex)) in out.iter_mut().zip(ends) {
        *out = end.to_f64() - vertex.to_f64();
    }
    // Divided by the largest element first, as squares of edges this short vanish.
    let largest = out.iter().fold(0.0f64, |m, x| m.max(x.abs()));
    if largest == 0.0 {
        return 0.0;
    }
    for x in &mut *out {
        *x /= largest;
    }
    let length = dot(out, out).sqrt();
    for x in &mut *out {
        *x /= length;
    }
    1.0 / length / largest
}

/// ⟨a, b⟩ as several sums side by side, which registers can hold.
#[inline(always)]
fn dot(a: &[f64], b: &[f64]) -> f64 {
    const SUMS: usize = 8;
    let mut sums = [0.0; SUMS];
    let (whole_a, rest_a) = a.as_chunks::<SUMS>();
    let (whole_b, rest_b) = b.as_chunks::<SUMS>();
    for (a, b) in whole_a.iter().zip(whole_b) {
        for lane in 0..SUMS {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let rest: f64 = rest_a.iter().zip(rest_b).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f64>() + rest
}
