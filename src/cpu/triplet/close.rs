//! Pairs of rows that are too close for the law of cosines.
//!
//! Where a pair is much closer than the longest distance, ½d² of the long edges has no digits left
//! for the angles at the pair, even in f64. The triples of such pairs are taken from the ordinary
//! pass and are formed here:
//!
//! ```text
//! mask: set 1/d of each close pair to 0              the law of cosines then adds nothing for a
//! run the law of cosines over all triples            triple with that pair as an edge to the vertex
//! drop the mask: restore 1/d
//! for each vertex j, for each close end i, for each end k:      triples
//!     cos = r_ij r_kj (h_ij + (h_kj − c_k) − (h_ik − c_k))
//! ```
//!
//! c_k is ½d² from row k to one row of the cluster of i and j, or 0 where k is in that cluster. The
//! difference h_ik − c_k is not formed from its two parts. It is ½‖u_i‖² − ⟨u_i, v_k⟩ with both rows
//! less the cluster's row, which is short where the cluster is ([`clusters`]). So a triple takes as
//! few operations as in the ordinary pass, and a level of clusters takes O(N²D), however many pairs
//! are close.

mod clusters;
mod deeper;
mod gradient;
mod triples;

use std::ops::Deref;

use super::pair_table::{PairField, PairTable};
use crate::cpu::buffer::Buffer;
use crate::cpu::embeddings::Embeddings;
use crate::element::Real;
use crate::error::{Error, Result};
use clusters::Side;

/// The close pairs of a batch.
pub(in crate::cpu) struct ClosePairs {
    /// The rows that are close to a row, in order, row by row.
    close: Vec<usize>,
    /// Where those of a row begin; N + 1.
    starts: Vec<usize>,
    /// Here rows have other numbers than in the batch: these are the batch's.
    order: Vec<usize>,
    x: Side,
    y: Side,
}

impl ClosePairs {
    /// Finds the pairs that are in one cluster in student or teacher: those closer than 1/`limit` of
    /// the longest distance, and those that a chain of such pairs links.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]
    pub(in crate::cpu) fn find<R: Real>(
        table: &PairTable<R>,
        x: &Embeddings<R>,
        y: &Embeddings<R>,
        limit: f64,
    ) -> Result<Self> {
        let order = nearest_first(table, x.rows);
        let mut x = Side::new(x, &order, table, PairField::StudentHalfSquare, limit)?;
        let mut y = Side::new(y, &order, table, PairField::TeacherHalfSquare, limit)?;
        let (mut close, mut starts) = (Vec::new(), vec![0]);
        for i in 0..x.n {
            for j in (0..x.n).filter(|&j| x.is_close(i, j) || y.is_close(i, j)) {
                close.try_reserve(1).map_err(|_| Error::OutOfMemory {
                    argument: "workspace",
                    bytes: (close.len() + 1).saturating_mul(size_of::<usize>()),
                })?;
                close.push(j);
            }
            for &j in &close[starts[i]..] {
                x.use_level(i, j);
                y.use_level(i, j);
            }
            starts.push(close.len());
        }
        x.find_half_squares(&order, table, PairField::StudentHalfSquare)?;
        y.find_half_squares(&order, table, PairField::TeacherHalfSquare)?;
        Ok(ClosePairs {
            close,
            starts,
            order,
            x,
            y,
        })
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
    pub(in crate::cpu) fn penalize<R: Real>(&self, delta: f64) -> Result<(f64, Buffer<R>)> {
        let (penalty, sums) = triples::penalize(self, delta)?;
        Ok((penalty, gradient::contract(&self.x, &self.order, &sums)?))
    }

    /// The ends that are close to the vertex j.
    fn of(&self, j: usize) -> &[usize] {
        &self.close[self.starts[j]..self.starts[j + 1]]
    }
}

/// The rows in an order in which each is the nearest one, in the student, to any of those before it
/// (Prim's algorithm). So the rows of a cluster are neighbours, at every level.
fn nearest_first<R: Real>(table: &PairTable<R>, n: usize) -> Vec<usize> {
    // Equal rows have 1/d = 0, and so have a row and itself.
    let inverse = |i, j| match table.get(i, j, PairField::StudentInverse).to_f64() {
        0.0 => f64::INFINITY,
        r => r,
    };
    let mut order = Vec::with_capacity(n);
    let mut rest: Vec<(usize, f64)> = (1..n).map(|j| (j, 0.0)).collect();
    let mut last = 0;
    loop {
        order.push(last);
        let mut nearest = (0, -1.0);
        for (at, (j, r)) in rest.iter_mut().enumerate() {
            *r = r.max(inverse(last, *j));
            if *r > nearest.1 {
                nearest = (at, *r);
            }
        }
        if rest.is_empty() {
            return order;
        }
        last = rest.remove(nearest.0).0;
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
        let ClosePairs {
            close,
            starts,
            order,
            ..
        } = self.pairs;
        for i in 0..starts.len() - 1 {
            for at in starts[i]..starts[i + 1] {
                let kept: &mut [R; 2] = self.inverses[2 * at..]
                    .first_chunk_mut()
                    .expect("two numbers a pair");
                *kept = self
                    .table
                    .replace_inverses(order[i], order[close[at]], *kept);
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
