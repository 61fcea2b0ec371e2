//! Losses of prefixes of the student's rows: the mean of the losses, and the sum of the gradients.

use super::{evaluate_in_pool, pairwise};
use crate::batch::Batch;
use crate::checks::zeroed;
use crate::element::Element;
use crate::error::Result;
use crate::loss::Family;
use crate::problem::{Problem, Value};
use crate::rows::Rows;

pub(super) fn evaluate<T: Element>(
    problem: &Problem,
    batch: Batch<'_, T>,
    gradient: &mut [T::Real],
) -> Result<Value> {
    if let [width] = problem.prefix_widths()
        && *width == batch.student.dim()
    {
        return evaluate_in_pool(&problem.of_prefix(*width), batch, None, gradient);
    }
    let widths = problem.prefix_widths();
    // Two prefixes are needed to gain anything, and one to take elements out of longer rows.
    if let (Family::Pairwise(loss), [_, _, ..]) = (problem.spec().family, widths) {
        let upstream = problem.upstream();
        let loss = pairwise::prefixes::evaluate(&loss, widths, batch, upstream, gradient)?;
        if let Some(loss) = loss {
            return Ok(problem.value(loss, []));
        }
    }
    one_by_one(problem, batch, gradient)
}

/// Evaluates each prefix by itself. All sums are in f64.
fn one_by_one<T: Element>(
    problem: &Problem,
    batch: Batch<'_, T>,
    gradient: &mut [T::Real],
) -> Result<Value> {
    let (dim, widths) = (batch.student.dim(), problem.prefix_widths());
    let mut loss = 0.0;
    // After an error the gradient is to be as it was.
    let mut sums: Vec<f64> = zeroed("workspace", gradient.len())?;
    for &width in widths {
        let len = batch.student.len() * width;
        let mut cut: Vec<T> = zeroed("workspace", len)?;
        for (cut, row) in cut.chunks_exact_mut(width).zip(batch.student.iter()) {
            cut.copy_from_slice(&row[..width]);
        }
        let prefix = Batch {
            student: Rows::of(&cut, width),
            ..batch
        };
        let mut part: Vec<T::Real> = zeroed("workspace", len)?;
        loss += evaluate_in_pool(&problem.of_prefix(width), prefix, None, &mut part)?.loss;
        for (sums, part) in sums.chunks_exact_mut(dim).zip(part.chunks_exact(width)) {
            for (sum, g) in sums.iter_mut().zip(part) {
                *sum += g.to_f64();
            }
        }
    }
    for (out, sum) in gradient.iter_mut().zip(sums) {
        *out = T::Real::from_f64(sum);
    }
    Ok(problem.value(loss / widths.len() as f64, []))
}
