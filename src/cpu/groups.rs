//! Losses of groups of rows: the mean of the losses, and the gradient of each group.

use super::evaluate_in_pool;
use super::parallel::try_map_blocks;
use crate::batch::Batch;
use crate::checks::zeroed;
use crate::element::Element;
use crate::error::Result;
use crate::problem::{Problem, Value};

/// The most rows of a group for groups to be evaluated side by side. So small a group does not fill
/// a machine: docs/decisions/0022 has times of two threads that share the groups, and of two that
/// share each group. Each thread needs memory for a group of its own.
const MOST_ROWS_SIDE_BY_SIDE: usize = 512;

pub(super) fn evaluate<T: Element>(
    problem: &Problem,
    batch: Batch<'_, T>,
    gradient: &mut [T::Real],
) -> Result<Value> {
    let group = problem.of_group();
    let rows = group.shapes().rows;
    // After an error the gradient is to be as it was.
    let mut gradients: Vec<T::Real> = zeroed("workspace", gradient.len())?;
    let evaluate_one = |nth: usize, gradient: &mut [T::Real]| {
        evaluate_in_pool(&group, batch.group(nth, rows), None, gradient)
    };
    let len = group.gradient_len();
    let values = if rows <= MOST_ROWS_SIDE_BY_SIDE {
        try_map_blocks(&mut gradients, len, &evaluate_one)?
    } else {
        let blocks = gradients.chunks_exact_mut(len).enumerate();
        let values = blocks.map(|(nth, block)| evaluate_one(nth, block));
        values.collect::<Result<Vec<_>>>()?
    };
    gradient.copy_from_slice(&gradients);
    Ok(problem.mean_of_groups(&values))
}
