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
    /// Whether each row has a weight.
    pub row_weights: bool,
    /// k, where the teacher is the k most likely classes of each row and has no rows of its own:
    /// see [`TopK`](crate::TopK). D_t is then 0.
    pub top_k: Option<usize>,
    /// Whether each row has a label.
    pub labels: bool,
    /// `[n_data, K + 1]`: the rows of the [`Bank`](crate::Bank), and how many of them are keys of each
    /// row, for an evaluation with a bank.
    pub bank: Option<[usize; 2]>,
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
            row_weights: false,
            top_k: None,
            labels: false,
            bank: None,
        }
    }

    /// A batch of `rows` rows of student logits, and of each row the `k` most likely classes of the
    /// teacher: see [`TopK`](crate::TopK).
    #[must_use]
    pub const fn of_top_k(rows: usize, student_dim: usize, k: usize) -> Self {
        Shapes {
            top_k: Some(k),
            ..Shapes::new(rows, student_dim, 0)
        }
    }

    /// The same batch with a label for each row.
    #[must_use]
    pub const fn with_labels(self) -> Self {
        Shapes {
            labels: true,
            ..self
        }
    }

    /// The same batch with a bank of `samples` rows, of which each row of the batch has `keys` as its
    /// keys.
    #[must_use]
    pub const fn with_bank(self, samples: usize, keys: usize) -> Self {
        Shapes {
            bank: Some([samples, keys]),
            ..self
        }
    }

    /// The same batch with a weight for each row.
    #[must_use]
    pub const fn with_row_weights(self) -> Self {
        Shapes {
            row_weights: true,
            ..self
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
