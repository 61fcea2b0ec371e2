//! What the driver says, as this crate's errors: the code, its name and what was being done.

use cudarc::driver::result::DriverError;

use crate::error::{Error, Result};

// The driver's codes that stand for something a user can mend.
pub(super) const OUT_OF_MEMORY: u32 = 2;
pub(super) const STUB_LIBRARY: u32 = 34;
pub(super) const NO_DEVICE: u32 = 100;
pub(super) const NO_BINARY_FOR_GPU: u32 = 209;
pub(super) const UNSUPPORTED_PTX_VERSION: u32 = 222;

pub(super) fn code(error: DriverError) -> u32 {
    error.0 as u32
}

/// Such as `CUDA_ERROR_ILLEGAL_ADDRESS (700): an illegal memory access was encountered`.
pub(super) fn message(error: DriverError) -> String {
    let name = format!("{:?} ({})", error.0, code(error));
    match error.error_string() {
        Ok(text) => format!("{name}: {}", text.to_string_lossy()),
        Err(_) => name,
    }
}

/// A result of the driver with what was being done.
pub(super) trait WithContext<T> {
    fn context(self, doing: &'static str) -> Result<T>;
    /// The same where memory for `argument` was asked for.
    fn allocating(self, argument: &'static str, bytes: usize) -> Result<T>;
}

impl<T> WithContext<T> for std::result::Result<T, DriverError> {
    fn context(self, doing: &'static str) -> Result<T> {
        self.map_err(|error| Error::Cuda {
            doing,
            code: code(error),
            message: message(error),
        })
    }

    fn allocating(self, argument: &'static str, bytes: usize) -> Result<T> {
        match self {
            Err(error) if code(error) == OUT_OF_MEMORY => {
                Err(Error::OutOfMemory { argument, bytes })
            }
            result => result.context("allocating memory on the GPU"),
        }
    }
}
