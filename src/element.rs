//! The element types of embeddings and the types they are computed in.

use std::fmt;

use bytemuck::Pod;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::cpu::simd::Lanes;

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
        f16::from_f64(value)
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
        bf16::from_f64(value)
    }
    fn widen(elements: &[Self], reals: &mut [f32]) {
        elements.convert_to_f32_slice(reals);
    }
}
