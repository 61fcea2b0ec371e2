//! The study: for every seed it trains and measures a teacher, and with it a student of every
//! method.

use candle_core::Tensor;
use indicatif::{ProgressBar, ProgressStyle};

use crate::data::{Data, Set};
use crate::failure::Result;
use crate::method::Method;
use crate::metrics;
use crate::model::Network;
use crate::options::{Options, Part};
use crate::train::{Plan, Student, Teacher};

/// A network's scores.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scores {
    /// Recall@1 and @4 on characters that were not trained on.
    pub(crate) recall: [f64; 2],
    /// On trained characters in new typefaces. There is none without a classifier.
    pub(crate) accuracy: Option<f64>,
}

/// The result of one student of a method.
pub(crate) struct Run {
    pub(crate) scores: Scores,
    /// Epochs, recall@1.
    pub(crate) curve: Vec<(f64, f64)>,
    /// The seconds of training, and the part of them in the distillation losses.
    pub(crate) seconds: f64,
    pub(crate) seconds_in_losses: f64,
}

/// All runs of a method, one for each seed.
pub(crate) struct Arm {
    pub(crate) method: Method,
    pub(crate) runs: Vec<Run>,
    /// The first seed's embeddings of the set that recall is measured on.
    pub(crate) embedding: Tensor,
}

pub(crate) struct Study {
    pub(crate) seeds: Vec<u64>,
    pub(crate) quick: bool,
    pub(crate) part: Part,
    /// The scores of the images themselves.
    pub(crate) pixels: Scores,
    pub(crate) teachers: Vec<Scores>,
    /// The numbers of trained parameters of a teacher and of a student.
    pub(crate) sizes: [usize; 2],
    /// The first is without distillation.
    pub(crate) arms: Vec<Arm>,
    /// The first teacher's embeddings, like [`Arm::embedding`].
    pub(crate) teacher_embedding: Tensor,
    /// How many images of each character the set has that recall is measured on.
    pub(crate) each: usize,
}

impl Study {
    pub(crate) fn run(options: &Options) -> Result<Self> {
        let (plan, seeds, methods) = (options.plan(), options.seeds(), options.methods());
        let data = Data::load(&options.device()?, plan.small_data)?;
        let set = match options.recall_on {
            Part::Unseen => &data.unseen,
            Part::Validation => &data.validation,
        };
        let progress = progress(seeds.len() * (plan.teacher_steps + methods.len() * plan.steps));
        let mut teachers = Vec::new();
        let mut first = None;
        let mut runs: Vec<Vec<Run>> = methods.iter().map(|_| Vec::new()).collect();
        let mut embeddings = Vec::new();
        for (i, &seed) in seeds.iter().enumerate() {
            let say = |what: &str| {
                progress.set_message(format!("seed {} of {}: {what}", i + 1, seeds.len()))
            };
            say("teacher");
            let teacher = Teacher::train(&data, &plan, seed, || progress.inc(1))?;
            teachers.push(scores(&teacher.network, &data, set)?);
            for (method, runs) in methods.iter().zip(&mut runs) {
                say(&method.to_string());
                let student = Student::train(&data, &plan, &teacher, method, seed, set, || {
                    progress.inc(1)
                })?;
                if i == 0 {
                    let size = student.network.size();
                    embeddings.push((
                        student.network.forward(&set.images)?.embedding.detach(),
                        size,
                    ));
                }
                runs.push(run(&student, &data, set, &plan)?);
            }
            if i == 0 {
                first = Some((
                    teacher.network.forward(&set.images)?.embedding.detach(),
                    teacher.network.size(),
                ));
            }
        }
        progress.finish_and_clear();
        let (teacher_embedding, teacher_size) = first.unwrap_or((set.images.clone(), 0));
        let student_size = embeddings.first().map_or(0, |(_, size)| *size);
        let arms = methods.into_iter().zip(runs).zip(embeddings);
        Ok(Study {
            quick: options.quick,
            part: options.recall_on,
            pixels: Scores {
                recall: metrics::recall(&set.images, &set.labels, [1, 4])?,
                accuracy: None,
            },
            teachers,
            sizes: [teacher_size, student_size],
            arms: arms
                .map(|((method, runs), (embedding, _))| Arm {
                    method,
                    runs,
                    embedding,
                })
                .collect(),
            teacher_embedding,
            each: set.labels.iter().filter(|&&label| label == 0).count(),
            seeds,
        })
    }

    /// The distilled arm with the best recall@1, if there is one.
    pub(crate) fn best(&self) -> Option<&Arm> {
        let sum = |arm: &Arm| arm.runs.iter().map(|run| run.scores.recall[0]).sum::<f64>();
        self.arms
            .iter()
            .skip(1)
            .max_by(|a, b| sum(a).total_cmp(&sum(b)))
    }
}

fn run(student: &Student, data: &Data, set: &Set, plan: &Plan) -> Result<Run> {
    let epoch = plan.steps_of_epoch(data);
    Ok(Run {
        scores: scores(&student.network, data, set)?,
        curve: student
            .curve
            .iter()
            .map(|&(step, recall)| (step as f64 / epoch, recall))
            .collect(),
        seconds: student.took.as_secs_f64(),
        seconds_in_losses: student.in_losses.as_secs_f64(),
    })
}

fn scores(network: &Network, data: &Data, set: &Set) -> Result<Scores> {
    let embedding = network.forward(&set.images)?.embedding;
    let logits = network.forward(&data.test.images)?.logits;
    Ok(Scores {
        recall: metrics::recall(&embedding, &set.labels, [1, 4])?,
        accuracy: Some(metrics::accuracy(&logits, &data.test.labels)?),
    })
}

fn progress(steps: usize) -> ProgressBar {
    // A template that does not parse is a mistake above, but no reason to stop.
    let style = ProgressStyle::with_template("{bar:30} {percent:>3} %  {msg}  (ready in {eta})");
    ProgressBar::new(steps as u64)
        .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}
