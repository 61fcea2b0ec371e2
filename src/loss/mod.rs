//! The losses: their parameters, defaults, and what each of them is.
//!
//! Each loss is a plain `Copy` value whose `Default` is what the papers' own code trains with. A
//! loss has a file here, which defines its parameters and its [`Spec`], and a line in the
//! [registry](for_each_loss).

mod divergence;
mod duplicates;
mod parameter;
mod registry;
mod spec;

use std::fmt;
use std::str::FromStr;

pub use divergence::Divergence;
pub(crate) use duplicates::duplicate_distance;
pub use parameter::ParameterValue;
pub(crate) use parameter::{Parameter, Range};
pub(crate) use registry::for_each_loss;
pub use spec::{
    Contrastive, Enqueue, Family, LabelUse, Logits, Normalizer, Pairwise, Penalty, QueueUse,
    Relation, Sampled, Spec, Target, TeacherUse, Towers, Triplet,
};

use crate::checks::{at_most, not_empty, same};
use crate::error::{Error, Result};
use crate::shapes::Shapes;

/// Defines [`Loss`] from the registry.
macro_rules! define_loss {
    ($($module:ident $loss:ident $name:literal $doc:literal $queue:ident;)+) => {
        $(mod $module; pub use $module::$loss;)+

        /// Any of the losses, with its parameters: for code that picks one at run time.
        ///
        /// Parsing a name gives that loss with its default parameters.
        ///
        /// ```
        /// # fn main() -> relata::Result<()> {
        /// let loss: relata::Loss = "rkd-angle".parse()?;
        /// assert_eq!(loss, relata::RkdAngle::default().into());
        /// # Ok(()) }
        /// ```
        #[derive(Clone, Copy, Debug, PartialEq)]
        #[non_exhaustive]
        pub enum Loss {
            $(#[doc = $doc] $loss($loss),)+
        }

        impl Loss {
            /// Every loss with its default parameters, in the order of the documentation.
            #[must_use]
            pub fn all() -> Vec<Loss> {
                vec![$(Loss::$loss($loss::default())),+]
            }

            /// What the loss is: see [`Spec`].
            #[must_use]
            pub fn spec(&self) -> Spec {
                match self {
                    $(Loss::$loss(loss) => Spec {
                        name: $name,
                        queue: QueueUse::$queue,
                        ..loss.spec()
                    },)+
                }
            }

            /// The parameters, to read or to change.
            fn parameters_mut(&mut self) -> Vec<Parameter<'_>> {
                match self {
                    $(Loss::$loss(loss) => loss.parameters(),)+
                }
            }
        }

        $(impl From<$loss> for Loss {
            fn from(loss: $loss) -> Self {
                Loss::$loss(loss)
            }
        })+
    };
}
for_each_loss!(define_loss);

impl Loss {
    /// The loss's name: see [`Spec::name`].
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.spec().name
    }

    /// The parameters with their values, in the order of the loss's fields.
    ///
    /// ```
    /// use relata::{Loss, ParameterValue};
    /// # fn main() -> relata::Result<()> {
    /// let parameters = "gram".parse::<Loss>()?.parameters();
    /// assert_eq!(parameters, [("clamp", ParameterValue::Flag(false))]);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn parameters(&self) -> Vec<(&'static str, ParameterValue)> {
        let mut loss = *self;
        let parameters = loss.parameters_mut();
        parameters.iter().map(|p| (p.name, p.value())).collect()
    }

    /// The value of a parameter, if the loss has one of this name.
    #[must_use]
    pub fn parameter(&self, name: &str) -> Option<ParameterValue> {
        let parameters = self.parameters();
        let found = parameters.iter().find(|(known, _)| *known == name);
        found.map(|&(_, value)| value)
    }

    /// The same loss with another value for a parameter.
    ///
    /// ```
    /// use relata::{Loss, ParameterValue, RkdAngle};
    /// # fn main() -> relata::Result<()> {
    /// let loss = Loss::from(RkdAngle::default()).with_parameter("delta", ParameterValue::Number(0.5))?;
    /// assert_eq!(loss, RkdAngle { delta: 0.5, ..RkdAngle::default() }.into());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::UnknownParameter`] if the loss has no parameter of this name and kind. Ranges are
    /// checked when a [`Problem`](crate::Problem) is made.
    pub fn with_parameter(mut self, name: &str, value: ParameterValue) -> Result<Self> {
        let mut parameters = self.parameters_mut();
        let found = parameters.iter_mut().find(|known| known.name == name);
        if found.is_some_and(|parameter| parameter.set(value)) {
            return Ok(self);
        }
        Err(Error::UnknownParameter {
            loss: self.name(),
            name: name.to_owned(),
            value: format!("{value:?}"),
        })
    }

    /// Checks the parameters and the shapes.
    pub(crate) fn validate(&self, shapes: &Shapes) -> Result<()> {
        not_empty("rows", shapes.rows)?;
        not_empty("student_dim", shapes.student_dim)?;
        let mut loss = *self;
        for parameter in loss.parameters_mut() {
            parameter.check()?;
        }
        let spec = self.spec();
        self.validate_teacher(&spec, shapes)?;
        if shapes.row_weights && !spec.family.takes_row_weights() {
            return Err(Error::Unexpected {
                argument: "row_weights",
                loss: spec.name,
            });
        }
        self.validate_towers(&spec, shapes)?;
        if let Family::Pairwise(Pairwise {
            penalty: Penalty::Order { .. },
            ..
        }) = spec.family
        {
            at_most("rows", Order::MOST_ROWS, shapes.rows)?;
        }
        match (spec.queue, shapes.queue) {
            (QueueUse::Required, None) => {
                return Err(Error::Missing {
                    argument: "queue",
                    expected: "a queue of teacher keys",
                });
            }
            (QueueUse::Required | QueueUse::Optional, Some(keys)) => {
                not_empty("queue keys", keys)?;
            }
            (QueueUse::Optional | QueueUse::Never, None) => {}
            (QueueUse::Never, Some(_)) => {
                return Err(Error::Unexpected {
                    argument: "queue",
                    loss: spec.name,
                });
            }
        }
        validate_bank(&spec, shapes)
    }

    /// Checks the labels, the halves, and that something is left to compare.
    fn validate_towers(&self, spec: &Spec, shapes: &Shapes) -> Result<()> {
        match (spec.labels, shapes.labels) {
            (LabelUse::Required, false) => {
                return Err(Error::Missing {
                    argument: "labels",
                    expected: "a label for each row",
                });
            }
            (LabelUse::Never, true) => {
                return Err(Error::Unexpected {
                    argument: "labels",
                    loss: spec.name,
                });
            }
            (LabelUse::Required | LabelUse::Optional, true)
            | (LabelUse::Optional | LabelUse::Never, false) => {}
        }
        let Family::Towers(towers) = spec.family else {
            return Ok(());
        };
        if towers.has_halves() && !shapes.rows.is_multiple_of(2) {
            return Err(Error::Parameter {
                argument: "rows",
                expected: "an even number: two towers of as many rows each",
                got: shapes.rows as f64,
            });
        }
        match towers {
            Towers::Softmax { hard_weight, .. }
                if hard_weight == 0.0 && shapes.teacher_dim == 0 =>
            {
                Err(Error::Missing {
                    argument: "teacher",
                    expected: "a teacher, as the hard term has no weight",
                })
            }
            _ => Ok(()),
        }
    }

    /// Checks the width of the teacher's rows, or its list of classes.
    fn validate_teacher(&self, spec: &Spec, shapes: &Shapes) -> Result<()> {
        let Some(k) = shapes.top_k else {
            match spec.teacher {
                TeacherUse::Required => not_empty("teacher_dim", shapes.teacher_dim)?,
                TeacherUse::Optional => {}
                TeacherUse::Never if shapes.teacher_dim == 0 => {}
                TeacherUse::Never => {
                    return Err(Error::Unexpected {
                        argument: "teacher",
                        loss: spec.name,
                    });
                }
            }
            if spec.same_dim {
                same("teacher_dim", shapes.student_dim, shapes.teacher_dim)?;
            }
            if let Family::Logits(Logits { classes, .. }) = spec.family {
                at_most("classes", shapes.student_dim, classes)?;
                at_most("classes", shapes.teacher_dim, classes)?;
            }
            return Ok(());
        };
        let Family::Logits(Logits { classes, .. }) = spec.family else {
            return Err(Error::Unexpected {
                argument: "top_k",
                loss: spec.name,
            });
        };
        not_empty("teacher k", k)?;
        at_most("classes", shapes.student_dim, classes)?;
        // The rows are not there.
        same("teacher_dim", 0, shapes.teacher_dim)
    }
}

/// Checks the number of sampled keys.
fn validate_bank(spec: &Spec, shapes: &Shapes) -> Result<()> {
    match (spec.family, shapes.bank) {
        (Family::Sampled(loss), Some([samples, keys])) => {
            not_empty("bank samples", samples)?;
            not_empty("indices", keys)?;
            match loss {
                Sampled::Nce { .. } => not_empty("negatives", keys - 1),
                Sampled::Teacher { .. } => Ok(()),
            }
        }
        (Family::Sampled(_), None) => Err(Error::Missing {
            argument: "bank",
            expected: "a bank, and the indices of each row's keys",
        }),
        (_, Some(_)) => Err(Error::Unexpected {
            argument: "bank",
            loss: spec.name,
        }),
        (_, None) => Ok(()),
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Loss {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let all = Loss::all();
        let found = all.iter().find(|loss| loss.name() == name);
        found.copied().ok_or_else(|| Error::UnknownLoss {
            expected: all.iter().map(Loss::name).collect::<Vec<_>>().join(", "),
            got: name.to_owned(),
        })
    }
}
