use super::{Divergence, Family, Logits, Parameter, Range, Spec};

/// Hinton's knowledge distillation: the divergence between two softmaxes over classes.
///
/// With p_i = softmax(y_i/T_t) of the teacher and q_i = softmax(x_i/T_s) of the student:
///
/// ```text
/// L = T_s²/N · Σ_i D(p_i, q_i)          D(p, q) = KL(p‖q) by default
/// ```
///
/// Student and teacher are logits `[N, C]`, C up to the size of a vocabulary. D is one of the
/// [`Divergence`]s. [`KdKl::new`] takes one temperature for both. With one temperature the factor is
/// the usual T²: it keeps the gradient's size as T changes. With two it is the student's, whose
/// logits the gradient belongs to.
///
/// A class that is −∞ in student and teacher is masked: it counts in no sum and its gradient is 0.
/// Where the teacher's logit alone is −∞, its probability is 0. Where the student's alone is, the
/// loss is +∞ and the row's gradient NaN. NaN or +∞, and a teacher without any class, make both
/// NaN. A row whose classes are all masked adds 0 to the sum. This is so for KL(p‖q);
/// [`Divergence`] has the rules for the others.
///
/// Student and teacher have the same number of classes, unless `classes` says how many of both are
/// compared: where the teacher's vocabulary is larger, or one of them is padded. The gradient of the
/// student's other classes is 0.
///
/// The teacher may be a list of its most likely classes ([`TopK`](crate::TopK)). All other classes
/// then count as one, the **tail**, which has the rest of the teacher's probability and of the
/// student's; D is that of these k + 1 classes. Without a tail D is summed over the listed classes
/// alone, as by `top_k` in some trainers. Such a sum may be negative, and its least value is not
/// where the student is the teacher: KL(q‖p) then falls as the student moves its mass to classes
/// that are not listed.
///
/// Rows may have weights: see [`Batch::with_row_weights`](crate::Batch::with_row_weights).
///
/// ```
/// use relata::{Divergence, KdKl};
/// let plain = KdKl::new(2.0);
/// let symmetric = KdKl { divergence: Divergence::Js { beta: 0.5 }, ..plain };
/// assert_eq!(symmetric.teacher_temperature, 2.0);
/// ```
///
/// Hinton, Vinyals, Dean: *Distilling the Knowledge in a Neural Network*, arXiv 1503.02531.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KdKl {
    /// T_s; 4 by default.
    pub student_temperature: f64,
    /// T_t; 4 by default.
    pub teacher_temperature: f64,
    /// D; KL(p‖q) by default.
    pub divergence: Divergence,
    /// C: the first so many classes of student and teacher are compared; 0, the default, compares
    /// all.
    pub classes: usize,
    /// Whether the classes that a list leaves out count as one; `true` by default. Without a list
    /// it has no effect.
    pub tail: bool,
}

impl Default for KdKl {
    fn default() -> Self {
        KdKl::new(4.0)
    }
}

impl KdKl {
    /// KL(p‖q) with the same temperature for student and teacher.
    #[must_use]
    pub const fn new(temperature: f64) -> Self {
        KdKl {
            student_temperature: temperature,
            teacher_temperature: temperature,
            divergence: Divergence::Forward,
            classes: 0,
            tail: true,
        }
    }

    /// What a device computes.
    pub(crate) fn logits(&self) -> Logits {
        Logits {
            student_temperature: self.student_temperature,
            teacher_temperature: self.teacher_temperature,
            divergence: self.divergence.plainest(),
            classes: self.classes,
            tail: self.tail,
        }
    }

    pub(super) fn spec(&self) -> Spec {
        Spec {
            same_dim: self.classes == 0,
            ..Spec::new(Family::Logits(self.logits()))
        }
    }

    pub(super) fn parameters(&mut self) -> Vec<Parameter<'_>> {
        vec![
            Parameter::number(
                "student_temperature",
                Range::Temperature,
                &mut self.student_temperature,
            ),
            Parameter::number(
                "teacher_temperature",
                Range::Temperature,
                &mut self.teacher_temperature,
            ),
            Parameter::divergence(&mut self.divergence),
            Parameter::count("classes", 0..=usize::MAX, &mut self.classes),
            Parameter::flag("tail", &mut self.tail),
        ]
    }
}
