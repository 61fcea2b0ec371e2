//! A queue's keys in GPU memory.

use candle_core::{CudaDevice, DType, Result, WithDType};
use half::{bf16, f16};
use relata::{Rrd, Shapes};

use super::NAME;
use crate::error::OrCandle;
use crate::gpu::CudaElement;
use crate::inputs::unsupported;

/// A ring in the memory and on the stream of candle's device. That is another stream on each
/// thread: where the ring moves to another thread, relata's queue waits.
#[derive(Debug)]
pub(crate) struct CudaRing {
    device: CudaDevice,
    capacity: usize,
    dim: usize,
    pub(super) normalize: bool,
    keys: Keys,
}

/// The queue is made with the first batch, which says how many rows to expect.
#[derive(Debug)]
pub(crate) enum Keys {
    F32(Option<relata::cuda::Queue<f32>>),
    F16(Option<relata::cuda::Queue<f16>>),
    BF16(Option<relata::cuda::Queue<bf16>>),
}

/// `$body` for the queue of any type, or None where there is none yet.
macro_rules! of_keys {
    ($keys:expr, $queue:ident => $body:expr) => {
        match $keys {
            Keys::F32(Some($queue)) => Some($body),
            Keys::F16(Some($queue)) => Some($body),
            Keys::BF16(Some($queue)) => Some($body),
            Keys::F32(None) | Keys::F16(None) | Keys::BF16(None) => None,
        }
    };
}

impl CudaRing {
    pub(super) fn new(
        device: &CudaDevice,
        capacity: usize,
        dim: usize,
        dtype: DType,
    ) -> Result<Self> {
        for (argument, size) in [("queue capacity", capacity), ("queue_dim", dim)] {
            if size == 0 {
                return Err(relata::Error::Empty { argument }).or_candle(NAME);
            }
        }
        Ok(CudaRing {
            device: device.clone(),
            capacity,
            dim,
            normalize: true,
            keys: Keys::none(dtype)?,
        })
    }

    /// The queue, with room for batches of `rows` rows.
    pub(crate) fn queue<T: CudaElement>(
        &mut self,
        rows: usize,
        op: &'static str,
    ) -> Result<&mut relata::cuda::Queue<T>> {
        let shapes = Shapes::new(rows, self.dim, self.dim).with_queue(self.capacity);
        // Every loss with a queue lays its keys out in the same way.
        let loss = Rrd {
            normalize: self.normalize,
            ..Rrd::default()
        };
        let stream = self.device.cuda_stream();
        let Some(slot) = T::keys(&mut self.keys) else {
            return Err(unsupported(<T as WithDType>::DTYPE, op));
        };
        let queue = match slot.take() {
            Some(queue) => queue,
            None => loss
                .problem(shapes)
                .and_then(|problem| relata::cuda::Queue::new(&stream, &problem))
                .or_candle(op)?,
        };
        let queue = slot.insert(queue);
        queue.reserve(rows).or_candle(op)?;
        Ok(queue)
    }

    pub(super) fn len(&self) -> Result<usize> {
        let len = of_keys!(&self.keys, queue => queue.len().or_candle(NAME));
        len.unwrap_or(Ok(0))
    }

    pub(super) fn clear(&mut self) -> Result<()> {
        let cleared = of_keys!(&mut self.keys, queue => queue.clear().or_candle(NAME));
        cleared.unwrap_or(Ok(()))
    }

    /// Drops all keys; `normalize` is for those that enter from now on.
    pub(super) fn forget(&mut self, normalize: bool) {
        self.normalize = normalize;
        match &mut self.keys {
            Keys::F32(queue) => *queue = None,
            Keys::F16(queue) => *queue = None,
            Keys::BF16(queue) => *queue = None,
        }
    }

    /// The keys on the host.
    pub(super) fn to_host(&self) -> Result<relata::Queue<f32>> {
        let keys = of_keys!(&self.keys, queue => queue.to_host());
        let empty = || {
            let empty = relata::Queue::new(self.capacity, self.dim)?;
            Ok(empty.with_normalize(self.normalize))
        };
        keys.unwrap_or_else(empty).or_candle(NAME)
    }

    pub(super) fn restore(&mut self, keys: &relata::Queue<f32>) -> Result<()> {
        match self.keys {
            Keys::F32(_) => self.queue::<f32>(1, NAME)?.restore(keys),
            Keys::F16(_) => self.queue::<f16>(1, NAME)?.restore(keys),
            Keys::BF16(_) => self.queue::<bf16>(1, NAME)?.restore(keys),
        }
        .or_candle(NAME)
    }
}

impl Keys {
    fn none(dtype: DType) -> Result<Self> {
        match dtype {
            DType::F32 => Ok(Keys::F32(None)),
            DType::F16 => Ok(Keys::F16(None)),
            DType::BF16 => Ok(Keys::BF16(None)),
            dtype => Err(unsupported(dtype, NAME)),
        }
    }
}
