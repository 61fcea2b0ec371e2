//! The towers family on a GPU: CLIP, SigLIP and SupCon.
//!
//! | pass | kernel | launches |
//! |---|---|---|
//! | x/‖x‖ | normalize | 1 |
//! | log-sums of each row over its keys, but for those that are masked | towers_log_sums | 1, but for a sigmoid |
//! | what a row brings to its pairs; its own pair | towers_rows | 1 |
//! | coefficients of pairs, and the keys under them | towers_gradient | 1 |
//! | the way back through x/‖x‖, and the loss | towers_finish | 1 |
//!
//! No matrix of rows × rows exists. The first and the third sweep compute each product, once from
//! either of its rows: a block has a tile of rows, and owns their sums.

mod arguments;

use self::arguments::{Compared, Record, Stat};
pub(crate) use self::arguments::{
    FinishArguments, GradientArguments, LogSumArguments, RowArguments,
};
use super::kernels::{
    TOWERS_FINISH, TOWERS_GRADIENT, TOWERS_LOG_SUMS, TOWERS_LOG_SUMS_MASKED, TOWERS_ROWS,
};
use super::machine::{Launcher, Limits};
use super::normalize;
use super::plan::{Addresses, grid_size, grid_size_y};
use super::tuning::towers::{BLOCKS, COLUMNS, ROWS_PER_BLOCK, TILE};
use super::workspace::{Layout, Region};
use crate::error::Result;
use crate::gpu::element::GpuDType;
use crate::loss::{Clip, Towers};
use crate::problem::Problem;

/// The kernels' `Kind`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Kind {
    Softmax = 0,
    Sigmoid = 1,
    Labels = 2,
    /// CLIP with pairs that are left out.
    Masked = 3,
}

/// The counters of the workspace.
mod counters {
    pub(super) const ROWS: usize = 0;
    pub(super) const FINISH: usize = 1;
}

/// What the passes are launched with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Plan {
    dtype: GpuDType,
    loss: Towers,
    upstream: f64,
    rows: usize,
    /// Of student and teacher; the teacher's is 0 if it is neither a target nor a guide.
    dims: [usize; 2],
    /// Whether the teacher's softmax is a target.
    has_target: bool,
    /// Whether labels mask pairs.
    has_labels: bool,
    /// Tiles of rows, of all sides.
    tiles: u32,
    splits: u32,
    columns: u32,
    normalized: [Region; 2],
    norms: Region,
    stats: Region,
    records: Region,
    losses: Region,
    row_factor: Region,
    sums: Region,
    moments: Region,
    partials: Region,
}

impl Plan {
    pub(crate) fn new(
        loss: Towers,
        problem: &Problem,
        dtype: GpuDType,
        limits: Limits,
        layout: &mut Layout,
    ) -> Result<Self> {
        let shapes = problem.shapes();
        let (n, dim) = (shapes.rows, shapes.student_dim);
        grid_size("rows", n)?;
        let teacher_dim = match loss.reads_teacher() {
            true => shapes.teacher_dim,
            false => 0,
        };
        let has_target = match loss {
            Towers::Softmax { soft_weight, .. } => soft_weight > 0.0 && teacher_dim > 0,
            Towers::Sigmoid { .. } | Towers::Labels { .. } => false,
        };
        let sides = if loss.has_halves() { 2 } else { 1 };
        let of_side = (n / sides).div_ceil(TILE);
        let columns = grid_size_y("student_dim", dim, COLUMNS)?;
        // As many splits of the keys as give every multiprocessor its blocks.
        let wanted = (BLOCKS * limits.multiprocessors as usize).div_ceil(sides * of_side);
        let splits = wanted.clamp(1, of_side.max(1));
        let sets = if has_target { 2 } else { 1 };
        let has_log_sums = !matches!(loss, Towers::Sigmoid { .. });
        Ok(Plan {
            dtype,
            loss,
            upstream: problem.upstream(),
            rows: n,
            dims: [dim, teacher_dim],
            has_target,
            has_labels: shapes.labels,
            tiles: grid_size("rows", sides * of_side)?,
            splits: grid_size("splits", splits)?,
            columns,
            normalized: [
                layout.push::<f32>(&[n, dim])?,
                layout.push::<f32>(&[n, teacher_dim])?,
            ],
            norms: layout.push::<f32>(&[n])?,
            stats: layout.push::<Stat>(&[if has_log_sums { sets } else { 0 }, splits, n])?,
            records: layout.push::<Record>(&[n])?,
            losses: layout.push::<f64>(&[2, n])?,
            row_factor: layout.push::<f64>(&[1])?,
            sums: layout.push::<f32>(&[splits, n, dim])?,
            moments: layout.push::<f64>(&[2, splits, n])?,
            partials: layout.push::<f64>(&[3, n])?,
        })
    }

    /// Launches all passes.
    pub(crate) fn launch(&self, launcher: &mut impl Launcher, at: &Addresses) -> Result<()> {
        let region = |region: Region| region.at(at.workspace);
        let [student, teacher] = self.normalized.map(region);
        let has_teacher = self.dims[1] > 0;
        let matrices = [
            normalize::Matrix {
                rows: at.student,
                dim: self.dims[0],
                pitch: self.dims[0],
                normalized: student,
                norms: region(self.norms),
            },
            normalize::Matrix {
                rows: at.teacher,
                dim: self.dims[1],
                pitch: self.dims[1],
                normalized: teacher,
                norms: 0,
            },
        ];
        let matrices = &matrices[..if has_teacher { 2 } else { 1 }];
        normalize::launch(launcher, self.dtype, self.rows, matrices, 0.0)?;

        let rows = [student, if has_teacher { teacher } else { 0 }];
        let dim = self.dims.map(|dim| dim as u32);
        let compared = Compared {
            rows: self.rows as u32,
            halves: self.loss.has_halves().into(),
        };
        let (kind, temperature) = self.kind();
        let (both_ways, guide_margin) = match self.loss {
            Towers::Softmax {
                both_ways,
                guide_margin,
                ..
            } => (both_ways, guide_margin),
            Towers::Sigmoid { .. } | Towers::Labels { .. } => (true, None),
        };
        let has_guide = guide_margin.is_some().into();
        let guide_margin = guide_margin.unwrap_or(0.0) - Clip::GUIDE_SLACK;
        let scale = temperature.map(|t| (std::f64::consts::LOG2_E / t) as f32);
        if kind != Kind::Sigmoid {
            let arguments = LogSumArguments {
                rows,
                labels: at.labels,
                stats: region(self.stats),
                guide_margin,
                compared,
                dim,
                scale,
                has_guide,
                padding: 0,
            };
            let sets = if self.has_target { 2 } else { 1 };
            let grid = [self.tiles, self.splits, sets];
            match kind {
                Kind::Masked => TOWERS_LOG_SUMS_MASKED.launch(launcher, grid, 0, &arguments),
                Kind::Softmax | Kind::Sigmoid | Kind::Labels => {
                    TOWERS_LOG_SUMS.launch(launcher, grid, 0, &arguments)
                }
            }?;
        }
        let [hard_weight, soft_weight, sigmoid_scale, bias] = self.numbers();
        let (of_student, of_teacher) = ((hard_weight + soft_weight) as f32, soft_weight as f32);
        let arguments = RowArguments {
            rows,
            stats: region(self.stats),
            labels: at.labels,
            records: region(self.records),
            losses: region(self.losses),
            row_factor: region(self.row_factor),
            counter: Layout::counter(counters::ROWS).at(at.workspace),
            temperature,
            guide_margin,
            compared,
            dim,
            scale,
            of_student,
            of_teacher,
            splits: self.splits,
            kind: kind as u32,
            sigmoid_scale: sigmoid_scale as f32,
            bias: bias as f32,
            has_target: self.has_target.into(),
            has_guide,
            both_ways: both_ways.into(),
            padding: 0,
        };
        let blocks = grid_size("rows", self.rows.div_ceil(ROWS_PER_BLOCK))?;
        TOWERS_ROWS.launch(launcher, [blocks, 1, 1], 0, &arguments)?;
        let arguments = GradientArguments {
            rows,
            records: region(self.records),
            sums: region(self.sums),
            moments: region(self.moments),
            compared,
            dim,
            scale,
            of_student,
            of_teacher,
            sigmoid_scale: sigmoid_scale as f32,
            bias: bias as f32,
            has_target: self.has_target.into(),
            padding: 0,
        };
        let grid = [self.tiles, self.splits, self.columns];
        TOWERS_GRADIENT
            .of(kind)
            .launch(launcher, grid, 0, &arguments)?;

        let per_temperature = 1.0 / temperature[0];
        let pairs = (self.rows / 2) as f64;
        let (factor, gradient_factor, along_factor) = match kind {
            Kind::Softmax | Kind::Masked => {
                let factor = if both_ways { 0.5 } else { 1.0 } / pairs;
                (factor, factor * per_temperature, 0.5)
            }
            // Each pair is in the sums of both of its rows.
            Kind::Sigmoid => (0.5 / pairs, sigmoid_scale / pairs, 1.0),
            Kind::Labels => (1.0, per_temperature, 0.5),
        };
        let arguments = FinishArguments {
            rows: student,
            norms: region(self.norms),
            records: region(self.records),
            sums: region(self.sums),
            moments: region(self.moments),
            losses: region(self.losses),
            row_factor: region(self.row_factor),
            partials: region(self.partials),
            gradient: at.gradient,
            value: at.value,
            counter: Layout::counter(counters::FINISH).at(at.workspace),
            per_temperature,
            factor,
            gradient_factor: self.upstream * gradient_factor,
            along_factor,
            compared,
            dim: dim[0],
            splits: self.splits,
            kind: kind as u32,
            hard_weight: hard_weight as f32,
            soft_weight: soft_weight as f32,
            has_teacher: self.has_target.into(),
        };
        let blocks = grid_size("rows", self.rows)?;
        TOWERS_FINISH.launch(launcher, [blocks, 1, 1], 0, &arguments)
    }

    /// The kernels' kind, and the temperatures of student and teacher.
    fn kind(&self) -> (Kind, [f64; 2]) {
        match self.loss {
            Towers::Softmax {
                temperature,
                teacher_temperature,
                guide_margin,
                ..
            } => {
                let kind = match guide_margin.is_some() || self.has_labels {
                    true => Kind::Masked,
                    false => Kind::Softmax,
                };
                (kind, [temperature, teacher_temperature])
            }
            Towers::Sigmoid { .. } => (Kind::Sigmoid, [1.0; 2]),
            Towers::Labels { temperature } => (Kind::Labels, [temperature; 2]),
        }
    }

    /// The hard weight, the soft one, a and b; 0 where the loss has none.
    fn numbers(&self) -> [f64; 4] {
        match self.loss {
            Towers::Softmax {
                hard_weight,
                soft_weight,
                ..
            } => {
                let soft = if self.has_target { soft_weight } else { 0.0 };
                [hard_weight, soft, 0.0, 0.0]
            }
            Towers::Sigmoid { scale, bias } => [0.0, 0.0, scale, bias],
            Towers::Labels { .. } => [0.0; 4],
        }
    }
}
