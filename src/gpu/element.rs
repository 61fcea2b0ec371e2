//! The element types that kernels exist for.

use half::{bf16, f16};

use crate::element::{DType, Element};

/// An element that GPU kernels read: `f32`, [`half::f16`] or [`half::bf16`]. Sums are taken in f32 or
/// better and gradients come back in f32. Sealed, like [`Element`].
///
/// There is no `f64`: consumer GPUs compute it 64 times slower. [`Cpu`](crate::Cpu) takes it.
pub trait GpuElement: Element<Real = f32> {}

impl GpuElement for f32 {}
impl GpuElement for f16 {}
impl GpuElement for bf16 {}

/// Where kernels of this type stand in a [family](super::kernels::Family).
pub(crate) const fn index(dtype: DType) -> usize {
    match dtype {
        // Unreachable through `GpuElement`, which has no f64.
        DType::F32 | DType::F64 => 0,
        DType::F16 => 1,
        DType::BF16 => 2,
    }
}
