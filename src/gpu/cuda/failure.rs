//! The driver's errors as errors of this crate: the code, its name, and what the crate was doing.

use cudarc::driver::result::DriverError;

use crate::error::{Error, Result};

// Codes of the driver whose cause a user can fix.
pub(super) const OUT_OF_MEMORY: u32 = 2;
pub(super) const STUB_LIBRARY: u32 = 34;
pub(super) const NO_DEVICE: u32 = 100;
pub(super) const NO_BINARY_FOR_GPU: u32 = 209;
pub(super) const UNSUPPORTED_PTX_VERSION: u32 = 222;

pub(super) fn code(error: DriverError) -> u32 {
    error.0 as u32
}

/// For example `CUDA_ERROR_ILLEGAL_ADDRESS (700): an illegal memory access was encountered`.
pub(super) fn message(error: DriverError) -> String {
    let name = format!("{:?} ({})", error.0, code(error));
    match error.error_string() {
        Ok(text) => format!("{name}: {}", text.to_string_lossy()),
        Err(_) => name,
    }
}

/// Adds to an error of the driver what the crate was doing.
pub(super) trait WithContext<T> {
    /// `during` completes the sentence "the driver failed while ...".
    fn context(self, during: &'static str) -> Result<T>;
    /// The same for an allocation of `bytes` bytes for `argument`.
    fn allocating(self, argument: &'static str, bytes: usize) -> Result<T>;
}

impl<T> WithContext<T> for std::result::Result<T, DriverError> {
    fn context(self, during: &'static str) -> Result<T> {
        self.map_err(|error| Error::Cuda {
            during,
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
