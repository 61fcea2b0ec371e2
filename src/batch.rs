//! The inputs of an evaluation.

use std::any::Any;

use crate::bank::{Bank, SampledKeys};
use crate::element::Element;
use crate::queue::Queue;
use crate::rows::Rows;
use crate::shapes::Shapes;
use crate::top_k::TopK;

/// The inputs of one evaluation: student and teacher, and the queue where the loss has one.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a, T: Element> {
    /// `[N, D]`: what the gradient is taken with respect to.
    pub student: Rows<'a, T>,
    /// `[N, D_t]`: a constant. `[N, 0]` where the teacher is `top_k`.
    pub teacher: Rows<'a, T>,
    /// The keys of past teacher batches, as the loss is to see them.
    pub queue: Option<&'a Queue<T::Real>>,
    /// `[N]`: what each row counts for.
    pub row_weights: Option<&'a [T::Real]>,
    /// `[N, k]`: the teacher's most likely classes, in place of its rows.
    pub top_k: Option<TopK<'a, T::Real>>,
    /// `[N]`: which rows belong together.
    pub labels: Option<&'a [u32]>,
    /// The keys of each row, from a bank.
    pub keys: Option<SampledKeys<'a, T::Real>>,
}

impl<'a, T: Element> Batch<'a, T> {
    /// A batch of rows and nothing else.
    #[must_use]
    pub fn new(student: Rows<'a, T>, teacher: Rows<'a, T>) -> Self {
        Batch {
            student,
            teacher,
            queue: None,
            row_weights: None,
            top_k: None,
            labels: None,
            keys: None,
        }
    }

    /// A batch of student logits and the teacher's most likely classes, for
    /// [`KdKl`](crate::KdKl).
    #[must_use]
    pub fn of_top_k(student: Rows<'a, T>, top_k: TopK<'a, T::Real>) -> Self {
        let teacher = Rows::without_columns(top_k.len());
        Batch {
            top_k: Some(top_k),
            ..Batch::new(student, teacher)
        }
    }

    /// A batch of the student's rows alone, for losses that need no teacher: [`Clip`](crate::Clip),
    /// [`SigLip`](crate::SigLip) and [`SupCon`](crate::SupCon).
    #[must_use]
    pub fn of_student(student: Rows<'a, T>) -> Self {
        Batch::new(student, Rows::without_columns(student.len()))
    }

    /// The same rows, each with a label.
    #[must_use]
    pub fn with_labels(self, labels: &'a [u32]) -> Self {
        Batch {
            labels: Some(labels),
            ..self
        }
    }

    /// The same rows with keys of their own from `bank`: its rows of these `indices`, `[N, K + 1]`, a
    /// row's own first. [`NegativeSampler`](crate::NegativeSampler) draws them.
    #[must_use]
    pub fn with_bank(self, bank: &'a Bank<T::Real>, indices: &'a [u32]) -> Self {
        Batch {
            keys: Some(SampledKeys {
                bank,
                teacher_bank: None,
                indices,
            }),
            ..self
        }
    }

    /// The same rows, where those of the teacher are compared with this bank's rows of the same
    /// samples. Without it they are compared with the bank of the student's rows. It has an effect
    /// on a batch that [has a bank](Self::with_bank), and none on others.
    #[must_use]
    pub fn with_teacher_bank(self, bank: &'a Bank<T::Real>) -> Self {
        let keys = self.keys.map(|keys| SampledKeys {
            teacher_bank: Some(bank),
            ..keys
        });
        Batch { keys, ..self }
    }

    /// The same rows with `queue`.
    #[must_use]
    pub fn with_queue(self, queue: &'a Queue<T::Real>) -> Self {
        Batch {
            queue: Some(queue),
            ..self
        }
    }

    /// The same rows, each with a weight: the loss is the weighted mean `Σ w_i ℓ_i / Σ w_i` of the
    /// losses of its rows. A mask has the weights 0 and 1. Where all weights are 0, the loss and
    /// the gradient are 0.
    ///
    /// The losses of logits and those with keys take weights ([`KdKl`](crate::KdKl),
    /// [`Rrd`](crate::Rrd), [`InfoNce`](crate::InfoNce), [`Crd`](crate::Crd),
    /// [`RrdBank`](crate::RrdBank)). A row of weight 0 may hold anything. But
    /// where InfoNCE compares within the batch, each of the teacher's rows is a key of the others,
    /// whatever its own weight.
    #[must_use]
    pub fn with_row_weights(self, weights: &'a [T::Real]) -> Self {
        Batch {
            row_weights: Some(weights),
            ..self
        }
    }

    /// The same batch as elements of the type that `T` is.
    pub(crate) fn cast<U: Element>(self) -> Batch<'a, U> {
        let keys = self.keys.map(|keys| SampledKeys {
            bank: same_type(keys.bank),
            teacher_bank: keys.teacher_bank.map(same_type),
            indices: keys.indices,
        });
        Batch {
            student: self.student.cast(),
            teacher: self.teacher.cast(),
            queue: self.queue.map(same_type),
            row_weights: self.row_weights.map(bytemuck::cast_slice),
            top_k: self.top_k.map(TopK::cast),
            labels: self.labels,
            keys,
        }
    }

    /// The sizes of this batch.
    #[must_use]
    pub fn shapes(&self) -> Shapes {
        Shapes {
            rows: self.student.len(),
            student_dim: self.student.dim(),
            teacher_dim: self.teacher.dim(),
            queue: self.queue.map(Queue::len),
            row_weights: self.row_weights.is_some(),
            top_k: self.top_k.map(|top_k| top_k.k()),
            labels: self.labels.is_some(),
            bank: self.keys.map(|keys| keys.shape(self.student.len())),
        }
    }
}

/// A value of the type that it is: for what holds the reals of an element type.
fn same_type<A: Any, B: Any>(value: &A) -> &B {
    let value: &dyn Any = value;
    value.downcast_ref().expect("the element's reals")
}
