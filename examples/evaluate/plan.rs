//! What to evaluate where: every check that needs no computing.

use std::collections::BTreeSet;

use relata::{
    DType, Element, Enqueue, Error, Family, Loss, Pairwise, Penalty, Problem, QueueUse, Rrd,
    Shapes, WeightPrecision,
};

use crate::devices::DeviceKind;
use crate::failure::{Failure, Result, say};
use crate::files::Matrix;
use crate::inputs::{Inputs, Sources};
use crate::options::Options;

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
            Family::Pairwise(_) | Family::Triplet(_) | Family::Contrastive(_) => {
                inputs.student.groups
            }
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
        for device in options.devices() {
            jobs.push(Job {
                loss,
                device,
                dtype: options.dtype.unwrap_or(device.default_dtype()),
                weights: options.weights.unwrap_or_default(),
                parts: Parts::new(options, &loss, &inputs),
                inputs,
            });
        }
    }
    check_finite(options, &jobs)?;
    note_slow(&jobs);
    Ok(jobs)
}

/// Says so where the reference, which forms every triple of rows or every pair of pairs, takes
/// minutes rather than seconds.
fn note_slow(jobs: &[Job]) {
    const MANY: f64 = 5e11;
    let products = |job: &Job| {
        let groups = job.parts.groups() as f64;
        let rows = job.inputs.student.rows as f64 / groups;
        groups
            * match job.loss.spec().family {
                Family::Triplet(_) => {
                    rows.powi(3) * (job.inputs.student.dim as f64 + job.inputs.teacher.dim as f64)
                }
                // N⁴/8 comparisons, each as long as some dozens of products.
                Family::Pairwise(Pairwise {
                    penalty: Penalty::Order { .. },
                    ..
                }) => 8.0 * rows.powi(4),
                Family::Pairwise(_) | Family::Contrastive(_) | Family::Logits(_) => 0.0,
            }
    };
    let slow = |job: &&Job| job.device.is_reference() && products(job) > MANY;
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
    for loss in if all { Loss::all() } else { named } {
        let loss = configure(loss, options);
        let inputs = sources.inputs(&loss);
        match check_shapes(&loss, Parts::new(options, &loss, &inputs), &inputs) {
            Ok(()) => selected.push(loss),
            // A parameter out of range is wrong whatever the shapes.
            Err(why) if all && !matches!(why, Error::Parameter { .. }) => {
                say("note", &format!("{loss} is left out: {why}"));
            }
            Err(why) => return Err(Failure::refused(loss, why)),
        }
    }
    Ok(selected)
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
    let (student, teacher, keys) = (inputs.student, inputs.teacher, inputs.keys);
    let mut shapes = Shapes::new(student.rows, student.dim, teacher.dim);
    if let Some(queue) = QueueSetup::of(loss, keys) {
        let stored = keys.map_or(0, |keys| keys.rows);
        shapes = shapes.with_queue(queue.len(stored, teacher.rows));
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
            // Without a queue no batch enters one.
            known && (name != "enqueue" || with_queue(loss))
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

/// NaN and infinities: a queue never holds them; student and teacher may, which makes the loss NaN
/// and is worth a warning, unless they are to be refused.
fn check_finite(options: &Options, jobs: &[Job]) -> Result<()> {
    let mut warnings = BTreeSet::new();
    for job in jobs {
        // Logits of −∞ mask classes. The loss itself knows which of them are wrong.
        let may_mask = matches!(job.loss.spec().family, Family::Logits(_));
        let Inputs {
            student,
            teacher,
            keys,
        } = job.inputs;
        for (matrix, refused) in [
            (Some(student), options.checked),
            (Some(teacher), options.checked),
            (keys, true),
        ] {
            let Some((matrix, why)) =
                matrix.and_then(|matrix| Some((matrix, not_finite(matrix, job.dtype, may_mask)?)))
            else {
                continue;
            };
            let why = format!("{}: expected finite values, got {why}", matrix.origin);
            if refused {
                return Err(Failure::Refused(why));
            }
            warnings.insert(format!("{why}; the loss is NaN"));
        }
    }
    for warning in warnings {
        say("warning", &warning);
    }
    Ok(())
}

/// Where `matrix` rounded to `dtype` first holds a NaN or an infinity, in words. Not −∞ where it
/// `may_mask`.
fn not_finite(matrix: &Matrix, dtype: DType, may_mask: bool) -> Option<String> {
    let rounded = |value: &f64| round(*value, dtype);
    let at = matrix.values.iter().position(|value| {
        let value = rounded(value);
        !(value.is_finite() || may_mask && value == f64::NEG_INFINITY)
    })?;
    let place = format!("at row {}, column {}", at / matrix.dim, at % matrix.dim);
    let value = matrix.values[at];
    Some(if value.is_finite() {
        format!("{value} {place}, which is {} as {dtype}", rounded(&value))
    } else {
        format!("{value} {place}")
    })
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
