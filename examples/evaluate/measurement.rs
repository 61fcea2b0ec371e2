//! What an evaluation gave, and how far it is from the reference.

/// What evaluating a loss on a device gave.
#[derive(Debug)]
pub(crate) struct Measurement {
    pub(crate) value: f64,
    /// The loss's named terms.
    pub(crate) terms: Vec<(&'static str, f64)>,
    /// `[N, D]`, or of two towers `[2N, D]`; f64 holds every device's values exactly.
    pub(crate) gradient: Vec<f64>,
    /// `[N]`, or empty if they were not asked for.
    pub(crate) row_losses: Vec<f64>,
    pub(crate) seconds: f64,
}

/// How far a device is from the reference.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deviation {
    /// |L − L_ref|/|L_ref|
    pub(crate) value: f64,
    /// ‖g − g_ref‖/‖g_ref‖
    pub(crate) gradient: f64,
}

impl Measurement {
    /// Adds what the same loss gave with another teacher.
    pub(crate) fn add(&mut self, other: &Measurement) {
        self.value += other.value;
        self.seconds += other.seconds;
        for ((_, sum), (_, term)) in self.terms.iter_mut().zip(&other.terms) {
            *sum += term;
        }
        for (sums, values) in [
            (&mut self.gradient, &other.gradient),
            (&mut self.row_losses, &other.row_losses),
        ] {
            for (sum, value) in sums.iter_mut().zip(values) {
                *sum += value;
            }
        }
    }

    /// The mean, if it is the sum with so many teachers. The time is that of all.
    pub(crate) fn mean_of(mut self, teachers: usize) -> Self {
        let count = teachers as f64;
        self.value /= count;
        for (_, term) in &mut self.terms {
            *term /= count;
        }
        for value in self.gradient.iter_mut().chain(&mut self.row_losses) {
            *value /= count;
        }
        self
    }

    pub(crate) fn gradient_norm(&self) -> f64 {
        norm(self.gradient.iter().copied())
    }

    pub(crate) fn deviation_from(&self, reference: &Measurement) -> Deviation {
        let differences = self.gradient.iter().zip(&reference.gradient);
        Deviation {
            value: ratio((self.value - reference.value).abs(), reference.value.abs()),
            gradient: ratio(
                norm(differences.map(|(g, reference)| g - reference)),
                reference.gradient_norm(),
            ),
        }
    }
}

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|x| x * x).sum::<f64>().sqrt()
}

/// No deviation from 0 is 0, not 0/0.
fn ratio(difference: f64, reference: f64) -> f64 {
    if difference == 0.0 {
        0.0
    } else {
        difference / reference
    }
}
