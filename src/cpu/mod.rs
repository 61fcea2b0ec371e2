//! The fast path for machines without a GPU.

mod buffer;
mod contrastive;
mod embeddings;
mod groups;
mod logits;
mod pairwise;
mod parallel;
mod prefixes;
mod sampled;
mod sums;
mod towers;
mod triplet;

use half::{bf16, f16};

use crate::batch::Batch;
use crate::device::{Device, sealed::Sealed};
use crate::element::{DType, Element};
use crate::error::Result;
use crate::loss::{Family, Relation};
use crate::problem::{Problem, Value};
use crate::rows::Rows;

/// The fast path for machines without a GPU: SIMD chosen at run time, rayon's current thread pool,
/// the same bits whatever its number of threads. f64 is computed in f64, all else in f32 or better.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cpu;

impl Sealed for Cpu {}

/// What the CPU computes on elements of one type.
///
/// A static is compiled in this crate, with all functions that it names. If [`Device`] called
/// these generic functions itself, every crate that uses a loss would compile all losses again.
#[expect(
    clippy::type_complexity,
    reason = "these are the signatures of `Device`"
)]
struct Compiled<T: Element> {
    evaluate: fn(&Problem, Batch<'_, T>, Option<&mut [f64]>, &mut [T::Real]) -> Result<Value>,
    relation_matrix: fn(Relation, Rows<'_, T>, &mut [T::Real]) -> Result<()>,
    softmax: fn(Rows<'_, T>, f64, &mut [T::Real]) -> Result<()>,
}

impl<T: Element> Compiled<T> {
    const fn new() -> Self {
        Compiled {
            evaluate,
            relation_matrix: pairwise::relation::relation_matrix,
            softmax: logits::softmax::softmax,
        }
    }
}

static F64: Compiled<f64> = Compiled::new();
static F32: Compiled<f32> = Compiled::new();
static F16: Compiled<f16> = Compiled::new();
static BF16: Compiled<bf16> = Compiled::new();

/// Calls the function that was compiled for the type that `T` is.
macro_rules! call {
    ($T:ident, $function:ident($($input:expr),*), $reals:expr) => {{
        let reals = $reals;
        match $T::DTYPE {
            DType::F64 => (F64.$function)($($input,)* bytemuck::cast_slice_mut(reals)),
            DType::F32 => (F32.$function)($($input,)* bytemuck::cast_slice_mut(reals)),
            DType::F16 => (F16.$function)($($input,)* bytemuck::cast_slice_mut(reals)),
            DType::BF16 => (BF16.$function)($($input,)* bytemuck::cast_slice_mut(reals)),
        }
    }};
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
        row_losses: Option<&mut [f64]>,
    ) -> Result<Value> {
        call!(T, evaluate(problem, batch.cast(), row_losses), gradient)
    }

    fn relation_matrix(
        &self,
        relation: Relation,
        rows: Rows<'_, T>,
        matrix: &mut [T::Real],
    ) -> Result<()> {
        call!(T, relation_matrix(relation, rows.cast()), matrix)
    }

    fn softmax(
        &self,
        rows: Rows<'_, T>,
        temperature: f64,
        probabilities: &mut [T::Real],
    ) -> Result<()> {
        call!(T, softmax(rows.cast(), temperature), probabilities)
    }
}

fn evaluate<T: Element>(
    problem: &Problem,
    batch: Batch<'_, T>,
    row_losses: Option<&mut [f64]>,
    gradient: &mut [T::Real],
) -> Result<Value> {
    // A thread of the pool does all of it, so that each parallel step below starts from within the
    // pool. From outside, every step would put the caller to sleep and wake it again.
    rayon::scope(|_| evaluate_in_pool(problem, batch, row_losses, gradient))
}

fn evaluate_in_pool<T: Element>(
    problem: &Problem,
    batch: Batch<'_, T>,
    mut row_losses: Option<&mut [f64]>,
    gradient: &mut [T::Real],
) -> Result<Value> {
    if problem.groups() > 1 {
        return groups::evaluate(problem, batch, gradient);
    }
    if !problem.prefixes().is_empty() {
        return prefixes::evaluate(problem, batch, gradient);
    }
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
            let row_losses = row_losses.as_deref_mut();
            contrastive::evaluate(&contrastive, problem, batch, row_losses, gradient)?
                .map(|(loss, terms)| problem.value(loss, terms))
        }
        Family::Towers(towers) => towers::evaluate(&towers, batch, upstream, gradient)?
            .map(|(loss, terms)| problem.value(loss, terms)),
        Family::Sampled(sampled) => {
            let row_losses = row_losses.as_deref_mut();
            sampled::evaluate(&sampled, problem, batch, row_losses, gradient)?
                .map(|(loss, kl)| problem.value(loss, kl))
        }
        Family::Logits(logits) => {
            let loss =
                logits::evaluate(&logits, problem, batch, row_losses.as_deref_mut(), gradient)?;
            Some(problem.value(loss, []))
        }
    };
    // A family gives no value if an element of the inputs is not finite.
    Ok(value.unwrap_or_else(|| {
        gradient.fill(T::Real::from_f64(f64::NAN));
        if let Some(losses) = row_losses {
            losses.fill(f64::NAN);
        }
        problem.not_a_number()
    }))
}
