//! What to evaluate where: every check that needs no computing.

use relata::{
    DType, Enqueue, Error, Family, Loss, Pairwise, ParameterValue, Penalty, Problem, QueueUse, Rrd,
    WeightPrecision,
};

use crate::checks::check_rows;
use crate::devices::DeviceKind;
use crate::failure::{Failure, Result, say};
use crate::files::Matrix;
use crate::finite::check_finite;
use crate::inputs::{Inputs, Sources};
use crate::options::{Options, needs_bank};
use crate::teacher::Teacher;

/// One loss on one device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Job<'a> {
    pub(crate) loss: Loss,
    pub(crate) device: DeviceKind,
    /// What the inputs are rounded to.
    pub(crate) dtype: DType,
    pub(crate) weights: WeightPrecision,
    pub(crate) parts: Parts<'a>,
    pub(crate) inputs: Inputs<'a>,
    /// Whether the losses of rows are wanted.
    pub(crate) per_row: bool,
    /// Whether the reference is among the devices of the loss.
    pub(crate) with_reference: bool,
}

/// What the loss is the mean of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Parts<'a> {
    /// Of the student's rows.
    prefixes: Option<&'a [usize]>,
    /// Of the rows.
    groups: Option<usize>,
}

impl<'a> Parts<'a> {
    /// Those asked for, or else those of the files. Rows of logits are not compared with one
    /// another, so groups of a file are rows of logits as any others.
    fn new(options: &'a Options, loss: &Loss, inputs: &Inputs) -> Self {
        let of_files = match loss.spec().family {
            Family::Pairwise(_)
            | Family::Triplet(_)
            | Family::Contrastive(_)
            | Family::Towers(_)
            | Family::Sampled(_) => inputs.student.groups,
            Family::Logits(_) => None,
        };
        Parts {
            prefixes: options.prefixes.as_deref(),
            groups: options.groups.or(of_files),
        }
    }

    /// The same problem on prefixes and groups of the rows, if there are any.
    pub(crate) fn of(self, problem: Problem) -> relata::Result<Problem> {
        let problem = match self.prefixes {
            Some(widths) => problem.with_prefixes(widths)?,
            None => problem,
        };
        match self.groups {
            Some(groups) => problem.with_groups(groups),
            None => Ok(problem),
        }
    }

    /// 1 if all rows are compared with one another.
    pub(crate) fn groups(self) -> usize {
        self.groups.unwrap_or(1)
    }
}

/// Loss by loss, the devices; refuses what cannot be evaluated and warns of what is odd.
pub(crate) fn plan<'a>(options: &'a Options, sources: &'a Sources) -> Result<Vec<Job<'a>>> {
    let losses = select(options, sources)?;
    note_unused(options, sources, &losses);
    let mut jobs = Vec::new();
    for loss in losses {
        let inputs = sources.inputs(&loss);
        let parts = Parts::new(options, &loss, &inputs);
        let mut devices = options.devices();
        if options.default_devices() && reference_products(&loss, parts, &inputs) > LONG {
            devices.retain(|device| !device.is_reference());
            let why = "it takes long for so many rows: --device reference asks for it, --rows N takes \
                       the first N";
            say(
                "note",
                &format!("the reference is left out for {loss}: {why}"),
            );
        }
        let with_reference = devices.contains(&DeviceKind::Reference);
        for device in devices {
            jobs.push(Job {
                loss,
                device,
                dtype: options.dtype.unwrap_or(device.default_dtype()),
                weights: options.weights.unwrap_or_default(),
                parts,
                inputs,
                per_row: options.per_row(),
                with_reference,
            });
        }
    }
    if let Some(job) = jobs
        .iter()
        .find(|job| job.per_row && !job.loss.spec().family.has_row_losses())
    {
        let why = format!(
            "expected --loss rrd, info-nce or kd-kl with it, got {}",
            job.loss
        );
        return Err(Failure::refused("--per-row", why));
    }
    check_finite(options, &jobs)?;
    note_slow(&jobs);
    Ok(jobs)
}

pub(crate) fn is_of_logits(loss: &Loss) -> bool {
    matches!(loss.spec().family, Family::Logits(_))
}

/// Products that the reference forms in some ten seconds. Nobody has asked for more where nobody has
/// asked for the reference.
const LONG: f64 = 3e10;
/// The same in some minutes.
const VERY_LONG: f64 = 5e11;

/// How long the reference takes, in products of the losses over triples. The factors are ratios of
/// measured times.
fn reference_products(loss: &Loss, parts: Parts, inputs: &Inputs) -> f64 {
    let with_each = inputs.each().map(|inputs| products(loss, parts, &inputs));
    with_each.sum()
}

fn products(loss: &Loss, parts: Parts, inputs: &Inputs) -> f64 {
    let groups = parts.groups() as f64;
    let rows = inputs.batch_rows() as f64 / groups;
    let width = (inputs.student.dim + inputs.teacher.matrix().dim) as f64;
    groups
        * match loss.spec().family {
            Family::Triplet(_) => rows.powi(3) * width,
            // N⁴/8 comparisons, each as long as some dozens of products.
            Family::Pairwise(Pairwise {
                penalty: Penalty::Order { .. },
                ..
            }) => 8.0 * rows.powi(4),
            Family::Pairwise(Pairwise {
                penalty: Penalty::Ranking { .. },
                ..
            }) => 10.0 * rows.powi(2) * width,
            Family::Pairwise(_) => 2.0 * rows.powi(2) * width,
            Family::Contrastive(_) => {
                let stored = inputs.keys.map_or(0, |keys| keys.rows);
                let queue = QueueSetup::of(loss, inputs.keys);
                let keys = queue.map_or(0, |queue| queue.len(stored, inputs.student.rows));
                3.5 * rows * (keys as f64).max(rows) * width
            }
            Family::Towers(_) | Family::Sampled(_) => 3.5 * rows.powi(2) * width,
            // Exponentials and logarithms, and no products.
            Family::Logits(_) => 125.0 * rows * width,
        }
}

/// Says so where the reference takes minutes rather than seconds.
fn note_slow(jobs: &[Job]) {
    let products = |job: &Job| reference_products(&job.loss, job.parts, &job.inputs);
    let slow = |job: &&Job| job.device.is_reference() && products(job) > VERY_LONG;
    if let Some(job) = jobs.iter().find(slow) {
        let loss = job.loss;
        say(
            "note",
            &format!("the reference takes long for {loss}; --device cpu leaves it out"),
        );
    }
}

/// The losses asked for, or else all that the shapes allow.
fn select(options: &Options, sources: &Sources) -> Result<Vec<Loss>> {
    let named = options.losses();
    let all = named.is_empty();
    let mut selected = Vec::new();
    // Losses of trained towers need files of their own.
    let of_towers = |loss: &Loss| matches!(loss.spec().family, Family::Towers(_));
    let against_teacher = |loss: &Loss| !of_towers(loss) && !needs_bank(loss);
    let known = Loss::all().into_iter().filter(against_teacher);
    for loss in if all { known.collect() } else { named } {
        let loss = configure(loss, options);
        let inputs = sources.inputs(&loss);
        let parts = Parts::new(options, &loss, &inputs);
        let mut each = inputs.each();
        let wrong = each.find_map(|inputs| {
            let why = check_shapes(&loss, parts, &inputs).err()?;
            Some((advised(&loss, &inputs, &why), why))
        });
        match wrong {
            None => {
                check_rows_and_classes(&loss, &inputs)?;
                selected.push(loss);
            }
            // A parameter out of range is wrong whatever the shapes.
            Some((advice, why)) if all && !matches!(why, Error::Parameter { .. }) => {
                say("note", &format!("{loss} is left out: {advice}"));
            }
            Some((advice, _)) => return Err(Failure::refused(loss, advice)),
        }
    }
    Ok(selected)
}

/// Why `loss` is refused, with the way out where the library cannot know it.
fn advised(loss: &Loss, inputs: &Inputs, why: &Error) -> String {
    let of_teacher = match inputs.teachers() {
        1 => String::new(),
        _ => format!(" of {}", inputs.teacher.matrix().origin),
    };
    match why {
        Error::Unexpected {
            argument: "row_weights",
            ..
        } => format!("{why}; rrd, info-nce and kd-kl do"),
        Error::Unexpected {
            argument: "top_k", ..
        } => format!("{why}; kd-kl does"),
        Error::Missing {
            argument: "teacher",
            ..
        } => format!("{why}; --teacher and --teacher-keys name it"),
        Error::Dimension {
            argument: "teacher_dim",
            ..
        } => {
            let cure = match is_of_logits(loss) {
                true => "; --classes C compares the first C of both",
                false => "",
            };
            format!("{why}{of_teacher}{cure}")
        }
        _ => why.to_string(),
    }
}

/// Refuses weights of other rows, and lists of classes that the loss does not compare.
fn check_rows_and_classes(loss: &Loss, inputs: &Inputs) -> Result<()> {
    let student = inputs.student;
    if let Some(weights) = inputs.row_weights {
        check_rows(student, weights)?;
    }
    match inputs.teacher {
        Teacher::Rows(_) => Ok(()),
        Teacher::TopK(top) => {
            let classes = compared(loss, student);
            top.check_below(classes as f64, &classes.to_string())
        }
    }
}

/// How many columns of the student a loss reads.
pub(crate) fn compared(loss: &Loss, student: &Matrix) -> usize {
    match loss.parameter("classes") {
        Some(ParameterValue::Count(classes)) if classes > 0 => classes,
        _ => student.dim,
    }
}

/// `loss` with those of the parameters given that it has.
fn configure(loss: Loss, options: &Options) -> Loss {
    let given = options.parameters();
    given.iter().fold(loss, |loss, &(_, name, value)| {
        let names = names_in(&loss, &name).iter();
        names.fold(loss, |loss, name| {
            loss.with_parameter(name, value).unwrap_or(loss)
        })
    })
}

/// The parameters that an option for `name` sets in a loss: of logits, a temperature is that of
/// student and teacher.
fn names_in<'a>(loss: &Loss, name: &'a &'static str) -> &'a [&'static str] {
    match loss.spec().family {
        Family::Logits(_) if *name == "temperature" => {
            &["student_temperature", "teacher_temperature"]
        }
        _ => std::slice::from_ref(name),
    }
}

/// The queue that a loss is evaluated with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QueueSetup {
    /// The most keys it holds: as many as its file has.
    pub(crate) capacity: usize,
    /// Whether keys are stored normalised, as the loss takes its rows.
    pub(crate) normalize: bool,
    pub(crate) enqueue: Enqueue,
}

impl QueueSetup {
    /// The queue that `loss` is evaluated with. A loss that can do without one has a queue if the
    /// keys were given.
    pub(crate) fn of(loss: &Loss, keys: Option<&Matrix>) -> Option<Self> {
        let given = keys.map(|keys| keys.rows);
        let spec = loss.spec();
        let capacity = match spec.queue {
            QueueUse::Never => return None,
            QueueUse::Optional => given?,
            QueueUse::Required => given.unwrap_or(Rrd::QUEUE_CAPACITY),
        };
        Some(QueueSetup {
            capacity,
            normalize: spec.normalize,
            enqueue: spec.enqueue,
        })
    }

    /// The keys in the queue when the loss is computed.
    fn len(&self, stored: usize, batch: usize) -> usize {
        match self.enqueue {
            Enqueue::Before => self.capacity.min(stored.saturating_add(batch)),
            Enqueue::After | Enqueue::Never => stored,
        }
    }
}

/// The library's checks of parameters and shapes, made before anything is computed.
fn check_shapes(loss: &Loss, parts: Parts, inputs: &Inputs) -> relata::Result<()> {
    let (student, keys) = (inputs.student, inputs.keys);
    let mut shapes = inputs.shapes();
    if let Some(queue) = QueueSetup::of(loss, keys) {
        let stored = keys.map_or(0, |keys| keys.rows);
        shapes = shapes.with_queue(queue.len(stored, student.rows));
    }
    parts.of(Problem::new(*loss, shapes)?)?;
    match keys {
        Some(keys) if keys.dim != student.dim => Err(Error::Dimension {
            argument: "queue_dim",
            expected: student.dim,
            got: keys.dim,
        }),
        _ => Ok(()),
    }
}

/// Says which of the options given none of `losses` has a use for.
fn note_unused(options: &Options, sources: &Sources, losses: &[Loss]) {
    let note = |option: &str, is_used: &dyn Fn(&Loss) -> bool| {
        if !losses.iter().any(is_used) {
            let text = format!("{option} is not used by any loss evaluated");
            say("note", &text);
        }
    };
    let with_queue = |loss: &Loss| QueueSetup::of(loss, sources.inputs(loss).keys).is_some();
    for (option, name, _) in options.parameters() {
        note(option, &|loss| {
            let mut names = names_in(loss, &name).iter();
            let known = names.any(|name| loss.parameter(name).is_some());
            known
                && match name {
                    // Without a queue no batch enters one.
                    "enqueue" => with_queue(loss),
                    // Without a list no class is left out.
                    "tail" => options.teacher_ids.is_some(),
                    // Without a teacher clip has no soft term.
                    "soft_weight" | "teacher_temperature" => sources.inputs(loss).has_teacher(),
                    _ => true,
                }
        });
    }
    if options.queue.is_some() {
        note("--queue", &|loss| loss.spec().queue != QueueUse::Never);
    }
    if options.weights.is_some() {
        note("--weights", &|loss| {
            matches!(loss.spec().family, Family::Contrastive(_))
        });
    }
}
