//! How a plan's scratch memory is laid out.

use bytemuck::Pod;

use crate::error::{Error, Result};

/// Every buffer starts on a multiple of this, which suits any load and TMA.
const ALIGNMENT: usize = 256;

/// A buffer in the workspace: where it starts, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Region(u64);

impl Region {
    /// Its address in the workspace at `base`.
    pub(crate) fn at(self, base: u64) -> u64 {
        base + self.0
    }
}

/// The workspace as it is laid out, buffer by buffer. Counters come first: they are zero when a
/// workspace is made, and every evaluation leaves them zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Layout {
    bytes: usize,
}

impl Layout {
    /// Bytes at the beginning that have to be zero before the first evaluation.
    pub(crate) const COUNTERS: usize = ALIGNMENT;

    pub(crate) fn new() -> Self {
        Layout {
            bytes: Self::COUNTERS,
        }
    }

    /// The `index`-th 32-bit counter.
    pub(crate) fn counter(index: usize) -> Region {
        debug_assert!(index < Self::COUNTERS / 4);
        Region(4 * index as u64)
    }

    /// Room for `counts[0] · counts[1] · …` elements.
    pub(crate) fn push<T: Pod>(&mut self, counts: &[usize]) -> Result<Region> {
        let start = self.bytes;
        let end = counts
            .iter()
            .try_fold(size_of::<T>(), |product, &count| product.checked_mul(count))
            .and_then(|bytes| start.checked_add(bytes))
            .and_then(|end| end.checked_next_multiple_of(ALIGNMENT))
            // Addresses and pointer differences stay within 63 bits.
            .filter(|&end| isize::try_from(end).is_ok())
            .ok_or(Error::OutOfMemory {
                argument: "workspace",
                bytes: usize::MAX,
            })?;
        self.bytes = end;
        Ok(Region(start as u64))
    }

    /// The size of the whole.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}
