//! The memory of past teacher keys, beside the model.

use candle_core::{DType, Device, Error, Result, Tensor, WithDType};
use half::{bf16, f16};
use relata::{Element, Real, Rows};

use crate::cpu::on_host;
use crate::error::OrCandle;
use crate::inputs::unsupported;

/// A first-in first-out ring of teacher keys `[capacity, dim]`, empty at first, that [`rrd`](crate::rrd()) and
/// [`info_nce_with`](crate::info_nce_with) compare with and fill. It belongs beside the model, on the model's device.
///
/// Keys are L2-normalised as they enter. See [`relata::Queue`].
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use relata_candle::{Queue, Rrd};
/// # fn main() -> candle_core::Result<()> {
/// let mut queue = Queue::new(Rrd::QUEUE_CAPACITY, 2, DType::F32, &Device::Cpu)?;
/// queue.enqueue(&Tensor::new(&[[3f32, 4.], [0., 2.]], &Device::Cpu)?)?;
/// let saved = queue.to_tensor()?; // of the oldest key first: to a checkpoint
/// assert_eq!(saved.to_vec2::<f32>()?, [[0.6, 0.8], [0., 1.]]);
///
/// let mut restored = Queue::new(Rrd::QUEUE_CAPACITY, 2, DType::F32, &Device::Cpu)?;
/// restored.restore(&saved)?;
/// assert_eq!(restored.len(), 2);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Queue {
    dtype: DType,
    capacity: usize,
    dim: usize,
    normalize: bool,
    ring: Ring,
}

#[derive(Clone, Debug)]
pub(crate) enum Ring {
    F64(relata::Queue<f64>),
    F32(relata::Queue<f32>),
}

impl Queue {
    /// An empty queue for `capacity` teacher rows of `dim` elements of `dtype` on `device`.
    ///
    /// # Errors
    /// A size that is 0, a dtype or a device without kernels, memory that is not there.
    pub fn new(capacity: usize, dim: usize, dtype: DType, device: &Device) -> Result<Self> {
        let ring = match (device, dtype) {
            (Device::Cpu, DType::F64) => {
                Ring::F64(relata::Queue::new(capacity, dim).or_candle(NAME)?)
            }
            (Device::Cpu, DType::F32 | DType::F16 | DType::BF16) => {
                Ring::F32(relata::Queue::new(capacity, dim).or_candle(NAME)?)
            }
            _ => return Err(unsupported(dtype, NAME)),
        };
        Ok(Queue {
            dtype,
            capacity,
            dim,
            normalize: true,
            ring,
        })
    }

    /// Whether keys are L2-normalised as they enter (on at first). Off, to go with a loss whose own `normalize` is off.
    #[must_use]
    pub fn normalize(self, normalize: bool) -> Self {
        let ring = match self.ring {
            Ring::F64(ring) => Ring::F64(ring.normalize(normalize)),
            Ring::F32(ring) => Ring::F32(ring.normalize(normalize)),
        };
        Queue {
            normalize,
            ring,
            ..self
        }
    }

    /// The number of keys in the queue.
    #[must_use]
    pub fn len(&self) -> usize {
        match &self.ring {
            Ring::F64(ring) => ring.len(),
            Ring::F32(ring) => ring.len(),
        }
    }

    /// Whether no key has entered yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The most keys it holds.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// The length of a key.
    #[must_use]
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// The dtype of the rows that enter.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Forgets all keys.
    pub fn clear(&mut self) {
        match &mut self.ring {
            Ring::F64(ring) => ring.clear(),
            Ring::F32(ring) => ring.clear(),
        }
    }

    /// Adds `keys` `[B, dim]`, in order, over the oldest ones where there is no room.
    ///
    /// # Errors
    /// A dtype or length that is not the queue's; NaN or infinities, which would spoil every loss until they leave the
    /// queue. Nothing is enqueued then.
    pub fn enqueue(&mut self, keys: &Tensor) -> Result<()> {
        let shape = keys.dims2()?.into();
        let keys = keys.contiguous()?;
        match keys.dtype() {
            DType::F64 => self.enqueue_as::<f64>(&keys, shape),
            DType::F32 => self.enqueue_as::<f32>(&keys, shape),
            DType::F16 => self.enqueue_as::<f16>(&keys, shape),
            DType::BF16 => self.enqueue_as::<bf16>(&keys, shape),
            dtype => Err(unsupported(dtype, NAME)),
        }
    }

    fn enqueue_as<T>(&mut self, keys: &Tensor, shape: [usize; 2]) -> Result<()>
    where
        T: Element<Real: HostReal> + WithDType,
    {
        let ring = self.host::<T>(NAME)?;
        on_host(keys, |keys: &[T]| {
            Rows::new(keys, shape)
                .and_then(|keys| ring.enqueue(keys))
                .or_candle(NAME)
        })
    }

    /// The keys `[len, dim]`, the oldest first: what to save in a checkpoint. f64 for f64, f32 for all others.
    ///
    /// # Errors
    /// Memory that is not there.
    pub fn to_tensor(&self) -> Result<Tensor> {
        let shape = (self.len(), self.dim);
        match &self.ring {
            Ring::F64(ring) => Tensor::from_vec(ring.to_vec(), shape, &Device::Cpu),
            Ring::F32(ring) => Tensor::from_vec(ring.to_vec(), shape, &Device::Cpu),
        }
    }

    /// Takes over the keys that [`to_tensor`](Self::to_tensor) gave, as they are, in the place of its own; of more than
    /// there is room for, the newest.
    ///
    /// # Errors
    /// As [`enqueue`](Self::enqueue); the queue is as it was then.
    pub fn restore(&mut self, keys: &Tensor) -> Result<()> {
        let shape = keys.dims2()?.into();
        let keys = keys.contiguous()?;
        let (capacity, dim, normalize) = (self.capacity, self.dim, self.normalize);
        match &mut self.ring {
            Ring::F64(ring) => *ring = restored(capacity, dim, &keys, shape)?.normalize(normalize),
            Ring::F32(ring) => *ring = restored(capacity, dim, &keys, shape)?.normalize(normalize),
        }
        Ok(())
    }

    /// The ring in host memory, for rows of `T`.
    pub(crate) fn host<T>(&mut self, op: &'static str) -> Result<&mut relata::Queue<T::Real>>
    where
        T: Element<Real: HostReal> + WithDType,
    {
        if <T as WithDType>::DTYPE != self.dtype {
            return Err(Error::DTypeMismatchBinaryOp {
                lhs: <T as WithDType>::DTYPE,
                rhs: self.dtype,
                op,
            }
            .bt());
        }
        T::Real::ring(&mut self.ring).ok_or_else(|| unsupported(self.dtype, op))
    }
}

/// A queue of these keys as they are: normalising them once more would change their last bits.
fn restored<R: HostReal>(
    capacity: usize,
    dim: usize,
    keys: &Tensor,
    shape: [usize; 2],
) -> Result<relata::Queue<R>> {
    let queue = relata::Queue::new(capacity, dim).or_candle(NAME)?;
    let mut queue = queue.normalize(false);
    on_host(keys, |keys: &[R]| {
        Rows::new(keys, shape)
            .and_then(|keys| queue.enqueue(keys))
            .or_candle(NAME)
    })?;
    Ok(queue)
}

const NAME: &str = "queue";

/// A type of keys in host memory.
pub(crate) trait HostReal: Real + WithDType {
    fn ring(ring: &mut Ring) -> Option<&mut relata::Queue<Self>>;
}

impl HostReal for f64 {
    fn ring(ring: &mut Ring) -> Option<&mut relata::Queue<f64>> {
        match ring {
            Ring::F64(ring) => Some(ring),
            Ring::F32(_) => None,
        }
    }
}

impl HostReal for f32 {
    fn ring(ring: &mut Ring) -> Option<&mut relata::Queue<f32>> {
        match ring {
            Ring::F32(ring) => Some(ring),
            Ring::F64(_) => None,
        }
    }
}
