//! The pairwise family: relation → penalty → coefficients → contraction, for any combination of
//! relation, normalizer and penalty that kernels exist for.
//!
//! | pass | kernel | launches |
//! |---|---|---|
//! | x/‖x‖ | normalize | 1 if rows are normalised |
//! | sums over the dimensions of every two rows | pairwise_relation | 1, or 2 if rows can leave f32's range |
//! | relations and scales | pairwise_penalty, `scale` | 1 if the normalizer's scope is the matrix |
//! | penalties; relations and scales if the scope is a row | pairwise_penalty, `penalty` | 1 |
//! | coefficients | pairwise_coefficients | 1 |
//! | in place of the last three, for the order of pairs | pairwise_order | 2 |
//! | the same for the ranking of neighbours | pairwise_ranking | 2 |
//! | gradient and loss | pairwise_contraction | 1 |
//! | the way back through x/‖x‖ | normalize | 1 if rows are normalised |
//!
//! With prefixes of the student's rows all of it is launched for each prefix, the longest first, on
//! one workspace. The last two add to the loss and to the gradient.

mod arguments;
mod instance;
mod order;
mod ranking;

use self::arguments::MatrixArgument;
pub(crate) use self::arguments::{
    CoefficientArguments, ContractionArguments, OrderArguments, PenaltyArguments, RankingArguments,
    RelationArguments,
};
use self::instance::{Between, Instance};
use self::order::Order;
use self::ranking::Ranking;
use bytemuck::Zeroable;

use super::machine::{Launcher, Limits};
use super::normalize;
use super::plan::{Addresses, grid_size, grid_size_y, tile_pairs};
use super::workspace::{Layout, Region};
use crate::error::Result;
use crate::gpu::element::GpuDType;
use crate::loss::{Pairwise, Penalty};
use crate::prefixes::Prefixes;
use crate::problem::Problem;
use crate::shapes::Shapes;

/// The side of a tile of pairs: `TILE` in kernels/common/pairwise.cuh.
const TILE: usize = 64;
/// Dimensions that pairwise_relation has in shared memory at a time: its `DEPTH`.
const DEPTH: usize = 32;
/// The fewest dimensions of a slice. A block needs two steps of `DEPTH` to hide its loads, and a
/// slice costs 8 bytes a pair.
const LEAST_SLICE: usize = 2 * DEPTH;
/// Blocks of pairwise_relation that a multiprocessor holds: `Resident` in its header.
const RELATION_BLOCKS: usize = 2;
/// Dimensions of a tile of pairwise_contraction, and its rows in a large batch and in a small one:
/// its `DIMENSIONS` and `tile_rows`.
const DIMENSIONS: usize = 64;
const LARGE_ROWS: usize = 64;
const SMALL_ROWS: usize = 16;

/// Bytes of `Scales` in kernels/common/pairwise.cuh.
const SCALES: usize = 16;

/// How the dimensions of one matrix are split between blocks of pairwise_relation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Slices {
    count: usize,
    /// The dimensions of a slice, but the last one may have fewer.
    dims: usize,
}

impl Slices {
    /// As many as it takes to give every multiprocessor its blocks, with `pairs` tiles of student
    /// and of teacher.
    fn new(dim: usize, pairs: usize, multiprocessors: usize) -> Self {
        let wanted = (RELATION_BLOCKS * multiprocessors).div_ceil(2 * pairs);
        let count = wanted.clamp(1, dim.div_ceil(LEAST_SLICE));
        let dims = dim.div_ceil(count).next_multiple_of(DEPTH);
        Slices {
            count: dim.div_ceil(dims),
            dims,
        }
    }
}

/// Where the passes keep what they hand one another. P is the number of rows, up to a multiple of
/// [`TILE`].
#[derive(Clone, Copy, Debug, PartialEq)]
struct Workspace {
    normalized: Option<[Region; 2]>,
    norms: Region,
    /// `[slices, P, P]` of student and teacher: sums of a slice; then relations in the first one;
    /// then the coefficients in the student's.
    slots: [Region; 2],
    /// `[2, tiles · slices]`
    maxima: Region,
    units: Region,
    sums: Region,
    scales: Region,
    losses: Region,
    partials: Region,
    weighted: Region,
    /// The gradient by a prefix, and the sum of the losses, where there are prefixes.
    prefix: Option<[Region; 2]>,
}

impl Workspace {
    fn new(
        layout: &mut Layout,
        shapes: Shapes,
        normalize: bool,
        slices: [Slices; 2],
        prefixes: bool,
    ) -> Result<Self> {
        let n = shapes.rows;
        let padded = n.next_multiple_of(TILE);
        let normalized = if normalize {
            Some([
                layout.push::<f32>(&[n, shapes.student_dim])?,
                layout.push::<f32>(&[n, shapes.teacher_dim])?,
            ])
        } else {
            None
        };
        Ok(Workspace {
            normalized,
            norms: layout.push::<f32>(&[if normalize { n } else { 0 }])?,
            slots: [
                layout.push::<f32>(&[slices[0].count, padded, padded])?,
                layout.push::<f32>(&[slices[1].count, padded, padded])?,
            ],
            maxima: layout.push::<f32>(&[2, maxima_pitch(n, slices)])?,
            units: layout.push::<f32>(&[2])?,
            sums: layout.push::<f64>(&[2, padded])?,
            scales: layout.push::<u8>(&[padded, SCALES])?,
            losses: layout.push::<f64>(&[padded])?,
            partials: layout.push::<f64>(&[padded])?,
            weighted: layout.push::<f32>(&[padded])?,
            prefix: if prefixes {
                Some([
                    layout.push::<f32>(&[n, shapes.student_dim])?,
                    layout.push::<f64>(&[1])?,
                ])
            } else {
                None
            },
        })
    }
}

/// The maxima that pairwise_relation can leave for one matrix.
fn maxima_pitch(rows: usize, slices: [Slices; 2]) -> usize {
    rows.div_ceil(TILE) * slices[0].count.max(slices[1].count)
}

/// What the passes of a pairwise loss are launched with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Plan {
    instance: Instance,
    /// The penalty's.
    parameter: f64,
    dtype: GpuDType,
    /// Of the whole rows, or of those of the prefix that is launched.
    shapes: Shapes,
    /// How far apart the student's rows lie.
    pitch: usize,
    prefixes: Prefixes,
    /// Whether nothing has been added yet.
    first: bool,
    multiprocessors: usize,
    upstream: f64,
    norm_epsilon: f64,
    slices: [Slices; 2],
    contraction_rows: usize,
    at: Workspace,
    order: Option<Order>,
    ranking: Option<Ranking>,
    /// The terms that the loss is the mean of.
    terms: f64,
}

impl Plan {
    /// # Panics
    ///
    /// If no kernels exist for this combination. A test checks that they do for every loss.
    pub(crate) fn new(
        pairwise: Pairwise,
        problem: &Problem,
        dtype: GpuDType,
        limits: Limits,
        layout: &mut Layout,
    ) -> Result<Self> {
        let instance = Instance::of(pairwise).expect("kernels for the pairwise loss");
        let shapes = problem.shapes();
        let n = shapes.rows;
        grid_size("rows", n)?;
        let normalize = problem.spec().normalize || pairwise.relation.is_of_directions();
        let multiprocessors = limits.multiprocessors as usize;
        let pairs = tile_pairs(n, TILE)? as usize;
        let slices_of = |dim| Slices::new(dim, pairs, multiprocessors);
        let slices = [shapes.student_dim, shapes.teacher_dim].map(slices_of);
        let prefixes = problem.prefixes();
        // A shorter prefix may have more slices.
        let mut room = slices;
        for &width in prefixes.widths() {
            room[0].count = room[0].count.max(slices_of(width).count);
        }
        let at = Workspace::new(layout, shapes, normalize, room, !prefixes.is_empty())?;
        let (mut order, mut ranking) = (None, None);
        let terms = match pairwise.penalty {
            Penalty::Huber { .. } | Penalty::Squared | Penalty::Divergence { .. } => {
                (n as f64).powi(2)
            }
            Penalty::Order { margin } => {
                order = Some(Order::new(margin, n, layout)?);
                let pairs = order::pairs(n) as f64;
                // Of less than two pairs the sum is 0, whatever divides it.
                (pairs * (pairs - 1.0) / 2.0).max(1.0)
            }
            Penalty::Ranking {
                alpha,
                beta,
                length,
            } => {
                ranking = Some(Ranking::new([alpha, beta], length, n, layout)?);
                n as f64
            }
        };
        Ok(Plan {
            instance,
            parameter: match pairwise.penalty {
                Penalty::Huber { delta } => delta,
                Penalty::Divergence { epsilon } => epsilon,
                Penalty::Squared | Penalty::Order { .. } | Penalty::Ranking { .. } => 0.0,
            },
            dtype,
            shapes,
            pitch: shapes.student_dim,
            prefixes,
            first: true,
            multiprocessors,
            upstream: problem.upstream() / prefixes.parts(),
            norm_epsilon: pairwise.norm_epsilon,
            slices,
            contraction_rows: contraction_rows(n, shapes.student_dim, multiprocessors),
            at,
            order,
            ranking,
            terms,
        })
    }

    /// Launches all passes.
    pub(crate) fn launch(&self, launcher: &mut impl Launcher, at: &Addresses) -> Result<()> {
        let widths = self.prefixes.widths();
        if widths.is_empty() {
            return self.launch_once(launcher, at);
        }
        let pairs = tile_pairs(self.shapes.rows, TILE)? as usize;
        for (nth, &width) in widths.iter().rev().enumerate() {
            let [_, of_teacher] = self.slices;
            let plan = Plan {
                shapes: Shapes {
                    student_dim: width,
                    ..self.shapes
                },
                first: nth == 0,
                slices: [Slices::new(width, pairs, self.multiprocessors), of_teacher],
                contraction_rows: contraction_rows(self.shapes.rows, width, self.multiprocessors),
                ..*self
            };
            plan.launch_once(launcher, at)?;
        }
        Ok(())
    }

    /// Launches the passes of rows of one width.
    fn launch_once(&self, launcher: &mut impl Launcher, at: &Addresses) -> Result<()> {
        let (dtype, rows) = self.launch_normalize(launcher, at)?;
        self.launch_relation(launcher, at, dtype, rows, 0)?;
        if self.may_leave_range() {
            // Returns at once unless the rows do: the kernel knows.
            let units = self.at.units.at(at.workspace);
            self.launch_relation(launcher, at, dtype, rows, units)?;
        }
        self.launch_between(launcher, at, dtype, rows[0])?;
        self.launch_contraction(launcher, at, dtype, rows[0])?;
        if let Some([student, _]) = self.at.normalized {
            normalize::launch_backward(
                launcher,
                [self.shapes.rows, self.shapes.student_dim],
                student.at(at.workspace),
                self.at.norms.at(at.workspace),
                self.norm_epsilon,
                self.gradient(at),
                self.at.prefix.map(|_| normalize::Sum {
                    gradient: at.gradient,
                    pitch: self.pitch,
                    first: self.first,
                }),
            )?;
        }
        Ok(())
    }

    /// Where the contraction writes: [N, D] of the width that is launched.
    fn gradient(&self, at: &Addresses) -> u64 {
        match self.at.prefix {
            None => at.gradient,
            Some([gradient, _]) => gradient.at(at.workspace),
        }
    }

    /// Whether products of rows can leave f32's range. Those of f16 and of unit rows cannot.
    fn may_leave_range(&self) -> bool {
        self.at.normalized.is_none() && self.dtype != GpuDType::F16
    }

    /// The units of the rows, if they have any.
    fn units(&self, at: &Addresses) -> u64 {
        if self.may_leave_range() {
            self.at.units.at(at.workspace)
        } else {
            0
        }
    }

    fn slots(&self, at: &Addresses) -> [u64; 2] {
        self.at.slots.map(|region| region.at(at.workspace))
    }

    /// Rows of the matrices over pairs, a block for each in the passes between relation and
    /// contraction.
    fn padded(&self) -> usize {
        self.shapes.rows.next_multiple_of(TILE)
    }

    /// Gives the rows of student and teacher that the other passes read, and their type.
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
                pitch: self.pitch,
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
        let rows = self.shapes.rows;
        normalize::launch(launcher, self.dtype, rows, &matrices, self.norm_epsilon)?;
        Ok((GpuDType::F32, [student, teacher]))
    }

    /// The first launch without `units`, the second with them.
    fn launch_relation(
        &self,
        launcher: &mut impl Launcher,
        at: &Addresses,
        dtype: GpuDType,
        rows: [u64; 2],
        units: u64,
    ) -> Result<()> {
        let slots = self.slots(at);
        let dims = [
            grid_size("student_dim", self.shapes.student_dim)?,
            grid_size("teacher_dim", self.shapes.teacher_dim)?,
        ];
        let of = [0, 1].map(|which| MatrixArgument {
            rows: rows[which],
            slots: slots[which],
            dim: dims[which],
            slices: self.slices[which].count as u32,
            slice: self.slices[which].dims as u32,
            padding: 0,
        });
        let maxima = if self.may_leave_range() {
            self.at.maxima.at(at.workspace)
        } else {
            0
        };
        let arguments = RelationArguments {
            of,
            maxima,
            units,
            n: grid_size("rows", self.shapes.rows)?,
            maxima_pitch: maxima_pitch(self.shapes.rows, self.slices) as u32,
        };
        let pairs = tile_pairs(self.shapes.rows, TILE)? as usize;
        let most_slices = self.slices[0].count.max(self.slices[1].count);
        let grid = [grid_size("rows", pairs * most_slices)?, 2, 1];
        let kernel = self.instance.kernels().relation.of(dtype);
        kernel.launch(launcher, grid, 0, &arguments)
    }

    /// From sums over the dimensions to the coefficients, and to the losses of rows.
    fn launch_between(
        &self,
        launcher: &mut impl Launcher,
        at: &Addresses,
        dtype: GpuDType,
        rows: u64,
    ) -> Result<()> {
        match (self.instance.kernels().between, self.order, self.ranking) {
            (
                Between::Sum {
                    scale,
                    penalty,
                    coefficients,
                },
                _,
                _,
            ) => {
                let arguments = self.penalty_arguments(at)?;
                let grid = [grid_size("rows", self.padded())?, 1, 1];
                if let Some(scale) = scale {
                    scale.launch(launcher, grid, 0, &arguments)?;
                }
                penalty.launch(launcher, grid, 0, &arguments)?;
                let arguments = self.coefficient_arguments(at)?;
                coefficients.launch(launcher, grid, 0, &arguments)
            }
            (Between::Order, Some(order), _) => {
                let arguments = OrderArguments {
                    r: self.slots(at),
                    sums: self.at.sums.at(at.workspace),
                    poison: self.at.weighted.at(at.workspace),
                    losses: self.at.losses.at(at.workspace),
                    counter: Layout::counter(0).at(at.workspace),
                    slices: self.slices.map(|slices| slices.count as u32),
                    n: grid_size("rows", self.shapes.rows)?,
                    ..OrderArguments::zeroed()
                };
                order.launch(launcher, at.workspace, arguments)
            }
            (Between::Ranking, _, Some(ranking)) => {
                let arguments = RankingArguments {
                    rows,
                    r: self.slots(at),
                    poisons: self.at.sums.at(at.workspace),
                    losses: self.at.losses.at(at.workspace),
                    units: self.units(at),
                    slices: self.slices.map(|slices| slices.count as u32),
                    n: grid_size("rows", self.shapes.rows)?,
                    dim: grid_size("student_dim", self.shapes.student_dim)?,
                    ..RankingArguments::zeroed()
                };
                ranking.launch(launcher, dtype, at.workspace, arguments)
            }
            (Between::Order | Between::Ranking, _, _) => {
                unreachable!("the instance is that of the penalty")
            }
        }
    }

    fn penalty_arguments(&self, at: &Addresses) -> Result<PenaltyArguments> {
        Ok(PenaltyArguments {
            r: self.slots(at),
            units: self.units(at),
            sums: self.at.sums.at(at.workspace),
            scales: self.at.scales.at(at.workspace),
            losses: self.at.losses.at(at.workspace),
            partials: self.at.partials.at(at.workspace),
            weighted: self.at.weighted.at(at.workspace),
            counter: Layout::counter(0).at(at.workspace),
            slices: self.slices.map(|slices| slices.count as u32),
            n: grid_size("rows", self.shapes.rows)?,
            parameter: self.parameter as f32,
        })
    }

    fn coefficient_arguments(&self, at: &Addresses) -> Result<CoefficientArguments> {
        let [student, teacher] = self.slots(at);
        Ok(CoefficientArguments {
            student,
            teacher,
            scales: self.at.scales.at(at.workspace),
            weighted: self.at.weighted.at(at.workspace),
            n: grid_size("rows", self.shapes.rows)?,
            parameter: self.parameter as f32,
        })
    }

    fn launch_contraction(
        &self,
        launcher: &mut impl Launcher,
        at: &Addresses,
        dtype: GpuDType,
        rows: u64,
    ) -> Result<()> {
        let arguments = ContractionArguments {
            rows,
            coefficients: self.slots(at)[0],
            losses: self.at.losses.at(at.workspace),
            units: self.units(at),
            value: at.value,
            gradient: self.gradient(at),
            total: match self.at.prefix {
                None => 0,
                Some([_, total]) => total.at(at.workspace),
            },
            loss_factor: 1.0 / (self.terms * self.prefixes.parts()),
            n: grid_size("rows", self.shapes.rows)?,
            dim: grid_size("student_dim", self.shapes.student_dim)?,
            tile_rows: self.contraction_rows as u32,
            factor: (self.upstream / self.terms) as f32,
            first: u32::from(self.first),
            padding: 0,
        };
        let grid = [
            grid_size("rows", self.shapes.rows.div_ceil(self.contraction_rows))?,
            grid_size_y("student_dim", self.shapes.student_dim, DIMENSIONS)?,
            1,
        ];
        let kernel = self.instance.kernels().contraction.of(dtype);
        kernel.launch(launcher, grid, 0, &arguments)
    }
}

/// Rows of a tile of the contraction: small tiles where large ones leave multiprocessors idle.
fn contraction_rows(rows: usize, dim: usize, multiprocessors: usize) -> usize {
    let large = rows
        .div_ceil(LARGE_ROWS)
        .saturating_mul(dim.div_ceil(DIMENSIONS));
    if large >= multiprocessors {
        LARGE_ROWS
    } else {
        SMALL_ROWS
    }
}

#[cfg(all(test, feature = "emulator"))]
mod tests;
