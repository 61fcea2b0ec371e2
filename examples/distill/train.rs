//! The training of the teacher and of its students.

use std::f64::consts::PI;
use std::time::{Duration, Instant};

use candle_core::{Result, Tensor};
use candle_nn::{AdamW, Optimizer, ParamsAdamW};
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::data::{Data, PIXELS, Set};
use crate::method::Method;
use crate::metrics;
use crate::model::{Network, Output};
use crate::task::{BatchSize, Batches, Task};

/// The sizes of the networks, and the lengths of their trainings.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    /// The widths of two hidden layers and of the embedding.
    teacher: [usize; 3],
    student: [usize; 3],
    batch: BatchSize,
    pub(crate) teacher_steps: usize,
    pub(crate) steps: usize,
    /// A student's recall is measured every so many steps.
    watch_every: usize,
    /// Whether to train only on a part of the data.
    pub(crate) small_data: bool,
}

impl Plan {
    pub(crate) const FULL: Plan = Plan {
        teacher: [384, 384, 64],
        student: [32, 32, 16],
        batch: BatchSize {
            classes: 16,
            each: 8,
        },
        teacher_steps: 900,
        steps: 1500,
        watch_every: 75,
        small_data: false,
    };
    pub(crate) const QUICK: Plan = Plan {
        teacher: [32, 32, 16],
        student: [8, 8, 8],
        batch: BatchSize {
            classes: 8,
            each: 4,
        },
        teacher_steps: 12,
        steps: 8,
        watch_every: 4,
        small_data: true,
    };

    /// How many steps see as many images as there are, not counting shifts.
    pub(crate) fn steps_of_epoch(&self, data: &Data) -> f64 {
        let images = data.training.classes * data.training.typefaces;
        images as f64 / self.batch.images() as f64
    }
}

/// AdamW's learning rate at the start. It falls to 0 along half a cosine.
const LEARNING_RATE: f64 = 4e-3;
const WEIGHT_DECAY: f64 = 1e-4;

/// The teacher, and its outputs for all training images, which it computes only once.
pub(crate) struct Teacher {
    pub(crate) network: Network,
    answers: Output,
}

/// A trained student, and its training.
pub(crate) struct Student {
    pub(crate) network: Network,
    /// Recall@1 after so many steps.
    pub(crate) curve: Vec<(usize, f64)>,
    pub(crate) took: Duration,
    /// The part of that time in the distillation losses and their gradients.
    pub(crate) in_losses: Duration,
}

impl Teacher {
    pub(crate) fn train(data: &Data, plan: &Plan, seed: u64, tick: impl Fn()) -> Result<Self> {
        let network = network(plan.teacher, 1, data, seed)?;
        let no_more = |_: &Output, _: &Tensor| Ok(None);
        fit(
            &network,
            data,
            plan,
            plan.teacher_steps,
            seed,
            no_more,
            |_| {
                tick();
                Ok(())
            },
        )?;
        let output = network.forward(&data.training.images)?;
        let answers = Output {
            embedding: output.embedding.detach(),
            logits: output.logits.detach(),
        };
        Ok(Teacher { network, answers })
    }

    /// Its outputs for the training images in these rows.
    fn answer(&self, rows: &Tensor) -> Result<Output> {
        Ok(Output {
            embedding: self.answers.embedding.index_select(rows, 0)?,
            logits: self.answers.logits.index_select(rows, 0)?,
        })
    }
}

impl Student {
    /// With the same seed, all methods start from the same weights and see the same batches. The
    /// recall is measured on `watched`.
    pub(crate) fn train(
        data: &Data,
        plan: &Plan,
        teacher: &Teacher,
        method: &Method,
        seed: u64,
        watched: &Set,
        tick: impl Fn(),
    ) -> Result<Self> {
        let teacher_dim = plan.teacher[2];
        let network = network(plan.student, teacher_dim, data, seed)?;
        let mut queue = method.queue(teacher_dim, data.training.images.device())?;
        let (mut curve, mut in_losses, mut watching) = (Vec::new(), Duration::ZERO, Duration::ZERO);
        let start = Instant::now();
        fit(
            &network,
            data,
            plan,
            plan.steps,
            seed,
            |output, rows| {
                let start = Instant::now();
                let loss = method.loss(&network, output, &teacher.answer(rows)?, queue.as_mut());
                in_losses += start.elapsed();
                loss
            },
            |step| {
                tick();
                if step % plan.watch_every == 0 || step == plan.steps {
                    let start = Instant::now();
                    let embedding = network.forward(&watched.images)?.embedding;
                    let [recall] = metrics::recall(&embedding, &watched.labels, [1])?;
                    curve.push((step, recall));
                    watching += start.elapsed();
                }
                Ok(())
            },
        )?;
        Ok(Student {
            took: start.elapsed() - watching,
            network,
            curve,
            in_losses,
        })
    }
}

fn network(widths: [usize; 3], projected: usize, data: &Data, seed: u64) -> Result<Network> {
    let [first, second, dim] = widths;
    let mut rng = StdRng::seed_from_u64(seed);
    let device = data.training.images.device();
    Network::new(
        &[PIXELS, first, second, dim],
        data.training.classes,
        projected,
        &mut rng,
        device,
    )
}

/// Trains `network` on the task's loss plus the loss that `more` returns for its output and the
/// rows of the batch. Calls `after` with the number of steps done.
fn fit(
    network: &Network,
    data: &Data,
    plan: &Plan,
    steps: usize,
    seed: u64,
    mut more: impl FnMut(&Output, &Tensor) -> Result<Option<Tensor>>,
    mut after: impl FnMut(usize) -> Result<()>,
) -> Result<()> {
    let training = &data.training;
    let task = Task::new(plan.batch, training.images.device())?;
    let mut batches = Batches::new(plan.batch, seed);
    let settings = ParamsAdamW {
        weight_decay: WEIGHT_DECAY,
        ..ParamsAdamW::default()
    };
    let mut optimizer = AdamW::new(network.variables(), settings)?;
    for step in 0..steps {
        let phase = PI * step as f64 / steps as f64;
        optimizer.set_learning_rate(LEARNING_RATE * 0.5 * (1.0 + phase.cos()));
        let (rows, labels) = batches.draw(training)?;
        let output = network.forward(&training.images.index_select(&rows, 0)?)?;
        let mut loss = task.loss(&output, &labels)?;
        if let Some(more) = more(&output, &rows)? {
            loss = (loss + more)?;
        }
        optimizer.backward_step(&loss)?;
        after(step + 1)?;
    }
    Ok(())
}
