//! Runs one block: empties the shared memory, runs the fibers, checks the guards.

use std::ffi::{CStr, c_char, c_void};

use super::arithmetic::Arithmetic;
use super::fibers::{Index, Team};
use super::schedule::{Schedule, Shuffle};
use super::weak_memory::WeakMemory;
use crate::gpu::kernels::Emulated;

unsafe extern "C" {
    fn relata_emulator_block_new() -> *mut c_void;
    fn relata_emulator_block_delete(block: *mut c_void);
    fn relata_emulator_block_begin(block: *mut c_void, dynamic_bytes: usize, limit: usize);
    fn relata_emulator_block_end(block: *mut c_void) -> *const c_char;
}

/// The shared memory and the fibers that one thread of the CPU runs its blocks with.
pub(super) struct Arena {
    shared: *mut c_void,
    team: Team,
}

impl Arena {
    pub(super) fn new() -> Self {
        // SAFETY: it takes no arguments. `drop` frees its result.
        let shared = unsafe { relata_emulator_block_new() };
        Arena {
            shared,
            team: Team::new(shared),
        }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: `relata_emulator_block_new` made it, and no kernel runs.
        unsafe { relata_emulator_block_delete(self.shared) }
    }
}

/// One block of a launch.
pub(super) struct Block<'a> {
    pub(super) kernel: &'static Emulated,
    /// The struct that the kernel takes, aligned.
    pub(super) arguments: &'a [u8],
    pub(super) block: Index,
    pub(super) grid: Index,
    pub(super) threads: u32,
    pub(super) dynamic_shared: usize,
    /// The most bytes of static and dynamic shared memory together.
    pub(super) most_shared: usize,
    pub(super) arithmetic: &'a Arithmetic,
    /// The global memory, where blocks do not all see the same.
    pub(super) memory: Option<&'a WeakMemory>,
}

/// Runs a block to its end. The error says what the kernel did that it must not do.
pub(super) fn run(
    block: &Block<'_>,
    arena: &mut Arena,
    shuffle: &mut Shuffle,
) -> Result<(), String> {
    let block_dim = Index {
        x: block.threads,
        y: 1,
        z: 1,
    };
    let indices = [block.block, block_dim, block.grid];
    let (fibers, bodies) = arena
        .team
        .begin(
            indices,
            block.kernel,
            block.arguments,
            block.arithmetic,
            block.memory,
        )
        .map_err(|error| format!("no memory for {} stacks: {error}", block.threads))?;
    // SAFETY: `relata_emulator_block_new` made `shared`, and only this thread uses it.
    unsafe { relata_emulator_block_begin(arena.shared, block.dynamic_shared, block.most_shared) };
    let outcome = Schedule { fibers, bodies }.run(shuffle);
    // SAFETY: as above.
    let fault = unsafe { relata_emulator_block_end(arena.shared) };
    if fault.is_null() {
        return outcome;
    }
    // SAFETY: C++ returns null or a string that lives until the next block begins.
    let fault = unsafe { CStr::from_ptr(fault) };
    Err(fault.to_string_lossy().into_owned())
}
