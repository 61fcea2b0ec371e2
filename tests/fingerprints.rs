//! Prints one line for each case, element type and device: a hash of the bits of the loss, its
//! terms and the gradient. Two revisions compute the same if their lines are equal:
//!
//! ```sh
//! cargo test -p relata --features emulator --test fingerprints -- --ignored --nocapture > new.txt
//! ```
//!
//! Bits depend on the instruction set, so both revisions have to run on one machine.

mod common;

use common::cases::{self, Case};
use relata::{Cpu, Device, Element, Evaluation, Real, Reference};

/// FNV-1a over 64-bit words.
struct Hash(u64);

impl Hash {
    fn new() -> Self {
        Hash(0xcbf2_9ce4_8422_2325)
    }

    fn add(&mut self, number: f64) {
        let bits = if number.is_nan() { f64::NAN } else { number }.to_bits();
        self.0 = (self.0 ^ bits).wrapping_mul(0x0100_0000_01b3);
    }
}

fn hash<R: Real>(evaluation: &Evaluation<R>) -> u64 {
    let mut hash = Hash::new();
    hash.add(evaluation.loss);
    for (_, term) in evaluation.terms.iter() {
        hash.add(term);
    }
    for element in &evaluation.gradient {
        hash.add(element.to_f64());
    }
    hash.0
}

fn line<T: Element, D: Device<T>>(device: &D, case: &Case) {
    let inputs = case.inputs::<T>();
    let evaluation = inputs.problem.evaluate(device, inputs.batch());
    let hash = hash(&evaluation.expect("a case that fits"));
    println!("{:016x} {} {} {}", hash, case.name, T::DTYPE, device.name());
}

fn lines<T: Element>(case: &Case) {
    line::<T, _>(&Reference, case);
    line::<T, _>(&Cpu, case);
}

#[cfg(feature = "emulator")]
fn emulated(case: &Case) {
    let emulator = relata::Emulator::default();
    line::<f32, _>(&emulator, case);
    line::<half::f16, _>(&emulator, case);
    line::<half::bf16, _>(&emulator, case);
}

#[test]
#[ignore = "prints fingerprints to compare two revisions"]
fn print() {
    for case in cases::tests() {
        if case.rows <= 65 {
            common::for_every_dtype!(lines(&case));
            #[cfg(feature = "emulator")]
            emulated(&case);
        }
    }
    for case in cases::benches().filter(|case| case.rows <= 256) {
        line::<f32, _>(&Cpu, &case);
        line::<f64, _>(&Cpu, &case);
        line::<half::f16, _>(&Cpu, &case);
    }
}
