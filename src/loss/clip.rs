use super::{Family, LabelUse, Parameter, Range, Spec, TeacherUse, Towers};

/// CLIP and its distillation: both towers of the student learn which rows belong together (hard), and
/// how similar the teacher finds all the others (soft).
///
/// The rows are two towers of n rows each, the first half against the second: images, then texts. With
/// x̂ = x/‖x‖, A and B the halves of the student, Y and Z those of the teacher:
///
/// ```text
/// S = Â B̂ᵀ/τ      T = Ŷ Ẑᵀ/τ_t
/// hard = ½ ( CE(S, diagonal) + CE(Sᵀ, diagonal) )
/// soft = ½ ( CE(S, softmax T) + CE(Sᵀ, softmax Tᵀ) )
/// L = hard_weight · hard + soft_weight · soft
/// ```
///
/// CE is the mean over rows of the cross-entropy. Student `[2n, D]`, teacher `[2n, D_t]` of any
/// width, or none: then the soft term is left out. The gradient is that of both towers. The terms
/// `hard` and `soft` are not weighted (`soft` is 0 without its weight), and `scale_gradient` is
/// ∂L/∂(1/τ), not scaled by the upstream factor. A row of zeros has no direction: its similarities
/// are 0 and so is its gradient.
///
/// Without `both_ways` only the rows of the first half have a softmax, so that hard = CE(S, diagonal)
/// and soft = CE(S, softmax T): queries against documents. Both towers still get a gradient.
///
/// # Masks
/// A pair of a row with a key that is not its partner can be a false negative. It is left out of all
/// softmaxes, the student's and the teacher's, if
///
/// - both have the same label, where the batch has [labels](crate::Batch::with_labels), one for each of
///   the 2n rows; or
/// - `guided` is on and the teacher finds it more alike than the own pair: with y and z the teacher's
///   rows at length 1, if ⟨y_i, z_k⟩ > ⟨y_i, z_i⟩ − `guide_margin` + 1e-5. The last number keeps
///   rounding from deciding over duplicates. The teacher is a guide alone if `soft_weight` is 0.
///
/// A teacher that is neither a target nor a guide is not read, and may hold anything.
///
/// To mask the hard term alone, evaluate the two terms apart and add them up.
///
/// Radford et al., arXiv 2103.00020; the soft term as in open_clip's `DistillClipLoss`, whose two
/// weights are 1, TinyCLIP (arXiv 2309.12314) and MobileCLIP (arXiv 2311.17049). One way without a
/// teacher it is sentence-transformers' `MultipleNegativesRankingLoss`. The guide is that of GISTEmbed
/// (arXiv 2402.16829).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Clip {
    /// τ; 0.07 by default.
    pub temperature: f64,
    /// τ_t; 0.07 by default.
    pub teacher_temperature: f64,
    /// Weight of the hard term; 1 by default.
    pub hard_weight: f64,
    /// Weight of the soft term; 1 by default.
    pub soft_weight: f64,
    /// Whether both towers' rows have a softmax over the other tower; on by default.
    pub both_ways: bool,
    /// Whether the teacher masks pairs; off by default.
    pub guided: bool,
    /// How far below the own pair's a cosine of the teacher already masks a pair; 0 by default. Below 0
    /// it has to be so far above.
    pub guide_margin: f64,
}

impl Default for Clip {
    fn default() -> Self {
        Clip {
            temperature: 0.07,
            teacher_temperature: 0.07,
            hard_weight: 1.0,
            soft_weight: 1.0,
            both_ways: true,
            guided: false,
            guide_margin: 0.0,
        }
    }
}

impl Clip {
    /// What a guide's cosine has to exceed the limit by.
    pub(crate) const GUIDE_SLACK: f64 = 1e-5;

    pub(super) fn spec(&self) -> Spec {
        Spec {
            normalize: true,
            teacher: match self.guided {
                true => TeacherUse::Required,
                false => TeacherUse::Optional,
            },
            labels: LabelUse::Optional,
            terms: &["hard", "soft", "scale_gradient"],
            ..Spec::new(Family::Towers(Towers::Softmax {
                temperature: self.temperature,
                teacher_temperature: self.teacher_temperature,
                hard_weight: self.hard_weight,
                soft_weight: self.soft_weight,
                both_ways: self.both_ways,
                guide_margin: self.guided.then_some(self.guide_margin),
            }))
        }
    }

    pub(super) fn parameters(&mut self) -> Vec<Parameter<'_>> {
        vec![
            Parameter::number("temperature", Range::Temperature, &mut self.temperature),
            Parameter::number(
                "teacher_temperature",
                Range::Temperature,
                &mut self.teacher_temperature,
            ),
            Parameter::number("hard_weight", Range::NotNegative, &mut self.hard_weight),
            Parameter::number("soft_weight", Range::NotNegative, &mut self.soft_weight),
            Parameter::flag("both_ways", &mut self.both_ways),
            Parameter::flag("guided", &mut self.guided),
            Parameter::number("guide_margin", Range::Finite, &mut self.guide_margin),
        ]
    }
}
