//! The contrastive family on a GPU: RRD and InfoNCE.
//!
//! Rows attend to keys, and the keys serve as values too. A loss says which rows attend
//! ([`Queries`]) and to which keys ([`KeySource`]):
//!
//! | loss | queries | keys | last kernel |
//! |---|---|---|---|
//! | RRD | student and teacher | queue | kernels/rrd.cu |
//! | InfoNCE with a queue | student | queue | kernels/info_nce.cu |
//! | InfoNCE in the batch | student | teacher rows of the other samples | kernels/info_nce.cu |
//!
//! The passes:
//!
//! 1. kernels/attention_rows.cu prepares the rows and keys that the attention kernel does not
//!    prepare itself.
//! 2. kernels/attention_mma.cu or kernels/attention_simt.cu takes the rows over the keys. The keys
//!    are split, and each split gives partial results.
//! 3. The last kernel merges the splits, and computes the loss and the gradient.
//! 4. After RRD, kernels/rrd_divergence.cu computes the KL of rows near their teacher once more. It
//!    returns at once if there are none.
//!
//! 5. kernels/row_shares.cu comes first and kernels/weigh_rows.cu last where rows have weights. The
//!    second runs where someone asks for the losses of rows or the gradient of the scale, too.
//!
//! No matrix of rows × keys exists.

mod arguments;
mod kernel;

use self::arguments::{AttentionCommon, DivergenceSums, NearRow, Partials, RowSet, Stat};
pub(crate) use self::arguments::{
    DivergenceArguments, FinishArguments, MmaArguments, RowsArguments, SimtArguments,
};
use self::kernel::{Kernel, KeySource, Queries, Weights, splits};
use super::kernels::{ATTENTION_ROWS, ATTENTION_SIMT, INFO_NCE, RRD, RRD_DIVERGENCE};
use super::machine::{Launcher, Limits};
use super::plan::{Addresses, grid_size};
use super::queue;
use super::row_shares::{self, RowShares};
use super::tuning::contrastive::{KEYS, PREPARED_ROWS_PER_BLOCK, divergence};
use super::workspace::{Layout, Region};
use crate::error::{Error, Result};
use crate::gpu::element::{GpuDType, KeyType};
use crate::loss::{Contrastive, Target};
use crate::problem::Problem;

/// The most blocks of a grid along y and z, by CUDA.
const MAX_BLOCKS: usize = 65_535;

/// How a contrastive loss runs: its kernels, its grids and its workspace.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Plan {
    dtype: GpuDType,
    queries: Queries,
    keys: KeySource,
    kernel: Kernel,
    weights: Weights,
    normalize: bool,
    rows: u32,
    /// Slots of the queue, or rows of the batch.
    key_count: u32,
    dim: u32,
    row_pitch: u32,
    key_pitch: u32,
    mean_pitch: u32,
    /// Tiles of rows, splits of the keys, chunks of columns.
    grid: [u32; 3],
    /// Bytes of dynamic shared memory.
    shared: u32,
    /// log2(e)/τ of student and teacher.
    per_temperature: [f32; 2],
    /// The factor of the gradient: upstream/(N τ), with the student's τ; upstream/τ where rows have
    /// weights, which become shares of the mean.
    factor: f64,
    shares: Option<RowShares>,
    /// Whether the gradient of the scale is wanted.
    of_scale: bool,
    /// The rows that `attention_rows` writes, and their scales: the student's, then the teacher's,
    /// as far as they are prepared.
    prepared: Region,
    scales: Region,
    /// `[splits, attending rows]`
    stats: Region,
    /// `[splits, attending rows, mean_pitch]`
    means: Region,
    losses: Region,
    /// `[rows]`, and `[splits, rows]` of the last pass of RRD.
    near_rows: Region,
    divergence_sums: Region,
    /// Tiles of rows and splits of the keys of that pass.
    divergence_grid: [u32; 2],
}

/// The counters of the workspace.
mod counters {
    /// The tickets of the last kernel, and those of kernels/rrd_divergence.cu.
    pub(super) const LAST: usize = 0;
    pub(super) const DIVERGENCE: usize = 1;
    /// Whether a row is near its teacher.
    pub(super) const ANY_NEAR: usize = 2;
}

impl Plan {
    pub(crate) fn new(
        loss: &Contrastive,
        problem: &Problem,
        dtype: GpuDType,
        limits: Limits,
        layout: &mut Layout,
    ) -> Result<Self> {
        let shapes = problem.shapes();
        let normalize = problem.spec().normalize;
        let (n, dim) = (shapes.rows, shapes.student_dim);
        let rows = grid_size("rows", n)?;
        let (queries, temperatures) = match loss.target {
            Target::Teacher { temperature } => (Queries::Both, [loss.temperature, temperature]),
            Target::OwnKey => (Queries::Student, [loss.temperature; 2]),
        };
        let (keys, key_count) = match shapes.queue {
            Some(capacity) => (KeySource::Queue, grid_size("queue keys", capacity)?),
            None => (KeySource::BatchExceptSelf, rows),
        };
        let kernel = Kernel::new(dim, dtype, normalize, keys, limits);
        let attending = n.saturating_mul(queries.sets() as usize);
        let prepared = prepared_sets(kernel, queries, keys) as usize;
        let pitch = queue::pitch(dim);
        let mean_pitch = dim.next_multiple_of(4);
        let (row_tiles, columns) = (
            attending.div_ceil(kernel.rows()),
            dim.div_ceil(kernel.columns()),
        );
        if columns > MAX_BLOCKS {
            return Err(Error::TooLarge {
                argument: "student_dim",
                most: MAX_BLOCKS * kernel.columns(),
                got: dim,
            });
        }
        let resident = limits.multiprocessors as usize * kernel.blocks_per_multiprocessor(limits);
        let splits = splits(
            row_tiles * columns,
            (key_count as usize).div_ceil(KEYS),
            resident,
        );
        let shares = RowShares::new(shapes, layout)?;
        let near = match queries {
            Queries::Both => n,
            Queries::Student => 0,
        };
        let near_tiles = near.div_ceil(divergence::ROWS);
        let divergence_splits = (divergence::BLOCKS * limits.multiprocessors as usize)
            .div_ceil(near_tiles.max(1))
            .min((key_count as usize).div_ceil(KEYS))
            .min(divergence::MAX_SPLITS);
        Ok(Plan {
            dtype,
            queries,
            keys,
            kernel,
            weights: Weights::new(problem.weight_precision(), queries, temperatures),
            normalize,
            factor: match &shares {
                None => problem.upstream() / (problem.mean_rows() as f64 * temperatures[0]),
                Some(_) => problem.upstream() * problem.part() / temperatures[0],
            },
            shares,
            of_scale: problem.scale_gradient(),
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
            losses: layout.push::<f64>(&[3, n])?,
            near_rows: layout.push::<NearRow>(&[near])?,
            divergence_sums: layout.push::<DivergenceSums>(&[divergence_splits, near])?,
            divergence_grid: [
                grid_size("rows", near_tiles)?,
                grid_size("splits", divergence_splits)?,
            ],
        })
    }

    /// Launches all passes.
    pub(crate) fn launch(&self, launcher: &mut impl Launcher, at: &Addresses) -> Result<()> {
        if let Some(shares) = self.shares {
            shares.launch(launcher, at)?;
        }
        self.prepare(launcher, at)?;
        self.attention_forward(launcher, at)?;
        self.finish(launcher, at)?;
        let width = match self.queries {
            Queries::Both => {
                self.divergence(launcher, at)?;
                2
            }
            Queries::Student => 1,
        };
        let losses = self.losses.at(at.workspace);
        let sizes = [self.rows, self.dim];
        row_shares::weigh(
            launcher,
            at,
            self.shares,
            losses,
            sizes,
            width,
            self.of_scale,
        )
    }

    /// Prepares the rows that the attention kernel does not prepare itself, and a batch's keys.
    fn prepare(&self, launcher: &mut impl Launcher, at: &Addresses) -> Result<()> {
        let sets = prepared_sets(self.kernel, self.queries, self.keys);
        let [student_scale, teacher_scale] = self.per_temperature;
        let student = RowSet {
            from: at.student,
            to: self.prepared.at(at.workspace),
            scales: self.scales.at(at.workspace),
            per_temperature: student_scale,
            padding: 0,
        };
        let (to, scales) = self.last_prepared(at);
        let teacher = RowSet {
            from: at.teacher,
            to,
            scales,
            per_temperature: match self.keys {
                KeySource::Queue => teacher_scale,
                KeySource::BatchExceptSelf => 1.0,
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
        let grid = [self.rows.div_ceil(PREPARED_ROWS_PER_BLOCK), sets, 1];
        ATTENTION_ROWS
            .of(self.dtype)
            .launch(launcher, grid, 0, &arguments)
    }

    /// The keys, and where the attention stores its results.
    fn common(&self, at: &Addresses) -> AttentionCommon {
        let (prepared_keys, _) = self.last_prepared(at);
        AttentionCommon {
            keys: match self.keys {
                KeySource::Queue => at.queue.keys,
                KeySource::BatchExceptSelf => prepared_keys,
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
        }
    }

    /// Computes the KL of the rows near their teacher once more.
    fn divergence(&self, launcher: &mut impl Launcher, at: &Addresses) -> Result<()> {
        let arguments = DivergenceArguments {
            common: AttentionCommon {
                row_count: self.rows,
                ..self.common(at)
            },
            student: at.student,
            teacher: at.teacher,
            rows: self.near_rows.at(at.workspace),
            losses: self.losses.at(at.workspace),
            sums: self.divergence_sums.at(at.workspace),
            value: at.value,
            counter: Layout::counter(counters::DIVERGENCE).at(at.workspace),
            any_near: Layout::counter(counters::ANY_NEAR).at(at.workspace),
            f16_keys: (queue::key_type(self.dtype, self.normalize) == KeyType::F16).into(),
            padding: 0,
        };
        let [tiles, splits] = self.divergence_grid;
        RRD_DIVERGENCE
            .of(self.dtype)
            .launch(launcher, [tiles, splits, 1], 0, &arguments)
    }

    /// Takes the rows over the keys.
    fn attention_forward(&self, launcher: &mut impl Launcher, at: &Addresses) -> Result<()> {
        let (_, key_scales) = self.last_prepared(at);
        let common = self.common(at);
        match self.kernel {
            Kernel::Mma(width) => {
                let arguments = MmaArguments {
                    common,
                    student: at.student,
                    teacher: match self.queries {
                        Queries::Both => at.teacher,
                        Queries::Student => 0,
                    },
                    key_scales,
                    per_temperature: self.per_temperature,
                    samples: self.rows,
                    is_bf16: (self.dtype == GpuDType::BF16).into(),
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
                    common,
                    rows: self.prepared.at(at.workspace),
                    scales: self.scales.at(at.workspace),
                    row_pitch: self.row_pitch,
                    skip_own_key: (self.keys == KeySource::BatchExceptSelf).into(),
                };
                ATTENTION_SIMT
                    .of(key_type)
                    .launch(launcher, self.grid, self.shared, &arguments)
            }
        }
    }

    /// Merges the splits, and computes the loss and the gradient. The teacher attends where its
    /// softmax is the target, so the queries say which loss it is.
    fn finish(&self, launcher: &mut impl Launcher, at: &Addresses) -> Result<()> {
        let arguments = FinishArguments {
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
            counter: Layout::counter(counters::LAST).at(at.workspace),
            near_rows: self.near_rows.at(at.workspace),
            any_near: Layout::counter(counters::ANY_NEAR).at(at.workspace),
            factor: self.factor,
            per_temperature: self.per_temperature,
            dim: self.dim,
            normalized: self.normalize.into(),
            format: self.kernel.format() as u32,
            padding: 0,
        };
        let family = match self.queries {
            Queries::Both => &RRD,
            Queries::Student => &INFO_NCE,
        };
        family
            .of(self.dtype)
            .launch(launcher, [self.rows, 1, 1], 0, &arguments)
    }

    /// The last prepared set of rows, which is the teacher's where that is prepared, and its
    /// scales.
    fn last_prepared(&self, at: &Addresses) -> (u64, u64) {
        let sets = prepared_sets(self.kernel, self.queries, self.keys);
        let before = u64::from(sets.saturating_sub(1) * self.rows);
        let bytes = u64::from(self.row_pitch) * self.kernel.element() as u64;
        (
            self.prepared.at(at.workspace) + before * bytes,
            self.scales.at(at.workspace) + before * size_of::<f32>() as u64,
        )
    }

    /// Rows that attend.
    fn attending(&self) -> u32 {
        self.queries.sets() * self.rows
    }
}

/// The number of sets of rows, of student and teacher, that are prepared before the attention.
fn prepared_sets(kernel: Kernel, queries: Queries, keys: KeySource) -> u32 {
    let rows = if kernel.takes_prepared_rows() {
        queries.sets()
    } else {
        0
    };
    match keys {
        KeySource::Queue => rows,
        // The teacher's rows are the keys, so they are prepared once whether or not they attend.
        KeySource::BatchExceptSelf => match queries {
            Queries::Student => rows + 1,
            Queries::Both => rows.max(1),
        },
    }
}

#[cfg(test)]
mod tests;
