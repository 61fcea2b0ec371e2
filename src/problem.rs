//! A loss with shapes it accepts, and what evaluating it takes and gives.

use crate::device::Device;
use crate::element::{Element, Real};
use crate::error::{Error, Result};
use crate::loss::Loss;
use crate::queue::Queue;
use crate::rows::Rows;

/// The sizes of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shapes {
    /// N: rows of student and teacher.
    pub rows: usize,
    /// D: elements in a row of the student.
    pub student_dim: usize,
    /// D_t: elements in a row of the teacher. Losses that compare the two spaces directly
    /// (RRD, InfoNCE, KD) ask for D_t = D.
    pub teacher_dim: usize,
    /// The keys in the queue, where the loss has one. At least 1 when the loss is evaluated, which
    /// for [`Enqueue::Before`](crate::Enqueue::Before) counts the batch itself.
    pub queue: Option<usize>,
}

impl Shapes {
    /// A batch of `rows` rows and no queue.
    #[must_use]
    pub const fn new(rows: usize, student_dim: usize, teacher_dim: usize) -> Self {
        Shapes {
            rows,
            student_dim,
            teacher_dim,
            queue: None,
        }
    }

    /// The same batch beside a queue of `keys` keys.
    #[must_use]
    pub const fn with_queue(self, keys: usize) -> Self {
        Shapes {
            queue: Some(keys),
            ..self
        }
    }
}

/// The inputs of one evaluation: student and teacher, and the queue where the loss has one.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a, T: Element> {
    /// `[N, D]`: what the gradient is taken with respect to.
    pub student: Rows<'a, T>,
    /// `[N, D_t]`: a constant.
    pub teacher: Rows<'a, T>,
    /// The keys of past teacher batches, as the loss is to see them.
    pub queue: Option<&'a Queue<T::Real>>,
}

impl<'a, T: Element> Batch<'a, T> {
    /// A batch without a queue.
    #[must_use]
    pub fn new(student: Rows<'a, T>, teacher: Rows<'a, T>) -> Self {
        Batch {
            student,
            teacher,
            queue: None,
        }
    }

    /// The same rows beside `queue`.
    #[must_use]
    pub fn with_queue(self, queue: &'a Queue<T::Real>) -> Self {
        Batch {
            queue: Some(queue),
            ..self
        }
    }

    /// The sizes of this batch.
    #[must_use]
    pub fn shapes(&self) -> Shapes {
        Shapes {
            rows: self.student.len(),
            student_dim: self.student.dim(),
            teacher_dim: self.teacher.dim(),
            queue: self.queue.map(Queue::len),
        }
    }
}

/// The loss's value, and the parts of it that have names of their own.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Value {
    /// The loss. Not scaled by the upstream factor.
    pub loss: f64,
    /// For RRD, the divergence KL(p‖q) beside the cross-entropy that [`loss`](Self::loss) is: they
    /// differ by the entropy of the teacher's distribution and have the same gradient.
    pub kl: Option<f64>,
}

impl Value {
    pub(crate) fn new(loss: f64) -> Self {
        Value { loss, kl: None }
    }
}

/// What an evaluation gives: the loss and its gradient.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Evaluation<R> {
    /// The loss. Not scaled by the upstream factor.
    pub loss: f64,
    /// For RRD, KL(p‖q); see [`Value::kl`].
    pub kl: Option<f64>,
    /// `[N, D]`, row-major: the upstream factor times ∂loss/∂student.
    pub gradient: Vec<R>,
}

impl<R: Real> Evaluation<R> {
    /// ‖gradient‖, summed in f64.
    #[must_use]
    pub fn gradient_norm(&self) -> f64 {
        self.gradient
            .iter()
            .map(|g| g.to_f64() * g.to_f64())
            .sum::<f64>()
            .sqrt()
    }
}

/// How precisely RRD's and InfoNCE's softmax weights enter the products with the keys, on a GPU or the emulator and of
/// rows in f16 or bf16: tensor cores take halves. Of f32, of rows with more than 256 elements or with `normalize` off, and
/// on [`Cpu`](crate::Cpu) and [`Reference`](crate::Reference) it has no effect: weights are not rounded there.
///
/// Error of the gradient of RRD relative to its length, by the divergence of student and teacher: N = 4, D = 128,
/// τ = 0.1, a queue of 16384 keys as it is stored, in the emulator:
///
/// | KL(p‖q) | `Split` | `Half` |
/// |---|---|---|
/// | 0.2 | 5.2e-7 | 3.4e-5 |
/// | 4e-3 | 1.0e-6 | 4.0e-5 |
/// | 4e-5 | 8.5e-6 | 4.3e-5 |
///
/// The loss and the divergence do not depend on it. What rounding a queue's keys to f16 does to the gradient, 2e-4, is not in
/// these: it is the same for both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WeightPrecision {
    /// Each weight as the sum of two f16: as good as f32, for 12 N K D floating-point operations.
    #[default]
    Split,
    /// Each weight as one f16, for 8 N K D. In RRD, unless the teacher's temperature is the higher, the student's weights are
    /// rounded less the teacher's, so that the gradient, their difference, does not lose digits as the student converges.
    Half,
}

/// A loss whose parameters and shapes have been checked, once, before anything is computed.
///
/// ```
/// use relata::{Batch, Cpu, RkdAngle, Rows, Shapes};
/// # fn main() -> relata::Result<()> {
/// let problem = RkdAngle::default().problem(Shapes::new(3, 2, 2))?.upstream(0.5).checked(true);
/// let student = [0.0f32, 0.0, 1.0, 0.0, 0.0, 2.0];
/// let teacher = [0.0f32, 0.0, 1.0, 1.0, 0.0, 2.0];
/// let batch = Batch::new(Rows::new(&student, [3, 2])?, Rows::new(&teacher, [3, 2])?);
/// let evaluation = problem.evaluate(&Cpu, batch)?;
/// assert_eq!(evaluation.gradient.len(), 6);
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Problem {
    loss: Loss,
    shapes: Shapes,
    upstream: f64,
    checked: bool,
    weights: WeightPrecision,
}

impl Problem {
    /// Checks that `loss` has usable parameters and accepts `shapes`.
    ///
    /// # Errors
    /// [`Error::Parameter`], [`Error::Empty`], [`Error::Dimension`], [`Error::Missing`] or
    /// [`Error::Unexpected`], naming the argument.
    pub fn new(loss: impl Into<Loss>, shapes: Shapes) -> Result<Self> {
        let loss = loss.into();
        loss.validate(&shapes)?;
        Ok(Problem {
            loss,
            shapes,
            upstream: 1.0,
            checked: false,
            weights: WeightPrecision::default(),
        })
    }

    /// The upstream gradient: the factor the gradient comes multiplied by (1 at first). The loss's
    /// value is not scaled.
    #[must_use]
    pub fn upstream(self, upstream: f64) -> Self {
        Problem { upstream, ..self }
    }

    /// The checked mode (off at first): evaluating looks for NaN and infinities in the inputs and
    /// refuses the batch with [`Error::NotFinite`] instead of giving a NaN loss.
    #[must_use]
    pub fn checked(self, checked: bool) -> Self {
        Problem { checked, ..self }
    }

    /// How precise the softmax weights of RRD and InfoNCE are on a GPU, [`Split`](WeightPrecision::Split) at first. No
    /// effect on other losses.
    #[must_use]
    pub fn weights(self, weights: WeightPrecision) -> Self {
        Problem { weights, ..self }
    }

    /// The loss.
    #[must_use]
    pub fn loss(&self) -> &Loss {
        &self.loss
    }

    /// The shapes it is to be evaluated on.
    #[must_use]
    pub fn shapes(&self) -> Shapes {
        self.shapes
    }

    /// The factor set by [`upstream`](Self::upstream).
    #[must_use]
    pub fn upstream_factor(&self) -> f64 {
        self.upstream
    }

    /// The precision set by [`weights`](Self::weights).
    #[must_use]
    pub fn weight_precision(&self) -> WeightPrecision {
        self.weights
    }

    /// The loss and its gradient, in newly allocated memory.
    ///
    /// # Errors
    /// If the batch's shapes are not the problem's; in the checked mode, [`Error::NotFinite`]; and
    /// what the device may run into, [`Error::OutOfMemory`] for one.
    pub fn evaluate<T: Element, D: Device<T>>(
        &self,
        device: &D,
        batch: Batch<'_, T>,
    ) -> Result<Evaluation<D::Gradient>> {
        self.check(&batch)?;
        let mut gradient = zeroed("gradient", self.gradient_len())?;
        let value = device.evaluate(self, batch, &mut gradient)?;
        Ok(Evaluation {
            loss: value.loss,
            kl: value.kl,
            gradient,
        })
    }

    /// The same with the gradient in memory of the caller's, `[N, D]`, which is overwritten. Saves
    /// a trainer the allocation.
    ///
    /// # Errors
    /// As [`evaluate`](Self::evaluate), and [`Error::Length`] if `gradient` does not hold N · D
    /// elements. `gradient` is as it was when an error comes back.
    pub fn evaluate_into<T: Element, D: Device<T>>(
        &self,
        device: &D,
        batch: Batch<'_, T>,
        gradient: &mut [D::Gradient],
    ) -> Result<Value> {
        self.check(&batch)?;
        if gradient.len() != self.gradient_len() {
            return Err(Error::Length {
                argument: "gradient",
                expected: self.gradient_len(),
                got: gradient.len(),
            });
        }
        device.evaluate(self, batch, gradient)
    }

    /// The evaluation of a batch that holds a NaN or an infinity, without looking at the batch.
    pub(crate) fn not_a_number<R: Real>(&self) -> Result<Evaluation<R>> {
        let mut gradient = zeroed("gradient", self.gradient_len())?;
        gradient.fill(R::from_f64(f64::NAN));
        Ok(Evaluation {
            loss: f64::NAN,
            kl: matches!(self.loss, Loss::Rrd(_)).then_some(f64::NAN),
            gradient,
        })
    }

    fn gradient_len(&self) -> usize {
        self.shapes.rows.saturating_mul(self.shapes.student_dim)
    }

    fn check<T: Element>(&self, batch: &Batch<'_, T>) -> Result<()> {
        let (want, got) = (self.shapes, batch.shapes());
        same("student rows", want.rows, got.rows)?;
        same("student_dim", want.student_dim, got.student_dim)?;
        same("teacher rows", want.rows, batch.teacher.len())?;
        same("teacher_dim", want.teacher_dim, got.teacher_dim)?;
        match (want.queue, batch.queue) {
            (None, None) => {}
            (Some(keys), Some(queue)) => {
                same("queue keys", keys, queue.len())?;
                same("queue_dim", want.student_dim, queue.dim())?;
            }
            (Some(_), None) => {
                return Err(Error::Missing {
                    argument: "queue",
                    expected: "the queue the problem was made for",
                });
            }
            (None, Some(_)) => {
                return Err(Error::Unexpected {
                    argument: "queue",
                    loss: self.loss.name(),
                });
            }
        }
        if self.checked {
            batch.student.check_finite("student")?;
            batch.teacher.check_finite("teacher")?;
        }
        Ok(())
    }
}

/// Refuses `got` unless it is `expected`.
pub(crate) fn same(argument: &'static str, expected: usize, got: usize) -> Result<()> {
    if expected == got {
        Ok(())
    } else {
        Err(Error::Dimension {
            argument,
            expected,
            got,
        })
    }
}

/// `len` zeros, or the error that says what there was no memory for.
pub(crate) fn zeroed<R: Real>(argument: &'static str, len: usize) -> Result<Vec<R>> {
    bytemuck::allocation::try_zeroed_vec(len).map_err(|()| Error::OutOfMemory {
        argument,
        bytes: len.saturating_mul(size_of::<R>()),
    })
}
