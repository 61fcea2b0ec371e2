//! Compares a device with the reference and the reference with itself, so that a user can verify
//! their own machine in one call.

use std::fmt;

use crate::bank::{Bank, SampledKeys};
use crate::batch::Batch;
use crate::device::Device;
use crate::element::{DType, Element, Real};
use crate::error::Result;
use crate::loss::{Family, Pairwise, Penalty, Sampled, Towers};
use crate::problem::Problem;
use crate::queue::Queue;
use crate::reference::Reference;
use crate::rows::Rows;
use crate::top_k::TopK;

/// Directions along which the gradient is compared with differences of the loss.
const DIRECTIONS: u64 = 4;
/// The shortest gradient that differences can be compared with, in units of a gradient far from
/// convergence.
const LEAST_GRADIENT: f64 = 1e-5;

/// The step of the differences, relative to a change that changes the loss by much.
const STEP: f64 = 1e-5;
/// The same for a loss that is linear but for its kinks: the shorter the step, the fewer are within.
const STEP_BETWEEN_KINKS: f64 = 5e-7;
/// The same for a softmax of scores that are exponentials. Most of them are far below 1, and a change
/// of the student changes the loss by as little.
const STEP_OF_SCORES: f64 = 1e-4;

/// How far a device's result is from the definition.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Report {
    /// The device's loss.
    pub loss: f64,
    /// The reference's loss, f64, on the same inputs.
    pub reference_loss: f64,
    /// |loss − reference| / |reference|, or the difference itself where the reference is below 1e-6.
    pub loss_error: f64,
    /// ‖gradient − reference‖ / ‖reference‖, or the difference itself where the reference is 0.
    pub gradient_error: f64,
    /// The device's gradient compared with central differences of the *reference's* loss along a
    /// few directions: the largest deviation. Its unit is ‖gradient‖, or, for a very short
    /// gradient, a hundred-thousandth of the gradient's length far from convergence.
    pub difference_error: f64,
    /// The most that the loss's and the gradient's errors may be for [`passed`](Self::passed).
    pub tolerance: f64,
    /// The most that the difference's error may be. Differences are good to about 1e-6.
    pub difference_tolerance: f64,
}

impl Report {
    /// Whether all errors are within their tolerances. NaN is not.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.loss_error <= self.tolerance
            && self.gradient_error <= self.tolerance
            && self.difference_error <= self.difference_tolerance
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: loss {:.6e}, off by {:.1e}; gradient off by {:.1e} (allowed {:.0e}), from differences \
             by {:.1e} (allowed {:.0e})",
            if self.passed() { "passed" } else { "FAILED" },
            self.loss,
            self.loss_error,
            self.gradient_error,
            self.tolerance,
            self.difference_error,
            self.difference_tolerance,
        )
    }
}

/// Evaluates `problem` on `device` and on the [`Reference`], and takes central differences of the
/// reference's loss. The reference is slow (O(N³D) for the angle loss): a batch of 64 checks as
/// much as one of 1024.
///
/// ```
/// # fn main() -> relata::Result<()> {
/// use relata::{Batch, Cpu, RkdDistance, Rows, check};
/// let student: Vec<f32> = (0..40).map(|i| (i as f32 * 0.7).sin()).collect();
/// let teacher: Vec<f32> = (0..60).map(|i| (i as f32 * 1.3).cos()).collect();
/// let batch = Batch::new(Rows::new(&student, [10, 4])?, Rows::new(&teacher, [10, 6])?);
/// let report = check(&RkdDistance::default().problem(batch.shapes())?, &Cpu, batch)?;
/// assert!(report.passed(), "{report}");
/// # Ok(()) }
/// ```
///
/// # Errors
/// As [`Problem::evaluate`]. A result that is merely wrong is no error: see [`Report::passed`].
pub fn check<T: Element, D: Device<T>>(
    problem: &Problem,
    device: &D,
    batch: Batch<'_, T>,
) -> Result<Report> {
    let evaluation = problem.evaluate(device, batch)?;
    let reference = problem.evaluate(&Reference, batch)?;
    let gradient: Vec<f64> = evaluation.gradient.iter().map(|g| g.to_f64()).collect();

    let difference: Vec<f64> = gradient
        .iter()
        .zip(&reference.gradient)
        .map(|(a, b)| a - b)
        .collect();
    let reference_norm = norm(&reference.gradient);
    let (tolerance, difference_tolerance) = tolerances(D::Gradient::DTYPE);
    let loss_unit = reference.loss.abs();
    Ok(Report {
        loss: evaluation.loss,
        reference_loss: reference.loss,
        loss_error: (evaluation.loss - reference.loss).abs()
            / if loss_unit < 1e-6 { 1.0 } else { loss_unit },
        gradient_error: norm(&difference) / nonzero(reference_norm),
        difference_error: difference_error(problem, batch, &gradient)?,
        tolerance,
        difference_tolerance,
    })
}

/// Sums of f32 products over a batch agree to about 1e-6; f64 keeps 1e-9 wherever rows are not
/// closer to each other than a millionth of the longest distance.
fn tolerances(gradient: DType) -> (f64, f64) {
    match gradient {
        DType::F64 => (1e-9, 1e-5),
        DType::F32 | DType::F16 | DType::BF16 => (1e-5, 3e-5),
    }
}

/// The largest |⟨gradient, v⟩ − (L(x + hv) − L(x − hv))/2h| / ‖gradient‖ over a few unit directions
/// v.
fn difference_error<T: Element>(
    problem: &Problem,
    batch: Batch<'_, T>,
    gradient: &[f64],
) -> Result<f64> {
    let (x, y) = (
        widen(batch.student.as_slice()),
        widen(batch.teacher.as_slice()),
    );
    let queue = batch.queue.map(widen_queue).transpose()?;
    let keys = match batch.keys {
        None => None,
        Some(keys) => Some((
            widen_bank(keys.bank)?,
            keys.teacher_bank.map(widen_bank).transpose()?,
            keys.indices,
        )),
    };
    let shapes = problem.shapes();
    let weights = batch.row_weights.map(widen);
    let logarithms = batch.top_k.map(|top_k| widen(top_k.log_probabilities()));
    let loss_at = |x: &[f64]| -> Result<f64> {
        let mut wide = Batch::new(
            Rows::new(x, [shapes.rows, shapes.student_dim])?,
            Rows::new(&y, [shapes.rows, shapes.teacher_dim])?,
        );
        wide.queue = queue.as_ref();
        wide.labels = batch.labels;
        wide.keys = keys
            .as_ref()
            .map(|(bank, teacher_bank, indices)| SampledKeys {
                bank,
                teacher_bank: teacher_bank.as_ref(),
                indices,
            });
        wide.row_weights = weights.as_deref();
        if let (Some(top_k), Some(logarithms)) = (batch.top_k, &logarithms) {
            let shape = [shapes.rows, top_k.k()];
            wide.top_k = Some(TopK::new(top_k.classes(), logarithms, shape)?);
        }
        Ok(problem.evaluate(&Reference, wide)?.loss)
    };

    let unit = Unit::of(problem, batch, &x);
    let least = LEAST_GRADIENT * problem.upstream().abs() * unit.loss / unit.student;
    let gradient_unit = nonzero(norm(gradient).max(least));
    let step = unit.step * unit.student;
    let mut worst = 0.0f64;
    for seed in 0..DIRECTIONS {
        let direction = unit_direction(&x, shapes.student_dim, unit.directed, seed);
        let at =
            |t: f64| -> Vec<f64> { x.iter().zip(&direction).map(|(x, v)| x + t * v).collect() };
        let slope = (loss_at(&at(step))? - loss_at(&at(-step))?) / (2.0 * step);
        let along: f64 = gradient.iter().zip(&direction).map(|(g, v)| g * v).sum();
        let error = (along - problem.upstream() * slope).abs() / gradient_unit;
        // `max` would pass over a NaN.
        worst = if error.is_nan() {
            error
        } else {
            worst.max(error)
        };
    }
    Ok(worst)
}

/// The units in which changes of the student and of the loss are large or small.
struct Unit {
    /// The length of a change of the student that changes the loss by much.
    student: f64,
    /// The loss of a student that has learned nothing yet, to an order of magnitude.
    loss: f64,
    /// Whether the loss depends on the rows' directions alone. A zero row has no direction.
    directed: bool,
    /// The step of the differences, in units of `student`.
    step: f64,
}

impl Unit {
    fn of<T: Element>(problem: &Problem, batch: Batch<'_, T>, x: &[f64]) -> Self {
        let (rows, dim) = (batch.student.len() as f64, batch.student.dim());
        let longest_key = || {
            let teacher = batch.teacher.as_slice().iter().map(|y| y.to_f64());
            let queue = batch.queue.map_or(&[][..], Queue::keys);
            let keys: Vec<f64> = teacher.chain(queue.iter().map(|k| k.to_f64())).collect();
            keys.chunks_exact(dim).map(norm).fold(0.0, f64::max)
        };
        // Changes that are lost when they are added to the student say nothing.
        let larger = |unit: f64| unit.max(1e-4 * norm(x));
        let softmax_of_keys = |temperature: f64, normalize: bool| Unit {
            student: if normalize {
                norm(x) * temperature.min(1.0)
            } else {
                larger(rows.sqrt() * temperature / nonzero(longest_key()))
            },
            loss: 1.0,
            directed: normalize,
            step: STEP,
        };
        // No relation of rows changes where all of them move together.
        let group = x.len() / problem.groups();
        let relations = |normalize: bool, loss: f64| Unit {
            student: norm(
                &x.chunks_exact(group)
                    .flat_map(|x| centred(x, dim))
                    .collect::<Vec<_>>(),
            ),
            loss,
            directed: normalize,
            step: STEP,
        };
        let normalize = problem.spec().normalize;
        let unit = match problem.spec().family {
            Family::Pairwise(Pairwise {
                penalty: Penalty::Order { .. },
                ..
            }) => Unit {
                step: STEP_BETWEEN_KINKS,
                ..relations(normalize, 1.0)
            },
            Family::Pairwise(Pairwise {
                penalty: Penalty::Ranking { alpha, beta, .. },
                ..
            }) => {
                let unit = relations(normalize, 1.0);
                // The scores of a row change by as much as a power of its distances.
                let typical = unit.student * (2.0 / rows).sqrt();
                // Of scores that differ by thousands one wins: the step need not be shorter, and
                // rounding would show.
                let steepness = (1.0 + alpha * beta * typical.powf(beta)).min(1e4);
                Unit {
                    student: unit.student / steepness,
                    ..unit
                }
            }
            Family::Pairwise(_) => relations(normalize, 1.0),
            Family::Triplet(loss) => relations(normalize, loss.distance_weight + loss.angle_weight),
            Family::Contrastive(loss) => softmax_of_keys(loss.temperature, normalize),
            Family::Towers(
                Towers::Softmax { temperature, .. } | Towers::Labels { temperature },
            ) => softmax_of_keys(temperature, normalize),
            Family::Towers(Towers::Sigmoid { scale, .. }) => {
                softmax_of_keys(1.0 / scale, normalize)
            }
            Family::Sampled(Sampled::Nce { temperature }) => {
                softmax_of_keys(temperature, normalize)
            }
            Family::Sampled(Sampled::Teacher {
                student_temperature,
                score_temperature,
                ..
            }) => {
                let temperature = student_temperature.min(score_temperature.unwrap_or(1.0));
                let unit = softmax_of_keys(temperature, normalize);
                match score_temperature {
                    None => unit,
                    Some(_) => Unit {
                        step: STEP_OF_SCORES,
                        ..unit
                    },
                }
            }
            Family::Logits(loss) => Unit {
                student: larger(loss.student_temperature * (x.len() as f64).sqrt()),
                loss: loss.student_temperature * loss.student_temperature,
                directed: false,
                step: STEP,
            },
        };
        Unit {
            student: nonzero(unit.student),
            ..unit
        }
    }
}

/// The rows less their mean.
fn centred(x: &[f64], dim: usize) -> Vec<f64> {
    let rows = (x.len() / dim) as f64;
    let mut mean = vec![0.0; dim];
    for row in x.chunks_exact(dim) {
        mean.iter_mut().zip(row).for_each(|(m, x)| *m += x / rows);
    }
    let less_mean = |(i, x): (usize, &f64)| x - mean[i % dim];
    x.iter().enumerate().map(less_mean).collect()
}

/// The same numbers in f64.
fn widen<T: Element>(numbers: &[T]) -> Vec<f64> {
    numbers.iter().map(|x| x.to_f64()).collect()
}

/// The same keys in f64.
fn widen_queue<R: Real>(queue: &Queue<R>) -> Result<Queue<f64>> {
    let keys: Vec<f64> = queue.keys().iter().map(|k| k.to_f64()).collect();
    // The keys are normalised already, if they are to be.
    let mut wide = Queue::new(queue.len(), queue.dim())?.with_normalize(false);
    wide.enqueue(Rows::new(&keys, [queue.len(), queue.dim()])?)?;
    Ok(wide.with_normalize(queue.normalize()))
}

/// The same bank in f64.
fn widen_bank<R: Real>(bank: &Bank<R>) -> Result<Bank<f64>> {
    let rows = widen(bank.rows().as_slice());
    Bank::from_rows(Rows::new(&rows, [bank.len(), bank.dim()])?)?.with_normalizer(bank.normalizer())
}

/// A direction from a fixed sequence (SplitMix64), of length 1. It leaves out rows that are 0 if
/// the loss depends on the rows' directions alone.
fn unit_direction(x: &[f64], dim: usize, directed: bool, seed: u64) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut direction: Vec<f64> = (0..x.len())
        .map(|_| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64 - 0.5
        })
        .collect();
    for (direction, row) in direction.chunks_exact_mut(dim).zip(x.chunks_exact(dim)) {
        if directed && row.iter().all(|&x| x == 0.0) {
            direction.fill(0.0);
        }
    }
    let length = nonzero(norm(&direction));
    direction.iter_mut().for_each(|v| *v /= length);
    direction
}

fn norm(x: &[f64]) -> f64 {
    x.iter().map(|x| x * x).sum::<f64>().sqrt()
}

/// What to divide by: 1 where there is no scale to compare with.
fn nonzero(scale: f64) -> f64 {
    if scale == 0.0 { 1.0 } else { scale }
}
