//! How the rows of a batch enter a bank on a device.

use crate::bank::last_of_each;
use crate::error::Result;
use crate::gpu::arguments::kernel_arguments;
use crate::gpu::element::GpuDType;
use crate::gpu::kernels::{BANK_UPDATE, MEASURE_KEYS};
use crate::gpu::machine::Launcher;
use crate::gpu::plan::grid_size;
use crate::gpu::queue;
use crate::gpu::tuning::queue::KEYS_PER_BLOCK;
use crate::gpu::workspace::{Layout, Region};

kernel_arguments! {
    /// Mirrors `Arguments` in kernels/bank_update.cu.
    pub(crate) struct UpdateArguments {
        batch: u64,
        norms: u64,
        samples: u64,
        bank: u64,
        flag: u64,
        counter: u64,
        momentum: f64,
        rows: u32,
        dim: u32,
    }
}

/// The samples of a batch as the kernel takes them: a row that a later row of its sample replaces has
/// none.
#[allow(dead_code, reason = "for banks that live on a device")]
pub(crate) fn targets(samples: &[u32]) -> Vec<u32> {
    let last = last_of_each(samples);
    let pairs = samples.iter().zip(last);
    pairs
        .map(|(&sample, is_last)| if is_last { sample } else { u32::MAX })
        .collect()
}

/// The update of a bank by a batch of so many rows.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(dead_code, reason = "for banks that live on a device")]
pub(crate) struct UpdatePlan {
    dtype: GpuDType,
    rows: u32,
    dim: u32,
    norms: Region,
    layout: Layout,
}

#[allow(dead_code, reason = "for banks that live on a device")]
impl UpdatePlan {
    pub(crate) fn new([rows, dim]: [usize; 2], dtype: GpuDType) -> Result<Self> {
        let mut layout = Layout::new();
        Ok(UpdatePlan {
            dtype,
            rows: grid_size("rows", rows)?,
            dim: grid_size("bank_dim", dim)?,
            norms: layout.push::<f64>(&[rows])?,
            layout,
        })
    }

    /// Bytes of the workspace, as of [`Plan::workspace_bytes`](crate::gpu::plan::Plan::workspace_bytes).
    pub(crate) fn workspace_bytes(&self) -> usize {
        self.layout.bytes()
    }

    /// Launches both passes: `batch`, `[B, D]`, the [`targets`] of its samples, `[B]` u32, and `bank`,
    /// `[n_data, D]` f32, are addresses.
    pub(crate) fn launch(
        &self,
        launcher: &mut impl Launcher,
        [batch, samples, bank]: [u64; 3],
        momentum: f64,
        workspace: u64,
    ) -> Result<()> {
        let norms = self.norms.at(workspace);
        let counter = Layout::counter(0).at(workspace);
        let flag = Layout::counter(1).at(workspace);
        let grid = [self.rows.div_ceil(KEYS_PER_BLOCK), 1, 1];
        let measure = queue::Arguments::of_norms(batch, norms, flag, [self.rows, self.dim]);
        MEASURE_KEYS
            .of(self.dtype)
            .launch(launcher, grid, 0, &measure)?;
        let arguments = UpdateArguments {
            batch,
            norms,
            samples,
            bank,
            flag,
            counter,
            momentum,
            rows: self.rows,
            dim: self.dim,
        };
        BANK_UPDATE
            .of(self.dtype)
            .launch(launcher, grid, 0, &arguments)
    }
}

#[cfg(all(test, feature = "emulator"))]
mod tests;
