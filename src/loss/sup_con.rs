use super::{Family, LabelUse, Parameter, Range, Spec, TeacherUse, Towers};

/// Supervised contrastive learning: the rows of a label are to be nearer to one another than to all
/// others. NT-Xent (SimCLR) is this loss with a label for each sample, which its two views share.
///
/// With x̂ = x/‖x‖, S_ik = ⟨x̂_i, x̂_k⟩/τ, and P(i) the other rows of row i's label:
///
/// ```text
/// L = mean over the rows with a P(i) of −1/|P(i)| Σ_{p ∈ P(i)} ( S_ip − log Σ_{k≠i} exp S_ik )
/// ```
///
/// Student `[N, D]` with labels `[N]` ([`Batch::with_labels`](crate::Batch::with_labels)), and no
/// teacher. Where no row has another of its label, loss and gradient are 0. The term
/// `scale_gradient` is ∂L/∂(1/τ), not scaled by the upstream factor. A row of zeros has no direction:
/// its similarities are 0 and so is its gradient.
///
/// Khosla et al., arXiv 2004.11362 (L_out); Chen et al. (SimCLR), arXiv 2002.05709. The authors' code
/// multiplies the loss with τ over a base temperature, which are equal by default.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SupCon {
    /// τ; 0.07 by default.
    pub temperature: f64,
}

impl Default for SupCon {
    fn default() -> Self {
        SupCon { temperature: 0.07 }
    }
}

impl SupCon {
    pub(super) fn spec(&self) -> Spec {
        Spec {
            normalize: true,
            teacher: TeacherUse::Never,
            labels: LabelUse::Required,
            terms: &["scale_gradient"],
            ..Spec::new(Family::Towers(Towers::Labels {
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
