//! Allocations on the GPU.
#![allow(unsafe_code, reason = "allocates")]

use std::sync::Arc;

use cudarc::driver::{CudaStream, result};

use super::failure::WithContext;
use crate::error::Result;

/// An allocation in the order of a stream. Later launches on the stream may use it. Dropping it
/// frees it after all launches that came before.
#[derive(Debug)]
pub(crate) struct Memory {
    address: u64,
    bytes: usize,
    stream: Arc<CudaStream>,
}

impl Memory {
    /// Allocates `bytes` bytes of any content, aligned to 256, or one byte for 0, which the driver
    /// refuses. Makes the stream's context current on this thread.
    pub(super) fn new(
        stream: &Arc<CudaStream>,
        argument: &'static str,
        bytes: usize,
    ) -> Result<Self> {
        let context = stream.context();
        context
            .bind_to_thread()
            .context("making the GPU's context current")?;
        let bytes = bytes.max(1);
        let address = if context.has_async_alloc() {
            // SAFETY: a stream of the current context.
            unsafe { result::malloc_async(stream.cu_stream(), bytes) }
        } else {
            // SAFETY: a context is current.
            unsafe { result::malloc_sync(bytes) }
        };
        Ok(Memory {
            address: address.allocating(argument, bytes)?,
            bytes,
            stream: Arc::clone(stream),
        })
    }

    pub(super) fn address(&self) -> u64 {
        self.address
    }

    /// Copies `bytes` to the beginning, in the order of the stream.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        assert!(bytes.len() <= self.bytes);
        self.bind()?;
        // SAFETY: the allocation is long enough. `bytes` is pageable memory, which the driver has
        // copied when it returns.
        let result =
            unsafe { result::memcpy_htod_async(self.address, bytes, self.stream.cu_stream()) };
        result.context("copying to the GPU")
    }

    /// Copies the first `bytes` bytes of `from`, in the order of the stream of both.
    pub(super) fn copy(&mut self, from: &Memory, bytes: usize) -> Result<()> {
        assert!(bytes <= self.bytes.min(from.bytes) && self.stream == from.stream);
        self.bind()?;
        // SAFETY: both allocations are long enough and in one context. Both live until the stream
        // has made the copy.
        let result = unsafe {
            result::memcpy_dtod_async(self.address, from.address, bytes, self.stream.cu_stream())
        };
        result.context("copying on the GPU")
    }

    /// Waits for all launches, then copies from the beginning.
    pub(super) fn read(&self, bytes: &mut [u8]) -> Result<()> {
        assert!(bytes.len() <= self.bytes);
        self.bind()?;
        // SAFETY: the allocation is long enough, and `bytes` stays borrowed until the copy is done.
        let result =
            unsafe { result::memcpy_dtoh_async(bytes, self.address, self.stream.cu_stream()) };
        let copied = result.context("copying from the GPU");
        // Wait even after an error: part of the copy may still run.
        let done = self.stream.synchronize().context("waiting for the kernels");
        copied.and(done)
    }

    fn bind(&self) -> Result<()> {
        let bound = self.stream.context().bind_to_thread();
        bound.context("making the GPU's context current")
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let context = self.stream.context();
        context.record_err(context.bind_to_thread());
        let freed = if context.has_async_alloc() {
            // SAFETY: `new` allocated it on this stream, and no later launch uses it.
            unsafe { result::free_async(self.address, self.stream.cu_stream()) }
        } else {
            // SAFETY: `new` allocated it. This waits until nothing on the GPU uses it.
            unsafe { result::free_sync(self.address) }
        };
        context.record_err(freed);
    }
}
