//! A queue of teacher keys on a GPU.
#![allow(unsafe_code, reason = "passes addresses to the raw queue")]

use std::marker::PhantomData;
use std::sync::Arc;

use cudarc::driver::{CudaStream, DevicePtr};
use half::f16;

use super::evaluator::check;
use super::memory::{Memory, bind};
use super::raw::{RawEvaluator, no_queue};
use super::raw_queue::RawQueue;
use crate::checks::{not_empty, same, zeroed};
use crate::error::Result;
use crate::gpu::element::{GpuDType, GpuElement, KeyType};
use crate::problem::Problem;
use crate::queue::QueueState;
use crate::rows::Rows;

/// A [queue](crate::Queue) of teacher keys on a GPU: a ring whose capacity is that of the problem's
/// shapes.
///
/// It is empty at first. A loss compares with the keys that have entered. The queue normalises keys
/// if the loss normalises rows. Normalised keys of f16 and bf16 rows are stored as f16, all other
/// keys as f32.
///
/// A batch may have fewer rows than the problem, or more after [`reserve`](Self::reserve).
///
/// It may move to another thread, as an [`Evaluator`](super::Evaluator#threads) may.
#[derive(Debug)]
pub struct Queue<T> {
    raw: RawQueue,
    rows: usize,
    memory: Memory,
    stream: Arc<CudaStream>,
    /// Whether a batch may have entered. Before, the queue is empty and a loss has nothing to
    /// compare with.
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
        super::driver::ready()?;
        bind(stream)?;
        let evaluator = RawEvaluator::new::<T>(problem)?;
        let raw = evaluator.queue().cloned().ok_or_else(no_queue)?;
        let memory = Memory::new(stream, "queue", raw.bytes())?;
        // SAFETY: the memory has this length. The memory and the stream are of the context bound
        // above.
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

    /// The largest number of keys it holds.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.raw.layout.capacity
    }

    /// The length of a key, D.
    #[must_use]
    pub fn dim(&self) -> usize {
        self.raw.layout.dim
    }

    /// The largest number of rows of a batch.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Makes room for batches of up to `rows` rows. If there is too little room, it allocates new
    /// memory and copies the ring on the GPU, without waiting. After that, do not launch graphs
    /// that captured evaluations with this queue.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory),
    /// [`Error::TooLarge`](crate::Error::TooLarge) and [`Error::Cuda`](crate::Error::Cuda). The
    /// queue is unchanged after an error.
    pub fn reserve(&mut self, rows: usize) -> Result<()> {
        if rows <= self.rows {
            return Ok(());
        }
        self.memory.bind()?;
        let raw = self.raw.with_rows(rows, GpuDType::of::<T>())?;
        let mut memory = Memory::new(&self.stream, "queue", raw.bytes())?;
        // SAFETY: the memory has this length. The memory and the stream are of the context bound
        // above.
        unsafe { raw.initialize_scratch(memory.address(), self.stream.cu_stream().cast()) }?;
        memory.copy(&mut self.memory, raw.ring_bytes())?;
        (self.raw, self.memory, self.rows) = (raw, memory, rows);
        Ok(())
    }

    /// Launches the entry of `keys` `[N, D]` and returns at once. N is at most
    /// [`rows`](Self::rows).
    ///
    /// Keys enter in order. In a full queue they replace the oldest keys. A batch with a NaN or an
    /// infinity does not enter. The call only launches kernels, so a graph may capture it.
    ///
    /// # Errors
    /// As [`Evaluator::launch`](super::Evaluator::launch), and
    /// [`Error::Empty`](crate::Error::Empty).
    pub fn enqueue(&mut self, keys: &impl DevicePtr<T>) -> Result<()> {
        let stream = Arc::clone(&self.stream);
        let rows = keys.len().div_ceil(self.dim());
        not_empty("keys", rows)?;
        self.has_room_for(rows)?;
        check("keys", keys, rows * self.dim(), &stream)?;
        self.memory.bind()?;
        let raw = self.raw.with_rows(rows, GpuDType::of::<T>())?;
        let (keys, _read) = keys.device_ptr(&stream);
        // SAFETY: the slice has this length and is in the queue's context. cudarc frees it only
        // after the launches that use it.
        unsafe { self.enqueue_at(&raw, keys) }
    }

    /// # Safety
    /// `raw` [fits](Self::fits). The memory is [bound](Memory::bind). A batch with the rows of `raw` is
    /// at `keys` when the stream reaches these launches.
    pub(super) unsafe fn enqueue_at(&mut self, raw: &RawQueue, keys: u64) -> Result<()> {
        self.used = true;
        let stream = self.stream.cu_stream().cast();
        // SAFETY: the caller promises the keys. The memory is this queue's. It is initialised and
        // bound, so no other stream uses it, and it is large enough for these rows. The ring starts
        // at the same address for any number of rows.
        unsafe { raw.enqueue(keys, self.memory.address(), stream) }
    }

    /// Removes all keys, in the order of the stream.
    ///
    /// # Errors
    /// [`Error::Cuda`](crate::Error::Cuda).
    pub fn clear(&mut self) -> Result<()> {
        self.memory.bind()?;
        self.used = false;
        // SAFETY: this queue's memory and its stream.
        unsafe {
            self.raw
                .initialize(self.memory.address(), self.stream.cu_stream().cast())
        }
    }

    /// Waits for the stream and returns the number of keys in the queue.
    ///
    /// # Errors
    /// [`Error::Cuda`](crate::Error::Cuda), also for a fault in an earlier evaluation.
    pub fn len(&self) -> Result<usize> {
        let mut state = [0u32; 2];
        self.memory.read(bytemuck::cast_slice_mut(&mut state))?;
        Ok(state[1] as usize)
    }

    /// Waits for the stream and returns whether the queue has no keys.
    ///
    /// # Errors
    /// As [`len`](Self::len).
    pub fn is_empty(&self) -> Result<bool> {
        self.len().map(|len| len == 0)
    }

    /// Waits for the stream and copies the queue to the host, to save its
    /// [`state`](crate::Queue::state). Each key keeps its slot.
    ///
    /// # Errors
    /// [`Error::Cuda`](crate::Error::Cuda), also for a fault in an earlier evaluation, and
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
            KeyType::F16 => bytemuck::pod_read_unaligned::<f16>(&keys[2 * at..][..2]).to_f32(),
            _ => bytemuck::pod_read_unaligned(&keys[4 * at..][..4]),
        };
        let mut rows = zeroed("queue", len * dim)?;
        for (at, x) in rows.iter_mut().enumerate() {
            *x = read(at / dim * pitch + at % dim);
        }
        crate::Queue::from_state(QueueState {
            keys: Rows::new(&rows, [len, dim])?,
            capacity: self.capacity(),
            next,
            normalize: self.raw.normalize,
        })
    }

    /// Replaces the keys by those of a queue on the host, to continue a training, and waits for the
    /// copy.
    ///
    /// If both have the same capacity, each key keeps its slot, so the training goes on with the
    /// same bits. Otherwise the oldest key goes to the first slot, and if there is no room for all,
    /// the newest are kept.
    ///
    /// # Errors
    /// [`Error::Dimension`](crate::Error::Dimension) if its keys are not of length D,
    /// [`Error::OtherNormalization`](crate::Error::OtherNormalization) if they are not normalised as
    /// these are; otherwise as [`to_host`](Self::to_host).
    pub fn restore(&mut self, host: &crate::Queue<f32>) -> Result<()> {
        same("queue_dim", self.dim(), host.dim())?;
        if host.normalize() != self.raw.normalize {
            return Err(crate::Error::OtherNormalization {
                normalize: self.raw.normalize,
            });
        }
        let reordered;
        let host = if host.capacity() == self.capacity() {
            host
        } else {
            let keys = host.to_vec();
            let mut raw = crate::Queue::new(self.capacity(), self.dim())?.with_normalize(false);
            raw.enqueue(Rows::new(&keys, [host.len(), self.dim()])?)?;
            reordered = raw.with_normalize(self.raw.normalize);
            &reordered
        };
        let (next, len) = (host.state().next, host.len());
        let addresses = self.raw.addresses(0);
        let mut bytes = vec![0; addresses.keys as usize];
        let state = [next, len].map(|count| u32::try_from(count).unwrap_or(u32::MAX));
        bytes[addresses.state as usize..][..8].copy_from_slice(bytemuck::bytes_of(&state));
        bytes.extend(self.raw.layout.pack(host)?);
        self.used = len > 0;
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

    /// Returns an error if this queue is not for the evaluator's problem or not on its stream.
    pub(super) fn fits(
        &self,
        raw: &RawQueue,
        problem: &Problem,
        stream: &CudaStream,
    ) -> Result<()> {
        self.has_room_for(problem.shapes().rows)?;
        let (mine, its) = (self.raw.layout, raw.layout);
        same("queue keys", its.capacity, mine.capacity)?;
        same("queue_dim", its.dim, mine.dim)?;
        // It decides on the type of the keys as well.
        if self.raw.normalize != raw.normalize {
            return Err(crate::Error::QueueNormalization {
                loss: problem.loss().name(),
                normalize: problem.spec().normalize,
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

    /// The address of its memory, for launches on the stream that follow now.
    pub(super) fn bind(&mut self) -> Result<u64> {
        self.memory.bind()?;
        Ok(self.memory.address())
    }
}
