//! The sizes of a batch.

/// The sizes of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shapes {
    /// N: the number of rows of student and teacher.
    pub rows: usize,
    /// D: the number of elements in a row of the student.
    pub student_dim: usize,
    /// D_t: the number of elements in a row of the teacher. Losses that compare the two spaces
    /// directly (RRD, InfoNCE, KD) require D_t = D: see [`Spec::same_dim`](crate::Spec::same_dim).
    pub teacher_dim: usize,
    /// K: the number of keys in the queue, for an evaluation with a queue. It is at least 1 when
    /// the loss is computed. With [`Enqueue::Before`](crate::Enqueue::Before) it counts the batch
    /// itself.
    pub queue: Option<usize>,
}

impl Shapes {
    /// A batch of `rows` rows and no queue.
    #[must_use]
    pub const fn new(rows: usize, student_dim: usize, teacher_dim: usize) -> Self {
        Shapes {
            rows,
            student_dim,
            teacher_dim,
            queue: None,
        }
    }

    /// The same batch with a queue of `keys` keys.
    #[must_use]
    pub const fn with_queue(self, keys: usize) -> Self {
        Shapes {
            queue: Some(keys),
            ..self
        }
    }
}
