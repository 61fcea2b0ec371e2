//! Compares a queue on the emulator with one on the host.

use half::bf16;

use super::*;
use crate::batch::Batch;
use crate::gpu::element::GpuElement;
use crate::gpu::emulator::{EmulatedMachine, Emulator, Memory};
use crate::gpu::machine::Machine;
use crate::gpu::plan::{Addresses, Plan};
use crate::problem::Problem;
use crate::rows::Rows;
use crate::shapes::Shapes;

/// A queue on the emulator, and one on the host with the same keys.
struct Twins {
    machine: EmulatedMachine,
    layout: Layout,
    keys: Memory,
    state: Memory,
    host: Queue<f32>,
    normalize: bool,
}

impl Twins {
    fn new(capacity: usize, dim: usize, dtype: GpuDType, normalize: bool, seed: u64) -> Self {
        let mut machine = Emulator::new().seed(seed).machine();
        let layout = Layout::new(capacity, dim, dtype, normalize);
        let bytes = layout.bytes().expect("a small queue");
        // NaN until a key is written.
        let keys = machine.allocate("queue", bytes).expect("memory");
        let mut state = machine
            .allocate("queue", Layout::STATE_BYTES)
            .expect("memory");
        machine
            .write(&mut state, &[0; Layout::STATE_BYTES])
            .expect("room");
        let host = Queue::new(capacity, dim)
            .expect("a queue")
            .with_normalize(normalize);
        Twins {
            machine,
            layout,
            keys,
            state,
            host,
            normalize,
        }
    }

    fn enqueue<T: GpuElement>(&mut self, batch: &[T]) {
        let rows = batch.len() / self.layout.dim;
        let plan = EnqueuePlan::new(self.layout, rows, GpuDType::of::<T>(), self.normalize)
            .expect("small sizes");
        let machine = &mut self.machine;
        let mut workspace = machine
            .allocate("workspace", plan.workspace_bytes())
            .expect("memory");
        machine
            .write(&mut workspace, &[0; workspace::Layout::COUNTERS])
            .expect("room");
        // One element off an aligned address.
        let bytes = [
            bytemuck::cast_slice(&[T::from_f64(0.0)]),
            bytemuck::cast_slice::<T, u8>(batch),
        ]
        .concat();
        let mut memory = machine.allocate("keys", bytes.len()).expect("memory");
        machine.write(&mut memory, &bytes).expect("room");
        let queue = QueueAddresses {
            keys: machine.address(&self.keys),
            state: machine.address(&self.state),
        };
        let (from, scratch) = (
            machine.address(&memory) + size_of::<T>() as u64,
            machine.address(&workspace),
        );
        plan.enqueue(machine, from, queue, scratch)
            .expect("a kernel without fault");
        let mut counters = [0u8; workspace::Layout::COUNTERS];
        machine.read(&workspace, &mut counters).expect("as long");
        assert_eq!(
            counters,
            [0; workspace::Layout::COUNTERS],
            "counters are left at 0"
        );
        // The host refuses a batch that is not finite, and keeps its keys.
        let refused = self
            .host
            .enqueue(Rows::new(batch, [rows, self.layout.dim]).expect("whole keys"))
            .is_err();
        assert_eq!(refused, batch.iter().any(|x| !x.to_f64().is_finite()));
    }

    /// Asserts that both hold the same keys in the same slots, and the same number of them.
    fn assert_same(&mut self) {
        let mut state = [0u32; 2];
        self.machine
            .read(&self.state, bytemuck::cast_slice_mut(&mut state))
            .expect("as long");
        assert_eq!(state[1] as usize, self.host.len());
        if !self.host.is_empty() {
            // The newest key lies in the slot before `next`.
            let slot = (state[0] as usize + self.layout.capacity - 1) % self.layout.capacity;
            let newest = &self.host.keys()[slot * self.layout.dim..][..self.layout.dim];
            assert_eq!(newest, self.host.recent(0));
        }
        let mut got = vec![0; self.layout.bytes().expect("a small queue")];
        self.machine.read(&self.keys, &mut got).expect("as long");
        let want = self.layout.pack(&self.host).expect("a small queue");
        let numbers = |bytes: &[u8]| -> Vec<f32> {
            match self.layout.element {
                KeyType::F16 => bytemuck::pod_collect_to_vec::<u8, f16>(bytes)
                    .iter()
                    .map(|x| x.to_f32())
                    .collect(),
                _ => bytemuck::pod_collect_to_vec(bytes),
            }
        };
        // Both compute x/‖x‖ in f64 and round it to f32. The last bit of the f64 may differ.
        let ulp = match self.layout.element {
            KeyType::F16 => 2f32.powi(-11),
            _ => 2f32.powi(-23),
        };
        for (got, want) in numbers(&got)
            .iter()
            .zip(numbers(&want))
            .take(self.host.len() * self.layout.pitch)
        {
            assert!((got - want).abs() <= ulp * want.abs(), "{got} {want}");
        }
    }
}

/// Trains for some steps with the queue on the device. The loss must see exactly the keys that have
/// entered, though its plan is made for a full queue.
fn evaluates_with_a_filling_queue<T: GpuElement>(capacity: usize, dim: usize) {
    let rows = 17;
    let mut twins = Twins::new(capacity, dim, GpuDType::of::<T>(), true, 1);
    let loss = crate::Rrd::default();
    let shapes = Shapes::new(rows, dim, dim);
    let whole = Problem::new(loss, shapes.with_queue(capacity)).expect("shapes that fit");
    let plan =
        Plan::new(&whole, GpuDType::of::<T>(), twins.machine.limits()).expect("a small plan");
    for step in 0..4 {
        let student: Vec<T> = batch(rows, dim, 1000 + step * rows);
        let teacher: Vec<T> = batch(rows, dim, step * rows);
        twins.enqueue(&teacher);
        let machine = &mut twins.machine;
        let upload = |machine: &mut EmulatedMachine, elements: &[T]| {
            let bytes = bytemuck::cast_slice(elements);
            let mut memory = machine.allocate("rows", bytes.len()).expect("memory");
            machine.write(&mut memory, bytes).expect("room");
            memory
        };
        let (x, y) = (upload(machine, &student), upload(machine, &teacher));
        let mut workspace = machine
            .allocate("workspace", plan.workspace_bytes())
            .expect("memory");
        machine
            .write(&mut workspace, &[0; workspace::Layout::COUNTERS])
            .expect("room");
        let result = machine
            .allocate("gradient", 4 * rows * dim)
            .expect("memory");
        let value = machine.allocate("loss", 8).expect("memory");
        let addresses = Addresses {
            student: machine.address(&x),
            teacher: machine.address(&y),
            queue: QueueAddresses {
                keys: machine.address(&twins.keys),
                state: machine.address(&twins.state),
            },
            gradient: machine.address(&result),
            value: machine.address(&value),
            workspace: machine.address(&workspace),
            ..Addresses::default()
        };
        plan.launch(machine, &addresses)
            .expect("kernels without fault");
        let mut got = vec![0f32; rows * dim];
        machine
            .read(&result, bytemuck::cast_slice_mut(&mut got))
            .expect("as long");

        let problem =
            Problem::new(loss, shapes.with_queue(twins.host.len())).expect("shapes that fit");
        let rows_of = |elements| Rows::new(elements, [rows, dim]).expect("whole rows");
        let batch = Batch::new(rows_of(&student), rows_of(&teacher)).with_queue(&twins.host);
        let want = problem
            .evaluate(&crate::Reference, batch)
            .expect("a batch that fits")
            .gradient;
        let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
        let error = norm(&mut got.iter().zip(&want).map(|(&g, w)| f64::from(g) - w))
            / norm(&mut want.iter().copied());
        // Keys are rounded to f16, or not rounded.
        let within = if twins.layout.element == KeyType::F16 {
            3e-3
        } else {
            3e-6
        };
        assert!(error < within, "{} step {step}: {error:e}", T::DTYPE);
    }
}

#[test]
fn losses_see_the_keys_that_have_entered() {
    for (capacity, dim) in [(1000, 20), (500, 128), (60, 130), (200, 300)] {
        evaluates_with_a_filling_queue::<f32>(capacity, dim);
        evaluates_with_a_filling_queue::<f16>(capacity, dim);
    }
}

/// `rows` different keys.
fn batch<T: GpuElement>(rows: usize, dim: usize, first: usize) -> Vec<T> {
    let element = |i: usize| ((first * dim + i) as f64 * 0.7).sin() * 3.0 + 0.1;
    (0..rows * dim).map(|i| T::from_f64(element(i))).collect()
}

fn fills_and_wraps<T: GpuElement>(seed: u64) {
    for normalize in [true, false] {
        for (capacity, dim) in [(1, 1), (5, 7), (7, 130), (64, 16)] {
            let mut twins = Twins::new(capacity, dim, GpuDType::of::<T>(), normalize, seed);
            let mut first = 0;
            // The ring is filled in part, then fully, then beyond; then batches exceed it.
            for rows in [2, 3, 1, 5, 9, 17, 130] {
                twins.enqueue::<T>(&batch(rows, dim, first));
                twins.assert_same();
                first += rows;
            }
        }
    }
}

#[test]
fn a_queue_fills_and_wraps_like_that_of_the_host() {
    for seed in [0, 1, 2] {
        fills_and_wraps::<f32>(seed);
        fills_and_wraps::<f16>(seed);
        fills_and_wraps::<bf16>(seed);
    }
}

#[test]
fn a_batch_that_is_not_finite_does_not_enter() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for at in [0, 12, 34] {
            let mut twins = Twins::new(8, 7, GpuDType::F32, true, 1);
            twins.enqueue::<f32>(&batch(3, 7, 0));
            let mut keys = batch::<f32>(5, 7, 3);
            keys[at] = bad;
            twins.enqueue(&keys);
            twins.assert_same();
            // The flag must be 0 again, so this batch enters.
            twins.enqueue::<f32>(&batch(4, 7, 8));
            twins.assert_same();
            assert_eq!(twins.host.len(), 7);
        }
    }
}

#[test]
fn keys_of_any_length_enter_normalised_and_zero_stays_zero() {
    let mut twins = Twins::new(4, 3, GpuDType::F32, true, 2);
    twins.enqueue::<f32>(&[
        3e38, -3e38, 3e38, 1e-45, 0.0, -1e-45, 0.0, -0.0, 0.0, 1e-20, 2e-20, 2e-20,
    ]);
    twins.assert_same();
}
