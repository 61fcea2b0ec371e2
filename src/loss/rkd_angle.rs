use super::{Family, Parameter, Spec, Triplet};

/// RKD angle: the cosines of the angles that all triples of rows form, student against teacher.
///
/// ```text
/// cos_jik = ⟨x_i − x_j, x_k − x_j⟩ / (d_ij d_kj)        vertex j; 0 where an edge has length 0
/// L       = 1/N³ · Σ_jik huber_δ( cos_jik(X) − cos_jik(Y) )
/// ```
///
/// All N³ ordered triples are counted. The fast devices get the cosines from the law of cosines in
/// O(N²D + N³) work and O(N²) memory; the paper's own code keeps 2N²D + 2N³ floats.
/// Student `[N, D]`, teacher `[N, D_t]`, any D and D_t.
///
/// Park, Kim, Lu, Cho: *Relational Knowledge Distillation*, CVPR 2019, arXiv 1904.05068, eq. 7-9,
/// and the authors' code (`metric/loss.py`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RkdAngle {
    /// δ of the Huber penalty; 1 by default.
    pub delta: f64,
    /// L2-normalise the rows of student and teacher first, with the gradient through it; off by
    /// default. Normalising rounds each row once.
    /// Where rows lie far from the origin compared with their mutual distances, leave it off:
    /// distances lose about offset/spread of their relative precision by it. Rows whose directions
    /// are at most 2⁻²¹ apart (for f64 rows 2⁻⁴⁶) count as duplicates.
    pub normalize: bool,
}

impl Default for RkdAngle {
    fn default() -> Self {
        RkdAngle {
            delta: 1.0,
            normalize: false,
        }
    }
}

impl RkdAngle {
    pub(super) fn spec(&self) -> Spec {
        Spec {
            normalize: self.normalize,
            ..Spec::new(Family::Triplet(Triplet {
                delta: self.delta,
                angle_weight: 1.0,
                distance_weight: 0.0,
            }))
        }
    }

    pub(super) fn parameters(&mut self) -> Vec<Parameter<'_>> {
        vec![
            Parameter::delta(&mut self.delta),
            Parameter::normalize(&mut self.normalize),
        ]
    }
}
