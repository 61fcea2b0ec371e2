//! A teacher that is stored as its most likely classes.

use crate::checks::at_most;
use crate::element::{DType, Real};
use crate::error::{Error, Result};

/// How far the probabilities of a row may add up to more than 1: what rounding their logarithms to
/// bf16 does.
const EXCESS: f64 = 0.02;

/// Of each row, the k most likely classes of the teacher and the logarithms of their probabilities,
/// as they are stored for training offline: `[N, k]` both.
///
/// The probabilities are those of the teacher's softmax over all classes, at whatever temperature.
/// They are taken as they are. A row may list fewer than k classes: an entry of log-probability −∞
/// is left out, whatever its class.
///
/// ```
/// use relata::{Batch, Cpu, KdKl, Rows, TopK};
/// # fn main() -> relata::Result<()> {
/// let student = [0.0f64, 0.0, 0.0, 0.0];
/// let (classes, logarithms) = ([2, 0], [0.5f64.ln(), 0.25f64.ln()]);
/// let teacher = TopK::new(&classes, &logarithms, [1, 2])?;
/// let batch = Batch::of_top_k(Rows::new(&student, [1, 4])?, teacher);
/// let loss = KdKl::new(1.0).problem(batch.shapes())?.evaluate(&Cpu, batch)?.loss;
/// // Three classes: 2, 0, and the other two together. The student has ¼, ¼ and ½ for them.
/// assert!((loss - (0.5 * 2f64.ln() + 0.25 * 0.5f64.ln())).abs() < 1e-15);
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct TopK<'a, R> {
    classes: &'a [u32],
    log_probabilities: &'a [R],
    rows: usize,
    k: usize,
}

impl<'a, R: Real> TopK<'a, R> {
    /// What rounding does to a sum of a row's probabilities.
    pub(crate) const ROUNDING: f64 = match R::DTYPE {
        DType::F64 => f64::EPSILON,
        DType::F32 | DType::F16 | DType::BF16 => f32::EPSILON as f64,
    };

    /// Views both as `shape = [rows, k]`.
    ///
    /// # Errors
    /// [`Error::Length`] if one of them does not hold `rows · k` elements.
    pub fn new(classes: &'a [u32], log_probabilities: &'a [R], shape: [usize; 2]) -> Result<Self> {
        let [rows, k] = shape;
        let expected = rows.saturating_mul(k);
        let lengths = [
            ("teacher classes", classes.len()),
            ("teacher log_probabilities", log_probabilities.len()),
        ];
        for (argument, got) in lengths {
            if got != expected {
                return Err(Error::Length {
                    argument,
                    expected,
                    got,
                });
            }
        }
        Ok(TopK {
            classes,
            log_probabilities,
            rows,
            k,
        })
    }

    /// The number of rows, N.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows
    }

    /// Whether there are no rows.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// The number of entries of a row, k.
    #[must_use]
    pub fn k(&self) -> usize {
        self.k
    }

    /// The classes of all rows.
    #[must_use]
    pub fn classes(&self) -> &'a [u32] {
        self.classes
    }

    /// The logarithms of the probabilities of all rows.
    #[must_use]
    pub fn log_probabilities(&self) -> &'a [R] {
        self.log_probabilities
    }

    /// The entries of a row that are not left out: class and logarithm of its probability.
    pub(crate) fn row(&self, row: usize) -> impl Iterator<Item = (usize, f64)> + use<'a, R> {
        let entries = row * self.k..(row + 1) * self.k;
        let classes = self.classes[entries.clone()].iter();
        let logarithms = self.log_probabilities[entries].iter();
        classes
            .zip(logarithms)
            .map(|(&class, logarithm)| (class as usize, logarithm.to_f64()))
            .filter(|&(_, logarithm)| logarithm != f64::NEG_INFINITY)
    }

    /// The teacher's probability of the classes that a row does not list. It is 1 less the sum of
    /// the others, which are rounded: where less remains than that rounding it counts as so much,
    /// if the student has such classes. A divergence that asks for its logarithm then stays finite.
    pub(crate) fn tail(listed: f64, student_has_some: bool) -> f64 {
        let rest = 1.0 - listed;
        if rest > Self::ROUNDING {
            rest
        } else if student_has_some {
            Self::ROUNDING
        } else {
            0.0
        }
    }

    /// The same entries as reals of the type that `R` is.
    pub(crate) fn cast<S: Real>(self) -> TopK<'a, S> {
        TopK {
            classes: self.classes,
            log_probabilities: bytemuck::cast_slice(self.log_probabilities),
            rows: self.rows,
            k: self.k,
        }
    }

    /// Refuses classes that the student does not have or that a row lists twice, and probabilities
    /// that are none. NaN stays: it makes the loss NaN.
    pub(crate) fn check(&self, classes: usize) -> Result<()> {
        let mut row_of = vec![usize::MAX; classes];
        for row in 0..self.rows {
            let mut sum = 0.0;
            for (class, logarithm) in self.row(row) {
                if class >= classes {
                    at_most("teacher classes", classes - 1, class)?;
                }
                if std::mem::replace(&mut row_of[class], row) == row {
                    return Err(Error::Parameter {
                        argument: "teacher classes",
                        expected: "each class once in a row",
                        got: class as f64,
                    });
                }
                sum += logarithm.exp();
            }
            if sum > 1.0 + EXCESS {
                return Err(Error::Parameter {
                    argument: "teacher log_probabilities",
                    expected: "probabilities that add up to at most 1 in a row",
                    got: sum,
                });
            }
        }
        Ok(())
    }
}
