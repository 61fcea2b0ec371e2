//! A memory bank on a GPU, and which of its rows are the keys of a batch.
#![allow(unsafe_code, reason = "copies and launches on memory of its own")]

use std::fmt;
use std::sync::Arc;

use cudarc::driver::{CudaStream, DevicePtr, result};

use super::context::KernelContext;
use super::driver;
use super::evaluator::check;
use super::failure::WithContext;
use super::memory::{Memory, bind};
use crate::bank::check_indices;
use crate::checks::{not_empty, same, zeroed};
use crate::error::{Error, Result};
use crate::gpu::element::{GpuDType, GpuElement};
use crate::gpu::sampled::KeyAddresses;
use crate::gpu::sampled::update::{UpdatePlan, targets};
use crate::gpu::workspace::Layout;
use crate::loss::{Family, Range};
use crate::problem::Problem;
use crate::rows::Rows;

/// A memory [bank](crate::Bank) on a GPU, for [`Evaluator::launch_with`].
///
/// It comes from a bank on the host, with its normalizer: see
/// [`Bank::calibrate`](crate::Bank::calibrate).
///
/// ```no_run
/// use relata::cuda::{Bank, Evaluator, Indices, OfRows, SampledKeys, Teacher, VALUE_LEN};
/// use relata::cuda::cudarc::driver::CudaContext;
/// use relata::{Crd, NegativeSampler, Rows, Shapes};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let stream = CudaContext::new(0)?.default_stream();
/// let labels: Vec<u32> = (0..50_000).map(|sample| sample % 100).collect();
/// let sampler = NegativeSampler::of_other_classes(&labels, Crd::NEGATIVES)?;
/// let (rows, dim, keys) = (64, 128, 1 + Crd::NEGATIVES);
/// let crd = Crd::default();
/// let shapes = Shapes::new(rows, dim, 0).with_bank(labels.len(), keys);
/// let mut evaluator = Evaluator::<f32>::new(&stream, &crd.problem(shapes)?)?;
///
/// // The first batch sets the normalizer, on the host.
/// let samples: Vec<u32> = (0..64).collect();
/// let first = vec![0.1f32; rows * dim];
/// let drawn = sampler.sample(&samples, 0)?;
/// let mut host = relata::Bank::<f32>::new(labels.len(), dim, 0)?;
/// host.calibrate(Rows::new(&first, [rows, dim])?, &drawn, crd.temperature)?;
/// let mut bank = Bank::new(&stream, &host)?;
/// let mut indices = Indices::new(&stream, &drawn, [rows, keys], labels.len())?;
///
/// // A step: the rows are on the GPU.
/// let (student, teacher) = (stream.clone_htod(&first)?, stream.clone_htod(&first)?);
/// let (mut gradient, mut value) = (stream.alloc_zeros(rows * dim)?, stream.alloc_zeros(VALUE_LEN)?);
/// indices.write(&sampler.sample(&samples, 1)?)?;
/// let keys = Some(SampledKeys { bank: &mut bank, teacher_bank: None, indices: &mut indices });
/// let of_rows = OfRows { keys, ..OfRows::default() };
/// evaluator.launch_with(&student, Teacher::None, of_rows, &mut gradient, &mut value)?;
/// bank.update::<f32>(&samples, &teacher, relata::Bank::<f32>::MOMENTUM)?;
/// # Ok(()) }
/// ```
///
/// It may move to another thread, as an [`Evaluator`](super::Evaluator#threads) may.
///
/// [`Evaluator::launch_with`]: super::Evaluator::launch_with
#[derive(Debug)]
pub struct Bank {
    /// The normalizer, f64, and from [`Self::ROWS`] on the rows, f32.
    memory: Memory,
    samples: usize,
    dim: usize,
    normalizer: Option<f64>,
    update: Option<UpdateMemory>,
    context: KernelContext,
    stream: Arc<CudaStream>,
}

/// What an update needs beside the bank.
#[derive(Debug)]
struct UpdateMemory {
    /// The most rows of a batch.
    rows: usize,
    targets: Memory,
    workspace: Memory,
}

impl Bank {
    /// Where the rows begin.
    const ROWS: usize = 256;

    /// Copies a bank to the GPU of `stream`, and waits.
    ///
    /// # Errors
    /// As [`Cuda::new`](super::Cuda::new), and [`Error::OutOfMemory`].
    pub fn new(stream: &Arc<CudaStream>, host: &crate::Bank<f32>) -> Result<Self> {
        driver::ready()?;
        bind(stream)?;
        let context = KernelContext::current()?;
        let rows: &[u8] = bytemuck::cast_slice(host.rows().as_slice());
        let mut memory = Memory::new(stream, "bank", Self::ROWS + rows.len())?;
        // What no loss reads may be anything.
        let z = host.normalizer().unwrap_or(f64::NAN);
        memory.write(&z.to_ne_bytes())?;
        memory.write_at(Self::ROWS, rows)?;
        Ok(Bank {
            memory,
            samples: host.len(),
            dim: host.dim(),
            normalizer: host.normalizer(),
            update: None,
            context,
            stream: Arc::clone(stream),
        })
    }

    /// The number of samples, `n_data`.
    #[must_use]
    pub fn len(&self) -> usize {
        self.samples
    }

    /// Whether there are no samples: never.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.samples == 0
    }

    /// The number of elements in a row, D.
    #[must_use]
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Z, if it is set.
    #[must_use]
    pub fn normalizer(&self) -> Option<f64> {
        self.normalizer
    }

    /// Moves the rows of these `samples` towards the batch's `rows`, `[N, D]`, as
    /// [`Bank::update`](crate::Bank::update) does on the host, and returns at once after a copy of the
    /// samples. A batch with a NaN or an infinity changes nothing.
    ///
    /// # Errors
    /// [`Error::Empty`] without rows. [`Error::TooLarge`] for a sample that the bank does not have.
    /// [`Error::Length`] unless there is a row for each sample, and [`Error::ForeignMemory`] for rows of
    /// another context. [`Error::Parameter`] for a momentum that is not from 0 to 1.
    /// [`Error::OutOfMemory`], where a batch is larger than all before it, and [`Error::Cuda`]. No row
    /// has changed then.
    pub fn update<T: GpuElement>(
        &mut self,
        samples: &[u32],
        rows: &impl DevicePtr<T>,
        momentum: f64,
    ) -> Result<()> {
        not_empty("samples", samples.len())?;
        check_indices("samples", self.samples, samples)?;
        Range::Fraction.check("momentum", momentum)?;
        let stream = Arc::clone(&self.stream);
        check("rows", rows, samples.len() * self.dim, &stream)?;
        self.memory.bind()?;
        let plan = UpdatePlan::new([samples.len(), self.dim], GpuDType::of::<T>())?;
        self.context
            .prepare_for(|kernels| plan.launch(kernels, [0; 3], momentum, 0))?;
        let bank = self.memory.address() + Self::ROWS as u64;
        let memory = self.update_memory(samples.len(), &plan)?;
        memory
            .targets
            .write(bytemuck::cast_slice(&targets(samples)))?;
        memory.workspace.bind()?;
        let [of_samples, workspace] = [&memory.targets, &memory.workspace].map(Memory::address);
        // While this guard lives, other streams wait for the launches.
        let (rows, _read) = rows.device_ptr(&stream);
        let mut launcher = self.context.launcher(stream.cu_stream())?;
        let addresses = [rows, of_samples, bank];
        plan.launch(&mut launcher, addresses, momentum, workspace)
    }

    /// Memory for a batch of so many rows.
    fn update_memory(&mut self, rows: usize, plan: &UpdatePlan) -> Result<&mut UpdateMemory> {
        let stream = &self.stream;
        let memory = match self.update.take() {
            Some(memory) if memory.rows >= rows => memory,
            _ => {
                let workspace = Memory::new(stream, "workspace", plan.workspace_bytes())?;
                // SAFETY: the counters are the first bytes of the workspace, which is of the context
                // bound by `new`.
                let cleared = unsafe {
                    let counters = Layout::COUNTERS;
                    result::memset_d8_async(workspace.address(), 0, counters, stream.cu_stream())
                };
                cleared.context("clearing the workspace")?;
                UpdateMemory {
                    rows,
                    targets: Memory::new(stream, "samples", rows * size_of::<u32>())?,
                    workspace,
                }
            }
        };
        Ok(self.update.insert(memory))
    }

    /// Waits for the stream and copies the bank to the host, for a checkpoint: [`new`](Self::new) makes
    /// the same bank of it, bit for bit.
    ///
    /// # Errors
    /// [`Error::Cuda`], also for a fault in an earlier evaluation, and [`Error::OutOfMemory`].
    pub fn to_host(&self) -> Result<crate::Bank<f32>> {
        let mut rows: Vec<f32> = zeroed("bank", self.samples * self.dim)?;
        self.memory
            .read_at(Self::ROWS, bytemuck::cast_slice_mut(&mut rows))?;
        crate::Bank::from_rows(Rows::new(&rows, [self.samples, self.dim])?)?
            .with_normalizer(self.normalizer)
    }

    /// Refuses a bank of other shapes, without the normalizer that the loss needs, or of another
    /// stream.
    fn fits(
        &self,
        [samples, dim]: [usize; 2],
        needs_normalizer: bool,
        stream: &CudaStream,
    ) -> Result<()> {
        same("bank samples", samples, self.samples)?;
        same("bank_dim", dim, self.dim)?;
        if needs_normalizer && self.normalizer.is_none() {
            return Err(Error::Missing {
                argument: "normalizer",
                expected: "a bank with its normalizer: see Bank::calibrate",
            });
        }
        if *self.stream != *stream {
            return Err(Error::ForeignMemory {
                argument: "bank",
                got: "a bank of another stream".to_owned(),
            });
        }
        Ok(())
    }

    /// The addresses of the rows and of the normalizer, for a launch on the stream.
    fn bind(&mut self) -> Result<[u64; 2]> {
        self.memory.bind()?;
        let address = self.memory.address();
        Ok([address + Self::ROWS as u64, address])
    }
}

/// Which rows of a bank are the keys of a batch, on a GPU: what
/// [`NegativeSampler::sample`](crate::NegativeSampler::sample) has drawn.
///
/// The indices come from host memory, where they are checked: a kernel reads the bank at these places.
/// So it is safe to evaluate them.
#[derive(Debug)]
pub struct Indices {
    memory: Memory,
    shape: [usize; 2],
    /// All indices are below.
    below: usize,
    stream: Arc<CudaStream>,
}

impl Indices {
    /// Copies `indices`, of the shape `[N, K + 1]`, to the GPU of `stream`, and waits. They are of a
    /// bank of so many `samples`.
    ///
    /// # Errors
    /// [`Error::Empty`] without rows or keys. [`Error::Length`] if there are more or fewer indices than
    /// the shape says. [`Error::TooLarge`] for one that is not below `samples`.
    /// [`Error::OutOfMemory`].
    pub fn new(
        stream: &Arc<CudaStream>,
        indices: &[u32],
        [rows, keys]: [usize; 2],
        samples: usize,
    ) -> Result<Self> {
        not_empty("rows", rows)?;
        not_empty("indices", keys)?;
        not_empty("bank samples", samples)?;
        check_drawn(indices, [rows, keys], samples)?;
        driver::ready()?;
        bind(stream)?;
        let mut memory = Memory::new(stream, "indices", size_of_val(indices))?;
        memory.write(bytemuck::cast_slice(indices))?;
        Ok(Indices {
            memory,
            shape: [rows, keys],
            below: samples,
            stream: Arc::clone(stream),
        })
    }

    /// Replaces them by others of the same shape, at the same place, and waits for the copy.
    ///
    /// # Errors
    /// As [`new`](Self::new). The indices are unchanged then, but after [`Error::Cuda`].
    pub fn write(&mut self, indices: &[u32]) -> Result<()> {
        check_drawn(indices, self.shape, self.below)?;
        self.memory.write(bytemuck::cast_slice(indices))
    }

    /// `[N, K + 1]`
    #[must_use]
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }
}

/// Refuses another number of indices, and one that is not below `samples`.
fn check_drawn(indices: &[u32], [rows, keys]: [usize; 2], samples: usize) -> Result<()> {
    let expected = rows.saturating_mul(keys);
    if indices.len() != expected {
        return Err(Error::Length {
            argument: "indices",
            expected,
            got: indices.len(),
        });
    }
    check_indices("indices", samples, indices)
}

/// The keys of an evaluation on a GPU: which rows of which banks.
pub struct SampledKeys<'a> {
    /// What the student's rows are compared with.
    pub bank: &'a mut Bank,
    /// What the teacher's rows are compared with, if it is not the same bank.
    pub teacher_bank: Option<&'a mut Bank>,
    /// The keys of each row, its own first.
    pub indices: &'a mut Indices,
}

impl fmt::Debug for SampledKeys<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SampledKeys")
            .field("samples", &self.bank.samples)
            .field("teacher_bank", &self.teacher_bank.is_some())
            .field("indices", &self.indices.shape)
            .finish()
    }
}

impl SampledKeys<'_> {
    /// Refuses keys that are not those of the problem, or of another stream.
    pub(super) fn fits(&self, problem: &Problem, stream: &CudaStream) -> Result<()> {
        let shapes = problem.shapes();
        let (Family::Sampled(loss), Some([samples, keys])) = (problem.spec().family, shapes.bank)
        else {
            return Err(Error::Unexpected {
                argument: "bank",
                loss: problem.loss().name(),
            });
        };
        let normalizers = loss.normalizers();
        let of_bank = [samples, shapes.student_dim];
        // Without a teacher's bank the student's serves both.
        self.bank.fits(of_bank, normalizers > 0, stream)?;
        if let Some(bank) = &self.teacher_bank {
            if loss.banks() < 2 {
                return Err(Error::Unexpected {
                    argument: "teacher_bank",
                    loss: problem.loss().name(),
                });
            }
            bank.fits(of_bank, normalizers > 1, stream)?;
        }
        same("indices of a row", keys, self.indices.shape[1])?;
        same("rows of indices", shapes.rows, self.indices.shape[0])?;
        same("bank samples", samples, self.indices.below)?;
        if *self.indices.stream != *stream {
            return Err(Error::ForeignMemory {
                argument: "indices",
                got: "indices of another stream".to_owned(),
            });
        }
        Ok(())
    }

    /// The addresses for a launch on the stream.
    pub(super) fn bind(self) -> Result<KeyAddresses> {
        let [bank, normalizer] = self.bank.bind()?;
        let [teacher_bank, teacher_normalizer] = match self.teacher_bank {
            None => [bank, normalizer],
            Some(bank) => bank.bind()?,
        };
        self.indices.memory.bind()?;
        Ok(KeyAddresses {
            banks: [bank, teacher_bank],
            normalizers: [normalizer, teacher_normalizer],
            indices: self.indices.memory.address(),
        })
    }
}
