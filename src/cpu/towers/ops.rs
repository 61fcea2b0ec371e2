//! What a pair of rows that are not each other's own costs, and how it pulls them.

use pulp::Simd;

use super::masks::masked;
use crate::element::Real;

/// Numbers that a row brings to each of its pairs.
pub(super) const FIELDS: usize = 6;

/// What a pair gives: the coefficient C_ij = C_ji of the gradient, and what it adds to the moments, for
/// both of its rows.
pub(super) struct Pair<V> {
    pub(super) coefficient: V,
    pub(super) moments: [V; 2],
}

/// The arithmetic of a loss for a register of pairs.
pub(super) trait PairOp<R: Real>: Copy + Sync {
    /// `product` of the student's rows, and of the teacher's where there is one. `row` and `key` are
    /// the fields of both rows.
    fn pair<S: Simd>(
        &self,
        s: S,
        product: [R::Of<S>; 2],
        row: [R::Of<S>; FIELDS],
        key: [R::Of<S>; FIELDS],
    ) -> Pair<R::Of<S>>;
}

/// exp((product − largest)/τ − excess): a key's weight in a softmax.
#[inline(always)]
fn weight<S: Simd, R: Real>(
    s: S,
    per_temperature: R::Of<S>,
    product: R::Of<S>,
    largest: R::Of<S>,
    excess: R::Of<S>,
) -> R::Of<S> {
    let below = R::vmul(s, per_temperature, R::vsub(s, product, largest));
    R::vexp(s, R::vsub(s, below, excess))
}

/// CLIP. Fields: largest product and excess of the student's softmax, and of the teacher's.
#[derive(Clone, Copy)]
pub(super) struct Softmax<R> {
    /// 1/τ and 1/τ_t
    pub(super) per_temperature: [R; 2],
    /// hard_weight + soft_weight
    pub(super) of_student: R,
    /// soft_weight
    pub(super) of_teacher: R,
}

impl<R: Real> PairOp<R> for Softmax<R> {
    #[inline(always)]
    fn pair<S: Simd>(
        &self,
        s: S,
        product: [R::Of<S>; 2],
        row: [R::Of<S>; FIELDS],
        key: [R::Of<S>; FIELDS],
    ) -> Pair<R::Of<S>> {
        self.of_kept(s, product, row, key, |_, weight| weight)
    }
}

impl<R: Real> Softmax<R> {
    /// `keep` gets the weight of the key in the row's softmax (0), or of the row in the key's (1), and
    /// returns it, or 0 where the pair is left out.
    #[inline(always)]
    fn of_kept<S: Simd>(
        &self,
        s: S,
        product: [R::Of<S>; 2],
        row: [R::Of<S>; FIELDS],
        key: [R::Of<S>; FIELDS],
        keep: impl Fn(usize, R::Of<S>) -> R::Of<S>,
    ) -> Pair<R::Of<S>> {
        let [by_s, by_t] = self.per_temperature.map(|t| R::splat(s, t));
        let [of_student, of_teacher] = [self.of_student, self.of_teacher].map(|w| R::splat(s, w));
        let zero = R::splat(s, R::ZERO);
        let q = keep(0, weight::<S, R>(s, by_s, product[0], row[0], row[1]));
        let q_back = keep(1, weight::<S, R>(s, by_s, product[0], key[0], key[1]));
        let mut coefficient = R::vmul(s, of_student, R::vadd(s, q, q_back));
        let mut moment = zero;
        if self.of_teacher > R::ZERO {
            let p = keep(0, weight::<S, R>(s, by_t, product[1], row[2], row[3]));
            let p_back = keep(1, weight::<S, R>(s, by_t, product[1], key[2], key[3]));
            coefficient = R::vneg_mul_add(s, of_teacher, R::vadd(s, p, p_back), coefficient);
            moment = R::vmul(s, p, R::vsub(s, row[0], product[0]));
            moment = R::vmul_add(s, p_back, R::vsub(s, key[0], product[0]), moment);
        }
        Pair {
            coefficient,
            moments: [moment, zero],
        }
    }
}

/// CLIP with masks. Fields: those of [`Softmax`], and those of the masks.
#[derive(Clone, Copy)]
pub(super) struct Masked<R>(pub(super) Softmax<R>);

impl<R: Real> PairOp<R> for Masked<R> {
    #[inline(always)]
    fn pair<S: Simd>(
        &self,
        s: S,
        product: [R::Of<S>; 2],
        row: [R::Of<S>; FIELDS],
        key: [R::Of<S>; FIELDS],
    ) -> Pair<R::Of<S>> {
        let of = |fields: [R::Of<S>; FIELDS]| [fields[4], fields[5]];
        let masked = masked::<S, R>(s, product[1], of(row), of(key));
        let zero = R::splat(s, R::ZERO);
        // A choice, not a product: the weight of a key beyond the largest may be infinite.
        let keep = |which: usize, weight| R::if_positive(s, masked[which], zero, weight);
        self.0.of_kept(s, product, row, key, keep)
    }
}

/// SigLIP. No fields. The moments are −log σ(−l) and σ(l).
#[derive(Clone, Copy)]
pub(super) struct Sigmoid<R> {
    pub(super) scale: R,
    pub(super) bias: R,
}

impl<R: Real> PairOp<R> for Sigmoid<R> {
    #[inline(always)]
    fn pair<S: Simd>(
        &self,
        s: S,
        product: [R::Of<S>; 2],
        _: [R::Of<S>; FIELDS],
        _: [R::Of<S>; FIELDS],
    ) -> Pair<R::Of<S>> {
        let [zero, one] = [R::ZERO, R::ONE].map(|x| R::splat(s, x));
        let logit = R::vmul_add(
            s,
            R::splat(s, self.scale),
            product[0],
            R::splat(s, self.bias),
        );
        let positive = R::vmax(s, logit, zero);
        // −|l|
        let below = R::vsub(s, logit, R::vadd(s, positive, positive));
        let decay = R::vexp(s, R::vmin(s, below, zero));
        let total = R::vadd(s, one, decay);
        let sigma = R::vdiv(s, R::if_positive(s, logit, one, decay), total);
        // log(1 + decay): of a small decay by its own series.
        let third = R::splat(s, R::from_f64(1.0 / 3.0));
        let (small, _) = R::vlog_excess(s, R::vmin(s, decay, third));
        let log = R::if_positive(s, R::vsub(s, third, decay), small, R::vlog(s, total));
        Pair {
            coefficient: sigma,
            moments: [R::vadd(s, positive, log), sigma],
        }
    }
}

/// SupCon. Fields: largest product and excess of the softmax, the number of the label, whether the
/// row counts, and 1/|P|.
#[derive(Clone, Copy)]
pub(super) struct Labels<R> {
    /// 1/τ
    pub(super) per_temperature: R,
}

impl<R: Real> PairOp<R> for Labels<R> {
    #[inline(always)]
    fn pair<S: Simd>(
        &self,
        s: S,
        product: [R::Of<S>; 2],
        row: [R::Of<S>; FIELDS],
        key: [R::Of<S>; FIELDS],
    ) -> Pair<R::Of<S>> {
        let by = R::splat(s, self.per_temperature);
        let [zero, one] = [R::ZERO, R::ONE].map(|x| R::splat(s, x));
        let apart = R::vsub(s, row[2], key[2]);
        let same = R::if_positive(s, R::vmul(s, apart, apart), zero, one);
        let q = R::vmul(s, row[3], weight::<S, R>(s, by, product[0], row[0], row[1]));
        let back = R::vmul(s, key[3], weight::<S, R>(s, by, product[0], key[0], key[1]));
        let target = R::vmul(s, same, R::vadd(s, row[4], key[4]));
        let moment = R::vmul(s, row[4], R::vsub(s, row[0], product[0]));
        let moment = R::vmul_add(s, key[4], R::vsub(s, key[0], product[0]), moment);
        Pair {
            coefficient: R::vsub(s, R::vadd(s, q, back), target),
            moments: [R::vmul(s, same, moment), zero],
        }
    }
}
