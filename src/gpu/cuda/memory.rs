//! Allocations on the GPU.
#![allow(unsafe_code, reason = "allocates")]

use std::ptr::null_mut;
use std::sync::Arc;
use std::thread::{self, ThreadId};

use cudarc::driver::{CudaContext, CudaStream, result};

use super::failure::WithContext;
use crate::error::Result;

/// An allocation in the order of a stream. Later launches on the stream may use it. Dropping it
/// frees it after all launches that came before.
///
/// On the per-thread stream it may move between threads: [`bind`](Self::bind) keeps the order.
#[derive(Debug)]
pub(crate) struct Memory {
    address: u64,
    bytes: usize,
    stream: Arc<CudaStream>,
    /// Where the stream is the per-thread stream: the thread of the last use.
    thread: Option<ThreadId>,
}

impl Memory {
    /// Allocates `bytes` bytes of any content, aligned to 256, or one byte for 0, which the driver
    /// refuses. Makes the stream's context current on this thread.
    pub(super) fn new(
        stream: &Arc<CudaStream>,
        argument: &'static str,
        bytes: usize,
    ) -> Result<Self> {
        bind(stream)?;
        let bytes = bytes.max(1);
        let address = if stream.context().has_async_alloc() {
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
            thread: thread_of(stream),
        })
    }

    pub(super) fn address(&self) -> u64 {
        self.address
    }

    /// Call it before each use on the stream. It makes the stream's context current on this thread.
    /// If the stream is the per-thread stream and the last use was on another thread, it waits for
    /// that use: it was on another stream.
    pub(super) fn bind(&mut self) -> Result<()> {
        self.bind_to_read()?;
        self.thread = thread_of(&self.stream);
        Ok(())
    }

    /// The same for a use that is over before another thread can use the memory.
    fn bind_to_read(&self) -> Result<()> {
        bind(&self.stream)?;
        if self.has_moved() {
            let done = result::ctx::synchronize();
            done.context("waiting for the launches of another thread")?;
        }
        Ok(())
    }

    /// Whether the last use was on another thread, and so on another stream.
    fn has_moved(&self) -> bool {
        self.thread != thread_of(&self.stream)
    }

    /// Copies `bytes` to the beginning, in the order of the stream, and waits. Without waiting, the
    /// copy might read `bytes` later: if they are pinned, or if the GPU reads host memory itself.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.write_at(0, bytes)
    }

    /// The same from the byte `offset` on.
    pub(super) fn write_at(&mut self, offset: usize, bytes: &[u8]) -> Result<()> {
        let to = self.address + offset as u64;
        assert!(offset + bytes.len() <= self.bytes);
        self.bind()?;
        // SAFETY: the allocation is long enough, and `bytes` stays borrowed until the copy is done.
        let copied = unsafe { result::memcpy_htod_async(to, bytes, self.stream.cu_stream()) };
        self.wait_after(copied.context("copying to the GPU"))
    }

    /// Copies the first `bytes` bytes of `from`, in the order of the stream of both.
    pub(super) fn copy(&mut self, from: &mut Memory, bytes: usize) -> Result<()> {
        assert!(bytes <= self.bytes.min(from.bytes) && self.stream == from.stream);
        self.bind()?;
        from.bind()?;
        // SAFETY: both allocations are long enough and in one context. Both live until the stream
        // has made the copy.
        let result = unsafe {
            result::memcpy_dtod_async(self.address, from.address, bytes, self.stream.cu_stream())
        };
        result.context("copying on the GPU")
    }

    /// Waits for all launches, then copies from the beginning.
    pub(super) fn read(&self, bytes: &mut [u8]) -> Result<()> {
        self.read_at(0, bytes)
    }

    /// The same from the byte `offset` on.
    pub(super) fn read_at(&self, offset: usize, bytes: &mut [u8]) -> Result<()> {
        let from = self.address + offset as u64;
        assert!(offset + bytes.len() <= self.bytes);
        self.bind_to_read()?;
        // SAFETY: the allocation is long enough, and `bytes` stays borrowed until the copy is done.
        let copied = unsafe { result::memcpy_dtoh_async(bytes, from, self.stream.cu_stream()) };
        self.wait_after(copied.context("copying from the GPU"))
    }

    /// Waits for the stream, also after an error: part of the copy may still run. The context is
    /// current. This is not cudarc's `synchronize`, which returns an error of an earlier call, if
    /// there is one, instead of waiting.
    fn wait_after(&self, copied: Result<()>) -> Result<()> {
        // SAFETY: a stream of the current context.
        let done = unsafe { result::stream::synchronize(self.stream.cu_stream()) };
        copied.and(done.context("waiting for the kernels"))
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let context = self.stream.context();
        if let Err(why) = make_current(context) {
            // It is not freed: another context would be the wrong one.
            context.record_err(Err::<(), _>(why));
            return;
        }
        let freed = if !context.has_async_alloc() {
            // SAFETY: `new` allocated it. This waits until nothing on the GPU uses it.
            unsafe { result::free_sync(self.address) }
        } else {
            // The legacy stream waits for the per-thread streams of all threads.
            let stream = if self.has_moved() {
                null_mut()
            } else {
                self.stream.cu_stream()
            };
            // SAFETY: `new` allocated it on this stream, or on that of a thread for which the
            // legacy stream waits. No later launch uses it.
            unsafe { result::free_async(self.address, stream) }
        };
        context.record_err(freed);
    }
}

/// Makes the stream's context current on this thread.
pub(super) fn bind(stream: &CudaStream) -> Result<()> {
    let bound = stream.context().bind_to_thread();
    bound.context("making the GPU's context current")
}

/// The same for a destructor: cudarc's `bind_to_thread` returns an error of an earlier call, if
/// there is one, and then binds nothing. Here that error stays recorded.
fn make_current(context: &CudaContext) -> std::result::Result<(), result::DriverError> {
    if result::ctx::get_current()? == Some(context.cu_ctx()) {
        return Ok(());
    }
    // SAFETY: a context that cudarc keeps alive.
    unsafe { result::ctx::set_current(context.cu_ctx()) }
}

/// This thread, if the stream is the per-thread stream.
fn thread_of(stream: &CudaStream) -> Option<ThreadId> {
    /// The driver's constant `CU_STREAM_PER_THREAD`. It stands for a stream of the calling thread.
    const PER_THREAD: usize = 2;
    (stream.cu_stream().addr() == PER_THREAD).then(|| thread::current().id())
}
