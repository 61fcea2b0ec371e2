//! Pairs of rows so close beside the longest distance that the law of cosines, even in f64, has no digits left for the
//! angles at them: their triples are formed from edges, as the definition has them.
//!
//! The law is spared what it cannot do: while a pair is set aside its 1/d is 0, in student and teacher, so that every
//! triple which has it for an edge to the vertex adds nothing. Those triples, and no others, are added here, in
//! O(N D) for each such pair.

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::buffer::Buffer;
use super::embeddings::Embeddings;
use super::relation::Relations;
use super::simd::dispatch;
use crate::element::Real;
use crate::error::Result;

/// How many sets of vertices are summed separately. Fixed, so that the sums come out the same on any
/// number of threads.
const SETS: usize = 16;

/// The pairs set aside.
pub(super) struct ClosePairs<R> {
    /// Of each row that has any, in order, the rows that are close to it, in order.
    vertices: Vec<(usize, Vec<usize>)>,
    /// 1/d of student and teacher, of every pair in `vertices`.
    inverses: Vec<[R; 2]>,
}

impl<R: Real> ClosePairs<R> {
    /// Takes from the relations the pairs closer than 1/`limit` of the longest distance, in student or teacher.
    pub(super) fn set_aside(relations: &mut Relations<R>, n: usize, limit: f64) -> Self {
        let vertices: Vec<(usize, Vec<usize>)> = (0..n)
            .into_par_iter()
            .map(|j| {
                let close = (0..n).filter(|&i| relations.is_close(i, j, limit));
                (j, close.collect())
            })
            .filter(|(_, close): &(usize, Vec<usize>)| !close.is_empty())
            .collect();
        let mut pairs = ClosePairs {
            vertices,
            inverses: Vec::new(),
        };
        pairs.inverses = pairs
            .all()
            .map(|(i, j)| relations.replace_inverses(i, j, [R::ZERO; 2]))
            .collect();
        pairs
    }

    /// Undoes [`set_aside`](Self::set_aside).
    pub(super) fn put_back(&self, relations: &mut Relations<R>) {
        for ((i, j), &inverses) in self.all().zip(&self.inverses) {
            relations.replace_inverses(i, j, inverses);
        }
    }

    fn all(&self) -> impl Iterator<Item = (usize, usize)> {
        let of_vertex = |(j, close): &(usize, Vec<usize>)| {
            let j = *j;
            close.clone().into_iter().map(move |i| (i, j))
        };
        self.vertices.iter().flat_map(of_vertex)
    }

    /// The sum of the penalties of the triples with one of these pairs for an edge to the vertex, and their derivatives by the
    /// student's rows, `[N, D]`.
    pub(super) fn penalize(
        &self,
        delta: f64,
        x: &Embeddings<R>,
        y: &Embeddings<R>,
    ) -> Result<(f64, Buffer<R>)> {
        let sets: Vec<(f64, Buffer<f64>)> = self
            .vertices
            .par_chunks(self.vertices.len().div_ceil(SETS).max(1))
            .map(|vertices| {
                let mut gradient = Buffer::zeros(x.rows.saturating_mul(x.dim))?;
                let penalties = vertices.iter().map(|(j, close)| {
                    dispatch(Vertex {
                        j: *j,
                        close,
                        delta,
                        x,
                        y,
                        gradient: &mut gradient,
                    })
                });
                Ok((penalties.sum(), gradient))
            })
            .collect::<Result<_>>()?;
        let penalty = sets.iter().map(|(penalty, _)| penalty).sum();
        let mut gradient = Buffer::any(x.rows.saturating_mul(x.dim))?;
        for (at, out) in gradient.iter_mut().enumerate() {
            *out = R::from_f64(sets.iter().map(|(_, gradient)| gradient[at]).sum());
        }
        Ok((penalty, gradient))
    }
}

/// The triples at vertex j of which an end is in `close`.
struct Vertex<'a, R: Real> {
    j: usize,
    close: &'a [usize],
    delta: f64,
    x: &'a Embeddings<R>,
    y: &'a Embeddings<R>,
    /// Of the student's rows: added to.
    gradient: &'a mut [f64],
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
        } = self;
        let dim = x.dim;
        let of_close = |rows: &Embeddings<R>| -> Vec<Edge> {
            close.iter().map(|&i| Edge::new(rows, i, j)).collect()
        };
        let (close_x, close_y) = (of_close(x), of_close(y));
        // ∂cos/∂(x_i − x_j) = (e_k − cos e_i)/d_ij at end i, and the like at end k. Σ w (e_k − cos e_i) of each end i:
        let mut slopes = vec![vec![0.0; dim]; close.len()];
        let mut slope = vec![0.0; dim];
        let (mut edge_x, mut edge_y) = (Edge::of(dim), Edge::of(y.dim));
        let mut penalty = 0.0;
        for k in (0..x.rows).filter(|&k| k != j) {
            edge_x.set(x, k, j);
            edge_y.set(y, k, j);
            slope.fill(0.0);
            for (at, &i) in close.iter().enumerate() {
                // A pair of two close ends is met twice; once is enough.
                if i > k && close.binary_search(&k).is_ok() {
                    continue;
                }
                let cos = close_x[at].cosine(&edge_x);
                let e = cos - close_y[at].cosine(&edge_y);
                let w = e.clamp(-delta, delta);
                let huber = w * (e - 0.5 * w);
                if i == k {
                    // Its cosine is 1, or 0 where the edge has no length: constant.
                    penalty += huber;
                    continue;
                }
                // The two ends in either order.
                penalty += 2.0 * huber;
                let edges = close_x[at].direction.iter().zip(&edge_x.direction);
                let sums = slopes[at].iter_mut().zip(&mut slope);
                for ((slope_i, slope_k), (e_i, e_k)) in sums.zip(edges) {
                    *slope_i += w * (e_k - cos * e_i);
                    *slope_k += w * (e_i - cos * e_k);
                }
            }
            add_slope(&slope, 2.0 * edge_x.inverse, k, j, gradient);
        }
        for (at, &i) in close.iter().enumerate() {
            add_slope(&slopes[at], 2.0 * close_x[at].inverse, i, j, gradient);
        }
        penalty
    }
}

/// Adds to the end's gradient what it takes from the vertex's.
#[inline(always)]
fn add_slope(slope: &[f64], factor: f64, end: usize, vertex: usize, gradient: &mut [f64]) {
    let dim = slope.len();
    for (d, slope) in slope.iter().enumerate() {
        gradient[end * dim + d] += factor * slope;
        gradient[vertex * dim + d] -= factor * slope;
    }
}

/// An edge from a vertex.
struct Edge {
    /// Of length 1, or 0 where the edge has no length.
    direction: Vec<f64>,
    /// 1/d, or 0.
    inverse: f64,
}

impl Edge {
    fn of(dim: usize) -> Self {
        Edge {
            direction: vec![0.0; dim],
            inverse: 0.0,
        }
    }

    fn new<R: Real>(rows: &Embeddings<R>, end: usize, vertex: usize) -> Self {
        let mut edge = Edge::of(rows.dim);
        edge.set(rows, end, vertex);
        edge
    }

    #[inline(always)]
    fn set<R: Real>(&mut self, rows: &Embeddings<R>, end: usize, vertex: usize) {
        let ends = rows.row(end).iter().zip(rows.row(vertex));
        for (out, (end, vertex)) in self.direction.iter_mut().zip(ends) {
            *out = end.to_f64() - vertex.to_f64();
        }
        // By the largest element first: squares of edges this short vanish.
        let largest = self.direction.iter().fold(0.0f64, |m, x| m.max(x.abs()));
        if largest == 0.0 {
            self.inverse = 0.0;
            return;
        }
        for x in &mut self.direction {
            *x /= largest;
        }
        let length = dot(&self.direction, &self.direction).sqrt();
        for x in &mut self.direction {
            *x /= length;
        }
        self.inverse = 1.0 / length / largest;
    }

    #[inline(always)]
    fn cosine(&self, other: &Edge) -> f64 {
        dot(&self.direction, &other.direction)
    }
}

/// Several sums side by side, which registers can hold.
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
