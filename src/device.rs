//! Where a loss is computed.

use crate::batch::Batch;
use crate::element::{Element, Real};
use crate::error::Result;
use crate::loss::Relation;
use crate::problem::{Problem, Value};
use crate::rows::Rows;

/// Something that evaluates losses on embeddings of type `T`.
///
/// Two devices are always there, for every element type: [`Reference`](crate::Reference) (the
/// definition, f64, slow) and [`Cpu`](crate::Cpu) (the fast path). The features `cuda` and
/// `emulator` add `Cuda` (a GPU) and `Emulator` (the GPU's kernels, run on the CPU), for all
/// element types but f64.
///
/// The trait is sealed: callers go through [`Problem::evaluate`], which checks what devices take
/// for granted.
pub trait Device<T: Element>: sealed::Sealed {
    /// The type of the gradients.
    type Gradient: Real;

    /// The device's name in the command and the benchmarks.
    fn name(&self) -> &'static str;

    /// Overwrites `gradient` (`[N, D]`), and `row_losses` (`[N]`) where they are asked for.
    /// [`Problem`] has checked the shapes; the inputs may hold anything, NaN included.
    #[doc(hidden)]
    fn evaluate(
        &self,
        problem: &Problem,
        batch: Batch<'_, T>,
        gradient: &mut [Self::Gradient],
        row_losses: Option<&mut [f64]>,
    ) -> Result<Value>;

    /// Overwrites `matrix` (`[N, N]`); neither N nor D is 0.
    #[doc(hidden)]
    fn relation_matrix(
        &self,
        relation: Relation,
        rows: Rows<'_, T>,
        matrix: &mut [Self::Gradient],
    ) -> Result<()>;

    /// Overwrites `probabilities` (`[N, D]`); neither N nor D is 0, and the temperature is in
    /// range.
    #[doc(hidden)]
    fn softmax(
        &self,
        rows: Rows<'_, T>,
        temperature: f64,
        probabilities: &mut [Self::Gradient],
    ) -> Result<()>;
}

pub(crate) mod sealed {
    pub trait Sealed {}
}
