use super::{Family, Normalizer, Pairwise, Parameter, Penalty, Range, Relation, Spec};

/// The order of similarities: of two pairs of rows, the one that is more alike to the teacher is to
/// be more alike to the student, by a margin.
///
/// With S_ij = ⟨x̂_i, x̂_j⟩, x̂ = x/‖x‖ (0 for a row of zeros), s the P = N(N − 1)/2 numbers S_ij,
/// i < j, of the student, row by row, and t those of the teacher:
///
/// ```text
/// L = 1/M · Σ_{a<b} max( 0, (s_b − s_a)·l_ab + margin )
/// M = P(P − 1)/2        l_ab = 1 if t_b < t_a, else −1
/// ```
///
/// So of two pairs that the teacher finds equally alike, the later one counts as more alike. Where
/// a term is exactly 0 its gradient is 0. Fewer than 3 rows have no two pairs: loss and gradient
/// are 0. (The code gives NaN there, the mean of nothing.)
///
/// Student `[N, D]`, teacher `[N, D_t]`, any D and D_t, N up to 65536: the numbers of pairs then
/// fit in 32 bits. It takes O(N² log N) time and O(N²) memory on the CPU. A GPU compares all pairs
/// with all pairs, O(N⁴) time and O(N²) memory, and takes up to 4096 rows.
///
/// Zhang et al.: *Jasper and Stella: distillation of SOTA embedding models*, arXiv 2412.19048,
/// where it is the relative similarity loss, and RAG-Retrieval's `model_distill.py`, which this
/// follows. The code averages it over several prefixes of the rows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Order {
    /// How much more alike; 0.015 by default. At least 0.
    pub margin: f64,
}

impl Default for Order {
    fn default() -> Self {
        Order { margin: 0.015 }
    }
}

impl Order {
    /// The most rows: the pairs, and what a pair is compared with, are counted in 32 bits.
    pub(crate) const MOST_ROWS: usize = 1 << 16;

    pub(super) fn spec(&self) -> Spec {
        let penalty = Penalty::Order {
            margin: self.margin,
        };
        Spec {
            normalize: true,
            ..Spec::new(Family::Pairwise(Pairwise::new(
                Relation::Cosine,
                Normalizer::None,
                penalty,
            )))
        }
    }

    pub(super) fn parameters(&mut self) -> Vec<Parameter<'_>> {
        vec![Parameter::number(
            "margin",
            Range::NotNegative,
            &mut self.margin,
        )]
    }
}
