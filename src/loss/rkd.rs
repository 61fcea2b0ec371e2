use super::{RkdAngle, RkdDistance, check_delta, check_weight, loss};
use crate::error::Result;

/// RKD distance and angle in one evaluation: the relation and the contraction are computed once.
///
/// ```text
/// L = distance_weight · L_distance + angle_weight · L_angle
/// ```
///
/// See [`RkdDistance`](crate::RkdDistance) and [`RkdAngle`](crate::RkdAngle), which also name the paper.
/// A part of weight 0 is not computed. Student `[N, D]`, teacher `[N, D_t]`, any D and D_t.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rkd {
    /// Weight of the distance loss. 1 by default, as the authors train metric learning.
    pub distance_weight: f64,
    /// Weight of the angle loss. 2 by default, as the authors train metric learning.
    pub angle_weight: f64,
    /// δ of both Huber penalties; 1 by default.
    pub delta: f64,
    /// L2-normalise the rows of both first, with the gradient through it; off by default.
    /// Rows are rounded once more by that: in f32 those of an offset far beyond their spread, which do without it,
    /// lose that ratio.
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

    pub(super) fn validate(&self) -> Result<()> {
        check_weight("distance_weight", self.distance_weight)?;
        check_weight("angle_weight", self.angle_weight)?;
        check_delta(self.delta)
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

loss!(Rkd, pair);
