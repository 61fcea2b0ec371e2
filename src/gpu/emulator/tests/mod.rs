//! Tests of the emulator itself. emulator/seeded_bugs has kernels with one bug each. The emulator
//! must report each bug, and the same kernel without the bug, its twin, must give the right result.

mod arguments;
mod arithmetic;
mod barriers;
mod collectives;
mod cost;
mod memory;
mod order;
mod tensor;

use bytemuck::{NoUninit, Pod};

use super::{EmulatedMachine, Emulator, Memory};
use crate::error::{Error, Result};
use crate::gpu::arguments::kernel_arguments;
use crate::gpu::kernels::EntryPoint;
use crate::gpu::machine::{Launch, Launcher, Machine};

/// The threads of a block, in most kernels of emulator/seeded_bugs.
const THREADS: usize = 64;

kernel_arguments! {
    /// `Arguments` in emulator/seeded_bugs/seeded_bugs.cuh.
    struct Arguments {
        input: u64,
        output: u64,
        counter: u64,
        count: u32,
        bug: u32,
    }
}

/// Declares kernels of emulator/seeded_bugs, which take [`Arguments`] or the struct that is named.
macro_rules! seeded_bugs {
    ($arguments:ty: $($name:ident),+ $(,)?) => {
        #[allow(non_upper_case_globals)]
        mod emulated {
            // SAFETY: EXPORT_KERNEL in kernels/common/platform.cuh defines these as constants of
            // this type. One that is missing does not link.
            unsafe extern "C" {
                $(pub(super) safe static $name: crate::gpu::kernels::Emulated;)+
            }
        }
        $(
            #[allow(non_upper_case_globals)]
            static $name: crate::gpu::kernels::EntryPoint =
                crate::gpu::kernels::EntryPoint::new::<$arguments>(
                    stringify!($name),
                    &emulated::$name,
                );
        )+
    };
    ($($name:ident),+ $(,)?) => {
        $crate::gpu::emulator::tests::seeded_bugs!($crate::gpu::emulator::tests::Arguments: $($name),+);
    };
}
use seeded_bugs;

/// A launch of a kernel of emulator/seeded_bugs.
#[derive(Clone, Copy)]
struct Run<'a, I> {
    emulator: Emulator,
    kernel: &'static EntryPoint,
    input: &'a [I],
    blocks: u32,
    threads: u32,
    shared: u32,
    count: usize,
    bug: u32,
}

impl<'a, I: NoUninit> Run<'a, I> {
    fn new(kernel: &'static EntryPoint, input: &'a [I]) -> Self {
        Run {
            emulator: Emulator::new(),
            kernel,
            input,
            blocks: 1,
            threads: THREADS as u32,
            shared: 0,
            count: 0,
            bug: 0,
        }
    }

    fn bug(mut self, bug: u32) -> Self {
        self.bug = bug;
        self
    }

    fn count(mut self, count: usize) -> Self {
        self.count = count;
        self
    }

    /// Launches the kernel and returns its output of `len` elements.
    fn run<O: Pod>(self, seed: u64, len: usize) -> Result<Vec<O>> {
        self.run_counting(seed, len).map(|(output, _)| output)
    }

    /// The same, with the counters after the launch.
    fn run_counting<O: Pod>(self, seed: u64, len: usize) -> Result<(Vec<O>, [u32; 8])> {
        let mut machine = self.emulator.seed(seed).machine();
        let upload = |machine: &mut EmulatedMachine, argument, bytes: &[u8]| -> Result<Memory> {
            let mut memory = machine.allocate(argument, bytes.len())?;
            machine.write(&mut memory, bytes)?;
            Ok(memory)
        };
        let input = upload(&mut machine, "input", bytemuck::cast_slice(self.input))?;
        let counter = upload(&mut machine, "counter", &[0; 32])?;
        let output = machine.allocate("output", len * size_of::<O>())?;
        let arguments = Arguments {
            input: machine.address(&input),
            output: machine.address(&output),
            counter: machine.address(&counter),
            count: u32::try_from(self.count).expect("a count of 32 bits"),
            bug: self.bug,
        };
        machine.launch(Launch {
            kernel: self.kernel,
            grid: [self.blocks, 1, 1],
            threads: self.threads,
            shared: self.shared,
            arguments: bytemuck::bytes_of(&arguments),
        })?;
        let mut result = vec![O::zeroed(); len];
        machine.read(&output, bytemuck::cast_slice_mut(&mut result))?;
        let mut counters = [0; 8];
        machine.read(&counter, bytemuck::cast_slice_mut(&mut counters))?;
        Ok((result, counters))
    }
}

/// 1, 2, 3, …
fn numbers(count: usize) -> Vec<f32> {
    (1..=count).map(|i| i as f32).collect()
}

fn reversed(input: &[f32]) -> Vec<f32> {
    input.iter().rev().copied().collect()
}

/// Asserts that the emulator has reported the kernel in an error whose text contains all `parts`.
#[track_caller]
fn assert_caught<T>(outcome: Result<T>, entry: &EntryPoint, parts: &[&str]) {
    let Err(error) = outcome else {
        panic!("{}: not caught", entry.name);
    };
    let Error::Kernel { kernel, .. } = error else {
        panic!("{}: {error}", entry.name);
    };
    assert_eq!(kernel, entry.name);
    let text = error.to_string();
    for part in parts {
        assert!(text.contains(part), "no {part:?} in {text:?}");
    }
}

/// As [`assert_caught`], for a bug that a sanitizer may catch first. A sanitizer ends the process,
/// so the test then runs again in a process of its own, whose stderr must name the file.
#[track_caller]
fn assert_caught_first<T>(
    test: &str,
    bug: impl FnOnce() -> Result<T>,
    entry: &EntryPoint,
    parts: &[&str],
) {
    const INSIDE: &str = "RELATA_SEEDED_BUG";
    if !cfg!(feature = "emulator-sanitize") {
        return assert_caught(bug(), entry, parts);
    }
    let name = format!("gpu::emulator::tests::{test}");
    match std::env::var(INSIDE) {
        Ok(inside) if inside == entry.name => {
            let outcome = bug().map(|_| ());
            panic!("no sanitizer has caught {}: {outcome:?}", entry.name);
        }
        // This process is for another bug of the same test.
        Ok(_) => {}
        Err(_) => {
            let binary = std::env::current_exe().expect("this binary's path");
            let output = std::process::Command::new(binary)
                .args(["--exact", &name, "--nocapture", "--test-threads=1"])
                .env(INSIDE, entry.name)
                .output()
                .expect("the test in a process of its own");
            let text = String::from_utf8_lossy(&output.stderr);
            assert!(!output.status.success(), "{text}");
            let caught = text.contains("AddressSanitizer") || text.contains("runtime error");
            assert!(caught && text.contains(".cu"), "{}: {text}", entry.name);
        }
    }
}

/// Runs the kernel under several seeds. Without the bug it must always be right. With the bug it
/// must give wrong numbers under at least one seed: whether it does depends on the schedule.
#[track_caller]
fn assert_shows<I: NoUninit>(run: Run<'_, I>, bugs: &[u32], want: &[f32]) {
    const SEEDS: u64 = 8;
    for seed in 0..SEEDS {
        let got = run
            .run::<f32>(seed, want.len())
            .expect("the twin to be right");
        assert_eq!(got, want, "{} with seed {seed}", run.kernel.name);
    }
    for &bug in bugs {
        // NaN differs from every number.
        let shows = |seed: &u64| {
            run.bug(bug)
                .run::<f32>(*seed, want.len())
                .is_ok_and(|got| got != want)
        };
        let shown = (0..SEEDS).filter(shows).count();
        assert!(
            shown > 0,
            "{}: bug {bug} shows under no seed",
            run.kernel.name
        );
    }
}
