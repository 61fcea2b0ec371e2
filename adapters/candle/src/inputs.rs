//! Student and teacher in the form that an evaluation takes.

use candle_core::{DType, Device, Error, Result, Tensor};

use crate::error::OrCandle;

/// Two matrices, contiguous, of one dtype on one device.
pub(crate) struct Inputs {
    /// In the graph.
    pub(crate) student: Tensor,
    /// Outside the graph.
    pub(crate) teacher: Tensor,
    /// N and D.
    pub(crate) student_shape: [usize; 2],
    /// N and D_t.
    pub(crate) teacher_shape: [usize; 2],
}

impl Inputs {
    /// # Errors
    /// Candle's own, on behalf of `op`, for ranks, dtypes and devices. relata's, for different
    /// numbers of rows; the loss checks the other sizes.
    pub(crate) fn new(student: &Tensor, teacher: &Tensor, op: &'static str) -> Result<Self> {
        let student_shape = shape(student, "student", op)?;
        let teacher_shape = shape(teacher, "teacher", op)?;
        same_device(student.device(), teacher.device(), op)?;
        if student.dtype() != teacher.dtype() {
            return Err(Error::DTypeMismatchBinaryOp {
                lhs: student.dtype(),
                rhs: teacher.dtype(),
                op,
            }
            .bt());
        }
        if student_shape[0] != teacher_shape[0] {
            return Err(relata::Error::Dimension {
                argument: "teacher rows",
                expected: student_shape[0],
                got: teacher_shape[0],
            })
            .or_candle(op);
        }
        Ok(Inputs {
            student: student.contiguous()?,
            teacher: teacher.detach().contiguous()?,
            student_shape,
            teacher_shape,
        })
    }
}

fn shape(tensor: &Tensor, argument: &str, op: &'static str) -> Result<[usize; 2]> {
    let shape = tensor.dims2();
    let shape = shape.map_err(|error| error.context(format!("{op}: {argument}")))?;
    Ok(shape.into())
}

/// Refuses tensors on different devices.
pub(crate) fn same_device(lhs: &Device, rhs: &Device, op: &'static str) -> Result<()> {
    if lhs.same_device(rhs) {
        return Ok(());
    }
    Err(Error::DeviceMismatchBinaryOp {
        lhs: lhs.location(),
        rhs: rhs.location(),
        op,
    }
    .bt())
}

/// The error of a dtype that has no kernels on this device.
pub(crate) fn unsupported(dtype: DType, op: &'static str) -> Error {
    Error::UnsupportedDTypeForOp(dtype, op).bt()
}

/// The error of a device that has no kernels at all.
pub(crate) fn no_kernels(device: &Device, op: &'static str) -> Error {
    let got = device.location();
    let expected = if cfg!(feature = "cuda") {
        "the CPU or CUDA"
    } else {
        "the CPU, or CUDA and relata-candle's feature cuda"
    };
    Error::msg(format!("{op}: expected {expected}, got {got:?}")).bt()
}
