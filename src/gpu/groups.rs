//! Groups of rows: the passes of a group are launched for each of them, one after the other, on one
//! workspace. A last pass takes the mean of the losses, by kernels/mean_of_groups.cu.

use super::arguments::kernel_arguments;
use super::element::GpuDType;
use super::kernels::MEAN_OF_GROUPS;
use super::machine::Launcher;
use super::plan::{Addresses, grid_size};
use super::workspace::{Layout, Region};
use crate::error::Result;
use crate::problem::Problem;

kernel_arguments! {
    /// Mirrors `Arguments` in kernels/mean_of_groups.cu.
    pub(crate) struct Arguments {
        values: u64,
        value: u64,
        groups: u32,
        width: u32,
    }
}

/// Where the groups and their results lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Groups {
    count: u32,
    /// The loss and its terms.
    width: u32,
    /// `[count, width]` f32
    values: Region,
    /// Bytes from one group to the next.
    student_stride: u64,
    teacher_stride: u64,
    gradient_stride: u64,
}

impl Groups {
    /// The groups of `problem`, if it has more than one.
    pub(crate) fn new(
        problem: &Problem,
        dtype: GpuDType,
        layout: &mut Layout,
    ) -> Result<Option<Self>> {
        if problem.groups() == 1 {
            return Ok(None);
        }
        let shapes = problem.of_group().shapes();
        let width = 1 + problem.spec().terms.len();
        let stride = |dim: usize, bytes: usize| {
            let elements = shapes.rows.saturating_mul(dim);
            elements.saturating_mul(bytes) as u64
        };
        Ok(Some(Groups {
            count: grid_size("groups", problem.groups())?,
            width: width as u32,
            values: layout.push::<f32>(&[problem.groups(), width])?,
            student_stride: stride(shapes.student_dim, dtype.bytes()),
            teacher_stride: stride(shapes.teacher_dim, dtype.bytes()),
            gradient_stride: stride(shapes.student_dim, size_of::<f32>()),
        }))
    }

    /// Where each group and its results lie, in order.
    pub(crate) fn addresses(&self, at: &Addresses) -> impl Iterator<Item = Addresses> {
        let (groups, at) = (*self, *at);
        // The addresses of a plan without memory are 0, and of a shape that no memory holds they
        // wrap: nothing reads there.
        let nth = |start: u64, nth: u32, stride: u64| {
            start.wrapping_add(u64::from(nth).wrapping_mul(stride))
        };
        (0..self.count).map(move |group| Addresses {
            student: nth(at.student, group, groups.student_stride),
            teacher: nth(at.teacher, group, groups.teacher_stride),
            gradient: nth(at.gradient, group, groups.gradient_stride),
            value: nth(
                groups.values.at(at.workspace),
                group,
                u64::from(groups.width) * size_of::<f32>() as u64,
            ),
            ..at
        })
    }

    /// Takes the mean of the groups' values.
    pub(crate) fn launch_mean(&self, launcher: &mut impl Launcher, at: &Addresses) -> Result<()> {
        let arguments = Arguments {
            values: self.values.at(at.workspace),
            value: at.value,
            groups: self.count,
            width: self.width,
        };
        MEAN_OF_GROUPS.launch(launcher, [self.width, 1, 1], 0, &arguments)
    }
}
