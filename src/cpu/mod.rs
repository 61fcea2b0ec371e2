//! The fast path for machines without a GPU.

mod buffer;
mod contrastive;
mod embeddings;
mod logits;
mod pairwise;
mod triplet;

use half::{bf16, f16};

use crate::device::{Device, sealed::Sealed};
use crate::element::{DType, Element};
use crate::error::Result;
use crate::loss::{Family, Relation};
use crate::problem::{Batch, Problem, Value};
use crate::rows::Rows;

/// The fast path for machines without a GPU: SIMD chosen at run time, rayon's current thread pool,
/// the same bits whatever its number of threads. f64 is computed in f64, all else in f32 or better.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cpu;

impl Sealed for Cpu {}

/// Calls a generic function with the concrete type that `T` is, so that it is compiled in this
/// crate, once for each type, and not in every crate that calls it.
macro_rules! with_element {
    ($T:ident, $function:ident, $inputs:tt, $reals:expr) => {
        match $T::DTYPE {
            DType::F64 => with_element!(f64, $function $inputs, $reals),
            DType::F32 => with_element!(f32, $function $inputs, $reals),
            DType::F16 => with_element!(f16, $function $inputs, $reals),
            DType::BF16 => with_element!(bf16, $function $inputs, $reals),
        }
    };
    ($element:ident, $function:ident ($($input:expr),*), $reals:expr) => {
        $function::<$element>($($input,)* bytemuck::cast_slice_mut($reals))
    };
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
        with_element!(T, evaluate, (problem, batch.cast()), gradient)
    }

    fn relation_matrix(
        &self,
        relation: Relation,
        rows: Rows<'_, T>,
        matrix: &mut [T::Real],
    ) -> Result<()> {
        with_element!(T, relation_matrix, (relation, rows.cast()), matrix)
    }

    fn softmax(
        &self,
        rows: Rows<'_, T>,
        temperature: f64,
        probabilities: &mut [T::Real],
    ) -> Result<()> {
        with_element!(T, softmax, (rows.cast(), temperature), probabilities)
    }
}

#[inline(never)]
fn evaluate<T: Element>(
    problem: &Problem,
    batch: Batch<'_, T>,
    gradient: &mut [T::Real],
) -> Result<Value> {
    // A thread of the pool does all of it, so that each parallel step below starts from within the
    // pool. From outside, every step would put the caller to sleep and wake it again.
    rayon::scope(|_| evaluate_in_pool(problem, batch, gradient))
}

#[inline(never)]
fn relation_matrix<T: Element>(
    relation: Relation,
    rows: Rows<'_, T>,
    matrix: &mut [T::Real],
) -> Result<()> {
    pairwise::relation::relation_matrix(relation, rows, matrix)
}

#[inline(never)]
fn softmax<T: Element>(
    rows: Rows<'_, T>,
    temperature: f64,
    probabilities: &mut [T::Real],
) -> Result<()> {
    logits::softmax::softmax(rows, temperature, probabilities)
}

fn evaluate_in_pool<T: Element>(
    problem: &Problem,
    batch: Batch<'_, T>,
    gradient: &mut [T::Real],
) -> Result<Value> {
    let (spec, upstream) = (problem.spec(), problem.upstream());
    let normalize = spec.normalize;
    let value = match spec.family {
        Family::Pairwise(pairwise) => {
            pairwise::evaluate(&pairwise, normalize, batch, upstream, gradient)?
                .map(|loss| problem.value(loss, []))
        }
        Family::Triplet(triplet) => {
            triplet::evaluate(&triplet, normalize, batch, upstream, gradient)?
                .map(|(loss, parts)| problem.value(loss, parts))
        }
        Family::Contrastive(contrastive) => {
            contrastive::evaluate(&contrastive, normalize, batch, upstream, gradient)?
                .map(|(loss, kl)| problem.value(loss, kl))
        }
        Family::Logits(logits) => {
            let loss = logits::evaluate(&logits, batch, upstream, gradient)?;
            Some(problem.value(loss, []))
        }
    };
    // A family gives no value if an element of the inputs is not finite.
    Ok(value.unwrap_or_else(|| {
        gradient.fill(T::Real::from_f64(f64::NAN));
        problem.not_a_number()
    }))
}
