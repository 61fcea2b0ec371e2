//! The sampled family on a GPU: CRD, and RRD with a bank.
//!
//! | pass | kernel | launches |
//! |---|---|---|
//! | products of each row with its keys, in f64 | sampled_products | 1 |
//! | losses, and the coefficients of the keys | sampled_rows | 1 |
//! | the keys under their coefficients | sampled_gradient | 1 |
//! | the way back through x/‖x‖, and the loss | sampled_finish | 1 |
//! | weights of rows, losses of rows | row_shares, weigh_rows | 0 to 2 |
//!
//! A batch enters a bank on a device by `update`.
//!
//! The products, `[N, K + 1]`, are kept: the second reading of the keys needs their coefficients, and
//! forming a product again costs as much as reading it.

mod arguments;
pub(crate) mod update;

pub(crate) use self::arguments::{
    FinishArguments, GradientArguments, ProductArguments, RowArguments,
};
use super::kernels::{SAMPLED_FINISH, SAMPLED_GRADIENT, SAMPLED_PRODUCTS, SAMPLED_ROWS};
use super::machine::{Launcher, Limits};
use super::plan::{Addresses, grid_size, grid_size_y};
use super::row_shares::{RowShares, weigh};
use super::tuning::sampled::{BLOCKS, COLUMNS, LEAST_KEYS_OF_SPLIT};
use super::workspace::{Layout, Region};
use crate::error::Result;
use crate::gpu::element::GpuDType;
use crate::loss::{Crd, Sampled};
use crate::problem::Problem;

/// The kernels' `Kind`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
enum Kind {
    Nce = 0,
    Scores = 1,
    Similarities = 2,
}

/// Where the keys of a batch lie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct KeyAddresses {
    /// `[n_data, D]` f32: the banks of the student's and of the teacher's rows.
    pub(crate) banks: [u64; 2],
    /// `[N, K + 1]` u32.
    pub(crate) indices: u64,
    /// An f64 for each bank; read where the loss needs them.
    pub(crate) normalizers: [u64; 2],
}

/// What the passes are launched with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Plan {
    dtype: GpuDType,
    loss: Sampled,
    /// The factor of the gradient.
    factor: f64,
    rows: u32,
    dim: u32,
    /// K + 1
    keys: u32,
    /// n_data
    samples: usize,
    keys_of_split: u32,
    splits: u32,
    columns: u32,
    shares: Option<RowShares>,
    products: Region,
    inverse_norms: Region,
    losses: Region,
    sums: Region,
}

impl Plan {
    pub(crate) fn new(
        loss: Sampled,
        problem: &Problem,
        dtype: GpuDType,
        limits: Limits,
        layout: &mut Layout,
    ) -> Result<Self> {
        let shapes = problem.shapes();
        let (n, dim) = (shapes.rows, shapes.student_dim);
        // `Problem` lets nothing through without a bank.
        let [samples, keys] = shapes.bank.unwrap_or([1, 1]);
        // As many splits of the keys as give every multiprocessor its blocks, but none too short.
        let wanted = (BLOCKS * limits.multiprocessors as usize).div_ceil(n);
        let most = keys.div_ceil(LEAST_KEYS_OF_SPLIT);
        let keys_of_split = keys.div_ceil(wanted.clamp(1, most));
        let splits = keys.div_ceil(keys_of_split);
        let sets = loss.banks();
        let shares = RowShares::new(shapes, layout)?;
        Ok(Plan {
            dtype,
            loss,
            factor: match shares {
                Some(_) => problem.upstream(),
                None => problem.upstream() / n as f64,
            },
            rows: grid_size("rows", n)?,
            dim: grid_size("student_dim", dim)?,
            keys: grid_size("indices", keys)?,
            samples,
            keys_of_split: grid_size("indices", keys_of_split)?,
            splits: grid_size_y("indices", keys, keys_of_split)?,
            columns: grid_size_y("student_dim", dim, COLUMNS)?,
            shares,
            products: layout.push::<f64>(&[sets, n, keys])?,
            inverse_norms: layout.push::<f64>(&[sets, n])?,
            losses: layout.push::<f64>(&[sets, n])?,
            sums: layout.push::<f64>(&[splits, n, dim])?,
        })
    }

    /// Launches all passes.
    pub(crate) fn launch(&self, launcher: &mut impl Launcher, at: &Addresses) -> Result<()> {
        let region = |region: Region| region.at(at.workspace);
        if let Some(shares) = &self.shares {
            shares.launch(launcher, at)?;
        }
        let sets = self.loss.banks() as u32;
        let arguments = ProductArguments {
            rows: [at.student, at.teacher],
            banks: at.keys.banks,
            indices: at.keys.indices,
            products: region(self.products),
            inverse_norms: region(self.inverse_norms),
            row_count: self.rows,
            dim: self.dim,
            keys: self.keys,
            keys_of_split: self.keys_of_split,
        };
        SAMPLED_PRODUCTS.of(self.dtype).launch(
            launcher,
            [self.rows, self.splits, sets],
            0,
            &arguments,
        )?;
        self.launch_rows(launcher, at)?;
        let arguments = GradientArguments {
            coefficients: region(self.products),
            bank: at.keys.banks[0],
            indices: at.keys.indices,
            sums: region(self.sums),
            rows: self.rows,
            dim: self.dim,
            keys: self.keys,
            keys_of_split: self.keys_of_split,
        };
        let grid = [self.rows, self.splits, self.columns];
        SAMPLED_GRADIENT.launch(launcher, grid, 0, &arguments)?;
        let arguments = FinishArguments {
            rows: at.student,
            inverse_norms: region(self.inverse_norms),
            sums: region(self.sums),
            losses: region(self.losses),
            gradient: at.gradient,
            value: at.value,
            counter: Layout::counter(0).at(at.workspace),
            factor: self.factor,
            row_count: self.rows,
            dim: self.dim,
            splits: self.splits,
            width: sets,
        };
        let grid = [self.rows, 1, 1];
        SAMPLED_FINISH
            .of(self.dtype)
            .launch(launcher, grid, 0, &arguments)?;
        let losses = region(self.losses);
        weigh(
            launcher,
            at,
            self.shares,
            losses,
            [self.rows, self.dim],
            sets,
            false,
        )
    }

    fn launch_rows(&self, launcher: &mut impl Launcher, at: &Addresses) -> Result<()> {
        let (kind, temperature, score_temperature) = match self.loss {
            Sampled::Nce { temperature } => (Kind::Nce, [temperature; 2], None),
            Sampled::Teacher {
                student_temperature,
                teacher_temperature,
                score_temperature,
            } => {
                let kind = match score_temperature {
                    Some(_) => Kind::Scores,
                    None => Kind::Similarities,
                };
                let temperatures = [student_temperature, teacher_temperature];
                (kind, temperatures, score_temperature)
            }
        };
        let arguments = RowArguments {
            products: self.products.at(at.workspace),
            normalizers: at.keys.normalizers,
            losses: self.losses.at(at.workspace),
            temperature,
            score_temperature: score_temperature.unwrap_or(1.0),
            noise: f64::from(self.keys - 1) / self.samples as f64,
            epsilon: Crd::EPSILON,
            rows: self.rows,
            keys: self.keys,
            kind: kind as u32,
            padding: 0,
        };
        SAMPLED_ROWS.launch(launcher, [self.rows, 1, 1], 0, &arguments)
    }
}
