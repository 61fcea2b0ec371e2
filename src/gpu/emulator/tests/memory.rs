//! Reads of memory that nothing wrote, and reads and writes outside of an allocation.

use super::{
    Arguments, Emulator, Launch, Launcher, Run, THREADS, assert_caught, assert_caught_first,
    assert_shows, numbers, reversed, seeded_bugs,
};
use crate::gpu::machine::Machine;

seeded_bugs!(
    seeded_bugs_static_overrun,
    seeded_bugs_integer_overrun,
    seeded_bugs_static_underrun,
    seeded_bugs_dynamic_overrun,
    seeded_bugs_static_limit,
    seeded_bugs_unwritten_shared,
    seeded_bugs_copy,
    seeded_bugs_misaligned,
    seeded_bugs_register_array,
    seeded_bugs_divide,
);

#[test]
fn an_overrun_of_a_shared_array() {
    let input = numbers(THREADS);
    let run = Run::new(&seeded_bugs_static_overrun, &input);
    assert_eq!(run.run::<f32>(0, THREADS), Ok(reversed(&input)));
    let parts = [
        "block (0, 0, 0)",
        "memory.cu:",
        "byte 1 behind the 256 bytes of shared array 'tile'",
    ];
    let test = "memory::an_overrun_of_a_shared_array";
    assert_caught_first(
        test,
        || run.bug(1).run::<f32>(0, THREADS),
        run.kernel,
        &parts,
    );
}

#[test]
fn an_overrun_that_writes_the_initial_content() {
    let input = numbers(THREADS);
    let run = Run::new(&seeded_bugs_integer_overrun, &input);
    assert_eq!(run.run::<f32>(0, THREADS), Ok(reversed(&input)));
    let test = "memory::an_overrun_that_writes_the_initial_content";
    let parts = ["behind the 256 bytes of shared array 'flags'"];
    assert_caught_first(
        test,
        || run.bug(1).run::<f32>(0, THREADS),
        run.kernel,
        &parts,
    );
}

#[test]
fn a_write_before_a_shared_array() {
    let input = numbers(THREADS);
    let run = Run::new(&seeded_bugs_static_underrun, &input);
    assert_eq!(run.run::<f32>(0, THREADS), Ok(reversed(&input)));
    let test = "memory::a_write_before_a_shared_array";
    let parts = ["byte 1 before the 256 bytes of shared array 'tile'"];
    assert_caught_first(
        test,
        || run.bug(1).run::<f32>(0, THREADS),
        run.kernel,
        &parts,
    );
}

#[test]
fn an_overrun_of_dynamic_shared_memory() {
    let input = numbers(THREADS);
    let mut run = Run::new(&seeded_bugs_dynamic_overrun, &input);
    run.shared = 4 * THREADS as u32;
    assert_eq!(run.run::<f32>(0, THREADS), Ok(reversed(&input)));
    let test = "memory::an_overrun_of_dynamic_shared_memory";
    let behind = ["byte 1 behind the 256 bytes of dynamic shared memory"];
    assert_caught_first(
        test,
        || run.bug(1).run::<f32>(0, THREADS),
        run.kernel,
        &behind,
    );
    if cfg!(not(feature = "emulator-sanitize")) {
        let before = ["byte 1 before the 256 bytes of dynamic shared memory"];
        assert_caught(run.bug(2).run::<f32>(0, THREADS), run.kernel, &before);
    }
}

#[test]
fn too_much_shared_memory() {
    let input = numbers(THREADS);
    let mut run = Run::new(&seeded_bugs_static_limit, &input);
    assert_eq!(run.run::<f32>(0, THREADS), Ok(reversed(&input)));
    let parts = ["memory.cu:", "more than 48 KiB of static shared memory"];
    assert_caught(run.bug(1).run::<f32>(0, THREADS), run.kernel, &parts);
    // 48 KiB of static memory and 115 KiB of dynamic memory are the 163 KiB of an A100.
    run.shared = 115 * 1024;
    assert_eq!(run.run::<f32>(0, THREADS), Ok(reversed(&input)));
    run.shared += 1;
    let parts = ["more shared memory, static and dynamic, than"];
    assert_caught(run.run::<f32>(0, THREADS), run.kernel, &parts);
    run.shared = 163 * 1024 + 1;
    let parts = ["asks for 166913 bytes of shared memory, of 166912"];
    assert_caught(run.run::<f32>(0, THREADS), run.kernel, &parts);
}

#[test]
fn shared_memory_that_nothing_wrote() {
    let input = numbers(THREADS);
    let run = Run::new(&seeded_bugs_unwritten_shared, &input);
    assert_shows(run, &[], &reversed(&input));
    let got = run.bug(1).run::<f32>(0, THREADS).expect("no fault");
    let nan: Vec<usize> = (0..THREADS).filter(|&i| got[i].is_nan()).collect();
    assert_eq!(nan, [THREADS - 1 - 7]);
}

#[test]
fn global_memory_that_nothing_wrote_or_owns() {
    // 3 elements fewer than threads.
    let (count, blocks) = (3 * THREADS - 3, 3);
    let input = numbers(count);
    let mut run = Run::new(&seeded_bugs_copy, &input).count(count);
    run.blocks = blocks;
    assert_eq!(run.run::<f32>(0, count), Ok(input.clone()));
    let test = "memory::global_memory_that_nothing_wrote_or_owns";
    let behind = [
        "seeded_bugs_copy",
        "byte 1 behind the 756 bytes of 'output'",
    ];
    assert_caught_first(
        test,
        || run.bug(1).run::<f32>(0, count),
        run.kernel,
        &behind,
    );
    if cfg!(not(feature = "emulator-sanitize")) {
        let before = ["byte 1 before the 756 bytes of 'output'"];
        assert_caught(run.bug(2).run::<f32>(0, count), run.kernel, &before);
        // An input with one element too few.
        let short = &input[..count - 1];
        let mut run = Run::new(&seeded_bugs_copy, short).count(count);
        run.blocks = blocks;
        let got = run.run::<f32>(0, count).expect("no fault");
        assert_eq!(&got[..count - 1], short);
        assert!(got[count - 1].is_nan());
    }
    // An output whose last element is not written.
    run.count = count - 1;
    let got = run.run::<f32>(0, count).expect("no fault");
    assert!(got[count - 1].is_nan());
}

#[test]
fn a_misaligned_load() {
    let input = numbers(4 * THREADS + 4);
    let run = Run::new(&seeded_bugs_misaligned, &input);
    let want: Vec<f32> = input
        .chunks(4)
        .take(THREADS)
        .map(|c| c.iter().sum())
        .collect();
    assert_eq!(run.run(0, THREADS), Ok(want));
    let parts = ["thread ", "element.cuh:", "not aligned to its type"];
    let test = "memory::a_misaligned_load";
    assert_caught_first(
        test,
        || run.bug(2).run::<f32>(0, THREADS),
        run.kernel,
        &parts,
    );
}

#[test]
fn an_index_beyond_an_array_in_registers() {
    let input = numbers(4);
    let run = Run::new(&seeded_bugs_register_array, &input);
    let got = run.run::<f32>(0, THREADS).expect("the twin to be right");
    assert_eq!(got[..5], [1.0, 2.0, 3.0, 4.0, 1.0]);
    let parts = ["memory.cu:", "an index beyond the end of an array"];
    let test = "memory::an_index_beyond_an_array_in_registers";
    assert_caught_first(
        test,
        || run.bug(1).run::<f32>(0, THREADS),
        run.kernel,
        &parts,
    );
}

#[test]
fn a_division_by_zero() {
    let run = Run::new(&seeded_bugs_divide, &[0.0f32]);
    let got = run.run::<f32>(0, THREADS).expect("the twin to be right");
    assert_eq!(got[THREADS - 1], (THREADS - 1) as f32);
    let parts = ["memory.cu:", "a division by 0"];
    let test = "memory::a_division_by_zero";
    assert_caught_first(
        test,
        || run.bug(1).run::<f32>(0, THREADS),
        run.kernel,
        &parts,
    );
}

#[test]
fn launches_that_a_gpu_refuses() {
    let input = numbers(THREADS);
    let refused = |grid: [u32; 3], threads: u32, bytes: usize, part: &str| {
        let mut machine = Emulator::new().machine();
        let memory = machine.allocate("memory", 4 * THREADS).expect("memory");
        let arguments = Arguments {
            input: machine.address(&memory),
            output: machine.address(&memory),
            counter: 0,
            count: 0,
            bug: 0,
        };
        let outcome = machine.launch(Launch {
            kernel: &seeded_bugs_copy,
            grid,
            threads,
            shared: 0,
            arguments: &bytemuck::bytes_of(&arguments)[..bytes],
        });
        assert_caught(outcome, &seeded_bugs_copy, &[part]);
    };
    let (threads, bytes) = (THREADS as u32, size_of::<Arguments>());
    refused([1, 1, 1], 32, bytes, "is for 64 threads, not 32");
    refused([1, 1, 1], threads, bytes - 8, "takes 32 bytes, not 24");
    refused([1, 0, 1], threads, bytes, "a grid of 1 x 0 x 1 blocks");
    refused(
        [1, 1, 65_536],
        threads,
        bytes,
        "a grid of 1 x 1 x 65536 blocks",
    );
    // The emulator still works.
    let run = Run::new(&seeded_bugs_copy, &input).count(THREADS);
    assert_eq!(run.run(0, THREADS), Ok(input.clone()));
}
