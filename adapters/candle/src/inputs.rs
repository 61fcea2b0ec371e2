//! Student, teacher and labels in the form that an evaluation takes.

use candle_core::{DType, Device, Error, Result, Tensor};
#[cfg(feature = "cuda")]
use relata::Shapes;
use relata::{Problem, Spec};

use crate::error::OrCandle;

/// One matrix or two, contiguous, of one dtype on one device. The tensors have the shapes that they
/// came with.
pub(crate) struct Inputs {
    /// In the graph.
    pub(crate) student: Tensor,
    /// Outside the graph. Losses of towers may have none.
    pub(crate) teacher: Option<Tensor>,
    /// `[N]` u32, contiguous, on the same device.
    pub(crate) labels: Option<Tensor>,
    /// N and D.
    pub(crate) student_shape: [usize; 2],
    /// N and D_t, which is 0 without a teacher.
    pub(crate) teacher_shape: [usize; 2],
    /// The groups that a third dimension makes of the rows.
    groups: Option<usize>,
}

impl Inputs {
    /// # Errors
    /// Candle's own, on behalf of the loss, for ranks, dtypes and devices. relata's, for different
    /// numbers of rows; the loss checks the other sizes.
    pub(crate) fn new(student: &Tensor, teacher: &Tensor, spec: &Spec) -> Result<Self> {
        let op = spec.name;
        let (student_shape, groups) = shape(student, "student", spec)?;
        let (teacher_shape, _) = shape(teacher, "teacher", spec)?;
        same_device(student.device(), teacher.device(), op)?;
        if student.dtype() != teacher.dtype() {
            return Err(Error::DTypeMismatchBinaryOp {
                lhs: student.dtype(),
                rhs: teacher.dtype(),
                op,
            }
            .bt());
        }
        // Where both are matrices, the numbers of rows are all there is to compare.
        let matrices = student.rank() == 2 && teacher.rank() == 2;
        if !matrices && leading(student) != leading(teacher) {
            return Err(Error::ShapeMismatchBinaryOp {
                lhs: student.shape().clone(),
                rhs: teacher.shape().clone(),
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
            teacher: Some(teacher.detach().contiguous()?),
            labels: None,
            student_shape,
            teacher_shape,
            groups,
        })
    }

    /// A batch of the student's rows alone, with labels or without.
    ///
    /// # Errors
    /// Candle's own for ranks, on behalf of the loss.
    pub(crate) fn of_student(
        student: &Tensor,
        labels: Option<Tensor>,
        spec: &Spec,
    ) -> Result<Self> {
        let (student_shape, groups) = shape(student, "student", spec)?;
        Ok(Inputs {
            student: student.contiguous()?,
            teacher: None,
            labels,
            student_shape,
            teacher_shape: [student_shape[0], 0],
            groups,
        })
    }

    /// The sizes of the batch, without a queue.
    #[cfg(feature = "cuda")]
    pub(crate) fn shapes(&self) -> Shapes {
        let ([rows, dim], [_, teacher_dim]) = (self.student_shape, self.teacher_shape);
        Shapes {
            labels: self.labels.is_some(),
            ..Shapes::new(rows, dim, teacher_dim)
        }
    }

    /// `problem` with the groups of the inputs, if they have any.
    pub(crate) fn grouped(&self, problem: Problem) -> relata::Result<Problem> {
        match self.groups {
            Some(groups) => problem.with_groups(groups),
            None => Ok(problem),
        }
    }
}

/// The dimensions that count rows.
pub(crate) fn leading(tensor: &Tensor) -> Vec<usize> {
    let dims = tensor.dims();
    dims[..dims.len().saturating_sub(1)].to_vec()
}

/// Rows and their width.
pub(crate) fn rows_of(tensor: &Tensor, argument: &str, spec: &Spec) -> Result<[usize; 2]> {
    shape(tensor, argument, spec).map(|(shape, _)| shape)
}

/// Rows, their width, and the groups of rows.
fn shape(tensor: &Tensor, argument: &str, spec: &Spec) -> Result<([usize; 2], Option<usize>)> {
    let Some(rows) = spec.rows_of(tensor.dims()) else {
        let name = spec.name;
        let shape = tensor.dims2();
        let shape = shape.map_err(|error| error.context(format!("{name}: {argument}")))?;
        return Ok((shape.into(), None));
    };
    Ok(rows)
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
