use super::{Family, Normalizer, Pairwise, Parameter, Penalty, Relation, Spec};

/// Gram anchoring: the student's cosine similarities against the teacher's.
///
/// With S_ij = ⟨x̂_i, x̂_j⟩, x̂ = x/‖x‖ (0 for a row of zeros), and T_ij the same of the teacher:
///
/// ```text
/// L = 1/N² · Σ_ij ( S_ij − T_ij )²
/// ```
///
/// Student `[N, D]`, teacher `[N, D_t]`, any D and D_t. Rows are the patches of an image, or the
/// samples of a batch.
///
/// Siméoni et al.: *DINOv3*, arXiv 2508.10104, and its code (`dinov3/loss/gram_loss.py`), where
/// rows are patches; Jasper and Stella (arXiv 2412.19048) use it on samples, as their similarity
/// loss.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Gram {
    /// Negative similarities count as 0, of student and teacher (`remove_neg` in DINOv3's code);
    /// off by default.
    pub clamp: bool,
}

impl Gram {
    pub(super) fn spec(&self) -> Spec {
        let relation = if self.clamp {
            Relation::PositiveCosine
        } else {
            Relation::Cosine
        };
        Spec {
            normalize: true,
            ..Spec::new(Family::Pairwise(Pairwise::new(
                relation,
                Normalizer::None,
                Penalty::Squared,
            )))
        }
    }

    pub(super) fn parameters(&mut self) -> Vec<Parameter<'_>> {
        vec![Parameter::flag("clamp", &mut self.clamp)]
    }
}
