//! [relata]'s relational distillation losses on [tch]'s tensors: differentiable, on the CPU and, with the feature `cuda`, on
//! GPUs. It shows what an adapter to a framework takes that hands out addresses and knows no operations of others.
//!
//! ```no_run
//! use tch::{Device, Kind, Tensor};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let student = Tensor::randn([64, 128], (Kind::Float, Device::Cpu)).set_requires_grad(true);
//! let teacher = Tensor::randn([64, 256], (Kind::Float, Device::Cpu));
//! let loss = relata_tch::loss(&student, &teacher, relata::Rkd::default())?;
//! loss.backward();
//! println!("{:?}", student.grad());
//! # Ok(()) }
//! ```
//!
//! - Student and teacher are matrices of one kind on one device: f64 on the CPU, f32, f16 and bf16. Views of any strides are
//!   taken; one that is not contiguous is copied first.
//! - The loss is a scalar, f64 for f64 and f32 for all others. The teacher is a constant.
//! - The gradient is multiplied by the upstream factor in the loss's type and rounded to the student's last.

#[cfg(feature = "cuda")]
mod gpu;
mod host;

use relata::{Loss, Problem, Queue, Shapes};
use tch::{Device, Kind, TchError, Tensor};

/// Why there is no loss.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Shapes or parameters that the loss does not take, or what a GPU refused.
    #[error(transparent)]
    Relata(#[from] relata::Error),
    /// What libtorch said.
    #[error(transparent)]
    Torch(#[from] TchError),
    /// A tensor that is no matrix, or of a kind or on a device without kernels.
    #[error("{argument}: expected {expected}, got {got}")]
    Unsupported {
        /// The tensor at fault.
        argument: &'static str,
        /// What it should have been.
        expected: &'static str,
        /// What it is.
        got: String,
    },
}

/// The result of a loss.
pub type Result<T> = std::result::Result<T, Error>;

/// A loss without a queue, as a scalar in the student's graph.
///
/// # Errors
/// [`Error`], naming what does not fit.
pub fn loss(student: &Tensor, teacher: &Tensor, loss: impl Into<Loss>) -> Result<Tensor> {
    let inputs = Inputs::new(student, teacher)?;
    let problem = Problem::new(loss, inputs.shapes())?;
    let evaluated = match inputs.student.device() {
        Device::Cpu => host::evaluate(&inputs, &problem)?,
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => gpu::evaluate(&inputs, &problem)?,
        device => return Err(no_kernels(device)),
    };
    evaluated.in_graph_of(student)
}

/// RRD, or InfoNCE beside a queue: `teacher` enters it when the loss says. f32, f16 or bf16 on the CPU.
///
/// # Errors
/// [`Error`], naming what does not fit; nothing has been enqueued then.
pub fn loss_with_queue(
    queue: &mut Queue<f32>,
    student: &Tensor,
    teacher: &Tensor,
    loss: impl Into<Loss>,
) -> Result<Tensor> {
    let inputs = Inputs::new(student, teacher)?;
    match inputs.student.device() {
        Device::Cpu => host::evaluate_with_queue(queue, &inputs, loss.into())?.in_graph_of(student),
        device => Err(no_kernels(device)),
    }
}

/// Two contiguous matrices of one kind on one device, outside of any graph.
struct Inputs {
    student: Tensor,
    teacher: Tensor,
    student_shape: [usize; 2],
    teacher_shape: [usize; 2],
}

impl Inputs {
    fn new(student: &Tensor, teacher: &Tensor) -> Result<Self> {
        let [student_shape, teacher_shape] =
            [shape("student", student)?, shape("teacher", teacher)?];
        let at = |tensor: &Tensor| (tensor.device(), tensor.kind());
        if at(student) != at(teacher) {
            return Err(Error::Unsupported {
                argument: "teacher",
                expected: "the student's device and kind",
                got: format!("{:?} beside {:?}", at(teacher), at(student)),
            });
        }
        if student_shape[0] != teacher_shape[0] {
            return Err(Error::Relata(relata::Error::Dimension {
                argument: "teacher rows",
                expected: student_shape[0],
                got: teacher_shape[0],
            }));
        }
        Ok(Inputs {
            student: student.f_detach()?.f_contiguous()?,
            teacher: teacher.f_detach()?.f_contiguous()?,
            student_shape,
            teacher_shape,
        })
    }

    fn shapes(&self) -> Shapes {
        let [rows, dim] = self.student_shape;
        Shapes::new(rows, dim, self.teacher_shape[1])
    }
}

fn shape(argument: &'static str, tensor: &Tensor) -> Result<[usize; 2]> {
    let sizes = tensor.size();
    let sizes: Vec<usize> = sizes.iter().filter_map(|&n| n.try_into().ok()).collect();
    sizes[..].try_into().map_err(|_| Error::Unsupported {
        argument,
        expected: "a matrix",
        got: format!("the shape {:?}", tensor.size()),
    })
}

/// A loss and its gradient `[N, D]`, f64 for f64 and f32 for all others.
struct Evaluated {
    value: Tensor,
    gradient: Tensor,
}

impl Evaluated {
    /// The loss as a function of the student that has this gradient. tch cannot be given an operation of one's own, so it is
    /// made of libtorch's: the value and a sum that is 0.
    fn in_graph_of(self, student: &Tensor) -> Result<Tensor> {
        let student = student.f_to_kind(self.value.kind())?;
        let zeros = student.f_sub(&student.f_detach()?)?;
        let zero = zeros.f_mul(&self.gradient)?.f_sum(self.value.kind())?;
        Ok(self.value.f_add(&zero)?)
    }
}

fn no_kernels(device: Device) -> Error {
    Error::Unsupported {
        argument: "student",
        expected: if cfg!(feature = "cuda") {
            "the CPU, or CUDA for a loss without a queue"
        } else {
            "the CPU, or the feature cuda"
        },
        got: format!("{device:?}"),
    }
}

fn no_such_kind(kind: Kind) -> Error {
    Error::Unsupported {
        argument: "student",
        expected: "f32, f16 or bf16, or f64 on the CPU without a queue",
        got: format!("{kind:?}"),
    }
}
