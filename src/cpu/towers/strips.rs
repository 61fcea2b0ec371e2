//! Rows in the form that products take them, and which rows meet.

use crate::cpu::buffer::Buffer;
use crate::cpu::contrastive::attention::{lanes_of_strip, transpose};
use crate::cpu::contrastive::tiles::Keys;
use crate::cpu::embeddings::Embeddings;
use crate::cpu::pairwise::pairs::{Block, for_all_pairs, for_all_pairs_between};
use crate::element::Real;
use crate::error::Result;

/// The least number of rows in a block: whole strips of every instruction set and type.
const SIDE: usize = 64;
/// The most blocks on a side: enough for the threads of one processor, and few rounds.
const MOST_BLOCKS: usize = 64;

/// Which rows are compared with which.
#[derive(Clone, Copy)]
pub(super) struct Compared {
    /// Of the student.
    pub(super) rows: usize,
    /// Whether the first half meets the second, and not every row all others.
    pub(super) halves: bool,
}

impl Compared {
    /// The rows of the first half, or all.
    pub(super) fn first(self) -> usize {
        if self.halves {
            self.rows / 2
        } else {
            self.rows
        }
    }

    /// The row that makes the own pair of `row`, which is kept apart: its partner in the other half,
    /// or the row itself.
    pub(super) fn partner(self, row: usize) -> usize {
        match (self.halves, row < self.first()) {
            (false, _) => row,
            (true, true) => row + self.first(),
            (true, false) => row - self.first(),
        }
    }

    /// Calls `meet` on blocks of rows of `matrix`, so that each two rows that are compared meet once.
    /// A block that meets itself comes alone. Returns the sum of the calls' results.
    pub(super) fn for_all_meetings<T: Send, V: Send + std::iter::Sum>(
        self,
        matrix: &mut [T],
        stride: usize,
        meet: impl Fn(&mut Block<'_, T>, Option<&mut Block<'_, T>>) -> Result<V> + Sync,
    ) -> Result<V> {
        let side = (self.first() / MOST_BLOCKS)
            .next_multiple_of(SIDE)
            .max(SIDE);
        let two = |a: &mut Block<'_, T>, b: &mut Block<'_, T>| meet(a, Some(b));
        if self.halves {
            let (first, second) = matrix.split_at_mut(self.first() * stride);
            for_all_pairs_between([first, second], stride, side, two)
        } else {
            for_all_pairs(matrix, stride, side, |a| meet(a, None), two)
        }
    }

    /// The first row of a block of the second side, whose blocks are counted from 0.
    pub(super) fn first_key(self, block: usize) -> usize {
        if self.halves {
            self.first() + block
        } else {
            block
        }
    }
}

/// The rows of the first half, or all, in strips: `[strips, dim, lanes]`.
pub(super) struct Strips<R: Real> {
    data: Vec<Buffer<R>>,
    pub(super) lanes: usize,
}

impl<R: Real> Strips<R> {
    pub(super) fn new(rows: &Embeddings<R>, compared: Compared) -> Result<Self> {
        let lanes = lanes_of_strip::<R>();
        let all = compared.first();
        let strip = |first: usize| transpose(rows, first, lanes.min(all - first), lanes);
        let data = (0..all).step_by(lanes).map(strip);
        Ok(Strips {
            data: data.collect::<Result<_>>()?,
            lanes,
        })
    }

    /// The strip that begins with row `first`.
    pub(super) fn strip(&self, first: usize) -> &[R] {
        &self.data[first / self.lanes]
    }
}

/// Rows `first..first + len` as keys.
pub(super) fn keys_of<R: Real>(rows: &Embeddings<R>, first: usize, len: usize) -> Keys<'_, R> {
    Keys {
        data: &rows.data[first * rows.stride..(first + len) * rows.stride],
        len,
        dim: rows.dim,
        stride: rows.stride,
    }
}

/// The lane of a strip whose own key is `key`, if there is one. `own` is the key of the first lane,
/// counted from the same key on; it may lie before it.
pub(super) fn own_lane(own: Option<isize>, key: usize, count: usize) -> Option<usize> {
    let lane = key as isize - own?;
    usize::try_from(lane).ok().filter(|&lane| lane < count)
}
