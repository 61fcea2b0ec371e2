//! Kernels on the CPU, thread for thread.
//!
//! The blocks of a launch are spread over rayon's pool; the threads of a block are fibers that take
//! turns ([`block`]). What the kernels call is in emulator/ and kernels/common.
#![allow(
    unsafe_code,
    reason = "a launcher: it hands addresses to C++ and switches stacks"
)]

mod block;
mod memory;

use std::cell::RefCell;

use rayon::prelude::*;

use self::block::{Arena, Block, Index, Shuffle, WARP};
pub(crate) use self::memory::Memory;
use super::machine::{Launch, Launcher, Limits, Machine};
use crate::error::{Error, Result};

/// The CUDA kernels, run thread for thread on the CPU by an emulator: what a machine without a GPU
/// tests kernels with. Slow by design.
///
/// Threads run in an order shuffled by the [seed](Emulator::seed); shared and global memory holds NaN
/// until it is written, with guards around it; barriers are checked. A kernel that does what a kernel
/// must not is an [`Error::Kernel`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Emulator {
    seed: u64,
}

impl Emulator {
    /// The emulator with its first schedule.
    #[must_use]
    pub const fn new() -> Self {
        Emulator { seed: 0 }
    }

    /// Another schedule: the order in which the threads of a block run, and whether inputs happen to lie
    /// on aligned addresses (every fourth seed, from 0). No result may depend on it.
    #[must_use]
    pub const fn seed(self, seed: u64) -> Self {
        Emulator { seed }
    }

    pub(crate) fn machine(self) -> EmulatedMachine {
        EmulatedMachine {
            seed: self.seed,
            launches: 0,
        }
    }
}

/// One evaluation's worth of an emulated card.
#[derive(Debug)]
pub(crate) struct EmulatedMachine {
    seed: u64,
    launches: u64,
}

thread_local! {
    static ARENA: RefCell<Option<Arena>> = const { RefCell::new(None) };
}

impl Launcher for EmulatedMachine {
    fn launch(&mut self, launch: Launch<'_>) -> Result<()> {
        let emulated = launch.kernel.emulated;
        let fault = |fault: String| Error::Kernel {
            kernel: launch.kernel.name,
            fault,
        };
        if emulated.threads != launch.threads || launch.threads as usize % WARP != 0 {
            return Err(fault(format!(
                "is for {} threads, not {}",
                emulated.threads, launch.threads
            )));
        }
        if emulated.arguments_bytes as usize != launch.arguments.len() {
            return Err(fault(format!(
                "takes {} bytes, not {}",
                emulated.arguments_bytes,
                launch.arguments.len()
            )));
        }
        let most = self.limits().shared_per_block;
        if launch.shared > most {
            return Err(fault(format!(
                "asks for {} bytes of shared memory, of {most}",
                launch.shared
            )));
        }
        let [x, y, z] = launch.grid;
        let seed = Shuffle::mix(self.seed, self.launches);
        self.launches += 1;
        let grid = Index { x, y, z };
        let blocks = u64::from(x) * u64::from(y) * u64::from(z);
        (0..blocks).into_par_iter().try_for_each(|index| {
            let along =
                |count: u32, size: u64| u32::try_from(index / size % u64::from(count)).unwrap_or(0);
            let block = Block {
                kernel: emulated,
                arguments: launch.arguments,
                block: Index {
                    x: along(x, 1),
                    y: along(y, u64::from(x)),
                    z: along(z, u64::from(x) * u64::from(y)),
                },
                grid,
                threads: launch.threads,
                dynamic_shared: launch.shared as usize,
            };
            let mut shuffle = Shuffle::new(Shuffle::mix(seed, index));
            ARENA
                .with_borrow_mut(|arena| {
                    block::run(&block, arena.get_or_insert_with(Arena::new), &mut shuffle)
                })
                .map_err(|what| {
                    fault(format!(
                        "block ({}, {}, {}): {what}",
                        block.block.x, block.block.y, block.block.z
                    ))
                })
        })
    }
}

impl Machine for EmulatedMachine {
    type Memory = Memory;

    fn limits(&self) -> Limits {
        // Few multiprocessors, so that plans split as little as they can; an A100's shared memory, the
        // least that kernels are written for.
        Limits {
            multiprocessors: 4,
            shared_per_block: 163 * 1024,
        }
    }

    fn misalignment(&self) -> usize {
        (self.seed % 4) as usize
    }

    fn allocate(&mut self, argument: &'static str, bytes: usize) -> Result<Memory> {
        Memory::new(argument, bytes)
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

    fn inspect(&mut self, memory: &Memory) -> Result<()> {
        match memory.overrun() {
            None => Ok(()),
            Some(at) => Err(Error::Kernel {
                kernel: "some kernel",
                fault: format!("wrote beside its memory, at byte {at}"),
            }),
        }
    }
}
