//! Compares a bank on the emulator with one on the host.

use half::{bf16, f16};

use super::*;
use crate::bank::Bank;
use crate::gpu::element::GpuElement;
use crate::gpu::emulator::{EmulatedMachine, Emulator, Memory};
use crate::gpu::machine::Machine;
use crate::rows::Rows;

const DIM: usize = 130;
const SAMPLES: usize = 23;

/// A bank on the emulator, and one on the host with the same rows.
struct Twins {
    machine: EmulatedMachine,
    memory: Memory,
    host: Bank<f32>,
}

impl Twins {
    fn new(seed: u64) -> Self {
        let mut machine = Emulator::new().seed(seed).machine();
        let host = Bank::new(SAMPLES, DIM, seed).expect("a small bank");
        let bytes: &[u8] = bytemuck::cast_slice(host.rows().as_slice());
        let mut memory = machine.allocate("bank", bytes.len()).expect("memory");
        machine.write(&mut memory, bytes).expect("room");
        Twins {
            machine,
            memory,
            host,
        }
    }

    fn upload(&mut self, bytes: &[u8]) -> Memory {
        let mut memory = self.machine.allocate("rows", bytes.len()).expect("memory");
        self.machine.write(&mut memory, bytes).expect("room");
        memory
    }

    fn update<T: GpuElement<Real = f32>>(&mut self, samples: &[u32], batch: &[T], momentum: f64) {
        let shape = [samples.len(), DIM];
        let plan = UpdatePlan::new(shape, GpuDType::of::<T>()).expect("small sizes");
        let workspace = self.upload(&vec![0; plan.workspace_bytes()]);
        // One element off an aligned address.
        let bytes = [&[T::from_f64(f64::NAN)], batch].concat();
        let batch_memory = self.upload(bytemuck::cast_slice(&bytes));
        let targets = self.upload(bytemuck::cast_slice(&targets(samples)));
        let machine = &mut self.machine;
        let addresses = [
            machine.address(&batch_memory) + size_of::<T>() as u64,
            machine.address(&targets),
            machine.address(&self.memory),
        ];
        let scratch = machine.address(&workspace);
        plan.launch(machine, addresses, momentum, scratch)
            .expect("a kernel without fault");
        let mut counters = [1u8; Layout::COUNTERS];
        machine.read(&workspace, &mut counters).expect("as long");
        assert_eq!(counters, [0; Layout::COUNTERS], "counters are left at 0");
        // The host refuses a batch that is not finite, and keeps its rows.
        let rows = Rows::new(batch, shape).expect("whole rows");
        let refused = self.host.update(samples, rows, momentum).is_err();
        assert_eq!(refused, batch.iter().any(|x| !x.to_f64().is_finite()));
    }

    /// Asserts that both hold the same rows.
    fn assert_same(&mut self) {
        let mut got = vec![0f32; SAMPLES * DIM];
        self.machine
            .read(&self.memory, bytemuck::cast_slice_mut(&mut got))
            .expect("as long");
        for (at, (got, want)) in got.iter().zip(self.host.rows().as_slice()).enumerate() {
            // Both compute in f64 and round to f32. The last bit of the f64 may differ.
            let within = f32::EPSILON * want.abs();
            assert!((got - want).abs() <= within, "{at}: {got} {want}");
        }
    }
}

fn batch<T: GpuElement>(rows: usize, scale: f64) -> Vec<T> {
    let element = |i: usize| scale * (i as f64 * 0.7).sin();
    (0..rows * DIM).map(|i| T::from_f64(element(i))).collect()
}

fn updates_like_the_host<T: GpuElement<Real = f32>>(seed: u64) {
    let mut twins = Twins::new(seed);
    for (samples, momentum) in [
        (&[4u32, 22, 0, 7, 9, 1][..], 0.5),
        // A sample three times, over the bound of a block
        (&[5, 3, 5, 8, 2, 5, 3], 0.5),
        (&[22], 0.0),
        (&[22, 1], 1.0),
        (&[3; 9], 0.25),
    ] {
        twins.update(samples, &batch::<T>(samples.len(), 3.0), momentum);
        twins.assert_same();
    }
}

#[test]
fn a_bank_is_updated_like_that_of_the_host() {
    for seed in [0, 1, 2] {
        updates_like_the_host::<f32>(seed);
        updates_like_the_host::<f16>(seed);
        updates_like_the_host::<bf16>(seed);
    }
}

#[test]
fn a_batch_that_is_not_finite_changes_nothing() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for at in [0, DIM, 5 * DIM - 1] {
            let mut twins = Twins::new(1);
            let mut rows = batch::<f32>(5, 1.0);
            rows[at] = bad;
            let before = twins.host.clone();
            twins.update(&[1, 2, 3, 4, 5], &rows, 0.5);
            assert_eq!(twins.host, before);
            twins.assert_same();
            // The flag is 0 again, so this batch counts.
            twins.update(&[1, 2], &batch::<f32>(2, 1.0), 0.5);
            assert_ne!(twins.host, before);
            twins.assert_same();
        }
    }
}

#[test]
fn rows_of_zeros_and_of_any_length_are_taken() {
    let mut twins = Twins::new(3);
    for (scale, momentum) in [
        (0.0, 0.5),
        (3e38, 0.5),
        (1e-44, 0.0),
        (0.0, 0.0),
        (0.0, 0.5),
    ] {
        twins.update(&[3, 0], &batch::<f32>(2, scale), momentum);
        twins.assert_same();
    }
    assert_eq!(twins.host.rows().row(3), [0.0; DIM], "a mean of 0 stays 0");
}
