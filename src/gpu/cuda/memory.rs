//! Memory on the GPU.
#![allow(unsafe_code, reason = "allocates")]

use std::sync::Arc;

use cudarc::driver::{CudaStream, result};

use super::failure::WithContext;
use crate::error::Result;

/// Bytes that belong to a stream: what is launched there after they were allocated may use them, and they
/// are gone once all that was launched there before the drop is done.
#[derive(Debug)]
pub(crate) struct Memory {
    address: u64,
    bytes: usize,
    stream: Arc<CudaStream>,
}

impl Memory {
    /// Aligned to 256, of any content; no bytes are one, for the driver refuses none. Binds the stream's context to this thread.
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

    /// Copies `bytes` to the beginning, in the stream's order.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        assert!(bytes.len() <= self.bytes);
        self.bind()?;
        // SAFETY: that many bytes are there. `bytes` are in pageable memory, which the driver has copied
        // when this returns.
        let result =
            unsafe { result::memcpy_htod_async(self.address, bytes, self.stream.cu_stream()) };
        result.context("copying to the GPU")
    }

    /// Copies the first `bytes` of `from`, in the stream's order, which is that of both.
    pub(super) fn copy(&mut self, from: &Memory, bytes: usize) -> Result<()> {
        assert!(bytes <= self.bytes.min(from.bytes) && self.stream == from.stream);
        self.bind()?;
        // SAFETY: that many bytes are at both, in memory of one context that stays until the stream has
        // come to this.
        let result = unsafe {
            result::memcpy_dtod_async(self.address, from.address, bytes, self.stream.cu_stream())
        };
        result.context("copying on the GPU")
    }

    /// Copies from the beginning, once all that was launched is done.
    pub(super) fn read(&self, bytes: &mut [u8]) -> Result<()> {
        assert!(bytes.len() <= self.bytes);
        self.bind()?;
        // SAFETY: that many bytes are there, and `bytes` stay borrowed until the stream has come to them.
        let result =
            unsafe { result::memcpy_dtoh_async(bytes, self.address, self.stream.cu_stream()) };
        let copied = result.context("copying from the GPU");
        // Even after a failure: part of the copy may be under way.
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
            // SAFETY: allocated on this stream by `new`, and nothing that is launched from now on has it.
            unsafe { result::free_async(self.address, self.stream.cu_stream()) }
        } else {
            // SAFETY: allocated by `new`; waits until nothing on the GPU uses it.
            unsafe { result::free_sync(self.address) }
        };
        context.record_err(freed);
    }
}
