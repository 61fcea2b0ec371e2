//! Losses of cosines of prefixes of the student's rows, in one pass over the rows.
//!
//! ```text
//! for each prefix m, the shortest first:
//!     G += ⟨x_i, x_j⟩ of the columns between the last prefix and this one
//!     C_ij = G_ij/(|x_i| |x_j|)                  |x_i| the length of row i's prefix
//!     L += the loss of C                         K_ij = ∂L/∂C_ij
//!     A^m_ij = K_ij/(|x_i| |x_j|)                A^m_ii = −1/|x_i|² Σ_j K_ij C_ij
//! for each prefix m, the longest first:
//!     A += A^m
//!     gradient_i in these columns = Σ_j A_ij x_j             the contraction
//! ```
//!
//! 1. So products and contraction take N² D, and not N² Σ d_m. The other steps take N² for each
//!    prefix, and so does the memory: each A^m is kept until the longest is known.
//! 2. A^m_ii is what the way back through the normalisation subtracts: the part of the gradient
//!    along x_i. It lies on the diagonal, so one contraction does for all prefixes.
//! 3. Rows are scaled by powers of two, and nothing else is rounded before the products. G, C and A
//!    are in f64 where they are added up.
//! 4. A row that begins with elements so small that products of them vanish is left to single
//!    evaluations, and so is one whose scale leaves the range of the type.

use super::contraction::contract_product;
use super::generic::{coefficients, relation_of};
use super::ops::{Divergence, Huber, PenaltyOp, Plain, Positive, RelationOp, Shifted, Squared};
use super::order;
use super::pair_sums::symmetric;
use crate::batch::Batch;
use crate::checks::zeroed;
use crate::cpu::buffer::Buffer;
use crate::cpu::embeddings::{Embeddings, RowScaling, power_of_two_below};
use crate::cpu::parallel::for_each_block;
use crate::cpu::sums::dot;
use crate::element::{DType, Element, Real};
use crate::error::Result;
use crate::loss::{Pairwise, Penalty, Relation};
use crate::simd::row_stride;

/// The least square of the length of a prefix, of a row whose largest element is about 1.
const LEAST_SQUARE: f64 = 1.0 / (1u128 << 80) as f64;

/// From the relations of student and teacher to the loss and, in place of the student's, to
/// coefficients. `None` if they have to be computed in f64.
type Between<'a, R> = &'a dyn Fn(&mut [R], &[R]) -> Result<Option<f64>>;

/// The mean of the losses. `None` where each prefix has to be evaluated by itself.
pub(in crate::cpu) fn evaluate<T: Element>(
    loss: &Pairwise,
    widths: &[usize],
    batch: Batch<'_, T>,
    upstream: f64,
    gradient: &mut [T::Real],
) -> Result<Option<f64>> {
    match loss.penalty {
        Penalty::Squared => of_pairs(loss, Squared, widths, batch, upstream, gradient),
        Penalty::Huber { delta } => {
            let penalty = Huber { delta };
            of_pairs(loss, penalty, widths, batch, upstream, gradient)
        }
        Penalty::Divergence { epsilon } => {
            let penalty = Divergence { epsilon };
            of_pairs(loss, penalty, widths, batch, upstream, gradient)
        }
        Penalty::Order { margin } => {
            let n = batch.student.len();
            let between = |s: &mut [f64], t: &[f64]| {
                let mut matrix = Buffer::any(t.len())?;
                matrix.copy_from_slice(t);
                let value = order::coefficients(s, &mut matrix, n, margin)?;
                s.copy_from_slice(&matrix);
                Ok(Some(value))
            };
            let factor = upstream / order::terms(n).max(1.0);
            in_type::<f64, T>(loss, &between, widths, batch, factor, gradient)
        }
        Penalty::Ranking { .. } => Ok(None),
    }
}

fn of_pairs<T: Element, P: PenaltyOp>(
    loss: &Pairwise,
    penalty: P,
    widths: &[usize],
    batch: Batch<'_, T>,
    upstream: f64,
    gradient: &mut [T::Real],
) -> Result<Option<f64>> {
    let n = batch.student.len();
    let factor = upstream / (n * n) as f64;
    if <T::Real as Element>::DTYPE == DType::F32 {
        let between = |x: &mut [f32], y: &[f32]| Ok(coefficients(loss, penalty, x, y, n));
        let value = in_type::<f32, T>(loss, &between, widths, batch, factor, gradient)?;
        if value.is_some() {
            return Ok(value);
        }
    }
    let between = |x: &mut [f64], y: &[f64]| Ok(coefficients(loss, penalty, x, y, n));
    in_type::<f64, T>(loss, &between, widths, batch, factor, gradient)
}

/// Computes in `R`.
fn in_type<R: Real, T: Element>(
    loss: &Pairwise,
    between: Between<'_, R>,
    widths: &[usize],
    batch: Batch<'_, T>,
    factor: f64,
    gradient: &mut [T::Real],
) -> Result<Option<f64>> {
    let (n, dim, parts) = (
        batch.student.len(),
        batch.student.dim(),
        widths.len() as f64,
    );
    let stride = row_stride::<R>(n);
    let scaling = RowScaling::Normalized {
        epsilon: loss.norm_epsilon,
    };
    let teacher = Embeddings::<R>::new(batch.teacher, scaling)?;
    let longest = widths[widths.len() - 1];
    let scales: Option<Vec<f64>> = batch
        .student
        .iter()
        .map(|row| scale::<R, T>(&row[..longest]))
        .collect();
    let (true, Some(scales)) = (teacher.is_finite(), scales) else {
        return Ok(None);
    };
    let relation_y = relation_of(loss.relation, &teacher)?;
    drop(teacher);

    let mut products = Buffer::<f64>::zeros(n * stride)?;
    let mut squares = vec![0.0; n];
    let mut value = 0.0;
    let (mut blocks, mut matrices) = (Vec::new(), Vec::new());
    let mut start = 0;
    for &width in widths {
        let block = Embeddings::<R>::of_columns(batch.student, start..width, &scales)?;
        start = width;
        let of_block = symmetric::<R, false>(&block)?;
        for_each_block(&mut products, stride, &|i, row| {
            for (sum, product) in row.iter_mut().zip(&of_block[i * stride..]) {
                *sum += product.to_f64();
            }
        });
        for (i, square) in squares.iter_mut().enumerate() {
            *square += dot(block.row(i), block.row(i));
            let vanishes = *square < LEAST_SQUARE;
            if vanishes
                && batch.student.row(i)[..width]
                    .iter()
                    .any(|x| x.to_f64() != 0.0)
            {
                return Ok(None);
            }
        }
        blocks.push(block);

        // 1/(|x| + ε), and 0 for a row of zeros.
        let epsilon = |i: usize| loss.norm_epsilon * scales[i];
        let inverse = |i: usize| match squares[i] {
            square if square > 0.0 => 1.0 / (square.sqrt() + epsilon(i)),
            _ => 0.0,
        };
        let mut inverses: Vec<f64> = (0..n).map(inverse).collect();
        inverses.resize(stride, 0.0);
        let of_sum = relation_of_cosine(loss.relation);
        let mut matrix = Buffer::<R>::any(n * stride)?;
        for_each_block(&mut matrix, stride, &|i, row| {
            let products = &products[i * stride..][..n];
            for ((r, &product), &inverse) in row.iter_mut().zip(products).zip(&inverses) {
                *r = R::from_f64(of_sum(product * (inverses[i] * inverse)));
            }
            row[n..].fill(R::ZERO);
        });
        let Some(of_prefix) = between(&mut matrix, &relation_y)? else {
            return Ok(None);
        };
        value += of_prefix / parts;
        if width == 1 && loss.norm_epsilon == 0.0 {
            // Of one element only the sign counts. What would remain is rounding, over its size.
            matrix.fill(R::ZERO);
        }
        for_each_block(&mut matrix, stride, &|i, row| {
            let products = &products[i * stride..][..n];
            let diagonal = row[i].to_f64() * inverses[i] * inverses[i];
            row[i] = R::ZERO;
            let mut along = 0.0;
            for ((k, &product), &inverse) in row.iter_mut().zip(products).zip(&inverses) {
                let a = R::from_f64(k.to_f64() * (inverses[i] * inverse));
                along += a.to_f64() * product;
                *k = a;
            }
            if squares[i] > 0.0 {
                // Of the row's cosine with itself only ε passes a gradient.
                let own = diagonal * (epsilon(i) * inverses[i]);
                let length = squares[i].sqrt();
                row[i] = R::from_f64(own - along * inverses[i] / length);
            }
        });
        matrices.push(matrix);
    }

    // The products are no longer needed: their place is that of the coefficients.
    let mut sums = products;
    sums.fill(0.0);
    let mut coefficients = Buffer::<R>::any(n * stride)?;
    let mut parts_of_gradient = Vec::new();
    while let (Some(block), Some(matrix)) = (blocks.pop(), matrices.pop()) {
        for ((sum, out), a) in sums.iter_mut().zip(&mut *coefficients).zip(&*matrix) {
            *sum += a.to_f64();
            *out = R::from_f64(*sum);
        }
        let mut part: Vec<T::Real> = zeroed("workspace", n * block.dim)?;
        contract_product(&block, &coefficients, stride, factor / parts, &mut part)?;
        parts_of_gradient.push((block.dim, part));
    }
    for (i, row) in gradient.chunks_exact_mut(dim).enumerate() {
        let (reached, beyond) = row.split_at_mut(longest);
        beyond.fill(T::Real::from_f64(0.0));
        let mut end = longest;
        for (width, part) in &parts_of_gradient {
            let out = &mut reached[end - width..end];
            for (out, g) in out.iter_mut().zip(&part[i * width..]) {
                *out = T::Real::from_f64(g.to_f64() * scales[i]);
            }
            end -= width;
        }
    }
    Ok(Some(value))
}

/// The power of two that takes the largest element of a row to [1, 2). `None` if the row is not
/// finite, or so long or so short that `R` does not hold the factor.
fn scale<R: Real, T: Element>(row: &[T]) -> Option<f64> {
    let most: f64 = if R::DTYPE == DType::F64 { 1e290 } else { 1e30 };
    let mut largest = 0.0f64;
    let mut poison = 0.0;
    for x in row {
        let x = x.to_f64();
        largest = largest.max(x.abs());
        poison += x * 0.0;
    }
    if largest == 0.0 && poison == 0.0 {
        return Some(1.0);
    }
    let held = poison == 0.0 && (most.recip()..most).contains(&largest);
    held.then(|| power_of_two_below::<R>(largest).recip())
}

/// The relation, of a cosine.
fn relation_of_cosine(relation: Relation) -> fn(f64) -> f64 {
    match relation {
        Relation::PositiveCosine => Positive::of_sum,
        Relation::ShiftedCosine => Shifted::of_sum,
        Relation::Distance | Relation::SquaredDistance | Relation::Dot | Relation::Cosine => {
            Plain::of_sum
        }
    }
}
