//! One loss over the rows of many MPI processes: [`MpiRank`] is relata's
//! [`Communicator`] over MPI.
//!
//! ```no_run
//! use mpi::Threading;
//! use relata::ranks::Global;
//! use relata::{Batch, Cpu, Gram, Rows};
//! use relata_mpi::MpiRank;
//!
//! # fn own_rows(_: usize) -> [Vec<f32>; 2] { [vec![], vec![]] }
//! # fn main() -> relata::Result<()> {
//! let (universe, _) = mpi::initialize_with_threading(Threading::Funneled).expect("the only call");
//! let mut rank = MpiRank::new(&universe.world());
//! # use relata::ranks::Communicator;
//! let [student, teacher] = own_rows(rank.rank());
//! let rows_of = |all| Rows::new(all, [student.len() / 32, 32]);
//! let batch = Batch::new(rows_of(&student)?, rows_of(&teacher)?);
//! let evaluation = Global::new(&Cpu, &mut rank)
//!     .evaluate(batch, |shapes| Gram::default().problem(shapes))?;
//! println!("{}", evaluation.loss);
//! # Ok(()) }
//! ```
//!
//! # When a process fails
//!
//! - A rank that is dropped, by a return or by a panic that unwinds, tells the others. They get
//!   [`Error::RankLeft`] at their next exchange.
//! - A rank that does not come within the [limit](MpiRank::with_limit), because it computes for too long
//!   or has been stopped, is an [`Error::RankLate`] on all others, and on
//!   itself when it comes.
//! - Of a process that dies, by a signal or by `exit`, the launcher learns first. `mpirun` of Open MPI
//!   says which process it was, and ends all others.
//! - An error of MPI itself ends all processes with its message: that is MPI's default, and the crate
//!   `mpi` does not look at error codes.
//!
//! After an error no later exchange works. `MPI_Finalize` waits for all processes: after a
//! `RankLate`, end the program by `MPI_Abort`.

#[allow(unsafe_code)] // MPI reads and writes memory after a call has returned
mod transfer;

use std::mem::ManuallyDrop;
use std::time::{Duration, Instant};

use mpi::topology::{Process, SimpleCommunicator};
use mpi::traits::{Communicator as _, Source};
use relata::ranks::{Communicator, Gathered};
use relata::{Error, Result};

use transfer::{HEADER, Header, Pause, TAG, Transfer};

/// How long a rank waits for the others, if nobody says otherwise: as
/// [`InProcess`](relata::ranks::InProcess).
const LIMIT: Duration = Duration::from_secs(600);

/// For how long a rank that leaves tries to say so.
const FAREWELL: Duration = Duration::from_secs(1);

/// A rank that is a process of MPI.
///
/// In an exchange each rank sends its bytes to each other rank. None of them waits inside of MPI, so
/// that a rank that is gone or late is noticed. MPI's own `MPI_Allgatherv` is faster between many
/// nodes, and waits forever.
///
/// All its calls to MPI are from the thread that calls it: `Threading::Funneled` is enough on the main
/// thread. Bytes lie in host memory.
pub struct MpiRank {
    /// Never freed: this would wait for ranks that may be gone.
    communicator: ManuallyDrop<SimpleCommunicator>,
    rank: usize,
    world: usize,
    limit: Duration,
    /// Why there are no more exchanges.
    failed: Option<Error>,
}

impl std::fmt::Debug for MpiRank {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("MpiRank");
        shown.field("rank", &self.rank).field("world", &self.world);
        shown.field("limit", &self.limit);
        shown.field("failed", &self.failed).finish()
    }
}

impl MpiRank {
    /// This process as one of those of `communicator`, which all of them have to call this with. Its
    /// messages do not mix with those of `communicator`: it is duplicated.
    pub fn new(communicator: &impl mpi::traits::Communicator) -> Self {
        let number = |rank| usize::try_from(rank).expect("MPI counts from 0");
        MpiRank {
            communicator: ManuallyDrop::new(communicator.duplicate()),
            rank: number(communicator.rank()),
            world: number(communicator.size()),
            limit: LIMIT,
            failed: None,
        }
    }

    /// Sets how long this rank waits for the others in an exchange; 10 minutes at first. It should be
    /// the same on all ranks. A rank that was late gets [`Error::RankLate`] too when it comes.
    #[must_use]
    pub fn with_limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    fn process(&self, rank: usize) -> Process<'_> {
        let rank = i32::try_from(rank).expect("MPI has given the number");
        self.communicator.process_at_rank(rank)
    }

    fn others(&self) -> impl Iterator<Item = usize> {
        let own = self.rank;
        (0..self.world).filter(move |&rank| rank != own)
    }

    /// Sends a message to all others.
    fn send(&self, header: Header, bytes: &[u8]) -> Result<Transfer> {
        let mut message = transfer::memory(HEADER + bytes.len())?;
        message[..HEADER].copy_from_slice(&header.encode());
        message[HEADER..].copy_from_slice(bytes);
        let others = self.others().map(|rank| (rank, self.process(rank)));
        Ok(Transfer::send(message, others))
    }

    /// One round of messages, from each rank to each.
    fn exchange(&self, bytes: &[u8]) -> Result<Gathered> {
        let since = Instant::now();
        let mut sent = self.send(Header::Data(bytes.len() as u64), bytes)?;
        let mut peers: Vec<Peer> = (0..self.world).map(|_| Peer::Awaited).collect();
        peers[self.rank] = Peer::Gave(bytes.to_vec());
        let mut pause = Pause::default();
        loop {
            let mut moved = false;
            for rank in self.others() {
                moved |= peers[rank].receive(rank, &self.process(rank))?;
            }
            // Who has left takes nothing more.
            let takes = |rank: usize| !matches!(peers[rank], Peer::Failed(_));
            let untaken = sent.open().find(|&rank| takes(rank));
            let missing = peers.iter().position(Peer::is_open).or(untaken);
            let failed = peers.iter().find_map(|peer| match peer {
                Peer::Failed(error) => Some(error.clone()),
                _ => None,
            });
            match (missing, failed) {
                (None, None) => break,
                // All have come or gone, so all find the same.
                (None, Some(error)) => return Err(error),
                (Some(rank), failed) if since.elapsed() >= self.limit => {
                    let limit = self.limit;
                    let error = failed.unwrap_or(Error::RankLate { rank, limit });
                    self.tell(Header::of(&error));
                    return Err(error);
                }
                (Some(_), _) => pause.after(moved),
            }
        }
        let given = peers.into_iter().filter_map(|peer| match peer {
            Peer::Gave(bytes) => Some(bytes),
            _ => None,
        });
        Ok(Gathered::new(given))
    }

    /// Sends a notice to all others, whoever still takes it.
    fn tell(&self, header: Header) {
        let Ok(mut sent) = self.send(header, &[]) else {
            return;
        };
        let (since, mut pause) = (Instant::now(), Pause::default());
        while sent.open().next().is_some() && since.elapsed() < FAREWELL {
            pause.after(false);
        }
    }
}

impl Communicator for MpiRank {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world(&self) -> usize {
        self.world
    }

    fn all_gather(&mut self, bytes: &[u8]) -> Result<Gathered> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        // The second round, of messages without bytes, says that everybody has the bytes of all. So an
        // exchange does not succeed on a late rank and fail on those that have waited for it.
        let gathered = self.exchange(bytes);
        let gathered = gathered.and_then(|gathered| self.exchange(&[]).map(|_| gathered));
        self.failed = gathered.as_ref().err().cloned();
        gathered
    }
}

impl Drop for MpiRank {
    fn drop(&mut self) {
        if !mpi::environment::is_finalized() {
            self.tell(Header::Left);
        }
    }
}

/// What another rank has sent in a round.
enum Peer {
    /// Nothing yet.
    Awaited,
    /// A part of its bytes.
    Gives(Transfer),
    /// All of them.
    Gave(Vec<u8>),
    /// A notice in place of bytes.
    Failed(Error),
}

impl Peer {
    fn is_open(&self) -> bool {
        matches!(self, Peer::Awaited | Peer::Gives(_))
    }

    /// Takes what has come, and says whether anything has.
    fn receive(&mut self, rank: usize, process: &Process<'_>) -> Result<bool> {
        match self {
            Peer::Awaited => {
                if process.immediate_probe_with_tag(TAG).is_none() {
                    return Ok(false);
                }
                let mut header = [0u8; HEADER];
                process.receive_into_with_tag(&mut header, TAG);
                *self = match Header::decode(&header)? {
                    Header::Data(len) => {
                        let len = usize::try_from(len).unwrap_or(usize::MAX);
                        Peer::Gives(Transfer::receive(transfer::memory(len)?, rank, process))
                    }
                    Header::Left => Peer::Failed(Error::RankLeft { rank }),
                    Header::GaveUp(error) => Peer::Failed(error),
                };
                Ok(true)
            }
            Peer::Gives(transfer) => {
                if transfer.open().next().is_some() {
                    return Ok(false);
                }
                *self = Peer::Gave(transfer.take());
                Ok(true)
            }
            Peer::Gave(_) | Peer::Failed(_) => Ok(false),
        }
    }
}
