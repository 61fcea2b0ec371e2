use super::{check_temperature, loss};
use crate::device::Device;
use crate::element::Element;
use crate::error::Result;
use crate::problem::{Evaluation, Shapes};
use crate::queue::{Enqueue, Queue, evaluate_with_queue};
use crate::rows::Rows;

/// InfoNCE with the student's row as anchor: tell the teacher's row of the same sample from others.
///
/// With z = s/‖s‖, y = t/‖t‖, and the logits of anchor i
///
/// ```text
/// in-batch:       ⟨z_i, y_j⟩/τ over j,              target i
/// with a queue:   [⟨z_i, y_i⟩, ⟨z_i, Q_k⟩ over k]/τ,  target the first
/// L = 1/N · Σ_i −log softmax(logits_i)[target]
/// ```
///
/// Student, teacher `[N, D]`, queue `[K, D]`. A row of zeros has no direction: its similarities are
/// 0 and so is its gradient.
///
/// van den Oord, Li, Vinyals, arXiv 1807.03748; with a queue: He et al. (MoCo), arXiv 1911.05722.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct InfoNce {
    /// τ; 0.07 by default.
    pub temperature: f64,
    /// L2-normalise the rows of student and teacher, with the gradient through it; on by default. Off,
    /// ⟨row, key⟩/τ has to be a finite number of [`Element::Real`](crate::Element::Real).
    pub normalize: bool,
    /// When [`evaluate_with_queue`](InfoNce::evaluate_with_queue) puts the teacher's rows into the
    /// queue; after the loss by default, as the row's own key is among the logits already.
    pub enqueue: Enqueue,
}

impl Default for InfoNce {
    fn default() -> Self {
        InfoNce {
            temperature: 0.07,
            normalize: true,
            enqueue: Enqueue::After,
        }
    }
}

impl InfoNce {
    pub(super) fn validate(&self) -> Result<()> {
        check_temperature("temperature", self.temperature)
    }

    /// The loss against the keys in `queue` and the anchor's own, and its gradient with respect to
    /// `student`; `teacher` is enqueued as [`enqueue`](InfoNce::enqueue) says. Non-finite teachers
    /// are treated as in [`Rrd::evaluate`](crate::Rrd::evaluate).
    ///
    /// # Errors
    /// A parameter or a shape that does not fit, by name, and an empty queue unless the batch is
    /// enqueued before. The queue is as it was when an error comes back.
    pub fn evaluate_with_queue<T: Element, D: Device<T>>(
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

loss!(InfoNce, pair);
