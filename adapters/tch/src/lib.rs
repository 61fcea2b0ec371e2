//! [relata]'s relational distillation losses on [tch]'s tensors: differentiable, on the CPU and,
//! with the feature `cuda`, on GPUs. It shows how to adapt relata to a framework that gives
//! addresses and accepts no operations of others.
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
//! - Student `[N, D]` and teacher `[N, D_t]` have one kind and lie on one device: f64 on the CPU,
//!   f32, f16 and bf16. Views of any strides are accepted. A view that is not contiguous is copied
//!   first.
//! - Losses of pairs and triples also take `[B, N, D]` and `[B, N, D_t]`: B groups of N rows, for
//!   example the patches of B images. Rows of different groups are not compared, and the loss is the
//!   mean of the groups' losses: see [`Problem::with_groups`]. Logits `[B, T, V]`, of any number of
//!   leading dimensions, are B · T rows. Losses of keys take matrices alone.
//! - The loss is a scalar, f64 for f64 and f32 for all others. The teacher is a constant.
//! - The upstream factor multiplies the gradient in the loss's type. The rounding to the student's
//!   type comes last.
//! - [`clip`] and [`siglip`] train two towers, and both get a gradient. [`sup_con`] trains all rows of a
//!   batch.
//! - Functions that end in `_scale` also learn the scale, 1/τ, and [`siglip_with_scale`] the bias.

#[cfg(feature = "cuda")]
mod gpu;
mod host;
mod scale;
mod towers;

use relata::{Family, Loss, Problem, Queue, Shapes, Spec};
use tch::{Device, Kind, TchError, Tensor};

pub use self::scale::{info_nce_with_queue_and_scale, info_nce_with_scale, rrd_with_scale};
pub use self::towers::{
    clip, clip_with_labels, clip_with_scale, siglip, siglip_with_scale, sup_con, sup_con_with_scale,
};

/// Why there is no loss.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Shapes, parameters or a queue that the loss does not accept, or an error of the GPU.
    #[error(transparent)]
    Relata(#[from] relata::Error),
    /// libtorch's error.
    #[error(transparent)]
    Torch(#[from] TchError),
    /// A tensor of a shape that the loss has no meaning for, or that has a kind or a device without
    /// kernels.
    #[error("{argument}: expected {expected}, got {got}")]
    Unsupported {
        /// The tensor at fault.
        argument: &'static str,
        /// What was expected.
        expected: &'static str,
        /// What came.
        got: String,
    },
}

/// The result of a loss.
pub type Result<T> = std::result::Result<T, Error>;

/// A loss without a queue, or InfoNCE within the batch, as a scalar in the student's graph.
///
/// # Errors
/// [`Error`], naming what does not fit.
pub fn loss(student: &Tensor, teacher: &Tensor, loss: impl Into<Loss>) -> Result<Tensor> {
    Ok(loss_and_terms(student, teacher, loss)?.0)
}

/// A loss compared with the keys in `queue`: RRD or InfoNCE, of f32, f16 or bf16 on the CPU. The
/// teacher's rows enter the queue when the loss's `enqueue` says: see
/// [`Loss::evaluate_with_queue`].
///
/// # Errors
/// [`Error`], naming what does not fit. Nothing has been enqueued then.
pub fn loss_with_queue(
    student: &Tensor,
    teacher: &Tensor,
    queue: &mut Queue<f32>,
    loss: impl Into<Loss>,
) -> Result<Tensor> {
    Ok(loss_and_terms_with_queue(student, teacher, queue, loss)?.0)
}

/// As [`loss`], with the loss's named terms from the same evaluation.
///
/// # Errors
/// As [`loss`].
pub fn loss_and_terms(
    student: &Tensor,
    teacher: &Tensor,
    loss: impl Into<Loss>,
) -> Result<(Tensor, Terms)> {
    let loss = loss.into();
    let inputs = Inputs::new(student, teacher, &loss.spec())?;
    inputs.fused(student, &|shapes| Problem::new(loss, shapes))
}

/// As [`loss_with_queue`], with the loss's named terms from the same evaluation.
///
/// # Errors
/// As [`loss_with_queue`].
pub fn loss_and_terms_with_queue(
    student: &Tensor,
    teacher: &Tensor,
    queue: &mut Queue<f32>,
    loss: impl Into<Loss>,
) -> Result<(Tensor, Terms)> {
    let loss = loss.into();
    let inputs = Inputs::new(student, teacher, &loss.spec())?;
    inputs.fused_with_queue(student, queue, &|shapes| Problem::new(loss, shapes))
}

/// The named terms that an evaluation computes with the loss, for logging: RRD's `kl`, RKD's
/// `distance` and `angle`, which are not weighted. Other losses have none. See [`relata::Terms`].
///
/// No gradient goes through them. They cost nothing until they are read. On a GPU each read copies
/// a few bytes to the host, for which it waits for the stream. Read them every few steps.
#[derive(Debug)]
pub struct Terms {
    names: Vec<&'static str>,
    values: Tensor,
}

impl Terms {
    /// The term of this name, if the loss has one.
    ///
    /// # Errors
    /// libtorch's, for example what went wrong on the GPU since the launch.
    pub fn get(&self, name: &str) -> Result<Option<f64>> {
        let terms = self.to_vec()?;
        let found = terms.iter().find(|&&(known, _)| known == name);
        Ok(found.map(|&(_, value)| value))
    }

    /// All terms, in the order of [`Problem::terms`].
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn to_vec(&self) -> Result<Vec<(&'static str, f64)>> {
        let values = self.values.f_to_device(Device::Cpu)?;
        let values = Vec::<f64>::try_from(values.f_to_kind(Kind::Double)?)?;
        Ok(self.names.iter().copied().zip(values).collect())
    }
}

/// The problem of a batch of some shapes.
type ProblemOf<'a> = &'a dyn Fn(Shapes) -> relata::Result<Problem>;

/// One contiguous matrix or two, of one kind on one device, outside of any graph. The tensors have
/// the shapes that they came with.
struct Inputs {
    student: Tensor,
    /// Losses of towers may have none.
    teacher: Option<Tensor>,
    /// `[N]` i32, contiguous, on the same device: the bits of u32.
    labels: Option<Tensor>,
    student_shape: [usize; 2],
    /// Of width 0 without a teacher.
    teacher_shape: [usize; 2],
    /// The groups that a third dimension makes of the rows.
    groups: Option<usize>,
}

impl Inputs {
    fn new(student: &Tensor, teacher: &Tensor, spec: &Spec) -> Result<Self> {
        let (student_shape, groups) = shape("student", student, spec)?;
        let (teacher_shape, _) = shape("teacher", teacher, spec)?;
        let at = |tensor: &Tensor| (tensor.device(), tensor.kind());
        if at(student) != at(teacher) {
            return Err(Error::Unsupported {
                argument: "teacher",
                expected: "the student's device and kind",
                got: format!("{:?}, not {:?}", at(teacher), at(student)),
            });
        }
        // Where both are matrices, the numbers of rows are all there is to compare.
        let (of_student, of_teacher) = (student.size(), teacher.size());
        let leading = |sizes: &[i64]| sizes[..sizes.len() - 1].to_vec();
        let matrices = of_student.len() == 2 && of_teacher.len() == 2;
        if !matrices && leading(&of_student) != leading(&of_teacher) {
            return Err(Error::Unsupported {
                argument: "teacher",
                expected: "the student's leading dimensions",
                got: format!("the shape {of_teacher:?}, not {of_student:?}"),
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
            teacher: Some(teacher.f_detach()?.f_contiguous()?),
            labels: None,
            student_shape,
            teacher_shape,
            groups,
        })
    }

    /// A batch of the student's rows alone, with labels or without.
    fn of_student(student: &Tensor, labels: Option<Tensor>, spec: &Spec) -> Result<Self> {
        let (student_shape, groups) = shape("student", student, spec)?;
        Ok(Inputs {
            student: student.f_detach()?.f_contiguous()?,
            teacher: None,
            labels,
            student_shape,
            teacher_shape: [student_shape[0], 0],
            groups,
        })
    }

    fn shapes(&self) -> Shapes {
        let [rows, dim] = self.student_shape;
        Shapes {
            labels: self.labels.is_some(),
            ..Shapes::new(rows, dim, self.teacher_shape[1])
        }
    }

    /// The loss in the graph of `student`, of which these are the inputs, and its terms.
    fn fused(&self, student: &Tensor, problem: ProblemOf<'_>) -> Result<(Tensor, Terms)> {
        let mut problem = problem(self.shapes())?;
        if let Some(groups) = self.groups {
            problem = problem.with_groups(groups)?;
        }
        let evaluated = match self.student.device() {
            Device::Cpu => host::evaluate(self, &problem)?,
            #[cfg(feature = "cuda")]
            Device::Cuda(_) => gpu::evaluate(self, &problem)?,
            device => return Err(no_kernels(device)),
        };
        evaluated.in_graph_of(student)
    }

    /// The same against the keys in `queue`.
    fn fused_with_queue(
        &self,
        student: &Tensor,
        queue: &mut Queue<f32>,
        problem: ProblemOf<'_>,
    ) -> Result<(Tensor, Terms)> {
        let evaluated = match self.student.device() {
            Device::Cpu => host::evaluate_with_queue(self, queue, problem)?,
            device => return Err(no_kernels(device)),
        };
        evaluated.in_graph_of(student)
    }
}

/// Rows, their width, and the groups of rows.
fn shape(
    argument: &'static str,
    tensor: &Tensor,
    spec: &Spec,
) -> Result<([usize; 2], Option<usize>)> {
    let sizes = tensor.size();
    let sizes: Vec<usize> = sizes.iter().filter_map(|&n| n.try_into().ok()).collect();
    spec.rows_of(&sizes).ok_or_else(|| Error::Unsupported {
        argument,
        expected: match spec.family {
            Family::Pairwise(_) | Family::Triplet(_) => "a matrix, or groups [B, N, D]",
            Family::Contrastive(_) | Family::Towers(_) | Family::Sampled(_) => "a matrix",
            Family::Logits(_) => "a matrix, or logits [B, T, V]",
        },
        got: format!("the shape {:?}", tensor.size()),
    })
}

/// The result of an evaluation, f64 for f64 and f32 for all others.
struct Evaluated {
    /// The loss, then its terms.
    value: Tensor,
    /// Of the terms.
    names: Vec<&'static str>,
    /// Of the student's shape.
    gradient: Tensor,
}

impl Evaluated {
    /// The loss as a function of the student that has this gradient, with its terms. tch accepts no
    /// operations of others, so the loss is made of libtorch's: the value plus a sum that is 0.
    fn in_graph_of(self, student: &Tensor) -> Result<(Tensor, Terms)> {
        let terms = Terms {
            values: self.value.f_narrow(0, 1, self.names.len() as i64)?,
            names: self.names,
        };
        let student = student.f_to_kind(self.value.kind())?;
        let zeros = student.f_sub(&student.f_detach()?)?;
        let zero = zeros.f_mul(&self.gradient)?.f_sum(self.value.kind())?;
        Ok((self.value.f_select(0, 0)?.f_add(&zero)?, terms))
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
