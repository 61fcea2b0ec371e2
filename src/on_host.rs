//! The devices in host memory, compiled once: what is generic over the element is compiled anew in every crate that calls it, and
//! the fast path is most of this one. So [`Device`](crate::Device) calls it through functions of each element's own.

use half::{bf16, f16};

use crate::element::Element;
use crate::error::Result;
use crate::problem::{Batch, Problem, Value};
use crate::relation::Relation;
use crate::rows::Rows;
use crate::{cpu, reference};

/// What [`Cpu`](crate::Cpu) and [`Reference`](crate::Reference) do with elements of this type.
#[doc(hidden)]
pub trait OnHost: Sized {
    fn evaluate_on_cpu(
        problem: &Problem,
        batch: Batch<'_, Self>,
        gradient: &mut [<Self as Element>::Real],
    ) -> Result<Value>
    where
        Self: Element;

    fn relation_matrix_on_cpu(
        relation: Relation,
        rows: Rows<'_, Self>,
        matrix: &mut [<Self as Element>::Real],
    ) -> Result<()>
    where
        Self: Element;

    fn softmax_on_cpu(
        rows: Rows<'_, Self>,
        temperature: f64,
        probabilities: &mut [<Self as Element>::Real],
    ) -> Result<()>
    where
        Self: Element;

    fn evaluate_by_definition(
        problem: &Problem,
        batch: Batch<'_, Self>,
        gradient: &mut [f64],
    ) -> Result<Value>
    where
        Self: Element;
}

macro_rules! compiled_here {
    ($($element:ty),*) => {$(
        impl OnHost for $element {
            #[inline(never)]
            fn evaluate_on_cpu(
                problem: &Problem,
                batch: Batch<'_, Self>,
                gradient: &mut [<Self as Element>::Real],
            ) -> Result<Value> {
                cpu::evaluate(problem, batch, gradient)
            }

            #[inline(never)]
            fn relation_matrix_on_cpu(
                relation: Relation,
                rows: Rows<'_, Self>,
                matrix: &mut [<Self as Element>::Real],
            ) -> Result<()> {
                cpu::relation_matrix(relation, rows, matrix)
            }

            #[inline(never)]
            fn softmax_on_cpu(
                rows: Rows<'_, Self>,
                temperature: f64,
                probabilities: &mut [<Self as Element>::Real],
            ) -> Result<()> {
                cpu::softmax(rows, temperature, probabilities)
            }

            #[inline(never)]
            fn evaluate_by_definition(
                problem: &Problem,
                batch: Batch<'_, Self>,
                gradient: &mut [f64],
            ) -> Result<Value> {
                reference::evaluate(problem, batch, gradient)
            }
        }
    )*};
}

compiled_here!(f64, f32, f16, bf16);
