//! The threads of a block: fibers that take turns on one thread of the CPU.

use std::cell::{Cell, UnsafeCell};
use std::ffi::{CStr, c_char, c_void};
use std::fmt;
use std::ptr;

use corosensei::stack::{DefaultStack, StackPointer};
use corosensei::{Coroutine, Yielder};

use super::arithmetic::Arithmetic;
use super::weak_memory::{self, WeakMemory};
use crate::gpu::kernels::Emulated;

/// The stack of a thread, with room for AddressSanitizer's red zones.
const STACK_BYTES: usize = 128 * 1024;
pub(super) const WARP: usize = 32;
/// The most threads of a block, on any GPU.
pub(super) const MOST_THREADS: usize = 1024;

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Index {
    pub(super) x: u32,
    pub(super) y: u32,
    pub(super) z: u32,
}

/// Mirrors `emulator::Thread` in emulator/emulator.h.
#[repr(C)]
struct Thread {
    thread: Index,
    block: Index,
    block_dim: Index,
    grid_dim: Index,
    shared: *mut c_void,
    warp: *mut c_void,
    wait: unsafe extern "C" fn(*mut c_void, u32, *const c_char, u32),
    fiber: *mut c_void,
    collectives: u64,
    copies: *mut c_void,
    arithmetic: *const Arithmetic,
    memory: *mut c_void,
    order: unsafe extern "C" fn(*mut c_void, u32, *mut c_void),
}

unsafe extern "C" {
    fn relata_emulator_warp_bytes() -> usize;
    fn relata_emulator_copies_bytes() -> usize;
    fn relata_emulator_thread_bytes() -> usize;
    fn relata_emulator_run(kernel: *const Emulated, thread: *mut Thread, arguments: *const c_void);
}

/// A line in the source of a kernel.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Location {
    file: *const c_char,
    line: u32,
}

impl Location {
    const END: Location = Location {
        file: ptr::null(),
        line: 0,
    };
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.file.is_null() {
            return f.write_str("its end");
        }
        // SAFETY: kernels pass __FILE__, which lives as long as the program.
        let file = unsafe { CStr::from_ptr(self.file) };
        let path = file.to_string_lossy();
        let name = path.rsplit('/').next().unwrap_or(&path);
        write!(f, "{name}:{}", self.line)
    }
}

/// What a fiber waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Ready,
    Warp,
    Block,
    Failed,
    Done,
}

/// The state of a fiber. The scheduler and the fiber write it in turns.
pub(super) struct Fiber {
    yielder: Cell<*const Yielder<(), ()>>,
    pub(super) state: Cell<State>,
    pub(super) location: Cell<Location>,
}

/// A fiber's coroutine. It runs the team's task once, suspends at its end, and runs the next task
/// when it is resumed.
pub(super) type Body = Coroutine<(), (), (), Stack>;

/// A stack that starts somewhere in its first page. All pages start at the same lines of a cache.
/// The fibers of a block switch often, so the tops of their stacks must fit into the cache
/// together.
pub(super) struct Stack {
    memory: DefaultStack,
    skipped: usize,
}

impl Stack {
    fn new(i: usize) -> std::io::Result<Self> {
        Ok(Stack {
            memory: DefaultStack::new(STACK_BYTES)?,
            skipped: i * 7 % 32 * 128,
        })
    }
}

// SAFETY: this is a part of a stack that has a guard page.
unsafe impl corosensei::stack::Stack for Stack {
    fn base(&self) -> StackPointer {
        let base = self.memory.base();
        StackPointer::new(base.get() - self.skipped).unwrap_or(base)
    }

    fn limit(&self) -> StackPointer {
        self.memory.limit()
    }
}

/// The kernel that all fibers of a block run, with its arguments.
#[derive(Clone, Copy)]
struct Task {
    kernel: *const Emulated,
    arguments: *const c_void,
}

/// The fibers, as many as the largest block so far had threads, and the data of each. They are kept
/// from block to block, because a used stack is already in a cache.
pub(super) struct Team {
    task: Box<Cell<Task>>,
    threads: Box<[UnsafeCell<Thread>]>,
    fibers: Box<[Fiber]>,
    bodies: Vec<Body>,
    /// `emulator::Warp` and `emulator::Copies`. Only C++ reads them.
    warps: Vec<Box<[Line]>>,
    copies: Vec<Box<[Line]>>,
}

/// 64 bytes, aligned to 64.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Line([u8; 64]);

impl Team {
    /// A team without fibers. `shared` is the `emulator::Block` that all blocks use.
    pub(super) fn new(shared: *mut c_void) -> Self {
        // SAFETY: it returns a constant.
        let thread_bytes = unsafe { relata_emulator_thread_bytes() };
        assert_eq!(thread_bytes, size_of::<Thread>(), "Thread in Rust and C++");
        let task = Task {
            kernel: ptr::null(),
            arguments: ptr::null(),
        };
        Team {
            task: Box::new(Cell::new(task)),
            threads: (0..MOST_THREADS)
                .map(|i| UnsafeCell::new(Thread::new(i, shared)))
                .collect(),
            fibers: (0..MOST_THREADS)
                .map(|_| Fiber {
                    yielder: Cell::new(ptr::null()),
                    state: Cell::new(State::Done),
                    location: Cell::new(Location::END),
                })
                .collect(),
            bodies: Vec::new(),
            warps: Vec::new(),
            copies: Vec::new(),
        }
    }

    /// The fibers of a block, each ready to run `kernel` from its beginning. Without `memory` all
    /// blocks see the same.
    pub(super) fn begin(
        &mut self,
        [block, block_dim, grid_dim]: [Index; 3],
        kernel: &'static Emulated,
        arguments: &[u8],
        arithmetic: &Arithmetic,
        memory: Option<&WeakMemory>,
    ) -> std::io::Result<(&[Fiber], &mut [Body])> {
        let threads = block_dim.x as usize;
        self.grow(threads)?;
        self.task.set(Task {
            kernel,
            arguments: arguments.as_ptr().cast(),
        });
        for i in 0..threads {
            let thread = self.threads[i].get_mut();
            (thread.block, thread.block_dim, thread.grid_dim) = (block, block_dim, grid_dim);
            thread.arithmetic = arithmetic;
            thread.memory = memory.map_or(ptr::null_mut(), |memory| {
                ptr::from_ref(memory).cast_mut().cast()
            });
            self.fibers[i].state.set(State::Ready);
            if self.bodies[i].done() {
                // This fiber was stopped early. Make a new one on the same stack.
                let ended = self.bodies.swap_remove(i);
                let again = self.body(i, ended.into_stack());
                self.bodies.push(again);
                let last = self.bodies.len() - 1;
                self.bodies.swap(i, last);
            }
        }
        Ok((&self.fibers[..threads], &mut self.bodies[..threads]))
    }

    fn grow(&mut self, threads: usize) -> std::io::Result<()> {
        // SAFETY: it returns a constant.
        let warp_bytes = unsafe { relata_emulator_warp_bytes() };
        // SAFETY: it returns a constant.
        let copies_bytes = unsafe { relata_emulator_copies_bytes() };
        let lines = |bytes: usize| vec![Line([0; 64]); bytes.div_ceil(64)].into_boxed_slice();
        for i in self.bodies.len()..threads {
            let stack = Stack::new(i)?;
            if i.is_multiple_of(WARP) {
                self.warps.push(lines(warp_bytes));
            }
            self.copies.push(lines(copies_bytes));
            let body = self.body(i, stack);
            let thread = self.threads[i].get_mut();
            thread.warp = self.warps[i / WARP].as_mut_ptr().cast();
            thread.copies = self.copies[i].as_mut_ptr().cast();
            thread.fiber = ptr::from_ref(&self.fibers[i]).cast_mut().cast();
            self.bodies.push(body);
        }
        Ok(())
    }

    fn body(&self, i: usize, stack: Stack) -> Body {
        let task: *const Cell<Task> = &*self.task;
        let fiber: *const Fiber = &self.fibers[i];
        let thread = self.threads[i].get();
        Coroutine::with_stack(stack, move |yielder, ()| {
            loop {
                // SAFETY: the team owns it and outlives its fibers.
                let task = unsafe { &*task };
                // SAFETY: as above.
                let fiber = unsafe { &*fiber };
                let Task { kernel, arguments } = task.get();
                fiber.yielder.set(yielder);
                // SAFETY: the launcher has checked that the arguments are the kernel's. They, the
                // arithmetic and the memory live until the block has ended. Only this fiber uses `thread` until then.
                unsafe { relata_emulator_run(kernel, thread, arguments) };
                fiber.state.set(State::Done);
                fiber.location.set(Location::END);
                yielder.suspend(());
            }
        })
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        for body in &mut self.bodies {
            // SAFETY: a fiber at the end of the kernel holds nothing that needs dropping.
            unsafe { body.force_reset() };
        }
    }
}

impl Thread {
    fn new(i: usize, shared: *mut c_void) -> Self {
        Thread {
            thread: Index {
                x: u32::try_from(i).unwrap_or(u32::MAX),
                ..Index::default()
            },
            block: Index::default(),
            block_dim: Index::default(),
            grid_dim: Index::default(),
            shared,
            warp: ptr::null_mut(),
            wait,
            fiber: ptr::null_mut(),
            collectives: 0,
            copies: ptr::null_mut(),
            arithmetic: ptr::null(),
            memory: ptr::null_mut(),
            order: weak_memory::order,
        }
    }
}

/// Suspends the fiber that runs. A kernel calls this when it reaches a barrier.
///
/// # Safety
/// `fiber` is the fiber of the thread that runs, as [`Team::grow`] has set it.
unsafe extern "C" fn wait(fiber: *mut c_void, kind: u32, file: *const c_char, line: u32) {
    // SAFETY: the caller promises it.
    let fiber = unsafe { &*fiber.cast::<Fiber>() };
    fiber.state.set(match kind {
        1 => State::Warp,
        2 => State::Block,
        _ => State::Failed,
    });
    fiber.location.set(Location { file, line });
    // SAFETY: the coroutine set it when it started, and it lives while the coroutine runs.
    let yielder = unsafe { &*fiber.yielder.get() };
    yielder.suspend(());
}
