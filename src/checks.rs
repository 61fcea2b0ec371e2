//! Checks of arguments that several modules make.

use crate::error::{Error, Result};

/// Refuses `got` unless it equals `expected`.
pub(crate) fn same(argument: &'static str, expected: usize, got: usize) -> Result<()> {
    if expected == got {
        Ok(())
    } else {
        Err(Error::Dimension {
            argument,
            expected,
            got,
        })
    }
}

/// Refuses a size of 0.
pub(crate) fn not_empty(argument: &'static str, size: usize) -> Result<()> {
    if size == 0 {
        Err(Error::Empty { argument })
    } else {
        Ok(())
    }
}

/// Refuses a size above `most`.
pub(crate) fn at_most(argument: &'static str, most: usize, got: usize) -> Result<()> {
    if got > most {
        Err(Error::TooLarge {
            argument,
            most,
            got,
        })
    } else {
        Ok(())
    }
}

/// `len` zeros, or the error that names what the memory was for.
pub(crate) fn zeroed<R: bytemuck::Zeroable>(argument: &'static str, len: usize) -> Result<Vec<R>> {
    bytemuck::allocation::try_zeroed_vec(len).map_err(|()| Error::OutOfMemory {
        argument,
        bytes: len.saturating_mul(size_of::<R>()),
    })
}
