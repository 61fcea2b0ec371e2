//! The emulator held against the reference on one batch.

use half::{bf16, f16};
use relata::{
    Batch, DType, Emulator, Evaluation, GpuElement, Loss, Problem, Reference, Rows, WeightPrecision,
};

use crate::common::cases::Data;
use crate::common::compare::{assert_gradient, assert_loss, assert_same_bits};
use crate::common::compare_to_reference::as_stored;
use crate::common::tolerances::{Tolerance, tolerance};
use crate::common::{self, Input};

/// A seed whose schedule is shuffled and whose inputs are not aligned.
pub(crate) const SEED: u64 = 1;

/// What rounding the keys to f16 changes: each element by 2^-13 or so of itself, and each logit by as much of
/// a product of rows of length 1, over τ, less what evens out over D.
fn rounding_of_keys(loss: &Loss, dim: usize) -> Tolerance {
    let tau = match loss {
        Loss::Rrd(loss) => loss.student_temperature.min(loss.teacher_temperature),
        Loss::InfoNce(loss) => loss.temperature,
        _ => unreachable!(),
    };
    let of_logit = 1.5e-4 / (tau * (dim as f64).sqrt());
    Tolerance {
        loss: of_logit,
        gradient: 4e-4 + of_logit,
    }
}

/// What rounding the weights to f16, each by 2^-12 of itself at most, changes of a gradient, a sum of weighted keys: as much
/// of that sum without its signs, which is a few times its length. The loss is made of weights that are not rounded.
const ROUNDING_OF_WEIGHTS: f64 = 4.0 / 4096.0;

/// By how much the kind of data magnifies the rounding of a loss and of its gradient.
fn conditioning(data: Data) -> Tolerance {
    let (loss, gradient) = match data {
        // The distributions, each rounded, differ by the noise, and the divergence by its square.
        Data::NearTeacher { noise } => (1.0 / (noise * noise), 1.0 / noise),
        Data::Teacher => (1e4, 1e2),
        _ => (1.0, 1.0),
    };
    Tolerance { loss, gradient }
}

fn assert_close(
    name: &str,
    problem: &Problem,
    got: &Evaluation<f32>,
    want: &Evaluation<f64>,
    within: Tolerance,
) {
    assert_loss(name, got.loss, want.loss, within.loss);
    assert_gradient(
        name,
        &got.gradient,
        &want.gradient,
        problem.shapes().student_dim,
        within.gradient,
    );
    assert_eq!(got.kl.is_some(), want.kl.is_some(), "{name}");
    if let (Loss::Rrd(loss), Some(got), Some(kl)) = (problem.loss(), got.kl, want.kl) {
        // A difference of the cross-entropy and the entropy, each rounded like its logits, by ε/τ.
        let tau = loss.student_temperature.min(loss.teacher_temperature);
        let unit = f64::from(f32::EPSILON) / tau;
        let error = (got - kl).abs();
        assert!(
            error <= 2.0 * within.loss * want.loss.abs() + unit,
            "{name}: KL {got:e}, want {kl:e}"
        );
    }
}

/// The emulator against the reference, with what a type's own rounding allows; the keys as they are stored.
pub(crate) fn check<T: GpuElement<Real = f32>>(
    name: &str,
    problem: &Problem,
    batch: Batch<'_, T>,
    data: Data,
) {
    let name = format!("{name} in {}", T::DTYPE);
    let keys = batch
        .queue
        .map(|queue| as_stored::<T>(queue, problem.loss()));
    let mut batch = batch;
    batch.queue = keys.as_ref();
    let got = problem
        .evaluate(&Emulator::new().seed(SEED), batch)
        .expect("a batch that fits");
    let want = problem
        .evaluate(&Reference, batch)
        .expect("a batch that fits");
    let (table, conditioning) = (tolerance(problem.loss(), T::DTYPE), conditioning(data));
    let mut within = Tolerance {
        loss: table.loss * conditioning.loss,
        gradient: table.gradient * conditioning.gradient,
    };
    if problem.weight_precision() == WeightPrecision::Half && T::DTYPE != DType::F32 {
        // Not magnified: it is the difference of student and teacher that is rounded.
        within.gradient += ROUNDING_OF_WEIGHTS;
    }
    assert_close(&name, problem, &got, &want, within);

    if keys.is_some() && T::DTYPE != DType::F32 {
        let exact = problem
            .evaluate(&Reference, batch)
            .expect("a batch that fits");
        let rounding = rounding_of_keys(problem.loss(), problem.shapes().student_dim);
        let within = Tolerance {
            loss: within.loss + rounding.loss * conditioning.loss,
            gradient: within.gradient + rounding.gradient * conditioning.gradient,
        };
        // The keys are rounded on their way to the device, and that is all that differs.
        let rounded = problem
            .evaluate(&Emulator::new().seed(SEED), batch)
            .expect("a batch that fits");
        assert_same_bits(&name, &rounded.gradient, &got.gradient);
        assert_close(
            &format!("{name}, keys in f32"),
            problem,
            &rounded,
            &exact,
            within,
        );
    }
}

/// A batch of these shapes; of halves, with weights of either precision.
pub(crate) fn check_input(name: &str, loss: Loss, input: &Input) {
    fn check_as<T: GpuElement<Real = f32>>(name: &str, loss: Loss, input: &Input) {
        let (student, teacher) = (
            common::cast::<T>(&input.student),
            common::cast::<T>(&input.teacher),
        );
        let shape = [input.shapes.rows, input.shapes.student_dim];
        let queue = input.queue::<T>();
        let mut batch = Batch::new(
            Rows::new(&student, shape).expect("whole rows"),
            Rows::new(&teacher, shape).expect("whole rows"),
        );
        batch.queue = queue.as_ref();
        let problem = input.problem(loss);
        check(name, &problem, batch, Data::Gaussian);
        if T::DTYPE != DType::F32 {
            let (name, half) = (
                format!("{name}, weights in f16"),
                problem.weights(WeightPrecision::Half),
            );
            check(&name, &half, batch, Data::Gaussian);
        }
    }
    check_as::<f32>(name, loss, input);
    check_as::<f16>(name, loss, input);
    check_as::<bf16>(name, loss, input);
}
