use super::{Family, Normalizer, Pairwise, Parameter, Penalty, Relation, Spec};

/// RKD distance: the student's pairwise distances, in units of their mean, against the teacher's.
///
/// With d_ij = ‖x_i − x_j‖, μ the mean of d_ij over i ≠ j, and t, μ' the same of the teacher:
///
/// ```text
/// L = 1/N² · Σ_ij huber_δ( d_ij/μ − t_ij/μ' )
/// ```
///
/// The gradient goes through μ. A pair of equal rows contributes none; if all rows are equal
/// (μ = 0) the scaled distances count as 0. Student `[N, D]`, teacher `[N, D_t]`, any D and D_t.
///
/// Park, Kim, Lu, Cho: *Relational Knowledge Distillation*, CVPR 2019, arXiv 1904.05068, eq. 4-6,
/// and the authors' code (`metric/loss.py`), whose conventions this follows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RkdDistance {
    /// δ of the Huber penalty; 1 by default.
    pub delta: f64,
    /// L2-normalise the rows of student and teacher first, with the gradient through it; off by
    /// default, as in the authors' code. (Some ports turn it on.) Normalising rounds each row once.
    /// Where rows lie far from the origin compared with their mutual distances, leave it off:
    /// distances lose about offset/spread of their relative precision by it. Rows whose directions
    /// are at most 2⁻²¹ apart (for f64 rows 2⁻⁴⁶) count as duplicates.
    pub normalize: bool,
}

impl Default for RkdDistance {
    fn default() -> Self {
        RkdDistance {
            delta: 1.0,
            normalize: false,
        }
    }
}

impl RkdDistance {
    pub(super) fn spec(&self) -> Spec {
        Spec {
            normalize: self.normalize,
            ..Spec::new(Family::Pairwise(Pairwise::new(
                Relation::Distance,
                Normalizer::Mean,
                Penalty::Huber { delta: self.delta },
            )))
        }
    }

    pub(super) fn parameters(&mut self) -> Vec<Parameter<'_>> {
        vec![
            Parameter::delta(&mut self.delta),
            Parameter::normalize(&mut self.normalize),
        ]
    }
}
