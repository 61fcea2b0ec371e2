use super::{Family, Normalizer, Pairwise, Parameter, Penalty, Relation, Spec};

/// PKT: probabilistic knowledge transfer, which compares how likely each row is to be another's
/// neighbour.
///
/// With S_ij = ⟨x̂_i, x̂_j⟩, x̂ = x/(‖x‖ + ε), and ε = 1e-7:
///
/// ```text
/// P_ij = (S_ij + 1) / Σ_k (S_ik + 1)
/// L = 1/N² · Σ_ij P_ij(Y) · log( (P_ij(Y) + ε)/(P_ij(X) + ε) )
/// ```
///
/// A row is a neighbour of itself, as in the code. Student `[N, D]`, teacher `[N, D_t]`, any D and
/// D_t.
///
/// Passalis, Tefas: *Learning Deep Representations with Probabilistic Knowledge Transfer*, ECCV
/// 2018, arXiv 1803.10837, and RepDistiller's `PKT.py`, which this follows. The paper has no ε, and
/// sums over i ≠ j without the factor 1/N².
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pkt;

impl Pkt {
    /// ε: of the logarithm, and of the lengths of rows.
    pub(crate) const EPSILON: f64 = 1e-7;

    pub(super) fn spec(&self) -> Spec {
        Spec {
            normalize: true,
            ..Spec::new(Family::Pairwise(Pairwise {
                relation: Relation::ShiftedCosine,
                normalizer: Normalizer::RowSum,
                penalty: Penalty::Divergence {
                    epsilon: Self::EPSILON,
                },
                norm_epsilon: Self::EPSILON,
            }))
        }
    }

    pub(super) fn parameters(&mut self) -> Vec<Parameter<'_>> {
        Vec::new()
    }
}
