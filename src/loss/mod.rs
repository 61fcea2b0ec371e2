//! The losses: their parameters, defaults and the shapes they accept.
//!
//! Each is a plain `Copy` value whose `Default` is what the papers' own code trains with. To add one:
//! a file here, a variant of [`Loss`], and the compiler asks for the rest.

mod info_nce;
mod kd_kl;
mod rkd;
mod rkd_angle;
mod rkd_distance;
mod rrd;

use std::fmt;
use std::str::FromStr;

pub use info_nce::InfoNce;
pub use kd_kl::KdKl;
pub use rkd::Rkd;
pub use rkd_angle::RkdAngle;
pub use rkd_distance::RkdDistance;
pub use rrd::Rrd;

use crate::device::Device;
use crate::element::Element;
use crate::error::{Error, Result};
use crate::problem::{Batch, Evaluation, Problem, Shapes, same};
use crate::queue::Queue;
use crate::rows::Rows;

/// Any of the losses, with its parameters: for code that picks one at run time.
///
/// Parsing a name gives that loss with its default parameters.
///
/// ```
/// # fn main() -> relata::Result<()> {
/// let loss: relata::Loss = "rkd-angle".parse()?;
/// assert_eq!(loss, relata::RkdAngle::default().into());
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Loss {
    /// RKD distance.
    RkdDistance(RkdDistance),
    /// RKD angle.
    RkdAngle(RkdAngle),
    /// RKD distance and angle, weighted.
    Rkd(Rkd),
    /// Relational representation distillation.
    Rrd(Rrd),
    /// InfoNCE, in-batch or with a queue.
    InfoNce(InfoNce),
    /// Hinton's distillation of logits.
    KdKl(KdKl),
}

impl Loss {
    /// Every loss with its default parameters, in the order the documentation names them.
    #[must_use]
    pub fn all() -> Vec<Loss> {
        // The match makes a loss that is missing from the list below a compile error next to it.
        let listed = |loss: Loss| match loss {
            Loss::RkdDistance(_)
            | Loss::RkdAngle(_)
            | Loss::Rkd(_)
            | Loss::Rrd(_)
            | Loss::InfoNce(_)
            | Loss::KdKl(_) => loss,
        };
        vec![
            listed(RkdDistance::default().into()),
            listed(RkdAngle::default().into()),
            listed(Rkd::default().into()),
            listed(Rrd::default().into()),
            listed(InfoNce::default().into()),
            listed(KdKl::default().into()),
        ]
    }

    /// Its name in the command, the benchmarks and the results.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Loss::RkdDistance(_) => "rkd-distance",
            Loss::RkdAngle(_) => "rkd-angle",
            Loss::Rkd(_) => "rkd",
            Loss::Rrd(_) => "rrd",
            Loss::InfoNce(_) => "info-nce",
            Loss::KdKl(_) => "kd-kl",
        }
    }

    /// The loss of `student` against `teacher` and its gradient with respect to `student`, for code that has one way
    /// for all losses. Beside `queue`, RRD and InfoNCE do as [`Rrd::evaluate`] and [`InfoNce::evaluate_with_queue`]
    /// say: the teacher's rows enter it when the loss says so. Without one, InfoNCE is in-batch.
    ///
    /// ```
    /// use relata::{Cpu, Loss, Queue, Rows};
    /// # fn main() -> relata::Result<()> {
    /// let (student, teacher) = ([0.0f32, 1.0, 1.0, 1.0], [0.0f32, 2.0, 3.0, 0.0]);
    /// let [student, teacher] = [Rows::new(&student, [2, 2])?, Rows::new(&teacher, [2, 2])?];
    /// let mut queue = Queue::new(100, 2)?;
    /// for loss in Loss::all() {
    ///     let queue = (loss.name() == "rrd").then_some(&mut queue);
    ///     assert_eq!(loss.evaluate(&Cpu, student, teacher, queue)?.gradient.len(), 4);
    /// }
    /// assert_eq!(queue.len(), 2);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As the loss's own, by name; [`Error::Missing`] for RRD without a queue, and [`Error::Unexpected`] for a queue
    /// beside a loss that has none. The queue is as it was when an error comes back.
    pub fn evaluate<T: Element, D: Device<T>>(
        &self,
        device: &D,
        student: Rows<'_, T>,
        teacher: Rows<'_, T>,
        queue: Option<&mut Queue<T::Real>>,
    ) -> Result<Evaluation<D::Gradient>> {
        match (self, queue) {
            (Loss::Rrd(loss), Some(queue)) => loss.evaluate(device, student, teacher, queue),
            (Loss::InfoNce(loss), Some(queue)) => {
                loss.evaluate_with_queue(device, student, teacher, queue)
            }
            (_, queue) => {
                let batch = Batch {
                    student,
                    teacher,
                    queue: queue.as_deref(),
                };
                Problem::new(*self, batch.shapes())?.evaluate(device, batch)
            }
        }
    }

    /// Checks the parameters and the shapes.
    pub(crate) fn validate(&self, shapes: &Shapes) -> Result<()> {
        not_empty("rows", shapes.rows)?;
        not_empty("student_dim", shapes.student_dim)?;
        not_empty("teacher_dim", shapes.teacher_dim)?;
        match self {
            Loss::RkdDistance(loss) => loss.validate()?,
            Loss::RkdAngle(loss) => loss.validate()?,
            Loss::Rkd(loss) => loss.validate()?,
            Loss::Rrd(loss) => loss.validate()?,
            Loss::InfoNce(loss) => loss.validate()?,
            Loss::KdKl(loss) => loss.validate()?,
        }
        match self {
            Loss::RkdDistance(_) | Loss::RkdAngle(_) | Loss::Rkd(_) => {}
            Loss::Rrd(_) | Loss::InfoNce(_) | Loss::KdKl(_) => {
                same("teacher_dim", shapes.student_dim, shapes.teacher_dim)?;
            }
        }
        match (self, shapes.queue) {
            (Loss::Rrd(_), None) => Err(Error::Missing {
                argument: "queue",
                expected: "a queue of teacher keys",
            }),
            (Loss::Rrd(_) | Loss::InfoNce(_), Some(keys)) => not_empty("queue keys", keys),
            (Loss::InfoNce(_), None) => Ok(()),
            (Loss::RkdDistance(_) | Loss::RkdAngle(_) | Loss::Rkd(_) | Loss::KdKl(_), queue) => {
                match queue {
                    None => Ok(()),
                    Some(_) => Err(Error::Unexpected {
                        argument: "queue",
                        loss: self.name(),
                    }),
                }
            }
        }
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Loss {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let all = Loss::all();
        all.iter()
            .find(|loss| loss.name() == name)
            .copied()
            .ok_or_else(|| Error::UnknownLoss {
                expected: all.iter().map(Loss::name).collect::<Vec<_>>().join(", "),
                got: name.to_owned(),
            })
    }
}

pub(crate) fn not_empty(argument: &'static str, size: usize) -> Result<()> {
    if size == 0 {
        Err(Error::Empty { argument })
    } else {
        Ok(())
    }
}

/// δ: where the Huber penalty turns from quadratic to linear.
fn check_delta(delta: f64) -> Result<()> {
    if delta.is_finite() && delta > 0.0 {
        Ok(())
    } else {
        Err(Error::Parameter {
            argument: "delta",
            expected: "a finite number above 0",
            got: delta,
        })
    }
}

/// τ or T. The bounds keep τ and 1/τ well within f32, where the fast paths compute.
pub(crate) fn check_temperature(argument: &'static str, temperature: f64) -> Result<()> {
    if (1e-30..=1e30).contains(&temperature) {
        Ok(())
    } else {
        Err(Error::Parameter {
            argument,
            expected: "a finite number above 0 (from 1e-30 to 1e30)",
            got: temperature,
        })
    }
}

fn check_weight(argument: &'static str, weight: f64) -> Result<()> {
    if weight.is_finite() && weight >= 0.0 {
        Ok(())
    } else {
        Err(Error::Parameter {
            argument,
            expected: "a finite number of at least 0",
            got: weight,
        })
    }
}

/// `problem`, `evaluate` and `From` for a loss.
macro_rules! loss {
    ($loss:ident) => {
        impl From<$loss> for crate::Loss {
            fn from(loss: $loss) -> Self {
                crate::Loss::$loss(loss)
            }
        }

        impl $loss {
            /// This loss on batches of these shapes: all checks, once.
            ///
            /// # Errors
            /// A parameter or a shape that does not fit, by name.
            pub fn problem(self, shapes: crate::Shapes) -> crate::Result<crate::Problem> {
                crate::Problem::new(self, shapes)
            }
        }
    };
    ($loss:ident, pair) => {
        loss!($loss);

        impl $loss {
            /// The loss of `student` against `teacher` and its gradient with respect to `student`.
            ///
            /// # Errors
            /// A parameter or a shape that does not fit, by name. See
            /// [`Problem::evaluate`](crate::Problem::evaluate).
            pub fn evaluate<T: crate::Element, D: crate::Device<T>>(
                &self,
                device: &D,
                student: crate::Rows<'_, T>,
                teacher: crate::Rows<'_, T>,
            ) -> crate::Result<crate::Evaluation<D::Gradient>> {
                let batch = crate::Batch::new(student, teacher);
                self.problem(batch.shapes())?.evaluate(device, batch)
            }
        }
    };
}
use loss;
