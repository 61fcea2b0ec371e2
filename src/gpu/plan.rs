//! How a problem runs on a device.

use super::groups::Groups;
use super::machine::{Launcher, Limits};
use super::workspace::Layout;
use super::{contrastive, logits, pairwise, queue, sampled, towers, triplet};
use crate::error::{Error, Result};
use crate::gpu::element::GpuDType;
use crate::loss::Family;
use crate::problem::Problem;

/// Where a batch and its results lie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Addresses {
    /// `[N, D]`
    pub(crate) student: u64,
    /// `[N, D_t]`; of a teacher that is a list of classes its log-probabilities, `[N, k]` f32.
    pub(crate) teacher: u64,
    /// `[N, k]` u32, the classes of such a teacher; else 0.
    pub(crate) teacher_classes: u64,
    /// `[N]` u32, the rows' labels; 0 where they have none.
    pub(crate) labels: u64,
    /// The keys of each row; 0 where they have none.
    pub(crate) keys: sampled::KeyAddresses,
    /// `[N]` f32, the rows' weights; 0 where they have none.
    pub(crate) row_weights: u64,
    /// `[capacity, pitch]` and the ring's state; 0 where the loss has no queue.
    pub(crate) queue: QueueAddresses,
    /// `[N, D]` f32, overwritten.
    pub(crate) gradient: u64,
    /// f32, overwritten: the loss, and then its terms.
    pub(crate) value: u64,
    /// f32, overwritten: the loss of each row; 0 where nobody asks for it.
    pub(crate) row_losses: u64,
    pub(crate) workspace: u64,
}

/// Where a queue lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct QueueAddresses {
    pub(crate) keys: u64,
    pub(crate) state: u64,
}

/// A problem on a device: a pure function of the two.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Plan {
    /// Of each group, where there are groups.
    passes: Passes,
    groups: Option<Groups>,
    layout: Layout,
}

#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(clippy::large_enum_variant, reason = "there is one for each evaluator")]
enum Passes {
    Triplet(triplet::Plan),
    Pairwise(pairwise::Plan),
    Contrastive(contrastive::Plan),
    Logits(logits::Plan),
    Towers(towers::Plan),
    Sampled(sampled::Plan),
}

impl Plan {
    pub(crate) fn new(problem: &Problem, dtype: GpuDType, limits: Limits) -> Result<Self> {
        let mut layout = Layout::new();
        let at = &mut layout;
        let groups = Groups::new(problem, dtype, at)?;
        let problem = &problem.of_group();
        let passes = match problem.spec().family {
            // The kernels of RKD serve its distance alone as well.
            Family::Pairwise(loss) => match loss.as_triplet() {
                Some(loss) => {
                    Passes::Triplet(triplet::Plan::new(loss, problem, dtype, limits, at)?)
                }
                None => Passes::Pairwise(pairwise::Plan::new(loss, problem, dtype, limits, at)?),
            },
            Family::Triplet(loss) => {
                Passes::Triplet(triplet::Plan::new(loss, problem, dtype, limits, at)?)
            }
            Family::Contrastive(loss) => {
                Passes::Contrastive(contrastive::Plan::new(&loss, problem, dtype, limits, at)?)
            }
            Family::Towers(loss) => {
                Passes::Towers(towers::Plan::new(loss, problem, dtype, limits, at)?)
            }
            Family::Sampled(loss) => {
                Passes::Sampled(sampled::Plan::new(loss, problem, dtype, limits, at)?)
            }
            Family::Logits(loss) => {
                Passes::Logits(logits::Plan::new(&loss, problem, dtype, limits, at)?)
            }
        };
        Ok(Plan {
            passes,
            groups,
            layout,
        })
    }

    /// The plan of a problem that differs in nothing but its upstream factor: what takes time to
    /// choose stays.
    #[allow(dead_code, reason = "for cuda")]
    pub(crate) fn with_upstream(
        &self,
        problem: &Problem,
        dtype: GpuDType,
        limits: Limits,
    ) -> Result<Self> {
        match self.passes {
            Passes::Triplet(plan) => Ok(Plan {
                passes: Passes::Triplet(plan.with_upstream(problem.of_group().upstream())),
                ..*self
            }),
            Passes::Pairwise(_)
            | Passes::Contrastive(_)
            | Passes::Logits(_)
            | Passes::Towers(_)
            | Passes::Sampled(_) => Self::new(problem, dtype, limits),
        }
    }

    /// The scratch memory it takes. The first [`Layout::COUNTERS`] bytes have to be zero before the
    /// first evaluation, and are again after each.
    pub(crate) fn workspace_bytes(&self) -> usize {
        self.layout.bytes()
    }

    /// Launches all passes, group by group where there are groups.
    pub(crate) fn launch(&self, launcher: &mut impl Launcher, at: &Addresses) -> Result<()> {
        let Some(groups) = &self.groups else {
            return self.launch_passes(launcher, at);
        };
        for group in groups.addresses(at) {
            self.launch_passes(launcher, &group)?;
        }
        groups.launch_mean(launcher, at)
    }

    fn launch_passes(&self, launcher: &mut impl Launcher, at: &Addresses) -> Result<()> {
        match &self.passes {
            Passes::Triplet(plan) => plan.launch(launcher, at),
            Passes::Pairwise(plan) => plan.launch(launcher, at),
            Passes::Contrastive(plan) => plan.launch(launcher, at),
            Passes::Logits(plan) => plan.launch(launcher, at),
            Passes::Towers(plan) => plan.launch(launcher, at),
            Passes::Sampled(plan) => plan.launch(launcher, at),
        }
    }
}

/// Pairs of tiles (a, b) with a ≤ b, for `rows` rows in tiles of `side`.
pub(crate) fn tile_pairs(rows: usize, side: usize) -> Result<u32> {
    let tiles = rows.div_ceil(side);
    match tiles
        .checked_add(1)
        .and_then(|more| tiles.checked_mul(more))
    {
        Some(product) => grid_size("rows", product / 2),
        None => grid_size("rows", usize::MAX),
    }
}

/// How the queue of this problem lies in memory, if it has one.
pub(crate) fn queue_layout(problem: &Problem, dtype: GpuDType) -> Option<queue::Layout> {
    let (shapes, normalize) = (problem.shapes(), problem.spec().normalize);
    let layout = |capacity| queue::Layout::new(capacity, shapes.student_dim, dtype, normalize);
    shapes.queue.map(layout)
}

/// A size that a grid can have along x, and that kernels hold in 32 bits.
pub(crate) fn grid_size(argument: &'static str, size: usize) -> Result<u32> {
    const MOST: u32 = i32::MAX.cast_unsigned();
    match u32::try_from(size) {
        Ok(size) if size <= MOST => Ok(size),
        _ => Err(Error::TooLarge {
            argument,
            most: MOST as usize,
            got: size,
        }),
    }
}

/// The blocks it takes to cover `size`, `each` at a time, where a grid counts them along y.
pub(crate) fn grid_size_y(argument: &'static str, size: usize, each: usize) -> Result<u32> {
    const MOST: usize = 65535;
    match u32::try_from(size.div_ceil(each)) {
        Ok(blocks) if blocks as usize <= MOST => Ok(blocks),
        _ => Err(Error::TooLarge {
            argument,
            most: MOST * each,
            got: size,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loss::Loss;
    use crate::shapes::Shapes;

    /// The most blocks of a grid along x and along y, by CUDA.
    const MOST: [usize; 2] = [(1 << 31) - 1, 65_535];

    #[test]
    fn grids_are_as_large_as_cuda_takes_them_and_no_larger() {
        let too_large = |most, got| Error::TooLarge {
            argument: "rows",
            most,
            got,
        };
        let [x, y] = MOST;
        assert_eq!(grid_size("rows", x), Ok((1 << 31) - 1));
        assert_eq!(grid_size("rows", x + 1), Err(too_large(x, x + 1)));
        assert_eq!(grid_size("rows", 1 << 32), Err(too_large(x, 1 << 32)));
        assert_eq!(grid_size_y("rows", 64 * y, 64), Ok(65_535));
        assert_eq!(
            grid_size_y("rows", 64 * y + 1, 64),
            Err(too_large(64 * y, 64 * y + 1))
        );
        assert_eq!(tile_pairs(64 * 65_535, 64), Ok(65_535 * 32_768));
        assert_eq!(
            tile_pairs(64 * 65_536, 64),
            Err(too_large(x, 65_536 / 2 * 65_537))
        );
    }

    /// A trainer may change the factor at every step: the plan is the one that is made anew.
    #[test]
    fn another_upstream_factor_is_another_plan_of_the_same_passes() {
        let (dtype, limits) = (GpuDType::F32, Limits::HOPPER);
        for loss in ["rkd", "rkd-distance", "gram", "order"] {
            let loss: Loss = loss.parse().expect("a loss");
            for groups in [1, 4] {
                let problem = Problem::new(loss, Shapes::new(32, 8, 6))
                    .and_then(|problem| problem.with_groups(groups))
                    .expect("groups that fit");
                let other = problem.with_upstream(3.0);
                let plan = Plan::new(&problem, dtype, limits).expect("a plan");
                let changed = plan.with_upstream(&other, dtype, limits);
                assert_eq!(changed, Plan::new(&other, dtype, limits), "{loss}");
                assert_ne!(changed, Ok(plan), "{loss}");
            }
        }
    }
}
