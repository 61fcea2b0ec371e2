//! How far a device may be from the reference, which computes in f64 on the same inputs: a table
//! for inputs that are well conditioned, and a factor for other kinds of data. `numerics.rs` has a
//! second bar: the definition evaluated directly in the device's own precision.

use relata::{
    Contrastive, DType, Family, Loss, Pairwise, Penalty, Problem, Relation, Target, WeightPrecision,
};

use super::cases::Data;
use super::losses;

/// Relative errors: of the loss to its value, of the gradient to its length.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tolerance {
    pub(crate) loss: f64,
    pub(crate) gradient: f64,
}

impl Tolerance {
    /// This tolerance, with the rounding magnified by `conditioning`.
    pub(crate) fn magnified(self, conditioning: Tolerance) -> Self {
        Tolerance {
            loss: self.loss * conditioning.loss,
            gradient: self.gradient * conditioning.gradient,
        }
    }

    pub(crate) fn plus(self, other: Tolerance) -> Self {
        Tolerance {
            loss: self.loss + other.loss,
            gradient: self.gradient + other.gradient,
        }
    }
}

const fn tolerance_of(loss: f64, gradient: f64) -> Tolerance {
    Tolerance { loss, gradient }
}

/// What a loss on inputs of a type may be off by if the inputs are well conditioned: the closest
/// rows are not much closer than the farthest, and the student has not converged. The numbers are
/// three to five times what was measured over the case table. (For other inputs `numerics.rs`
/// measures the bar.)
///
/// Each family and precision has its own arm, so that an author has to think about a new one. f16
/// and bf16 are widened exactly and computed in f32: they have no tolerance of their own.
pub(crate) fn tolerance(loss: &Loss, dtype: DType) -> Tolerance {
    let wide = dtype == DType::F64;
    match loss.spec().family {
        // Scores are a power of the distances, and magnify their rounding by their size. All devices
        // take the distances of neighbours in f64.
        Family::Pairwise(Pairwise {
            penalty: Penalty::Ranking { .. },
            ..
        }) => {
            if wide {
                tolerance_of(1e-12, 5e-12)
            } else {
                tolerance_of(1e-6, 1e-6)
            }
        }
        // The reference adds up millions of terms, one after the other.
        Family::Pairwise(Pairwise {
            penalty: Penalty::Order { .. },
            ..
        }) if wide => tolerance_of(3e-13, 1e-13),
        Family::Pairwise(pairwise) => match (pairwise.relation, wide) {
            // Distances from differences are good to an ulp. The gradient subtracts the mean slope,
            // which cancels by ten or so if all rows are about as far apart.
            (Relation::Distance | Relation::SquaredDistance, true) => tolerance_of(5e-14, 5e-14),
            (Relation::Distance | Relation::SquaredDistance, false) => tolerance_of(1e-6, 2e-6),
            // A product is good to its rounding. The gradient subtracts what does not change the
            // norm of a row.
            (
                Relation::Dot
                | Relation::Cosine
                | Relation::PositiveCosine
                | Relation::ShiftedCosine,
                true,
            ) => tolerance_of(5e-14, 1e-13),
            (
                Relation::Dot
                | Relation::Cosine
                | Relation::PositiveCosine
                | Relation::ShiftedCosine,
                false,
            ) => tolerance_of(1e-6, 2e-6),
        },
        // The law of cosines subtracts numbers that are larger than the result by the longest
        // distance over the shortest. That is tens here in f64; in f32 it is used up to four.
        Family::Triplet(triplet) if triplet.distance_weight == 0.0 => {
            if wide {
                tolerance_of(1e-13, 1e-13)
            } else {
                tolerance_of(1e-6, 1e-6)
            }
        }
        // Angles and distances, weighted. On a line the angles have no slope, so they cancel to
        // nothing.
        Family::Triplet(_) => {
            if wide {
                tolerance_of(1e-13, 3e-13)
            } else {
                tolerance_of(1e-6, 2e-6)
            }
        }
        // A logit is a product over τ. Its rounding, ε/τ at most, is the softmax's rounding.
        Family::Contrastive(Contrastive {
            temperature,
            target,
        }) => match (target, wide) {
            (Target::Teacher { temperature: other }, true) => {
                tolerance_of(5e-14, 1e-13 + 1e-16 / temperature.min(other))
            }
            (Target::Teacher { temperature: other }, false) => {
                tolerance_of(1e-6, 2e-6 + 1e-8 / temperature.min(other))
            }
            (Target::OwnKey, true) => tolerance_of(5e-14, 5e-14 + 1e-16 / temperature),
            (Target::OwnKey, false) => tolerance_of(1e-6, 1e-6 + 1e-8 / temperature),
        },
        // As above: what divides the products magnifies their rounding.
        Family::Towers(_) | Family::Sampled(_) => {
            let tau = losses::least_temperature(loss).expect("a temperature");
            if wide {
                tolerance_of(5e-14, 1e-13 + 1e-16 / tau)
            } else {
                tolerance_of(1e-6, 2e-6 + 1e-8 / tau)
            }
        }
        // At a high T both softmaxes are nearly flat. The divergence falls as 1/T² and the
        // difference of probabilities as 1/T, but rounding does not fall.
        Family::Logits(logits) => {
            let t = logits.student_temperature.max(1.0);
            if wide {
                tolerance_of(1e-14 * t * t, 1e-14 * t)
            } else {
                tolerance_of(1e-6 * (1.0 + 0.1 * t * t), 5e-7 * (1.0 + 0.5 * t))
            }
        }
    }
}

/// By how much the kind of data magnifies the rounding of a loss and of its gradient.
pub(crate) fn conditioning(data: Data, dtype: DType) -> Tolerance {
    let (loss, gradient) = match data {
        Data::Gaussian
        | Data::Offset { .. }
        | Data::Translated { .. }
        | Data::Scaled { .. }
        | Data::Duplicates
        | Data::Identical
        | Data::ZeroRow => (1.0, 1.0),
        // The law of cosines loses the longest distance over the shortest; f32 does not use it
        // here.
        Data::Clusters { spread } if dtype == DType::F64 => (0.1 / spread, 0.1 / spread),
        Data::Clusters { .. } => (1.0, 1.0),
        // The relations, each rounded, differ by the noise, and their penalties by its square. (For
        // RRD and InfoNCE the noise that counts is what the temperatures leave of it, which is as
        // much.)
        Data::NearTeacher { noise } => (1.0 / (noise * noise), 1.0 / noise),
        Data::Teacher => (1e4, 1e2),
    };
    Tolerance { loss, gradient }
}

/// By how much rows of one element magnify the rounding of a loss and of its gradient. Their
/// products, scaled to rows of length 1, are the same for each row but for a sign. So Σ_j C_ij x_j
/// is 0 but for rounding, and 1/s_i magnifies what is left. The definition in f32 is off by 2e-4.
pub(crate) fn conditioning_of_dim(loss: &Loss, dim: usize) -> Tolerance {
    match loss.spec().family {
        Family::Pairwise(pairwise) if pairwise.relation == Relation::Dot && dim == 1 => {
            tolerance_of(1.0, 100.0)
        }
        // A row that lies opposite to another has a probability near 0, which is the sum of 1 and a
        // cosine. In a space of few dimensions there are such rows.
        Family::Pairwise(pairwise) if pairwise.relation == Relation::ShiftedCosine && dim <= 3 => {
            tolerance_of(10.0, 100.0)
        }
        _ => tolerance_of(1.0, 1.0),
    }
}

/// By how much KL(p‖q) may be off, if the loss may be off by `within`, relative. The KL is the
/// cross-entropy less the entropy, and each is rounded like its logits, by ε/τ.
pub(crate) fn kl_budget(loss: &Loss, dtype: DType, within: f64, value: f64) -> f64 {
    let tau = losses::least_temperature(loss).expect("a loss of logits over a temperature");
    let epsilon = match dtype {
        DType::F64 => f64::EPSILON,
        DType::F32 | DType::F16 | DType::BF16 => f64::from(f32::EPSILON),
        _ => panic!("which ε has {dtype}? Add an arm"),
    };
    2.0 * within * value + epsilon / tau
}

/// By how much the gradient of a parameter may be off, if a gradient may be off by `within`,
/// relative. It is a sum of products of rows under slopes, of which the largest are about 1, and
/// cancels.
pub(crate) fn parameter_budget(within: f64, value: f64) -> f64 {
    within * value.abs().max(1.0)
}

/// What rounding the keys to f16 changes. Each element changes by 2^-13 or so of itself. Each logit
/// changes by as much of a product of rows of length 1, over τ, less what evens out over D.
pub(crate) fn rounding_of_keys(loss: &Loss, dim: usize) -> Tolerance {
    let tau = losses::least_temperature(loss).expect("a loss with keys");
    let of_logit = 1.5e-4 / (tau * (dim as f64).sqrt());
    Tolerance {
        loss: of_logit,
        gradient: 4e-4 + of_logit,
    }
}

/// What rounding the weights to f16, each by 2^-12 of itself at most, changes of a gradient. The
/// gradient is a sum of weighted keys and loses as much of that sum without its signs, which is a
/// few times its length. The loss does not change: its weights are not rounded.
pub(crate) const ROUNDING_OF_WEIGHTS: f64 = 4.0 / 4096.0;

/// [`ROUNDING_OF_WEIGHTS`] where a device rounds the weights of `problem`, and 0 elsewhere.
pub(crate) fn rounding_of_weights(problem: &Problem, dtype: DType) -> f64 {
    let halves = problem.weight_precision() == WeightPrecision::Half && dtype != DType::F32;
    if halves { ROUNDING_OF_WEIGHTS } else { 0.0 }
}
