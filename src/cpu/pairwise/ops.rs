//! The parts that a pairwise loss is put together from: relation, normalizer and penalty.

use crate::cpu::embeddings::RowScaling;
use crate::loss::{Normalizer, Pairwise, Relation};

/// A penalty of two scaled relations, u of the student and v of the teacher.
pub(super) trait PenaltyOp: Copy + Send + Sync {
    /// The penalty.
    fn value(self, u: f64, v: f64) -> f64;
    /// The derivative of the penalty by u.
    fn slope(self, u: f64, v: f64) -> f64;
}

/// (u − v)²
#[derive(Clone, Copy)]
pub(super) struct Squared;

impl PenaltyOp for Squared {
    #[inline(always)]
    fn value(self, u: f64, v: f64) -> f64 {
        (u - v) * (u - v)
    }

    #[inline(always)]
    fn slope(self, u: f64, v: f64) -> f64 {
        2.0 * (u - v)
    }
}

/// Of e = u − v: ½e² up to δ, δ(|e| − ½δ) beyond.
#[derive(Clone, Copy)]
pub(super) struct Huber {
    pub(super) delta: f64,
}

impl PenaltyOp for Huber {
    #[inline(always)]
    fn value(self, u: f64, v: f64) -> f64 {
        let w = self.slope(u, v);
        w * (u - v - 0.5 * w)
    }

    #[inline(always)]
    fn slope(self, u: f64, v: f64) -> f64 {
        (u - v).clamp(-self.delta, self.delta)
    }
}

/// v·log((v + ε)/(u + ε)) + (u − v). Rows of u and v have the same sum, 1, so the difference adds
/// nothing to the sum of a row, and nothing to the gradient. With it no term cancels another: with
/// x = (u − v)/(v + ε), this is v (x − log(1 + x)) + ε x.
#[derive(Clone, Copy)]
pub(super) struct Divergence {
    pub(super) epsilon: f64,
}

impl PenaltyOp for Divergence {
    #[inline(always)]
    fn value(self, u: f64, v: f64) -> f64 {
        let unit = (v + self.epsilon).recip();
        let x = (u - v) * unit;
        let excess = if x.abs() < 0.4 {
            excess_over_log(x)
        } else {
            x - ((u + self.epsilon) * unit).ln()
        };
        v * excess + self.epsilon * x
    }

    #[inline(always)]
    fn slope(self, u: f64, v: f64) -> f64 {
        (u - v + self.epsilon) / (u + self.epsilon)
    }
}

/// x − log(1 + x) for |x| < 0.4, where the direct difference would cancel.
///
/// log(1 + x) = 2 (s + s³/3 + s⁵/5 + …) with s = x/(2 + x), and x − 2s = s x.
#[inline(always)]
fn excess_over_log(x: f64) -> f64 {
    const TERMS: usize = 13;
    let s = x / (2.0 + x);
    let square = s * s;
    let mut series = 0.0;
    for k in (0..TERMS).rev() {
        series = series * square + ((2 * k + 3) as f64).recip();
    }
    s * (x - 2.0 * square * series)
}

/// A relation, where it is not the sum over the dimensions itself.
pub(super) trait RelationOp: Copy + Send + Sync {
    /// Whether a row has such a relation with itself that a gradient passes through it.
    const HAS_DIAGONAL: bool = true;
    /// The relation, of the sum over the dimensions.
    fn of_sum(sum: f64) -> f64;
    /// What the rows' contraction takes, of the slope k of a pair and its relation r.
    fn weight(k: f64, r: f64) -> f64;
}

/// The sum itself: products and squared distances.
#[derive(Clone, Copy)]
pub(super) struct Plain;

impl RelationOp for Plain {
    #[inline(always)]
    fn of_sum(sum: f64) -> f64 {
        sum
    }

    #[inline(always)]
    fn weight(k: f64, _: f64) -> f64 {
        k
    }
}

/// The root. The gradient of a distance of 0 counts as 0.
#[derive(Clone, Copy)]
pub(super) struct Root;

impl RelationOp for Root {
    const HAS_DIAGONAL: bool = false;

    #[inline(always)]
    fn of_sum(sum: f64) -> f64 {
        sum.sqrt()
    }

    #[inline(always)]
    fn weight(k: f64, r: f64) -> f64 {
        if r > 0.0 { k / r } else { 0.0 }
    }
}

/// max(0, c)
#[derive(Clone, Copy)]
pub(super) struct Positive;

impl RelationOp for Positive {
    #[inline(always)]
    fn of_sum(sum: f64) -> f64 {
        if sum < 0.0 { 0.0 } else { sum }
    }

    #[inline(always)]
    fn weight(k: f64, r: f64) -> f64 {
        if r > 0.0 { k } else { 0.0 }
    }
}

/// ½(1 + c)
#[derive(Clone, Copy)]
pub(super) struct Shifted;

impl RelationOp for Shifted {
    #[inline(always)]
    fn of_sum(sum: f64) -> f64 {
        0.5 + 0.5 * sum
    }

    #[inline(always)]
    fn weight(k: f64, _: f64) -> f64 {
        0.5 * k
    }
}

/// Whether the relation is a function of the difference of two rows.
pub(super) fn is_distance(relation: Relation) -> bool {
    matches!(relation, Relation::Distance | Relation::SquaredDistance)
}

/// How rows enter. A scaled relation does not depend on the scale of all rows, but without a
/// normalizer the relation does.
pub(super) fn row_scaling(loss: &Pairwise, normalize: bool) -> RowScaling {
    if normalize || loss.relation.is_of_directions() {
        RowScaling::Normalized {
            epsilon: loss.norm_epsilon,
        }
    } else if loss.normalizer == Normalizer::None {
        RowScaling::Raw
    } else {
        RowScaling::Scaled
    }
}

/// The inverse 1/s of the normalizer for each row; 0 where s is 0, so that the scaled relation is
/// 0 and passes no gradient. `norms` are the rows' L2 norms, `sums` their sums, which
/// the mean takes without the diagonal.
pub(super) fn inverse_scales(normalizer: Normalizer, sums: &[f64], norms: &[f64]) -> Vec<f64> {
    let n = sums.len();
    let inverse = |s: f64| if s == 0.0 { 0.0 } else { s.recip() };
    match normalizer {
        Normalizer::None => vec![1.0; n],
        Normalizer::Mean => vec![inverse(sums.iter().sum::<f64>() / pairs(n)); n],
        Normalizer::RowL2 => norms.iter().map(|&norm| inverse(norm)).collect(),
        Normalizer::RowSum => sums.iter().map(|&sum| inverse(sum)).collect(),
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
    /// The part that is the same for all i ≠ j.
    pub(super) off_diagonal: f64,
    /// The same for i = j.
    pub(super) diagonal: f64,
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
                ..ScaleSlope::default()
            };
            n
        ],
        Normalizer::RowL2 => sums
            .iter()
            .map(|&per_u| ScaleSlope {
                per_u,
                ..ScaleSlope::default()
            })
            .collect(),
        Normalizer::RowSum => sums
            .iter()
            .map(|&sum| ScaleSlope {
                off_diagonal: sum,
                diagonal: sum,
                per_u: 0.0,
            })
            .collect(),
        Normalizer::Frobenius => vec![
            ScaleSlope {
                per_u: total,
                ..ScaleSlope::default()
            };
            n
        ],
    }
}

/// How many pairs i ≠ j there are, or 1 for a single row, which has none.
fn pairs(n: usize) -> f64 {
    (n * (n - 1)).max(1) as f64
}
