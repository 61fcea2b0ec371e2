use super::{Family, Parameter, Range, Spec, TeacherUse, Towers};

/// SigLIP: each pair of a row of one tower with a row of the other is a question of its own, whether
/// the two belong together.
///
/// The rows are two towers of n rows each, the first half A against the second, B. With x̂ = x/‖x‖:
///
/// ```text
/// L = −1/n Σ_ij log σ( z_ij (a ⟨â_i, b̂_j⟩ + b) )      z_ij = 1 if i = j, else −1
/// ```
///
/// Student `[2n, D]`, and no teacher. The gradient is that of both towers. The terms
/// `scale_gradient` and `bias_gradient` are ∂L/∂a and ∂L/∂b, not scaled by the upstream factor. A row
/// of zeros has no direction: its similarities are 0 and so is its gradient.
///
/// Zhai et al.: *Sigmoid Loss for Language Image Pre-Training*, arXiv 2303.15343.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SigLip {
    /// a; 10 by default, where the paper starts to learn it.
    pub scale: f64,
    /// b; −10 by default, where the paper starts to learn it.
    pub bias: f64,
}

impl Default for SigLip {
    fn default() -> Self {
        SigLip {
            scale: 10.0,
            bias: -10.0,
        }
    }
}

impl SigLip {
    pub(super) fn spec(&self) -> Spec {
        Spec {
            normalize: true,
            teacher: TeacherUse::Never,
            terms: &["scale_gradient", "bias_gradient"],
            ..Spec::new(Family::Towers(Towers::Sigmoid {
                scale: self.scale,
                bias: self.bias,
            }))
        }
    }

    pub(super) fn parameters(&mut self) -> Vec<Parameter<'_>> {
        vec![
            Parameter::number("scale", Range::Temperature, &mut self.scale),
            Parameter::number("bias", Range::Finite, &mut self.bias),
        ]
    }
}
