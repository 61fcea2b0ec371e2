//! The memory of past teacher keys, beside the model.

#[cfg(feature = "cuda")]
mod gpu;

use candle_core::{DType, Device, Error, Result, Tensor, WithDType};
use half::{bf16, f16};
use relata::{Element, Real, Rows, WeightPrecision};

#[cfg(feature = "cuda")]
pub(crate) use self::gpu::{CudaRing, Keys};
use crate::cpu::on_host;
use crate::error::OrCandle;
use crate::inputs::{no_kernels, same_device, unsupported};

/// A first-in first-out ring of teacher keys `[capacity, dim]`, empty at first, that [`rrd`](crate::rrd()) and
/// [`info_nce_with`](crate::info_nce_with) compare with and fill. It belongs beside the model, on the model's device.
///
/// Keys are L2-normalised as they enter. See [`relata::Queue`].
///
/// On a GPU, batches enter by launches alone; what asks for the number of keys or for the keys waits for the stream. The
/// memory is taken when the first batch enters.
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
/// assert_eq!(restored.len()?, 2);
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Queue {
    device: Device,
    dtype: DType,
    capacity: usize,
    dim: usize,
    normalize: bool,
    weights: WeightPrecision,
    ring: Ring,
}

#[derive(Debug)]
pub(crate) enum Ring {
    F64(relata::Queue<f64>),
    F32(relata::Queue<f32>),
    #[cfg(feature = "cuda")]
    Gpu(Box<CudaRing>),
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
            (Device::Cpu, dtype) => return Err(unsupported(dtype, NAME)),
            #[cfg(feature = "cuda")]
            (Device::Cuda(gpu), dtype) => {
                Ring::Gpu(Box::new(CudaRing::new(gpu, capacity, dim, dtype)?))
            }
            (device, _) => return Err(no_kernels(device, NAME)),
        };
        Ok(Queue {
            device: device.clone(),
            dtype,
            capacity,
            dim,
            normalize: true,
            weights: WeightPrecision::default(),
            ring,
        })
    }

    /// An empty queue whose keys are L2-normalised as they enter (on at first) or, to go with a loss whose own `normalize`
    /// is off, are not. What is in it is forgotten: to be said before anything enters.
    #[must_use]
    pub fn normalize(mut self, normalize: bool) -> Self {
        self.normalize = normalize;
        match self.ring {
            Ring::F64(mut ring) => {
                ring.clear();
                self.ring = Ring::F64(ring.normalize(normalize));
            }
            Ring::F32(mut ring) => {
                ring.clear();
                self.ring = Ring::F32(ring.normalize(normalize));
            }
            #[cfg(feature = "cuda")]
            Ring::Gpu(ref mut ring) => ring.forget(normalize),
        }
        self
    }

    /// How precise the softmax weights of losses beside this queue are on a GPU, for half types; as split in two f16 at first.
    /// See [`relata::Problem::weights`]. No effect on the CPU.
    #[must_use]
    pub fn weights(mut self, weights: WeightPrecision) -> Self {
        self.weights = weights;
        self
    }

    /// The precision set by [`weights`](Self::weights).
    #[must_use]
    pub fn weight_precision(&self) -> WeightPrecision {
        self.weights
    }

    /// The number of keys in the queue.
    ///
    /// # Errors
    /// On a GPU, what went wrong there in the meantime.
    pub fn len(&self) -> Result<usize> {
        match &self.ring {
            Ring::F64(ring) => Ok(ring.len()),
            Ring::F32(ring) => Ok(ring.len()),
            #[cfg(feature = "cuda")]
            Ring::Gpu(ring) => ring.len(),
        }
    }

    /// Whether no key has entered yet.
    ///
    /// # Errors
    /// As [`len`](Self::len).
    pub fn is_empty(&self) -> Result<bool> {
        self.len().map(|len| len == 0)
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

    /// Where it lives.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Forgets all keys.
    ///
    /// # Errors
    /// On a GPU, what the driver says.
    pub fn clear(&mut self) -> Result<()> {
        match &mut self.ring {
            Ring::F64(ring) => ring.clear(),
            Ring::F32(ring) => ring.clear(),
            #[cfg(feature = "cuda")]
            Ring::Gpu(ring) => ring.clear()?,
        }
        Ok(())
    }

    /// Adds `keys` `[B, dim]`, in order, over the oldest ones where there is no room.
    ///
    /// # Errors
    /// A dtype, device or length that is not the queue's. NaN or infinities, which would spoil every loss until they leave
    /// the queue: an error on the CPU, while on a GPU, where nobody looks, such a batch just does not enter.
    pub fn enqueue(&mut self, keys: &Tensor) -> Result<()> {
        let shape: [usize; 2] = keys.dims2().map_err(|error| error.context("keys"))?.into();
        same_device(&self.device, keys.device(), NAME)?;
        let keys = keys.detach().contiguous()?;
        #[cfg(feature = "cuda")]
        if let Ring::Gpu(_) = self.ring {
            return match keys.dtype() {
                DType::F32 => self.enqueue_on_gpu::<f32>(&keys, shape),
                DType::F16 => self.enqueue_on_gpu::<f16>(&keys, shape),
                DType::BF16 => self.enqueue_on_gpu::<bf16>(&keys, shape),
                dtype => Err(unsupported(dtype, NAME)),
            };
        }
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

    #[cfg(feature = "cuda")]
    fn enqueue_on_gpu<T>(&mut self, keys: &Tensor, [rows, dim]: [usize; 2]) -> Result<()>
    where
        T: crate::gpu::CudaElement,
    {
        if dim != self.dim {
            return Err(relata::Error::Dimension {
                argument: "queue_dim",
                expected: self.dim,
                got: dim,
            })
            .or_candle(NAME);
        }
        if rows == 0 {
            return Ok(());
        }
        let device = self.device.clone();
        let queue = self.gpu::<T>(rows, device.as_cuda_device()?, NAME)?;
        crate::gpu::on_gpu(keys, |keys| queue.enqueue(&keys).or_candle(NAME))
    }

    /// The keys `[len, dim]` on the CPU, the oldest first: what to save in a checkpoint. f64 for f64, f32 for all others.
    ///
    /// # Errors
    /// Memory that is not there, and what went wrong on a GPU in the meantime.
    pub fn to_tensor(&self) -> Result<Tensor> {
        let shape = |len| (len, self.dim);
        match &self.ring {
            Ring::F64(ring) => Tensor::from_vec(ring.to_vec(), shape(ring.len()), &Device::Cpu),
            Ring::F32(ring) => Tensor::from_vec(ring.to_vec(), shape(ring.len()), &Device::Cpu),
            #[cfg(feature = "cuda")]
            Ring::Gpu(ring) => {
                let keys = ring.to_host()?;
                Tensor::from_vec(keys.to_vec(), shape(keys.len()), &Device::Cpu)
            }
        }
    }

    /// Takes over the keys that [`to_tensor`](Self::to_tensor) gave, as they are, in the place of its own; of more than
    /// there is room for, the newest. `keys` may be on any device.
    ///
    /// # Errors
    /// As [`enqueue`](Self::enqueue), on any device; the queue is as it was then.
    pub fn restore(&mut self, keys: &Tensor) -> Result<()> {
        let shape: [usize; 2] = keys.dims2().map_err(|error| error.context("keys"))?.into();
        let keys = keys.detach().to_device(&Device::Cpu)?.contiguous()?;
        let (capacity, dim, normalize) = (self.capacity, self.dim, self.normalize);
        match &mut self.ring {
            Ring::F64(ring) => *ring = restored(capacity, dim, &keys, shape)?.normalize(normalize),
            Ring::F32(ring) => *ring = restored(capacity, dim, &keys, shape)?.normalize(normalize),
            #[cfg(feature = "cuda")]
            Ring::Gpu(ring) => ring.restore(&restored(capacity, dim, &keys, shape)?)?,
        }
        Ok(())
    }

    /// The ring in host memory, for rows of `T`.
    pub(crate) fn host<T>(&mut self, op: &'static str) -> Result<&mut relata::Queue<T::Real>>
    where
        T: Element<Real: HostReal> + WithDType,
    {
        self.same_dtype(<T as WithDType>::DTYPE, op)?;
        same_device(&self.device, &Device::Cpu, op)?;
        T::Real::ring(&mut self.ring).ok_or_else(|| unsupported(self.dtype, op))
    }

    /// The ring on `device`, for batches of `rows` rows of `T`.
    #[cfg(feature = "cuda")]
    pub(crate) fn gpu<T: crate::gpu::CudaElement>(
        &mut self,
        rows: usize,
        device: &candle_core::CudaDevice,
        op: &'static str,
    ) -> Result<&mut relata::cuda::Queue<T>> {
        self.same_dtype(<T as WithDType>::DTYPE, op)?;
        same_device(&self.device, &Device::Cuda(device.clone()), op)?;
        match &mut self.ring {
            Ring::Gpu(ring) => ring.queue(rows, op),
            Ring::F64(_) | Ring::F32(_) => Err(no_kernels(&self.device, op)),
        }
    }

    fn same_dtype(&self, rows: DType, op: &'static str) -> Result<()> {
        if rows == self.dtype {
            return Ok(());
        }
        Err(Error::DTypeMismatchBinaryOp {
            lhs: rows,
            rhs: self.dtype,
            op,
        }
        .bt())
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
            _ => None,
        }
    }
}

impl HostReal for f32 {
    fn ring(ring: &mut Ring) -> Option<&mut relata::Queue<f32>> {
        match ring {
            Ring::F32(ring) => Some(ring),
            _ => None,
        }
    }
}
