//! Where a loss is computed.

use crate::element::{Element, Real};
use crate::error::Result;
use crate::problem::{Batch, Problem, Value};
use crate::reference;
use crate::relation::Relation;
use crate::rows::Rows;

/// Something that evaluates losses on embeddings of type `T`.
///
/// Implementors: [`Reference`] (the definition, f64, slow) and [`Cpu`] (the fast path), for every
/// element; with the features of these names `Cuda` (a GPU) and `Emulator` (the GPU's kernels on the
/// CPU), for all but f64. The trait is sealed: callers go through [`Problem::evaluate`], which checks what devices take for granted.
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

    /// Overwrites `matrix` (`[N, N]`); neither N nor D is 0.
    #[doc(hidden)]
    fn relation_matrix(
        &self,
        relation: Relation,
        rows: Rows<'_, T>,
        matrix: &mut [Self::Gradient],
    ) -> Result<()>;

    /// Overwrites `probabilities` (`[N, D]`); neither N nor D is 0, and the temperature is in range.
    #[doc(hidden)]
    fn softmax(
        &self,
        rows: Rows<'_, T>,
        temperature: f64,
        probabilities: &mut [Self::Gradient],
    ) -> Result<()>;
}

/// The definitions as the papers print them, in f64 with plain loops: the specification every other
/// device is held against. Slow: the angle loss takes O(N³D). Squares of lengths are formed as they are
/// printed: rows longer than 1e154 or shorter than 1e-154 leave f64's range here, and not on [`Cpu`].
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
    #[cfg(feature = "cuda")]
    impl Sealed for crate::cuda::Cuda {}
    #[cfg(feature = "emulator")]
    impl Sealed for crate::gpu::emulator::Emulator {}
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
        T::evaluate_by_definition(problem, batch, gradient)
    }

    fn relation_matrix(
        &self,
        relation: Relation,
        rows: Rows<'_, T>,
        matrix: &mut [f64],
    ) -> Result<()> {
        reference::relation_matrix(relation, rows, matrix);
        Ok(())
    }

    fn softmax(
        &self,
        rows: Rows<'_, T>,
        temperature: f64,
        probabilities: &mut [f64],
    ) -> Result<()> {
        reference::softmax(rows, temperature, probabilities);
        Ok(())
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
        T::evaluate_on_cpu(problem, batch, gradient)
    }

    fn relation_matrix(
        &self,
        relation: Relation,
        rows: Rows<'_, T>,
        matrix: &mut [T::Real],
    ) -> Result<()> {
        T::relation_matrix_on_cpu(relation, rows, matrix)
    }

    fn softmax(
        &self,
        rows: Rows<'_, T>,
        temperature: f64,
        probabilities: &mut [T::Real],
    ) -> Result<()> {
        T::softmax_on_cpu(rows, temperature, probabilities)
    }
}

/// What runs the CUDA kernels.
#[cfg(any(feature = "cuda", feature = "emulator"))]
macro_rules! gpu_device {
    ($device:ty, $name:literal) => {
        impl<T: crate::gpu::element::GpuElement> Device<T> for $device {
            type Gradient = f32;

            fn name(&self) -> &'static str {
                $name
            }

            fn evaluate(
                &self,
                problem: &Problem,
                batch: Batch<'_, T>,
                gradient: &mut [f32],
            ) -> Result<Value> {
                crate::gpu::evaluate(&mut self.machine(), problem, batch, gradient)
            }

            fn relation_matrix(
                &self,
                relation: Relation,
                rows: Rows<'_, T>,
                matrix: &mut [f32],
            ) -> Result<()> {
                crate::gpu::relation_matrix(&mut self.machine(), relation, rows, matrix)
            }

            fn softmax(
                &self,
                rows: Rows<'_, T>,
                temperature: f64,
                probabilities: &mut [f32],
            ) -> Result<()> {
                crate::gpu::softmax(&mut self.machine(), rows, temperature, probabilities)
            }
        }
    };
}

#[cfg(feature = "cuda")]
gpu_device!(crate::cuda::Cuda, "cuda");
#[cfg(feature = "emulator")]
gpu_device!(crate::gpu::emulator::Emulator, "emulator");
