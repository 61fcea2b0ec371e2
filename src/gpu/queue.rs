//! The ring of teacher keys as it lies on a device: `[capacity, pitch]` keys and a state, `[next, len]`.

use half::f16;

use crate::element::DType;
use crate::error::{Error, Result};
use crate::queue::Queue;

/// Keys start on a multiple of 16 bytes and are copied 16 bytes at a time, in f16 and in f32.
pub(crate) const fn pitch(dim: usize) -> usize {
    dim.next_multiple_of(8)
}

/// What keys are stored as. Unit keys of a half-precision loss are f16 whichever half it is: their elements
/// need no range, and f16 rounds them eight times finer than bf16.
pub(crate) const fn key_type(dtype: DType, normalize: bool) -> DType {
    match dtype {
        DType::F16 | DType::BF16 if normalize => DType::F16,
        _ => DType::F32,
    }
}

/// How a queue lies in a device's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) capacity: usize,
    pub(crate) dim: usize,
    /// Elements from one key to the next; those beyond `dim` are zero.
    pub(crate) pitch: usize,
    /// f32 or f16.
    pub(crate) element: DType,
}

impl Layout {
    /// Bytes of the state: the slot the next key goes to, and the number of keys, as u32.
    pub(crate) const STATE_BYTES: usize = 8;

    /// For a loss on rows of `dtype`.
    pub(crate) fn new(capacity: usize, dim: usize, dtype: DType, normalize: bool) -> Self {
        Layout {
            capacity,
            dim,
            pitch: pitch(dim),
            element: key_type(dtype, normalize),
        }
    }

    /// Bytes of the keys.
    pub(crate) fn bytes(&self) -> Result<usize> {
        let size = match self.element {
            DType::F16 => size_of::<f16>(),
            _ => size_of::<f32>(),
        };
        self.capacity
            .checked_mul(self.pitch)
            .and_then(|elements| elements.checked_mul(size))
            .ok_or(Error::OutOfMemory {
                argument: "queue",
                bytes: usize::MAX,
            })
    }

    /// The keys of a queue on the host, in the order of their slots.
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
                    DType::F16 => {
                        bytes[2 * at..][..2].copy_from_slice(&f16::from_f32(x).to_ne_bytes())
                    }
                    _ => bytes[4 * at..][..4].copy_from_slice(&x.to_ne_bytes()),
                }
            }
        }
        Ok(bytes)
    }
}
