//! [relata]'s relational distillation losses on burn's tensors: differentiable, on any of its
//! devices. relata computes them on the CPU. From another device the embeddings are copied to the
//! host and the gradient is copied back, and the device waits.
//!
//! ```
//! use burn_tensor::{Device, Distribution, Tensor}; // burn::tensor, in a program
//!
//! # fn main() -> Result<(), relata_burn::Error> {
//! let device = Device::flex().autodiff();
//! let student = Tensor::<2>::random([16, 32], Distribution::Default, &device).require_grad();
//! let teacher = Tensor::<2>::random([16, 64], Distribution::Default, &device);
//! let loss = relata_burn::loss(&student, &teacher, relata::Rkd::default())?;
//! let gradients = loss.backward();
//! assert_eq!(student.grad(&gradients).unwrap().dims(), [16, 32]);
//! # Ok(()) }
//! ```
//!
//! - Student `[N, D]` and teacher `[N, D_t]` have one dtype: f64, f32, f16 or bf16. The teacher is
//!   a constant.
//! - Losses of pairs and triples also take `[B, N, D]` and `[B, N, D_t]`: B groups of N rows, for
//!   example the patches of B images. Rows of different groups are not compared, and the loss is the
//!   mean of the groups' losses: see [`Problem::with_groups`]. Logits `[B, T, V]`, of any number of
//!   leading dimensions, are B · T rows. Losses of keys take matrices alone.
//! - The loss is a tensor of one element, f64 for f64 and f32 for all others.
//! - The upstream factor multiplies the gradient in the loss's type. The rounding to the student's
//!   type comes last.
//! - [`clip`] and [`siglip`] train two towers, and both get a gradient. [`sup_con`] trains all rows of a
//!   batch.
//! - [`kd_kl_weighted`] takes weights of rows and lists of the teacher's most likely classes.
//!   [`kd_kl_rows`] returns the loss of each row.
//! - Functions that end in `_scale` also learn the scale, 1/τ, and [`siglip_with_scale`] the bias.

mod rows;
mod scale;
mod towers;

use burn_tensor::{DType, DataError, FloatDType, Tensor, TensorData, bf16, f16};
use relata::{
    Batch, Cpu, Element, Evaluation, Family, Loss, Problem, Queue, Rows, Shapes,
    evaluate_with_queue,
};

pub use relata::Terms;

pub use self::rows::{Teacher, kd_kl_rows, kd_kl_weighted};
pub use self::scale::{info_nce_with_queue_and_scale, info_nce_with_scale, rrd_with_scale};
pub use self::towers::{
    clip, clip_with_labels, clip_with_scale, siglip, siglip_with_scale, sup_con, sup_con_with_scale,
};

/// Why there is no loss.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Shapes, parameters or a queue that the loss does not accept.
    #[error(transparent)]
    Relata(#[from] relata::Error),
    /// A tensor that could not be read.
    #[error("{argument}: expected to read it, got {why}")]
    Unreadable {
        /// The tensor at fault.
        argument: &'static str,
        /// burn's message.
        why: String,
    },
    /// A tensor of the wrong dtype.
    #[error("{argument}: expected {expected}, got {got:?}")]
    DType {
        /// The tensor at fault.
        argument: &'static str,
        /// What was expected.
        expected: String,
        /// What came.
        got: DType,
    },
    /// A tensor of a shape that the loss has no meaning for, or not of the student's leading
    /// dimensions.
    #[error("{argument}: expected {expected}, got the shape {got:?}")]
    Shape {
        /// The tensor at fault.
        argument: &'static str,
        /// What was expected.
        expected: String,
        /// What came.
        got: Vec<usize>,
    },
    /// A tensor on another device than the one that it is to be joined with.
    #[error("{argument}: expected {expected}, got {got}")]
    Device {
        /// The tensor at fault.
        argument: &'static str,
        /// What was expected.
        expected: String,
        /// What came.
        got: String,
    },
}

/// The result of a loss.
pub type Result<T> = std::result::Result<T, Error>;

/// A loss without a queue, or InfoNCE within the batch, in the student's graph.
///
/// # Errors
/// [`Error`], naming what does not fit.
pub fn loss<const R: usize>(
    student: &Tensor<R>,
    teacher: &Tensor<R>,
    loss: impl Into<Loss>,
) -> Result<Tensor<1>> {
    Ok(loss_and_terms(student, teacher, loss)?.0)
}

/// A loss compared with the keys in `queue`: RRD or InfoNCE, of f32, f16 or bf16. The teacher's
/// rows enter the queue when the loss's `enqueue` says: see [`Loss::evaluate_with_queue`].
///
/// # Errors
/// [`Error`], naming what does not fit. Nothing has been enqueued then.
pub fn loss_with_queue(
    student: &Tensor<2>,
    teacher: &Tensor<2>,
    queue: &mut Queue<f32>,
    loss: impl Into<Loss>,
) -> Result<Tensor<1>> {
    Ok(loss_and_terms_with_queue(student, teacher, queue, loss)?.0)
}

/// As [`loss`], with the loss's named [`Terms`] from the same evaluation. They cost nothing: the
/// CPU has computed them with the loss.
///
/// # Errors
/// As [`loss`].
pub fn loss_and_terms<const R: usize>(
    student: &Tensor<R>,
    teacher: &Tensor<R>,
    loss: impl Into<Loss>,
) -> Result<(Tensor<1>, Terms)> {
    let loss = loss.into();
    let inputs = Inputs::read(student, Some(teacher), &loss)?;
    inputs.fused(student, &|shapes| Problem::new(loss, shapes))
}

/// As [`loss_with_queue`], with the loss's named [`Terms`] from the same evaluation.
///
/// # Errors
/// As [`loss_with_queue`].
pub fn loss_and_terms_with_queue(
    student: &Tensor<2>,
    teacher: &Tensor<2>,
    queue: &mut Queue<f32>,
    loss: impl Into<Loss>,
) -> Result<(Tensor<1>, Terms)> {
    let loss = loss.into();
    let inputs = Inputs::read(student, Some(teacher), &loss)?;
    inputs.fused_with_queue(student, queue, &|shapes| Problem::new(loss, shapes))
}

/// `loss.forward(student, teacher)`, in the manner of burn's own losses.
///
/// ```
/// # use burn_tensor::{Device, Distribution, Tensor};
/// use relata_burn::Forward;
///
/// # fn main() -> Result<(), relata_burn::Error> {
/// # let device = Device::flex();
/// # let student = Tensor::<2>::random([16, 32], Distribution::Default, &device);
/// # let teacher = Tensor::<2>::random([16, 32], Distribution::Default, &device);
/// let criterion = relata::Rkd::CLASSIFICATION;
/// let loss = criterion.forward(student, teacher)?;
/// # assert_eq!(loss.dims(), [1]);
/// # Ok(()) }
/// ```
pub trait Forward: Into<Loss> + Copy {
    /// As [`loss()`].
    ///
    /// # Errors
    /// As [`loss()`].
    fn forward<const R: usize>(&self, student: Tensor<R>, teacher: Tensor<R>) -> Result<Tensor<1>> {
        loss(&student, &teacher, *self)
    }

    /// As [`loss_with_queue`].
    ///
    /// # Errors
    /// As [`loss_with_queue`].
    fn forward_with_queue(
        &self,
        student: Tensor<2>,
        teacher: Tensor<2>,
        queue: &mut Queue<f32>,
    ) -> Result<Tensor<1>> {
        loss_with_queue(&student, &teacher, queue, *self)
    }
}

impl<L: Into<Loss> + Copy> Forward for L {}

/// The problem of a batch of some shapes.
type ProblemOf<'a> = &'a dyn Fn(Shapes) -> relata::Result<Problem>;

/// Student, teacher and labels on the host.
struct Inputs {
    student: TensorData,
    /// Losses of towers may have none.
    teacher: Option<TensorData>,
    labels: Option<Vec<u32>>,
    student_shape: [usize; 2],
    /// Of width 0 without a teacher.
    teacher_shape: [usize; 2],
    /// The groups that a third dimension makes of the rows.
    groups: Option<usize>,
}

impl Inputs {
    fn read<const R: usize>(
        student: &Tensor<R>,
        teacher: Option<&Tensor<R>>,
        loss: &Loss,
    ) -> Result<Self> {
        let (student_shape, groups) = matrix("student", &student.dims(), loss)?;
        let unreadable = |argument| {
            move |why: burn_tensor::ExecutionError| Error::Unreadable {
                argument,
                why: format!("{why:?}"),
            }
        };
        let read =
            |argument, tensor: &Tensor<R>| tensor.try_to_data().map_err(unreadable(argument));
        let Some(teacher) = teacher else {
            return Ok(Inputs {
                student: read("student", student)?,
                teacher: None,
                labels: None,
                student_shape,
                teacher_shape: [student_shape[0], 0],
                groups,
            });
        };
        let (teacher_shape, _) = matrix("teacher", &teacher.dims(), loss)?;
        // Of matrices relata compares the numbers of rows.
        if R > 2 && student.dims()[..R - 1] != teacher.dims()[..R - 1] {
            return Err(Error::Shape {
                argument: "teacher",
                expected: format!("the leading dimensions of {:?}", student.dims()),
                got: teacher.dims().to_vec(),
            });
        }
        if student.dtype() != teacher.dtype() {
            return Err(Error::DType {
                argument: "teacher",
                expected: format!("the student's, {:?}", student.dtype()),
                got: teacher.dtype(),
            });
        }
        Ok(Inputs {
            student: read("student", student)?,
            teacher: Some(read("teacher", teacher)?),
            labels: None,
            student_shape,
            teacher_shape,
            groups,
        })
    }

    /// The loss in the graph of `student`, of which these are the inputs, and its terms.
    fn fused<const R: usize>(
        &self,
        student: &Tensor<R>,
        problem: ProblemOf<'_>,
    ) -> Result<(Tensor<1>, Terms)> {
        let evaluated = match self.student.dtype() {
            DType::F64 => self.evaluate::<f64>(None, problem)?,
            DType::F32 => self.evaluate::<f32>(None, problem)?,
            DType::F16 => self.evaluate::<f16>(None, problem)?,
            DType::BF16 => self.evaluate::<bf16>(None, problem)?,
            got => return Err(no_such_dtype(got)),
        };
        Ok(evaluated.in_graph_of(student))
    }

    /// The same against the keys in `queue`.
    fn fused_with_queue(
        &self,
        student: &Tensor<2>,
        queue: &mut Queue<f32>,
        problem: ProblemOf<'_>,
    ) -> Result<(Tensor<1>, Terms)> {
        let evaluated = match self.student.dtype() {
            DType::F32 => self.evaluate::<f32>(Some(queue), problem)?,
            DType::F16 => self.evaluate::<f16>(Some(queue), problem)?,
            DType::BF16 => self.evaluate::<bf16>(Some(queue), problem)?,
            got => return Err(no_such_dtype(got)),
        };
        Ok(evaluated.in_graph_of(student))
    }

    fn batch<T: Element + burn_tensor::Element>(&self) -> Result<Batch<'_, T>> {
        let unreadable = |argument| {
            move |why: DataError| Error::Unreadable {
                argument,
                why: why.to_string(),
            }
        };
        let student = self.student.as_slice().map_err(unreadable("student"))?;
        let student = Rows::new(student, self.student_shape)?;
        let batch = match &self.teacher {
            None => Batch::of_student(student),
            Some(teacher) => {
                let teacher = teacher.as_slice().map_err(unreadable("teacher"))?;
                Batch::new(student, Rows::new(teacher, self.teacher_shape)?)
            }
        };
        Ok(Batch {
            labels: self.labels.as_deref(),
            ..batch
        })
    }

    fn evaluate<T>(
        &self,
        queue: Option<&mut Queue<T::Real>>,
        problem: ProblemOf<'_>,
    ) -> Result<Evaluated>
    where
        T: Element<Real: burn_tensor::Element> + burn_tensor::Element,
    {
        let batch = self.batch::<T>()?;
        let evaluation = match queue {
            None => {
                let problem = problem(batch.shapes())?;
                let problem = match self.groups {
                    Some(groups) => problem.with_groups(groups)?,
                    None => problem,
                };
                problem.evaluate(&Cpu, batch)?
            }
            Some(queue) => evaluate_with_queue(&Cpu, batch, queue, problem)?,
        };
        Ok(self.evaluated(evaluation))
    }

    fn evaluated<R: relata::Real + burn_tensor::Element>(
        &self,
        evaluation: Evaluation<R>,
    ) -> Evaluated {
        Evaluated {
            dtype: if R::DTYPE == relata::DType::F64 {
                FloatDType::F64
            } else {
                FloatDType::F32
            },
            value: TensorData::new(vec![R::from_f64(evaluation.loss)], [1]),
            terms: evaluation.terms,
            gradient: TensorData::new(evaluation.gradient, self.student.shape().clone()),
        }
    }
}

/// Rows, their width, and the groups of rows.
fn matrix(
    argument: &'static str,
    shape: &[usize],
    loss: &Loss,
) -> Result<([usize; 2], Option<usize>)> {
    let spec = loss.spec();
    spec.rows_of(shape).ok_or_else(|| {
        let expected = match spec.family {
            Family::Pairwise(_) | Family::Triplet(_) => "[N, D] or [B, N, D]",
            Family::Contrastive(_) | Family::Towers(_) | Family::Sampled(_) => "[N, D]",
            Family::Logits(_) => "[N, C] or [B, T, V]",
        };
        Error::Shape {
            argument,
            expected: format!("{expected} for {loss}"),
            got: shape.to_vec(),
        }
    })
}

/// A loss, its terms and its gradient, of the student's shape.
struct Evaluated {
    dtype: FloatDType,
    value: TensorData,
    terms: Terms,
    gradient: TensorData,
}

impl Evaluated {
    /// The loss as a function of the student that has this gradient: the value plus a sum that is
    /// 0. burn's own operations make it work on all of its backends. With the terms.
    fn in_graph_of<const R: usize>(self, student: &Tensor<R>) -> (Tensor<1>, Terms) {
        let device = student.device();
        let student = student.clone().cast(self.dtype);
        let zeros = student.clone() - student.detach();
        let gradient = Tensor::<R>::from_data(self.gradient, (&device, self.dtype.into()));
        let value = Tensor::<1>::from_data(self.value, (&device, self.dtype.into()));
        (value + (zeros * gradient).sum(), self.terms)
    }

    /// `losses` of the rows, each as a function of its row.
    fn rows_in_graph_of<const R: usize>(
        self,
        student: &Tensor<R>,
        losses: TensorData,
    ) -> Tensor<1> {
        let device = student.device();
        let rows = losses.num_elements();
        let student = student.clone().cast(self.dtype);
        let zeros = student.clone() - student.detach();
        let gradient = Tensor::<R>::from_data(self.gradient, (&device, self.dtype.into()));
        let zeros = (zeros * gradient).reshape([rows as i64, -1]).sum_dim(1);
        let losses = Tensor::<1>::from_data(losses, (&device, self.dtype.into()));
        losses + zeros.reshape([rows])
    }
}

fn same_device<const S: usize, const R: usize>(
    argument: &'static str,
    student: &Tensor<S>,
    other: &Tensor<R>,
) -> Result<()> {
    let [expected, got] = [student.device(), other.device()];
    if expected == got {
        return Ok(());
    }
    Err(Error::Device {
        argument,
        expected: format!("{expected:?}"),
        got: format!("{got:?}"),
    })
}

fn no_such_dtype(got: DType) -> Error {
    Error::DType {
        argument: "student",
        expected: "f32, f16 or bf16, or f64 without a queue".to_owned(),
        got,
    }
}
