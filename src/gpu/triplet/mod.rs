//! The triplet family on a GPU: RKD with angles, and the distances that share its kernels.
//!
//! The passes:
//!
//! 1. The relation: the lengths of all pairs, of student and teacher.
//! 2. The angle: the penalties of all triples, and their partial sums for each pair.
//! 3. The coefficients: the penalties of the distances, and ∂L/∂h of each pair.
//! 4. The contraction: the gradient, and the loss.
//!
//! Large batches first try a fast path in f32; then the accurate path returns at once unless the
//! data need it. A small batch takes the accurate path directly, by kernels of its own.

mod arguments;
mod cost;
mod partition;
mod small_batch;
mod triple_partition;
mod workspace;

use self::arguments::GroupOverlapArgument;
pub(crate) use self::arguments::{
    AngleArguments, CoefficientArguments, ContractionArguments, RelationArguments,
    SmallBatchAngleArguments,
};
use self::partition::AnglePartition;
use self::small_batch::{VertexSplit, is_small_batch};
use self::triple_partition::{
    CoefficientTiles, Tiles, TriplePartition, contraction_rows, relation_side, small_batch_side,
};
use self::workspace::Workspace;
use super::kernels::{
    CONTRACTION, CONTRACTION_SMALL_BATCH, Kernel, RKD_ANGLE, RKD_ANGLE_ACCURATE,
    RKD_ANGLE_SMALL_BATCH, RKD_COEFFICIENTS, RKD_RELATION, RKD_RELATION_ACCURATE,
    RKD_RELATION_SMALL_BATCH,
};
use super::machine::{Launcher, Limits};
use super::normalize;
use super::plan::{Addresses, grid_size, grid_size_y, tile_pairs};
use super::tuning::triplet::{CONTRACTION_DIMENSIONS, TILE, groups, small_batch as small, trust};
use super::workspace::Layout;
use crate::error::Result;
use crate::gpu::element::GpuDType;
use crate::loss::{Triplet, duplicate_distance};
use crate::problem::Problem;
use crate::shapes::Shapes;

/// How RKD runs: its kernels, its grids and its workspace.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Plan {
    loss: Triplet,
    dtype: GpuDType,
    shapes: Shapes,
    upstream: f64,
    /// The partition of the triples, if the angle takes part.
    angle: Option<AnglePartition>,
    /// Whether the distance takes part.
    distance: bool,
    /// Whether both parts of the loss are reported.
    terms: bool,
    /// Whether the batch takes the accurate path directly, by kernels of its own.
    small_batch: bool,
    /// The side of the relation's tiles.
    side: usize,
    /// Rows of a block of the contraction.
    contraction_rows: usize,
    coefficients: CoefficientTiles,
    at: Workspace,
}

impl Plan {
    pub(crate) fn new(
        loss: Triplet,
        problem: &Problem,
        dtype: GpuDType,
        limits: Limits,
        layout: &mut Layout,
    ) -> Result<Self> {
        let n = problem.shapes().rows;
        grid_size("rows", n)?;
        let partition = || AnglePartition::new(problem.shapes(), limits);
        let angle = (loss.angle_weight > 0.0).then(partition);
        Self::partitioned(loss, problem, dtype, limits, angle, layout)
    }

    /// The same with this partition of the triples; `None` if the angle takes no part.
    fn partitioned(
        loss: Triplet,
        problem: &Problem,
        dtype: GpuDType,
        limits: Limits,
        angle: Option<AnglePartition>,
        layout: &mut Layout,
    ) -> Result<Self> {
        let shapes = problem.shapes();
        let n = shapes.rows;
        let multiprocessors = limits.multiprocessors as usize;
        let small_batch = match angle {
            Some(angle) => matches!(angle, AnglePartition::SmallBatch(_)),
            None => is_small_batch(shapes, limits),
        };
        let side = if small_batch {
            small_batch_side(n, multiprocessors)
        } else {
            relation_side(n, multiprocessors)
        };
        // If both weights are 0, the distance computes the zeros.
        let distance = loss.distance_weight > 0.0 || angle.is_none();
        let padded = Tiles::of(n).rows();
        let coefficients = CoefficientTiles::new(padded, multiprocessors);
        let at = Workspace::new(
            layout,
            shapes,
            problem.spec().normalize,
            angle,
            [tile_pairs(padded, side)? as usize, coefficients.blocks],
        )?;
        Ok(Plan {
            loss,
            dtype,
            shapes,
            upstream: problem.upstream(),
            angle,
            distance,
            terms: !problem.spec().terms.is_empty(),
            small_batch,
            side,
            contraction_rows: contraction_rows(n, shapes.student_dim, multiprocessors),
            coefficients,
            at,
        })
    }

    #[allow(dead_code, reason = "for cuda")]
    pub(crate) fn with_upstream(self, upstream: f64) -> Self {
        Plan { upstream, ..self }
    }

    pub(crate) fn launch(&self, launcher: &mut impl Launcher, at: &Addresses) -> Result<()> {
        let (dtype, rows) = self.launch_normalize(launcher, at)?;
        if self.small_batch {
            self.launch_relation(launcher, at, rows, RKD_RELATION_SMALL_BATCH.of(dtype))?;
        } else {
            self.launch_relation(launcher, at, rows, RKD_RELATION.of(dtype))?;
            if let Some(AnglePartition::Groups(partition)) = self.angle {
                self.launch_angle(launcher, at, partition, false)?;
            }
            // This kernel returns at once if the fast path was accurate enough.
            self.launch_relation(launcher, at, rows, RKD_RELATION_ACCURATE.of(dtype))?;
        }
        match self.angle {
            Some(AnglePartition::Groups(partition)) => {
                self.launch_angle(launcher, at, partition, true)?
            }
            Some(AnglePartition::SmallBatch(split)) => {
                self.launch_angle_small_batch(launcher, at, split)?
            }
            None => {}
        }
        self.launch_coefficients(launcher, at)?;
        self.launch_contraction(launcher, at, dtype, rows[0])?;
        if let Some([student, _]) = self.at.normalized {
            normalize::launch_backward(
                launcher,
                [self.shapes.rows, self.shapes.student_dim],
                student.at(at.workspace),
                self.at.norms.at(at.workspace),
                0.0,
                at.gradient,
                None,
            )?;
        }
        Ok(())
    }

    /// Normalises the rows if the loss says so. Returns the rows of student and teacher that the
    /// other passes read, and their type.
    fn launch_normalize(
        &self,
        launcher: &mut impl Launcher,
        at: &Addresses,
    ) -> Result<(GpuDType, [u64; 2])> {
        let Some(normalized) = self.at.normalized else {
            return Ok((self.dtype, [at.student, at.teacher]));
        };
        let [student, teacher] = normalized.map(|region| region.at(at.workspace));
        let matrices = [
            normalize::Matrix {
                rows: at.student,
                dim: self.shapes.student_dim,
                pitch: self.shapes.student_dim,
                normalized: student,
                norms: self.at.norms.at(at.workspace),
            },
            normalize::Matrix {
                rows: at.teacher,
                dim: self.shapes.teacher_dim,
                pitch: self.shapes.teacher_dim,
                normalized: teacher,
                norms: 0,
            },
        ];
        normalize::launch(launcher, self.dtype, self.shapes.rows, &matrices, 0.0)?;
        Ok((GpuDType::F32, [student, teacher]))
    }

    fn launch_relation(
        &self,
        launcher: &mut impl Launcher,
        at: &Addresses,
        rows: [u64; 2],
        kernel: Kernel<RelationArguments>,
    ) -> Result<()> {
        let arguments = RelationArguments {
            rows,
            h: self.h(at),
            r: self.r(at),
            partials: self.at.lengths.at(at.workspace),
            scalars: self.at.scalars.at(at.workspace),
            counter: Layout::counter(0).at(at.workspace),
            n: grid_size("rows", self.shapes.rows)?,
            dim: [
                grid_size("student_dim", self.shapes.student_dim)?,
                grid_size("teacher_dim", self.shapes.teacher_dim)?,
            ],
            side: self.side as u32,
            spread_limit: if self.angle.is_some() {
                trust::SPREAD_ANGLE
            } else {
                trust::SPREAD_DISTANCE
            },
            duplicate_square: if self.at.normalized.is_some() {
                // The kernels keep unit rows in f32.
                duplicate_distance::<f32>().powi(2) as f32
            } else {
                0.0
            },
        };
        let grid = [self.relation_blocks()?, 2, 1];
        kernel.launch(launcher, grid, 0, &arguments)
    }

    /// Blocks of the relation for the student, and as many for the teacher.
    fn relation_blocks(&self) -> Result<u32> {
        tile_pairs(Tiles::of(self.shapes.rows).rows(), self.side)
    }

    fn launch_angle(
        &self,
        launcher: &mut impl Launcher,
        at: &Addresses,
        partition: TriplePartition,
        accurate: bool,
    ) -> Result<()> {
        let arguments = AngleArguments {
            h: self.h(at),
            r: self.r(at),
            sums: self.at.sums.at(at.workspace),
            partials: self.at.triples.at(at.workspace),
            scalars: self.at.scalars.at(at.workspace),
            counter: Layout::counter(0).at(at.workspace),
            penalty_limit: trust::PENALTY,
            n: grid_size("rows", self.shapes.rows)?,
            groups: partition.groups as u32,
            partial_buffers: partition.partial_buffers().into(),
            overlaps: GroupOverlapArgument::all(partition),
            delta: self.loss.delta as f32,
            padding: 0,
        };
        let (kernel, shared) = if accurate {
            (&RKD_ANGLE_ACCURATE, groups::SHARED_ACCURATE)
        } else {
            (&RKD_ANGLE, groups::SHARED)
        };
        let grid = [partition.blocks() as u32, 1, 1];
        kernel.launch(launcher, grid, shared, &arguments)
    }

    fn launch_angle_small_batch(
        &self,
        launcher: &mut impl Launcher,
        at: &Addresses,
        split: VertexSplit,
    ) -> Result<()> {
        let arguments = SmallBatchAngleArguments {
            h: self.h(at),
            r: self.r(at),
            sums: self.at.sums.at(at.workspace),
            partials: self.at.triples.at(at.workspace),
            lengths: self.at.lengths.at(at.workspace),
            scalars: self.at.scalars.at(at.workspace),
            n: grid_size("rows", self.shapes.rows)?,
            length_count: self.relation_blocks()?,
            ranges: split.ranges as u32,
            vertices_per_range: split.vertices_per_range as u32,
            delta: self.loss.delta as f32,
            padding: 0,
        };
        let grid = [split.blocks() as u32, 1, 1];
        RKD_ANGLE_SMALL_BATCH.launch(launcher, grid, small::SHARED, &arguments)
    }

    fn launch_coefficients(&self, launcher: &mut impl Launcher, at: &Addresses) -> Result<()> {
        let n = self.shapes.rows as f64;
        let (angle, loss) = (self.angle, &self.loss);
        // The relation of a large batch computes the scalars, or the angle of a small batch.
        // Otherwise this pass does.
        let without_scalars = self.small_batch && angle.is_none();
        let arguments = CoefficientArguments {
            sums: self.at.sums.at(at.workspace),
            r: self.r(at),
            coefficients: self.at.coefficients.at(at.workspace),
            penalties: self.at.triples.at(at.workspace),
            partials: self.at.penalties.at(at.workspace),
            lengths: if without_scalars {
                self.at.lengths.at(at.workspace)
            } else {
                0
            },
            scalars: self.at.scalars.at(at.workspace),
            n: grid_size("rows", self.shapes.rows)?,
            length_count: self.relation_blocks()?,
            tile_side: self.coefficients.side as u32,
            angle_blocks: angle.map_or(0, AnglePartition::blocks) as u32,
            sums_side: angle.map_or(TILE, AnglePartition::sums_side) as u32,
            partial_buffers: angle
                .map(AnglePartition::partial_buffers)
                .unwrap_or_default()
                .into(),
            distance: self.distance.into(),
            delta: loss.delta as f32,
            // On a line all cosines are ±1. The angle has no gradient, and its terms would cancel
            // to rounding errors.
            angle_factor: if self.shapes.student_dim == 1 {
                0.0
            } else {
                (2.0 * loss.angle_weight / (n * n * n)) as f32
            },
            distance_factor: (2.0 * loss.distance_weight / (n * n)) as f32,
        };
        let grid = [self.coefficients.blocks as u32, 1, 1];
        RKD_COEFFICIENTS.launch(launcher, grid, 0, &arguments)
    }

    fn launch_contraction(
        &self,
        launcher: &mut impl Launcher,
        at: &Addresses,
        dtype: GpuDType,
        rows: u64,
    ) -> Result<()> {
        let (n, loss) = (self.shapes.rows as f64, &self.loss);
        let arguments = ContractionArguments {
            rows,
            coefficients: self.at.coefficients.at(at.workspace),
            r: self.r(at)[0],
            scalars: self.at.scalars.at(at.workspace),
            penalties: self.at.penalties.at(at.workspace),
            value: at.value,
            gradient: at.gradient,
            angle_value: loss.angle_weight / (n * n * n),
            distance_value: loss.distance_weight / (n * n),
            n: grid_size("rows", self.shapes.rows)?,
            dim: grid_size("student_dim", self.shapes.student_dim)?,
            penalty_count: self.coefficients.blocks as u32,
            tile_rows: self.contraction_rows as u32,
            upstream: self.upstream as f32,
            distance_factor: (2.0 * loss.distance_weight / (n * n)) as f32,
            distance: self.distance.into(),
            terms: self.terms.into(),
        };
        let grid = [
            grid_size("rows", self.shapes.rows.div_ceil(self.contraction_rows))?,
            grid_size_y(
                "student_dim",
                self.shapes.student_dim,
                CONTRACTION_DIMENSIONS,
            )?,
            1,
        ];
        let kernel = if self.contraction_rows == TILE {
            &CONTRACTION
        } else {
            &CONTRACTION_SMALL_BATCH
        };
        kernel.of(dtype).launch(launcher, grid, 0, &arguments)
    }

    fn h(&self, at: &Addresses) -> [u64; 2] {
        self.at
            .h
            .map_or([0; 2], |h| h.map(|region| region.at(at.workspace)))
    }

    fn r(&self, at: &Addresses) -> [u64; 2] {
        self.at.r.map(|region| region.at(at.workspace))
    }
}

#[cfg(all(test, feature = "emulator"))]
mod tests;
