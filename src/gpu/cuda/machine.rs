//! Evaluating host slices on a GPU.

use std::sync::Arc;

use cudarc::driver::CudaStream;

use super::context::KernelContext;
use super::memory::Memory;
use crate::error::Result;
use crate::gpu::machine::{Launch, Launcher, Limits, Machine};

/// The GPU for one evaluation of host slices.
pub(crate) struct CudaMachine<'a> {
    stream: &'a Arc<CudaStream>,
    context: &'a KernelContext,
}

impl<'a> CudaMachine<'a> {
    pub(super) fn new(stream: &'a Arc<CudaStream>, context: &'a KernelContext) -> Self {
        CudaMachine { stream, context }
    }
}

impl Launcher for CudaMachine<'_> {
    fn launch(&mut self, launch: Launch<'_>) -> Result<()> {
        // The context is current on this thread: an allocation precedes each launch and makes it
        // current.
        self.context
            .launcher(self.stream.cu_stream())?
            .launch(launch)
    }
}

impl Machine for CudaMachine<'_> {
    type Memory = Memory;

    fn limits(&self) -> Limits {
        self.context.gpu().limits
    }

    fn allocate(&mut self, argument: &'static str, bytes: usize) -> Result<Memory> {
        Memory::new(self.stream, argument, bytes)
    }

    fn address(&self, memory: &Memory) -> u64 {
        memory.address()
    }

    fn write(&mut self, memory: &mut Memory, bytes: &[u8]) -> Result<()> {
        memory.write(bytes)
    }

    fn read(&mut self, memory: &Memory, bytes: &mut [u8]) -> Result<()> {
        memory.read(bytes)
    }
}
