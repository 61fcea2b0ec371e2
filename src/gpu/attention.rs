//! What RRD and InfoNCE share on a GPU: rows attending over keys that are values too.
//!
//! Three passes. kernels/attention_rows.cu prepares the rows; an attention kernel takes them over the
//! keys, split by split; what finishes a loss (kernels/rrd.cu, kernels/info_nce.cu) puts the splits
//! together. No matrix of rows × keys exists.

mod arguments;
mod kernel;

pub(crate) use self::arguments::{Arguments, FinishArguments, RowsArguments};
use self::arguments::{Partials, RowRecord, Set, Stat};
pub(crate) use self::kernel::Keys;
use self::kernel::{Format, KEYS, Kernel, splits};
use super::kernels::ATTENTION_ROWS;
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
    /// `[2 N]` each: the student's, then the teacher's.
    prepared: Region,
    scales: Region,
    records: Region,
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
        let prepared = match keys {
            Keys::QueueBoth | Keys::Others => n.saturating_mul(2),
            Keys::Queue => n,
        };
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
        let slots = limits.multiprocessors as usize * kernel.blocks_per_multiprocessor(dim, limits);
        let splits = splits(
            row_tiles * columns,
            (key_count as usize).div_ceil(KEYS),
            slots,
        );
        Ok(Plan {
            dtype,
            keys,
            kernel,
            normalize,
            factor: problem.upstream_factor() / (f64::from(rows) * temperatures[0]),
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
            shared: grid_size("student_dim", kernel.shared(dim))?,
            per_temperature: temperatures.map(|t| (std::f64::consts::LOG2_E / t) as f32),
            prepared: layout.push::<u8>(&[prepared, pitch, kernel.element()])?,
            scales: layout.push::<f32>(&[2, n])?,
            records: layout.push::<RowRecord>(&[2, n])?,
            stats: layout.push::<Stat>(&[splits, attending])?,
            means: layout.push::<f32>(&[splits, attending, mean_pitch])?,
            losses: layout.push::<f64>(&[2, n])?,
        })
    }

    /// Prepares the rows and takes them over the keys.
    pub(crate) fn enqueue(&self, launcher: &mut impl Launcher, at: &Addresses) -> Result<()> {
        let n = u64::from(self.rows);
        let prepared = self.prepared.at(at.workspace);
        let teachers = prepared + n * u64::from(self.row_pitch) * self.kernel.element() as u64;
        let scales = self.scales.at(at.workspace);
        let teacher_scales = scales + n * size_of::<f32>() as u64;
        let format = self.kernel.format();
        let [student_scale, teacher_scale] = self.per_temperature;
        let student = Set {
            from: at.student,
            to: prepared,
            scales,
            records: self.record(at, 0),
            format: format as u32,
            per_temperature: student_scale,
        };
        let teacher = Set {
            from: at.teacher,
            to: teachers,
            scales: teacher_scales,
            records: self.record(at, 1),
            format: match self.keys {
                Keys::QueueBoth | Keys::Others => format,
                Keys::Queue => Format::None,
            } as u32,
            per_temperature: match self.keys {
                Keys::QueueBoth | Keys::Queue => teacher_scale,
                Keys::Others => 1.0,
            },
        };
        let rows = RowsArguments {
            sets: [student, teacher],
            rows: self.rows,
            dim: self.dim,
            pitch: self.row_pitch,
            normalize: self.normalize.into(),
        };
        ATTENTION_ROWS.of(self.dtype).launch(
            launcher,
            [self.rows.div_ceil(ROWS_PER_BLOCK), 2, 1],
            0,
            &rows,
        )?;

        let (keys, state) = match self.keys {
            Keys::QueueBoth | Keys::Queue => (at.queue.keys, at.queue.state),
            Keys::Others => (teachers, 0),
        };
        let attention = Arguments {
            rows: prepared,
            scales,
            keys,
            state,
            key_scales: teacher_scales,
            stats: self.stats.at(at.workspace),
            means: self.means.at(at.workspace),
            row_count: self.attending(),
            key_count: self.key_count,
            dim: self.dim,
            row_pitch: self.row_pitch,
            key_pitch: self.key_pitch,
            mean_pitch: self.mean_pitch,
            pass_over_own: (self.keys == Keys::Others).into(),
            padding: 0,
        };
        let entry = self.kernel.entry(self.keys);
        entry.launch(launcher, self.grid, self.shared, &attention)
    }

    /// What the last pass takes.
    pub(crate) fn finish(&self, at: &Addresses) -> FinishArguments {
        FinishArguments {
            student: at.student,
            teacher: at.teacher,
            student_records: self.record(at, 0),
            teacher_records: self.record(at, 1),
            partials: Partials {
                stats: self.stats.at(at.workspace),
                means: self.means.at(at.workspace),
                scales: self.scales.at(at.workspace),
                rows: self.attending(),
                splits: self.grid[1],
                pitch: self.mean_pitch,
                padding: 0,
            },
            gradient: at.gradient,
            losses: self.losses.at(at.workspace),
            value: at.value,
            counter: Layout::counter(0).at(at.workspace),
            factor: self.factor,
            dim: self.dim,
            normalized: self.normalize.into(),
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

    fn record(&self, at: &Addresses, index: u64) -> u64 {
        self.records.at(at.workspace) + index * u64::from(self.rows) * size_of::<RowRecord>() as u64
    }
}
