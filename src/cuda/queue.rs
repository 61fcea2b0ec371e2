//! The memory of past teacher keys on a GPU.
#![allow(unsafe_code, reason = "hands addresses to the raw entry")]

use std::marker::PhantomData;
use std::sync::Arc;

use cudarc::driver::{CudaStream, DevicePtr};
use half::f16;

use super::evaluator::{bind, check};
use super::memory::Memory;
use super::raw::{RawEvaluator, no_queue};
use super::raw_queue::RawQueue;
use crate::checks::{not_empty, same};
use crate::element::DType;
use crate::error::Result;
use crate::gpu::element::GpuElement;
use crate::problem::Problem;
use crate::rows::Rows;

/// A [queue](crate::Queue) that lives on a GPU, for the batches of a problem: a ring of as many keys as the
/// problem's shapes say, empty at first, of which a loss sees the keys that have entered. Its keys are
/// normalised if the loss's rows are; unit keys beside f16 and bf16 rows are stored as f16.
///
/// Batches may have fewer rows than the problem's, and more after [`reserve`](Self::reserve).
#[derive(Debug)]
pub struct Queue<T> {
    raw: RawQueue,
    rows: usize,
    memory: Memory,
    stream: Arc<CudaStream>,
    /// Whether a batch may have entered: until then there is nothing to compare with.
    used: bool,
    element: PhantomData<fn(T)>,
}

impl<T: GpuElement> Queue<T> {
    /// An empty queue for the batches of `problem`.
    ///
    /// # Errors
    /// [`Error::Missing`](crate::Error::Missing) if the problem has no queue; otherwise as
    /// [`Evaluator::new`](super::Evaluator::new).
    pub fn new(stream: &Arc<CudaStream>, problem: &Problem) -> Result<Self> {
        super::driver::version()?;
        bind(stream)?;
        let evaluator = RawEvaluator::new::<T>(problem)?;
        let raw = evaluator.queue().cloned().ok_or_else(no_queue)?;
        let memory = Memory::new(stream, "queue", raw.bytes())?;
        // SAFETY: memory of this length, and a stream, of the context that was bound above.
        unsafe { raw.initialize(memory.address(), stream.cu_stream().cast()) }?;
        Ok(Queue {
            raw,
            rows: problem.shapes().rows,
            memory,
            stream: Arc::clone(stream),
            used: false,
            element: PhantomData,
        })
    }

    /// The most keys it holds.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.raw.layout.capacity
    }

    /// The length of a key, D.
    #[must_use]
    pub fn dim(&self) -> usize {
        self.raw.layout.dim
    }

    /// The most rows a batch may have.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Makes room for batches of up to `rows` rows: where there is too little, by copying the ring on the
    /// GPU. Nothing waits. A graph that captured evaluations beside this queue must not be launched again.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory), [`Error::TooLarge`](crate::Error::TooLarge) and
    /// [`Error::Cuda`](crate::Error::Cuda); the queue is as it was then.
    pub fn reserve(&mut self, rows: usize) -> Result<()> {
        if rows <= self.rows {
            return Ok(());
        }
        bind(&self.stream)?;
        let raw = self.raw.with_rows(rows, T::DTYPE)?;
        let mut memory = Memory::new(&self.stream, "queue", raw.bytes())?;
        // SAFETY: memory of this length, and a stream, of the context that was bound above.
        unsafe { raw.initialize_scratch(memory.address(), self.stream.cu_stream().cast()) }?;
        memory.copy(&self.memory, raw.ring_bytes())?;
        (self.raw, self.memory, self.rows) = (raw, memory, rows);
        Ok(())
    }

    /// Enqueues the entry of `keys` `[N, D]` and returns: in order, over the oldest keys where there is no
    /// room. N is [`rows`](Self::rows) at most. A batch that holds a NaN or an infinity does not enter.
    /// Launches only: a graph may capture it.
    ///
    /// # Errors
    /// As [`Evaluator::launch`](super::Evaluator::launch), and [`Error::Empty`](crate::Error::Empty).
    pub fn enqueue(&mut self, keys: &impl DevicePtr<T>) -> Result<()> {
        let stream = Arc::clone(&self.stream);
        let rows = keys.len().div_ceil(self.dim());
        not_empty("keys", rows)?;
        self.has_room_for(rows)?;
        check("keys", keys, rows * self.dim(), &stream)?;
        let raw = self.raw.with_rows(rows, T::DTYPE)?;
        bind(&stream)?;
        let (keys, _read) = keys.device_ptr(&stream);
        // SAFETY: a slice of this length in the queue's context, which cudarc frees only after what was
        // launched on it.
        unsafe { self.enqueue_at(&raw, keys) }
    }

    /// # Safety
    /// `raw` [fits](Self::fits), and a batch of its rows lies at `keys` when the stream, whose context is
    /// current, comes to it.
    pub(super) unsafe fn enqueue_at(&mut self, raw: &RawQueue, keys: u64) -> Result<()> {
        self.used = true;
        let stream = self.stream.cu_stream().cast();
        // SAFETY: the caller promises the keys. The memory is this queue's, initialised, used on this stream
        // alone, and large enough for these rows; the ring lies at the same place for any number of them.
        unsafe { raw.enqueue(keys, self.memory.address(), stream) }
    }

    /// Forgets all keys, in the stream's order.
    ///
    /// # Errors
    /// [`Error::Cuda`](crate::Error::Cuda).
    pub fn clear(&mut self) -> Result<()> {
        bind(&self.stream)?;
        self.used = false;
        // SAFETY: this queue's memory, and the stream it belongs to.
        unsafe {
            self.raw
                .initialize(self.memory.address(), self.stream.cu_stream().cast())
        }
    }

    /// Waits for the stream and asks how many keys are in the queue.
    ///
    /// # Errors
    /// [`Error::Cuda`](crate::Error::Cuda), also for what went wrong in earlier evaluations.
    pub fn len(&self) -> Result<usize> {
        let mut state = [0u32; 2];
        self.memory.read(bytemuck::cast_slice_mut(&mut state))?;
        Ok(state[1] as usize)
    }

    /// The same, for whether there are none.
    ///
    /// # Errors
    /// As [`len`](Self::len).
    pub fn is_empty(&self) -> Result<bool> {
        self.len().map(|len| len == 0)
    }

    /// Waits for the stream and copies the keys to the host: what to save.
    ///
    /// # Errors
    /// [`Error::Cuda`](crate::Error::Cuda), also for what went wrong in earlier evaluations, and
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    pub fn to_host(&self) -> Result<crate::Queue<f32>> {
        let mut bytes = vec![0; self.raw.ring_bytes()];
        self.memory.read(&mut bytes)?;
        let addresses = self.raw.addresses(0);
        let [state, keys] =
            [addresses.state, addresses.keys].map(|offset| &bytes[offset as usize..]);
        let [next, len] =
            [0, 4].map(|at| bytemuck::pod_read_unaligned::<u32>(&state[at..][..4]) as usize);
        let (dim, pitch) = (self.dim(), self.raw.layout.pitch);
        let read = |at: usize| match self.raw.layout.element {
            DType::F16 => bytemuck::pod_read_unaligned::<f16>(&keys[2 * at..][..2]).to_f32(),
            _ => bytemuck::pod_read_unaligned(&keys[4 * at..][..4]),
        };
        let mut host = crate::Queue::new(self.capacity(), dim)?.with_normalize(false);
        let oldest = if len < self.capacity() { 0 } else { next };
        let mut key = vec![0.0; dim];
        for age in 0..len {
            let slot = (oldest + age) % self.capacity();
            for (d, x) in key.iter_mut().enumerate() {
                *x = read(slot * pitch + d);
            }
            host.enqueue(Rows::new(&key, [1, dim])?)?;
        }
        Ok(host.with_normalize(self.raw.normalize))
    }

    /// Takes over the keys of a queue on the host, of which the newest stay if there is no room for all:
    /// what to go on from.
    ///
    /// # Errors
    /// [`Error::Dimension`](crate::Error::Dimension) if its keys are not of length D; otherwise as
    /// [`to_host`](Self::to_host).
    pub fn restore(&mut self, host: &crate::Queue<f32>) -> Result<()> {
        same("queue_dim", self.dim(), host.dim())?;
        // The oldest in the first slot.
        let mut ordered = crate::Queue::new(self.capacity(), self.dim())?.with_normalize(false);
        let keys = host.to_vec();
        let kept = host.len().min(self.capacity());
        let newest = &keys[(host.len() - kept) * self.dim()..];
        ordered.enqueue(Rows::new(newest, [kept, self.dim()])?)?;
        let addresses = self.raw.addresses(0);
        let mut bytes = vec![0; addresses.keys as usize];
        let state =
            [kept % self.capacity(), kept].map(|count| u32::try_from(count).unwrap_or(u32::MAX));
        bytes[addresses.state as usize..][..8].copy_from_slice(bytemuck::bytes_of(&state));
        bytes.extend(self.raw.layout.pack(&ordered)?);
        self.used = kept > 0;
        self.memory.write(&bytes)
    }

    fn has_room_for(&self, rows: usize) -> Result<()> {
        if rows <= self.rows {
            return Ok(());
        }
        Err(crate::Error::TooLarge {
            argument: "rows",
            most: self.rows,
            got: rows,
        })
    }

    /// Refuses a queue that is not for the evaluator's problem, on its stream.
    pub(super) fn fits(&self, raw: &RawQueue, rows: usize, stream: &CudaStream) -> Result<()> {
        self.has_room_for(rows)?;
        let (mine, its) = (self.raw.layout, raw.layout);
        same("queue keys", its.capacity, mine.capacity)?;
        same("queue_dim", its.dim, mine.dim)?;
        if mine != its || self.raw.normalize != raw.normalize {
            return Err(crate::Error::Missing {
                argument: "queue",
                expected: "one made for a loss that normalises as this one does",
            });
        }
        if *self.stream != *stream {
            return Err(crate::Error::ForeignMemory {
                argument: "queue",
                got: "a queue of another stream".to_owned(),
            });
        }
        Ok(())
    }

    pub(super) fn is_used(&self) -> bool {
        self.used
    }

    pub(super) fn address(&self) -> u64 {
        self.memory.address()
    }
}
