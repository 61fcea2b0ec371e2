//! The memory of past teacher keys.

#[cfg(feature = "cuda")]
mod gpu;

use std::collections::HashMap;

use candle_core::{DType, Device, Error, Result, Tensor, WithDType};
use half::{bf16, f16};
use relata::{Element, QueueState, Real, Rows, WeightPrecision};

#[cfg(feature = "cuda")]
pub(crate) use self::gpu::{CudaRing, Keys};
use crate::cpu::on_host;
use crate::error::OrCandle;
use crate::inputs::{no_kernels, same_device, unsupported};

/// A first-in first-out ring of teacher keys `[capacity, dim]`, empty at first.
/// [`loss_with_queue`](crate::loss_with_queue) compares with them and adds to them. Make one queue
/// for a model, on the model's device.
///
/// Keys are L2-normalised as they enter. See [`relata::Queue`].
///
/// On a GPU, batches enter by launches alone. The memory is allocated when the first batch enters.
/// Methods that return the keys or their number wait for the stream.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use relata_candle::{Queue, Rrd};
/// # fn main() -> candle_core::Result<()> {
/// let mut queue = Queue::new(Rrd::QUEUE_CAPACITY, 2, DType::F32, &Device::Cpu)?;
/// queue.enqueue(&Tensor::new(&[[3f32, 4.], [0., 2.]], &Device::Cpu)?)?;
/// assert_eq!(queue.to_tensor()?.to_vec2::<f32>()?, [[0.6, 0.8], [0., 1.]]);
///
/// let checkpoint = queue.state()?; // tensors, for `candle_core::safetensors::save`
/// let mut restored = Queue::new(Rrd::QUEUE_CAPACITY, 2, DType::F32, &Device::Cpu)?;
/// restored.restore_state(&checkpoint)?;
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
    /// A size of 0, a dtype or a device without kernels, too little memory.
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

    /// Sets whether keys are L2-normalised as they enter; on at first. Off, they are stored as they
    /// come, for a loss whose own `normalize` is off. A loss refuses a queue that differs from it
    /// ([`relata::Error::QueueNormalization`]). This forgets all keys: call it before any enter.
    #[must_use]
    pub fn with_normalize(mut self, normalize: bool) -> Self {
        self.normalize = normalize;
        match self.ring {
            Ring::F64(mut ring) => {
                ring.clear();
                self.ring = Ring::F64(ring.with_normalize(normalize));
            }
            Ring::F32(mut ring) => {
                ring.clear();
                self.ring = Ring::F32(ring.with_normalize(normalize));
            }
            #[cfg(feature = "cuda")]
            Ring::Gpu(ref mut ring) => ring.forget(normalize),
        }
        self
    }

    /// Whether keys are L2-normalised as they enter.
    #[must_use]
    pub fn normalize(&self) -> bool {
        self.normalize
    }

    /// Sets how precise the softmax weights of losses with this queue are on a GPU, for half types;
    /// [`Split`](WeightPrecision::Split) at first. See [`relata::Problem::with_weight_precision`].
    /// No effect on the CPU.
    #[must_use]
    pub fn with_weight_precision(mut self, weights: WeightPrecision) -> Self {
        self.weights = weights;
        self
    }

    /// The precision set by [`with_weight_precision`](Self::with_weight_precision).
    #[must_use]
    pub fn weight_precision(&self) -> WeightPrecision {
        self.weights
    }

    /// The number of keys in the queue.
    ///
    /// # Errors
    /// On a GPU, what went wrong there since the launches.
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

    /// How many keys it holds at most.
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

    /// The device that holds the keys.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Forgets all keys.
    ///
    /// # Errors
    /// On a GPU, the driver's.
    pub fn clear(&mut self) -> Result<()> {
        match &mut self.ring {
            Ring::F64(ring) => ring.clear(),
            Ring::F32(ring) => ring.clear(),
            #[cfg(feature = "cuda")]
            Ring::Gpu(ring) => ring.clear()?,
        }
        Ok(())
    }

    /// Adds `keys` `[B, dim]`, in order. Where there is no room they replace the oldest ones.
    ///
    /// # Errors
    /// A dtype, device or length that is not the queue's. A NaN or an infinity would spoil every
    /// loss until it leaves the queue: on the CPU it is an error; on a GPU the batch does not
    /// enter, without an error, because the host does not wait for the check.
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

    /// What a checkpoint has to hold, as tensors on the CPU: [`KEYS`](Self::KEYS) `[len, dim]`, slot
    /// by slot, of f64 for f64 and f32 for all others; and [`POSITION`](Self::POSITION), three i64:
    /// the slot that the next key goes to, the capacity, and 1 if keys are normalised as they enter.
    /// After [`restore_state`](Self::restore_state) a training goes on with the same bits.
    ///
    /// ```
    /// # use candle_core::{DType, Device, Tensor};
    /// # use relata_candle::Queue;
    /// # fn main() -> candle_core::Result<()> {
    /// # let queue = Queue::new(3, 2, DType::F32, &Device::Cpu)?;
    /// # let path = std::env::temp_dir().join(format!("queue-{}", std::process::id()));
    /// candle_core::safetensors::save(&queue.state()?, &path)?;
    /// let mut queue = Queue::new(3, 2, DType::F32, &Device::Cpu)?;
    /// queue.restore_state(&candle_core::safetensors::load(&path, &Device::Cpu)?)?;
    /// # std::fs::remove_file(path)?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Too little memory, and on a GPU what went wrong there since the launches.
    pub fn state(&self) -> Result<HashMap<String, Tensor>> {
        match &self.ring {
            Ring::F64(ring) => tensors(ring.state()),
            Ring::F32(ring) => tensors(ring.state()),
            #[cfg(feature = "cuda")]
            Ring::Gpu(ring) => tensors(ring.to_host()?.state()),
        }
    }

    /// Makes this queue what it was when [`state`](Self::state) returned `state`, each key in its
    /// slot. Other tensors in `state` are ignored, and its tensors may be on any device.
    ///
    /// # Errors
    /// A missing tensor; a dtype, a length, a capacity or a normalisation that is not the queue's;
    /// what [`relata::Queue::from_state`] refuses. After an error the queue is as it was.
    pub fn restore_state(&mut self, state: &HashMap<String, Tensor>) -> Result<()> {
        let (capacity, dim, normalize) = (self.capacity, self.dim, self.normalize);
        match &mut self.ring {
            Ring::F64(ring) => *ring = from_tensors(capacity, dim, normalize, state)?,
            Ring::F32(ring) => *ring = from_tensors(capacity, dim, normalize, state)?,
            #[cfg(feature = "cuda")]
            Ring::Gpu(ring) => ring.restore(&from_tensors(capacity, dim, normalize, state)?)?,
        }
        Ok(())
    }

    /// The name of the keys in a [`state`](Self::state).
    pub const KEYS: &str = "keys";
    /// The name of the position in a [`state`](Self::state).
    pub const POSITION: &str = "position";

    /// The keys `[len, dim]` on the CPU, the oldest first. They are f64 for f64 and f32 for all
    /// others. For a checkpoint take [`state`](Self::state).
    ///
    /// # Errors
    /// Too little memory, and on a GPU what went wrong there since the launches.
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

    /// Replaces all keys by those that [`to_tensor`](Self::to_tensor) returned, as they are. If
    /// there are more than there is room for, the newest stay. `keys` may be on any device. The
    /// oldest goes to the first slot. So sums over the keys may have other last bits than before;
    /// [`restore_state`](Self::restore_state) keeps them.
    ///
    /// # Errors
    /// As [`enqueue`](Self::enqueue), but for the device. After an error the queue is as it was.
    pub fn restore(&mut self, keys: &Tensor) -> Result<()> {
        let shape: [usize; 2] = keys.dims2().map_err(|error| error.context("keys"))?.into();
        let keys = keys.detach().to_device(&Device::Cpu)?.contiguous()?;
        let (capacity, dim, normalize) = (self.capacity, self.dim, self.normalize);
        match &mut self.ring {
            Ring::F64(ring) => {
                *ring = restored(capacity, dim, &keys, shape)?.with_normalize(normalize)
            }
            Ring::F32(ring) => {
                *ring = restored(capacity, dim, &keys, shape)?.with_normalize(normalize)
            }
            #[cfg(feature = "cuda")]
            Ring::Gpu(ring) => {
                let restored = restored(capacity, dim, &keys, shape)?;
                ring.restore(&restored.with_normalize(normalize))?;
            }
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

/// A queue of these keys as they are: to normalise them once more would change their last bits.
fn restored<R: HostReal>(
    capacity: usize,
    dim: usize,
    keys: &Tensor,
    shape: [usize; 2],
) -> Result<relata::Queue<R>> {
    let queue = relata::Queue::new(capacity, dim).or_candle(NAME)?;
    let mut queue = queue.with_normalize(false);
    on_host(keys, |keys: &[R]| {
        Rows::new(keys, shape)
            .and_then(|keys| queue.enqueue(keys))
            .or_candle(NAME)
    })?;
    Ok(queue)
}

/// A state as tensors.
fn tensors<R: HostReal>(state: QueueState<'_, R>) -> Result<HashMap<String, Tensor>> {
    let QueueState {
        keys,
        capacity,
        next,
        normalize,
    } = state;
    let shape = (keys.len(), keys.dim());
    // No queue in memory has more slots than i64 counts.
    let position = [next as i64, capacity as i64, i64::from(normalize)];
    Ok(HashMap::from([
        (
            Queue::KEYS.to_owned(),
            Tensor::from_slice(keys.as_slice(), shape, &Device::Cpu)?,
        ),
        (
            Queue::POSITION.to_owned(),
            Tensor::new(&position, &Device::Cpu)?,
        ),
    ]))
}

/// The queue of a state that [`tensors`] made, if it is one of this capacity, length of keys and
/// normalisation.
fn from_tensors<R: HostReal>(
    capacity: usize,
    dim: usize,
    normalize: bool,
    state: &HashMap<String, Tensor>,
) -> Result<relata::Queue<R>> {
    let tensor = |name: &'static str| match state.get(name) {
        Some(tensor) => tensor.detach().to_device(&Device::Cpu)?.contiguous(),
        None => Err(relata::Error::Missing {
            argument: "queue state",
            expected: name,
        })
        .or_candle(NAME),
    };
    let same = |argument, expected, got| {
        if expected == got {
            return Ok(());
        }
        Err(relata::Error::Dimension {
            argument,
            expected,
            got,
        })
        .or_candle(NAME)
    };
    let position = tensor(Queue::POSITION)?.to_vec1::<i64>()?;
    let &[next, saved_capacity, saved_normalize] = &position[..] else {
        return Err(relata::Error::Length {
            argument: Queue::POSITION,
            expected: 3,
            got: position.len(),
        })
        .or_candle(NAME);
    };
    // A negative number is too large for any queue.
    let count = |number: i64| usize::try_from(number).unwrap_or(usize::MAX);
    same("queue capacity", capacity, count(saved_capacity))?;
    if normalize != (saved_normalize != 0) {
        return Err(relata::Error::OtherNormalization { normalize }).or_candle(NAME);
    }
    let keys = tensor(Queue::KEYS)?;
    let shape: [usize; 2] = keys
        .dims2()
        .map_err(|error| error.context(Queue::KEYS))?
        .into();
    same("queue_dim", dim, shape[1])?;
    let restored = |keys: &[R]| {
        let state = QueueState {
            keys: Rows::new(keys, shape)?,
            capacity,
            next: count(next),
            normalize,
        };
        relata::Queue::from_state(state)
    };
    on_host(&keys, |keys: &[R]| restored(keys).or_candle(NAME))
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
