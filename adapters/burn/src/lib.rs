//! [relata]'s relational distillation losses on burn's tensors: differentiable, on any of its devices. They are computed by
//! relata's path for CPUs: on another device the embeddings travel to the host and their gradient back, and the device waits.
//!
//! ```
//! use burn_tensor::{Device, Distribution, Tensor}; // burn::tensor, in a program
//!
//! # fn main() -> Result<(), relata_burn::Error> {
//! let device = Device::flex().autodiff();
//! let student = Tensor::<2>::random([16, 32], Distribution::Default, &device).require_grad();
//! let teacher = Tensor::<2>::random([16, 64], Distribution::Default, &device);
//! let loss = relata_burn::loss(student.clone(), teacher, relata::Rkd::default())?;
//! let gradients = loss.backward();
//! assert_eq!(student.grad(&gradients).unwrap().dims(), [16, 32]);
//! # Ok(()) }
//! ```
//!
//! - Student and teacher are of one dtype: f64, f32, f16 or bf16. The teacher is a constant.
//! - The loss is a tensor of one element, f64 for f64 and f32 for all others.
//! - The gradient is multiplied by the upstream factor in the loss's type and rounded to the student's last.

use burn_tensor::{DType, DataError, FloatDType, Tensor, TensorData, bf16, f16};
use relata::{Cpu, Element, Evaluation, Loss, Queue, Rows};

/// Why there is no loss.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Shapes or parameters that the loss does not take.
    #[error(transparent)]
    Relata(#[from] relata::Error),
    /// A tensor that could not be read.
    #[error("{argument}: expected to read it, got {why}")]
    Unreadable {
        /// The tensor at fault.
        argument: &'static str,
        /// What burn says.
        why: String,
    },
    /// A tensor of another dtype than it should be.
    #[error("{argument}: expected {expected}, got {got:?}")]
    DType {
        /// The tensor at fault.
        argument: &'static str,
        /// What it should have been.
        expected: String,
        /// What it is.
        got: DType,
    },
}

/// The result of a loss.
pub type Result<T> = std::result::Result<T, Error>;

/// A loss without a queue, in the student's graph.
///
/// # Errors
/// [`Error`], naming what does not fit.
pub fn loss(student: Tensor<2>, teacher: Tensor<2>, loss: impl Into<Loss>) -> Result<Tensor<1>> {
    let (loss, inputs) = (loss.into(), Inputs::read(&student, teacher)?);
    let gradient = match inputs.student.dtype() {
        DType::F64 => inputs.evaluate::<f64>(None, loss)?,
        DType::F32 => inputs.evaluate::<f32>(None, loss)?,
        DType::F16 => inputs.evaluate::<f16>(None, loss)?,
        DType::BF16 => inputs.evaluate::<bf16>(None, loss)?,
        got => return Err(no_such_dtype(got)),
    };
    Ok(gradient.in_graph_of(student))
}

/// RRD, or InfoNCE beside a queue, which `teacher` enters when the loss says: f32, f16 or bf16.
///
/// # Errors
/// [`Error`], naming what does not fit; nothing has been enqueued then.
pub fn loss_with_queue(
    queue: &mut Queue<f32>,
    student: Tensor<2>,
    teacher: Tensor<2>,
    loss: impl Into<Loss>,
) -> Result<Tensor<1>> {
    let (loss, inputs) = (loss.into(), Inputs::read(&student, teacher)?);
    let gradient = match inputs.student.dtype() {
        DType::F32 => inputs.evaluate::<f32>(Some(queue), loss)?,
        DType::F16 => inputs.evaluate::<f16>(Some(queue), loss)?,
        DType::BF16 => inputs.evaluate::<bf16>(Some(queue), loss)?,
        got => return Err(no_such_dtype(got)),
    };
    Ok(gradient.in_graph_of(student))
}

/// Student and teacher on the host.
struct Inputs {
    student: TensorData,
    teacher: TensorData,
    student_shape: [usize; 2],
    teacher_shape: [usize; 2],
}

impl Inputs {
    fn read(student: &Tensor<2>, teacher: Tensor<2>) -> Result<Self> {
        let [student_shape, teacher_shape] = [student.dims(), teacher.dims()];
        if student.dtype() != teacher.dtype() {
            return Err(Error::DType {
                argument: "teacher",
                expected: format!("the student's, {:?}", student.dtype()),
                got: teacher.dtype(),
            });
        }
        let unreadable = |argument| {
            move |why: burn_tensor::ExecutionError| Error::Unreadable {
                argument,
                why: format!("{why:?}"),
            }
        };
        Ok(Inputs {
            student: student.try_to_data().map_err(unreadable("student"))?,
            teacher: teacher.try_into_data().map_err(unreadable("teacher"))?,
            student_shape,
            teacher_shape,
        })
    }

    fn rows<T: Element + burn_tensor::Element>(&self) -> Result<[Rows<'_, T>; 2]> {
        let unreadable = |argument| {
            move |why: DataError| Error::Unreadable {
                argument,
                why: why.to_string(),
            }
        };
        let student = self.student.as_slice().map_err(unreadable("student"))?;
        let teacher = self.teacher.as_slice().map_err(unreadable("teacher"))?;
        Ok([
            Rows::new(student, self.student_shape)?,
            Rows::new(teacher, self.teacher_shape)?,
        ])
    }

    fn evaluate<T>(&self, queue: Option<&mut Queue<T::Real>>, loss: Loss) -> Result<Gradient>
    where
        T: Element<Real: burn_tensor::Element> + burn_tensor::Element,
    {
        let [student, teacher] = self.rows::<T>()?;
        Ok(self.gradient(loss.evaluate(&Cpu, student, teacher, queue)?))
    }

    fn gradient<R: relata::Real + burn_tensor::Element>(
        &self,
        evaluation: Evaluation<R>,
    ) -> Gradient {
        Gradient {
            dtype: if R::DTYPE == relata::DType::F64 {
                FloatDType::F64
            } else {
                FloatDType::F32
            },
            value: TensorData::new(vec![R::from_f64(evaluation.loss)], [1]),
            gradient: TensorData::new(evaluation.gradient, self.student_shape),
        }
    }
}

/// A loss and its gradient `[N, D]`.
struct Gradient {
    dtype: FloatDType,
    value: TensorData,
    gradient: TensorData,
}

impl Gradient {
    /// The loss as a function of the student that has this gradient: the value and a sum that is 0. Made of burn's operations,
    /// so that one definition is for all of its backends.
    fn in_graph_of(self, student: Tensor<2>) -> Tensor<1> {
        let device = student.device();
        let student = student.cast(self.dtype);
        let zeros = student.clone() - student.detach();
        let gradient = Tensor::<2>::from_data(self.gradient, (&device, self.dtype.into()));
        Tensor::<1>::from_data(self.value, (&device, self.dtype.into())) + (zeros * gradient).sum()
    }
}

fn no_such_dtype(got: DType) -> Error {
    Error::DType {
        argument: "student",
        expected: "f32, f16 or bf16, or f64 without a queue".to_owned(),
        got,
    }
}
