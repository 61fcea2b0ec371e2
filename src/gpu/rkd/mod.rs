//! RKD, distance and angle: relation → penalty → contraction.

mod angle;
mod arguments;
mod small_batch;
mod triple_partition;
mod workspace;

use self::angle::Angle;
use self::arguments::KindArgument;
pub(crate) use self::arguments::{
    AngleArguments, CoefficientArguments, ContractionArguments, RelationArguments,
    SmallBatchAngleArguments,
};
use self::small_batch::{VertexSplit, is_small_batch};
use self::triple_partition::{
    CoefficientTiles, TILE, Tiles, TriplePartition, contraction_rows, relation_side,
    small_batch_side,
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
use super::workspace::Layout;
use crate::element::DType;
use crate::error::Result;
use crate::loss::Rkd;
use crate::problem::Problem;
use crate::shapes::Shapes;

/// How far the fast path is trusted. The bar is twice the error of the definition evaluated in f32.
mod trust {
    /// For angles, the longest edge over the shortest: the law of cosines loses about as much, and where
    /// lengths are alike the error stays within the bar.
    pub(super) const SPREAD_ANGLE: f32 = 1.75;
    /// For distances; they only have to be in range.
    pub(super) const SPREAD_DISTANCE: f32 = 1e15;
    /// The least mean penalty of angles: below, the difference of the cosines is mostly rounding.
    pub(super) const PENALTY: f64 = 1e-4;
}

/// What the passes of RKD are launched with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Plan {
    loss: Rkd,
    dtype: DType,
    shapes: Shapes,
    upstream: f64,
    angle: Option<Angle>,
    distance: bool,
    /// Whether both parts of the loss are reported.
    terms: bool,
    /// Whether the rows are few: f64 at once, by kernels of their own.
    small_batch: bool,
    side: usize,
    contraction_rows: usize,
    coefficients: CoefficientTiles,
    at: Workspace,
}

impl Plan {
    pub(crate) fn new(
        loss: &Rkd,
        problem: &Problem,
        dtype: DType,
        limits: Limits,
        layout: &mut Layout,
    ) -> Result<Self> {
        let n = problem.shapes().rows;
        grid_size("rows", n)?;
        let partition = || Angle::new(problem.shapes(), limits);
        let angle = (loss.angle_weight > 0.0).then(partition);
        Self::partitioned(loss, problem, dtype, limits, angle, layout)
    }

    /// With the angle's triples, if it takes part, dealt as is said here.
    fn partitioned(
        loss: &Rkd,
        problem: &Problem,
        dtype: DType,
        limits: Limits,
        angle: Option<Angle>,
        layout: &mut Layout,
    ) -> Result<Self> {
        let shapes = problem.shapes();
        let n = shapes.rows;
        let multiprocessors = limits.multiprocessors as usize;
        let small_batch = match angle {
            Some(angle) => matches!(angle, Angle::SmallBatch(_)),
            None => is_small_batch(shapes, limits),
        };
        let side = if small_batch {
            small_batch_side(n, multiprocessors)
        } else {
            relation_side(n, multiprocessors)
        };
        // With both weights 0, the distance gives the zeros.
        let distance = loss.distance_weight > 0.0 || angle.is_none();
        let padded = Tiles::of(n).rows();
        let coefficients = CoefficientTiles::new(padded, multiprocessors);
        let at = Workspace::new(
            layout,
            shapes,
            loss.normalize,
            angle,
            [tile_pairs(padded, side)? as usize, coefficients.blocks],
        )?;
        Ok(Plan {
            loss: *loss,
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
            if let Some(Angle::Groups(partition)) = self.angle {
                self.launch_angle(launcher, at, partition, false)?;
            }
            // Unless all there is to do here has been done, and well enough: the kernels know.
            self.launch_relation(launcher, at, rows, RKD_RELATION_ACCURATE.of(dtype))?;
        }
        match self.angle {
            Some(Angle::Groups(partition)) => self.launch_angle(launcher, at, partition, true)?,
            Some(Angle::SmallBatch(shares)) => {
                self.launch_angle_small_batch(launcher, at, shares)?
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
                at.gradient,
            )?;
        }
        Ok(())
    }

    /// Gives the rows of student and teacher that the other passes read, and their type.
    fn launch_normalize(
        &self,
        launcher: &mut impl Launcher,
        at: &Addresses,
    ) -> Result<(DType, [u64; 2])> {
        let Some(normalized) = self.at.normalized else {
            return Ok((self.dtype, [at.student, at.teacher]));
        };
        let [student, teacher] = normalized.map(|region| region.at(at.workspace));
        let matrices = [
            normalize::Matrix {
                rows: at.student,
                dim: self.shapes.student_dim,
                normalized: student,
                norms: self.at.norms.at(at.workspace),
            },
            normalize::Matrix {
                rows: at.teacher,
                dim: self.shapes.teacher_dim,
                normalized: teacher,
                norms: 0,
            },
        ];
        normalize::launch(launcher, self.dtype, self.shapes.rows, &matrices)?;
        Ok((DType::F32, [student, teacher]))
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
            padding: 0,
        };
        let grid = [self.relation_blocks()?, 2, 1];
        kernel.launch(launcher, grid, 0, &arguments)
    }

    /// For the student, and as many for the teacher.
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
            slots: partition.slots().into(),
            kinds: KindArgument::all(partition),
            delta: self.loss.delta as f32,
            padding: 0,
        };
        let (kernel, shared) = if accurate {
            (&RKD_ANGLE_ACCURATE, TriplePartition::SHARED_ACCURATE)
        } else {
            (&RKD_ANGLE, TriplePartition::SHARED)
        };
        let grid = [partition.blocks() as u32, 1, 1];
        kernel.launch(launcher, grid, shared, &arguments)
    }

    fn launch_angle_small_batch(
        &self,
        launcher: &mut impl Launcher,
        at: &Addresses,
        shares: VertexSplit,
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
            shares: shares.shares as u32,
            vertices_per_share: shares.vertices_per_share as u32,
            delta: self.loss.delta as f32,
            padding: 0,
        };
        let grid = [shares.blocks() as u32, 1, 1];
        RKD_ANGLE_SMALL_BATCH.launch(launcher, grid, VertexSplit::SHARED, &arguments)
    }

    fn launch_coefficients(&self, launcher: &mut impl Launcher, at: &Addresses) -> Result<()> {
        let n = self.shapes.rows as f64;
        let (angle, loss) = (self.angle, &self.loss);
        // Scalars are made by many rows' relation, or by few rows' angle.
        let unsettled = self.small_batch && angle.is_none();
        let arguments = CoefficientArguments {
            sums: self.at.sums.at(at.workspace),
            r: self.r(at),
            coefficients: self.at.coefficients.at(at.workspace),
            penalties: self.at.triples.at(at.workspace),
            partials: self.at.penalties.at(at.workspace),
            lengths: if unsettled {
                self.at.lengths.at(at.workspace)
            } else {
                0
            },
            scalars: self.at.scalars.at(at.workspace),
            n: grid_size("rows", self.shapes.rows)?,
            length_count: self.relation_blocks()?,
            patch: self.coefficients.side as u32,
            angle_blocks: angle.map_or(0, Angle::blocks) as u32,
            tile: angle.map_or(TILE, Angle::tile) as u32,
            slots: angle.map(Angle::slots).unwrap_or_default().into(),
            distance: self.distance.into(),
            delta: loss.delta as f32,
            // On a line all cosines are ±1: the angle has no gradient, and what rounding would leave of the
            // terms that cancel is not wanted.
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
        dtype: DType,
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
            grid_size_y("student_dim", self.shapes.student_dim, 64)?,
            1,
        ];
        let family = if self.contraction_rows == 64 {
            &CONTRACTION
        } else {
            &CONTRACTION_SMALL_BATCH
        };
        family.of(dtype).launch(launcher, grid, 0, &arguments)
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
