use super::{Family, Parameter, Range, Spec, TeacherUse, Towers};

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
/// `hard` and `soft` are not weighted (`soft` is 0 without its weight), and `scale_gradient` is ∂L/∂(1/τ), not scaled by the
/// upstream factor. A row of zeros has no direction: its similarities are 0 and so is its gradient.
///
/// Radford et al., arXiv 2103.00020; the soft term as in open_clip's `DistillClipLoss`, whose two
/// weights are 1, TinyCLIP (arXiv 2309.12314) and MobileCLIP (arXiv 2311.17049).
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
}

impl Default for Clip {
    fn default() -> Self {
        Clip {
            temperature: 0.07,
            teacher_temperature: 0.07,
            hard_weight: 1.0,
            soft_weight: 1.0,
        }
    }
}

impl Clip {
    pub(super) fn spec(&self) -> Spec {
        Spec {
            normalize: true,
            teacher: TeacherUse::Optional,
            terms: &["hard", "soft", "scale_gradient"],
            ..Spec::new(Family::Towers(Towers::Softmax {
                temperature: self.temperature,
                teacher_temperature: self.teacher_temperature,
                hard_weight: self.hard_weight,
                soft_weight: self.soft_weight,
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
        ]
    }
}
