//! RRD, by kernels/attention_*.cu and kernels/rrd.cu.

use super::attention::{self, Keys};
use super::kernels::RRD;
use super::machine::{Launcher, Limits};
use super::plan::Addresses;
use super::workspace::Layout;
use crate::element::DType;
use crate::error::Result;
use crate::loss::Rrd;
use crate::problem::Problem;

/// Rows, attention of student and teacher to the queue, loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Plan {
    attention: attention::Plan,
}

impl Plan {
    pub(crate) fn new(
        loss: &Rrd,
        problem: &Problem,
        dtype: DType,
        limits: Limits,
        layout: &mut Layout,
    ) -> Result<Self> {
        let temperatures = [loss.student_temperature, loss.teacher_temperature];
        let (keys, normalize) = (Keys::QueueBoth, loss.normalize);
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
        RRD.of(dtype).launch(launcher, [rows, 1, 1], 0, &arguments)
    }
}
