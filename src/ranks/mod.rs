//! One loss over the rows of many ranks: processes, threads or GPUs that each have a part of the batch.
//!
//! Relational losses live on the batch, and batches outgrow one device. A [`Global`] evaluates a loss
//! as if the rows of all ranks were one batch, in the order of ranks. Every rank gets the loss of that
//! batch, and the gradient of its own rows.
//!
//! ```
//! use relata::ranks::{Communicator, Global, InProcess};
//! use relata::{Batch, Cpu, Gram, Rows};
//! # fn main() -> relata::Result<()> {
//! let (student, teacher) = ([0.1f32, 0.9, -0.4, 0.3, 0.8, -0.2], [0.7f32, 0.2, 0.5, 0.1, -0.6, 0.3]);
//! // The first rank has one row, the second has two.
//! let deal = [0..1, 1..3];
//! let evaluations = std::thread::scope(|scope| {
//!     let ranks = InProcess::ranks(2)?.into_iter().map(|mut rank| {
//!         let own = deal[rank.rank()].clone();
//!         scope.spawn(move || {
//!             let (part, shape) = (2 * own.start..2 * own.end, [own.len(), 2]);
//!             let student = Rows::new(&student[part.clone()], shape)?;
//!             let batch = Batch::new(student, Rows::new(&teacher[part], shape)?);
//!             let mut global = Global::new(&Cpu, &mut rank);
//!             global.evaluate(batch, |shapes| Gram::default().problem(shapes))
//!         })
//!     });
//!     let ranks: Vec<_> = ranks.collect();
//!     let joined = ranks.into_iter().map(|rank| rank.join().expect("no panic"));
//!     joined.collect::<relata::Result<Vec<_>>>()
//! })?;
//! let alone = Gram::default().evaluate(&Cpu, Rows::new(&student, [3, 2])?, Rows::new(&teacher, [3, 2])?)?;
//! assert!(evaluations.iter().all(|of_rank| of_rank.loss == alone.loss));
//! assert_eq!(evaluations[1].gradient, alone.gradient[2..]);
//! # Ok(()) }
//! ```
//!
//! # The gradient
//!
//! The gradient is `upstream · ∂L/∂(own rows)`, where L is the loss of the rows of all ranks. It is
//! whole: what the own rows do to the relations of other ranks is in it. Nothing has to be added.
//!
//! What is behind the rows is shared: the weights of a network, whose gradients a trainer puts
//! together. A trainer that **sums** the gradients of ranks passes `upstream = 1`. One that
//! **averages** them, as PyTorch's `DistributedDataParallel` does, divides by the number of ranks, and
//! passes `upstream = world` ([`Problem::with_upstream`]). The loss that is reported is never scaled.
//! Ranks with more rows than others need nothing else.
//!
//! # What is exchanged
//!
//! N are the rows of all ranks and n those of one, of D elements of e bytes (the teacher's D_t), and
//! reals have r bytes. The bytes that a rank sends, besides some hundred that describe the problem:
//!
//! | losses | work of a rank | bytes that a rank sends |
//! |---|---|---|
//! | [`KdKl`](crate::KdKl) | its rows | 8 n |
//! | [`Rrd`](crate::Rrd), [`InfoNce`](crate::InfoNce) with a queue | its rows | 8 n + 8 for a term, and n D e to enqueue |
//! | all others, but those of a [`Bank`](crate::Bank), which are refused | **that of all rows** | n (D + D_t) e, and 4 n of labels |
//!
//! Weights of rows are n r more. In the first two lines the work of a rank falls as 1/world. In the
//! last, each rank evaluates the batch of all ranks and keeps its part of the gradient. That is right,
//! and no faster than one rank; the memory is that of all rows too.
//!
//! Every evaluation has three exchanges: of shapes, of the problem with the inputs, and of results.
//!
//! # What is promised
//!
//! - **Order.** Rows, keys and sums are in the order of ranks, whatever came first. Of two towers
//!   ([`Clip`](crate::Clip), [`SigLip`](crate::SigLip)) each rank has n rows of both, one tower after
//!   the other; all first towers come first. The queues of all ranks stay equal if they start equal.
//! - **The same bits.** On the [`Cpu`](crate::Cpu) and the [`Reference`](crate::Reference) the loss
//!   and the gradients have the same bits for any number of ranks and any deal of the rows. For losses
//!   of the last line, on every device, they are those of [`Problem::evaluate`]. For the others the
//!   loss differs from it in rounding, as its sum has another order, and so does the gradient of RRD
//!   and InfoNCE with a queue, by keys that weigh less than rounding. On a GPU those two and KD differ
//!   in rounding between deals. The terms of RRD and InfoNCE are added rank by rank, and differ in
//!   rounding everywhere.
//! - **One error.** If a rank fails, leaves, or has another loss, other parameters, element type or
//!   widths, every rank gets the same [`Error`], and nobody waits forever. Nothing has
//!   been enqueued then. An argument that is wrong on all ranks gives the error that it gives without
//!   ranks.
//! - **Any deal.** Ranks may have different numbers of rows, and none: `[0, D]`, with whatever else
//!   the batches of the others have.
//!
//! The machines of all ranks have to store numbers in the same order of bytes, and for the same bits
//! they need the same instruction set, or GPUs of one kind.

mod all_rows;
mod communicator;
mod deal;
mod in_process;
mod message;
mod own_rows;

use self::deal::{Deal, place};
use self::message::{Answers, Message, Names, Step, exchange};
use crate::batch::Batch;
use crate::checks::{same, zeroed};
use crate::device::Device;
use crate::element::{Element, Real};
use crate::error::{Error, Result};
use crate::evaluate::problem_with_queue;
use crate::loss::{Enqueue, Family};
use crate::problem::{Evaluation, Problem};
use crate::queue::Queue;
use crate::row_weights;
use crate::rows::Rows;
use crate::shapes::Shapes;

pub use communicator::{Communicator, Gathered};
pub use in_process::InProcess;

/// A device that evaluates losses over the rows of all ranks, as one of them.
///
/// All ranks call the same methods in the same order. A problem is made of the shapes of the batch of
/// all ranks, by a function that each rank gives: `|shapes| Gram::default().problem(shapes)`.
#[derive(Debug)]
pub struct Global<'a, D, C: ?Sized> {
    device: &'a D,
    communicator: &'a mut C,
}

impl<'a, D, C: Communicator + ?Sized> Global<'a, D, C> {
    /// This rank, which computes on `device`.
    pub fn new(device: &'a D, communicator: &'a mut C) -> Self {
        Global {
            device,
            communicator,
        }
    }

    /// The loss of the rows of all ranks, and the gradient `[n, D]` of those in `batch`. A queue in
    /// the batch has to be the same on all ranks; its length, its capacity and its next slot are
    /// compared.
    ///
    /// A NaN or an infinity on one rank does what it does in a batch.
    ///
    /// # Errors
    /// What [`Problem::evaluate`] refuses, on all ranks. [`Error::RankDiffers`] if a rank has another
    /// loss or other shapes, [`Error::RankFailed`] with the message of a rank that could not go on, and
    /// what the [communicator](Communicator::all_gather) says.
    pub fn evaluate<T: Element>(
        &mut self,
        batch: Batch<'_, T>,
        problem: impl Fn(Shapes) -> Result<Problem>,
    ) -> Result<Evaluation<D::Gradient>>
    where
        D: Device<T>,
    {
        let mut evaluation = self.evaluate_as(batch, &problem, false)?;
        evaluation.row_losses.clear();
        Ok(evaluation)
    }

    /// The same, with the losses of the rank's own rows: see [`Problem::evaluate_rows`].
    ///
    /// # Errors
    /// As [`evaluate`](Self::evaluate), and [`Error::Unexpected`] for a loss that is no mean of losses
    /// of rows.
    pub fn evaluate_rows<T: Element>(
        &mut self,
        batch: Batch<'_, T>,
        problem: impl Fn(Shapes) -> Result<Problem>,
    ) -> Result<Evaluation<D::Gradient>>
    where
        D: Device<T>,
    {
        self.evaluate_as(batch, &problem, true)
    }

    fn evaluate_as<T: Element>(
        &mut self,
        batch: Batch<'_, T>,
        problem: &dyn Fn(Shapes) -> Result<Problem>,
        rows: bool,
    ) -> Result<Evaluation<D::Gradient>>
    where
        D: Device<T>,
    {
        let deal = self.deal(Step::Shapes, &batch, check_rows(&batch))?;
        let shapes = Shapes {
            rows: deal.total(),
            ..batch.shapes()
        };
        let problem = problem_of(shapes, problem).and_then(|problem| {
            if rows {
                problem.check_row_losses(shapes.rows)?;
            }
            check_own_rows(&problem, batch.student.len())?;
            Ok(problem)
        });
        let inputs = problem.as_ref().map_err(Clone::clone).map(|problem| {
            let mut message = describe(problem, rows);
            if !has_own_rows(problem) {
                message.push(batch.student.as_slice());
                message.push(batch.teacher.as_slice());
                message.push(batch.labels.unwrap_or_default());
            }
            message.push(batch.row_weights.unwrap_or_default());
            message
        });
        let inputs = exchange(self.communicator, Step::Inputs, PROBLEM, inputs)?;
        let problem = problem?;
        if has_own_rows(&problem) {
            let weights = own_rows::weights(&batch, &deal, &inputs);
            own_rows::evaluate(self, &problem, batch, &deal, weights)
        } else {
            all_rows::evaluate(self, &problem, batch, &deal, &inputs, rows)
        }
    }

    /// The loss of the rows of all ranks against the teacher's and the keys in `queue`, and the gradient
    /// of the own rows: [`Loss::evaluate_with_queue`](crate::Loss::evaluate_with_queue). The teacher's
    /// rows of all ranks enter every queue, in the order of ranks, when the loss's `enqueue` says.
    ///
    /// `problem` may be called twice: the number of keys depends on what it says of `enqueue`.
    ///
    /// If a teacher's row on any rank has a NaN or an infinity, the loss and the gradients are NaN on
    /// all ranks, and nothing enters a queue.
    ///
    /// # Errors
    /// As [`evaluate`](Self::evaluate). After an error the queues of all ranks are as they were.
    pub fn evaluate_with_queue<T: Element>(
        &mut self,
        student: Rows<'_, T>,
        teacher: Rows<'_, T>,
        queue: &mut Queue<T::Real>,
        problem: impl Fn(Shapes) -> Result<Problem>,
    ) -> Result<Evaluation<D::Gradient>>
    where
        D: Device<T>,
    {
        let batch = Batch::new(student, teacher);
        let own = check_rows(&batch).and_then(|()| same("queue_dim", teacher.dim(), queue.dim()));
        let deal = self.deal(Step::ShapesWithQueue, &batch.with_queue(queue), own)?;
        let shapes = Shapes::new(deal.total(), student.dim(), teacher.dim());
        let problem = problem_with_queue(shapes, queue, |shapes| problem_of(shapes, &problem));
        let inputs = problem.as_ref().map_err(Clone::clone).map(|problem| {
            let mut message = describe(problem, false);
            message.push(teacher.as_slice());
            message
        });
        let inputs = exchange(self.communicator, Step::Inputs, PROBLEM, inputs)?;
        let problem = problem?;
        let enqueue = problem.spec().enqueue;

        let mut saved = None;
        let keys = gathered_rows::<T>(&deal, teacher.dim(), &inputs);
        let keys = keys.and_then(|keys| {
            let rows = Rows::new(&keys, [deal.total(), teacher.dim()])?;
            if rows.check_finite("teacher").is_err() {
                return Ok(None);
            }
            if enqueue == Enqueue::Before {
                saved = Some(queue.save(rows.len())?);
                queue.enqueue(rows)?;
            }
            Ok(Some(keys))
        });
        let evaluation = match &keys {
            Ok(Some(_)) => {
                let batch = batch.with_queue(queue);
                own_rows::evaluate(self, &problem, batch, &deal, Ok(None))
            }
            Ok(None) => own_rows::not_a_number(self, &problem, batch, &deal),
            Err(error) => own_rows::evaluate(self, &problem, batch, &deal, Err(error.clone())),
        };
        match (&evaluation, saved, keys) {
            (Err(_), Some(saved), _) => queue.restore(&saved),
            (Ok(_), _, Ok(Some(keys))) if enqueue == Enqueue::After => {
                queue.enqueue(Rows::of(&keys, teacher.dim()))?;
            }
            _ => {}
        }
        let mut evaluation = evaluation?;
        evaluation.row_losses.clear();
        Ok(evaluation)
    }

    /// Adds the keys of all ranks to every queue, in the order of ranks, for a loss whose `enqueue` is
    /// [`Never`](crate::Enqueue::Never): [`Queue::enqueue`].
    ///
    /// # Errors
    /// As [`Queue::enqueue`], where rows are counted over all ranks; and as
    /// [`evaluate`](Self::evaluate). Nothing is enqueued on any rank then.
    pub fn enqueue<T: Element>(
        &mut self,
        keys: Rows<'_, T>,
        queue: &mut Queue<T::Real>,
    ) -> Result<()> {
        let own = same("queue_dim", queue.dim(), keys.dim());
        let batch = Batch::new(keys, keys).with_queue(queue);
        let deal = self.deal(Step::Keys, &batch, own)?;
        let mut message = Message::new(&[]);
        message.push(keys.as_slice());
        let answers = exchange(self.communicator, Step::Inputs, &[], Ok(message))?;
        let all = gathered_rows::<T>(&deal, keys.dim(), &answers);
        let check = all.as_ref().map_err(Clone::clone).and_then(|all| {
            Rows::new(all, [deal.total(), keys.dim()])?.check_finite("keys")?;
            Ok(Message::default())
        });
        exchange(self.communicator, Step::Results, &[], check)?;
        queue.enqueue(Rows::new(&all?, [deal.total(), keys.dim()])?)
    }

    /// Exchanges the shapes of the ranks' batches.
    fn deal<T: Element>(
        &mut self,
        step: Step,
        batch: &Batch<'_, T>,
        own: Result<()>,
    ) -> Result<Deal> {
        let rank = self.communicator.rank();
        let message = own.map(|()| {
            let shapes = batch.shapes();
            let mut message = Message::new(&[
                T::DTYPE.to_string(),
                shapes.student_dim.to_string(),
                shapes.teacher_dim.to_string(),
                batch
                    .queue
                    .map_or_else(|| "none".to_owned(), describe_queue),
                yes_or_no(shapes.row_weights),
                shapes
                    .top_k
                    .map_or_else(|| "none".to_owned(), |k| k.to_string()),
                yes_or_no(shapes.labels),
            ]);
            message.push(&[shapes.rows as u64]);
            message
        });
        Deal::new(&exchange(self.communicator, step, SHAPES, message)?, rank)
    }
}

/// What [`Global::deal`] compares.
const SHAPES: Names = &[
    "dtype",
    "student_dim",
    "teacher_dim",
    "queue",
    "row_weights",
    "top_k",
    "labels",
];

/// What [`describe`] compares.
const PROBLEM: Names = &[
    "loss",
    "parameters",
    "upstream",
    "checked",
    "prefixes",
    "groups",
    "weight_precision",
    "scale_gradient",
    "row_losses",
];

/// A message that says what is evaluated.
fn describe(problem: &Problem, rows: bool) -> Message {
    let parameters = problem.loss().parameters();
    let parameters = parameters
        .iter()
        .map(|(name, value)| format!("{name}: {value:?}"));
    Message::new(&[
        problem.loss().name().to_owned(),
        parameters.collect::<Vec<_>>().join(", "),
        problem.upstream().to_string(),
        yes_or_no(problem.checked()),
        format!("{:?}", problem.prefix_widths()),
        problem.groups().to_string(),
        format!("{:?}", problem.weight_precision()),
        yes_or_no(problem.scale_gradient()),
        yes_or_no(rows),
    ])
}

fn describe_queue<R: Real>(queue: &Queue<R>) -> String {
    let state = queue.state();
    format!(
        "{} of {} {}keys of {}, the next in slot {}",
        state.keys.len(),
        state.capacity,
        if state.normalize { "normalised " } else { "" },
        queue.dim(),
        state.next,
    )
}

fn yes_or_no(flag: bool) -> String {
    if flag { "yes" } else { "no" }.to_owned()
}

/// Whether a rank evaluates its own rows, which have nothing to do with those of the others.
fn has_own_rows(problem: &Problem) -> bool {
    match problem.spec().family {
        Family::Logits(_) => true,
        Family::Contrastive(_) => problem.shapes().queue.is_some(),
        Family::Pairwise(_) | Family::Triplet(_) | Family::Towers(_) | Family::Sampled(_) => false,
    }
}

/// Whether the rows are two towers, one after the other.
fn has_halves(problem: &Problem) -> bool {
    match problem.spec().family {
        Family::Towers(towers) => towers.has_halves(),
        Family::Pairwise(_)
        | Family::Triplet(_)
        | Family::Contrastive(_)
        | Family::Logits(_)
        | Family::Sampled(_) => false,
    }
}

/// The problem of the batch of all ranks.
fn problem_of(shapes: Shapes, problem: &dyn Fn(Shapes) -> Result<Problem>) -> Result<Problem> {
    let problem = problem(shapes)?;
    if let Family::Sampled(_) = problem.spec().family {
        // A step changes rows of the bank, which the banks of other ranks would have to follow.
        return Err(Error::Unexpected {
            argument: "ranks",
            loss: problem.loss().name(),
        });
    }
    same("rows of the problem", shapes.rows, problem.shapes().rows)?;
    Ok(problem)
}

/// Refuses a batch whose parts do not have as many rows as the student, and weights that are none.
fn check_rows<T: Element>(batch: &Batch<'_, T>) -> Result<()> {
    let rows = batch.student.len();
    same("teacher rows", rows, batch.teacher.len())?;
    if let Some(top_k) = batch.top_k {
        same("teacher rows", rows, top_k.len())?;
    }
    if let Some(labels) = batch.labels {
        same("labels", rows, labels.len())?;
    }
    if let Some(weights) = batch.row_weights {
        same("row_weights", rows, weights.len())?;
        row_weights::check(weights)?;
    }
    Ok(())
}

/// Refuses rows of a rank that are not two towers of as many rows each.
fn check_own_rows(problem: &Problem, rows: usize) -> Result<()> {
    if !has_halves(problem) || rows.is_multiple_of(2) {
        return Ok(());
    }
    Err(Error::Parameter {
        argument: "rows",
        expected: "an even number on each rank: two towers of as many rows each",
        got: rows as f64,
    })
}

/// The rows that all ranks gave, in the order of ranks.
fn gathered_rows<T: Element>(deal: &Deal, dim: usize, answers: &Answers) -> Result<Vec<T>> {
    let mut all = zeroed("rows of all ranks", deal.total().saturating_mul(dim))?;
    for (mut data, places) in answers.iter().zip(&deal.places(false)) {
        place(&mut data, places, dim, &mut all)?;
    }
    Ok(all)
}
