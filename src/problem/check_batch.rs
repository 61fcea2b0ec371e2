//! Whether a batch is one that a problem was made for.

use super::Problem;
use crate::batch::Batch;
use crate::checks::same;
use crate::element::{Element, Real};
use crate::error::{Error, Result};
use crate::loss::{Divergence, Family, Logits};
use crate::row_weights;
use crate::rows::Rows;
use crate::top_k::TopK;

impl Problem {
    /// Refuses a batch that the problem was not made for.
    pub(crate) fn check<T: Element>(&self, batch: &Batch<'_, T>) -> Result<()> {
        let (want, got) = (self.shapes, batch.shapes());
        same("student rows", want.rows, got.rows)?;
        same("student_dim", want.student_dim, got.student_dim)?;
        same("teacher rows", want.rows, batch.teacher.len())?;
        same("teacher_dim", want.teacher_dim, got.teacher_dim)?;
        let loss = self.loss.name();
        let agree =
            |argument, expected, is_wanted: bool, is_there: bool| match (is_wanted, is_there) {
                (true, false) => Err(Error::Missing { argument, expected }),
                (false, true) => Err(Error::Unexpected { argument, loss }),
                (true, true) | (false, false) => Ok(()),
            };
        agree(
            "queue",
            "the queue the problem was made for",
            want.queue.is_some(),
            got.queue.is_some(),
        )?;
        if let (Some(keys), Some(queue)) = (want.queue, batch.queue) {
            same("queue keys", keys, queue.len())?;
            same("queue_dim", want.student_dim, queue.dim())?;
            let spec = self.spec();
            if queue.normalize() != spec.normalize {
                return Err(Error::QueueNormalization {
                    loss: spec.name,
                    normalize: spec.normalize,
                });
            }
        }
        agree(
            "row_weights",
            "the weights the problem was made for",
            want.row_weights,
            got.row_weights,
        )?;
        if let Some(weights) = batch.row_weights {
            same("row_weights", want.rows, weights.len())?;
            row_weights::check(weights)?;
        }
        agree(
            "top_k",
            "the teacher's classes the problem was made for",
            want.top_k.is_some(),
            got.top_k.is_some(),
        )?;
        if let (Some(k), Some(top_k)) = (want.top_k, batch.top_k) {
            same("teacher k", k, top_k.k())?;
            same("teacher rows", want.rows, top_k.len())?;
            top_k.check(self.classes())?;
        }
        agree(
            "labels",
            "the labels the problem was made for",
            want.labels,
            got.labels,
        )?;
        if let Some(labels) = batch.labels {
            same("labels", want.rows, labels.len())?;
        }
        agree(
            "bank",
            "the bank the problem was made for",
            want.bank.is_some(),
            got.bank.is_some(),
        )?;
        if let (Some([samples, keys]), Some(of_batch)) = (want.bank, batch.keys) {
            let [got_samples, got_keys] = of_batch.shape(want.rows);
            same("bank samples", samples, got_samples)?;
            let (banks, normalizers) = match self.spec().family {
                Family::Sampled(loss) => (loss.banks(), loss.normalizers()),
                _ => (0, 0),
            };
            if of_batch.teacher_bank.is_some() && banks < 2 {
                return Err(Error::Unexpected {
                    argument: "teacher_bank",
                    loss,
                });
            }
            of_batch.check(want.rows, want.student_dim, normalizers)?;
            same("indices of a row", keys, got_keys)?;
        }
        if self.checked {
            match self.spec().family {
                Family::Logits(loss) => check_logits(&loss, self.classes(), batch)?,
                Family::Pairwise(_) | Family::Triplet(_) => {
                    batch.student.check_finite("student")?;
                    batch.teacher.check_finite("teacher")?;
                }
                Family::Towers(loss) => {
                    batch.student.check_finite("student")?;
                    if loss.reads_teacher() {
                        batch.teacher.check_finite("teacher")?;
                    }
                }
                Family::Contrastive(_) | Family::Sampled(_) => check_keyed(batch)?,
            }
        }
        Ok(())
    }
}

/// Whether a row has a weight above 0.
fn counts<T: Element>(batch: &Batch<'_, T>, row: usize) -> bool {
    let weights = batch.row_weights;
    weights.is_none_or(|weights| weights[row].to_f64() != 0.0)
}

/// Refuses NaN and infinities in the rows that count, and in all that are keys.
fn check_keyed<T: Element>(batch: &Batch<'_, T>) -> Result<()> {
    let counts = |row: usize| counts(batch, row);
    batch.student.check_finite_where("student", counts)?;
    // What is no key of another row may hold anything, if it does not count.
    match batch.queue.is_some() || batch.keys.is_some() {
        true => batch.teacher.check_finite_where("teacher", counts),
        false => batch.teacher.check_finite("teacher"),
    }
}

/// Refuses logits that make the loss NaN or infinite, by the rules of [`Divergence`], in rows that
/// count.
fn check_logits<T: Element>(loss: &Logits, classes: usize, batch: &Batch<'_, T>) -> Result<()> {
    for row in (0..batch.student.len()).filter(|&row| counts(batch, row)) {
        let values = |rows: Rows<'_, T>| -> Vec<f64> {
            let logits = rows.row(row)[..classes].iter();
            logits.map(|l| l.to_f64()).collect()
        };
        let student = values(batch.student);
        match batch.top_k {
            None => check_row(loss.divergence, row, &student, &values(batch.teacher))?,
            Some(top_k) => check_top_k(loss.divergence, row, &student, top_k)?,
        }
    }
    Ok(())
}

/// Checks a row of each.
fn check_row(divergence: Divergence, row: usize, student: &[f64], teacher: &[f64]) -> Result<()> {
    // Whether student and teacher may exclude classes that the other one has.
    let [student_may, teacher_may] = match divergence {
        Divergence::Forward => [false, true],
        Divergence::Reverse => [true, false],
        Divergence::Js { .. } | Divergence::Skew { .. } | Divergence::SkewReverse { .. } => {
            [true, true]
        }
    };
    let refuse = |argument, logits: &[f64], other: &[f64], may_exclude: bool| {
        // Of a row without any class, only one whose other side has none either is right.
        let none = |logits: &[f64]| logits.iter().all(|&l| is_masked(l));
        let may_exclude = may_exclude && !none(logits);
        let is_wrong = |class: usize| {
            let masked = is_masked(logits[class]);
            !(logits[class].is_finite() || masked && (may_exclude || is_masked(other[class])))
        };
        match (0..logits.len()).find(|&class| is_wrong(class)) {
            None => Ok(()),
            Some(column) => Err(Error::NotFinite {
                argument,
                row,
                column,
                got: logits[column],
            }),
        }
    };
    refuse("student", student, teacher, student_may)?;
    refuse("teacher", teacher, student, teacher_may)
}

/// Checks a row of the student whose teacher is a list of classes.
fn check_top_k<R: Real>(
    divergence: Divergence,
    row: usize,
    student: &[f64],
    teacher: TopK<'_, R>,
) -> Result<()> {
    let not_finite = |argument, column, got| Error::NotFinite {
        argument,
        row,
        column,
        got,
    };
    let k = teacher.k();
    let logarithms = &teacher.log_probabilities()[row * k..][..k];
    let is_wrong = |l: &R| l.to_f64().is_nan() || l.to_f64() == f64::INFINITY;
    if let Some(at) = logarithms.iter().position(is_wrong) {
        let got = logarithms[at].to_f64();
        return Err(not_finite("teacher log_probabilities", at, got));
    }
    let is_wrong = |l: f64| l.is_nan() || l == f64::INFINITY;
    let mut wrong = (0..student.len()).filter(|&class| is_wrong(student[class]));
    let mut excluded = teacher.row(row).map(|(class, _)| class);
    let found = if divergence == Divergence::Forward {
        wrong
            .next()
            .or_else(|| excluded.find(|&class| is_masked(student[class])))
    } else {
        wrong.next()
    };
    if let Some(class) = found {
        return Err(not_finite("student", class, student[class]));
    }
    if student.iter().all(|&l| is_masked(l)) {
        return Err(not_finite("student", 0, student[0]));
    }
    Ok(())
}

fn is_masked(logit: f64) -> bool {
    logit == f64::NEG_INFINITY
}
