//! The divergences other than KL(p‖q).
//!
//! Each is a sum of f(p, q) ≥ 0 over classes that is 0 where p = q. With δ = log p − log q and
//! ψ(z) = z − log(1 + z):
//!
//! ```text
//! KL(q‖p)                          Σ q (e^δ − 1 − δ)
//! KL(p‖m), m = p + a (q − p)       Σ p ψ(a (e^−δ − 1))
//! KL(q‖m), m = q + b (p − q)       Σ q ψ(b (e^δ − 1))
//! ```
//!
//! The gradient of a sum of f is T_s/N · q (g − Σ q g), with g = ∂f/∂q. Terms that are the same for
//! all classes may be left out of g: they are chosen so that g = 0 where p = q, and nothing cancels
//! in g − Σ q g but what is of second order.
//!
//! ```text
//! for each row:
//!     largest logits, Σ e^a_x, Σ e^a_y, c̄        as for KL(p‖q)
//!     KL(p‖q), so δ = c − c̄ + KL(p‖q)            a sweep of its own where it is small
//!     Σ f and Σ q g                              a sweep
//!     Σ q (g − Σ q g), the rounding of Σ q g     a sweep
//!     gradient                                   a sweep
//! ```
//!
//! Where one class has most of q, its g is almost Σ q g, and the rounding counts.

use pulp::Simd;

use super::NEAR;
use crate::cpu::logits::softmax::CHUNK;
use crate::element::Real;
use crate::loss::Divergence;

/// A row, after the sums of its exponentials.
pub(super) struct Softmaxes<'a, S: Simd, R: Real> {
    /// e^a of student and teacher; those of the student become the gradient.
    pub(super) exponentials: [&'a mut [R::Of<S>]; 2],
    /// c = a_y − a_x times the unit.
    pub(super) differences: &'a mut [R::Of<S>],
    /// Σ e^a of student and teacher.
    pub(super) sums: [f64; 2],
    /// KL(p‖q) as the difference of logarithms.
    pub(super) kl: f64,
    /// c̄ times the unit.
    pub(super) mean: R,
    pub(super) unit: f64,
    pub(super) factor: f64,
}

impl<S: Simd, R: Real> Softmaxes<'_, S, R> {
    /// The divergence, and its gradient in place of the student's exponentials.
    #[inline(always)]
    pub(super) fn evaluate(self, s: S, divergence: Divergence) -> f64 {
        let splat = |x: f64| R::splat(s, R::from_f64(x));
        match divergence {
            Divergence::Forward => unreachable!("KL(p‖q) has its own sweeps"),
            Divergence::Reverse => self.sweep(
                s,
                #[inline(always)]
                |p, q, delta| {
                    let close = close::<S, R>(s, delta);
                    let near = R::vmul(s, q, R::vexp_excess(s, delta));
                    // δ is infinite where q may be 0.
                    let zero = R::splat(s, R::ZERO);
                    let first = R::if_positive(s, q, R::vmul(s, q, delta), zero);
                    let far = R::vsub(s, R::vsub(s, p, q), first);
                    let term = R::if_positive(s, close, near, far);
                    (term, R::if_positive(s, q, R::vsub(s, zero, delta), zero))
                },
            ),
            Divergence::Js { beta } => {
                let of_p = Mixture::<S, R>::new(s, 1.0 - beta, beta);
                let of_q = Mixture::<S, R>::new(s, beta, 1.0 - beta);
                let [beta, other] = [splat(beta), splat(1.0 - beta)];
                self.sweep(
                    s,
                    #[inline(always)]
                    |p, q, delta| {
                        let of_p = of_p.of(s, p, q, delta);
                        let of_q = of_q.of(s, q, p, R::vsub(s, R::splat(s, R::ZERO), delta));
                        let term = R::vmul_add(s, beta, of_p.term, R::vmul(s, other, of_q.term));
                        let slope = R::vmul(s, other, of_q.log);
                        (term, R::vsub(s, R::splat(s, R::ZERO), slope))
                    },
                )
            }
            Divergence::Skew { alpha } => {
                let mixture = Mixture::<S, R>::new(s, 1.0 - alpha, alpha);
                self.sweep(
                    s,
                    #[inline(always)]
                    |p, q, delta| {
                        let of_p = mixture.of(s, p, q, delta);
                        let ratio = R::vdiv(s, of_p.z, of_p.u);
                        (of_p.term, R::vmul(s, mixture.share, ratio))
                    },
                )
            }
            Divergence::SkewReverse { alpha } => {
                let mixture = Mixture::<S, R>::new(s, 1.0 - alpha, alpha);
                self.sweep(
                    s,
                    #[inline(always)]
                    |p, q, delta| {
                        let of_q = mixture.of(s, q, p, R::vsub(s, R::splat(s, R::ZERO), delta));
                        let Term {
                            term,
                            z,
                            u,
                            log,
                            excess,
                        } = of_q;
                        // g = (1 − b) z/u − log u = −b z/u + ψ(z) − z²/u. The first form cancels near
                        // p = q, the second far from it.
                        let ratio = R::vdiv(s, z, u);
                        let near = R::vneg_mul_add(s, ratio, R::vadd(s, mixture.share, z), excess);
                        let far = R::vsub(s, R::vmul(s, mixture.rest, ratio), log);
                        (term, R::if_positive(s, close::<S, R>(s, z), near, far))
                    },
                )
            }
        }
    }

    /// Σ f, and the gradient from g: `terms` gives f and g of p, q and δ. It has to be inlined: else
    /// it is compiled without the instruction set.
    #[inline(always)]
    fn sweep(
        self,
        s: S,
        terms: impl Fn(R::Of<S>, R::Of<S>, R::Of<S>) -> (R::Of<S>, R::Of<S>),
    ) -> f64 {
        let (center, shift) = self.log_ratios(s);
        let splat = |x: f64| R::splat(s, R::from_f64(x));
        let [per_sum_x, per_sum_y] = self.sums.map(|sum| splat(1.0 / sum));
        let (center, per_unit, shift) = (R::splat(s, center), splat(1.0 / self.unit), splat(shift));
        let [x, y] = self.exponentials;
        let chunk = CHUNK / R::width::<S>();
        let (mut sum, mut mean) = (0.0, 0.0);
        let chunks = x.chunks_mut(chunk).zip(y.chunks(chunk));
        for ((x, y), differences) in chunks.zip(self.differences.chunks_mut(chunk)) {
            let mut part_sum = R::splat(s, R::ZERO);
            let mut part_mean = part_sum;
            for ((x, y), difference) in x.iter_mut().zip(y).zip(differences) {
                let delta = R::vmul_add(s, R::vsub(s, *difference, center), per_unit, shift);
                *x = R::vmul(s, *x, per_sum_x);
                let (term, slope) = terms(R::vmul(s, *y, per_sum_y), *x, delta);
                part_sum = R::vadd(s, part_sum, term);
                part_mean = R::vmul_add(s, *x, slope, part_mean);
                *difference = slope;
            }
            sum += R::reduce_sum(s, part_sum).to_f64();
            mean += R::reduce_sum(s, part_mean).to_f64();
        }
        let mean = splat(mean);
        let mut rest = 0.0;
        for (x, slopes) in x.chunks(chunk).zip(self.differences.chunks(chunk)) {
            let mut part = R::splat(s, R::ZERO);
            for (x, slope) in x.iter().zip(slopes) {
                part = R::vmul_add(s, *x, R::vsub(s, *slope, mean), part);
            }
            rest += R::reduce_sum(s, part).to_f64();
        }
        let (rest, factor) = (splat(rest), splat(self.factor));
        for (x, slope) in x.iter_mut().zip(self.differences.iter()) {
            let slope = R::vsub(s, R::vsub(s, *slope, mean), rest);
            *x = R::vmul(s, factor, R::vmul(s, *x, slope));
        }
        // The rounding of what is 0 may be negative.
        if sum < 0.0 { 0.0 } else { sum }
    }

    /// What to subtract from the unit times c, and what to add to the rest in units, for δ.
    #[inline(always)]
    fn log_ratios(&self, s: S) -> (R, f64) {
        // Where p and q are far apart, the logarithms are exact enough.
        if self.kl >= NEAR {
            return (R::ZERO, self.sums[0].ln() - self.sums[1].ln());
        }
        // Σ p e^−d = e^KL with d = c − c̄: no term of Σ p (e^−d − 1 + d) cancels.
        let splat = |x: f64| R::splat(s, R::from_f64(x));
        let per_sum = splat(1.0 / self.sums[1]);
        let shifted_per_sum = splat((self.mean.to_f64() / self.unit).exp() / self.sums[1]);
        let (center, per_unit) = (R::splat(s, self.mean), splat(1.0 / self.unit));
        let zero = R::splat(s, R::ZERO);
        let [x, y] = &self.exponentials;
        let chunk = CHUNK / R::width::<S>();
        let (mut excess, mut first_order) = (0.0, 0.0);
        let chunks = x.chunks(chunk).zip(y.chunks(chunk));
        for ((x, y), differences) in chunks.zip(self.differences.chunks(chunk)) {
            let (mut part_excess, mut part_first) = (zero, zero);
            for ((x, y), difference) in x.iter().zip(y.iter()).zip(differences) {
                let d = R::vmul(s, R::vsub(s, *difference, center), per_unit);
                let p = R::vmul(s, *y, per_sum);
                // d may be infinite where p is 0.
                let first = R::if_positive(s, p, R::vmul(s, p, d), zero);
                let shifted = R::vsub(s, R::vmul(s, *x, shifted_per_sum), p);
                let series = R::vmul(s, p, R::vexp_excess(s, R::vsub(s, zero, d)));
                let term =
                    R::if_positive(s, close::<S, R>(s, d), series, R::vadd(s, shifted, first));
                part_excess = R::vadd(s, part_excess, term);
                part_first = R::vadd(s, part_first, first);
            }
            excess += R::reduce_sum(s, part_excess).to_f64();
            first_order += R::reduce_sum(s, part_first).to_f64();
        }
        // The second is what the rounding of c̄ left.
        (self.mean, (excess - first_order).ln_1p())
    }
}

/// Above 0 where |δ| < ½: where differences cancel, and the series hold.
#[inline(always)]
fn close<S: Simd, R: Real>(s: S, delta: R::Of<S>) -> R::Of<S> {
    R::vneg_mul_add(s, delta, delta, R::splat(s, R::from_f64(0.25)))
}

/// KL(v‖m) for m = v + share (w − v), term by term.
struct Mixture<S: Simd, R: Real> {
    share: R::Of<S>,
    /// 1 − share, not rounded.
    rest: R::Of<S>,
}

/// A term of KL(v‖m), m = v + share (w − v).
struct Term<V> {
    /// v log(v/m) + m − v = v ψ(z)
    term: V,
    /// z = m/v − 1
    z: V,
    /// m/v
    u: V,
    /// log m/v
    log: V,
    /// ψ(z); only where |z| ≤ ½
    excess: V,
}

impl<S: Simd, R: Real> Mixture<S, R> {
    /// Ratios of probabilities beyond these are not told apart: only the larger one counts.
    const LARGEST: f64 = 1e30;
    /// In the place of a probability of 0, as a divisor.
    const LEAST: f64 = 1e-37;

    #[inline(always)]
    fn new(s: S, share: f64, rest: f64) -> Self {
        Mixture {
            share: R::splat(s, R::from_f64(share)),
            rest: R::splat(s, R::from_f64(rest)),
        }
    }

    /// The term of v and w, with `delta` = log v − log w.
    #[inline(always)]
    fn of(&self, s: S, v: R::Of<S>, w: R::Of<S>, delta: R::Of<S>) -> Term<R::Of<S>> {
        let splat = |x: f64| R::splat(s, R::from_f64(x));
        let (one, least) = (R::splat(s, R::ONE), splat(Self::LEAST));
        let ratio = R::vdiv(s, w, R::vmax(s, v, least));
        let ratio = R::vmin(s, ratio, splat(Self::LARGEST));
        let close = close::<S, R>(s, delta);
        let minus_delta = R::vsub(s, R::splat(s, R::ZERO), delta);
        let near = R::vadd(s, R::vexp_excess(s, minus_delta), minus_delta);
        let less_one = R::if_positive(s, close, near, R::vsub(s, ratio, one));
        let z = R::vmul(s, self.share, less_one);
        let mixed = R::vmul_add(s, self.share, ratio, self.rest);
        let u = R::if_positive(s, close, R::vadd(s, one, z), mixed);

        let small = R::vneg_mul_add(s, z, z, splat(1.0 / 9.0));
        let (log_near, excess_near) = R::vlog_excess(s, z);
        let log_far = R::vlog(s, R::vmax(s, u, least));
        let log = R::if_positive(s, small, log_near, log_far);
        let excess = R::if_positive(s, small, excess_near, R::vsub(s, z, log_far));
        // Where w is far above v, v z is share (w − v), which needs no ratio.
        let direct = R::vmul(s, self.share, R::vsub(s, w, v));
        let direct = R::vneg_mul_add(s, v, log, direct);
        let large = R::vsub(s, z, one);
        let term = R::if_positive(s, large, direct, R::vmul(s, v, excess));
        Term {
            term,
            z,
            u,
            log,
            excess,
        }
    }
}
