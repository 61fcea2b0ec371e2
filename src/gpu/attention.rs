//! What RRD and InfoNCE share on a GPU: rows attending over keys that are values too.
//!
//! An attention kernel takes the rows over the keys, split by split; what finishes a loss (kernels/rrd.cu,
//! kernels/info_nce.cu) puts the splits together. Where the attention kernel doesn't prepare what it reads,
//! kernels/attention_rows.cu does so before. No matrix of rows × keys exists.

mod arguments;
mod kernel;

use self::arguments::{Attending, Partials, Set, Stat};
pub(crate) use self::arguments::{FinishArguments, MmaArguments, RowsArguments, SimtArguments};
pub(crate) use self::kernel::Keys;
use self::kernel::{KEYS, Kernel, Weights, splits};
use super::kernels::{ATTENTION_ROWS, ATTENTION_SIMT};
use super::machine::{Launcher, Limits};
use super::plan::{Addresses, grid_size};
use super::queue;
use super::workspace::{Layout, Region};
use crate::element::DType;
use crate::error::{Error, Result};
use crate::problem::Problem;

/// Rows in a block of kernels/attention_rows.cu.
const ROWS_PER_BLOCK: u32 = 4;
/// What a grid can have along y and z.
const MOST_BLOCKS: usize = 65_535;

/// The passes but for the last.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Plan {
    dtype: DType,
    keys: Keys,
    kernel: Kernel,
    weights: Weights,
    normalize: bool,
    rows: u32,
    /// Of the queue, or of the batch.
    key_count: u32,
    dim: u32,
    row_pitch: u32,
    key_pitch: u32,
    mean_pitch: u32,
    /// Row tiles, splits of the keys, chunks of columns.
    grid: [u32; 3],
    /// Bytes of dynamic shared memory.
    shared: u32,
    /// log2(e)/τ of student and teacher.
    per_temperature: [f32; 2],
    /// upstream/(N τ) of the student: of the gradient.
    factor: f64,
    /// What `attention_rows` writes, and its scales: the student's, then the teacher's; 0 of those that
    /// need no preparing.
    prepared: Region,
    scales: Region,
    /// `[splits, rows]`
    stats: Region,
    /// `[splits, rows, mean_pitch]`
    means: Region,
    losses: Region,
}

impl Plan {
    pub(crate) fn new(
        problem: &Problem,
        dtype: DType,
        limits: Limits,
        keys: Keys,
        normalize: bool,
        temperatures: [f64; 2],
        layout: &mut Layout,
    ) -> Result<Self> {
        let shapes = problem.shapes();
        let (n, dim) = (shapes.rows, shapes.student_dim);
        let rows = grid_size("rows", n)?;
        let key_count = match shapes.queue {
            Some(capacity) => grid_size("queue keys", capacity)?,
            None => rows,
        };
        let kernel = Kernel::new(dim, dtype, normalize, keys, limits);
        let attending = match keys {
            Keys::QueueBoth => n.saturating_mul(2),
            Keys::Queue | Keys::Others => n,
        };
        let prepared = prepared_sets(kernel, keys) as usize;
        let pitch = queue::pitch(dim);
        let mean_pitch = dim.next_multiple_of(4);
        let (row_tiles, columns) = (
            attending.div_ceil(kernel.rows()),
            dim.div_ceil(kernel.columns()),
        );
        if columns > MOST_BLOCKS {
            return Err(Error::TooLarge {
                argument: "student_dim",
                most: MOST_BLOCKS * kernel.columns(),
                got: dim,
            });
        }
        let slots = limits.multiprocessors as usize * kernel.blocks_per_multiprocessor(limits);
        let splits = splits(
            row_tiles * columns,
            (key_count as usize).div_ceil(KEYS),
            slots,
        );
        Ok(Plan {
            dtype,
            keys,
            kernel,
            weights: Weights::new(problem.weight_precision(), keys, temperatures),
            normalize,
            factor: problem.upstream() / (f64::from(rows) * temperatures[0]),
            rows,
            key_count,
            dim: grid_size("student_dim", dim)?,
            row_pitch: grid_size("student_dim", pitch)?,
            key_pitch: grid_size("student_dim", pitch)?,
            mean_pitch: grid_size("student_dim", mean_pitch)?,
            grid: [
                grid_size("rows", row_tiles)?,
                grid_size("splits", splits)?,
                grid_size("student_dim", columns)?,
            ],
            shared: grid_size("student_dim", kernel.shared())?,
            per_temperature: temperatures.map(|t| (std::f64::consts::LOG2_E / t) as f32),
            prepared: layout.push::<u8>(&[prepared, n, pitch, kernel.element()])?,
            scales: layout.push::<f32>(&[prepared, n])?,
            stats: layout.push::<Stat>(&[splits, attending])?,
            means: layout.push::<f32>(&[splits, attending, mean_pitch])?,
            losses: layout.push::<f64>(&[2, n])?,
        })
    }

    /// Takes the rows over the keys.
    pub(crate) fn launch(&self, launcher: &mut impl Launcher, at: &Addresses) -> Result<()> {
        self.prepare(launcher, at)?;
        let (keys, key_scales) = self.last_prepared(at);
        let attending = Attending {
            keys: match self.keys {
                Keys::QueueBoth | Keys::Queue => at.queue.keys,
                Keys::Others => keys,
            },
            state: at.queue.state,
            stats: self.stats.at(at.workspace),
            means: self.means.at(at.workspace),
            row_count: self.attending(),
            key_count: self.key_count,
            dim: self.dim,
            key_pitch: self.key_pitch,
            mean_pitch: self.mean_pitch,
            padding: 0,
        };
        match self.kernel {
            Kernel::Mma(width) => {
                let arguments = MmaArguments {
                    attending,
                    student: at.student,
                    teacher: match self.keys {
                        Keys::QueueBoth => at.teacher,
                        Keys::Queue | Keys::Others => 0,
                    },
                    key_scales,
                    per_temperature: self.per_temperature,
                    samples: self.rows,
                    is_bf16: (self.dtype == DType::BF16).into(),
                };
                width.entry(self.keys, self.weights).launch(
                    launcher,
                    self.grid,
                    self.shared,
                    &arguments,
                )
            }
            Kernel::Simt(key_type) => {
                let arguments = SimtArguments {
                    attending,
                    rows: self.prepared.at(at.workspace),
                    scales: self.scales.at(at.workspace),
                    row_pitch: self.row_pitch,
                    pass_over_own: (self.keys == Keys::Others).into(),
                };
                ATTENTION_SIMT
                    .of(key_type)
                    .launch(launcher, self.grid, self.shared, &arguments)
            }
        }
    }

    /// Prepares those rows that the kernel doesn't prepare itself, and a batch's keys.
    fn prepare(&self, launcher: &mut impl Launcher, at: &Addresses) -> Result<()> {
        let sets = prepared_sets(self.kernel, self.keys);
        let [student_scale, teacher_scale] = self.per_temperature;
        let student = Set {
            from: at.student,
            to: self.prepared.at(at.workspace),
            scales: self.scales.at(at.workspace),
            per_temperature: student_scale,
            padding: 0,
        };
        let (to, scales) = self.last_prepared(at);
        let teacher = Set {
            from: at.teacher,
            to,
            scales,
            per_temperature: match self.keys {
                Keys::QueueBoth | Keys::Queue => teacher_scale,
                Keys::Others => 1.0,
            },
            padding: 0,
        };
        let arguments = RowsArguments {
            sets: match (sets, self.kernel.takes_prepared_rows()) {
                (0, _) => return Ok(()),
                (1, false) => [teacher; 2],
                _ => [student, teacher],
            },
            rows: self.rows,
            dim: self.dim,
            pitch: self.row_pitch,
            format: self.kernel.format() as u32,
            normalize: self.normalize.into(),
            padding: 0,
        };
        let grid = [self.rows.div_ceil(ROWS_PER_BLOCK), sets, 1];
        ATTENTION_ROWS
            .of(self.dtype)
            .launch(launcher, grid, 0, &arguments)
    }

    /// The last of the prepared sets, the teacher's where it is prepared, and its scales.
    fn last_prepared(&self, at: &Addresses) -> (u64, u64) {
        let before = u64::from(prepared_sets(self.kernel, self.keys).saturating_sub(1) * self.rows);
        let bytes = u64::from(self.row_pitch) * self.kernel.element() as u64;
        (
            self.prepared.at(at.workspace) + before * bytes,
            self.scales.at(at.workspace) + before * size_of::<f32>() as u64,
        )
    }

    /// What the last pass takes.
    pub(crate) fn finish(&self, at: &Addresses) -> FinishArguments {
        FinishArguments {
            student: at.student,
            teacher: at.teacher,
            partials: Partials {
                stats: self.stats.at(at.workspace),
                means: self.means.at(at.workspace),
                rows: self.attending(),
                splits: self.grid[1],
                pitch: self.mean_pitch,
                differences: self.kernel.gives_differences(self.weights).into(),
                moments: matches!(self.kernel, Kernel::Mma(_)).into(),
                padding: 0,
            },
            gradient: at.gradient,
            losses: self.losses.at(at.workspace),
            value: at.value,
            counter: Layout::counter(0).at(at.workspace),
            factor: self.factor,
            per_temperature: self.per_temperature,
            dim: self.dim,
            normalized: self.normalize.into(),
            format: self.kernel.format() as u32,
            padding: 0,
        }
    }

    /// The type of the rows as they come, and their number.
    pub(crate) fn batch(&self) -> (DType, u32) {
        (self.dtype, self.rows)
    }

    fn attending(&self) -> u32 {
        match self.keys {
            Keys::QueueBoth => 2 * self.rows,
            Keys::Queue | Keys::Others => self.rows,
        }
    }
}

/// How many sets of rows, of student and teacher, are prepared before the attention.
fn prepared_sets(kernel: Kernel, keys: Keys) -> u32 {
    match (kernel.takes_prepared_rows(), keys) {
        (true, Keys::QueueBoth | Keys::Others) => 2,
        (true, Keys::Queue) | (false, Keys::Others) => 1,
        (false, Keys::QueueBoth | Keys::Queue) => 0,
    }
}

#[cfg(test)]
mod tests;
