//! The element types that kernels exist for.

use half::{bf16, f16};

use crate::element::{DType, Element};

/// An element that GPU kernels read: `f32`, [`half::f16`] or [`half::bf16`]. Kernels add in f32 or
/// f64 and return gradients in f32. The trait is sealed, like [`Element`].
///
/// `f64` is not one of them: consumer GPUs compute it 64 times slower than f32. [`Cpu`](crate::Cpu)
/// takes it.
pub trait GpuElement: Element<Real = f32> {}

impl GpuElement for f32 {}
impl GpuElement for f16 {}
impl GpuElement for bf16 {}

/// A type of element that kernels are compiled for: [`DType`] without f64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GpuDType {
    F32,
    F16,
    BF16,
}

impl GpuDType {
    /// The type `T`. An f64 does not compile.
    pub(crate) const fn of<T: GpuElement>() -> Self {
        const {
            match T::DTYPE {
                DType::F32 => GpuDType::F32,
                DType::F16 => GpuDType::F16,
                DType::BF16 => GpuDType::BF16,
                DType::F64 => panic!("no kernel takes f64"),
            }
        }
    }

    /// The size of an element.
    pub(crate) const fn bytes(self) -> usize {
        match self {
            GpuDType::F32 => 4,
            GpuDType::F16 | GpuDType::BF16 => 2,
        }
    }
}

/// The type of the keys in a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeyType {
    F32,
    F16,
}

impl KeyType {
    /// The size of an element.
    pub(crate) const fn bytes(self) -> usize {
        match self {
            KeyType::F32 => 4,
            KeyType::F16 => 2,
        }
    }
}
