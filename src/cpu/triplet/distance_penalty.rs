//! RKD's distance penalty, and the means over all pairs that its slopes depend on.

use pulp::{Simd, WithSimd};

use super::pair_table::{PairField, PairTable};
use crate::cpu::parallel::map;
use crate::element::Real;
use crate::simd::{Lanes, dispatch};

/// The distance penalty of a batch, and the means over all pairs that its slopes depend on.
pub(super) struct DistancePenalty {
    pub(super) delta: f64,
    /// 2/μ of the student, which takes ½d to d/μ; 0 where all rows are equal.
    pub(super) per_half_x: f64,
    /// 2/μ of the teacher.
    pub(super) per_half_y: f64,
    /// 1/N² Σ_ij huber(e_ij)
    pub(super) mean: f64,
    /// Σ_ij w_ij d_ij/(μP), w without its 1/N².
    pub(super) mean_slope: f64,
    pub(super) n: usize,
}

impl DistancePenalty {
    pub(super) fn new<R: Real>(delta: f64, relations: &PairTable<R>, n: usize) -> Self {
        let sums: Vec<(f64, f64)> = map(n, &|i| {
            dispatch(HalfSums {
                row: relations.row(i),
            })
        });
        let (x, y) = add_up(&sums);
        let pairs = (n * n.saturating_sub(1)) as f64;
        // ½d · 2/μ, with μ = 2 Σ ½d / P.
        let per_half = |sum: f64| if sum > 0.0 { pairs / sum } else { 0.0 };
        let mut penalty = DistancePenalty {
            delta,
            per_half_x: per_half(x),
            per_half_y: per_half(y),
            mean: 0.0,
            mean_slope: 0.0,
            n,
        };
        let sums: Vec<(f64, f64)> = map(n, &|i| {
            dispatch(Penalties {
                penalty: &penalty,
                row: relations.row(i),
            })
        });
        let (sum, slope_sum) = add_up(&sums);
        penalty.mean = sum / (n * n) as f64;
        penalty.mean_slope = if pairs > 0.0 { slope_sum / pairs } else { 0.0 };
        penalty
    }

    /// What w_ij less the mean slope is multiplied by to give 2 ∂L/∂d_ij, which is C_ij d_ij:
    /// ∂L/∂d_ij = (w_ij − Σ_kl w_kl d_kl/(μP))/(N²μ).
    pub(super) fn slope_factor(&self) -> f64 {
        self.per_half_x / (self.n * self.n) as f64
    }
}

fn add_up(sums: &[(f64, f64)]) -> (f64, f64) {
    sums.iter()
        .fold((0.0, 0.0), |total, sum| (total.0 + sum.0, total.1 + sum.1))
}

/// The sums of a row's ½d of student and teacher.
struct HalfSums<'a, R: Real> {
    row: &'a [R],
}

impl<R: Real> WithSimd for HalfSums<'_, R> {
    type Output = (f64, f64);

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) -> (f64, f64) {
        let zero = s.splat_f64s(0.0);
        let (mut x, mut y) = (zero, zero);
        for_halves::<S, R>(
            s,
            self.row,
            #[inline(always)]
            |half_x, half_y| {
                x = f64::vadd(s, x, half_x);
                y = f64::vadd(s, y, half_y);
            },
        );
        (f64::reduce_sum(s, x), f64::reduce_sum(s, y))
    }
}

/// Σ_j huber(e_ij) and Σ_j w_ij d_ij/μ of a row, in f64. An error that all pairs share, such as
/// that of a rounded μ, would add up.
struct Penalties<'a, R: Real> {
    penalty: &'a DistancePenalty,
    row: &'a [R],
}

impl<R: Real> WithSimd for Penalties<'_, R> {
    type Output = (f64, f64);

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) -> (f64, f64) {
        let zero = s.splat_f64s(0.0);
        let one_half = s.splat_f64s(0.5);
        let per_half_x = s.splat_f64s(self.penalty.per_half_x);
        let per_half_y = s.splat_f64s(self.penalty.per_half_y);
        let delta = s.splat_f64s(self.penalty.delta);
        let minus_delta = s.splat_f64s(-self.penalty.delta);
        let (mut sum, mut slope_sum) = (zero, zero);
        for_halves::<S, R>(
            s,
            self.row,
            #[inline(always)]
            |half_x, half_y| {
                let scaled = f64::vmul(s, half_x, per_half_x);
                let e = f64::vneg_mul_add(s, half_y, per_half_y, scaled);
                let w = f64::vmin(s, delta, f64::vmax(s, minus_delta, e));
                sum = f64::vmul_add(s, w, f64::vneg_mul_add(s, one_half, w, e), sum);
                slope_sum = f64::vmul_add(s, w, scaled, slope_sum);
            },
        );
        (f64::reduce_sum(s, sum), f64::reduce_sum(s, slope_sum))
    }
}

/// Calls `f` with the ½d of student and teacher, register by register of f64: what
/// [`half_distance`] gives.
#[inline(always)]
fn for_halves<S: Simd, R: Real>(s: S, row: &[R], mut f: impl FnMut(S::f64s, S::f64s)) {
    let three_halves = s.splat_f64s(1.5);
    let mut lines = [0.0f64; 64];
    let lines = &mut lines[..4 * R::PAD];
    for group in 0..row.len() / lines.len() {
        let reals = &row[group * lines.len()..][..lines.len()];
        for l in 0..lines.len() {
            lines[l] = reals[l].to_f64();
        }
        let registers = f64::vectors::<S>(lines);
        let per_line = registers.len() / 4;
        for v in 0..per_line {
            let at = |field: PairField| registers[field.line() * per_line + v];
            let half = |h, r| {
                let half = f64::vmul(s, h, r);
                f64::vmul(s, half, f64::vneg_mul_add(s, half, r, three_halves))
            };
            f(
                half(
                    at(PairField::StudentHalfSquare),
                    at(PairField::StudentInverse),
                ),
                half(
                    at(PairField::TeacherHalfSquare),
                    at(PairField::TeacherInverse),
                ),
            );
        }
    }
}

/// ½d from h = ½d² and r = 1/d: h r, and one step of Newton's method, as r may have been rounded to
/// f32. r² could overflow.
#[inline(always)]
pub(super) fn half_distance(h: f64, r: f64) -> f64 {
    let half = h * r;
    half * (1.5 - half * r)
}

#[cfg(test)]
mod tests {
    use super::half_distance;

    #[test]
    fn half_distance_has_the_digits_of_h_where_r_has_those_of_f32() {
        for i in 0..1000 {
            let d = 1.0 + f64::from(i) * 1e-3;
            let r = f64::from((1.0 / d) as f32);
            let half = half_distance(0.5 * d * d, r);
            // The square of what f32 loses.
            assert!((half - 0.5 * d).abs() <= 1e-14 * d, "{d}: {half}");
        }
        // r² overflows.
        let d = 2f64.powi(-520);
        assert_eq!(half_distance(0.5 * d * d, 1.0 / d), 0.5 * d);
    }
}
