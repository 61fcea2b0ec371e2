use super::{Contrastive, Enqueue, Family, Parameter, Range, Spec, Target};

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
/// Rows may have weights: see [`Batch::with_row_weights`](crate::Batch::with_row_weights).
///
/// van den Oord, Li, Vinyals, arXiv 1807.03748; with a queue: He et al. (MoCo), arXiv 1911.05722.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct InfoNce {
    /// τ; 0.07 by default.
    pub temperature: f64,
    /// L2-normalise the rows of student and teacher, with the gradient through it; on by default.
    /// Off, ⟨row, key⟩/τ has to be a finite number of [`Element::Real`](crate::Element::Real), and
    /// a queue has to store its keys as they come
    /// ([`Queue::with_normalize`](crate::Queue::with_normalize)).
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
    pub(super) fn spec(&self) -> Spec {
        Spec {
            same_dim: true,
            enqueue: self.enqueue,
            normalize: self.normalize,
            ..Spec::new(Family::Contrastive(Contrastive {
                temperature: self.temperature,
                target: Target::OwnKey,
            }))
        }
    }

    pub(super) fn parameters(&mut self) -> Vec<Parameter<'_>> {
        vec![
            Parameter::number("temperature", Range::Temperature, &mut self.temperature),
            Parameter::normalize(&mut self.normalize),
            Parameter::enqueue(&mut self.enqueue),
        ]
    }
}
