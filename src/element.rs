//! The element types of embeddings and the types they are computed in.

use std::fmt;

use bytemuck::Pod;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::simd::Lanes;

/// The type of an embedding's elements, as a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DType {
    /// IEEE binary64.
    F64,
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// The upper half of binary32.
    BF16,
}

impl DType {
    /// Every type, the widest first.
    pub const ALL: [DType; 4] = [DType::F64, DType::F32, DType::F16, DType::BF16];

    /// The name in use everywhere: `f64`, `f32`, `f16`, `bf16`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            DType::F64 => "f64",
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::BF16 => "bf16",
        }
    }

    /// The size of an element.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            DType::F64 => 8,
            DType::F32 => 4,
            DType::F16 | DType::BF16 => 2,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An element of an embedding: `f64`, `f32`, [`half::f16`] or [`half::bf16`].
///
/// The trait is sealed: kernels exist for these four and no others.
pub trait Element: Pod + Send + Sync + fmt::Debug + PartialOrd + sealed::Sealed {
    /// What sums of this type are accumulated in, and what its gradient comes back as: `f64` for
    /// `f64`, `f32` for the rest.
    type Real: Real;
    /// The type as a value.
    const DTYPE: DType;

    /// The element's value; exact.
    fn to_f64(self) -> f64;
    /// The nearest element to a value.
    fn from_f64(value: f64) -> Self;
    /// The values of `elements` as reals; exact. `reals` is as long as `elements`.
    fn widen(elements: &[Self], reals: &mut [Self::Real]);
}

/// A type that losses are computed in: `f32` or `f64`. Sealed.
pub trait Real: Element<Real = Self> + Lanes + Default {}

mod sealed {
    pub trait Sealed {}
    impl Sealed for f64 {}
    impl Sealed for f32 {}
    impl Sealed for half::f16 {}
    impl Sealed for half::bf16 {}
}

impl Real for f32 {}
impl Real for f64 {}

impl Element for f64 {
    type Real = f64;
    const DTYPE: DType = DType::F64;

    fn to_f64(self) -> f64 {
        self
    }
    fn from_f64(value: f64) -> Self {
        value
    }
    fn widen(elements: &[Self], reals: &mut [f64]) {
        reals.copy_from_slice(elements);
    }
}

impl Element for f32 {
    type Real = f32;
    const DTYPE: DType = DType::F32;

    fn to_f64(self) -> f64 {
        f64::from(self)
    }
    #[allow(clippy::cast_possible_truncation)] // rounding is what is asked for
    fn from_f64(value: f64) -> Self {
        value as f32
    }
    fn widen(elements: &[Self], reals: &mut [f32]) {
        reals.copy_from_slice(elements);
    }
}

impl Element for f16 {
    type Real = f32;
    const DTYPE: DType = DType::F16;

    fn to_f64(self) -> f64 {
        self.to_f64()
    }
    fn from_f64(value: f64) -> Self {
        f16::from_f32(round_to_odd(value))
    }
    fn widen(elements: &[Self], reals: &mut [f32]) {
        elements.convert_to_f32_slice(reals);
    }
}

impl Element for bf16 {
    type Real = f32;
    const DTYPE: DType = DType::BF16;

    fn to_f64(self) -> f64 {
        self.to_f64()
    }
    fn from_f64(value: f64) -> Self {
        bf16::from_f32(round_to_odd(value))
    }
    fn widen(elements: &[Self], reals: &mut [f32]) {
        elements.convert_to_f32_slice(reals);
    }
}

/// `value` as f32, and where it lies between two of them the one whose last bit is odd. Rounding that
/// once more, to fewer bits, gives what rounding `value` itself would have.
#[allow(clippy::cast_possible_truncation)] // rounding is what is asked for
fn round_to_odd(value: f64) -> f32 {
    let nearest = value as f32;
    if f64::from(nearest) == value || !nearest.is_finite() {
        return nearest;
    }
    let bits = nearest.to_bits();
    let beyond = f64::from(nearest).abs() > value.abs();
    f32::from_bits((bits - u32::from(beyond)) | 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_rounded_once() {
        let just_above = |half_step: i32| 1.0 + 2f64.powi(half_step) + 2f64.powi(-40);
        assert_eq!(
            <f16 as Element>::from_f64(just_above(-11)).to_f32(),
            1.0 + 2f32.powi(-10)
        );
        assert_eq!(
            <bf16 as Element>::from_f64(just_above(-8)).to_f32(),
            1.0 + 2f32.powi(-7)
        );
        assert_eq!(
            <f16 as Element>::from_f64(-just_above(-11)).to_f32(),
            -1.0 - 2f32.powi(-10)
        );
        for exact in [0.0, -0.0, 1.5, 65504.0, f64::INFINITY, 2f64.powi(-24)] {
            assert_eq!(<f16 as Element>::from_f64(exact).to_f64(), exact);
        }
        assert_eq!(<f16 as Element>::from_f64(1e300).to_f64(), f64::INFINITY);
        assert_eq!(<f16 as Element>::from_f64(1e-300).to_f64(), 0.0);
        assert!(<f16 as Element>::from_f64(f64::NAN).is_nan());
    }
}
