//! KD's KL, by kernels/kd_kl.cu.

use bytemuck::{Pod, Zeroable};

use super::kernels::KD_KL;
use super::machine::Launcher;
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
    padding: u32,
}

/// One launch, a block for a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Plan {
    dtype: DType,
    rows: u32,
    classes: u32,
    temperature: f64,
    upstream: f64,
    partials: Region,
}

impl Plan {
    pub(crate) fn new(
        loss: &KdKl,
        problem: &Problem,
        dtype: DType,
        layout: &mut Layout,
    ) -> Result<Self> {
        let shapes = problem.shapes();
        Ok(Plan {
            dtype,
            rows: grid_size("rows", shapes.rows)?,
            classes: grid_size("student_dim", shapes.student_dim)?,
            temperature: loss.temperature,
            upstream: problem.upstream_factor(),
            partials: layout.push::<f64>(&[shapes.rows])?,
        })
    }

    pub(crate) fn enqueue(&self, launcher: &mut impl Launcher, at: &Addresses) -> Result<()> {
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
            padding: 0,
        };
        KD_KL
            .of(self.dtype)
            .launch(launcher, [self.rows, 1, 1], 0, &arguments)
    }
}
