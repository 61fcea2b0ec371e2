//! The queue of teacher keys on a device, and how a batch enters it.
//!
//! The queue is a ring. Its memory is a matrix of keys, `[capacity, pitch]`, and a state, `[next,
//! len]`: the slot that the next key takes, and the number of keys. A new key takes the slot
//! `next`; once the ring is full, that is the slot of the oldest key.
//!
//! A batch enters by two launches of kernels/enqueue.cu. The first computes the norms of the keys,
//! and whether all elements are finite. The second writes the keys and moves `next` and `len`. If
//! an element is not finite, the queue stays as it is.

use half::f16;

use super::arguments::kernel_arguments;
use super::kernels::{MEASURE_KEYS, WRITE_KEYS};
use super::machine::Launcher;
use super::plan::{QueueAddresses, grid_size};
use super::tuning::queue::{KEYS_PER_BLOCK, PITCH};
use super::workspace::{self, Region};
use crate::error::{Error, Result};
use crate::gpu::element::{GpuDType, KeyType};
use crate::queue::Queue;

/// Elements from one key to the next. Keys start on a multiple of 16 bytes.
pub(crate) const fn pitch(dim: usize) -> usize {
    dim.next_multiple_of(PITCH)
}

/// The type in which a queue stores keys, for a loss on rows of `dtype`. Normalised keys are f16
/// for rows of f16 and of bf16: their elements need no range, and f16 rounds them eight times finer
/// than bf16. All other keys are f32.
pub(crate) const fn key_type(dtype: GpuDType, normalize: bool) -> KeyType {
    match dtype {
        GpuDType::F16 | GpuDType::BF16 if normalize => KeyType::F16,
        _ => KeyType::F32,
    }
}

/// The layout of a queue in a device's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) capacity: usize,
    pub(crate) dim: usize,
    /// Elements from one key to the next. Those beyond `dim` are zero.
    pub(crate) pitch: usize,
    pub(crate) element: KeyType,
}

impl Layout {
    /// Bytes of the state: `next` and `len`, as u32.
    pub(crate) const STATE_BYTES: usize = 8;

    /// The layout for a loss on rows of `dtype`.
    pub(crate) fn new(capacity: usize, dim: usize, dtype: GpuDType, normalize: bool) -> Self {
        Layout {
            capacity,
            dim,
            pitch: pitch(dim),
            element: key_type(dtype, normalize),
        }
    }

    /// Bytes of the keys.
    pub(crate) fn bytes(&self) -> Result<usize> {
        self.capacity
            .checked_mul(self.pitch)
            .and_then(|elements| elements.checked_mul(self.element.bytes()))
            .ok_or(Error::OutOfMemory {
                argument: "queue",
                bytes: usize::MAX,
            })
    }

    /// The keys of a queue on the host in this layout, slot by slot.
    pub(crate) fn pack(&self, queue: &Queue<f32>) -> Result<Vec<u8>> {
        let mut bytes = bytemuck::allocation::try_zeroed_vec(self.bytes()?).map_err(|()| {
            Error::OutOfMemory {
                argument: "queue",
                bytes: usize::MAX,
            }
        })?;
        for (slot, key) in queue.keys().chunks_exact(self.dim).enumerate() {
            for (d, &x) in key.iter().enumerate() {
                let at = slot * self.pitch + d;
                match self.element {
                    KeyType::F16 => {
                        bytes[2 * at..][..2].copy_from_slice(&f16::from_f32(x).to_ne_bytes())
                    }
                    _ => bytes[4 * at..][..4].copy_from_slice(&x.to_ne_bytes()),
                }
            }
        }
        Ok(bytes)
    }
}

kernel_arguments! {
    /// Mirrors `Arguments` in kernels/enqueue.cu.
    pub(crate) struct Arguments {
        batch: u64,
        keys: u64,
        state: u64,
        norms: u64,
        flag: u64,
        counter: u64,
        rows: u32,
        dim: u32,
        pitch: u32,
        capacity: u32,
        normalize: u32,
        half: u32,
    }
}

impl Arguments {
    /// What the first pass reads: of the rows of a batch that enters no queue.
    pub(super) fn of_norms(batch: u64, norms: u64, flag: u64, [rows, dim]: [u32; 2]) -> Self {
        Arguments {
            batch,
            keys: 0,
            state: 0,
            norms,
            flag,
            counter: 0,
            rows,
            dim,
            pitch: 0,
            capacity: 0,
            normalize: 0,
            half: 0,
        }
    }
}

/// How a batch enters a queue on the device. Both launches work on the device alone, so a captured
/// graph fills the ring further each time it runs.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(dead_code, reason = "for queues that live on a device")]
pub(crate) struct EnqueuePlan {
    dtype: GpuDType,
    queue: Layout,
    normalize: bool,
    rows: u32,
    capacity: u32,
    norms: Region,
    layout: workspace::Layout,
}

#[allow(dead_code, reason = "for queues that live on a device")]
impl EnqueuePlan {
    /// The plan for batches of `rows` keys of `dtype`.
    pub(crate) fn new(
        queue: Layout,
        rows: usize,
        dtype: GpuDType,
        normalize: bool,
    ) -> Result<Self> {
        let mut layout = workspace::Layout::new();
        Ok(EnqueuePlan {
            dtype,
            queue,
            normalize,
            rows: grid_size("keys", rows)?,
            capacity: grid_size("queue capacity", queue.capacity)?,
            norms: layout.push::<f64>(&[rows])?,
            layout,
        })
    }

    /// Bytes of the workspace, as of [`Plan::workspace_bytes`](super::plan::Plan::workspace_bytes).
    pub(crate) fn workspace_bytes(&self) -> usize {
        self.layout.bytes()
    }

    /// Launches both passes on the batch at the address `batch`.
    pub(crate) fn enqueue(
        &self,
        launcher: &mut impl Launcher,
        batch: u64,
        queue: QueueAddresses,
        workspace: u64,
    ) -> Result<()> {
        let arguments = Arguments {
            batch,
            keys: queue.keys,
            state: queue.state,
            norms: self.norms.at(workspace),
            flag: workspace::Layout::counter(1).at(workspace),
            counter: workspace::Layout::counter(0).at(workspace),
            rows: self.rows,
            dim: grid_size("queue_dim", self.queue.dim)?,
            pitch: grid_size("queue_dim", self.queue.pitch)?,
            capacity: self.capacity,
            normalize: self.normalize.into(),
            half: (self.queue.element == KeyType::F16).into(),
        };
        let grid = [self.rows.div_ceil(KEYS_PER_BLOCK), 1, 1];
        MEASURE_KEYS
            .of(self.dtype)
            .launch(launcher, grid, 0, &arguments)?;
        WRITE_KEYS
            .of(self.dtype)
            .launch(launcher, grid, 0, &arguments)
    }
}

#[cfg(all(test, feature = "emulator"))]
mod tests;
