//! Losses that compare rows with one another: each rank evaluates the rows of all, and keeps its part
//! of the gradient.

use super::deal::{Deal, pick, place};
use super::message::{Answers, Message, Step, exchange};
use super::{Communicator, Global, has_halves};
use crate::batch::Batch;
use crate::checks::zeroed;
use crate::device::Device;
use crate::element::Element;
use crate::error::Result;
use crate::problem::{Evaluation, Problem};
use crate::rows::Rows;

/// The loss of the rows of all ranks and the gradient of the own ones, with their losses if `rows` asks
/// for them.
pub(super) fn evaluate<T: Element, D: Device<T>, C: Communicator + ?Sized>(
    global: &mut Global<'_, D, C>,
    problem: &Problem,
    own: Batch<'_, T>,
    deal: &Deal,
    inputs: &Answers,
    rows: bool,
) -> Result<Evaluation<D::Gradient>> {
    let halves = has_halves(problem);
    let evaluation = AllRows::gather(problem, own, deal, inputs).and_then(|all| {
        let batch = all.batch(problem, own)?;
        if rows {
            problem.evaluate_rows(global.device, batch)
        } else {
            problem.evaluate(global.device, batch)
        }
    });
    let outcome = evaluation.as_ref().map_err(Clone::clone);
    let outcome = outcome.map(|_| Message::default());
    exchange(global.communicator, Step::Results, &[], outcome)?;
    let all = evaluation?;
    let places = deal.own_places(halves);
    Ok(Evaluation {
        gradient: pick(&all.gradient, &places, own.student.dim()),
        row_losses: match rows {
            true => pick(&all.row_losses, &places, 1),
            false => Vec::new(),
        },
        ..all
    })
}

/// What the batches of all ranks hold.
struct AllRows<T: Element> {
    student: Vec<T>,
    teacher: Vec<T>,
    labels: Vec<u32>,
    weights: Vec<T::Real>,
}

impl<T: Element> AllRows<T> {
    fn gather(problem: &Problem, own: Batch<'_, T>, deal: &Deal, inputs: &Answers) -> Result<Self> {
        let total = deal.total();
        let [student_dim, teacher_dim] = [own.student.dim(), own.teacher.dim()];
        let count = |is_there: bool| if is_there { 1 } else { 0 };
        let label = count(own.labels.is_some());
        let weight = count(own.row_weights.is_some());
        let len = |width: usize| total.saturating_mul(width);
        let mut all = AllRows {
            student: zeroed("rows of all ranks", len(student_dim))?,
            teacher: zeroed("rows of all ranks", len(teacher_dim))?,
            labels: zeroed("labels of all ranks", len(label))?,
            weights: zeroed("weights of all ranks", len(weight))?,
        };
        let places = deal.places(has_halves(problem));
        for (mut data, places) in inputs.iter().zip(&places) {
            place(&mut data, places, student_dim, &mut all.student)?;
            place(&mut data, places, teacher_dim, &mut all.teacher)?;
            place(&mut data, places, label, &mut all.labels)?;
            place(&mut data, places, weight, &mut all.weights)?;
        }
        Ok(all)
    }

    /// The batch of all ranks, which has what the own one has.
    fn batch<'a>(&'a self, problem: &Problem, own: Batch<'a, T>) -> Result<Batch<'a, T>> {
        let rows = problem.shapes().rows;
        Ok(Batch {
            student: Rows::new(&self.student, [rows, own.student.dim()])?,
            teacher: Rows::new(&self.teacher, [rows, own.teacher.dim()])?,
            labels: own.labels.map(|_| &self.labels[..]),
            row_weights: own.row_weights.map(|_| &self.weights[..]),
            ..own
        })
    }
}
