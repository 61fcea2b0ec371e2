use super::{Contrastive, Enqueue, Family, Parameter, Range, Spec, Target};

/// Relational representation distillation: how the student's row relates to a queue of past teacher
/// keys, against how the teacher's does.
///
/// With z = s/‖s‖, y = t/‖t‖ and Q the K keys in the queue:
///
/// ```text
/// p_i = softmax(Q y_i / τ_t)    q_i = softmax(Q z_i / τ_s)
/// L   = 1/N · Σ_i −Σ_k p_ik log q_ik          KL(p‖q) = L − H(p) is the term `kl`
/// ```
///
/// No τ² factor. Student and teacher rows are projections to the same D: `[N, D]` both, queue
/// `[K, D]`. A row of zeros has no direction: its similarities are 0 and so is its gradient.
///
/// Rows may have weights: see [`Batch::with_row_weights`](crate::Batch::with_row_weights).
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
    /// Off, rows are taken as they come, for trainers that normalise themselves: the queue has to
    /// store its keys so too ([`Queue::with_normalize`](crate::Queue::with_normalize)), and
    /// ⟨row, key⟩/τ has to be a finite number of [`Element::Real`](crate::Element::Real).
    pub normalize: bool,
    /// When [`evaluate_with_queue`](Rrd::evaluate_with_queue) puts the teacher's rows into the
    /// queue; before the loss by default.
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

    pub(super) fn spec(&self) -> Spec {
        Spec {
            same_dim: true,
            enqueue: self.enqueue,
            normalize: self.normalize,
            terms: &["kl"],
            ..Spec::new(Family::Contrastive(Contrastive {
                temperature: self.student_temperature,
                target: Target::Teacher {
                    temperature: self.teacher_temperature,
                },
            }))
        }
    }

    pub(super) fn parameters(&mut self) -> Vec<Parameter<'_>> {
        vec![
            Parameter::number(
                "student_temperature",
                Range::Temperature,
                &mut self.student_temperature,
            ),
            Parameter::number(
                "teacher_temperature",
                Range::Temperature,
                &mut self.teacher_temperature,
            ),
            Parameter::normalize(&mut self.normalize),
            Parameter::enqueue(&mut self.enqueue),
        ]
    }
}
