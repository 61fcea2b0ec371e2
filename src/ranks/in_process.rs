//! Ranks that are threads of one process.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::communicator::{Communicator, Gathered};
use crate::checks::not_empty;
use crate::error::{Error, Result};

/// How long a rank waits for the others, if nobody says otherwise.
const LIMIT: Duration = Duration::from_secs(600);

/// A rank that is a thread of this process.
///
/// Each thread takes one. Bytes are copied through memory that all of them see, and the order in
/// which threads come has no effect. A rank that is dropped has left: the exchanges of all others
/// then fail, at once and from then on, with the same [`Error::RankLeft`]. A panic drops what its
/// thread owns, so it does the same.
///
/// Give each rank a thread of its own. Tasks of a thread pool that wait for one another wait forever
/// where the pool has fewer threads than there are ranks.
///
/// ```
/// use relata::ranks::{Communicator, InProcess};
/// # fn main() -> relata::Result<()> {
/// let ranks = InProcess::ranks(3)?;
/// std::thread::scope(|scope| {
///     for mut rank in ranks {
///         scope.spawn(move || {
///             let own = vec![7u8; rank.rank()];
///             let gathered = rank.all_gather(&own).expect("nobody leaves");
///             assert_eq!(gathered.of_rank(2), Some(&[7, 7][..]));
///         });
///     }
/// });
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct InProcess {
    shared: Arc<Shared>,
    rank: usize,
    limit: Duration,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// An exchange is complete, or it never will be.
    changed: Condvar,
    world: usize,
}

#[derive(Debug)]
struct State {
    /// The number of exchanges that are complete.
    round: u64,
    /// What has come of the next one.
    slots: Vec<Option<Vec<u8>>>,
    /// The last one. The next cannot complete before every rank has read it.
    gathered: Gathered,
    /// Why there are no more.
    failed: Option<Error>,
}

impl Shared {
    /// The state is whole whenever the lock is free, so a panic elsewhere does not spoil it.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fail(&self, state: &mut State, error: Error) {
        state.failed.get_or_insert(error);
        self.changed.notify_all();
    }
}

impl InProcess {
    /// The ranks of a world of so many, in their order.
    ///
    /// # Errors
    /// [`Error::Empty`] for none.
    pub fn ranks(world: usize) -> Result<Vec<InProcess>> {
        not_empty("ranks", world)?;
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                round: 0,
                slots: vec![None; world],
                gathered: Gathered::default(),
                failed: None,
            }),
            changed: Condvar::new(),
            world,
        });
        let rank = |rank| InProcess {
            shared: Arc::clone(&shared),
            rank,
            limit: LIMIT,
        };
        Ok((0..world).map(rank).collect())
    }

    /// Sets how long this rank waits for the others in an exchange; 10 minutes at first. After that
    /// the exchanges of all ranks fail with [`Error::RankLate`].
    #[must_use]
    pub fn with_limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }
}

impl Communicator for InProcess {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world(&self) -> usize {
        self.shared.world
    }

    fn all_gather(&mut self, bytes: &[u8]) -> Result<Gathered> {
        let own = bytes.to_vec();
        let since = Instant::now();
        let mut state = self.shared.lock();
        if let Some(error) = &state.failed {
            return Err(error.clone());
        }
        let round = state.round;
        state.slots[self.rank] = Some(own);
        if state.slots.iter().all(Option::is_some) {
            let gathered = Gathered::new(state.slots.iter_mut().filter_map(Option::take));
            state.gathered = gathered;
            state.round += 1;
            self.shared.changed.notify_all();
            return Ok(state.gathered.clone());
        }
        loop {
            // Complete before failed: a rank may leave once it has all that it came for.
            if state.round != round {
                return Ok(state.gathered.clone());
            }
            if let Some(error) = &state.failed {
                return Err(error.clone());
            }
            let left = self.limit.saturating_sub(since.elapsed());
            if left.is_zero() {
                let rank = state.slots.iter().position(Option::is_none).unwrap_or(0);
                let limit = self.limit;
                self.shared
                    .fail(&mut state, Error::RankLate { rank, limit });
                continue;
            }
            let waited = self.shared.changed.wait_timeout(state, left);
            (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for InProcess {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        let rank = self.rank;
        self.shared.fail(&mut state, Error::RankLeft { rank });
    }
}
