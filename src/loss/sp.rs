use super::{Family, Normalizer, Pairwise, Parameter, Penalty, Relation, Spec};

/// SP: similarity-preserving distillation, which compares the rows of two Gram matrices.
///
/// ```text
/// G = X Xᵀ        Ĝ_i = G_i / ‖G_i‖        each row of the Gram matrix L2-normalised
/// L = 1/N² · Σ_ij ( Ĝ_ij(X) − Ĝ_ij(Y) )²
/// ```
///
/// Rows are taken as they come: activations, flattened. A row of zeros is similar to none, and no
/// gradient passes through its row of the Gram matrix. Student `[N, D]`, teacher `[N, D_t]`, any D
/// and D_t.
///
/// Tung, Mori: *Similarity-Preserving Knowledge Distillation*, ICCV 2019, arXiv 1907.09682, and
/// RepDistiller's `SP.py`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sp;

impl Sp {
    pub(super) fn spec(&self) -> Spec {
        Spec::new(Family::Pairwise(Pairwise::new(
            Relation::Dot,
            Normalizer::RowL2,
            Penalty::Squared,
        )))
    }

    pub(super) fn parameters(&mut self) -> Vec<Parameter<'_>> {
        Vec::new()
    }
}
