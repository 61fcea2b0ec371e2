//! Messages on their way.

use std::mem;
use std::time::Duration;

use mpi::Tag;
use mpi::request::{Request, StaticScope};
use mpi::topology::Process;
use mpi::traits::{Destination, Source};
use relata::{Error, Result};

/// Messages from one rank to another arrive in their order, so one tag does for all.
pub(crate) const TAG: Tag = 0;

/// The bytes of a header: its kind and two numbers.
pub(crate) const HEADER: usize = 17;

/// The most bytes in a message of MPI, whose counts are `int`s. More bytes are several messages.
const PART: usize = 1 << 30;

/// What comes first.
pub(crate) enum Header {
    /// So many bytes follow.
    Data(u64),
    /// The rank takes no part any more.
    Left,
    /// The rank has given up, because of this.
    GaveUp(Error),
}

impl Header {
    /// A notice of an error that ends an exchange.
    pub(crate) fn of(error: &Error) -> Self {
        Header::GaveUp(error.clone())
    }

    pub(crate) fn encode(&self) -> [u8; HEADER] {
        let (kind, numbers) = match self {
            Header::Data(len) => (0, [*len, 0]),
            Header::GaveUp(Error::RankLate { rank, limit }) => {
                let nanoseconds = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
                (2, [*rank as u64, nanoseconds])
            }
            Header::GaveUp(Error::RankLeft { rank }) => (3, [*rank as u64, 0]),
            Header::Left | Header::GaveUp(_) => (1, [0, 0]),
        };
        let mut bytes = [kind; HEADER];
        for (to, number) in bytes[1..].chunks_exact_mut(8).zip(numbers) {
            to.copy_from_slice(&number.to_le_bytes());
        }
        bytes
    }

    pub(crate) fn decode(bytes: &[u8; HEADER]) -> Result<Self> {
        let number = |at: usize| {
            let mut number = [0; 8];
            number.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(number)
        };
        let [first, second] = [number(1), number(9)];
        let rank = usize::try_from(first).unwrap_or(usize::MAX);
        match bytes[0] {
            0 => Ok(Header::Data(first)),
            1 => Ok(Header::Left),
            2 => Ok(Header::GaveUp(Error::RankLate {
                rank,
                limit: Duration::from_nanos(second),
            })),
            3 => Ok(Header::GaveUp(Error::RankLeft { rank })),
            kind => Err(Error::Exchange {
                why: format!("expected a header of kind 0 to 3, got {kind}"),
            }),
        }
    }
}

/// Zeros.
pub(crate) fn memory(bytes: usize) -> Result<Vec<u8>> {
    let mut memory = Vec::new();
    let argument = "bytes of another rank";
    match memory.try_reserve_exact(bytes) {
        Ok(()) => memory.resize(bytes, 0),
        Err(_) => return Err(Error::OutOfMemory { argument, bytes }),
    }
    Ok(memory)
}

/// Bytes that MPI reads or writes, for as long as a request is open. If one never completes, as with a
/// rank that is gone, the bytes are never freed.
pub(crate) struct Transfer {
    /// Owned. Null when it has been taken.
    bytes: *mut [u8],
    /// With the rank that each request is about.
    requests: Vec<(usize, Request<'static, [u8]>)>,
}

impl Transfer {
    /// Sends a header and what follows it to these ranks.
    pub(crate) fn send<'a>(
        message: Vec<u8>,
        to: impl Iterator<Item = (usize, Process<'a>)>,
    ) -> Self {
        let bytes = Box::into_raw(message.into_boxed_slice());
        // SAFETY: `bytes` is a box of this transfer, valid and not freed while a request is open: see
        // `take`. Nobody writes to it: MPI only reads what it sends.
        let message: &'static [u8] = unsafe { &*bytes };
        let mut requests = Vec::new();
        for (rank, process) in to {
            let (header, data) = message.split_at(HEADER);
            for part in [header].into_iter().chain(data.chunks(PART)) {
                let request = process.immediate_send_with_tag(StaticScope, part, TAG);
                requests.push((rank, request));
            }
        }
        Transfer { bytes, requests }
    }

    /// Receives as many bytes as there is memory.
    pub(crate) fn receive(memory: Vec<u8>, rank: usize, from: &Process<'_>) -> Self {
        let bytes = Box::into_raw(memory.into_boxed_slice());
        // SAFETY: `bytes` is a box of this transfer, valid and not freed while a request is open: see
        // `take`. Until then it is reached through this reference alone.
        let memory: &'static mut [u8] = unsafe { &mut *bytes };
        let parts = memory.chunks_mut(PART);
        let request =
            |part| from.immediate_receive_into_with_tag::<_, [u8]>(StaticScope, part, TAG);
        let requests = parts.map(|part| (rank, request(part))).collect();
        Transfer { bytes, requests }
    }

    /// The ranks whose requests have not completed.
    pub(crate) fn open(&mut self) -> impl Iterator<Item = usize> {
        let requests = mem::take(&mut self.requests).into_iter();
        let open = requests.filter_map(|(rank, request)| Some((rank, request.test().err()?)));
        self.requests = open.collect();
        self.requests.iter().map(|&(rank, _)| rank)
    }

    /// The bytes, or none while a request is open.
    pub(crate) fn take(&mut self) -> Vec<u8> {
        if self.bytes.is_null() || self.open().next().is_some() {
            return Vec::new();
        }
        let bytes = mem::replace(
            &mut self.bytes,
            std::ptr::slice_from_raw_parts_mut(std::ptr::null_mut(), 0),
        );
        // SAFETY: `bytes` comes from `Box::into_raw` and is taken once: it is null afterwards. All
        // requests are complete, so MPI has no pointer into it, and no reference is left.
        unsafe { Box::from_raw(bytes) }.into_vec()
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        drop(self.take());
        for (_, request) in self.requests.drain(..) {
            // Its destructor panics. Its bytes stay where they are.
            mem::forget(request);
        }
    }
}

/// How long to wait before looking again: not at all at first, for exchanges are short.
#[derive(Default)]
pub(crate) struct Pause {
    looks: u32,
}

impl Pause {
    pub(crate) fn after(&mut self, moved: bool) {
        self.looks = if moved {
            0
        } else {
            self.looks.saturating_add(1)
        };
        if self.looks < 1000 {
            std::thread::yield_now();
        } else {
            std::thread::sleep(Duration::from_micros(100));
        }
    }
}
