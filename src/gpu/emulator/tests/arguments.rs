//! Structs that Rust and C++ declare differently.

use super::{Emulator, Launch, Launcher, Machine, Result, THREADS, assert_caught, numbers};
use crate::gpu::arguments::kernel_arguments;
use crate::gpu::emulator::arguments::difference;
use crate::gpu::kernels::{self, EntryPoint};

super::seeded_bugs!(
    Scale:
    seeded_bugs_scale,
    seeded_bugs_swapped_scale,
    seeded_bugs_integer_scale,
    seeded_bugs_scale_of_swapped,
);

kernel_arguments! {
    /// `Range` in emulator/seeded_bugs/arguments.cu.
    struct Range {
        first: u32,
        count: u32,
    }

    /// `Scale` in emulator/seeded_bugs/arguments.cu.
    struct Scale {
        input: u64,
        output: u64,
        ranges: [Range; 2],
        factor: f32,
        padding: u32,
    }
}

/// Doubles 4 numbers and leaves 2 in between alone.
fn scale(kernel: &'static EntryPoint) -> Result<Vec<f32>> {
    let mut machine = Emulator::new().machine();
    let mut input = machine.allocate("input", 6 * 4)?;
    machine.write(&mut input, bytemuck::cast_slice(&numbers(6)))?;
    let mut output = machine.allocate("output", 6 * 4)?;
    machine.write(&mut output, &[0; 6 * 4])?;
    let arguments = Scale {
        input: machine.address(&input),
        output: machine.address(&output),
        ranges: [Range { first: 0, count: 3 }, Range { first: 5, count: 1 }],
        factor: 2.0,
        padding: 0,
    };
    machine.launch(Launch {
        kernel,
        grid: [1, 1, 1],
        threads: THREADS as u32,
        shared: 0,
        arguments: bytemuck::bytes_of(&arguments),
    })?;
    let mut scaled = vec![0.0; 6];
    machine.read(&output, bytemuck::cast_slice_mut(&mut scaled))?;
    Ok(scaled)
}

#[test]
fn a_struct_that_differs_in_a_field() {
    let scaled = scale(&seeded_bugs_scale);
    assert_eq!(scaled, Ok(vec![2.0, 4.0, 6.0, 0.0, 0.0, 12.0]));
    for (kernel, parts) in [
        (
            &seeded_bugs_swapped_scale,
            [
                "'input' (u64, 8 bytes at 0) in Rust",
                "'output' (u64, 8 bytes at 0) in C++",
            ],
        ),
        (
            &seeded_bugs_integer_scale,
            [
                "'factor' (f32, 4 bytes at 32) in Rust",
                "'factor' (u32, 4 bytes at 32) in C++",
            ],
        ),
        (
            &seeded_bugs_scale_of_swapped,
            [
                "in 'ranges': 'first' (u32, 4 bytes at 0) in Rust",
                "'count' (u32, 4 bytes at 0)",
            ],
        ),
    ] {
        assert_caught(scale(kernel), kernel, &parts);
    }
}

#[test]
fn all_arguments_are_the_same_in_rust_and_cpp() {
    let mut names = std::collections::HashSet::new();
    for kernel in kernels::all() {
        let emulated = kernel.emulated;
        let name = kernel.name;
        assert_eq!(
            kernel.arguments_bytes, emulated.arguments_bytes as usize,
            "{name}"
        );
        assert_eq!(
            difference(kernel.arguments, emulated.arguments),
            None,
            "{name}"
        );
        assert!(names.insert(name), "{name} twice");
    }
}
