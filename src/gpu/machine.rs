//! What a pass needs of the thing that runs it.

use crate::error::Result;
use crate::gpu::kernels::EntryPoint;

/// A kernel with all it is launched with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Launch<'a> {
    pub(crate) kernel: &'static EntryPoint,
    pub(crate) grid: [u32; 3],
    /// Threads of a block, along x.
    pub(crate) threads: u32,
    /// Bytes of dynamic shared memory.
    pub(crate) shared: u32,
    /// The kernel's one argument, a struct.
    pub(crate) arguments: &'a [u8],
}

/// Runs kernels, one after the other: a launch sees all that earlier ones wrote.
pub(crate) trait Launcher {
    fn launch(&mut self, launch: Launch<'_>) -> Result<()>;
}

/// What a plan depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) multiprocessors: u32,
    /// Bytes of shared memory a block can have, dynamic memory by opt-in included.
    pub(crate) shared_per_block: u32,
    /// How many times as many operations a multiprocessor does in f32 as in f64: 2 on data centres' GPUs, 64 on most others.
    pub(crate) f32_over_f64: u32,
}

#[cfg(test)]
impl Limits {
    /// An H200's, and an H100's.
    pub(crate) const HOPPER: Self = Limits {
        multiprocessors: 132,
        shared_per_block: 227 * 1024,
        f32_over_f64: 2,
    };
}

/// A launcher with memory of its own: what host slices are evaluated on.
pub(crate) trait Machine: Launcher {
    type Memory;

    fn limits(&self) -> Limits;
    /// How many elements an input is to lie off an aligned address: kernels have to do without, and the
    /// emulator makes sure that they do.
    fn misalignment(&self) -> usize {
        0
    }
    /// `bytes` bytes aligned to 256, of any content. `argument` names them in an error.
    fn allocate(&mut self, argument: &'static str, bytes: usize) -> Result<Self::Memory>;
    fn address(&self, memory: &Self::Memory) -> u64;
    /// Copies `bytes` to the beginning of `memory`.
    fn write(&mut self, memory: &mut Self::Memory, bytes: &[u8]) -> Result<()>;
    /// Copies from the beginning of `memory`, once all launches are done.
    fn read(&mut self, memory: &Self::Memory, bytes: &mut [u8]) -> Result<()>;
}
