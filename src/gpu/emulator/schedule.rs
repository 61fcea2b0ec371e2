//! Decides which thread of a block runs next, and whether all threads have reached a barrier.

use super::fibers::{Body, Fiber, State, WARP};

/// A small random number generator (xorshift64*): schedules need variety, not quality.
pub(super) struct Shuffle(u64);

impl Shuffle {
    pub(super) fn new(seed: u64) -> Self {
        // The last steps of SplitMix64, so that neighbouring seeds differ in all bits. Never 0.
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

    /// 0 to `count` - 1 in any order.
    pub(super) fn permutation(&mut self, count: u64) -> Vec<u64> {
        let mut numbers: Vec<u64> = (0..count).collect();
        for i in (1..numbers.len()).rev() {
            numbers.swap(i, self.below(i + 1));
        }
        numbers
    }
}

/// The fibers of a block, which this runs in a shuffled order.
pub(super) struct Schedule<'a> {
    pub(super) fibers: &'a [Fiber],
    pub(super) bodies: &'a mut [Body],
}

impl Schedule<'_> {
    fn state(&self, i: usize) -> State {
        self.fibers[i].state.get()
    }

    /// Runs the fibers until all are done, one fails, or none can continue.
    pub(super) fn run(&mut self, shuffle: &mut Shuffle) -> Result<(), String> {
        let warps = self.bodies.len() / WARP;
        loop {
            let mut progress = false;
            let first = shuffle.below(warps);
            // An odd stride modulo a power of two visits every warp, in another order each time.
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

    /// Runs the lanes of a warp in a shuffled order until they wait for other warps. Sometimes it
    /// stops earlier, after a barrier of the warp. Returns whether any lane ran.
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
                        // C++ keeps the description of the failure.
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

    /// Lets a warp continue if all its lanes wait at the same barrier of the warp. Returns whether
    /// it did.
    fn pass_warp_barrier(&self, lanes: std::ops::Range<usize>) -> Result<bool, String> {
        let leader = lanes.start;
        let (state, location) = (self.state(leader), self.fibers[leader].location.get());
        let mut waiting = 0;
        for i in lanes.clone() {
            waiting += usize::from(self.state(i) == State::Warp);
        }
        if waiting == 0 {
            return Ok(false);
        }
        for i in lanes.clone() {
            if self.state(i) != state || self.fibers[i].location.get() != location {
                let what = "a barrier of a warp is reached by some lanes only";
                return Err(self.divergence(what, leader, i));
            }
        }
        for i in lanes {
            self.fibers[i].state.set(State::Ready);
        }
        Ok(true)
    }

    /// Lets the block continue if all its threads wait at the same barrier. No fiber may be ready.
    /// Returns whether all threads are done.
    fn pass_block_barrier(&self) -> Result<bool, String> {
        let (state, location) = (self.state(0), self.fibers[0].location.get());
        for i in 0..self.bodies.len() {
            if self.state(i) != state || self.fibers[i].location.get() != location {
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
        let [at_a, at_b] = [a, b].map(|i| self.fibers[i].location.get());
        format!("{what}: thread {a} is at {at_a}, thread {b} at {at_b}")
    }
}

impl Drop for Schedule<'_> {
    /// Ends the fibers that are still inside the kernel after a failure, or a panic of this thread.
    fn drop(&mut self) {
        for (fiber, body) in self.fibers.iter().zip(&mut *self.bodies) {
            if fiber.state.get() != State::Done {
                // SAFETY: no kernel owns memory, so its frames hold nothing that needs dropping.
                unsafe { body.force_reset() };
            }
        }
    }
}
