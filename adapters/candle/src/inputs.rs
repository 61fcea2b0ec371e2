//! Student and teacher as an evaluation takes them.

use candle_core::{DType, Error, Result, Tensor};

/// Two matrices, contiguous, of one dtype on one device.
pub(crate) struct Inputs {
    /// Part of the graph.
    pub(crate) student: Tensor,
    /// Not part of it.
    pub(crate) teacher: Tensor,
    /// N and D.
    pub(crate) student_shape: [usize; 2],
    /// N and D_t.
    pub(crate) teacher_shape: [usize; 2],
}

impl Inputs {
    /// # Errors
    /// Candle's own, on behalf of `op`: ranks, dtypes, devices. Sizes are relata's to check.
    pub(crate) fn new(student: &Tensor, teacher: &Tensor, op: &'static str) -> Result<Self> {
        let [student_shape, teacher_shape] =
            [student.dims2()?, teacher.dims2()?].map(<[_; 2]>::from);
        same_device(student, teacher, op)?;
        if student.dtype() != teacher.dtype() {
            return Err(Error::DTypeMismatchBinaryOp {
                lhs: student.dtype(),
                rhs: teacher.dtype(),
                op,
            }
            .bt());
        }
        Ok(Inputs {
            student: student.contiguous()?,
            teacher: teacher.detach().contiguous()?,
            student_shape,
            teacher_shape,
        })
    }
}

/// Refuses tensors on different devices.
fn same_device(student: &Tensor, teacher: &Tensor, op: &'static str) -> Result<()> {
    if student.device().same_device(teacher.device()) {
        return Ok(());
    }
    Err(Error::DeviceMismatchBinaryOp {
        lhs: student.device().location(),
        rhs: teacher.device().location(),
        op,
    }
    .bt())
}

/// The error of a dtype that has no kernels on the device at hand.
pub(crate) fn unsupported(dtype: DType, op: &'static str) -> Error {
    Error::UnsupportedDTypeForOp(dtype, op).bt()
}
