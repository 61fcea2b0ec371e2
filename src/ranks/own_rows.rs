//! Losses whose rows have nothing to do with one another: each rank evaluates its own, and ranks
//! exchange the losses of rows.
//!
//! The loss of each row is exchanged and not a rank's sum of them. So all ranks add the same numbers in
//! the same order, however the rows are dealt, and get the same bits. Terms come as sums: devices do
//! not give them for each row.

use super::deal::{Deal, place};
use super::message::{Answers, Message, Step, exchange, take};
use super::{Communicator, Global};
use crate::batch::Batch;
use crate::checks::zeroed;
use crate::device::Device;
use crate::element::{Element, Real};
use crate::error::Result;
use crate::loss::Family;
use crate::problem::{Evaluation, Problem};
use crate::row_weights::{AllRows, WeightSum};

/// What the own rows add: their gradient, their losses, and the terms.
struct OwnRows<R> {
    gradient: Vec<R>,
    losses: Vec<f64>,
    terms: Vec<f64>,
}

/// The weights of the rows of all ranks, if rows have some.
pub(super) fn weights<T: Element>(
    own: &Batch<'_, T>,
    deal: &Deal,
    inputs: &Answers,
) -> Result<Option<Vec<T::Real>>> {
    if own.row_weights.is_none() {
        return Ok(None);
    }
    let mut all = zeroed("weights of all ranks", deal.total())?;
    for (mut data, places) in inputs.iter().zip(&deal.places(false)) {
        place(&mut data, places, 1, &mut all)?;
    }
    Ok(Some(all))
}

/// The loss of the rows of all ranks, and the gradient and the losses of the own ones. `weights` are
/// those of all ranks, or why this rank cannot go on.
pub(super) fn evaluate<T: Element, D: Device<T>, C: Communicator + ?Sized>(
    global: &mut Global<'_, D, C>,
    problem: &Problem,
    batch: Batch<'_, T>,
    deal: &Deal,
    weights: Result<Option<Vec<T::Real>>>,
) -> Result<Evaluation<D::Gradient>> {
    let all = weights.as_ref().map_err(Clone::clone);
    let own = all.and_then(|weights| {
        let all = all_rows(deal, batch.row_weights, weights.as_deref());
        let own = problem.of_own_rows(batch.student.len(), all);
        evaluate_own(global.device, &own, batch)
    });
    finish(global, problem, deal, own, weights)
}

/// The evaluation on all ranks, one of whose teachers is not finite.
pub(super) fn not_a_number<T: Element, D: Device<T>, C: Communicator + ?Sized>(
    global: &mut Global<'_, D, C>,
    problem: &Problem,
    batch: Batch<'_, T>,
    deal: &Deal,
) -> Result<Evaluation<D::Gradient>> {
    let own = zeroed("gradient", batch.student.as_slice().len()).map(|gradient| OwnRows {
        gradient,
        losses: vec![f64::NAN; batch.student.len()],
        terms: problem.terms().map(|_| f64::NAN).collect(),
    });
    finish::<T, D, C>(global, problem, deal, own, Ok(None))
}

/// Where the own rows stand among those of all ranks.
fn all_rows<R: Real>(deal: &Deal, own: Option<&[R]>, weights: Option<&[R]>) -> AllRows {
    let sum = weights.map(WeightSum::new);
    let part = match (sum, own) {
        (Some(sum), Some(own)) => sum.shares(own).iter().sum(),
        _ => deal.own() as f64 / deal.total() as f64,
    };
    AllRows {
        rows: deal.total(),
        after: deal.after(),
        weights: sum,
        part,
    }
}

fn evaluate_own<T: Element, D: Device<T>>(
    device: &D,
    own: &Problem,
    batch: Batch<'_, T>,
) -> Result<OwnRows<D::Gradient>> {
    own.check(&batch)?;
    let mut gradient = zeroed("gradient", own.gradient_len())?;
    let mut losses = zeroed("row_losses", own.shapes().rows)?;
    let terms = if losses.is_empty() {
        // No device takes a batch without rows.
        own.terms().map(|_| 0.0).collect()
    } else {
        let value = device.evaluate(own, batch, &mut gradient, Some(&mut losses))?;
        value.terms.iter().map(|(_, term)| term).collect()
    };
    Ok(OwnRows {
        gradient,
        losses,
        terms,
    })
}

/// Exchanges what the rows add, and adds it up.
fn finish<T: Element, D: Device<T>, C: Communicator + ?Sized>(
    global: &mut Global<'_, D, C>,
    problem: &Problem,
    deal: &Deal,
    own: Result<OwnRows<D::Gradient>>,
    weights: Result<Option<Vec<T::Real>>>,
) -> Result<Evaluation<D::Gradient>> {
    let message = own.as_ref().map_err(Clone::clone).map(|own| {
        let mut message = Message::default();
        message.push(&own.losses);
        message.push(&own.terms);
        message
    });
    let answers = exchange(global.communicator, Step::Results, &[], message)?;
    let OwnRows {
        mut gradient,
        losses: row_losses,
        terms,
    } = own?;
    let mut losses = Vec::with_capacity(deal.total());
    let mut sums = vec![0.0; terms.len()];
    for (mut data, &rows) in answers.iter().zip(deal.of_ranks()) {
        losses.extend(take::<f64>(&mut data, rows)?);
        let terms: Vec<f64> = take(&mut data, sums.len())?;
        for (sum, term) in sums.iter_mut().zip(terms) {
            *sum += term;
        }
    }
    let loss = problem
        .row_mean(weights?.as_deref())
        .mean(losses.into_iter());
    // In a batch of keys and rows one that is not finite makes the gradient of all NaN.
    if loss.is_nan() && matches!(problem.spec().family, Family::Contrastive(_)) {
        gradient.fill(D::Gradient::from_f64(f64::NAN));
    }
    Ok(Evaluation::new(
        problem.value(loss, sums),
        gradient,
        row_losses,
    ))
}
