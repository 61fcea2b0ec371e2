//! The layout of a plan's scratch memory.

use bytemuck::Pod;

use crate::error::{Error, Result};

/// Every buffer starts on a multiple of this. It is enough for any load and for TMA.
const ALIGNMENT: usize = 256;

/// A buffer in the workspace: the offset at which it starts, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Region(u64);

impl Region {
    /// The address of the buffer in the workspace at `base`.
    pub(crate) fn at(self, base: u64) -> u64 {
        base + self.0
    }
}

/// The layout of a workspace, to which buffers are added one by one. Counters come first. They are
/// zero before the first evaluation, and every evaluation leaves them zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Layout {
    bytes: usize,
}

impl Layout {
    /// The bytes at the beginning that must be zero before the first evaluation.
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

    /// Adds a buffer of `counts[0] · counts[1] · …` elements.
    pub(crate) fn push<T: Pod>(&mut self, counts: &[usize]) -> Result<Region> {
        let start = self.bytes;
        let end = counts
            .iter()
            .try_fold(size_of::<T>(), |product, &count| product.checked_mul(count))
            .and_then(|bytes| start.checked_add(bytes))
            .and_then(|end| end.checked_next_multiple_of(ALIGNMENT))
            // Keep addresses and differences of pointers below 2^63.
            .filter(|&end| isize::try_from(end).is_ok())
            .ok_or(Error::OutOfMemory {
                argument: "workspace",
                bytes: usize::MAX,
            })?;
        self.bytes = end;
        Ok(Region(start as u64))
    }

    /// The size of the workspace.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}
