//! KD's KL, by kernels/kd_kl.cu.

use bytemuck::{Pod, Zeroable};

use super::kernels::{ByDType, KD_KL, KD_KL_LONG};
use super::machine::{Launcher, Limits};
use super::plan::{Addresses, grid_size};
use super::workspace::{Layout, Region};
use crate::element::DType;
use crate::error::Result;
use crate::loss::KdKl;
use crate::problem::Problem;

/// Mirrors `Arguments` in kernels/kd_kl.cu.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(crate) struct Arguments {
    student: u64,
    teacher: u64,
    gradient: u64,
    partials: u64,
    value: u64,
    counter: u64,
    loss_factor: f64,
    classes: u32,
    inverse_temperature: f32,
    gradient_factor: f32,
    kept: u32,
}

/// How a block goes over a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tile {
    long: bool,
    /// Chunks of 16 bytes of either row that a thread keeps in shared memory from the first reading to the second.
    kept: u32,
}

impl Tile {
    const CHUNK: usize = 16;
    /// The most that a short row keeps: 40 KiB, so that it is registers, 64 a thread, that hold a multiprocessor to four
    /// blocks.
    const MOST_SHORT: usize = 5;
    /// What the kernels' reductions take beside it, rounded up.
    const REDUCTIONS: usize = 1024;

    /// Short rows go to many small blocks, which hide one another's beginnings and ends. For a long one it is bytes that
    /// count: a block takes as much shared memory as there is, so that few rows are under way at once and what does not fit
    /// is still in L2 when it is wanted again. 1024 threads, or two blocks a multiprocessor, would have as much
    /// in flight; two blocks would need twice the L2.
    fn new(classes: usize, dtype: DType, limits: Limits) -> Self {
        let chunks = classes.div_ceil(Self::CHUNK / dtype.bytes());
        let short = chunks.div_ceil(KD_KL.threads as usize);
        if short <= Self::MOST_SHORT {
            return Tile {
                long: false,
                kept: short as u32,
            };
        }
        let room = (limits.shared_per_block as usize).saturating_sub(Self::REDUCTIONS);
        let most = room / Self::bytes(KD_KL_LONG.threads);
        Tile {
            long: true,
            kept: chunks.div_ceil(KD_KL_LONG.threads as usize).min(most) as u32,
        }
    }

    /// What a block of `threads` keeps for each of `kept`: a chunk of student and teacher a thread.
    const fn bytes(threads: u32) -> usize {
        2 * Self::CHUNK * threads as usize
    }

    fn shared(&self) -> u32 {
        self.kept * Self::bytes(self.family().threads) as u32
    }

    fn family(&self) -> &'static ByDType<Arguments> {
        if self.long { &KD_KL_LONG } else { &KD_KL }
    }
}

/// One launch, a block for a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Plan {
    dtype: DType,
    rows: u32,
    classes: u32,
    temperature: f64,
    upstream: f64,
    tile: Tile,
    partials: Region,
}

impl Plan {
    pub(crate) fn new(
        loss: &KdKl,
        problem: &Problem,
        dtype: DType,
        limits: Limits,
        layout: &mut Layout,
    ) -> Result<Self> {
        let shapes = problem.shapes();
        Ok(Plan {
            dtype,
            rows: grid_size("rows", shapes.rows)?,
            classes: grid_size("student_dim", shapes.student_dim)?,
            temperature: loss.temperature,
            upstream: problem.upstream(),
            tile: Tile::new(shapes.student_dim, dtype, limits),
            partials: layout.push::<f64>(&[shapes.rows])?,
        })
    }

    pub(crate) fn launch(&self, launcher: &mut impl Launcher, at: &Addresses) -> Result<()> {
        let (t, n) = (self.temperature, f64::from(self.rows));
        let arguments = Arguments {
            student: at.student,
            teacher: at.teacher,
            gradient: at.gradient,
            partials: self.partials.at(at.workspace),
            value: at.value,
            counter: Layout::counter(0).at(at.workspace),
            loss_factor: t * t / n,
            classes: self.classes,
            inverse_temperature: (1.0 / t) as f32,
            gradient_factor: (self.upstream * t / n) as f32,
            kept: self.tile.kept,
        };
        self.tile.family().of(self.dtype).launch(
            launcher,
            [self.rows, 1, 1],
            self.tile.shared(),
            &arguments,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_what_fits_and_no_more() {
        let kept = |classes, dtype| Tile::new(classes, dtype, Limits::HOPPER);
        // All of a short row, however short.
        for classes in [1, 10, 1000, 5 * 256 * 4] {
            let tile = kept(classes, DType::F32);
            assert!(
                !tile.long && tile.shared() <= 40 * 1024,
                "{classes}: {tile:?}"
            );
            assert!(
                tile.kept as usize * 256 * 4 >= classes,
                "{classes}: {tile:?}"
            );
        }
        // All of what fits into one multiprocessor, whose blocks are then smaller than it where they can be.
        assert_eq!(
            kept(32_000, DType::BF16),
            Tile {
                long: true,
                kept: 8
            }
        );
        // 226 KiB in steps of 16 KiB of 152 000 classes, which are 594 KiB.
        assert_eq!(
            kept(151_936, DType::BF16),
            Tile {
                long: true,
                kept: 14
            }
        );
        assert_eq!(
            kept(usize::MAX, DType::F32),
            Tile {
                long: true,
                kept: 14
            }
        );
        for bytes in [0, 48 * 1024, 99 * 1024, 163 * 1024, 227 * 1024] {
            let limits = Limits {
                shared_per_block: bytes,
                ..Limits::HOPPER
            };
            for classes in [6000, 20_000, 151_936] {
                let shared = Tile::new(classes, DType::F32, limits).shared();
                assert!(
                    shared <= bytes.saturating_sub(Tile::REDUCTIONS as u32),
                    "{classes} in {bytes}: {shared}"
                );
            }
        }
    }
}
