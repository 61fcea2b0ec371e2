use super::{Family, Logits, Parameter, Range, Spec};

/// Hinton's knowledge distillation: the divergence between two softmaxes over classes.
///
/// ```text
/// L = T²/N · Σ_i KL( softmax(y_i/T) ‖ softmax(x_i/T) )
/// ```
///
/// Student and teacher are logits `[N, C]`, C up to the size of a vocabulary.
///
/// A class that is −∞ in student and teacher is masked: it counts in no sum and its gradient is 0.
/// Where the teacher's logit alone is −∞, its probability is 0. Where the student's alone is, the
/// loss is +∞ and the row's gradient NaN. NaN or +∞, and a teacher without any class, make both
/// NaN. A row whose classes are all masked adds 0 to the sum.
///
/// Hinton, Vinyals, Dean: *Distilling the Knowledge in a Neural Network*, arXiv 1503.02531.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KdKl {
    /// T; 4 by default.
    pub temperature: f64,
}

impl Default for KdKl {
    fn default() -> Self {
        KdKl { temperature: 4.0 }
    }
}

impl KdKl {
    pub(super) fn spec(&self) -> Spec {
        Spec {
            same_dim: true,
            ..Spec::new(Family::Logits(Logits {
                temperature: self.temperature,
            }))
        }
    }

    pub(super) fn parameters(&mut self) -> Vec<Parameter<'_>> {
        vec![Parameter::number(
            "temperature",
            Range::Temperature,
            &mut self.temperature,
        )]
    }
}
