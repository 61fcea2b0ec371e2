//! A block of CUDA threads as fibers that take turns on one thread of the machine.

use std::ffi::{CStr, c_char, c_void};
use std::ptr;

use corosensei::stack::DefaultStack;
use corosensei::{Coroutine, CoroutineResult, Yielder};

use crate::gpu::kernels::Emulated;

/// Room for a thread's frames, AddressSanitizer's red zones included.
const STACK_BYTES: usize = 128 * 1024;
pub(super) const WARP: usize = 32;

#[repr(C)]
#[derive(Clone, Copy)]
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
    fn relata_emulator_block_new() -> *mut c_void;
    fn relata_emulator_block_delete(block: *mut c_void);
    fn relata_emulator_block_begin(block: *mut c_void, dynamic_bytes: usize);
    fn relata_emulator_block_end(block: *mut c_void) -> *const c_char;
    fn relata_emulator_warp_bytes() -> usize;
    fn relata_emulator_copies_bytes() -> usize;
    fn relata_emulator_thread_bytes() -> usize;
    fn relata_emulator_run(kernel: *const Emulated, thread: *mut Thread, arguments: *const c_void);
}

/// A place in a kernel's source.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Place {
    file: *const c_char,
    line: u32,
}

impl Place {
    const NOWHERE: Place = Place {
        file: ptr::null(),
        line: 0,
    };

    fn name(self) -> String {
        if self.file.is_null() {
            return "its end".to_owned();
        }
        // SAFETY: kernels pass __FILE__, a string that lives as long as the program.
        let file = unsafe { CStr::from_ptr(self.file) };
        let path = file.to_string_lossy();
        let name = path.rsplit('/').next().unwrap_or(&path);
        format!("{name}:{}", self.line)
    }
}

/// What a fiber waits for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Ready,
    Warp,
    Block,
    Failed,
    Done,
}

/// What C++ hands back to say what it waits for.
struct Fiber {
    yielder: *const Yielder<(), ()>,
    state: State,
    place: Place,
}

type Body = Coroutine<(), (), (), DefaultStack>;

/// What one thread of the machine keeps between blocks: stacks, shared memory, warps.
pub(super) struct Arena {
    shared: *mut c_void,
    stacks: Vec<DefaultStack>,
    /// `emulator::Warp` and `emulator::Copies`, which only C++ looks into; in words for alignment.
    warps: Vec<AlignedBytes>,
    copies: Vec<AlignedBytes>,
}

/// 64 bytes at a time, for the alignment.
type AlignedBytes = Vec<Line>;

#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Line([u8; 64]);

impl Arena {
    pub(super) fn new() -> Self {
        // SAFETY: it takes nothing; `drop` gives back what it returns.
        let shared = unsafe { relata_emulator_block_new() };
        // SAFETY: it returns a constant.
        let thread_bytes = unsafe { relata_emulator_thread_bytes() };
        assert_eq!(thread_bytes, size_of::<Thread>(), "Thread in Rust and C++");
        Arena {
            shared,
            stacks: Vec::new(),
            warps: Vec::new(),
            copies: Vec::new(),
        }
    }

    fn prepare(&mut self, threads: usize) -> std::io::Result<()> {
        while self.stacks.len() < threads {
            self.stacks.push(DefaultStack::new(STACK_BYTES)?);
        }
        // SAFETY: they return constants.
        let (warp, copies) =
            unsafe { (relata_emulator_warp_bytes(), relata_emulator_copies_bytes()) };
        let lines = |bytes: usize| vec![Line([0; 64]); bytes.div_ceil(64)];
        while self.warps.len() < threads / WARP {
            self.warps.push(lines(warp));
        }
        while self.copies.len() < threads {
            self.copies.push(lines(copies));
        }
        Ok(())
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: made by `relata_emulator_block_new`, used by no one any more.
        unsafe { relata_emulator_block_delete(self.shared) }
    }
}

/// Called by a kernel that has reached a barrier.
///
/// # Safety
/// `fiber` is the `Fiber` of the coroutine that runs, as [`run`] set it.
unsafe extern "C" fn wait(fiber: *mut c_void, kind: u32, file: *const c_char, line: u32) {
    let fiber = fiber.cast::<Fiber>();
    // SAFETY: by the contract; the scheduler touches it only while the coroutine is suspended.
    let waiting = unsafe { &mut *fiber };
    waiting.state = match kind {
        1 => State::Warp,
        2 => State::Block,
        _ => State::Failed,
    };
    waiting.place = Place { file, line };
    // SAFETY: set by the coroutine when it started, and alive while it runs.
    let yielder = unsafe { &*waiting.yielder };
    yielder.suspend(());
}

/// A small generator (xorshift64*): schedules need variety, not quality.
pub(super) struct Shuffle(u64);

impl Shuffle {
    pub(super) fn new(seed: u64) -> Self {
        // SplitMix64's finisher, so that neighbouring seeds differ everywhere; never 0.
        let z = (seed ^ (seed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        Shuffle((z ^ (z >> 31)) | 1)
    }

    /// A seed that depends on both.
    pub(super) fn mix(seed: u64, index: u64) -> u64 {
        seed.wrapping_mul(0x9E37_79B9_7F4A_7C15)
            .wrapping_add(index)
            .wrapping_mul(0xD1B5_4A32_D192_ED03)
    }

    fn next(&mut self) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize
    }

    fn below(&mut self, bound: usize) -> usize {
        self.next() % bound
    }
}

/// One block of a launch.
pub(super) struct Block<'a> {
    pub(super) kernel: &'static Emulated,
    pub(super) arguments: &'a [u8],
    pub(super) block: Index,
    pub(super) grid: Index,
    pub(super) threads: u32,
    pub(super) dynamic_shared: usize,
}

/// Runs a block to its end, or says what it did that a kernel must not.
pub(super) fn run(
    block: &Block<'_>,
    arena: &mut Arena,
    shuffle: &mut Shuffle,
) -> Result<(), String> {
    let threads = block.threads as usize;
    arena
        .prepare(threads)
        .map_err(|error| format!("no memory for {threads} stacks: {error}"))?;
    // SAFETY: `shared` came from `relata_emulator_block_new`, and only this thread uses it.
    unsafe { relata_emulator_block_begin(arena.shared, block.dynamic_shared) };

    let mut contexts: Vec<Thread> = (0..threads)
        .map(|i| Thread {
            thread: Index {
                x: u32::try_from(i).unwrap_or(u32::MAX),
                y: 0,
                z: 0,
            },
            block: block.block,
            block_dim: Index {
                x: block.threads,
                y: 1,
                z: 1,
            },
            grid_dim: block.grid,
            shared: arena.shared,
            warp: arena.warps[i / WARP].as_mut_ptr().cast(),
            wait,
            fiber: ptr::null_mut(),
            collectives: 0,
            copies: arena.copies[i].as_mut_ptr().cast(),
        })
        .collect();
    let mut fibers: Vec<Fiber> = (0..threads)
        .map(|_| Fiber {
            yielder: ptr::null(),
            state: State::Ready,
            place: Place::NOWHERE,
        })
        .collect();
    // From here on the scheduler and the fibers reach both through these pointers alone.
    let (context, fiber) = (contexts.as_mut_ptr(), fibers.as_mut_ptr());
    let mut bodies: Vec<Body> = (0..threads)
        .map(|i| {
            let (context, fiber) = (context.wrapping_add(i), fiber.wrapping_add(i));
            let kernel: *const Emulated = block.kernel;
            let arguments = block.arguments.as_ptr().cast();
            let stack = arena.stacks.pop().expect("prepared above");
            Coroutine::with_stack(stack, move |yielder, ()| {
                // SAFETY: `contexts` and `fibers` outlive the coroutine, which ends or is reset before
                // `run` returns, and nothing else touches these elements while it runs.
                unsafe {
                    (*fiber).yielder = yielder;
                    (*context).fiber = fiber.cast();
                    relata_emulator_run(kernel, context, arguments);
                }
            })
        })
        .collect();

    let outcome = Schedule {
        fibers: fiber,
        bodies: &mut bodies,
    }
    .run(shuffle);
    for mut body in bodies {
        if body.done() {
            arena.stacks.push(body.into_stack());
        } else {
            // SAFETY: a kernel's frames hold nothing that needs dropping: no kernel owns memory.
            unsafe { body.force_reset() };
            // Its frames may have left marks for AddressSanitizer, so the stack is not used again.
            drop(body);
        }
    }
    // SAFETY: as above.
    let fault = unsafe { relata_emulator_block_end(arena.shared) };
    if !fault.is_null() {
        // SAFETY: C++ returns null or a string that lives until the next block begins.
        return Err(unsafe { CStr::from_ptr(fault) }
            .to_string_lossy()
            .into_owned());
    }
    outcome
}

/// Which fiber runs next.
struct Schedule<'a> {
    fibers: *mut Fiber,
    bodies: &'a mut [Body],
}

impl Schedule<'_> {
    fn fiber(&mut self, i: usize) -> &mut Fiber {
        debug_assert!(i < self.bodies.len());
        // SAFETY: in bounds, and no coroutine runs while the scheduler does.
        unsafe { &mut *self.fibers.add(i) }
    }

    fn state(&mut self, i: usize) -> State {
        self.fiber(i).state
    }

    /// Until all fibers are done, or one fails, or none can go on.
    fn run(&mut self, shuffle: &mut Shuffle) -> Result<(), String> {
        let warps = self.bodies.len() / WARP;
        loop {
            let mut progress = false;
            let first = shuffle.below(warps);
            // An odd stride below the next power of two visits every warp, in another order each time.
            let span = warps.next_power_of_two();
            let stride = 2 * shuffle.below(span) + 1;
            for step in 0..span {
                let warp = (first + step * stride) % span;
                if warp < warps {
                    progress |= self.run_warp(warp, shuffle)?;
                }
            }
            if !progress && self.pass_block_barrier()? {
                return Ok(());
            }
        }
    }

    /// Runs the lanes of a warp in a shuffled order until they wait for other warps or, now and then,
    /// until they have passed a barrier of their own. Whether any of them ran.
    fn run_warp(&mut self, warp: usize, shuffle: &mut Shuffle) -> Result<bool, String> {
        let lanes = warp * WARP..(warp + 1) * WARP;
        let mut progress = false;
        loop {
            let (mask, offset) = (shuffle.below(WARP), shuffle.below(WARP));
            let mut ran = false;
            for step in 0..WARP {
                let i = lanes.start + (((step ^ mask) + offset) % WARP);
                if self.state(i) == State::Ready {
                    ran = true;
                    if let CoroutineResult::Return(()) = self.bodies[i].resume(()) {
                        *self.fiber(i) = Fiber {
                            yielder: ptr::null(),
                            state: State::Done,
                            place: Place::NOWHERE,
                        };
                    }
                    if self.state(i) == State::Failed {
                        return Err("failed".to_owned());
                    }
                }
            }
            progress |= ran;
            if !ran || !self.pass_warp_barrier(lanes.clone())? || shuffle.below(4) == 0 {
                return Ok(progress);
            }
        }
    }

    /// Lets a warp go on if all its lanes wait for one another.
    fn pass_warp_barrier(&mut self, lanes: std::ops::Range<usize>) -> Result<bool, String> {
        let leader = lanes.start;
        let (state, place) = (self.state(leader), self.fiber(leader).place);
        let mut waiting = 0;
        for i in lanes.clone() {
            waiting += usize::from(self.state(i) == State::Warp);
        }
        if waiting == 0 {
            return Ok(false);
        }
        for i in lanes.clone() {
            if self.state(i) != state || self.fiber(i).place != place {
                let what = "a barrier of a warp is reached by some lanes only";
                return Err(self.divergence(what, leader, i));
            }
        }
        for i in lanes {
            self.fiber(i).state = State::Ready;
        }
        Ok(true)
    }

    /// With no fiber ready: lets all go on if they wait at one barrier. Whether all are done.
    fn pass_block_barrier(&mut self) -> Result<bool, String> {
        let (state, place) = (self.state(0), self.fiber(0).place);
        for i in 0..self.bodies.len() {
            if self.state(i) != state || self.fiber(i).place != place {
                let what = "a barrier of the block is not reached by all threads";
                return Err(self.divergence(what, 0, i));
            }
        }
        if state == State::Done {
            return Ok(true);
        }
        for i in 0..self.bodies.len() {
            self.fiber(i).state = State::Ready;
        }
        Ok(false)
    }

    fn divergence(&mut self, what: &str, a: usize, b: usize) -> String {
        let (at_a, at_b) = (self.fiber(a).place.name(), self.fiber(b).place.name());
        format!("{what}: thread {a} is at {at_a}, thread {b} at {at_b}")
    }
}
