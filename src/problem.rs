//! A loss with shapes that it accepts, and what its evaluation gives.

mod check_batch;
mod groups;
mod own_rows;

use crate::element::Real;
use crate::error::{Error, Result};
use crate::loss::{Family, Loss, Spec};
use crate::prefixes::Prefixes;
use crate::row_weights::AllRows;
use crate::shapes::Shapes;

/// The most terms that a loss reports.
pub(crate) const MOST_TERMS: usize = 3;

/// The named terms that a loss reports in addition to its value, as [`Spec::terms`] lists them:
///
/// - RRD, with a queue or with a bank: `kl`, the divergence KL(p‖q). It differs from the loss, a
///   cross-entropy, by the entropy of the teacher's distribution, and has the same gradient.
/// - RKD: `distance` and `angle`, its two parts, not weighted.
/// - CLIP: `hard` and `soft`, its two parts, not weighted.
/// - RRD and InfoNCE: `scale_gradient`, ∂L/∂(1/τ) with the student's τ, where it is [asked
///   for](Problem::with_scale_gradient).
/// - CLIP and SupCon: `scale_gradient`, ∂L/∂(1/τ). SigLIP: `scale_gradient` and `bias_gradient`, ∂L/∂a
///   and ∂L/∂b. The upstream factor does not scale them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Terms([Option<(&'static str, f64)>; MOST_TERMS]);

impl Terms {
    /// The term of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<f64> {
        let found = self.iter().find(|&(known, _)| known == name);
        found.map(|(_, value)| value)
    }

    /// All terms, in the order of [`Spec::terms`]; those that were asked for come last.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, f64)> {
        self.0.into_iter().flatten()
    }
}

/// What an evaluation into the caller's memory gives: the loss and its terms.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Value {
    /// The loss. Not scaled by the upstream factor.
    pub loss: f64,
    /// The loss's named terms.
    pub terms: Terms,
}

impl Value {
    /// A loss without terms.
    pub(crate) fn new(loss: f64) -> Self {
        Value::with_terms(loss, [])
    }

    /// A loss with its terms.
    pub(crate) fn with_terms<const M: usize>(loss: f64, terms: [(&'static str, f64); M]) -> Self {
        let mut all = Terms::default();
        for (slot, term) in all.0.iter_mut().zip(terms) {
            *slot = Some(term);
        }
        Value { loss, terms: all }
    }

    /// The term of this name.
    #[must_use]
    pub fn term(&self, name: &str) -> Option<f64> {
        self.terms.get(name)
    }
}

/// What an evaluation gives: the loss, its terms and its gradient.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Evaluation<R> {
    /// The loss. Not scaled by the upstream factor.
    pub loss: f64,
    /// The loss's named terms.
    pub terms: Terms,
    /// `[N, D]`, row-major: the upstream factor times ∂loss/∂student.
    pub gradient: Vec<R>,
    /// `[N]`: the loss of each row, if they were [asked for](Problem::evaluate_rows); else empty.
    pub row_losses: Vec<f64>,
}

impl<R: Real> Evaluation<R> {
    pub(crate) fn new(value: Value, gradient: Vec<R>, row_losses: Vec<f64>) -> Self {
        let Value { loss, terms } = value;
        Evaluation {
            loss,
            terms,
            gradient,
            row_losses,
        }
    }

    /// The term of this name, for example `"kl"` of RRD.
    #[must_use]
    pub fn term(&self, name: &str) -> Option<f64> {
        self.terms.get(name)
    }

    /// ‖gradient‖, summed in f64.
    #[must_use]
    pub fn gradient_norm(&self) -> f64 {
        self.gradient
            .iter()
            .map(|g| g.to_f64() * g.to_f64())
            .sum::<f64>()
            .sqrt()
    }
}

/// How precise the softmax weights of RRD and InfoNCE are when they are multiplied with the keys.
///
/// It has an effect on a GPU and in the emulator, for rows in f16 or bf16 with at most 256 elements
/// and `normalize` on: tensor cores take halves. Everywhere else weights are not rounded.
///
/// The table has the error of RRD's gradient relative to its length, by the divergence of student
/// and teacher. N = 4, D = 128, τ = 0.1, a queue of 16384 keys, in the emulator:
///
/// | KL(p‖q) | `Split` | `Half` |
/// |---|---|---|
/// | 0.2 | 5.2e-7 | 3.4e-5 |
/// | 4e-3 | 1.0e-6 | 4.0e-5 |
/// | 4e-5 | 8.5e-6 | 4.3e-5 |
///
/// The loss and the divergence do not depend on it. The table leaves out what rounding the queue's
/// keys to f16 does to the gradient, 2e-4, which is the same for both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WeightPrecision {
    /// Each weight is the sum of two f16, as good as f32, for 12 N K D floating-point operations.
    #[default]
    Split,
    /// Each weight is one f16, for 8 N K D. RRD rounds the student's weight less the teacher's,
    /// unless the teacher's temperature is the higher: the gradient is their difference, and so it
    /// does not lose digits as the student converges.
    Half,
}

/// A loss whose parameters and shapes have been checked, once, before anything is computed.
///
/// ```
/// use relata::{Batch, Cpu, RkdAngle, Rows, Shapes};
/// # fn main() -> relata::Result<()> {
/// let problem = RkdAngle::default().problem(Shapes::new(3, 2, 2))?.with_upstream(0.5).with_checked(true);
/// let student = [0.0f32, 0.0, 1.0, 0.0, 0.0, 2.0];
/// let teacher = [0.0f32, 0.0, 1.0, 1.0, 0.0, 2.0];
/// let batch = Batch::new(Rows::new(&student, [3, 2])?, Rows::new(&teacher, [3, 2])?);
/// let evaluation = problem.evaluate(&Cpu, batch)?;
/// assert_eq!(evaluation.gradient.len(), 6);
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Problem {
    loss: Loss,
    shapes: Shapes,
    prefixes: Prefixes,
    /// 1 if all rows are compared with one another.
    groups: usize,
    upstream: f64,
    checked: bool,
    weights: WeightPrecision,
    scale_gradient: bool,
    /// The rows of all ranks, where the batch has a part of them.
    all_rows: Option<AllRows>,
}

impl Problem {
    /// Checks that `loss` has usable parameters and accepts `shapes`.
    ///
    /// # Errors
    /// [`Error::Parameter`], [`Error::Empty`], [`Error::TooLarge`], [`Error::Dimension`],
    /// [`Error::Missing`] or [`Error::Unexpected`], naming the argument.
    pub fn new(loss: impl Into<Loss>, shapes: Shapes) -> Result<Self> {
        let loss = loss.into();
        loss.validate(&shapes)?;
        Ok(Problem {
            loss,
            shapes,
            prefixes: Prefixes::default(),
            groups: 1,
            upstream: 1.0,
            checked: false,
            weights: WeightPrecision::default(),
            scale_gradient: false,
            all_rows: None,
        })
    }

    /// Evaluates the loss on prefixes of the student's rows, as Matryoshka embeddings are trained:
    /// the mean over `widths` of the loss of the first d elements of each of the student's rows,
    /// normalised again, against the teacher's whole rows. One evaluation gives the mean and its
    /// gradient, `[N, D]`.
    ///
    /// The losses are those of cosines: [`Gram`](crate::Gram), [`Pkt`](crate::Pkt) and
    /// [`Order`](crate::Order). There are 1 to 16 widths, in increasing order, of at most D elements.
    /// What lies beyond the last one has a gradient of 0, whatever it holds. One width of D is the
    /// same as no prefixes, to the last bit. The checked mode looks at the whole rows.
    ///
    /// ```
    /// use relata::{Batch, Cpu, Gram, Rows, Shapes};
    /// # fn main() -> relata::Result<()> {
    /// let student = [1.0f64, 0.0, 2.0, 1.0, 1.0, 0.0];
    /// let teacher = [1.0f64, 0.0, 0.6, 0.8];
    /// let batch = Batch::new(Rows::new(&student, [2, 3])?, Rows::new(&teacher, [2, 2])?);
    /// let problem = Gram::default().problem(Shapes::new(2, 3, 2))?.with_prefixes(&[2, 3])?;
    /// let loss = problem.evaluate(&Cpu, batch)?.loss;
    /// // Cosines of √½ and of √0.1 for two and for three elements, where the teacher has 0.6.
    /// let of = |cosine: f64| (cosine - 0.6).powi(2) / 2.0;
    /// assert!((loss - (of(0.5f64.sqrt()) + of(0.1f64.sqrt())) / 2.0).abs() < 1e-15);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// All name `prefixes`: [`Error::Unexpected`] for a loss that is not one of cosines,
    /// [`Error::Empty`] without widths, [`Error::TooLarge`] for more than 16 of them or a width above
    /// D, and [`Error::Parameter`] for a width of 0, or one that is not above the one before it.
    pub fn with_prefixes(self, widths: &[usize]) -> Result<Self> {
        match self.spec().family {
            Family::Pairwise(pairwise) if pairwise.relation.is_of_directions() => {}
            _ => {
                return Err(Error::Unexpected {
                    argument: "prefixes",
                    loss: self.loss.name(),
                });
            }
        }
        let prefixes = Prefixes::new(widths, self.shapes.student_dim)?;
        Ok(Problem { prefixes, ..self })
    }

    /// Sets the upstream gradient: the factor that the gradient is multiplied by; 1 at first. The
    /// loss's value is not scaled.
    #[must_use]
    pub fn with_upstream(self, upstream: f64) -> Self {
        Problem { upstream, ..self }
    }

    /// Sets the checked mode; off at first. An evaluation then looks for NaN and infinities in the
    /// inputs and refuses the batch with [`Error::NotFinite`] instead of giving a loss that is not
    /// finite. Logits of −∞ that only mask classes ([`KdKl`](crate::KdKl)) are not refused.
    #[must_use]
    pub fn with_checked(self, checked: bool) -> Self {
        Problem { checked, ..self }
    }

    /// Asks for the term `scale_gradient` of RRD or InfoNCE: ∂L/∂(1/τ), with the student's τ, for a
    /// temperature that is learned. The upstream factor does not scale it. On a GPU it takes a launch
    /// more.
    ///
    /// ```
    /// use relata::{Batch, Cpu, InfoNce, Rows, Shapes};
    /// # fn main() -> relata::Result<()> {
    /// let problem = InfoNce::default().problem(Shapes::new(2, 2, 2))?.with_scale_gradient()?;
    /// let (x, y) = ([0.6f64, 0.8, 1.0, 0.0], [1.0f64, 0.0, 0.8, 0.6]);
    /// let batch = Batch::new(Rows::new(&x, [2, 2])?, Rows::new(&y, [2, 2])?);
    /// let evaluation = problem.evaluate(&Cpu, batch)?;
    /// // Each row is nearer to the other's key: a smaller scale, a higher temperature, is better.
    /// assert!(evaluation.term("scale_gradient") > Some(0.0));
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Unexpected`] for another loss. Those of towers have the term in any case.
    pub fn with_scale_gradient(self) -> Result<Self> {
        match self.spec().family {
            Family::Contrastive(_) => Ok(Problem {
                scale_gradient: true,
                ..self
            }),
            Family::Pairwise(_)
            | Family::Triplet(_)
            | Family::Logits(_)
            | Family::Towers(_)
            | Family::Sampled(_) => Err(Error::Unexpected {
                argument: "scale_gradient",
                loss: self.loss.name(),
            }),
        }
    }

    /// Sets how precise the softmax weights of RRD and InfoNCE are on a GPU;
    /// [`Split`](WeightPrecision::Split) at first. It has no effect on other losses.
    #[must_use]
    pub fn with_weight_precision(self, weights: WeightPrecision) -> Self {
        Problem { weights, ..self }
    }

    /// The loss.
    #[must_use]
    pub fn loss(&self) -> &Loss {
        &self.loss
    }

    /// What the loss is.
    #[must_use]
    pub fn spec(&self) -> Spec {
        self.loss.spec()
    }

    /// The shapes it is to be evaluated on.
    #[must_use]
    pub fn shapes(&self) -> Shapes {
        self.shapes
    }

    /// The prefixes set by [`with_prefixes`](Self::with_prefixes); empty if the student's rows are
    /// taken as a whole.
    #[must_use]
    pub fn prefix_widths(&self) -> &[usize] {
        self.prefixes.widths()
    }

    pub(crate) fn prefixes(&self) -> Prefixes {
        self.prefixes
    }

    /// What one of the prefixes adds: the same problem with rows of `width` elements, and its share
    /// of the upstream factor.
    pub(crate) fn of_prefix(&self, width: usize) -> Problem {
        Problem {
            shapes: Shapes {
                student_dim: width,
                ..self.shapes
            },
            upstream: self.upstream / self.prefixes.parts(),
            prefixes: Prefixes::default(),
            ..*self
        }
    }

    /// The factor set by [`with_upstream`](Self::with_upstream).
    #[must_use]
    pub fn upstream(&self) -> f64 {
        self.upstream
    }

    /// The precision set by [`with_weight_precision`](Self::with_weight_precision).
    #[must_use]
    pub fn weight_precision(&self) -> WeightPrecision {
        self.weights
    }

    /// Whether the gradient of the scale was [asked for](Self::with_scale_gradient).
    #[must_use]
    pub fn scale_gradient(&self) -> bool {
        self.scale_gradient
    }

    /// The names of the terms that an evaluation gives, in their order: those of
    /// [`Spec::terms`](crate::Spec::terms), then those that were asked for.
    pub fn terms(&self) -> impl Iterator<Item = &'static str> {
        let asked_for = self.scale_gradient.then_some("scale_gradient");
        self.spec().terms.iter().copied().chain(asked_for)
    }

    /// A loss with its terms, in the order of their names.
    pub(crate) fn value(&self, loss: f64, values: impl IntoIterator<Item = f64>) -> Value {
        let mut terms = Terms::default();
        let named = self.terms().zip(values);
        for (slot, term) in terms.0.iter_mut().zip(named) {
            *slot = Some(term);
        }
        Value { loss, terms }
    }

    /// The value of a batch that holds a NaN or an infinity.
    pub(crate) fn not_a_number(&self) -> Value {
        self.value(f64::NAN, std::iter::repeat(f64::NAN))
    }

    /// C, of a loss of logits: the classes that are compared.
    pub(crate) fn classes(&self) -> usize {
        match self.spec().family {
            Family::Logits(loss) if loss.classes > 0 => loss.classes,
            _ => self.shapes.student_dim,
        }
    }

    /// Refuses a loss that is no mean of losses of rows.
    pub(crate) fn check_row_losses(&self, len: usize) -> Result<()> {
        if !self.spec().family.has_row_losses() {
            return Err(Error::Unexpected {
                argument: "row_losses",
                loss: self.loss.name(),
            });
        }
        if len != self.shapes.rows {
            return Err(Error::Length {
                argument: "row_losses",
                expected: self.shapes.rows,
                got: len,
            });
        }
        Ok(())
    }

    /// N · D.
    pub(crate) fn gradient_len(&self) -> usize {
        self.shapes.rows.saturating_mul(self.shapes.student_dim)
    }
}
