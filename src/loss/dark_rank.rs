use super::{Family, Normalizer, Pairwise, Parameter, Penalty, Range, Relation, Spec};

/// Hard DarkRank: how likely the order of the teacher's nearest neighbours is to the student.
///
/// For row i let π be the `length` other rows that are nearest to it in the teacher, the nearest
/// first, and of rows that are equally near the one with the lower index first. With the student's
/// scores s_k = −α ‖x_i − x_π(k)‖^β:
///
/// ```text
/// L = 1/N · Σ_i Σ_k ( log Σ_{m≥k} exp s_m − s_k )
/// ```
///
/// So of the neighbours that are left, the next one of the teacher is to have the highest score
/// (Plackett and Luce). A batch of N ≤ `length` rows has N − 1 neighbours for each row, and one row
/// alone has loss and gradient 0. A pair of rows at distance 0 has no gradient.
///
/// Student `[N, D]`, teacher `[N, D_t]`, any D and D_t.
///
/// Chen, Wang, Zhang: *DarkRank*, AAAI 2018, arXiv 1707.01220, and the code of RKD
/// (`HardDarkRank` in lenscloth/RKD's `metric/loss.py`), which this follows. They differ: in the
/// paper the inner sum is over all candidates that are left, and in the code over those of the
/// `length` neighbours, so that the last one always has probability 1. The code raises distances
/// to at least 1e-6, here they are as they are. The scores grow as the cube of the distances, so
/// rows should have length 1 or so; the code's training script has α = 2.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DarkRank {
    /// α: the scale of the scores; 3 by default.
    pub alpha: f64,
    /// β: the power of the distances; 3 by default.
    pub beta: f64,
    /// How many neighbours of each row are ranked; 4 by default, 1 to 32.
    pub length: usize,
}

impl Default for DarkRank {
    fn default() -> Self {
        DarkRank {
            alpha: 3.0,
            beta: 3.0,
            length: 4,
        }
    }
}

impl DarkRank {
    /// The most neighbours: kernels have room for so many.
    pub(crate) const MOST_LENGTH: usize = 32;

    pub(super) fn spec(&self) -> Spec {
        let DarkRank {
            alpha,
            beta,
            length,
        } = *self;
        Spec::new(Family::Pairwise(Pairwise::new(
            Relation::Distance,
            Normalizer::None,
            Penalty::Ranking {
                alpha,
                beta,
                length,
            },
        )))
    }

    pub(super) fn parameters(&mut self) -> Vec<Parameter<'_>> {
        vec![
            Parameter::number("alpha", Range::Positive, &mut self.alpha),
            Parameter::number("beta", Range::Positive, &mut self.beta),
            Parameter::count("length", 1..=Self::MOST_LENGTH, &mut self.length),
        ]
    }
}
