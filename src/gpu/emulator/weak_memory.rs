//! Global memory that is as weakly ordered as CUDA allows. A kernel that lacks a fence then reads
//! old data.
//!
//! The blocks of a launch run one after the other, each on a view of its own:
//!
//! - A block begins with the memory as it was before the launch, as if all of it lay in its cache.
//! - Its stores are its own until a fence. The first atomic after that fence publishes them.
//! - An atomic acts on what is published. The first fence after it brings all that is published
//!   into the block's view.
//! - When the launch ends, everything becomes visible.
//!
//! A fence orders the stores of the thread that calls it, and those that it knows of through a
//! barrier. Here it orders the stores that any thread of its block has made so far.

use std::cell::RefCell;
use std::ffi::c_void;

use super::memory::Memory;

/// The global memory during one launch.
#[derive(Debug)]
pub(super) struct WeakMemory(RefCell<View>);

/// The view of the block that runs.
#[derive(Debug)]
struct View {
    regions: Vec<Region>,
    /// Whether the block has changed a word with an atomic since its last fence.
    atomic: bool,
}

/// An allocation.
#[derive(Debug)]
struct Region {
    /// What the block that runs reads and writes.
    live: Memory,
    /// Before the launch.
    before: Vec<u8>,
    published: Vec<u8>,
    /// `live` without the stores that have not been looked for.
    seen: Vec<u8>,
    /// The stores of the block that runs which a fence has ordered.
    fenced: Vec<Store>,
    /// Stores that become visible when the launch ends.
    late: Vec<Store>,
    /// Whether `published` may differ from `before`.
    changed: bool,
    /// Whether `live` may differ from `before`.
    used: bool,
}

/// Bytes that a block has changed.
#[derive(Debug)]
struct Store {
    at: usize,
    bytes: Vec<u8>,
}

fn make_visible(stores: &[Store], to: &mut [u8]) {
    for Store { at, bytes } in stores {
        to[*at..][..bytes.len()].copy_from_slice(bytes);
    }
}

impl WeakMemory {
    pub(super) fn new(allocations: impl Iterator<Item = Memory>) -> Self {
        let region = |live: Memory| {
            let before = live.bytes().to_vec();
            Region {
                live,
                published: before.clone(),
                seen: before.clone(),
                before,
                fenced: Vec::new(),
                late: Vec::new(),
                changed: false,
                used: false,
            }
        };
        WeakMemory(RefCell::new(View {
            regions: allocations.map(region).collect(),
            atomic: false,
        }))
    }

    pub(super) fn begin_block(&self) {
        let mut view = self.0.borrow_mut();
        view.atomic = false;
        for region in &mut view.regions {
            if std::mem::take(&mut region.used) {
                region.live.write(&region.before);
                region.seen.copy_from_slice(&region.before);
            }
        }
    }

    pub(super) fn end_block(&self) {
        for region in &mut self.0.borrow_mut().regions {
            let unfenced = region.take_stores();
            region.late.append(&mut region.fenced);
            region.late.extend(unfenced);
        }
    }

    pub(super) fn end_launch(&self) {
        for region in &mut self.0.borrow_mut().regions {
            make_visible(&region.late, &mut region.published);
            region.live.write(&region.published);
        }
    }
}

/// Tells the view of fences and atomics. `what` is an `emulator::Order`.
///
/// # Safety
/// `memory` is the address of a [`WeakMemory`], and only this thread uses it.
pub(super) unsafe extern "C" fn order(memory: *mut c_void, what: u32, word: *mut c_void) {
    // SAFETY: the caller promises it.
    let memory = unsafe { &*memory.cast::<WeakMemory>() };
    let mut view = memory.0.borrow_mut();
    match what {
        1 => view.fence(),
        2 => view.before_atomic(word.addr()),
        _ => view.after_atomic(word.addr()),
    }
}

impl View {
    fn fence(&mut self) {
        let acquires = std::mem::take(&mut self.atomic);
        for region in &mut self.regions {
            let stores = region.take_stores();
            region.fenced.extend(stores);
            if acquires && region.changed {
                region.used = true;
                region.seen.copy_from_slice(&region.published);
                make_visible(&region.fenced, &mut region.seen);
                region.live.write(&region.seen);
            }
        }
    }

    fn before_atomic(&mut self, word: usize) {
        for region in &mut self.regions {
            region.changed |= !region.fenced.is_empty();
            make_visible(&region.fenced, &mut region.published);
            region.fenced.clear();
            // A thread's own store to the word comes before its atomic.
            if let Some(word) = region.find(word)
                && region.live.bytes()[word.clone()] == region.seen[word.clone()]
            {
                region.live.write_at(word.start, &region.published[word]);
            }
        }
    }

    fn after_atomic(&mut self, word: usize) {
        self.atomic = true;
        for region in &mut self.regions {
            if let Some(word) = region.find(word) {
                (region.changed, region.used) = (true, true);
                let now = &region.live.bytes()[word.clone()];
                region.published[word.clone()].copy_from_slice(now);
                region.seen[word].copy_from_slice(now);
            }
        }
    }
}

impl Region {
    /// The bytes that the block has changed since the last call.
    fn take_stores(&mut self) -> Vec<Store> {
        /// Compared at once.
        const CHUNK: usize = 1024;
        let mut stores: Vec<Store> = Vec::new();
        let chunks = self
            .live
            .bytes()
            .chunks(CHUNK)
            .zip(self.seen.chunks_mut(CHUNK));
        for (chunk, (live, seen)) in chunks.enumerate() {
            if live == seen {
                continue;
            }
            for (i, (&new, old)) in live.iter().zip(seen).enumerate() {
                if new == *old {
                    continue;
                }
                *old = new;
                let at = chunk * CHUNK + i;
                match stores.last_mut() {
                    Some(last) if last.at + last.bytes.len() == at => last.bytes.push(new),
                    _ => stores.push(Store {
                        at,
                        bytes: vec![new],
                    }),
                }
            }
        }
        self.used |= !stores.is_empty();
        stores
    }

    /// Where the word at an address lies in this region.
    fn find(&self, word: usize) -> Option<std::ops::Range<usize>> {
        let at = word.checked_sub(self.live.address().addr())?;
        (at + 4 <= self.seen.len()).then_some(at..at + 4)
    }
}
