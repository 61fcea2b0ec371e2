use super::{Family, Parameter, Range, Sampled, Spec, TeacherUse};

/// Contrastive representation distillation: each pair of a row and one of its sampled keys is a
/// question of its own, whether the two are of one sample (noise-contrastive estimation).
///
/// The keys of row i are rows of a [`Bank`](crate::Bank) of n samples: its own first, then K others.
/// With x̂ = x/‖x‖ and Z the bank's normalizer:
///
/// ```text
/// P_ik = exp(⟨x̂_i, key_ik⟩/τ)/Z        c = K/n
/// L = −1/N Σ_i ( log P_i0/(P_i0 + c + ε) + Σ_{k>0} log c/(P_ik + c + ε) )        ε = 1e-7
/// ```
///
/// Rows `[N, D]`, and no teacher: the keys stand for it. Keys are taken as they are. A row of zeros has
/// no direction: its products are 0 and so is its gradient. Rows may have weights: see
/// [`Batch::with_row_weights`](crate::Batch::with_row_weights).
///
/// The authors' loss is the sum of two of these, each with a gradient of its own: the student's rows
/// against the teacher's bank, and the teacher's rows, which a trained layer projects, against the
/// student's. [`Bank`](crate::Bank) shows a step.
///
/// Tian, Krishnan, Isola: *Contrastive Representation Distillation*, arXiv 1910.10699, equation 18,
/// and the authors' code, whose K is [`NEGATIVES`](Self::NEGATIVES).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Crd {
    /// τ; 0.07 by default.
    pub temperature: f64,
}

impl Default for Crd {
    fn default() -> Self {
        Crd { temperature: 0.07 }
    }
}

impl Crd {
    /// K in the authors' script.
    pub const NEGATIVES: usize = 16384;
    /// ε, which keeps a quotient of nothing finite.
    pub const EPSILON: f64 = 1e-7;

    pub(super) fn spec(&self) -> Spec {
        Spec {
            normalize: true,
            teacher: TeacherUse::Never,
            ..Spec::new(Family::Sampled(Sampled::Nce {
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
