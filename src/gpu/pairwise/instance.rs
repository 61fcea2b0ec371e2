//! The combinations of relation, normalizer and penalty that kernels exist for.

use super::{CoefficientArguments, ContractionArguments, PenaltyArguments, RelationArguments};
use crate::gpu::kernels::{
    ByDType, Kernel, PAIRWISE_COEFFICIENTS_DISTANCE_MEAN_HUBER, PAIRWISE_COEFFICIENTS_GRAM,
    PAIRWISE_COEFFICIENTS_GRAM_CLAMPED, PAIRWISE_COEFFICIENTS_PKT, PAIRWISE_COEFFICIENTS_SP,
    PAIRWISE_COEFFICIENTS_SQUARED_FROBENIUS_HUBER, PAIRWISE_CONTRACTION_DIFFERENCE,
    PAIRWISE_CONTRACTION_DOT, PAIRWISE_PENALTY_DISTANCE_MEAN_HUBER, PAIRWISE_PENALTY_GRAM,
    PAIRWISE_PENALTY_GRAM_CLAMPED, PAIRWISE_PENALTY_PKT, PAIRWISE_PENALTY_SP,
    PAIRWISE_PENALTY_SQUARED_FROBENIUS_HUBER, PAIRWISE_RELATION_DIFFERENCE, PAIRWISE_RELATION_DOT,
    PAIRWISE_SCALE_DISTANCE_MEAN, PAIRWISE_SCALE_SQUARED_FROBENIUS,
};
use crate::loss::{Normalizer, Pairwise, Penalty, Relation};

/// A combination. Cosines are products of normalised rows.
///
/// All 90 combinations of sums over pairs would be 200 kernels. A new loss adds a line here and in three kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Instance {
    /// SP.
    DotRowL2Squared,
    /// RKD's distance. It has kernels of its own, which these are compared with.
    DistanceMeanHuber,
    /// Gram anchoring.
    DotNoneSquared,
    /// Gram anchoring, clamped.
    PositiveNoneSquared,
    /// PKT.
    ShiftedRowSumDivergence,
    /// The order of similarities.
    DotOrder,
    /// Hard DarkRank.
    DistanceRanking,
    /// No loss: the instance tests the parts that the other ones have not.
    SquaredFrobeniusHuber,
}

/// The kernels of a combination.
pub(super) struct Kernels {
    pub(super) relation: &'static ByDType<RelationArguments>,
    pub(super) between: Between,
    pub(super) contraction: &'static ByDType<ContractionArguments>,
}

/// The kernels between relation and contraction.
pub(super) enum Between {
    /// Of a penalty that is a sum over pairs.
    Sum {
        /// Where the normalizer's scope is the matrix.
        scale: Option<&'static Kernel<PenaltyArguments>>,
        penalty: &'static Kernel<PenaltyArguments>,
        coefficients: &'static Kernel<CoefficientArguments>,
    },
    /// Of the order of pairs: [`super::order`] has its kernels.
    Order,
    /// Of the ranking of neighbours: [`super::ranking`] has its kernels.
    Ranking,
}

impl Instance {
    pub(super) fn of(pairwise: Pairwise) -> Option<Self> {
        match (pairwise.relation, pairwise.normalizer, pairwise.penalty) {
            (Relation::Dot | Relation::Cosine, Normalizer::RowL2, Penalty::Squared) => {
                Some(Instance::DotRowL2Squared)
            }
            (Relation::Distance, Normalizer::Mean, Penalty::Huber { .. }) => {
                Some(Instance::DistanceMeanHuber)
            }
            (Relation::Dot | Relation::Cosine, Normalizer::None, Penalty::Squared) => {
                Some(Instance::DotNoneSquared)
            }
            (Relation::PositiveCosine, Normalizer::None, Penalty::Squared) => {
                Some(Instance::PositiveNoneSquared)
            }
            (Relation::ShiftedCosine, Normalizer::RowSum, Penalty::Divergence { .. }) => {
                Some(Instance::ShiftedRowSumDivergence)
            }
            (Relation::Dot | Relation::Cosine, Normalizer::None, Penalty::Order { .. }) => {
                Some(Instance::DotOrder)
            }
            (Relation::Distance, Normalizer::None, Penalty::Ranking { .. }) => {
                Some(Instance::DistanceRanking)
            }
            (Relation::SquaredDistance, Normalizer::Frobenius, Penalty::Huber { .. }) => {
                Some(Instance::SquaredFrobeniusHuber)
            }
            _ => None,
        }
    }

    pub(super) fn kernels(self) -> Kernels {
        match self {
            Instance::DotRowL2Squared => Kernels {
                relation: &PAIRWISE_RELATION_DOT,
                between: Between::Sum {
                    scale: None,
                    penalty: &PAIRWISE_PENALTY_SP,
                    coefficients: &PAIRWISE_COEFFICIENTS_SP,
                },
                contraction: &PAIRWISE_CONTRACTION_DOT,
            },
            Instance::DistanceMeanHuber => Kernels {
                relation: &PAIRWISE_RELATION_DIFFERENCE,
                between: Between::Sum {
                    scale: Some(&PAIRWISE_SCALE_DISTANCE_MEAN),
                    penalty: &PAIRWISE_PENALTY_DISTANCE_MEAN_HUBER,
                    coefficients: &PAIRWISE_COEFFICIENTS_DISTANCE_MEAN_HUBER,
                },
                contraction: &PAIRWISE_CONTRACTION_DIFFERENCE,
            },
            Instance::DotNoneSquared => Kernels {
                relation: &PAIRWISE_RELATION_DOT,
                between: Between::Sum {
                    scale: None,
                    penalty: &PAIRWISE_PENALTY_GRAM,
                    coefficients: &PAIRWISE_COEFFICIENTS_GRAM,
                },
                contraction: &PAIRWISE_CONTRACTION_DOT,
            },
            Instance::PositiveNoneSquared => Kernels {
                relation: &PAIRWISE_RELATION_DOT,
                between: Between::Sum {
                    scale: None,
                    penalty: &PAIRWISE_PENALTY_GRAM_CLAMPED,
                    coefficients: &PAIRWISE_COEFFICIENTS_GRAM_CLAMPED,
                },
                contraction: &PAIRWISE_CONTRACTION_DOT,
            },
            Instance::ShiftedRowSumDivergence => Kernels {
                relation: &PAIRWISE_RELATION_DOT,
                between: Between::Sum {
                    scale: None,
                    penalty: &PAIRWISE_PENALTY_PKT,
                    coefficients: &PAIRWISE_COEFFICIENTS_PKT,
                },
                contraction: &PAIRWISE_CONTRACTION_DOT,
            },
            Instance::DotOrder => Kernels {
                relation: &PAIRWISE_RELATION_DOT,
                between: Between::Order,
                contraction: &PAIRWISE_CONTRACTION_DOT,
            },
            Instance::DistanceRanking => Kernels {
                relation: &PAIRWISE_RELATION_DIFFERENCE,
                between: Between::Ranking,
                contraction: &PAIRWISE_CONTRACTION_DIFFERENCE,
            },
            Instance::SquaredFrobeniusHuber => Kernels {
                relation: &PAIRWISE_RELATION_DIFFERENCE,
                between: Between::Sum {
                    scale: Some(&PAIRWISE_SCALE_SQUARED_FROBENIUS),
                    penalty: &PAIRWISE_PENALTY_SQUARED_FROBENIUS_HUBER,
                    coefficients: &PAIRWISE_COEFFICIENTS_SQUARED_FROBENIUS_HUBER,
                },
                contraction: &PAIRWISE_CONTRACTION_DIFFERENCE,
            },
        }
    }
}
