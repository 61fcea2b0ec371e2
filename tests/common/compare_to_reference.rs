//! A device against the reference on the cases of the table.

use half::f16;
use relata::{DType, Device, Element, Loss, Queue, Reference, Rows};
#[cfg(any(feature = "cuda", feature = "emulator"))]
use relata::{GpuElement, WeightPrecision};

use super::cases::{Case, Data, Inputs};
use super::compare::{assert_gradient, assert_loss};
use super::tolerances::{conditioning, tolerance};

/// Asserts that `device` is right on `case`; says whether there was a gradient to get wrong.
pub(crate) fn assert_right<T: Element, D: Device<T>>(device: &D, case: &Case) -> bool {
    compare(device, case, &case.inputs())
}

/// The same of a device that runs the CUDA kernels, on keys as it stores them.
#[cfg(any(feature = "cuda", feature = "emulator"))]
pub(crate) fn assert_kernels_right<T, D>(device: &D, case: &Case) -> bool
where
    T: GpuElement,
    D: Device<T>,
{
    let mut inputs = case.inputs::<T>();
    let stored = inputs.queue.map(|queue| as_stored::<T>(&queue, &case.loss));
    inputs.queue = stored;
    compare(device, case, &inputs)
}

/// The same of more rows than the reference can be waited for: the CPU's path stands in for it.
#[cfg(any(feature = "cuda", feature = "emulator"))]
pub(crate) fn assert_many_rows_right<T, D>(device: &D, case: &Case)
where
    T: GpuElement,
    D: Device<T, Gradient = f32>,
{
    let inputs = case.inputs::<T>();
    let got = inputs.problem.evaluate(device, inputs.batch());
    let got = got.expect("a case that fits");
    let want = inputs.problem.evaluate(&relata::Cpu, inputs.batch());
    let want = want.expect("a case that fits");
    let name = format!("{} in {} on {}", case.name, T::DTYPE, device.name());
    assert_loss(&name, got.loss, want.loss, 2e-6);
    let want: Vec<f64> = want.gradient.iter().map(|&g| g.into()).collect();
    // As far off as the law of cosines is in f32; and where a student has nearly converged, farther.
    let tolerance = if matches!(case.data, Data::NearTeacher { .. }) {
        3e-5
    } else {
        3e-6
    };
    assert_gradient(&name, &got.gradient, &want, case.student_dim, tolerance);
}

/// That weights in one f16 change no loss, and a gradient no more than they may; where there are no such weights, nothing.
#[cfg(any(feature = "cuda", feature = "emulator"))]
pub(crate) fn assert_half_weights_right<T, D>(device: &D, case: &Case)
where
    T: GpuElement<Real = f32>,
    D: Device<T, Gradient = f32>,
{
    if !matches!(case.loss, Loss::Rrd(_) | Loss::InfoNce(_)) {
        return;
    }
    let inputs = case.inputs::<T>();
    let [split, half] = [WeightPrecision::Split, WeightPrecision::Half].map(|weights| {
        let problem = inputs.problem.weights(weights);
        let evaluation = problem.evaluate(device, inputs.batch());
        evaluation.expect("a case that fits")
    });
    let name = format!("{} in {}, weights in one f16", case.name, T::DTYPE);
    assert_eq!(half.loss.to_bits(), split.loss.to_bits(), "{name}");
    assert_eq!(
        half.kl.map(f64::to_bits),
        split.kl.map(f64::to_bits),
        "{name}"
    );
    let want: Vec<f64> = split.gradient.iter().map(|&g| g.into()).collect();
    let off = super::compare::relative_error(&half.gradient, &want);
    // A sum of weighted keys loses 2^-12 of itself without its signs, which is a few times its length.
    assert!(
        off <= 4.0 / 4096.0 || super::compare::norm(&want) < 1e-6,
        "{name}: {off:e}"
    );
}

/// The queue as a GPU holds it: unit keys of half-precision losses are rounded to f16.
pub(crate) fn as_stored<T: Element>(queue: &Queue<f32>, loss: &Loss) -> Queue<f32> {
    if T::DTYPE == DType::F32 || !super::normalizes(loss) {
        return queue.clone();
    }
    let round = |&x: &f32| f16::from_f32(x).to_f32();
    let keys: Vec<f32> = queue.keys().iter().map(round).collect();
    let stored = Queue::new(queue.len(), queue.dim());
    let mut stored = stored.expect("keys").normalize(false);
    stored
        .enqueue(Rows::new(&keys, [queue.len(), queue.dim()]).expect("whole keys"))
        .expect("finite keys");
    stored
}

fn compare<T: Element, D: Device<T>>(device: &D, case: &Case, inputs: &Inputs<T>) -> bool {
    let got = inputs
        .problem
        .evaluate(device, inputs.batch())
        .expect("a case that fits");
    let reference = inputs
        .problem
        .evaluate(&Reference, inputs.batch())
        .expect("a case that fits");
    let name = format!("{} in {} on {}", case.name, T::DTYPE, device.name());
    let (tolerance, conditioning) = (
        tolerance(&case.loss, T::DTYPE),
        conditioning(case, T::DTYPE),
    );
    let of_loss = tolerance.loss * conditioning.loss;
    let of_gradient = tolerance.gradient * conditioning.gradient;
    assert_loss(&name, got.loss, reference.loss, of_loss);
    let has_kl = matches!(case.loss, Loss::Rrd(_));
    assert_eq!(got.kl.is_some(), has_kl, "{name}");
    assert_eq!(reference.kl.is_some(), has_kl, "{name}");
    if let (Loss::Rrd(loss), Some(got), Some(want)) = (case.loss, got.kl, reference.kl) {
        // A difference of the cross-entropy and the entropy, each rounded like its logits, by ε/τ.
        let tau = loss.student_temperature.min(loss.teacher_temperature);
        let epsilon = match T::DTYPE {
            DType::F64 => f64::EPSILON,
            _ => f64::from(f32::EPSILON),
        };
        let within = (got - want).abs() <= 2.0 * of_loss * reference.loss + epsilon / tau;
        assert!(within, "{name}: KL {got:e}, want {want:e}");
    }
    let dim = case.student_dim;
    assert_gradient(&name, &got.gradient, &reference.gradient, dim, of_gradient);
    reference.gradient_norm() > 0.0
}
