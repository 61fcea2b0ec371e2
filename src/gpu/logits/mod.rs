//! The logits family on a GPU: KD, by kernels/kd_kl.cu, where it is not KL(p‖q) with one
//! temperature by kernels/kd_divergence.cu, and of a list of classes by kernels/kd_top_k.cu; and the
//! public softmax.

mod divergence;
mod softmax;
mod top_k;

use self::divergence::Kind;
pub(crate) use self::softmax::{Arguments as SoftmaxArguments, launch as launch_softmax};
pub(crate) use self::top_k::Arguments as TopKArguments;
use self::top_k::List;
use super::arguments::kernel_arguments;
use super::kernels::{ByDType, KD_DIVERGENCE, KD_KL, KD_KL_LONG, KD_TOP_K};
use super::machine::{Launcher, Limits};
use super::plan::{Addresses, grid_size};
use super::row_shares::RowShares;
use super::tuning::contrastive::SYSTEM_SHARED;
use super::tuning::logits::{BLOCKS, CHUNK, MAX_SHORT, REDUCTIONS};
use super::workspace::{Layout, Region};
use crate::error::Result;
use crate::gpu::element::GpuDType;
use crate::loss::Logits;
use crate::problem::Problem;

kernel_arguments! {
    /// Mirrors `Arguments` in kernels/kd_kl.cu.
    pub(crate) struct Arguments {
        student: u64,
        teacher: u64,
        gradient: u64,
        partials: u64,
        value: u64,
        counter: u64,
        row_losses: u64,
        loss_factor: f64,
        row_factor: f64,
        classes: u32,
        inverse_temperature: f32,
        gradient_factor: f32,
        kept: u32,
    }
}

kernel_arguments! {
    /// Mirrors `Arguments` in kernels/kd_divergence.cu.
    pub(crate) struct DivergenceArguments {
        student: u64,
        teacher: u64,
        gradient: u64,
        partials: u64,
        value: u64,
        counter: u64,
        row_shares: u64,
        row_losses: u64,
        loss_factor: f64,
        row_factor: f64,
        classes: u32,
        student_columns: u32,
        teacher_columns: u32,
        student_inverse_temperature: f32,
        teacher_inverse_temperature: f32,
        gradient_factor: f32,
        kept: u32,
        kind: u32,
        share: f32,
        rest: f32,
    }
}

/// How a block goes over a row. It reads the row twice, and keeps its beginning in shared memory
/// from the first reading to the second.
///
/// Short rows go to many small blocks: one block hides the beginning and the end of another. So a
/// block keeps no more than lets four of them share a multiprocessor. For a
/// long row the bytes count: a block takes as much shared memory as there is. So few rows are in
/// progress at once, and what does not fit in shared memory is still in L2 at the second reading.
/// 1024 threads, or two blocks a multiprocessor, would have as many loads in flight, but two blocks
/// would need twice the L2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct RowTile {
    long: bool,
    /// Chunks of 16 bytes that a thread keeps, of each of the two rows.
    kept: u32,
}

impl RowTile {
    fn new(classes: usize, dtype: GpuDType, limits: Limits) -> Self {
        let chunks = classes.div_ceil(CHUNK / dtype.bytes());
        let short = chunks.div_ceil(KD_KL.threads as usize);
        let shared = limits.shared_per_block as usize;
        if short <= MAX_SHORT {
            // What does not fit next to three other blocks is read again, from L2.
            let of_block =
                ((shared + SYSTEM_SHARED) / BLOCKS).saturating_sub(SYSTEM_SHARED + REDUCTIONS);
            return RowTile {
                long: false,
                kept: short.min(of_block / Self::bytes(KD_KL.threads)) as u32,
            };
        }
        RowTile {
            long: true,
            kept: Self::most_kept(classes, dtype, limits, KD_KL_LONG.threads),
        }
    }

    /// The chunks that a thread keeps if its block takes as much shared memory as there is.
    fn most_kept(classes: usize, dtype: GpuDType, limits: Limits, threads: u32) -> u32 {
        let chunks = classes.div_ceil(CHUNK / dtype.bytes());
        let room = (limits.shared_per_block as usize).saturating_sub(REDUCTIONS);
        let most = room / Self::bytes(threads);
        chunks.div_ceil(threads as usize).min(most) as u32
    }

    /// Bytes that a block of `threads` threads keeps if each thread keeps one chunk of both rows.
    const fn bytes(threads: u32) -> usize {
        2 * CHUNK * threads as usize
    }

    /// Bytes of dynamic shared memory of a block.
    fn shared(&self) -> u32 {
        self.kept * Self::bytes(self.family().threads) as u32
    }

    fn family(&self) -> &'static ByDType<Arguments> {
        if self.long { &KD_KL_LONG } else { &KD_KL }
    }
}

/// How KD runs: a launch with a block for a row, after one for the rows' shares where rows have
/// weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Plan {
    dtype: GpuDType,
    rows: u32,
    /// That are compared.
    classes: u32,
    columns: [u32; 2],
    temperature: f64,
    gradient_factor: f64,
    kernel: Choice,
    shares: Option<RowShares>,
    partials: Region,
}

/// Which kernel runs.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Choice {
    /// KL(p‖q) with one temperature, of rows that have no weights and are compared as a whole.
    Forward(RowTile),
    /// Anything else. It keeps `kept` chunks of a thread: the three readings take several times as
    /// long as memory does, so blocks of short rows need not be small.
    Divergence {
        kind: Kind,
        teacher_temperature: f64,
        kept: u32,
    },
    /// The teacher is a list of classes.
    TopK(List),
}

impl Plan {
    pub(crate) fn new(
        loss: &Logits,
        problem: &Problem,
        dtype: GpuDType,
        limits: Limits,
        layout: &mut Layout,
    ) -> Result<Self> {
        let (shapes, classes) = (problem.shapes(), problem.classes());
        let is_plain =
            !shapes.row_weights && [shapes.student_dim, shapes.teacher_dim] == [classes; 2];
        Ok(Plan {
            dtype,
            rows: grid_size("rows", shapes.rows)?,
            classes: grid_size("classes", classes)?,
            columns: [
                grid_size("student_dim", shapes.student_dim)?,
                grid_size("teacher_dim", shapes.teacher_dim)?,
            ],
            temperature: loss.student_temperature,
            gradient_factor: if shapes.row_weights {
                problem.upstream() * problem.part() * loss.student_temperature
            } else {
                problem.upstream() * loss.student_temperature / problem.mean_rows() as f64
            },
            kernel: match (shapes.top_k, Kind::of(loss, is_plain)) {
                (Some(k), _) => Choice::TopK(List::new(loss, [classes, k], dtype, limits)?),
                (None, None) => Choice::Forward(RowTile::new(classes, dtype, limits)),
                (None, Some(kind)) => Choice::Divergence {
                    kind,
                    teacher_temperature: loss.teacher_temperature,
                    kept: RowTile::most_kept(classes, dtype, limits, KD_DIVERGENCE.threads),
                },
            },
            shares: RowShares::new(shapes, layout)?,
            partials: layout.push::<f64>(&[shapes.rows])?,
        })
    }

    /// Launches its pass, after that of the rows' shares where rows have weights.
    pub(crate) fn launch(&self, launcher: &mut impl Launcher, at: &Addresses) -> Result<()> {
        if let Some(shares) = self.shares {
            shares.launch(launcher, at)?;
        }
        let t = self.temperature;
        let rows = if self.shares.is_some() {
            1.0
        } else {
            f64::from(self.rows)
        };
        let grid = [self.rows, 1, 1];
        let (loss_factor, gradient_factor) = (t * t / rows, self.gradient_factor as f32);
        let inverse_temperature = (1.0 / t) as f32;
        let partials = self.partials.at(at.workspace);
        let counter = Layout::counter(0).at(at.workspace);
        let row_shares = self.shares.map_or(0, |shares| shares.at(at));
        let [student_columns, teacher_columns] = self.columns;
        match self.kernel {
            Choice::Forward(tile) => {
                let arguments = Arguments {
                    student: at.student,
                    teacher: at.teacher,
                    gradient: at.gradient,
                    partials,
                    value: at.value,
                    counter,
                    row_losses: at.row_losses,
                    loss_factor,
                    row_factor: t * t,
                    classes: self.classes,
                    inverse_temperature,
                    gradient_factor,
                    kept: tile.kept,
                };
                let kernel = tile.family().of(self.dtype);
                kernel.launch(launcher, grid, tile.shared(), &arguments)
            }
            Choice::Divergence {
                kind: Kind { kind, share, rest },
                teacher_temperature,
                kept,
            } => {
                let arguments = DivergenceArguments {
                    student: at.student,
                    teacher: at.teacher,
                    gradient: at.gradient,
                    partials,
                    value: at.value,
                    counter,
                    row_shares,
                    row_losses: at.row_losses,
                    loss_factor,
                    row_factor: t * t,
                    classes: self.classes,
                    student_columns,
                    teacher_columns,
                    student_inverse_temperature: inverse_temperature,
                    teacher_inverse_temperature: (1.0 / teacher_temperature) as f32,
                    gradient_factor,
                    kept,
                    kind,
                    share,
                    rest,
                };
                let shared = kept * RowTile::bytes(KD_DIVERGENCE.threads) as u32;
                let kernel = KD_DIVERGENCE.of(self.dtype);
                kernel.launch(launcher, grid, shared, &arguments)
            }
            Choice::TopK(list) => {
                let arguments = TopKArguments {
                    student: at.student,
                    ids: at.teacher_classes,
                    log_p: at.teacher,
                    gradient: at.gradient,
                    partials,
                    value: at.value,
                    counter,
                    row_shares,
                    row_losses: at.row_losses,
                    loss_factor,
                    row_factor: t * t,
                    inverse_temperature: 1.0 / t,
                    share: list.share,
                    rest: list.rest,
                    least_tail: List::LEAST_TAIL,
                    gradient_factor,
                    classes: self.classes,
                    columns: student_columns,
                    k: list.k,
                    kind: list.kind,
                    tail: list.tail.into(),
                    words: list.words,
                    kept: list.kept,
                };
                let kernel = KD_TOP_K.of(self.dtype);
                kernel.launch(launcher, grid, list.shared(), &arguments)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tile_keeps_what_fits_in_shared_memory() {
        let kept = |classes, dtype| RowTile::new(classes, dtype, Limits::HOPPER);
        // A short row is kept whole.
        for classes in [1, 10, 1000, 5 * 256 * 4] {
            let tile = kept(classes, GpuDType::F32);
            assert!(
                !tile.long && tile.shared() <= 40 * 1024,
                "{classes}: {tile:?}"
            );
            assert!(
                tile.kept as usize * 256 * 4 >= classes,
                "{classes}: {tile:?}"
            );
        }
        // A long row that fits in shared memory is kept whole too, and takes no more than it needs.
        assert_eq!(
            kept(32_000, GpuDType::BF16),
            RowTile {
                long: true,
                kept: 8
            }
        );
        // 226 KiB, in steps of 16 KiB, of 152 000 classes, which take 594 KiB.
        assert_eq!(
            kept(151_936, GpuDType::BF16),
            RowTile {
                long: true,
                kept: 14
            }
        );
        assert_eq!(
            kept(usize::MAX, GpuDType::F32),
            RowTile {
                long: true,
                kept: 14
            }
        );
        // Four blocks fit in 100, 164 or 228 KiB, with 1 KiB that the driver takes for each.
        for (kibibytes, most) in [(99, 2), (163, 4), (227, 5)] {
            let limits = Limits {
                shared_per_block: kibibytes * 1024,
                ..Limits::HOPPER
            };
            let tile = RowTile::new(5 * 256 * 4, GpuDType::F32, limits);
            assert_eq!((tile.long, tile.kept), (false, most), "{kibibytes} KiB");
        }
        for bytes in [0, 48 * 1024, 99 * 1024, 163 * 1024, 227 * 1024] {
            let limits = Limits {
                shared_per_block: bytes,
                ..Limits::HOPPER
            };
            for classes in [6000, 20_000, 151_936] {
                let shared = RowTile::new(classes, GpuDType::F32, limits).shared();
                assert!(
                    shared <= bytes.saturating_sub(REDUCTIONS as u32),
                    "{classes} in {bytes}: {shared}"
                );
            }
        }
    }
}
