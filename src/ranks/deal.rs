//! How the rows of all ranks lie in one batch.

use std::ops::Range;

use bytemuck::Pod;

use super::message::{Answers, broken, take};
use crate::error::Result;

/// The number of rows of each rank, and which rank this is.
#[derive(Debug)]
pub(super) struct Deal {
    rows: Vec<usize>,
    rank: usize,
}

/// The rows of a rank in the batch of all ranks, in the order that the rank has them.
pub(super) type Places = [Range<usize>; 2];

impl Deal {
    /// From the first number of each rank's data.
    pub(super) fn new(answers: &Answers, rank: usize) -> Result<Self> {
        let rows = answers.iter().map(|mut data| {
            let rows: Vec<u64> = take(&mut data, 1)?;
            usize::try_from(rows[0]).map_err(|_| broken("more rows than this rank can count"))
        });
        let rows: Vec<usize> = rows.collect::<Result<_>>()?;
        if rank < rows.len() {
            Ok(Deal { rows, rank })
        } else {
            Err(broken("fewer ranks than this one's number"))
        }
    }

    /// The rows of this rank.
    pub(super) fn own(&self) -> usize {
        self.rows[self.rank]
    }

    /// The rows of each rank.
    pub(super) fn of_ranks(&self) -> &[usize] {
        &self.rows
    }

    /// The rows of all ranks. What overflows is more than any memory holds.
    pub(super) fn total(&self) -> usize {
        sum(&self.rows)
    }

    /// The rows of the ranks after this one.
    pub(super) fn after(&self) -> usize {
        sum(&self.rows[self.rank + 1..])
    }

    /// Where the rows of each rank go: behind those of the ranks before it. Of two towers the first
    /// halves come first.
    pub(super) fn places(&self, halves: bool) -> Vec<Places> {
        let parts = if halves { 2 } else { 1 };
        let all = self.total() / parts;
        let mut start = 0;
        let places = self.rows.iter().map(|rows| {
            let first = start..start + rows / parts;
            start = first.end;
            let second = match halves {
                true => all + first.start..all + first.end,
                false => 0..0,
            };
            [first, second]
        });
        places.collect()
    }

    /// Where the rows of this rank are.
    pub(super) fn own_places(&self, halves: bool) -> Places {
        self.places(halves).swap_remove(self.rank)
    }
}

fn sum(rows: &[usize]) -> usize {
    rows.iter().fold(0, |sum, &rows| sum.saturating_add(rows))
}

/// Takes a rank's rows of so many elements from the front of its data to their places in `all`.
pub(super) fn place<P: Pod>(
    data: &mut &[u8],
    places: &Places,
    width: usize,
    all: &mut [P],
) -> Result<()> {
    for rows in places {
        let elements: Vec<P> = take(data, rows.len().saturating_mul(width))?;
        all[rows.start * width..][..elements.len()].copy_from_slice(&elements);
    }
    Ok(())
}

/// Copies the rows at these places out of those of all ranks.
pub(super) fn pick<P: Copy>(all: &[P], places: &Places, width: usize) -> Vec<P> {
    let parts = places
        .iter()
        .map(|rows| &all[rows.start * width..rows.end * width]);
    parts.collect::<Vec<_>>().concat()
}
