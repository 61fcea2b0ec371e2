//! Which thread of a block runs next, and whether all of them have come to a barrier.

use super::fibers::{Body, Fiber, State, WARP};

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

/// Which fiber runs next.
pub(super) struct Schedule<'a> {
    pub(super) fibers: &'a [Fiber],
    pub(super) bodies: &'a mut [Body],
}

impl Schedule<'_> {
    fn state(&self, i: usize) -> State {
        self.fibers[i].state.get()
    }

    /// Until all fibers are done, or one fails, or none can go on.
    pub(super) fn run(&mut self, shuffle: &mut Shuffle) -> Result<(), String> {
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
                    self.bodies[i].resume(());
                    if self.state(i) == State::Failed {
                        // What it did, C++ has written down.
                        return Err(String::new());
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
    fn pass_warp_barrier(&self, lanes: std::ops::Range<usize>) -> Result<bool, String> {
        let leader = lanes.start;
        let (state, place) = (self.state(leader), self.fibers[leader].place.get());
        let mut waiting = 0;
        for i in lanes.clone() {
            waiting += usize::from(self.state(i) == State::Warp);
        }
        if waiting == 0 {
            return Ok(false);
        }
        for i in lanes.clone() {
            if self.state(i) != state || self.fibers[i].place.get() != place {
                let what = "a barrier of a warp is reached by some lanes only";
                return Err(self.divergence(what, leader, i));
            }
        }
        for i in lanes {
            self.fibers[i].state.set(State::Ready);
        }
        Ok(true)
    }

    /// With no fiber ready: lets all go on if they wait at one barrier. Whether all are done.
    fn pass_block_barrier(&self) -> Result<bool, String> {
        let (state, place) = (self.state(0), self.fibers[0].place.get());
        for i in 0..self.bodies.len() {
            if self.state(i) != state || self.fibers[i].place.get() != place {
                let what = "a barrier of the block is not reached by all threads";
                return Err(self.divergence(what, 0, i));
            }
        }
        if state == State::Done {
            return Ok(true);
        }
        for i in 0..self.bodies.len() {
            self.fibers[i].state.set(State::Ready);
        }
        Ok(false)
    }

    fn divergence(&self, what: &str, a: usize, b: usize) -> String {
        let [at_a, at_b] = [a, b].map(|i| self.fibers[i].place.get());
        format!("{what}: thread {a} is at {at_a}, thread {b} at {at_b}")
    }
}

impl Drop for Schedule<'_> {
    /// Ends the fibers that a failure, or a panic of this thread, has left somewhere in the kernel.
    fn drop(&mut self) {
        for (fiber, body) in self.fibers.iter().zip(&mut *self.bodies) {
            if fiber.state.get() != State::Done {
                // SAFETY: a kernel's frames hold nothing that needs dropping: no kernel owns memory.
                unsafe { body.force_reset() };
            }
        }
    }
}
