//! Evaluating and timing.

use std::rc::Rc;
use std::time::{Duration, Instant};

use half::{bf16, f16};
use relata::{
    Batch, Cpu, DType, Device, Element, Enqueue, Error, Loss, Problem, Queue, Reference, Rows,
    TopK, Value, WeightPrecision,
};

use crate::devices::DeviceKind;
use crate::failure::{Failure, Result};
use crate::files::Matrix;
use crate::finite::{real, round};
use crate::inputs::Inputs;
use crate::measurement::Measurement;
use crate::output::spinner;
use crate::plan::{Job, Parts, QueueSetup};
use crate::teacher::Teacher;

/// Evaluates jobs, and the reference no more than once on the same inputs.
pub(crate) struct Bench {
    checked: bool,
    /// How many jobs there are, each a row, and how many have been started: the progress.
    jobs: usize,
    started: usize,
    /// By loss and the type its inputs are rounded to.
    references: Vec<(Loss, DType, Rc<Measurement>)>,
}

impl Bench {
    pub(crate) fn new(checked: bool, jobs: usize) -> Self {
        Bench {
            checked,
            jobs,
            started: 0,
            references: Vec::new(),
        }
    }

    pub(crate) fn measure(&mut self, job: &Job) -> Result<Rc<Measurement>> {
        self.started += 1;
        let row = format!("row {} of {}", self.started, self.jobs);
        if job.device.is_reference() {
            self.reference(job, &row)
        } else {
            self.evaluate(job, &row).map(Rc::new)
        }
    }

    /// The reference on the inputs of the job that was measured last, rounded to the same type.
    pub(crate) fn compared_with(&mut self, job: &Job) -> Result<Rc<Measurement>> {
        let row = format!("for row {} of {}", self.started, self.jobs);
        self.reference(job, &row)
    }

    fn reference(&mut self, job: &Job, row: &str) -> Result<Rc<Measurement>> {
        let job = Job {
            device: DeviceKind::Reference,
            dtype: widest_same(job),
            ..*job
        };
        let mut known = self.references.iter();
        if let Some((.., known)) =
            known.find(|(loss, dtype, _)| *loss == job.loss && *dtype == job.dtype)
        {
            return Ok(Rc::clone(known));
        }
        let measured = Rc::new(self.evaluate(&job, row)?);
        self.references
            .push((job.loss, job.dtype, Rc::clone(&measured)));
        Ok(measured)
    }

    /// The mean over the teachers.
    fn evaluate(&self, job: &Job, row: &str) -> Result<Measurement> {
        let teachers = job.inputs.teachers();
        if teachers == 1 {
            return self.evaluate_one(job, row);
        }
        let row = |nth: usize| format!("teacher {nth} of {teachers}, {row}");
        let mut sum = self.evaluate_one(job, &row(1))?;
        for (inputs, nth) in job.inputs.each().zip(1..).skip(1) {
            sum.add(&self.evaluate_one(&Job { inputs, ..*job }, &row(nth))?);
        }
        Ok(sum.mean_of(teachers))
    }

    fn evaluate_one(&self, job: &Job, row: &str) -> Result<Measurement> {
        let (loss, device, dtype) = (job.loss, job.device.name(), job.dtype);
        let _spinner = spinner(format!("{loss}, {device} ({dtype}), {row}"));
        let measured = match job.device {
            DeviceKind::Reference => in_any_dtype(&Reference, job, self.checked),
            DeviceKind::Cpu => in_any_dtype(&Cpu, job, self.checked),
            #[cfg(feature = "emulator")]
            DeviceKind::Emulator => in_f32_or_half(&relata::Emulator::new(), job, self.checked),
            #[cfg(feature = "cuda")]
            DeviceKind::Cuda => match crate::devices::cuda() {
                Ok(cuda) => in_f32_or_half(cuda, job, self.checked),
                Err(why) => Err(why.clone()),
            },
        };
        measured.map_err(|error| Failure::refused(job.loss, error))
    }
}

fn in_any_dtype<D>(device: &D, job: &Job, checked: bool) -> relata::Result<Measurement>
where
    D: Device<f64> + Device<f32> + Device<f16> + Device<bf16>,
{
    match job.dtype {
        DType::F64 => Rounded::<f64>::new(job)?.evaluate_on(device, checked),
        _ => in_f32_or_half(device, job, checked),
    }
}

/// As GPUs do. f64 has been refused before it comes here.
fn in_f32_or_half<D>(device: &D, job: &Job, checked: bool) -> relata::Result<Measurement>
where
    D: Device<f32> + Device<f16> + Device<bf16>,
{
    match job.dtype {
        DType::F16 => Rounded::<f16>::new(job)?.evaluate_on(device, checked),
        DType::BF16 => Rounded::<bf16>::new(job)?.evaluate_on(device, checked),
        _ => Rounded::<f32>::new(job)?.evaluate_on(device, checked),
    }
}

/// f64 where rounding to the job's type changes nothing that the reference sees, else the job's
/// type. With a queue rounding may always show: keys are normalised in the type of the queue.
fn widest_same(job: &Job) -> DType {
    let exact = |matrix: &Matrix, dtype| matrix.values.iter().all(|&x| round(x, dtype) == x);
    let inputs = &job.inputs;
    let of_teacher = |inputs: Inputs| match inputs.teacher {
        Teacher::Rows(rows) => exact(rows, job.dtype),
        Teacher::TopK(top) => exact(&top.log_probs, real(job.dtype)),
    };
    let of_weights = |weights| exact(weights, real(job.dtype));
    let of_second = |matrix| exact(matrix, job.dtype);
    if QueueSetup::of(&job.loss, inputs.keys).is_none()
        && exact(inputs.student, job.dtype)
        && inputs.each().all(of_teacher)
        && inputs.second_student().is_none_or(of_second)
        && inputs
            .each()
            .all(|inputs| inputs.second_teacher().is_none_or(of_second))
        && inputs.row_weights.is_none_or(of_weights)
    {
        DType::F64
    } else {
        job.dtype
    }
}

/// A job's inputs in the type it asks for.
struct Rounded<'a, T: Element> {
    loss: Loss,
    parts: Parts<'a>,
    weights: WeightPrecision,
    per_row: bool,
    student: Vec<T>,
    student_shape: [usize; 2],
    /// Empty where the teacher is a list.
    teacher: Vec<T>,
    teacher_shape: [usize; 2],
    /// The logarithms of a list, and its classes.
    log_probs: Vec<T::Real>,
    classes: Option<&'a [u32]>,
    row_weights: Option<Vec<T::Real>>,
    /// Of two towers, twice those of the pairs.
    labels: Option<Vec<u32>>,
    /// As the loss is to see it, so that every repetition sees the same.
    queue: Option<Queue<T::Real>>,
    /// The teacher is not finite, and was to be enqueued before the loss: no queue takes it.
    keys_refused: bool,
}

impl<'a, T: Element> Rounded<'a, T> {
    fn new(job: &Job<'a>) -> relata::Result<Self> {
        let inputs = &job.inputs;
        let (student, teacher) = (inputs.student, inputs.teacher.matrix());
        let rows = inputs.batch_rows();
        let (teacher_rows, log_probs, classes) = match inputs.teacher {
            Teacher::Rows(rows) => (both_towers(rows, inputs.second_teacher()), Vec::new(), None),
            Teacher::TopK(top) => (Vec::new(), elements(&top.log_probs), Some(&top.classes[..])),
        };
        let mut rounded = Rounded {
            loss: job.loss,
            parts: job.parts,
            weights: job.weights,
            per_row: job.per_row,
            student: both_towers(student, inputs.second_student()),
            student_shape: [rows, student.dim],
            teacher: teacher_rows,
            teacher_shape: [rows, teacher.dim],
            log_probs,
            classes,
            row_weights: inputs.row_weights.map(elements),
            labels: inputs
                .labels
                .map(|labels| labels.ids.repeat(rows / student.rows)),
            queue: None,
            keys_refused: false,
        };
        if let Some(setup) = QueueSetup::of(&job.loss, job.inputs.keys) {
            let mut queue =
                Queue::new(setup.capacity, teacher.dim)?.with_normalize(setup.normalize);
            if let Some(keys) = job.inputs.keys {
                let shape = [keys.rows, keys.dim];
                queue.enqueue(Rows::<T>::new(&elements::<T>(keys), shape)?)?;
            }
            if setup.enqueue == Enqueue::Before {
                match queue.enqueue(rounded.teacher()?) {
                    Err(Error::NotFinite { .. }) => rounded.keys_refused = true,
                    enqueued => enqueued?,
                }
            }
            rounded.queue = Some(queue);
        }
        Ok(rounded)
    }

    fn student(&self) -> relata::Result<Rows<'_, T>> {
        Rows::new(&self.student, self.student_shape)
    }

    fn teacher(&self) -> relata::Result<Rows<'_, T>> {
        Rows::new(&self.teacher, self.teacher_shape)
    }

    fn batch(&self) -> relata::Result<Batch<'_, T>> {
        let mut batch = match self.classes {
            None => Batch::new(self.student()?, self.teacher()?),
            Some(classes) => {
                let top_k = TopK::new(classes, &self.log_probs, self.teacher_shape)?;
                Batch::of_top_k(self.student()?, top_k)
            }
        };
        batch.queue = self.queue.as_ref();
        batch.row_weights = self.row_weights.as_deref();
        batch.labels = self.labels.as_deref();
        Ok(batch)
    }

    /// So much for each row, if the losses of rows were asked for.
    fn row_losses(&self, each: f64) -> Vec<f64> {
        vec![
            each;
            if self.per_row {
                self.student_shape[0]
            } else {
                0
            }
        ]
    }

    fn evaluate_on<D: Device<T>>(&self, device: &D, checked: bool) -> relata::Result<Measurement> {
        if self.keys_refused {
            return self.evaluate_refused(device);
        }
        let batch = self.batch()?;
        let problem = self
            .parts
            .of(Problem::new(self.loss, batch.shapes())?)?
            .with_checked(checked)
            .with_weight_precision(self.weights);
        let mut gradient = vec![D::Gradient::default(); self.student.len()];
        let mut row_losses = self.row_losses(0.0);
        let (value, seconds) = timed(|| {
            if self.per_row {
                problem.evaluate_rows_into(device, batch, &mut gradient, &mut row_losses)
            } else {
                problem.evaluate_into(device, batch, &mut gradient)
            }
        })?;
        Ok(Measurement {
            value: value.loss,
            terms: value.terms.iter().collect(),
            gradient: gradient.iter().map(|g| g.to_f64()).collect(),
            row_losses,
            seconds,
        })
    }

    /// What a trainer gets whose teacher is not finite: NaN, from a queue that stays as it is.
    fn evaluate_refused<D: Device<T>>(&self, device: &D) -> relata::Result<Measurement> {
        let (student, teacher) = (self.student()?, self.teacher()?);
        let start = Instant::now();
        let evaluation = match &self.queue {
            Some(queue) => {
                let mut queue = queue.clone();
                self.loss
                    .evaluate_with_queue(device, student, teacher, &mut queue)?
            }
            None => self.loss.evaluate(device, student, teacher)?,
        };
        Ok(Measurement {
            value: evaluation.loss,
            terms: evaluation.terms.iter().collect(),
            gradient: evaluation.gradient.iter().map(|g| g.to_f64()).collect(),
            row_losses: self.row_losses(f64::NAN),
            seconds: start.elapsed().as_secs_f64(),
        })
    }
}

fn elements<T: Element>(matrix: &Matrix) -> Vec<T> {
    matrix.values.iter().map(|&x| T::from_f64(x)).collect()
}

/// The rows of the first tower, and then those of the second, as the library takes them.
fn both_towers<T: Element>(first: &Matrix, second: Option<&Matrix>) -> Vec<T> {
    let mut rows = elements(first);
    rows.extend(second.into_iter().flat_map(elements::<T>));
    rows
}

/// The value, and the median of repeated evaluations after a warm-up: at least 3 and at most 100 of
/// them, for about half a second. An evaluation of more than a second is not repeated: there the
/// warm-up, whose cold caches no longer matter, is the measurement.
fn timed(mut evaluate: impl FnMut() -> relata::Result<Value>) -> relata::Result<(Value, f64)> {
    const LONG: Duration = Duration::from_secs(1);
    const ENOUGH: Duration = Duration::from_millis(500);
    let start = Instant::now();
    let value = evaluate()?;
    let warm_up = start.elapsed();
    if warm_up > LONG {
        return Ok((value, warm_up.as_secs_f64()));
    }
    let mut seconds = Vec::new();
    let start = Instant::now();
    while seconds.len() < 3 || (seconds.len() < 100 && start.elapsed() < ENOUGH) {
        let start = Instant::now();
        evaluate()?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    Ok((value, median(&mut seconds)))
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    if values.len() % 2 == 1 {
        values[half]
    } else {
        (values[half - 1] + values[half]) / 2.0
    }
}
