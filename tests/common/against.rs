//! A device against the reference on the cases of the table.

use relata::{DType, Device, Element, Loss, Reference};

use super::cases::{Case, Data};
use super::compare::{assert_gradient, assert_loss};
use super::tolerances::{Tolerance, tolerance};

/// By how much the kind of data magnifies the rounding of a loss and of its gradient.
fn conditioning(case: &Case, dtype: DType) -> Tolerance {
    let (loss, gradient) = match case.data {
        Data::Gaussian
        | Data::Offset { .. }
        | Data::Scaled { .. }
        | Data::Duplicates
        | Data::Identical
        | Data::ZeroRow => (1.0, 1.0),
        // The law of cosines loses the longest distance over the shortest; in f32 it is not used here.
        Data::Clusters { spread } if dtype == DType::F64 => (0.1 / spread, 0.1 / spread),
        Data::Clusters { .. } => (1.0, 1.0),
        // The relations, each rounded, differ by the noise, and their penalties by its square. (The noise
        // that counts for RRD and InfoNCE at the teacher is what their temperatures leave: as much.)
        Data::NearTeacher { noise } => (1.0 / (noise * noise), 1.0 / noise),
        Data::Teacher => (1e4, 1e2),
    };
    Tolerance { loss, gradient }
}

/// Asserts that `device` is right on `case`; says whether there was a gradient to get wrong.
#[track_caller]
pub(crate) fn assert_right<T: Element, D: Device<T>>(device: &D, case: &Case) -> bool {
    let inputs = case.inputs::<T>();
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
