//! Groups of rows: a relation for each.

use super::{Problem, Value};
use crate::batch::Batch;
use crate::checks::not_empty;
use crate::element::Element;
use crate::error::{Error, Result};
use crate::loss::Family;
use crate::rows::Rows;
use crate::shapes::Shapes;

impl Problem {
    /// Takes the rows as `groups` groups of equal size, in order, for example the patches of so
    /// many images: `[B, N, D]` of the student against `[B, N, D_t]` of the teacher, where
    /// [`Shapes::rows`] is B · N. Rows of different groups are not compared. The loss is the mean of
    /// the groups' losses, and its terms are the means of the groups' terms. One evaluation gives
    /// the mean and its gradient, `[B · N, D]`.
    ///
    /// The losses are those of pairs and of triples. One group is the same as none, to the last
    /// bit. A NaN or an infinity makes the loss NaN, and the gradient of its own group, but of no
    /// other. [Prefixes](Self::with_prefixes) apply to each group.
    ///
    /// ```
    /// use relata::{Batch, Cpu, Gram, Rows, Shapes};
    /// # fn main() -> relata::Result<()> {
    /// // Two images of two patches: cosines of 0 and of 1, where the teacher has 0.6 twice.
    /// let student = [1.0f64, 0.0, 0.0, 1.0, 2.0, 1.0, 4.0, 2.0];
    /// let teacher = [1.0f64, 0.0, 0.6, 0.8, 1.0, 0.0, 0.6, 0.8];
    /// let batch = Batch::new(Rows::new(&student, [4, 2])?, Rows::new(&teacher, [4, 2])?);
    /// let problem = Gram::default().problem(batch.shapes())?.with_groups(2)?;
    /// let loss = problem.evaluate(&Cpu, batch)?.loss;
    /// assert!((loss - (0.6f64.powi(2) + 0.4f64.powi(2)) / 2.0 / 2.0).abs() < 1e-15);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// All name `groups`: [`Error::Unexpected`] for a loss that does not compare rows of a batch
    /// with one another, [`Error::Empty`] for none, and [`Error::Parameter`] for a number that does
    /// not divide the rows.
    pub fn with_groups(self, groups: usize) -> Result<Self> {
        match self.spec().family {
            Family::Pairwise(_) | Family::Triplet(_) => {}
            Family::Contrastive(_) | Family::Logits(_) | Family::Towers(_) | Family::Sampled(_) => {
                return Err(Error::Unexpected {
                    argument: "groups",
                    loss: self.loss.name(),
                });
            }
        }
        not_empty("groups", groups)?;
        if !self.shapes.rows.is_multiple_of(groups) {
            return Err(Error::Parameter {
                argument: "groups",
                expected: "a divisor of the number of rows",
                got: groups as f64,
            });
        }
        Ok(Problem { groups, ..self })
    }

    /// The number of groups set by [`with_groups`](Self::with_groups); 1 if all rows are compared
    /// with one another.
    #[must_use]
    pub fn groups(&self) -> usize {
        self.groups
    }

    /// What one of the groups adds: the same problem with the rows of a group, and its share of the
    /// upstream factor.
    pub(crate) fn of_group(&self) -> Problem {
        Problem {
            shapes: Shapes {
                rows: self.shapes.rows / self.groups,
                ..self.shapes
            },
            upstream: self.upstream / self.groups as f64,
            groups: 1,
            ..*self
        }
    }

    /// The mean of the groups' losses and terms.
    pub(crate) fn mean_of_groups(&self, values: &[Value]) -> Value {
        let count = values.len() as f64;
        let mean =
            |of: &dyn Fn(&Value) -> f64| -> f64 { values.iter().map(of).sum::<f64>() / count };
        let names = self.spec().terms.iter();
        let terms = names.map(|&name| mean(&|value| value.term(name).unwrap_or(f64::NAN)));
        self.value(mean(&|value| value.loss), terms.collect::<Vec<_>>())
    }
}

impl<'a, T: Element> Batch<'a, T> {
    /// The `nth` of the groups of so many `rows`. Losses that have groups take rows and nothing
    /// else.
    pub(crate) fn group(&self, nth: usize, rows: usize) -> Self {
        let of = |all: Rows<'a, T>| {
            let len = rows * all.dim();
            Rows::of(&all.as_slice()[nth * len..][..len], all.dim())
        };
        Batch::new(of(self.student), of(self.teacher))
    }
}
