//! What to evaluate where: every check that needs no computing.

use std::collections::BTreeSet;

use relata::{DType, Element, Enqueue, Error, Loss, Problem, Rrd, Shapes, WeightPrecision};

use crate::devices::DeviceKind;
use crate::failure::{Failure, Result, say};
use crate::inputs::{Inputs, Matrix, Sources};
use crate::options::Options;

/// One loss on one device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Job<'a> {
    pub(crate) loss: Loss,
    pub(crate) device: DeviceKind,
    /// What the inputs are rounded to.
    pub(crate) dtype: DType,
    pub(crate) weights: WeightPrecision,
    pub(crate) inputs: Inputs<'a>,
}

/// Loss by loss, the devices; refuses what cannot be evaluated and warns of what is odd.
pub(crate) fn plan<'a>(options: &Options, sources: &'a Sources) -> Result<Vec<Job<'a>>> {
    let losses = select(options, sources)?;
    note_unused(options, sources, &losses);
    let mut jobs = Vec::new();
    for loss in losses {
        for device in options.devices() {
            jobs.push(Job {
                loss,
                device,
                dtype: options.dtype.unwrap_or(device.default_dtype()),
                weights: options.weights.unwrap_or_default(),
                inputs: sources.inputs(&loss),
            });
        }
    }
    check_finite(options, &jobs)?;
    note_slow(&jobs);
    Ok(jobs)
}

/// Says so where the reference, which forms every triple of rows, takes minutes rather than seconds.
fn note_slow(jobs: &[Job]) {
    const MANY: f64 = 5e11;
    let products = |job: &Job| {
        let rows = job.inputs.student.rows as f64;
        rows.powi(3) * (job.inputs.student.dim as f64 + job.inputs.teacher.dim as f64)
    };
    let of_triples = |job: &Job| matches!(job.loss, Loss::RkdAngle(_) | Loss::Rkd(_));
    let slow = |job: &&Job| job.device.is_reference() && of_triples(job) && products(job) > MANY;
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
        match check_shapes(&loss, &sources.inputs(&loss)) {
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

/// `loss` with the parameters that were given.
fn configure(mut loss: Loss, options: &Options) -> Loss {
    fn set<T: Copy>(parameter: &mut T, given: Option<T>) {
        *parameter = given.unwrap_or(*parameter);
    }
    let normalize = options.normalization();
    match &mut loss {
        Loss::RkdDistance(loss) => {
            set(&mut loss.delta, options.delta);
            set(&mut loss.normalize, normalize);
        }
        Loss::RkdAngle(loss) => {
            set(&mut loss.delta, options.delta);
            set(&mut loss.normalize, normalize);
        }
        Loss::Rkd(loss) => {
            set(&mut loss.delta, options.delta);
            set(&mut loss.distance_weight, options.distance_weight);
            set(&mut loss.angle_weight, options.angle_weight);
            set(&mut loss.normalize, normalize);
        }
        Loss::Rrd(loss) => {
            set(&mut loss.student_temperature, options.student_temperature);
            set(&mut loss.teacher_temperature, options.teacher_temperature);
            set(&mut loss.enqueue, options.enqueue);
            set(&mut loss.normalize, normalize);
        }
        Loss::InfoNce(loss) => {
            set(&mut loss.temperature, options.temperature);
            set(&mut loss.enqueue, options.enqueue);
            set(&mut loss.normalize, normalize);
        }
        Loss::KdKl(loss) => set(&mut loss.temperature, options.temperature),
        _ => {}
    }
    loss
}

/// The queue of a loss that has one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Beside {
    /// The most keys it holds: as many as its file has.
    pub(crate) capacity: usize,
    /// Whether keys are stored normalised, to go with rows that are.
    pub(crate) normalize: bool,
    pub(crate) enqueue: Enqueue,
}

impl Beside {
    /// The queue `loss` is evaluated beside. RRD always has one; InfoNCE if its keys were given.
    pub(crate) fn of(loss: &Loss, keys: Option<&Matrix>) -> Option<Self> {
        let capacity = keys.map(|keys| keys.rows);
        let (capacity, normalize, enqueue) = match loss {
            Loss::Rrd(loss) => {
                let capacity = capacity.unwrap_or(Rrd::QUEUE_CAPACITY);
                (capacity, loss.normalize, loss.enqueue)
            }
            Loss::InfoNce(loss) => (capacity?, loss.normalize, loss.enqueue),
            _ => return None,
        };
        Some(Beside {
            capacity,
            normalize,
            enqueue,
        })
    }

    /// The keys in it when the loss looks.
    fn len(&self, stored: usize, batch: usize) -> usize {
        match self.enqueue {
            Enqueue::Before => self.capacity.min(stored.saturating_add(batch)),
            Enqueue::After | Enqueue::Never => stored,
        }
    }
}

/// The library's checks of parameters and shapes, made before anything is computed.
fn check_shapes(loss: &Loss, inputs: &Inputs) -> relata::Result<()> {
    let (student, teacher, keys) = (inputs.student, inputs.teacher, inputs.keys);
    let mut shapes = Shapes::new(student.rows, student.dim, teacher.dim);
    if let Some(queue) = Beside::of(loss, keys) {
        let stored = keys.map_or(0, |keys| keys.rows);
        shapes = shapes.with_queue(queue.len(stored, teacher.rows));
    }
    Problem::new(*loss, shapes)?;
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
    let rkd = |loss: &Loss| matches!(loss, Loss::Rkd(_));
    let rrd = |loss: &Loss| matches!(loss, Loss::Rrd(_));
    let info_nce = |loss: &Loss| matches!(loss, Loss::InfoNce(_));
    let kd_kl = |loss: &Loss| matches!(loss, Loss::KdKl(_));
    let huber = |loss: &Loss| rkd(loss) || matches!(loss, Loss::RkdDistance(_) | Loss::RkdAngle(_));
    let queued = |loss: &Loss| Beside::of(loss, sources.inputs(loss).keys).is_some();
    let note = |option: &str, given: bool, uses: &dyn Fn(&Loss) -> bool| {
        if given && !losses.iter().any(uses) {
            say(
                "note",
                &format!("{option} is not used by any loss evaluated"),
            );
        }
    };
    let normalization = options.normalization();
    note("--normalize", normalization == Some(true), &|loss| {
        !kd_kl(loss)
    });
    note("--no-normalize", normalization == Some(false), &|loss| {
        !kd_kl(loss)
    });
    note("--delta", options.delta.is_some(), &huber);
    note("--distance-weight", options.distance_weight.is_some(), &rkd);
    note("--angle-weight", options.angle_weight.is_some(), &rkd);
    note("--queue", options.queue.is_some(), &|loss| {
        rrd(loss) || info_nce(loss)
    });
    note("--enqueue", options.enqueue.is_some(), &queued);
    note("--weights", options.weights.is_some(), &|loss| {
        rrd(loss) || info_nce(loss)
    });
    note(
        "--student-temperature",
        options.student_temperature.is_some(),
        &rrd,
    );
    note(
        "--teacher-temperature",
        options.teacher_temperature.is_some(),
        &rrd,
    );
    let given = options.temperature.is_some();
    note("--temperature", given, &|loss| {
        info_nce(loss) || kd_kl(loss)
    });
}

/// NaN and infinities: a queue never holds them; student and teacher may, which makes the loss NaN and
/// is worth a warning, unless they are to be refused.
fn check_finite(options: &Options, jobs: &[Job]) -> Result<()> {
    let mut warnings = BTreeSet::new();
    for job in jobs {
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
                matrix.and_then(|matrix| Some((matrix, not_finite(matrix, job.dtype)?)))
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

/// Where `matrix` rounded to `dtype` first holds a NaN or an infinity, in words.
fn not_finite(matrix: &Matrix, dtype: DType) -> Option<String> {
    let rounded = |value: &f64| round(*value, dtype);
    let at = matrix
        .values
        .iter()
        .position(|value| !rounded(value).is_finite())?;
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
