//! NaN and infinities in the inputs.

use std::collections::BTreeSet;

use relata::{DType, Element, Enqueue};

use crate::failure::{Failure, Result, say};
use crate::files::Matrix;
use crate::options::Options;
use crate::plan::{Job, QueueSetup, compared, is_of_logits};
use crate::teacher::Teacher;

/// NaN and infinities: a queue never holds them; student and teacher may, which makes the loss NaN
/// and is worth a warning, unless they are to be refused.
pub(crate) fn check_finite<'a>(options: &Options, jobs: &[Job<'a>]) -> Result<()> {
    let mut warnings = BTreeSet::new();
    for (job, inputs) in jobs
        .iter()
        .flat_map(|job| job.inputs.each().map(move |inputs| (job, inputs)))
    {
        // Logits of −∞ mask classes. The loss itself knows which of them are wrong.
        let may_mask = is_of_logits(&job.loss);
        let read = Read {
            dtype: job.dtype,
            columns: compared(&job.loss, inputs.student),
            may_mask,
            row_weights: inputs.row_weights,
        };
        let teacher = match inputs.teacher {
            // A teacher's row that is a key of other rows is read whatever its own weight.
            Teacher::Rows(rows) => {
                let setup = QueueSetup::of(&job.loss, inputs.keys);
                let is_no_key = setup.is_some_and(|queue| queue.enqueue != Enqueue::Before);
                let row_weights = inputs.row_weights.filter(|_| may_mask || is_no_key);
                (
                    rows,
                    Read {
                        row_weights,
                        ..read
                    },
                )
            }
            // Each entry of a list counts, and is of the reals of the elements.
            Teacher::TopK(top) => {
                let columns = top.log_probs.dim;
                let dtype = real(job.dtype);
                let of_list = Read {
                    dtype,
                    columns,
                    ..read
                };
                (&top.log_probs, of_list)
            }
        };
        let all_of = |keys: &'a Matrix| {
            let columns = keys.dim;
            (
                keys,
                Read {
                    columns,
                    row_weights: None,
                    ..read
                },
            )
        };
        let second_student = inputs.second_student().map(|student| (student, read));
        let second_teacher = inputs.second_teacher().map(all_of);
        let checked = options
            .checked
            .then_some("without --checked the loss is NaN");
        for (of, refused) in [
            (Some((inputs.student, read)), checked),
            (Some(teacher), checked),
            (second_student, checked),
            (second_teacher, checked),
            (inputs.keys.map(all_of), Some("leave such keys out")),
        ] {
            let Some((matrix, why)) =
                of.and_then(|(matrix, read)| Some((matrix, read.not_finite(matrix)?)))
            else {
                continue;
            };
            let why = format!("{}: expected finite values, got {why}", matrix.origin);
            if let Some(cure) = refused {
                return Err(Failure::Refused(format!("{why}; {cure}")));
            }
            warnings.insert(format!("{why}; the loss is NaN"));
        }
    }
    for warning in warnings {
        say("warning", &warning);
    }
    Ok(())
}

/// What a loss reads of a matrix.
#[derive(Clone, Copy)]
struct Read<'a> {
    /// What its elements are rounded to.
    dtype: DType,
    /// The first so many.
    columns: usize,
    /// Whether −∞ has a meaning.
    may_mask: bool,
    /// A row of weight 0 is not read.
    row_weights: Option<&'a Matrix>,
}

impl Read<'_> {
    /// Where `matrix` first holds a NaN or an infinity once it is rounded, in words.
    fn not_finite(self, matrix: &Matrix) -> Option<String> {
        let rounded = |value: f64| round(value, self.dtype);
        let counts = |row: usize| {
            let weight = self.row_weights.map_or(1.0, |weights| weights.values[row]);
            round(weight, real(self.dtype)) != 0.0
        };
        let is_wrong = |value: f64| {
            let value = rounded(value);
            !(value.is_finite() || self.may_mask && value == f64::NEG_INFINITY)
        };
        let mut elements = matrix.values.iter().enumerate().map(|(at, &value)| {
            let (row, column) = (at / matrix.dim, at % matrix.dim);
            (row, column, value)
        });
        let (row, column, value) = elements.find(|&(row, column, value)| {
            is_wrong(value) && column < self.columns && counts(row)
        })?;
        let place = format!("at row {row}, column {column}");
        Some(if value.is_finite() {
            let (rounded, dtype) = (rounded(value), self.dtype);
            format!("{value} {place}, which is {rounded} as {dtype}")
        } else {
            format!("{value} {place}")
        })
    }
}

/// The type of the weights and the logarithms that come with elements of type `dtype`.
pub(crate) fn real(dtype: DType) -> DType {
    match dtype {
        DType::F64 => DType::F64,
        _ => DType::F32,
    }
}

/// The nearest value that `dtype` has.
pub(crate) fn round(value: f64, dtype: DType) -> f64 {
    fn through<T: Element>(value: f64) -> f64 {
        T::from_f64(value).to_f64()
    }
    match dtype {
        DType::F32 => through::<f32>(value),
        DType::F16 => through::<half::f16>(value),
        DType::BF16 => through::<half::bf16>(value),
        _ => value,
    }
}
