//! Host slices, evaluated on a machine: copied there, computed, copied back.

use bytemuck::Pod;

use super::element::{GpuDType, GpuElement};
use super::logits::launch_softmax;
use super::machine::Machine;
use super::plan::{Addresses, Plan, QueueAddresses, grid_size, queue_layout};
use super::queue;
use super::relation::{launch as launch_relation, workspace_bytes};
use super::sampled::KeyAddresses;
use super::workspace::Layout;
use crate::bank::SampledKeys;
use crate::batch::Batch;
use crate::element::Real;
use crate::error::Result;
use crate::loss::Relation;
use crate::problem::{MOST_TERMS, Problem, Value};
use crate::queue::Queue;
use crate::rows::Rows;

/// Overwrites `gradient`.
pub(crate) fn evaluate<T: GpuElement, M: Machine>(
    machine: &mut M,
    problem: &Problem,
    batch: Batch<'_, T>,
    gradient: &mut [f32],
    row_losses: Option<&mut [f64]>,
) -> Result<Value> {
    let plan = Plan::new(problem, GpuDType::of::<T>(), machine.limits())?;
    let student = Uploaded::new(machine, "student", batch.student.as_slice())?;
    let teacher = match batch.top_k {
        None => Uploaded::new(machine, "teacher", batch.teacher.as_slice())?,
        Some(top_k) => Uploaded::new(machine, "teacher", reals(top_k.log_probabilities()))?,
    };
    let classes = match batch.top_k {
        None => None,
        Some(top_k) => Some(Uploaded::new(machine, "teacher classes", top_k.classes())?),
    };
    let weights = match batch.row_weights {
        None => None,
        Some(weights) => Some(Uploaded::new(machine, "row_weights", reals(weights))?),
    };
    let labels = match batch.labels {
        None => None,
        Some(labels) => Some(Uploaded::new(machine, "labels", labels)?),
    };
    let keys = match batch.keys {
        None => None,
        Some(keys) => Some(UploadedKeys::new(machine, &keys)?),
    };
    let mut losses = vec![0.0f32; row_losses.as_deref().map_or(0, <[f64]>::len)];
    let of_rows = match &row_losses {
        None => None,
        Some(_) => Some(Output::new(machine, "row_losses", &losses)?),
    };
    let queue = match (queue_layout(problem, GpuDType::of::<T>()), batch.queue) {
        (Some(layout), Some(queue)) => Some(UploadedQueue::new(machine, layout, queue)?),
        _ => None,
    };
    let mut workspace = machine.allocate("workspace", plan.workspace_bytes())?;
    machine.write(&mut workspace, &[0; Layout::COUNTERS])?;
    let result = Output::new(machine, "gradient", gradient)?;
    let value = machine.allocate("loss", size_of::<[f32; 1 + MOST_TERMS]>())?;
    let addresses = Addresses {
        student: student.address,
        teacher: teacher.address,
        teacher_classes: classes.as_ref().map_or(0, |classes| classes.address),
        labels: labels.as_ref().map_or(0, |labels| labels.address),
        keys: keys
            .as_ref()
            .map_or_else(KeyAddresses::default, UploadedKeys::addresses),
        row_weights: weights.as_ref().map_or(0, |weights| weights.address),
        queue: queue
            .as_ref()
            .map_or_else(QueueAddresses::default, |queue| queue.addresses(machine)),
        gradient: result.address,
        value: machine.address(&value),
        row_losses: of_rows.as_ref().map_or(0, |losses| losses.address),
        workspace: machine.address(&workspace),
    };
    plan.launch(machine, &addresses)?;

    let mut results = [0.0f32; 1 + MOST_TERMS];
    // No more than the kernels have written.
    let written = 1 + problem.terms().count();
    machine.read(&value, bytemuck::cast_slice_mut(&mut results[..written]))?;
    if let (Some(output), Some(row_losses)) = (of_rows, row_losses) {
        output.read(machine, &mut losses)?;
        for (out, loss) in row_losses.iter_mut().zip(losses) {
            *out = f64::from(loss);
        }
    }
    result.read(machine, gradient)?;
    // The kernels know of the batch's rows alone.
    let [loss, terms @ ..] = results.map(|value| f64::from(value) * problem.part());
    Ok(problem.value(loss, terms))
}

/// Overwrites `matrix`.
pub(crate) fn relation_matrix<T: GpuElement, M: Machine>(
    machine: &mut M,
    relation: Relation,
    rows: Rows<'_, T>,
    matrix: &mut [f32],
) -> Result<()> {
    let shape = [rows.len(), rows.dim()];
    let input = Uploaded::new(machine, "rows", rows.as_slice())?;
    let output = Output::new(machine, "matrix", matrix)?;
    let workspace = machine.allocate("workspace", workspace_bytes(relation, shape))?;
    let scratch = machine.address(&workspace);
    launch_relation(
        machine,
        GpuDType::of::<T>(),
        relation,
        shape,
        input.address,
        output.address,
        scratch,
    )?;
    output.read(machine, matrix)
}

/// Overwrites `probabilities`.
pub(crate) fn softmax<T: GpuElement, M: Machine>(
    machine: &mut M,
    rows: Rows<'_, T>,
    temperature: f64,
    probabilities: &mut [f32],
) -> Result<()> {
    let input = Uploaded::new(machine, "rows", rows.as_slice())?;
    let output = Output::new(machine, "probabilities", probabilities)?;
    let addresses = [input.address, output.address];
    let shape = [rows.len(), rows.dim()];
    launch_softmax(machine, GpuDType::of::<T>(), shape, temperature, addresses)?;
    output.read(machine, probabilities)
}

/// The reals of a GPU's elements, which are f32.
fn reals<R: Real>(reals: &[R]) -> &[f32] {
    bytemuck::cast_slice(reals)
}

/// An input on the machine, which lives as long as this.
struct Uploaded<M: Machine> {
    _memory: M::Memory,
    address: u64,
}

impl<M: Machine> Uploaded<M> {
    fn new<T: Pod>(machine: &mut M, argument: &'static str, elements: &[T]) -> Result<Self> {
        let bytes: &[u8] = bytemuck::cast_slice(elements);
        // Where the machine asks for it, elements before the input keep it from being aligned.
        let skipped = machine.misalignment(argument) * size_of::<T>();
        let mut memory = machine.allocate(argument, skipped + bytes.len())?;
        if skipped == 0 {
            machine.write(&mut memory, bytes)?;
        } else {
            machine.write(&mut memory, &[&vec![0xFF; skipped], bytes].concat())?;
        }
        let address = machine.address(&memory) + skipped as u64;
        Ok(Uploaded {
            _memory: memory,
            address,
        })
    }
}

/// A result of f32 on the machine.
struct Output<M: Machine> {
    memory: M::Memory,
    address: u64,
    /// The bytes before it that keep it from being aligned.
    skipped: usize,
}

impl<M: Machine> Output<M> {
    /// Memory for as many elements as `like` has.
    fn new(machine: &mut M, argument: &'static str, like: &[f32]) -> Result<Self> {
        let skipped = machine.misalignment(argument) * size_of::<f32>();
        let memory = machine.allocate(argument, skipped + size_of_val(like))?;
        let address = machine.address(&memory) + skipped as u64;
        Ok(Output {
            memory,
            address,
            skipped,
        })
    }

    /// Waits for all launches, then copies to `elements`.
    fn read(&self, machine: &mut M, elements: &mut [f32]) -> Result<()> {
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(elements);
        if self.skipped == 0 {
            return machine.read(&self.memory, bytes);
        }
        let mut all = vec![0; self.skipped + bytes.len()];
        machine.read(&self.memory, &mut all)?;
        bytes.copy_from_slice(&all[self.skipped..]);
        Ok(())
    }
}

/// The banks of a batch on the machine, and the indices of its keys.
struct UploadedKeys<M: Machine> {
    bank: Uploaded<M>,
    teacher_bank: Option<Uploaded<M>>,
    indices: Uploaded<M>,
    normalizers: Uploaded<M>,
}

impl<M: Machine> UploadedKeys<M> {
    fn new<R: Real>(machine: &mut M, keys: &SampledKeys<'_, R>) -> Result<Self> {
        // What no loss reads may be anything.
        let normalizers = keys
            .banks()
            .map(|bank| bank.normalizer().unwrap_or(f64::NAN));
        let teacher_bank = match keys.teacher_bank {
            None => None,
            Some(bank) => Some(Uploaded::new(machine, "bank", bank.rows().as_slice())?),
        };
        Ok(UploadedKeys {
            bank: Uploaded::new(machine, "bank", keys.bank.rows().as_slice())?,
            teacher_bank,
            indices: Uploaded::new(machine, "indices", keys.indices)?,
            normalizers: Uploaded::new(machine, "normalizers", &normalizers)?,
        })
    }

    fn addresses(&self) -> KeyAddresses {
        let teacher_bank = self.teacher_bank.as_ref().unwrap_or(&self.bank);
        KeyAddresses {
            banks: [self.bank.address, teacher_bank.address],
            indices: self.indices.address,
            normalizers: [0, size_of::<f64>() as u64].map(|at| self.normalizers.address + at),
        }
    }
}

/// A queue on the machine.
struct UploadedQueue<M: Machine> {
    keys: M::Memory,
    state: M::Memory,
}

impl<M: Machine> UploadedQueue<M> {
    fn new(machine: &mut M, layout: queue::Layout, queue: &Queue<f32>) -> Result<Self> {
        let bytes = layout.pack(queue)?;
        let mut keys = machine.allocate("queue", bytes.len())?;
        machine.write(&mut keys, &bytes)?;
        let mut state = machine.allocate("queue", queue::Layout::STATE_BYTES)?;
        machine.write(
            &mut state,
            bytemuck::bytes_of(&[0, grid_size("queue keys", queue.len())?]),
        )?;
        Ok(UploadedQueue { keys, state })
    }

    fn addresses(&self, machine: &M) -> QueueAddresses {
        QueueAddresses {
            keys: machine.address(&self.keys),
            state: machine.address(&self.state),
        }
    }
}
