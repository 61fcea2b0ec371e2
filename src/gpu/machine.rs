//! The interface between the passes of a loss and the launcher that runs them: the CUDA driver or
//! the emulator.

use crate::error::Result;
use crate::gpu::kernels::EntryPoint;

/// A kernel and everything that a launch of it needs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Launch<'a> {
    pub(crate) kernel: &'static EntryPoint,
    pub(crate) grid: [u32; 3],
    /// The threads of a block, along x.
    pub(crate) threads: u32,
    /// The bytes of dynamic shared memory of a block.
    pub(crate) shared: u32,
    /// The kernel's one argument, a struct.
    pub(crate) arguments: &'a [u8],
}

/// Runs kernels in order: a launch sees everything that earlier launches wrote.
pub(crate) trait Launcher {
    fn launch(&mut self, launch: Launch<'_>) -> Result<()>;
}

/// The properties of a GPU that a plan depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) multiprocessors: u32,
    /// The most bytes of shared memory of a block, with the dynamic memory that it must opt in to.
    pub(crate) shared_per_block: u32,
    /// The f32 throughput of a multiprocessor over its f64 throughput: 2 on GPUs for data centres,
    /// 64 on most others.
    pub(crate) f32_over_f64: u32,
}

#[cfg(test)]
impl Limits {
    /// Those of an H100 and of an H200.
    pub(crate) const HOPPER: Self = Limits {
        multiprocessors: 132,
        shared_per_block: 227 * 1024,
        f32_over_f64: 2,
    };
}

/// A launcher with memory of its own. It evaluates host slices.
pub(crate) trait Machine: Launcher {
    type Memory;

    fn limits(&self) -> Limits;
    /// How many elements an input or a result of this name starts behind an aligned address.
    /// Kernels must not need alignment, and the emulator uses this to test them.
    fn misalignment(&self, _argument: &'static str) -> usize {
        0
    }
    /// Allocates `bytes` bytes of any content, aligned to 256. `argument` names them in an error.
    fn allocate(&mut self, argument: &'static str, bytes: usize) -> Result<Self::Memory>;
    fn address(&self, memory: &Self::Memory) -> u64;
    /// Copies `bytes` to the beginning of `memory`. They may end when this returns.
    fn write(&mut self, memory: &mut Self::Memory, bytes: &[u8]) -> Result<()>;
    /// Waits for all launches, then copies from the beginning of `memory`.
    fn read(&mut self, memory: &Self::Memory, bytes: &mut [u8]) -> Result<()>;
}
