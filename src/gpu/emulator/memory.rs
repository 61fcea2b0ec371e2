//! The emulator's global memory: with a guard on both sides, and NaN until something is written.

use std::alloc::{Layout, alloc, dealloc};
use std::ffi::c_void;
use std::ptr::NonNull;

use crate::error::{Error, Result};

/// NaN as f32, f16 and bf16: what memory holds before it is written, and what lies on both sides of it
/// for those who read too far. Who writes there leaves something else: no arithmetic gives this NaN.
const POISON: u8 = 0xFF;
const GUARD: usize = 256;

unsafe extern "C" {
    fn relata_emulator_forbid(address: *const c_void, bytes: usize);
    fn relata_emulator_allow(address: *const c_void, bytes: usize);
}

/// Bytes that kernels read and write by address.
#[derive(Debug)]
pub(crate) struct Memory {
    /// Of the front guard.
    start: NonNull<u8>,
    layout: Layout,
    bytes: usize,
}

impl Memory {
    pub(super) fn new(argument: &'static str, bytes: usize) -> Result<Self> {
        let out_of_memory = Error::OutOfMemory { argument, bytes };
        let layout = bytes
            .checked_add(2 * GUARD)
            .and_then(|bytes| Layout::from_size_align(bytes, GUARD).ok())
            .ok_or(out_of_memory.clone())?;
        // SAFETY: the layout's size is not 0.
        let start = NonNull::new(unsafe { alloc(layout) }).ok_or(out_of_memory)?;
        let memory = Memory {
            start,
            layout,
            bytes,
        };
        // SAFETY: the allocation is this long, and nothing refers to it yet.
        let all = unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), layout.size()) };
        all.fill(POISON);
        for (guard, len) in memory.guards() {
            // SAFETY: within the allocation; allowed again before anyone reads it.
            unsafe { relata_emulator_forbid(guard.cast(), len) };
        }
        Ok(memory)
    }

    pub(super) fn address(&self) -> *mut u8 {
        self.start.as_ptr().wrapping_add(GUARD)
    }

    pub(super) fn write(&mut self, bytes: &[u8]) {
        assert!(bytes.len() <= self.bytes);
        // SAFETY: as long as this, in an allocation that no kernel uses while it is written to.
        unsafe {
            self.address()
                .copy_from_nonoverlapping(bytes.as_ptr(), bytes.len())
        }
    }

    pub(super) fn read(&self, bytes: &mut [u8]) {
        assert!(bytes.len() <= self.bytes);
        // SAFETY: as above; every byte has been initialised.
        unsafe {
            self.address()
                .copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len())
        }
    }

    /// How far beside the memory a kernel has written: bytes before (negative) or behind.
    pub(super) fn overrun(&self) -> Option<isize> {
        let mut found = None;
        for (index, (guard, len)) in self.guards().into_iter().enumerate() {
            // SAFETY: within the allocation.
            unsafe { relata_emulator_allow(guard.cast(), len) };
            // SAFETY: initialised when the memory was made, and no kernel runs.
            let bytes = unsafe { std::slice::from_raw_parts(guard, len) };
            let damaged = |byte: &u8| *byte != POISON;
            let offset = match index {
                0 => bytes
                    .iter()
                    .rposition(damaged)
                    .map(|at| at.cast_signed() - len.cast_signed()),
                _ => bytes.iter().position(damaged).map(usize::cast_signed),
            };
            found = found.or(offset);
            // SAFETY: as when the memory was made.
            unsafe { relata_emulator_forbid(guard.cast(), len) };
        }
        found
    }

    fn guards(&self) -> [(*const u8, usize); 2] {
        let start = self.start.as_ptr().cast_const();
        [
            (start, GUARD),
            (start.wrapping_add(GUARD + self.bytes), GUARD),
        ]
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        for (guard, len) in self.guards() {
            // SAFETY: within the allocation.
            unsafe { relata_emulator_allow(guard.cast(), len) };
        }
        // SAFETY: allocated with this layout in `new`.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}
