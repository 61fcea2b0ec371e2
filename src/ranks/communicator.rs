//! What ranks exchange.

use std::ops::Range;

use crate::error::Result;

/// One of the processes or threads that train together, as it sees the others: its **rank**, their
/// number, and a way to exchange bytes.
///
/// The trait is open: a communicator over another library implements these three methods.
/// [`InProcess`](super::InProcess) is one over threads, and the crate `relata-mpi` has one over MPI.
///
/// An exchange either succeeds on all ranks or fails on all. A communicator never leaves a rank
/// waiting for another one that is gone: a rank that is dropped, also by a panic, is one that has
/// left ([`Error::RankLeft`](crate::Error::RankLeft)).
pub trait Communicator {
    /// The number of this rank, from 0.
    fn rank(&self) -> usize;

    /// The number of ranks, at least 1.
    fn world(&self) -> usize;

    /// Gives the bytes of all ranks to all ranks, in the order of ranks. Each rank may give another
    /// number of bytes, or none. It waits until all ranks have called it.
    ///
    /// # Errors
    /// [`Error::RankLeft`](crate::Error::RankLeft), [`Error::RankLate`](crate::Error::RankLate), or
    /// [`Error::Exchange`](crate::Error::Exchange) with what the engine says.
    fn all_gather(&mut self, bytes: &[u8]) -> Result<Gathered>;
}

/// The bytes of all ranks, in the order of ranks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gathered {
    bytes: Vec<u8>,
    /// Where those of each rank end.
    ends: Vec<usize>,
}

impl Gathered {
    /// The same from the bytes of each rank.
    #[must_use]
    pub fn new<B: AsRef<[u8]>>(ranks: impl IntoIterator<Item = B>) -> Self {
        let mut gathered = Gathered::default();
        for bytes in ranks {
            gathered.bytes.extend_from_slice(bytes.as_ref());
            gathered.ends.push(gathered.bytes.len());
        }
        gathered
    }

    /// The same from the bytes of all ranks in a row, and how many of them each rank gave: what MPI
    /// has. `None` if the two do not go together.
    #[must_use]
    pub fn from_counts(bytes: Vec<u8>, counts: &[usize]) -> Option<Self> {
        let mut end = 0usize;
        let mut ends = Vec::with_capacity(counts.len());
        for &count in counts {
            end = end.checked_add(count)?;
            ends.push(end);
        }
        (end == bytes.len()).then_some(Gathered { bytes, ends })
    }

    /// The number of ranks.
    #[must_use]
    pub fn world(&self) -> usize {
        self.ends.len()
    }

    /// The bytes of one rank, or `None` if there is no such rank.
    #[must_use]
    pub fn of_rank(&self, rank: usize) -> Option<&[u8]> {
        self.range(rank).map(|range| &self.bytes[range])
    }

    /// The bytes of each rank, in the order of ranks.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.world()).filter_map(|rank| self.of_rank(rank))
    }

    fn range(&self, rank: usize) -> Option<Range<usize>> {
        let end = *self.ends.get(rank)?;
        let start = rank.checked_sub(1).map_or(0, |before| self.ends[before]);
        Some(start..end)
    }
}
