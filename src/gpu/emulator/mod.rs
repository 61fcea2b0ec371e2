//! Runs the CUDA kernels on the CPU, thread by thread.
//!
//! The blocks of a launch run in parallel on rayon's pool, or one after the other where memory is
//! weak ([`weak_memory`]). The threads of a block are fibers that take turns ([`block`]). The functions that kernels call are in emulator/ and kernels/common.
#![allow(unsafe_code, reason = "passes addresses to C++ and switches stacks")]

mod arguments;
mod arithmetic;
mod block;
mod fibers;
mod memory;
mod schedule;
#[cfg(test)]
mod tests;
mod weak_memory;

use std::cell::RefCell;

use rayon::prelude::*;

pub(crate) use self::arguments::CppFields;
use self::arguments::difference;
pub use self::arithmetic::ApproximationErrors;
use self::arithmetic::{Arithmetic, TensorCores};
use self::block::{Arena, Block};
use self::fibers::{Index, MOST_THREADS, WARP};
pub(crate) use self::memory::Memory;
use self::memory::{Aligned, Allocations};
use self::schedule::Shuffle;
use self::weak_memory::WeakMemory;
use super::machine::{Launch, Launcher, Limits, Machine};
use crate::error::{Error, Result};

/// Runs the CUDA kernels thread by thread on the CPU, to test them on a machine without a GPU. It
/// is slow by design.
///
/// The [seed](Emulator::seed) shuffles the order in which threads run. Shared and global memory
/// holds NaN until it is written, and has guards around it. Barriers are checked. A kernel that
/// does something a kernel must not do is an [`Error::Kernel`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Emulator {
    seed: u64,
    gpu: EmulatedGpu,
    errors: ApproximationErrors,
}

/// The GPU that the emulator stands for. Its limits decide which kernels a loss takes, and how the
/// work is cut into blocks. Its tensor cores decide how products of half types are added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum EmulatedGpu {
    /// No real GPU: 4 multiprocessors, so that work is split as little as possible, with 163 KiB of
    /// shared memory a block, f64 at half the rate of f32 and the A100's tensor cores.
    #[default]
    Small,
    /// 108 multiprocessors, 163 KiB, f64 at half the rate. Tensor cores add 8 products at once.
    A100,
    /// 132 multiprocessors, 227 KiB, f64 at half the rate. Tensor cores add 16 products at once.
    H200,
    /// 148 multiprocessors, 227 KiB, f64 at half the rate. Tensor cores as the H200's.
    B200,
    /// 128 multiprocessors, 99 KiB, f64 at 1/64 of the rate. Tensor cores as the A100's.
    Rtx4090,
}

impl EmulatedGpu {
    fn limits(self) -> Limits {
        let (multiprocessors, kibibytes, f32_over_f64) = match self {
            EmulatedGpu::Small => (4, 163, 2),
            EmulatedGpu::A100 => (108, 163, 2),
            EmulatedGpu::H200 => (132, 227, 2),
            EmulatedGpu::B200 => (148, 227, 2),
            EmulatedGpu::Rtx4090 => (128, 99, 64),
        };
        Limits {
            multiprocessors,
            shared_per_block: kibibytes * 1024,
            f32_over_f64,
        }
    }

    fn tensor_cores(self) -> TensorCores {
        match self {
            EmulatedGpu::Small | EmulatedGpu::A100 | EmulatedGpu::Rtx4090 => TensorCores::AMPERE,
            EmulatedGpu::H200 | EmulatedGpu::B200 => TensorCores::HOPPER,
        }
    }
}

crate::gpu::gpu_device!(Emulator, "emulator");

impl Emulator {
    /// The emulator with seed 0, of a small GPU.
    #[must_use]
    pub const fn new() -> Self {
        Emulator {
            seed: 0,
            gpu: EmulatedGpu::Small,
            errors: ApproximationErrors::None,
        }
    }

    /// The same with another schedule. The seed decides the order in which the threads of a block
    /// run, and whether the addresses of inputs and results are aligned (all are for every fourth
    /// seed, from 0). Under an odd seed the blocks run one after the other in a shuffled order, and
    /// see what other blocks have written only after the fences that CUDA asks for. No result may
    /// depend on the seed.
    #[must_use]
    pub const fn seed(self, seed: u64) -> Self {
        Emulator { seed, ..self }
    }

    /// The same for another GPU. Results are as exact on each, but sums are cut in other places, so
    /// their last bits may differ.
    #[must_use]
    pub const fn gpu(self, gpu: EmulatedGpu) -> Self {
        Emulator { gpu, ..self }
    }

    /// The same with approximations that are off. Results are as exact as a GPU's may be.
    #[must_use]
    pub const fn approximation_errors(self, errors: ApproximationErrors) -> Self {
        Emulator { errors, ..self }
    }

    pub(crate) fn machine(self) -> EmulatedMachine {
        EmulatedMachine {
            seed: self.seed,
            gpu: self.gpu,
            arithmetic: Arithmetic::new(self.errors, self.gpu.tensor_cores()),
            launches: 0,
            allocations: Allocations::default(),
        }
    }
}

/// The emulated GPU for one evaluation.
#[derive(Debug)]
pub(crate) struct EmulatedMachine {
    seed: u64,
    gpu: EmulatedGpu,
    arithmetic: Arithmetic,
    launches: u64,
    allocations: Allocations,
}

thread_local! {
    static ARENA: RefCell<Option<Arena>> = const { RefCell::new(None) };
}

impl Launcher for EmulatedMachine {
    fn launch(&mut self, launch: Launch<'_>) -> Result<()> {
        let fault = |fault: String| Error::Kernel {
            kernel: launch.kernel.name,
            fault,
        };
        let limits = self.limits();
        refused(&launch, limits).map_or(Ok(()), |what| Err(fault(what)))?;
        let [x, y, z] = launch.grid;
        let grid = Index { x, y, z };
        let arguments = Aligned::from(launch.arguments);
        let seed = Shuffle::mix(self.seed, self.launches);
        self.launches += 1;
        let arithmetic = &self.arithmetic;
        let run = |index: u64, memory: Option<&WeakMemory>| {
            let block = Block {
                kernel: launch.kernel.emulated,
                arguments: arguments.as_slice(),
                block: grid.nth(index),
                grid,
                threads: launch.threads,
                dynamic_shared: launch.shared as usize,
                most_shared: limits.shared_per_block as usize,
                arithmetic,
                memory,
            };
            let mut shuffle = Shuffle::new(Shuffle::mix(seed, index));
            let run = |arena: &mut Option<Arena>| {
                block::run(&block, arena.get_or_insert_with(Arena::new), &mut shuffle)
            };
            let Index { x, y, z } = block.block;
            // Fibers and scheduler never call rayon, so no other block uses the arena meanwhile.
            let outcome = ARENA.with_borrow_mut(run);
            outcome.map_err(|what| fault(format!("block ({x}, {y}, {z}): {what}")))
        };
        // If several blocks fail, report the first one, always.
        let failed = if self.seed.is_multiple_of(2) {
            (0..grid.count())
                .into_par_iter()
                .find_map_first(|index| run(index, None).err())
        } else {
            let order = Shuffle::new(seed).permutation(grid.count());
            let memory = WeakMemory::new(self.allocations.iter());
            let failures = order.into_iter().filter_map(|index| {
                memory.begin_block();
                let outcome = run(index, Some(&memory));
                memory.end_block();
                outcome.err().map(|error| (index, error))
            });
            let first = failures.min_by_key(|(index, _)| *index);
            memory.end_launch();
            first.map(|(_, error)| error)
        };
        failed.map_or(Ok(()), Err)?;
        let overrun = self.allocations.overrun();
        overrun.map_or(Ok(()), |what| Err(fault(what)))
    }
}

/// Why a GPU would refuse the launch, or why the launch does not fit the kernel.
fn refused(launch: &Launch<'_>, limits: Limits) -> Option<String> {
    let Launch {
        kernel,
        grid,
        threads,
        shared,
        arguments,
    } = *launch;
    let emulated = kernel.emulated;
    let [x, y, z] = grid;
    let threads_given = threads as usize;
    if emulated.threads != threads {
        Some(format!(
            "is for {} threads, not {threads}",
            emulated.threads
        ))
    } else if !(1..=MOST_THREADS).contains(&threads_given) || !threads_given.is_multiple_of(WARP) {
        Some(format!(
            "a block of {threads} threads: not whole warps, or more than {MOST_THREADS}"
        ))
    } else if [emulated.arguments_bytes as usize, kernel.arguments_bytes] != [arguments.len(); 2] {
        let (takes, given) = (emulated.arguments_bytes, arguments.len());
        Some(format!("takes {takes} bytes, not {given}"))
    } else if let Some(difference) = difference(kernel.arguments, emulated.arguments) {
        Some(format!("takes another struct: {difference}"))
    } else if arguments.len() > 4096 {
        Some(format!("takes {} bytes, more than 4096", arguments.len()))
    } else if grid.contains(&0) || x > i32::MAX.cast_unsigned() || y.max(z) > 65_535 {
        Some(format!("a grid of {x} x {y} x {z} blocks"))
    } else if shared > limits.shared_per_block {
        let most = limits.shared_per_block;
        Some(format!(
            "asks for {shared} bytes of shared memory, of {most}"
        ))
    } else {
        None
    }
}

impl Index {
    fn count(self) -> u64 {
        u64::from(self.x) * u64::from(self.y) * u64::from(self.z)
    }

    /// The block with this number in a grid of this size.
    fn nth(self, index: u64) -> Index {
        let coordinate = |size: u32, stride: u64| (index / stride % u64::from(size)) as u32;
        let (x, y) = (u64::from(self.x), u64::from(self.y));
        Index {
            x: coordinate(self.x, 1),
            y: coordinate(self.y, x),
            z: coordinate(self.z, x * y),
        }
    }
}

impl Machine for EmulatedMachine {
    type Memory = Memory;

    fn limits(&self) -> Limits {
        self.gpu.limits()
    }

    fn misalignment(&self, argument: &'static str) -> usize {
        /// The elements by which student, teacher and gradient are shifted, by the seed. A kernel
        /// that asks for the alignment of one alone, and takes the others' for granted, meets an
        /// address that is not aligned.
        const SHIFTS: [[usize; 3]; 8] = [
            [0, 0, 0],
            [1, 2, 3],
            [0, 1, 2],
            [3, 0, 1],
            [0, 0, 0],
            [0, 0, 1],
            [0, 2, 0],
            [3, 0, 0],
        ];
        let [student, teacher, result] = SHIFTS[(self.seed % 8) as usize];
        match argument {
            "student" | "rows" => student,
            "teacher" => teacher,
            _ => result,
        }
    }

    fn allocate(&mut self, argument: &'static str, bytes: usize) -> Result<Memory> {
        let memory = Memory::new(argument, bytes)?;
        self.allocations.watch(&memory);
        Ok(memory)
    }

    fn address(&self, memory: &Memory) -> u64 {
        memory.address().expose_provenance() as u64
    }

    fn write(&mut self, memory: &mut Memory, bytes: &[u8]) -> Result<()> {
        memory.write(bytes);
        Ok(())
    }

    fn read(&mut self, memory: &Memory, bytes: &mut [u8]) -> Result<()> {
        memory.read(bytes);
        Ok(())
    }
}
