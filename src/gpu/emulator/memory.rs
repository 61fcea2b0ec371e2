//! The emulator's global memory. It has a guard on both sides and holds NaN until it is written.

use std::alloc::{Layout, alloc, dealloc};
use std::ffi::c_void;
use std::ptr::NonNull;
use std::rc::{Rc, Weak};

use crate::error::{Error, Result};

/// The content of memory before it is written: NaN as f32, f16 and bf16.
const POISON: u8 = 0xFF;
/// The content of the guards. A kernel that reads too far gets NaN here too. No kernel has a reason
/// to write these bytes.
const CANARY: [u8; 2] = [0xFE, 0xFF];
const GUARD: usize = 256;

unsafe extern "C" {
    fn relata_emulator_forbid(address: *const c_void, bytes: usize);
    fn relata_emulator_allow(address: *const c_void, bytes: usize);
}

/// Bytes that kernels read and write by address.
#[derive(Debug)]
pub(crate) struct Memory(Rc<Allocation>);

impl Memory {
    pub(super) fn new(argument: &'static str, bytes: usize) -> Result<Self> {
        Allocation::new(argument, bytes).map(|allocation| Memory(Rc::new(allocation)))
    }

    pub(super) fn address(&self) -> *mut u8 {
        self.0.address()
    }

    pub(super) fn write(&mut self, bytes: &[u8]) {
        self.write_at(0, bytes);
    }

    pub(super) fn write_at(&mut self, at: usize, bytes: &[u8]) {
        assert!(at <= self.0.bytes && bytes.len() <= self.0.bytes - at);
        let to = self.address().wrapping_add(at);
        // SAFETY: the allocation is long enough, and no kernel uses it during the copy.
        unsafe { to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) }
    }

    pub(super) fn read(&self, bytes: &mut [u8]) {
        bytes.copy_from_slice(&self.bytes()[..bytes.len()]);
    }

    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: the allocation has this length, and every byte is initialised. No kernel runs
        // while the slice is in use.
        unsafe { std::slice::from_raw_parts(self.address(), self.0.bytes) }
    }
}

/// All memory of a machine that has not been dropped.
#[derive(Debug, Default)]
pub(super) struct Allocations(Vec<Weak<Allocation>>);

impl Allocations {
    pub(super) fn watch(&mut self, memory: &Memory) {
        self.0.retain(|allocation| allocation.strong_count() > 0);
        self.0.push(Rc::downgrade(&memory.0));
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Memory> {
        self.0.iter().filter_map(Weak::upgrade).map(Memory)
    }

    /// A write outside of an allocation, if there was one, in words.
    pub(super) fn overrun(&self) -> Option<String> {
        self.0
            .iter()
            .filter_map(Weak::upgrade)
            .find_map(|allocation| allocation.overrun())
    }
}

#[derive(Debug)]
struct Allocation {
    argument: &'static str,
    /// The address of the front guard.
    start: NonNull<u8>,
    layout: Layout,
    bytes: usize,
}

impl Allocation {
    fn new(argument: &'static str, bytes: usize) -> Result<Self> {
        let out_of_memory = Error::OutOfMemory { argument, bytes };
        let layout = bytes
            .checked_add(2 * GUARD)
            .and_then(|bytes| Layout::from_size_align(bytes, GUARD).ok())
            .ok_or(out_of_memory.clone())?;
        // SAFETY: the size of the layout is not 0.
        let start = NonNull::new(unsafe { alloc(layout) }).ok_or(out_of_memory)?;
        let allocation = Allocation {
            argument,
            start,
            layout,
            bytes,
        };
        // SAFETY: the allocation has this length, and nothing refers to it yet.
        let all = unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), layout.size()) };
        all.fill(POISON);
        let (front, rest) = all.split_at_mut(GUARD);
        for guard in [front, &mut rest[bytes..]] {
            guard
                .iter_mut()
                .zip(CANARY.into_iter().cycle())
                .for_each(|(byte, canary)| *byte = canary);
        }
        for (guard, len) in allocation.guards() {
            // SAFETY: within the allocation. It is allowed again before anything reads it.
            unsafe { relata_emulator_forbid(guard.cast(), len) };
        }
        Ok(allocation)
    }

    fn address(&self) -> *mut u8 {
        self.start.as_ptr().wrapping_add(GUARD)
    }

    /// The write in a guard that is nearest to the memory, if there is one, in words.
    fn overrun(&self) -> Option<String> {
        let mut found = None;
        for ((guard, len), behind) in self.guards().into_iter().zip([false, true]) {
            // SAFETY: within the allocation.
            unsafe { relata_emulator_allow(guard.cast(), len) };
            // SAFETY: `new` initialised the guard, and no kernel runs.
            let bytes = unsafe { std::slice::from_raw_parts(guard, len) };
            let damaged = |at: &usize| bytes[*at] != CANARY[at % 2];
            let (at, side) = if behind {
                ((0..len).find(damaged).map(|at| at + 1), "behind")
            } else {
                ((0..len).rfind(damaged).map(|at| len - at), "before")
            };
            let (argument, size) = (self.argument, self.bytes);
            let text = at
                .map(|at| format!("byte {at} {side} the {size} bytes of '{argument}' was written"));
            found = found.or(text);
            // SAFETY: as in `new`.
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

impl Drop for Allocation {
    fn drop(&mut self) {
        for (guard, len) in self.guards() {
            // SAFETY: within the allocation.
            unsafe { relata_emulator_allow(guard.cast(), len) };
        }
        // SAFETY: `new` allocated it with this layout.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

/// A kernel's arguments, aligned for any struct.
pub(super) struct Aligned {
    words: Vec<u128>,
    bytes: usize,
}

impl From<&[u8]> for Aligned {
    fn from(from: &[u8]) -> Self {
        let mut words = vec![0u128; from.len().div_ceil(16)];
        bytemuck::cast_slice_mut(&mut words)[..from.len()].copy_from_slice(from);
        Aligned {
            words,
            bytes: from.len(),
        }
    }
}

impl Aligned {
    pub(super) fn as_slice(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.words)[..self.bytes]
    }
}
