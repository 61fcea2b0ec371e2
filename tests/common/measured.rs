//! The measured rule, and a table of the measurements: a device's error against f64 is at most
//! twice the error of the definition evaluated directly in f32.

use relata::Evaluation;

use super::compare::relative_error;

/// The device may have this many times the error of the direct evaluation,
const FACTOR: f64 = 2.0;
/// plus this, for cases where both are right to the last bit.
const FLOOR: f64 = 1e-9;
/// One rounding to f32. The loss of the direct evaluation may be exact by luck.
const ROUNDING: f64 = 0.5 * f32::EPSILON as f64;

/// Errors against f64, relative, of the loss and of the gradient.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Errors {
    pub(crate) loss: f64,
    pub(crate) gradient: f64,
    /// The loss itself.
    pub(crate) value: f64,
}

impl Errors {
    pub(crate) fn of(loss: f64, gradient: &[f32], right: &Evaluation<f64>) -> Self {
        Errors {
            loss: (loss - right.loss).abs() / right.loss,
            gradient: relative_error(gradient, &right.gradient),
            value: right.loss,
        }
    }

    /// Root mean squares; a NaN stays.
    fn mean(all: &[Errors]) -> Self {
        let mean = |of: fn(&Errors) -> f64| {
            let sum: f64 = all.iter().map(|errors| of(errors).powi(2)).sum();
            (sum / all.len() as f64).sqrt()
        };
        Errors {
            loss: mean(|errors| errors.loss),
            gradient: mean(|errors| errors.gradient),
            value: mean(|errors| errors.value),
        }
    }
}

/// The measured errors of one loss on one kind of data.
pub(crate) struct Measured {
    pub(crate) name: String,
    pub(crate) device: Errors,
    pub(crate) naive: Errors,
}

/// The mean over seeds of the results of `measure`: the device's errors, and the direct
/// evaluation's.
pub(crate) fn mean_of(
    name: String,
    seeds: u64,
    measure: impl Fn(u64) -> (Errors, Errors),
) -> Measured {
    let (device, naive): (Vec<_>, Vec<_>) = (0..seeds).map(measure).unzip();
    Measured {
        name,
        device: Errors::mean(&device),
        naive: Errors::mean(&naive),
    }
}

/// Prints the table. Panics if a row exceeds its budget.
pub(crate) fn assert_within_budget(title: &str, rows: &[Measured]) {
    println!("\n{title}: errors against f64");
    println!(
        "{:<58} {:>9} {:>9} {:>5}   {:>9} {:>9} {:>5}   {:>9}",
        "", "gradient", "direct", "x", "loss", "direct", "x", "value"
    );
    let mut beyond = Vec::new();
    for Measured {
        name,
        device,
        naive,
    } in rows
    {
        println!(
            "{name:<58} {:9.1e} {:9.1e} {:5.2}   {:9.1e} {:9.1e} {:5.2}   {:9.1e}",
            device.gradient,
            naive.gradient,
            device.gradient / naive.gradient,
            device.loss,
            naive.loss,
            device.loss / naive.loss,
            device.value
        );
        // Written so that a NaN on either side fails.
        assert!(device.value > 1e-9, "{name}: no loss to speak of");
        let gradient = device.gradient <= FACTOR * naive.gradient + FLOOR;
        let loss = device.loss <= FACTOR * (naive.loss + ROUNDING);
        if !(gradient && loss) {
            beyond.push(name);
        }
    }
    assert!(beyond.is_empty(), "{title}: beyond the bar: {beyond:#?}");
}
