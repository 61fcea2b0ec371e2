//! The threads of a block: fibers that take turns on one thread of the machine.

use std::cell::{Cell, UnsafeCell};
use std::ffi::{CStr, c_char, c_void};
use std::fmt;
use std::ptr;

use corosensei::stack::{DefaultStack, StackPointer};
use corosensei::{Coroutine, Yielder};

use crate::gpu::kernels::Emulated;

/// Room for a thread's frames, AddressSanitizer's red zones included.
const STACK_BYTES: usize = 128 * 1024;
pub(super) const WARP: usize = 32;
/// Of a block, on any GPU.
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
}

unsafe extern "C" {
    fn relata_emulator_warp_bytes() -> usize;
    fn relata_emulator_copies_bytes() -> usize;
    fn relata_emulator_thread_bytes() -> usize;
    fn relata_emulator_run(kernel: *const Emulated, thread: *mut Thread, arguments: *const c_void);
}

/// A place in a kernel's source.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    file: *const c_char,
    line: u32,
}

impl Place {
    const NOWHERE: Place = Place {
        file: ptr::null(),
        line: 0,
    };
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.file.is_null() {
            return f.write_str("its end");
        }
        // SAFETY: kernels pass __FILE__, a string that lives as long as the program.
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

/// What the scheduler knows of a fiber. Both write to it, in turns.
pub(super) struct Fiber {
    yielder: Cell<*const Yielder<(), ()>>,
    pub(super) state: Cell<State>,
    pub(super) place: Cell<Place>,
}

/// Runs the team's task whenever it is resumed from the end of the last one.
pub(super) type Body = Coroutine<(), (), (), Stack>;

/// A stack that starts somewhere in its first page. Pages start at the same lines of a cache, and the
/// fibers of a block take turns so quickly that the tops of their stacks have to fit in side by side.
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

// SAFETY: a smaller part of a stack that has a guard page.
unsafe impl corosensei::stack::Stack for Stack {
    fn base(&self) -> StackPointer {
        let base = self.memory.base();
        StackPointer::new(base.get() - self.skipped).unwrap_or(base)
    }

    fn limit(&self) -> StackPointer {
        self.memory.limit()
    }
}

/// What all fibers of a block run.
#[derive(Clone, Copy)]
struct Task {
    kernel: *const Emulated,
    arguments: *const c_void,
}

/// As many fibers as the largest block so far had threads, with what belongs to each. They are kept from
/// block to block: a stack that has been used lies in a cache.
pub(super) struct Team {
    task: Box<Cell<Task>>,
    threads: Box<[UnsafeCell<Thread>]>,
    fibers: Box<[Fiber]>,
    bodies: Vec<Body>,
    /// `emulator::Warp` and `emulator::Copies`, which only C++ looks into.
    warps: Vec<Box<[Line]>>,
    copies: Vec<Box<[Line]>>,
}

/// 64 bytes, for the alignment.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Line([u8; 64]);

impl Team {
    /// Without fibers yet. `shared` is the `emulator::Block` that all blocks use.
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
                    place: Cell::new(Place::NOWHERE),
                })
                .collect(),
            bodies: Vec::new(),
            warps: Vec::new(),
            copies: Vec::new(),
        }
    }

    /// The fibers of a block, each about to run `kernel` from its beginning.
    pub(super) fn begin(
        &mut self,
        [block, block_dim, grid_dim]: [Index; 3],
        kernel: &'static Emulated,
        arguments: &[u8],
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
            self.fibers[i].state.set(State::Ready);
            if self.bodies[i].done() {
                // Ended before its time: from the beginning, on the same stack.
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
                // SAFETY: the arguments are the kernel's, which the launcher has checked, and live until
                // the block has ended; `thread` is touched by this fiber alone until then.
                unsafe { relata_emulator_run(kernel, thread, arguments) };
                fiber.state.set(State::Done);
                fiber.place.set(Place::NOWHERE);
                yielder.suspend(());
            }
        })
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        for body in &mut self.bodies {
            // SAFETY: a fiber that has come to the kernel's end holds nothing that needs dropping.
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
        }
    }
}

/// Called by a kernel that has reached a barrier.
///
/// # Safety
/// `fiber` is that of the thread that runs, as [`Team::grow`] has set it.
unsafe extern "C" fn wait(fiber: *mut c_void, kind: u32, file: *const c_char, line: u32) {
    // SAFETY: by the contract.
    let fiber = unsafe { &*fiber.cast::<Fiber>() };
    fiber.state.set(match kind {
        1 => State::Warp,
        2 => State::Block,
        _ => State::Failed,
    });
    fiber.place.set(Place { file, line });
    // SAFETY: set by the coroutine when it started, and alive while it runs.
    let yielder = unsafe { &*fiber.yielder.get() };
    yielder.suspend(());
}
