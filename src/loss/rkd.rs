use super::{Family, Parameter, Range, RkdAngle, RkdDistance, Spec, Triplet};

/// RKD distance and angle in one evaluation: the relation and the contraction are computed once.
///
/// ```text
/// L = distance_weight · L_distance + angle_weight · L_angle
/// ```
///
/// [`RkdDistance`](crate::RkdDistance) and [`RkdAngle`](crate::RkdAngle) define the two parts and name
/// the paper. An evaluation reports both parts, not weighted, as the terms `distance` and `angle`.
/// A part of weight 0 is not computed: its term is 0.
///
/// Student `[N, D]`, teacher `[N, D_t]`, any D and D_t.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rkd {
    /// Weight of the distance loss. 1 by default, as the authors train metric learning.
    pub distance_weight: f64,
    /// Weight of the angle loss. 2 by default, as the authors train metric learning.
    pub angle_weight: f64,
    /// δ of both Huber penalties; 1 by default.
    pub delta: f64,
    /// L2-normalise the rows of student and teacher first, with the gradient through it; off by
    /// default. Normalising rounds each row once.
    /// Where rows lie far from the origin compared with their mutual distances, leave it off:
    /// distances lose about offset/spread of their relative precision by it. Rows whose directions
    /// are at most 2⁻²¹ apart (for f64 rows 2⁻⁴⁶) count as duplicates.
    pub normalize: bool,
}

impl Rkd {
    /// The weights in use for classification, 25 and 50 (RepDistiller's `RKD.py`).
    pub const CLASSIFICATION: Rkd = Rkd {
        distance_weight: 25.0,
        angle_weight: 50.0,
        delta: 1.0,
        normalize: false,
    };

    pub(super) fn spec(&self) -> Spec {
        Spec {
            normalize: self.normalize,
            terms: &["distance", "angle"],
            ..Spec::new(Family::Triplet(Triplet {
                delta: self.delta,
                angle_weight: self.angle_weight,
                distance_weight: self.distance_weight,
            }))
        }
    }

    pub(super) fn parameters(&mut self) -> Vec<Parameter<'_>> {
        vec![
            Parameter::number(
                "distance_weight",
                Range::NotNegative,
                &mut self.distance_weight,
            ),
            Parameter::number("angle_weight", Range::NotNegative, &mut self.angle_weight),
            Parameter::delta(&mut self.delta),
            Parameter::normalize(&mut self.normalize),
        ]
    }
}

impl Default for Rkd {
    fn default() -> Self {
        Rkd {
            distance_weight: 1.0,
            angle_weight: 2.0,
            delta: 1.0,
            normalize: false,
        }
    }
}
/// The distance alone.
impl From<RkdDistance> for Rkd {
    fn from(loss: RkdDistance) -> Self {
        Rkd {
            distance_weight: 1.0,
            angle_weight: 0.0,
            delta: loss.delta,
            normalize: loss.normalize,
        }
    }
}

/// The angle alone.
impl From<RkdAngle> for Rkd {
    fn from(loss: RkdAngle) -> Self {
        Rkd {
            distance_weight: 0.0,
            angle_weight: 1.0,
            delta: loss.delta,
            normalize: loss.normalize,
        }
    }
}

