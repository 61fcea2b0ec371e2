use super::{Family, Parameter, Range, Sampled, Spec};

/// Relational representation distillation with a memory bank in place of a queue: how the student's
/// row relates to sampled keys, against how the teacher's does.
///
/// The keys of a row are rows of a [`Bank`](crate::Bank), its own first, then K others. The teacher's
/// row is compared with the rows of the same samples: in the authors' code with those of the
/// student's bank ([`Batch::with_teacher_bank`](crate::Batch::with_teacher_bank)), while the student's
/// are compared with the teacher's. With z = s/‖s‖, y = t/‖t‖, and Z the normalizer of each bank:
///
/// ```text
/// a_ik = exp(⟨z_i, key_ik⟩/T)/Z        b_ik = exp(⟨y_i, key'_ik⟩/T)/Z'
/// p_i = softmax(b_i/τ_t)               q_i = softmax(a_i/τ_s)
/// L   = 1/N · Σ_i −Σ_k p_ik log q_ik          KL(p‖q) = L − H(p) is the term `kl`
/// ```
///
/// So the similarities are exponentiated twice: once as scores, and once by the softmax. Without
/// `double_exponential` a and b are the similarities themselves, as in [`Rrd`](crate::Rrd), and banks
/// need no normalizer.
///
/// Student and teacher rows have the same D: `[N, D]` both. Keys are taken as they are. A row of
/// zeros has no direction: its similarities are 0 and so is its gradient. Rows may have weights: see
/// [`Batch::with_row_weights`](crate::Batch::with_row_weights).
///
/// Giakoumoglou, Stathaki: *Relational Representation Distillation*, arXiv 2407.12073, and the
/// authors' code with `--memory_type momentum`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RrdBank {
    /// τ_s; 0.1 by default.
    pub student_temperature: f64,
    /// τ_t; 0.02 by default.
    pub teacher_temperature: f64,
    /// T; 0.07 by default. It has no effect without `double_exponential`.
    pub score_temperature: f64,
    /// Whether scores are exponentials before they enter the softmax; on by default, as in the
    /// authors' code.
    pub double_exponential: bool,
}

impl Default for RrdBank {
    fn default() -> Self {
        RrdBank {
            student_temperature: 0.1,
            teacher_temperature: 0.02,
            score_temperature: 0.07,
            double_exponential: true,
        }
    }
}

impl RrdBank {
    /// K in the authors' script.
    pub const NEGATIVES: usize = 16384;

    pub(super) fn spec(&self) -> Spec {
        Spec {
            same_dim: true,
            normalize: true,
            terms: &["kl"],
            ..Spec::new(Family::Sampled(Sampled::Teacher {
                student_temperature: self.student_temperature,
                teacher_temperature: self.teacher_temperature,
                score_temperature: self.double_exponential.then_some(self.score_temperature),
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
            Parameter::number(
                "score_temperature",
                Range::Temperature,
                &mut self.score_temperature,
            ),
            Parameter::flag("double_exponential", &mut self.double_exponential),
        ]
    }
}
