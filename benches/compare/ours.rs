//! relata's side.

use std::time::{Duration, Instant};

use relata::Cpu;

use crate::cases::{Case, Inputs};

/// A case with its inputs, and memory for the gradient that is used again.
pub(crate) struct Ours {
    pub(crate) inputs: Inputs<f32>,
    /// That of the last evaluation.
    pub(crate) gradient: Vec<f32>,
}

impl Ours {
    pub(crate) fn new(case: &Case) -> Self {
        Ours {
            inputs: case.inputs(),
            gradient: vec![0.0; case.rows * case.student_dim],
        }
    }

    /// The loss.
    pub(crate) fn evaluate(&mut self) -> f64 {
        let Ours { inputs, gradient } = self;
        let value = inputs.problem.evaluate_into(&Cpu, inputs.batch(), gradient);
        value.expect("a case that its loss accepts").loss
    }

    /// Seconds of evaluations until `budget` is over, and of one at least. The first is a warm-up
    /// unless it is the only one; baseline_pytorch.py does the same.
    pub(crate) fn turn(&mut self, budget: Duration) -> Vec<f64> {
        let mut samples = vec![self.seconds()];
        while samples.iter().sum::<f64>() < budget.as_secs_f64() {
            samples.push(self.seconds());
        }
        if samples.len() > 1 {
            samples.remove(0);
        }
        samples
    }

    fn seconds(&mut self) -> f64 {
        let start = Instant::now();
        std::hint::black_box(self.evaluate());
        start.elapsed().as_secs_f64()
    }
}
