//! What RRD and InfoNCE share on a GPU: rows attending over keys that are values too.
//!
//! Three passes. kernels/attention_rows.cu prepares the rows; an attention kernel takes them over the
//! keys, split by split; what finishes a loss (kernels/rrd.cu, kernels/info_nce.cu) puts the splits
//! together. No matrix of rows × keys exists.

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::kernels::{
    ATTENTION_MMA_64, ATTENTION_MMA_128, ATTENTION_MMA_256, ATTENTION_ROWS, ATTENTION_SIMT,
};
use super::machine::{Launcher, Limits};
use super::plan::{Addresses, grid_size};
use super::queue;
use super::workspace::{Layout, Region};
use crate::element::DType;
use crate::error::Result;
use crate::problem::Problem;

/// Keys of a tile, in every attention kernel.
const KEYS: usize = 64;
/// Most parts the keys are attended to in; `MOST_SPLITS` in kernels/common/attention_merge.cuh.
const MOST_SPLITS: usize = 512;

/// Mirrors `RowRecord` in kernels/common/attention.cuh.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct RowRecord {
    to_logit: f64,
    inverse_norm: f64,
}

/// Mirrors `Stat` in kernels/common/attention.cuh.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Stat {
    largest: f32,
    sum: f32,
}

/// Mirrors `Set` in kernels/attention_rows.cu.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Set {
    from: u64,
    to: u64,
    scales: u64,
    records: u64,
    format: u32,
    per_temperature: f32,
}

/// Mirrors `Arguments` in kernels/attention_rows.cu.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(crate) struct RowsArguments {
    sets: [Set; 2],
    rows: u32,
    dim: u32,
    pitch: u32,
    normalize: u32,
}

/// Mirrors `AttentionArguments` in kernels/common/attention.cuh.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(crate) struct Arguments {
    rows: u64,
    scales: u64,
    keys: u64,
    state: u64,
    key_scales: u64,
    stats: u64,
    means: u64,
    row_count: u32,
    key_count: u32,
    dim: u32,
    row_pitch: u32,
    key_pitch: u32,
    mean_pitch: u32,
    pass_over_own: u32,
    padding: u32,
}

/// Mirrors `Partials` in kernels/common/attention_merge.cuh.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(crate) struct Partials {
    stats: u64,
    means: u64,
    scales: u64,
    rows: u32,
    splits: u32,
    pitch: u32,
    padding: u32,
}

/// Mirrors `Arguments` in kernels/rrd.cu and in kernels/info_nce.cu.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(crate) struct FinishArguments {
    student: u64,
    teacher: u64,
    student_records: u64,
    teacher_records: u64,
    partials: Partials,
    gradient: u64,
    losses: u64,
    value: u64,
    counter: u64,
    factor: f64,
    dim: u32,
    normalized: u32,
}

/// How a row is prepared; `Format` in kernels/attention_rows.cu.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
enum Format {
    None = 0,
    F32 = 1,
    ScaledF16 = 2,
}

/// Which rows attend to which keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keys {
    /// The student's rows and the teacher's, to a queue.
    QueueBoth,
    /// The student's rows alone, to a queue.
    Queue,
    /// The student's rows, to the teacher's of other samples.
    Others,
}

/// The kernel that takes rows over keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kernel {
    /// kernels/attention_simt.cu, on keys of this type.
    Simt(DType),
    /// kernels/attention_mma.cu, for rows up to a width.
    Mma(MmaWidth),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MmaWidth {
    W64,
    W128,
    W256,
}

impl Kernel {
    /// Unit rows of a half type go to the tensor cores as f16 times a power of two, as long as a tile of
    /// them fits shared memory.
    fn new(dim: usize, dtype: DType, normalize: bool, keys: Keys) -> Self {
        let f16 = queue::key_type(dtype, normalize) == DType::F16;
        match dim {
            ..=64 if f16 => Kernel::Mma(MmaWidth::W64),
            ..=128 if f16 => Kernel::Mma(MmaWidth::W128),
            ..=256 if f16 => Kernel::Mma(MmaWidth::W256),
            _ if f16 && keys != Keys::Others => Kernel::Simt(DType::F16),
            _ => Kernel::Simt(DType::F32),
        }
    }

    /// What it takes its rows as.
    fn format(self) -> Format {
        match self {
            Kernel::Simt(_) => Format::F32,
            Kernel::Mma(_) => Format::ScaledF16,
        }
    }

    /// Bytes of an element of a row.
    fn element(self) -> usize {
        match self {
            Kernel::Simt(_) => size_of::<f32>(),
            Kernel::Mma(_) => size_of::<f16>(),
        }
    }

    /// Rows of a block.
    fn rows(self) -> usize {
        match self {
            Kernel::Mma(MmaWidth::W64 | MmaWidth::W128) => 128,
            Kernel::Mma(MmaWidth::W256) | Kernel::Simt(_) => 64,
        }
    }

    /// Columns of the mean of a block.
    fn columns(self) -> usize {
        match self {
            Kernel::Simt(_) => 128,
            Kernel::Mma(_) => 256,
        }
    }

    /// Bytes of dynamic shared memory.
    fn shared(self, dim: usize) -> usize {
        match self {
            Kernel::Simt(_) => 0,
            // The rows and two stages of keys, 16 bytes apart.
            Kernel::Mma(_) => {
                (self.rows() + 2 * KEYS) * (dim.next_multiple_of(16) + 8) * size_of::<f16>()
            }
        }
    }

    /// Blocks that a multiprocessor holds at once, by its registers; of shared memory each has
    /// `shared`, of `limit`.
    fn blocks_per_multiprocessor(self, shared: usize, limit: usize) -> usize {
        let by_registers = match self {
            Kernel::Simt(_) | Kernel::Mma(MmaWidth::W128 | MmaWidth::W256) => 2,
            Kernel::Mma(MmaWidth::W64) => 3,
        };
        // A block has a KiB for the system, too.
        by_registers.min(limit / (shared + 1024)).max(1)
    }
}

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
        let kernel = Kernel::new(dim, dtype, normalize, keys);
        let shared = kernel.shared(dim);
        let attending = match keys {
            Keys::QueueBoth => n.saturating_mul(2),
            Keys::Queue | Keys::Others => n,
        };
        let prepared = match keys {
            Keys::QueueBoth | Keys::Others => n.saturating_mul(2),
            Keys::Queue => n,
        };
        let pitch = queue::pitch(dim);
        let tiles = (key_count as usize).div_ceil(KEYS);
        let blocks = attending.div_ceil(kernel.rows()) * dim.div_ceil(kernel.columns());
        let per_multiprocessor =
            kernel.blocks_per_multiprocessor(shared, limits.shared_per_block as usize);
        let slots = limits.multiprocessors as usize * per_multiprocessor;
        let splits = splits(blocks, tiles, slots);
        Ok(Plan {
            dtype,
            keys,
            kernel,
            normalize,
            rows,
            key_count,
            dim: grid_size("student_dim", dim)?,
            row_pitch: grid_size("student_dim", pitch)?,
            key_pitch: grid_size("student_dim", pitch)?,
            mean_pitch: grid_size("student_dim", dim.next_multiple_of(4))?,
            grid: [
                grid_size("rows", attending.div_ceil(kernel.rows()))?,
                grid_size("splits", splits)?,
                grid_size("student_dim", dim.div_ceil(kernel.columns()))?,
            ],
            shared: grid_size("shared memory", shared)?,
            per_temperature: temperatures.map(|t| (std::f64::consts::LOG2_E / t) as f32),
            prepared: layout.push::<u8>(&[prepared, pitch, kernel.element()])?,
            scales: layout.push::<f32>(&[2, n])?,
            records: layout.push::<RowRecord>(&[2, n])?,
            stats: layout.push::<Stat>(&[splits, attending])?,
            means: layout.push::<f32>(&[splits, attending, dim.next_multiple_of(4)])?,
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
        ATTENTION_ROWS
            .of(self.dtype)
            .launch(launcher, [self.rows.div_ceil(4), 2, 1], 0, &rows)?;

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
        let kernel = match self.kernel {
            Kernel::Simt(keys) => ATTENTION_SIMT.of(keys),
            Kernel::Mma(width) => {
                let family = match width {
                    MmaWidth::W64 => &ATTENTION_MMA_64,
                    MmaWidth::W128 => &ATTENTION_MMA_128,
                    MmaWidth::W256 => &ATTENTION_MMA_256,
                };
                family.nth((self.keys == Keys::Others).into())
            }
        };
        kernel.launch(launcher, self.grid, self.shared, &attention)
    }

    /// What the last pass takes; `temperature` is the student's.
    pub(crate) fn finish(
        &self,
        at: &Addresses,
        upstream: f64,
        temperature: f64,
    ) -> FinishArguments {
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
            factor: upstream / (f64::from(self.rows) * temperature),
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

/// In how many parts to attend to `tiles` of keys, with `blocks` blocks for each part and room for `slots`
/// at once: few rows need many splits to fill a card, and each costs a block its start, a write of the
/// means and a read of them.
fn splits(blocks: usize, tiles: usize, slots: usize) -> usize {
    // In 64ths of the time a tile takes.
    const TILE: usize = 64;
    const START: usize = TILE;
    const MERGE: usize = 1;
    let most = tiles.min(MOST_SPLITS).min(slots.div_ceil(blocks) * 4);
    let cost = |splits: usize| {
        let waves = blocks.saturating_mul(splits).div_ceil(slots);
        waves
            .saturating_mul(tiles.div_ceil(splits) * TILE + START)
            .saturating_add(splits * MERGE)
    };
    (1..=most.max(1))
        .min_by_key(|&splits| cost(splits))
        .unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_fill_a_card_and_no_more() {
        // Two blocks on each of 132 multiprocessors. A batch of 64, K = 16384: as many as fit at once.
        let small = splits(2, 256, 264);
        assert!((64..=132).contains(&small), "{small}");
        // Enough rows to fill the card: the keys are split only where that evens out the last wave.
        assert_eq!(splits(264, 1024, 264), 1);
        assert!(splits(200, 1024, 264) > 1);
        assert!(splits(100_000, 1024, 264) <= 4);
        // Never more than there are tiles, or than the last pass holds weights for.
        assert_eq!(splits(1, 1, 264), 1);
        assert!(splits(1, 1 << 20, 1 << 20) <= MOST_SPLITS);
    }
}
