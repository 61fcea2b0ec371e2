//! Work on pairs of row blocks of a symmetric matrix, in parallel and in a fixed order.
//!
//! The work comes in rounds, as in a round-robin tournament. Within a round no two pairs share a
//! block, so the pairs run in parallel, and each writes to the rows of its own two blocks only. The
//! rounds follow one another, so a row is added to in the same order on any number of threads.

use std::iter::Sum;

use crate::cpu::parallel::{try_map_blocks, try_map_partners};
use crate::error::Result;

/// Some rows of a matrix.
pub(in crate::cpu) struct Block<'a, R> {
    /// The number of its first row.
    pub(in crate::cpu) first: usize,
    /// How many rows it has.
    pub(in crate::cpu) rows: usize,
    /// Its rows, `[rows, stride]`.
    pub(in crate::cpu) data: &'a mut [R],
}

impl<R> Block<'_, R> {
    fn empty() -> Self {
        Block {
            first: 0,
            rows: 0,
            data: &mut [],
        }
    }
}

/// Cuts `matrix` into blocks of `side` rows, calls `one` on every block and then `two` on every
/// pair of blocks. Returns the sum of the calls' results.
pub(in crate::cpu) fn for_all_pairs<R: Send, V: Send + Sum>(
    matrix: &mut [R],
    stride: usize,
    side: usize,
    one: impl Fn(&mut Block<'_, R>) -> Result<V> + Sync,
    two: impl Fn(&mut Block<'_, R>, &mut Block<'_, R>) -> Result<V> + Sync,
) -> Result<V> {
    let mut blocks = blocks(matrix, stride, side);
    let ones = try_map_blocks(&mut blocks, 1, &|_, block| one(&mut block[0]))?;
    let mut total = ones.into_iter().sum();

    // The circle method: one block stays, and the others move by one position each round. A block
    // without rows makes the number of blocks even.
    if blocks.len() % 2 == 1 {
        blocks.push(Block::empty());
    }
    for _round in 1..blocks.len() {
        let half = blocks.len() / 2;
        let (left, right) = blocks.split_at_mut(half);
        total = [total, round(left, right, &two)?].into_iter().sum();
        blocks[1..].rotate_right(1);
    }
    Ok(total)
}

/// Cuts both matrices into blocks of `side` rows and calls `two` on every pair of a block of the
/// first and one of the second. Returns the sum of the calls' results.
pub(in crate::cpu) fn for_all_pairs_between<R: Send, V: Send + Sum>(
    [first, second]: [&mut [R]; 2],
    stride: usize,
    side: usize,
    two: impl Fn(&mut Block<'_, R>, &mut Block<'_, R>) -> Result<V> + Sync,
) -> Result<V> {
    let [mut first, mut second] = [first, second].map(|matrix| blocks(matrix, stride, side));
    let rounds = first.len().max(second.len());
    first.resize_with(rounds, Block::empty);
    second.resize_with(rounds, Block::empty);
    let mut total = std::iter::empty().sum();
    for _round in 0..rounds {
        total = [total, round(&mut first, &mut second, &two)?]
            .into_iter()
            .sum();
        second.rotate_left(1);
    }
    Ok(total)
}

fn blocks<R>(matrix: &mut [R], stride: usize, side: usize) -> Vec<Block<'_, R>> {
    let chunks = matrix.chunks_mut(side * stride).enumerate();
    chunks
        .map(|(block, data)| Block {
            first: block * side,
            rows: data.len() / stride,
            data,
        })
        .collect()
}

/// Calls `two` on the first of `left` and the last of `right`, and so on inwards.
fn round<'a, R: Send, V: Send + Sum>(
    left: &mut [Block<'a, R>],
    right: &mut [Block<'a, R>],
    two: &(impl Fn(&mut Block<'_, R>, &mut Block<'_, R>) -> Result<V> + Sync),
) -> Result<V> {
    let twos = try_map_partners(left, right, &|a, b| {
        if a.rows == 0 || b.rows == 0 {
            Ok(None)
        } else {
            two(a, b).map(Some)
        }
    })?;
    Ok(twos.into_iter().flatten().sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_of_blocks_meets_once() {
        for (rows, side) in [(1, 1), (2, 1), (7, 1), (8, 1), (9, 2), (64, 8), (65, 8)] {
            let mut met = vec![0u32; rows * rows];
            let record = std::sync::Mutex::new(&mut met);
            let mut matrix = vec![0u8; rows];
            let total = for_all_pairs(
                &mut matrix,
                1,
                side,
                |a| {
                    let mut met = record.lock().unwrap();
                    for i in a.first..a.first + a.rows {
                        for j in a.first..a.first + a.rows {
                            met[i * rows + j] += 1;
                        }
                    }
                    Ok(1.0)
                },
                |a, b| {
                    let mut met = record.lock().unwrap();
                    for i in a.first..a.first + a.rows {
                        for j in b.first..b.first + b.rows {
                            met[i * rows + j] += 1;
                            met[j * rows + i] += 1;
                        }
                    }
                    Ok(1.0)
                },
            )
            .unwrap();
            assert!(
                met.iter().all(|&n| n == 1),
                "{rows} rows in blocks of {side}"
            );
            let blocks = rows.div_ceil(side);
            assert_eq!(total, (blocks * (blocks + 1) / 2) as f64);
        }
    }

    #[test]
    fn every_block_meets_every_block_of_the_other_matrix_once() {
        for (n, m, side) in [(1, 1, 1), (1, 5, 2), (7, 7, 3), (8, 3, 2), (64, 65, 8)] {
            let mut met = vec![0u32; n * m];
            let record = std::sync::Mutex::new(&mut met);
            let (mut first, mut second) = (vec![0u8; n], vec![0u8; m]);
            let total: f64 = for_all_pairs_between([&mut first, &mut second], 1, side, |a, b| {
                let mut met = record.lock().unwrap();
                for i in a.first..a.first + a.rows {
                    for j in b.first..b.first + b.rows {
                        met[i * m + j] += 1;
                    }
                }
                Ok(1.0)
            })
            .unwrap();
            assert!(met.iter().all(|&n| n == 1), "{n} and {m} rows, {side}");
            assert_eq!(total, (n.div_ceil(side) * m.div_ceil(side)) as f64);
        }
    }
}
