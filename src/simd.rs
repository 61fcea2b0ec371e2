//! One vocabulary for vectors of f32 and of f64, over [`pulp`]'s run-time dispatch.
//!
//! Every kernel of the CPU path is written once, generic over [`Lanes`] (what a lane holds) and
//! `pulp::Simd` (how many lanes a register has), and compiled for scalar, AVX2, AVX-512 and NEON.

use std::ops::{Add, AddAssign, Div, Mul, Neg, Range, Sub};

use pulp::{Arch, Simd, WithSimd};

/// f32 or f64, with the vector operations the kernels are made of.
///
/// `vectors` and friends view slices as registers. Slices are padded to [`PAD`](Self::PAD)
/// elements, a multiple of any register's width, so that no kernel has a remainder loop.
pub trait Lanes:
    Copy
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + PartialOrd
{
    /// A register of the instruction set `S`.
    type Of<S: Simd>: bytemuck::Pod + Send + Sync;
    /// Elements in 64 bytes, the widest register there is.
    const PAD: usize;
    /// 0.
    const ZERO: Self;
    /// 1.
    const ONE: Self;
    /// The distance from 1 to the next number.
    const EPSILON: f64;
    /// The finite number furthest below 0.
    const LOWEST: Self;

    /// Elements in a register.
    fn width<S: Simd>() -> usize {
        size_of::<Self::Of<S>>() / size_of::<Self>()
    }
    /// `slice` as registers; its length is a multiple of the width.
    fn vectors<S: Simd>(slice: &[Self]) -> &[Self::Of<S>];
    /// `slice` as registers; its length is a multiple of the width.
    fn vectors_mut<S: Simd>(slice: &mut [Self]) -> &mut [Self::Of<S>];
    /// `value` in every lane.
    fn splat<S: Simd>(s: S, value: Self) -> Self::Of<S>;
    /// a + b
    fn vadd<S: Simd>(s: S, a: Self::Of<S>, b: Self::Of<S>) -> Self::Of<S>;
    /// a − b
    fn vsub<S: Simd>(s: S, a: Self::Of<S>, b: Self::Of<S>) -> Self::Of<S>;
    /// a · b
    fn vmul<S: Simd>(s: S, a: Self::Of<S>, b: Self::Of<S>) -> Self::Of<S>;
    /// a / b
    fn vdiv<S: Simd>(s: S, a: Self::Of<S>, b: Self::Of<S>) -> Self::Of<S>;
    /// √a
    fn vsqrt<S: Simd>(s: S, a: Self::Of<S>) -> Self::Of<S>;
    /// a · b + c, fused where the instruction set can.
    fn vmul_add<S: Simd>(s: S, a: Self::Of<S>, b: Self::Of<S>, c: Self::Of<S>) -> Self::Of<S>;
    /// c − a · b, fused where the instruction set can.
    fn vneg_mul_add<S: Simd>(s: S, a: Self::Of<S>, b: Self::Of<S>, c: Self::Of<S>) -> Self::Of<S>;
    /// The smaller; b where either is NaN on x86, so put what must survive second.
    fn vmin<S: Simd>(s: S, a: Self::Of<S>, b: Self::Of<S>) -> Self::Of<S>;
    /// The larger; see [`vmin`](Self::vmin).
    fn vmax<S: Simd>(s: S, a: Self::Of<S>, b: Self::Of<S>) -> Self::Of<S>;
    /// `then` where a > 0, else `otherwise`.
    fn if_positive<S: Simd>(
        s: S,
        a: Self::Of<S>,
        then: Self::Of<S>,
        otherwise: Self::Of<S>,
    ) -> Self::Of<S>;
    /// The sum of the lanes.
    fn reduce_sum<S: Simd>(s: S, a: Self::Of<S>) -> Self;
    /// The largest lane.
    fn reduce_max<S: Simd>(s: S, a: Self::Of<S>) -> Self;
    /// eᵃ for a ≤ 0, within 2 units in the last place; 0 below the smallest normal number.
    fn vexp<S: Simd>(s: S, a: Self::Of<S>) -> Self::Of<S>;
    /// eᵃ − 1 − a for |a| ≤ ½, to a few units in the last place: nothing cancels.
    fn vexp_excess<S: Simd>(s: S, a: Self::Of<S>) -> Self::Of<S>;
    /// log a for a normal number a > 0, to a few units in the last place.
    fn vlog<S: Simd>(s: S, a: Self::Of<S>) -> Self::Of<S>;
    /// log(1 + a) and a − log(1 + a) for |a| ≤ ⅓, to a few units in the last place: nothing
    /// cancels.
    fn vlog_excess<S: Simd>(s: S, a: Self::Of<S>) -> (Self::Of<S>, Self::Of<S>);
}

/// The distance between rows of `len` elements in memory: whole cache lines, and an odd number of
/// them, so that the same column of many rows does not fall into one set of the cache.
pub(crate) fn row_stride<R: Lanes>(len: usize) -> usize {
    let lines = len.div_ceil(R::PAD) | 1;
    lines.saturating_mul(R::PAD)
}

/// Runs `kernel` compiled for the best instruction set of this machine.
pub(crate) fn dispatch<K: WithSimd>(kernel: K) -> K::Output {
    // Detection reads a cached flag.
    Arch::new().dispatch(kernel)
}

/// Calls `f` with 0, 1, … N − 1, N at most 8, each call written out: what `f` indexes by its
/// argument is then a register, where a loop that the compiler leaves rolled would make it memory.
#[inline(always)]
pub(crate) fn unroll<const N: usize>(mut f: impl FnMut(usize)) {
    const { assert!(N <= 8) };
    if N > 0 {
        f(0);
    }
    if N > 1 {
        f(1);
    }
    if N > 2 {
        f(2);
    }
    if N > 3 {
        f(3);
    }
    if N > 4 {
        f(4);
    }
    if N > 5 {
        f(5);
    }
    if N > 6 {
        f(6);
    }
    if N > 7 {
        f(7);
    }
}

/// Calls `f` with every number of a range, `STEP` calls written out at a time. Where a loop comes
/// round, the compiler moves what it adds up back to the registers it began with, and a move of 64
/// bytes takes as long as an addition. A long step needs more registers: the compiler reads ahead.
#[inline(always)]
pub(crate) fn in_steps<const STEP: usize>(range: Range<usize>, mut f: impl FnMut(usize)) {
    let whole = range.start + range.len() / STEP * STEP;
    for at in (range.start..whole).step_by(STEP) {
        unroll::<STEP>(
            #[inline(always)]
            |t| f(at + t),
        );
    }
    for at in whole..range.end {
        f(at);
    }
}

/// Implements [`Lanes`] for a real in terms of pulp's methods for it.
macro_rules! lanes {
    (
        $real:ident, $vector:ident, as $as_simd:ident, $as_mut_simd:ident,
        $splat:ident, $add:ident, $sub:ident, $mul:ident, $div:ident, $sqrt:ident, $mul_add:ident,
        $negate_mul_add:ident, $min:ident, $max:ident, $greater_than:ident, $select:ident,
        $reduce_sum:ident, $reduce_max:ident,
        bits $to_bits:ident, $from_bits:ident, $splat_bits:ident, $add_bits:ident,
        $to_exponent:ident, exp $exp:ident, log $log:expr
    ) => {
        impl Lanes for $real {
            type Of<S: Simd> = S::$vector;
            const PAD: usize = 64 / size_of::<$real>();
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            #[allow(clippy::useless_conversion)] // f64 from f64, for one of the two
            const EPSILON: f64 = $real::EPSILON as f64;
            const LOWEST: Self = $real::MIN;

            #[inline(always)]
            fn vectors<S: Simd>(slice: &[Self]) -> &[S::$vector] {
                let (vectors, rest) = S::$as_simd(slice);
                debug_assert!(rest.is_empty());
                vectors
            }
            #[inline(always)]
            fn vectors_mut<S: Simd>(slice: &mut [Self]) -> &mut [S::$vector] {
                let (vectors, rest) = S::$as_mut_simd(slice);
                debug_assert!(rest.is_empty());
                vectors
            }
            #[inline(always)]
            fn splat<S: Simd>(s: S, value: Self) -> S::$vector {
                s.$splat(value)
            }
            #[inline(always)]
            fn vadd<S: Simd>(s: S, a: S::$vector, b: S::$vector) -> S::$vector {
                s.$add(a, b)
            }
            #[inline(always)]
            fn vsub<S: Simd>(s: S, a: S::$vector, b: S::$vector) -> S::$vector {
                s.$sub(a, b)
            }
            #[inline(always)]
            fn vmul<S: Simd>(s: S, a: S::$vector, b: S::$vector) -> S::$vector {
                s.$mul(a, b)
            }
            #[inline(always)]
            fn vdiv<S: Simd>(s: S, a: S::$vector, b: S::$vector) -> S::$vector {
                s.$div(a, b)
            }
            #[inline(always)]
            fn vsqrt<S: Simd>(s: S, a: S::$vector) -> S::$vector {
                s.$sqrt(a)
            }
            #[inline(always)]
            fn vmul_add<S: Simd>(s: S, a: S::$vector, b: S::$vector, c: S::$vector) -> S::$vector {
                s.$mul_add(a, b, c)
            }
            #[inline(always)]
            fn vneg_mul_add<S: Simd>(
                s: S,
                a: S::$vector,
                b: S::$vector,
                c: S::$vector,
            ) -> S::$vector {
                s.$negate_mul_add(a, b, c)
            }
            #[inline(always)]
            fn vmin<S: Simd>(s: S, a: S::$vector, b: S::$vector) -> S::$vector {
                s.$min(a, b)
            }
            #[inline(always)]
            fn vmax<S: Simd>(s: S, a: S::$vector, b: S::$vector) -> S::$vector {
                s.$max(a, b)
            }
            #[inline(always)]
            fn if_positive<S: Simd>(
                s: S,
                a: S::$vector,
                then: S::$vector,
                otherwise: S::$vector,
            ) -> S::$vector {
                s.$select(s.$greater_than(a, s.$splat(0.0)), then, otherwise)
            }
            #[inline(always)]
            fn reduce_sum<S: Simd>(s: S, a: S::$vector) -> Self {
                s.$reduce_sum(a)
            }
            #[inline(always)]
            fn reduce_max<S: Simd>(s: S, a: S::$vector) -> Self {
                s.$reduce_max(a)
            }
            #[inline(always)]
            fn vexp<S: Simd>(s: S, a: S::$vector) -> S::$vector {
                use $exp::*;
                // Adding 1.5 · 2^mantissa rounds a/ln 2 to an integer n, which is left in the low
                // bits; e^a = 2ⁿ e^r with |r| ≤ ½ ln 2.
                let magic = s.$splat(MAGIC);
                let shifted = s.$mul_add(a, s.$splat(LOG2_E), magic);
                let n = s.$sub(shifted, magic);
                let r = s.$negate_mul_add(n, s.$splat(LN_2_HI), a);
                let r = s.$negate_mul_add(n, s.$splat(LN_2_LO), r);
                let mut p = s.$splat(TAYLOR[0]);
                for &c in &TAYLOR[1..] {
                    p = s.$mul_add(p, r, s.$splat(c));
                }
                // 2ⁿ by way of the exponent's bits.
                let n_bits = s.$to_exponent(s.$to_bits(shifted), s.$splat_bits(EXPONENT));
                let scaled = s.$from_bits(s.$add_bits(s.$to_bits(p), n_bits));
                // The second operand: NaN stays, and −∞ does not become one.
                let zero_or_nan = s.$mul(s.$max(s.$splat(UNDERFLOW), a), s.$splat(0.0));
                s.$select(s.$greater_than(a, s.$splat(UNDERFLOW)), scaled, zero_or_nan)
            }
            #[inline(always)]
            fn vexp_excess<S: Simd>(s: S, a: S::$vector) -> S::$vector {
                // a²/2! + a³/3! + …, by Horner's rule.
                let coefficients = $exp::EXCESS;
                let mut p = s.$splat(coefficients[0]);
                for &c in &coefficients[1..] {
                    p = s.$mul_add(p, a, s.$splat(c));
                }
                s.$mul(s.$mul(a, a), p)
            }
            #[inline(always)]
            fn vlog<S: Simd>(s: S, a: S::$vector) -> S::$vector {
                $log(s, a)
            }
            #[inline(always)]
            fn vlog_excess<S: Simd>(s: S, a: S::$vector) -> (S::$vector, S::$vector) {
                // With t = a/(2 + a), log(1 + a) = 2t + t · p and a = 2t + t · a, where
                // p = 2t²/3 + 2t⁴/5 + … is below a tenth of |a|.
                let t = s.$div(a, s.$add(a, s.$splat(2.0)));
                let square = s.$mul(t, t);
                let mut p = s.$splat($exp::ARTANH[0]);
                for &c in &$exp::ARTANH[1..] {
                    p = s.$mul_add(p, square, s.$splat(c));
                }
                let p = s.$mul(p, square);
                let log = s.$mul_add(t, p, s.$add(t, t));
                (log, s.$mul(t, s.$sub(a, p)))
            }
        }
    };
}

/// log a, from the exponent of a and the series of artanh for its mantissa.
#[inline(always)]
fn log_f32s<S: Simd>(s: S, a: S::f32s) -> S::f32s {
    use exp_f32::{ARTANH, LN_2_HI, LN_2_LO};
    /// The bits of a number just below √½: mantissas are from here to twice this.
    const LOWEST: u32 = 0x3F33_0000;
    const ONE: u32 = 0x3F80_0000;
    const MANTISSA_BITS: u32 = 23;
    /// 2²³, whose last bit counts 1.
    const MAGIC: u32 = 0x4B00_0000;
    let from_one = s.add_u32s(s.transmute_u32s_f32s(a), s.splat_u32s(ONE - LOWEST));
    let exponent = s.wrapping_dyn_shr_u32s(from_one, s.splat_u32s(MANTISSA_BITS));
    let counted = s.transmute_f32s_u32s(s.or_u32s(exponent, s.splat_u32s(MAGIC)));
    let n = s.sub_f32s(counted, s.splat_f32s(8_388_608.0 + 127.0));
    let mantissa = s.and_u32s(from_one, s.splat_u32s((1 << MANTISSA_BITS) - 1));
    let m = s.transmute_f32s_u32s(s.add_u32s(mantissa, s.splat_u32s(LOWEST)));
    let one = s.splat_f32s(1.0);
    let t = s.div_f32s(s.sub_f32s(m, one), s.add_f32s(m, one));
    let square = s.mul_f32s(t, t);
    let mut p = s.splat_f32s(ARTANH[0]);
    for &c in &ARTANH[1..] {
        p = s.mul_add_e_f32s(p, square, s.splat_f32s(c));
    }
    let p = s.mul_f32s(p, square);
    let low = s.mul_add_e_f32s(n, s.splat_f32s(LN_2_LO), s.mul_f32s(t, p));
    let low = s.add_f32s(s.add_f32s(t, t), low);
    s.mul_add_e_f32s(n, s.splat_f32s(LN_2_HI), low)
}

/// log a, lane by lane: no shift takes the exponent out of 64 bits.
#[inline(always)]
fn log_f64s<S: Simd>(_: S, mut a: S::f64s) -> S::f64s {
    let lanes: &mut [f64] = bytemuck::cast_slice_mut(std::slice::from_mut(&mut a));
    lanes.iter_mut().for_each(|lane| *lane = lane.ln());
    a
}

lanes!(
    f32, f32s, as as_simd_f32s, as_mut_simd_f32s,
    splat_f32s, add_f32s, sub_f32s, mul_f32s, div_f32s, sqrt_f32s, mul_add_e_f32s,
    negate_mul_add_e_f32s, min_f32s, max_f32s, greater_than_f32s, select_f32s,
    reduce_sum_f32s, reduce_max_f32s,
    bits transmute_u32s_f32s, transmute_f32s_u32s, splat_u32s, add_u32s,
    wrapping_dyn_shl_u32s, exp exp_f32, log log_f32s
);
lanes!(
    f64, f64s, as as_simd_f64s, as_mut_simd_f64s,
    splat_f64s, add_f64s, sub_f64s, mul_f64s, div_f64s, sqrt_f64s, mul_add_e_f64s,
    negate_mul_add_e_f64s, min_f64s, max_f64s, greater_than_f64s, select_f64s,
    reduce_sum_f64s, reduce_max_f64s,
    bits transmute_u64s_f64s, transmute_f64s_u64s, splat_u64s, add_u64s, mul_u64s,
    exp exp_f64, log log_f64s
);

/// 1/k! for k from `LOWEST + TERMS − 1` down to `LOWEST`: the Taylor polynomial of eʳ by Horner's
/// rule. From k = 0 on and for |r| ≤ ½ ln 2, its remainder is a tenth of a unit in the last place
/// (degree 7 in f32, 13 in f64). From k = 2 on and for |r| ≤ ½, that is so at degree 9 and 15.
const fn inverse_factorials<const LOWEST: usize, const TERMS: usize>() -> [f64; TERMS] {
    let mut coefficients = [1.0; TERMS];
    let mut inverse = 1.0;
    let mut k = 1;
    while k < LOWEST + TERMS {
        inverse /= k as f64;
        if k >= LOWEST {
            coefficients[LOWEST + TERMS - 1 - k] = inverse;
        }
        k += 1;
    }
    coefficients
}

/// 2/(2k + 1) for k from `TERMS` down to 1: log(1 + a) = 2t + 2t³/3 + 2t⁵/5 + …, t = a/(2 + a).
const fn artanh<const TERMS: usize>() -> [f64; TERMS] {
    let mut coefficients = [0.0; TERMS];
    let mut k = 0;
    while k < TERMS {
        coefficients[k] = 2.0 / (2 * (TERMS - k) + 1) as f64;
        k += 1;
    }
    coefficients
}

const fn in_f32<const TERMS: usize>(coefficients: [f64; TERMS]) -> [f32; TERMS] {
    let mut rounded = [0.0; TERMS];
    let mut k = 0;
    while k < TERMS {
        #[allow(clippy::cast_possible_truncation)] // rounding is what is asked for
        {
            rounded[k] = coefficients[k] as f32;
        }
        k += 1;
    }
    rounded
}

mod exp_f32 {
    pub(super) const LOG2_E: f32 = std::f32::consts::LOG2_E;
    /// ln 2 in two parts; the first has so few bits that its product with n is exact.
    pub(super) const LN_2_HI: f32 = 0.693_359_4;
    pub(super) const LN_2_LO: f32 = -2.121_944_4e-4;
    pub(super) const MAGIC: f32 = 12_582_912.0;
    /// By how many bits to shift n into the exponent.
    pub(super) const EXPONENT: u32 = 23;
    /// Where eᵃ stops being a normal number.
    pub(super) const UNDERFLOW: f32 = -87.0;
    pub(super) const TAYLOR: [f32; 8] = super::in_f32(super::inverse_factorials::<0, 8>());
    pub(super) const EXCESS: [f32; 8] = super::in_f32(super::inverse_factorials::<2, 8>());
    /// For |t| ≤ 0.2: what is left out is below 1e-9 of the sum.
    pub(super) const ARTANH: [f32; 5] = super::in_f32(super::artanh::<5>());
}

mod exp_f64 {
    pub(super) const LOG2_E: f64 = std::f64::consts::LOG2_E;
    /// ln 2 in two parts; the first has so few bits that its product with n is exact.
    pub(super) const LN_2_HI: f64 = 0.693_147_180_369_123_8;
    pub(super) const LN_2_LO: f64 = 1.908_214_929_270_587_7e-10;
    pub(super) const MAGIC: f64 = 6_755_399_441_055_744.0;
    /// What to multiply n by to get it into the exponent; pulp has no 64-bit shift.
    pub(super) const EXPONENT: u64 = 1 << 52;
    /// Where eᵃ stops being a normal number.
    pub(super) const UNDERFLOW: f64 = -708.0;
    pub(super) const TAYLOR: [f64; 14] = super::inverse_factorials::<0, 14>();
    pub(super) const EXCESS: [f64; 14] = super::inverse_factorials::<2, 14>();
    /// For |t| ≤ 0.2: what is left out is below 1e-17 of the sum.
    pub(super) const ARTANH: [f64; 11] = super::artanh::<11>();
}

#[cfg(test)]
mod tests {
    use super::*;

    /// eᵃ over a slice, through the dispatch that kernels use.
    struct Exp<'a, R>(&'a mut [R]);

    impl<R: Lanes> WithSimd for Exp<'_, R> {
        type Output = ();
        #[inline(always)]
        fn with_simd<S: Simd>(self, s: S) {
            for v in R::vectors_mut::<S>(self.0) {
                *v = R::vexp(s, *v);
            }
        }
    }

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        let inputs: Vec<f64> = (0..1 << 16)
            .map(|i| -f64::from(i) * 86.9 / 65535.0)
            .collect();
        let mut singles: Vec<f32> = inputs.iter().map(|&a| a as f32).collect();
        dispatch(Exp(&mut singles));
        for (&a, &got) in inputs.iter().zip(&singles) {
            let want = f64::from(a as f32).exp();
            let error = (f64::from(got) - want).abs() / want / f64::from(f32::EPSILON);
            assert!(error <= 1.0, "e^{a}: {got}, off by {error} epsilon");
        }
        let mut doubles = inputs.clone();
        dispatch(Exp(&mut doubles));
        for (&a, &got) in inputs.iter().zip(&doubles) {
            let error = (got - a.exp()).abs() / a.exp() / f64::EPSILON;
            assert!(error <= 2.0, "e^{a}: {got}, off by {error} epsilon");
        }
    }

    /// eᵃ − 1 − a over a slice.
    struct ExpExcess<'a, R>(&'a mut [R]);

    impl<R: Lanes> WithSimd for ExpExcess<'_, R> {
        type Output = ();
        #[inline(always)]
        fn with_simd<S: Simd>(self, s: S) {
            for v in R::vectors_mut::<S>(self.0) {
                *v = R::vexp_excess(s, *v);
            }
        }
    }

    #[test]
    fn exp_excess_is_exact_near_zero() {
        // eᵃ − 1 − a = Σ aᵏ/k!, summed from the smallest term on.
        let right = |a: f64| {
            let mut terms = vec![a * a / 2.0];
            for k in 3..30 {
                terms.push(terms[k - 3] * a / k as f64);
            }
            terms.iter().rev().sum::<f64>()
        };
        let mut inputs = vec![
            0.5, -0.5, 0.3, -0.3, 0.01, -0.01, 1e-5, -1e-5, 1e-9, 0.0, -0.25,
        ];
        inputs.resize(16, -0.4);
        let mut singles: Vec<f32> = inputs.iter().map(|&a| a as f32).collect();
        dispatch(ExpExcess(&mut singles));
        for (&a, &got) in inputs.iter().zip(&singles) {
            let want = right(f64::from(a as f32));
            let error = (f64::from(got) - want).abs();
            assert!(
                error <= 3.0 * f64::from(f32::EPSILON) * want,
                "{a}: {got} for {want}"
            );
        }
        let mut doubles = inputs.clone();
        dispatch(ExpExcess(&mut doubles));
        for (&a, &got) in inputs.iter().zip(&doubles) {
            let want = right(a);
            assert!(
                (got - want).abs() <= 3.0 * f64::EPSILON * want,
                "{a}: {got} for {want}"
            );
        }
    }

    /// log a over a slice.
    struct Log<'a, R>(&'a mut [R]);

    impl<R: Lanes> WithSimd for Log<'_, R> {
        type Output = ();
        #[inline(always)]
        fn with_simd<S: Simd>(self, s: S) {
            for v in R::vectors_mut::<S>(self.0) {
                *v = R::vlog(s, *v);
            }
        }
    }

    #[test]
    fn log_is_within_a_few_units_in_the_last_place() {
        let inputs: Vec<f64> = (0..1 << 14)
            .map(|i| (f64::from(i) / 100.0 - 80.0).exp())
            .chain((0..1 << 14).map(|i| 0.5 + f64::from(i) / 8192.0))
            .collect();
        let mut singles: Vec<f32> = inputs.iter().map(|&a| a as f32).collect();
        dispatch(Log(&mut singles));
        for (&a, &got) in inputs.iter().zip(&singles) {
            let want = f64::from(a as f32).ln();
            let error = (f64::from(got) - want).abs();
            let epsilon = f64::from(f32::EPSILON);
            assert!(
                error <= 1.5 * epsilon * want.abs(),
                "log {a}: {got} for {want}"
            );
        }
        let mut doubles = inputs.clone();
        dispatch(Log(&mut doubles));
        for (&a, &got) in inputs.iter().zip(&doubles) {
            assert_eq!(got, a.ln(), "log {a}");
        }
    }

    /// log(1 + a) and a − log(1 + a) over a slice, in turns.
    struct LogExcess<'a, R>(&'a mut [R]);

    impl<R: Lanes> WithSimd for LogExcess<'_, R> {
        type Output = ();
        #[inline(always)]
        fn with_simd<S: Simd>(self, s: S) {
            let [inputs, excess] = R::vectors_mut::<S>(self.0) else {
                unreachable!("a slice of two registers")
            };
            (*inputs, *excess) = R::vlog_excess(s, *inputs);
        }
    }

    #[test]
    fn log_excess_is_exact_near_zero() {
        struct Evaluate<R>(R);
        impl<R: Lanes> WithSimd for Evaluate<R> {
            type Output = [R; 2];
            #[inline(always)]
            fn with_simd<S: Simd>(self, s: S) -> [R; 2] {
                let width = R::width::<S>();
                let mut both = vec![self.0; 2 * width];
                LogExcess(&mut both).with_simd(s);
                [both[0], both[width]]
            }
        }
        // a − log(1 + a) = Σ (−a)ᵏ/k, summed from the smallest term on.
        let right = |a: f64| {
            let terms = (2..60).rev().map(|k| (-a).powi(k) / f64::from(k));
            terms.sum::<f64>()
        };
        for a in [0.33, -0.33, 0.2, -0.25, 0.01, -0.01, 1e-5, -1e-5, 1e-9, 0.0] {
            let [log, excess] = dispatch(Evaluate(a as f32)).map(f64::from);
            let want = f64::from(a as f32);
            let close = |got: f64, want: f64, epsilon: f64| {
                (got - want).abs() <= 3.0 * epsilon * want.abs()
            };
            let epsilon = f64::from(f32::EPSILON);
            assert!(close(log, want.ln_1p(), epsilon), "{a}: {log}");
            assert!(close(excess, right(want), epsilon), "{a}: {excess}");
            let [log, excess] = dispatch(Evaluate(a));
            assert!(close(log, a.ln_1p(), f64::EPSILON), "{a}: {log}");
            assert!(close(excess, right(a), f64::EPSILON), "{a}: {excess}");
        }
    }

    #[test]
    fn exp_vanishes_far_below_zero_and_keeps_nan() {
        let mut x = [-90.0f32; 16];
        x[1] = f32::MIN;
        x[2] = f32::NAN;
        x[3] = 0.0;
        x[4] = f32::NEG_INFINITY;
        dispatch(Exp(&mut x));
        assert_eq!((x[0], x[1], x[3], x[4]), (0.0, 0.0, 1.0, 0.0));
        assert!(x[2].is_nan());
    }
}
