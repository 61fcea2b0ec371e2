//! The parts that a pairwise loss is put together from: relation, normalizer and penalty.

use crate::cpu::embeddings::RowScaling;
use crate::loss::{Normalizer, Relation};

/// A penalty of a difference e of two scaled relations.
pub(super) trait PenaltyOp: Copy + Send + Sync {
    /// The penalty.
    fn value(self, e: f64) -> f64;
    /// The derivative of the penalty.
    fn slope(self, e: f64) -> f64;
}

/// e²
#[derive(Clone, Copy)]
pub(super) struct Squared;

impl PenaltyOp for Squared {
    #[inline(always)]
    fn value(self, e: f64) -> f64 {
        e * e
    }

    #[inline(always)]
    fn slope(self, e: f64) -> f64 {
        2.0 * e
    }
}

/// ½e² up to δ, δ(|e| − ½δ) beyond.
#[derive(Clone, Copy)]
pub(super) struct Huber {
    pub(super) delta: f64,
}

impl PenaltyOp for Huber {
    #[inline(always)]
    fn value(self, e: f64) -> f64 {
        let w = self.slope(e);
        w * (e - 0.5 * w)
    }

    #[inline(always)]
    fn slope(self, e: f64) -> f64 {
        e.clamp(-self.delta, self.delta)
    }
}

/// Whether the relation is a function of the difference of two rows.
pub(super) fn is_distance(relation: Relation) -> bool {
    matches!(relation, Relation::Distance | Relation::SquaredDistance)
}

/// How rows enter. A scaled relation does not depend on the scale of all rows, but without a
/// normalizer the relation does.
pub(super) fn row_scaling(
    relation: Relation,
    normalizer: Normalizer,
    normalize: bool,
) -> RowScaling {
    if normalize || relation == Relation::Cosine {
        RowScaling::Normalized
    } else if normalizer == Normalizer::None {
        RowScaling::Raw
    } else {
        RowScaling::Scaled
    }
}

/// The inverse 1/s of the normalizer for each row; 0 where s is 0, so that the scaled relation is
/// 0 and passes no gradient. `norms` are the rows' L2 norms, `sums` their sums without the
/// diagonal.
pub(super) fn inverse_scales(normalizer: Normalizer, sums: &[f64], norms: &[f64]) -> Vec<f64> {
    let n = sums.len();
    let inverse = |s: f64| if s == 0.0 { 0.0 } else { s.recip() };
    match normalizer {
        Normalizer::None => vec![1.0; n],
        Normalizer::Mean => vec![inverse(sums.iter().sum::<f64>() / pairs(n)); n],
        Normalizer::RowL2 => norms.iter().map(|&norm| inverse(norm)).collect(),
        Normalizer::Frobenius => {
            let largest = norms.iter().fold(0.0f64, |m, &norm| m.max(norm));
            // The largest norm first, so that no square overflows or vanishes.
            let square: f64 = norms.iter().map(|norm| (norm / largest).powi(2)).sum();
            vec![
                inverse(if largest == 0.0 {
                    0.0
                } else {
                    largest * square.sqrt()
                });
                n
            ]
        }
    }
}

/// [Σ over the normalizer's scope of w u] · ∂s/∂r_ij as a function of u_ij.
#[derive(Clone, Copy, Default)]
pub(super) struct ScaleSlope {
    /// The part that is the same for all i ≠ j, and 0 for i = j.
    pub(super) off_diagonal: f64,
    /// What u_ij is multiplied by.
    pub(super) per_u: f64,
}

/// The slope of the normalizer for each row, from Σ_j w_ij u_ij of each row.
pub(super) fn scale_slopes(normalizer: Normalizer, sums: &[f64]) -> Vec<ScaleSlope> {
    let n = sums.len();
    let total: f64 = sums.iter().sum();
    match normalizer {
        Normalizer::None => vec![ScaleSlope::default(); n],
        Normalizer::Mean => vec![
            ScaleSlope {
                off_diagonal: total / pairs(n),
                per_u: 0.0,
            };
            n
        ],
        Normalizer::RowL2 => sums
            .iter()
            .map(|&per_u| ScaleSlope {
                off_diagonal: 0.0,
                per_u,
            })
            .collect(),
        Normalizer::Frobenius => vec![
            ScaleSlope {
                off_diagonal: 0.0,
                per_u: total,
            };
            n
        ],
    }
}

/// How many pairs i ≠ j there are, or 1 for a single row, which has none.
fn pairs(n: usize) -> f64 {
    (n * (n - 1)).max(1) as f64
}
