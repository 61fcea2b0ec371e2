//! Loops on rayon's thread pool.
//!
//! The body of a loop comes behind `&dyn Fn`. rayon compiles its code that splits and joins once
//! for each type of body, and there would be two hundred: a third of the LLVM IR of this crate. A
//! body is called once for each task, so the indirect call costs nothing.
//!
//! Results come in the order of the tasks, whatever thread ran them, so that a sum over them has
//! the same bits on any number of threads.

use rayon::prelude::*;

use crate::error::Result;

/// Calls `body(b, block)` for each block of `size` elements. The last may have fewer.
pub(super) fn for_each_block<T: Send>(
    data: &mut [T],
    size: usize,
    body: &(dyn Fn(usize, &mut [T]) + Sync),
) {
    data.par_chunks_mut(size)
        .enumerate()
        .for_each(|(b, block)| body(b, block));
}

/// The results of `body(b, block)` for each block of `size` elements.
pub(super) fn map_blocks<T: Send, V: Send>(
    data: &mut [T],
    size: usize,
    body: &(dyn Fn(usize, &mut [T]) -> V + Sync),
) -> Vec<V> {
    data.par_chunks_mut(size)
        .enumerate()
        .map(|(b, block)| body(b, block))
        .collect()
}

/// As [`map_blocks`], or an error of one of the blocks.
pub(super) fn try_map_blocks<T: Send, V: Send>(
    data: &mut [T],
    size: usize,
    body: &(dyn Fn(usize, &mut [T]) -> Result<V> + Sync),
) -> Result<Vec<V>> {
    data.par_chunks_mut(size)
        .enumerate()
        .map(|(b, block)| body(b, block))
        .collect()
}

/// The results of `body(task)` for each task in 0..`tasks`.
pub(super) fn map<V: Send>(tasks: usize, body: &(dyn Fn(usize) -> V + Sync)) -> Vec<V> {
    (0..tasks).into_par_iter().map(body).collect()
}

/// As [`map`], or an error of one of the tasks.
pub(super) fn try_map<V: Send>(
    tasks: usize,
    body: &(dyn Fn(usize) -> Result<V> + Sync),
) -> Result<Vec<V>> {
    (0..tasks).into_par_iter().map(body).collect()
}

/// The results of `body(a, b)` for each element a of `left` and its partner b in `right`. The
/// first of `left` and the last of `right` are partners, and so on inwards.
pub(super) fn try_map_partners<T: Send, V: Send>(
    left: &mut [T],
    right: &mut [T],
    body: &(dyn Fn(&mut T, &mut T) -> Result<V> + Sync),
) -> Result<Vec<V>> {
    left.par_iter_mut()
        .zip(right.par_iter_mut().rev())
        .map(|(a, b)| body(a, b))
        .collect()
}
