//! A block, from empty shared memory to the last look at its guards.

use std::ffi::{CStr, c_char, c_void};

use super::fibers::{Index, Team};
use super::schedule::{Schedule, Shuffle};
use crate::gpu::kernels::Emulated;

unsafe extern "C" {
    fn relata_emulator_block_new() -> *mut c_void;
    fn relata_emulator_block_delete(block: *mut c_void);
    fn relata_emulator_block_begin(block: *mut c_void, dynamic_bytes: usize, limit: usize);
    fn relata_emulator_block_end(block: *mut c_void) -> *const c_char;
}

/// What one thread of the machine runs its blocks with.
pub(super) struct Arena {
    shared: *mut c_void,
    team: Team,
}

impl Arena {
    pub(super) fn new() -> Self {
        // SAFETY: it takes nothing; `drop` gives back what it returns.
        let shared = unsafe { relata_emulator_block_new() };
        Arena {
            shared,
            team: Team::new(shared),
        }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: made by `relata_emulator_block_new`, and no kernel runs any more.
        unsafe { relata_emulator_block_delete(self.shared) }
    }
}

/// One block of a launch.
pub(super) struct Block<'a> {
    pub(super) kernel: &'static Emulated,
    /// As the kernel takes them, aligned.
    pub(super) arguments: &'a [u8],
    pub(super) block: Index,
    pub(super) grid: Index,
    pub(super) threads: u32,
    pub(super) dynamic_shared: usize,
    /// What static and dynamic shared memory may come to.
    pub(super) most_shared: usize,
}

/// Runs a block to its end, or says what it did that a kernel must not.
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
        .begin(indices, block.kernel, block.arguments)
        .map_err(|error| format!("no memory for {} stacks: {error}", block.threads))?;
    // SAFETY: `shared` came from `relata_emulator_block_new`, and only this thread uses it.
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
