//! Where a loss is computed.

use crate::element::{Element, Real};
use crate::error::Result;
use crate::problem::{Batch, Problem, Value};
use crate::{cpu, reference};

/// Something that evaluates losses on embeddings of type `T`.
///
/// Implementors: [`Reference`] (the definition, f64, slow) and [`Cpu`] (the fast path). The trait
/// is sealed: callers go through [`Problem::evaluate`], which checks what devices take for granted.
pub trait Device<T: Element>: sealed::Sealed {
    /// The type its gradients come back in.
    type Gradient: Real;

    /// The name the command and the benchmarks know it by.
    fn name(&self) -> &'static str;

    /// Overwrites `gradient` (`[N, D]`). Shapes have been checked by [`Problem`]; the inputs may
    /// hold anything, NaN included.
    #[doc(hidden)]
    fn evaluate(
        &self,
        problem: &Problem,
        batch: Batch<'_, T>,
        gradient: &mut [Self::Gradient],
    ) -> Result<Value>;
}

/// The definitions as the papers print them, in f64 with plain loops: the specification every other
/// device is held against. Slow: the angle loss takes O(N³D).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reference;

/// The fast path for machines without a GPU: SIMD chosen at run time, rayon's current thread pool,
/// the same bits whatever its number of threads. f64 is computed in f64, all else in f32 or better.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cpu;

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Reference {}
    impl Sealed for super::Cpu {}
}

impl<T: Element> Device<T> for Reference {
    type Gradient = f64;

    fn name(&self) -> &'static str {
        "reference"
    }

    fn evaluate(
        &self,
        problem: &Problem,
        batch: Batch<'_, T>,
        gradient: &mut [f64],
    ) -> Result<Value> {
        reference::evaluate(problem, batch, gradient)
    }
}

impl<T: Element> Device<T> for Cpu {
    type Gradient = T::Real;

    fn name(&self) -> &'static str {
        "cpu"
    }

    fn evaluate(
        &self,
        problem: &Problem,
        batch: Batch<'_, T>,
        gradient: &mut [T::Real],
    ) -> Result<Value> {
        cpu::evaluate(problem, batch, gradient)
    }
}
