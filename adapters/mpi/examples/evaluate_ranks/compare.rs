//! A loss on the ranks, and on one of them that has all rows.

use std::fmt;
use std::time::{Duration, Instant};

use relata::ranks::{Communicator, Gathered, Global};
use relata::{Cpu, Element, Evaluation, Loss, Problem, Real, Result};
use relata_mpi::MpiRank;

use crate::inputs::Inputs;
use crate::odd::Odd;

/// Within this, relative, two results are the same but for rounding.
const BOUND: f64 = 1e-6;

/// What was found.
pub(crate) struct Outcome {
    loss: &'static str,
    value: f64,
    deal: Vec<usize>,
    /// The relative errors of loss and gradient, on rank 0.
    errors: [f64; 2],
    same_bits: bool,
    /// Sent by rank 0.
    bytes: usize,
    time: Duration,
}

impl Outcome {
    pub(crate) fn agrees(&self) -> bool {
        self.same_bits || self.errors.iter().all(|&error| error <= BOUND)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let deal: Vec<String> = self.deal.iter().map(usize::to_string).collect();
        let (loss, value) = (self.loss, self.value);
        write!(f, "{loss:<14} {value:<22} rows {:<14} ", deal.join(","))?;
        let [of_loss, of_gradient] = self.errors;
        let agreement = match (self.agrees(), self.same_bits) {
            (_, true) => "same bits as one rank".to_owned(),
            (true, _) => format!("as one rank to {of_loss:.0e}, gradient {of_gradient:.0e}"),
            (false, _) => format!("DIFFERS from one rank by {of_loss:.0e}, {of_gradient:.0e}"),
        };
        let ms = self.time.as_secs_f64() * 1e3;
        write!(f, "{agreement:<42} {:>8} bytes {ms:>9.3} ms", self.bytes)
    }
}

/// Evaluates on the ranks. Rank 0 then evaluates alone; others have nothing to compare with.
pub(crate) fn compare<T: Element>(
    rank: &mut MpiRank,
    loss: &Loss,
    inputs: &Inputs<T>,
    deal: &[usize],
    odd: Option<Odd>,
) -> Result<Outcome> {
    let width = odd.map_or(inputs.student_dim, |odd| odd.width(inputs.student_dim));
    let mut own = inputs.of_rank(deal, rank.rank(), width);
    let mut counted = Counted { rank, bytes: 0 };
    let since = Instant::now();
    let evaluation = global(&mut counted, loss, &mut own)?;
    let (time, bytes) = (since.elapsed(), counted.bytes);

    let gradients = rank.all_gather(bytemuck::cast_slice(&evaluation.gradient))?;
    let mut outcome = Outcome {
        loss: loss.name(),
        value: evaluation.loss,
        deal: deal.to_vec(),
        errors: [0.0; 2],
        same_bits: true,
        bytes,
        time,
    };
    if rank.rank() != 0 {
        return Ok(outcome);
    }
    let (alone, queue) = alone(loss, inputs)?;
    let together: Vec<T::Real> = inputs.together(deal, &gradients);
    let same_queue = match (&own.queue, &queue) {
        (Some(own), Some(alone)) => own.keys() == alone.keys(),
        _ => true,
    };
    outcome.errors = [
        relative(&[evaluation.loss], &[alone.loss]),
        if same_queue {
            relative(&together, &alone.gradient)
        } else {
            f64::INFINITY
        },
    ];
    outcome.same_bits = same_queue
        && evaluation.loss.to_bits() == alone.loss.to_bits()
        && bytemuck::cast_slice::<_, u8>(&together)
            == bytemuck::cast_slice::<_, u8>(&alone.gradient);
    Ok(outcome)
}

fn global<T: Element>(
    communicator: &mut impl Communicator,
    loss: &Loss,
    own: &mut Inputs<T>,
) -> Result<Evaluation<T::Real>> {
    let mut queue = own.queue.take();
    let batch = own.batch()?;
    let problem = |shapes| Problem::new(*loss, shapes);
    let mut global = Global::new(&Cpu, communicator);
    let evaluation = match &mut queue {
        Some(queue) => global.evaluate_with_queue(batch.student, batch.teacher, queue, problem),
        None => global.evaluate(batch, problem),
    };
    own.queue = queue;
    evaluation
}

type Alone<R> = (Evaluation<R>, Option<relata::Queue<R>>);

fn alone<T: Element>(loss: &Loss, inputs: &Inputs<T>) -> Result<Alone<T::Real>> {
    let batch = inputs.batch()?;
    let mut queue = inputs.queue.clone();
    let evaluation = match &mut queue {
        Some(queue) => loss.evaluate_with_queue(&Cpu, batch.student, batch.teacher, queue),
        None => Problem::new(*loss, batch.shapes())?.evaluate(&Cpu, batch),
    }?;
    Ok((evaluation, queue))
}

/// ‖got − want‖/‖want‖, or ‖got‖ where that is 0.
fn relative<R: Real>(got: &[R], want: &[R]) -> f64 {
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let pairs = got.iter().zip(want);
    let difference = norm(&mut pairs.map(|(g, w)| g.to_f64() - w.to_f64()));
    let size = norm(&mut want.iter().map(|w| w.to_f64()));
    if size > 0.0 {
        difference / size
    } else {
        difference
    }
}

/// A rank whose bytes are counted.
struct Counted<'a> {
    rank: &'a mut MpiRank,
    bytes: usize,
}

impl Communicator for Counted<'_> {
    fn rank(&self) -> usize {
        self.rank.rank()
    }

    fn world(&self) -> usize {
        self.rank.world()
    }

    fn all_gather(&mut self, bytes: &[u8]) -> Result<Gathered> {
        self.bytes += bytes.len();
        self.rank.all_gather(bytes)
    }
}
