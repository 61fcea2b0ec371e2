use super::{check_temperature, loss};
use crate::device::Device;
use crate::element::Element;
use crate::error::Result;
use crate::problem::{Evaluation, Shapes};
use crate::queue::{Enqueue, Queue, evaluate_with_queue};
use crate::rows::Rows;

/// Relational representation distillation: how the student's row relates to a queue of past teacher
/// keys, against how the teacher's does.
///
/// With z = s/‖s‖, y = t/‖t‖ and Q the K keys in the queue:
///
/// ```text
/// p_i = softmax(Q y_i / τ_t)    q_i = softmax(Q z_i / τ_s)
/// L   = 1/N · Σ_i −Σ_k p_ik log q_ik          KL(p‖q) = L − H(p) comes beside it
/// ```
///
/// No τ² factor. Student and teacher rows are projections to the same D: `[N, D]` both, queue
/// `[K, D]`. A row of zeros has no direction: its similarities are 0 and so is its gradient.
///
/// Giakoumoglou, Stathaki: *Relational Representation Distillation*, arXiv 2407.12073, and the
/// authors' training script, whose present defaults these are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rrd {
    /// τ_s; 0.1 by default.
    pub student_temperature: f64,
    /// τ_t; 0.02 by default.
    pub teacher_temperature: f64,
    /// L2-normalise the rows of student and teacher, with the gradient through it; on by default.
    /// Off, the rows are taken as they come, for trainers that normalise themselves; ⟨row, key⟩/τ has to
    /// be a finite number of [`Element::Real`](crate::Element::Real) then.
    pub normalize: bool,
    /// When [`evaluate`](Rrd::evaluate) puts the teacher's rows into the queue; before the loss by
    /// default.
    pub enqueue: Enqueue,
}

impl Default for Rrd {
    fn default() -> Self {
        Rrd {
            student_temperature: 0.1,
            teacher_temperature: 0.02,
            normalize: true,
            enqueue: Enqueue::Before,
        }
    }
}

impl Rrd {
    /// The capacity of the queue in the authors' script.
    pub const QUEUE_CAPACITY: usize = 16384;

    pub(super) fn validate(&self) -> Result<()> {
        check_temperature("student_temperature", self.student_temperature)?;
        check_temperature("teacher_temperature", self.teacher_temperature)
    }

    /// The loss of `student` against `teacher`, and its gradient with respect to `student`;
    /// `teacher` is enqueued as [`enqueue`](Rrd::enqueue) says.
    ///
    /// A teacher with NaN or infinities makes the loss and the gradient NaN and is *not* enqueued:
    /// it would spoil every loss until it leaves the queue.
    ///
    /// # Errors
    /// A parameter or a shape that does not fit, by name, and an empty queue unless the batch is
    /// enqueued before. The queue is as it was when an error comes back.
    pub fn evaluate<T: Element, D: Device<T>>(
        &self,
        device: &D,
        student: Rows<'_, T>,
        teacher: Rows<'_, T>,
        queue: &mut Queue<T::Real>,
    ) -> Result<Evaluation<D::Gradient>> {
        let shapes = Shapes::new(student.len(), student.dim(), teacher.dim());
        evaluate_with_queue(
            |keys| self.problem(shapes.with_queue(keys)),
            self.enqueue,
            device,
            student,
            teacher,
            queue,
        )
    }
}

loss!(Rrd);
