//! Sums in f64 of what two slices hold.

use pulp::{Simd, WithSimd};

use crate::element::Real;
use crate::simd::dispatch;

/// Terms that are summed side by side, whatever the registers of the machine.
const LANES: usize = 16;

/// ⟨a, b⟩, over the length of the shorter.
pub(super) fn dot<R: Real>(a: &[R], b: &[R]) -> f64 {
    sum_of(a, b, |a, b| a * b)
}

/// Σ term(a, b), over the length of the shorter.
pub(super) fn sum_of<R: Real>(a: &[R], b: &[R], term: impl Fn(f64, f64) -> f64) -> f64 {
    dispatch(Sum { a, b, term })
}

struct Sum<'a, R, F> {
    a: &'a [R],
    b: &'a [R],
    term: F,
}

impl<R: Real, F: Fn(f64, f64) -> f64> WithSimd for Sum<'_, R, F> {
    type Output = f64;

    // The compiler makes vectors of the lanes: pulp has no conversion from f32 to f64.
    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> f64 {
        let len = self.a.len().min(self.b.len());
        let (a, a_rest) = self.a[..len].as_chunks::<LANES>();
        let (b, b_rest) = self.b[..len].as_chunks::<LANES>();
        let mut sums = [0.0; LANES];
        for (a, b) in a.iter().zip(b) {
            for lane in 0..LANES {
                sums[lane] += (self.term)(a[lane].to_f64(), b[lane].to_f64());
            }
        }
        for lane in 0..a_rest.len() {
            sums[lane] += (self.term)(a_rest[lane].to_f64(), b_rest[lane].to_f64());
        }
        let mut width = LANES;
        while width > 1 {
            width /= 2;
            for lane in 0..width {
                sums[lane] += sums[lane + width];
            }
        }
        sums[0]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_term_counts_once() {
        for len in [0, 1, 15, 16, 17, 33, 100] {
            let a: Vec<f32> = (0..len).map(|i| i as f32 + 1.0).collect();
            let b = vec![2.0f32; len + 3];
            assert_eq!(dot(&a, &b), (len * (len + 1)) as f64);
            assert_eq!(
                sum_of(&a, &b, |a, b| a - b),
                dot(&a, &[1.0; 100]) - 2.0 * len as f64
            );
        }
    }
}
