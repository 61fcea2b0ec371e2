//! InfoNCE, by kernels/attention_*.cu and kernels/info_nce.cu.

use super::attention::{self, Keys};
use super::kernels::INFO_NCE;
use super::machine::{Launcher, Limits};
use super::plan::Addresses;
use super::workspace::Layout;
use crate::element::DType;
use crate::error::Result;
use crate::loss::InfoNce;
use crate::problem::Problem;

/// Rows, the student's attention to the keys that are not its own, loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Plan {
    attention: attention::Plan,
}

impl Plan {
    pub(crate) fn new(
        loss: &InfoNce,
        problem: &Problem,
        dtype: DType,
        limits: Limits,
        layout: &mut Layout,
    ) -> Result<Self> {
        let keys = match problem.shapes().queue {
            Some(_) => Keys::Queue,
            None => Keys::Others,
        };
        let (normalize, temperatures) = (loss.normalize, [loss.temperature; 2]);
        Ok(Plan {
            attention: attention::Plan::new(
                problem,
                dtype,
                limits,
                keys,
                normalize,
                temperatures,
                layout,
            )?,
        })
    }

    pub(crate) fn launch(&self, launcher: &mut impl Launcher, at: &Addresses) -> Result<()> {
        self.attention.launch(launcher, at)?;
        let (dtype, rows) = self.attention.batch();
        let arguments = self.attention.finish(at);
        INFO_NCE
            .of(dtype)
            .launch(launcher, [rows, 1, 1], 0, &arguments)
    }
}
