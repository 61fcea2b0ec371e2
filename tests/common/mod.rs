//! What the integration tests share: cases and inputs, facts about the losses, and comparers.

#![allow(
    dead_code,
    unused_imports,
    unused_macros,
    reason = "each test binary uses its own part of this"
)]

pub(crate) mod cases;
pub(crate) mod compare;
pub(crate) mod compare_to_reference;
pub(crate) mod measured;
pub(crate) mod naive;
pub(crate) mod order;
pub(crate) mod tolerances;

use relata::{Device, Element, Evaluation, Loss, Problem, Queue, Rows, Shapes};

use cases::{Data, Inputs};

// Modules of `cases`, so that a benchmark can include that one file.
pub(crate) use cases::cast;
pub(crate) use cases::losses;
pub(crate) use cases::random::Random;

/// The nearest numbers that `T` holds.
pub(crate) fn rounded<T: Element>(values: &[f64]) -> Vec<f64> {
    let elements = cast::<T>(values);
    elements.iter().map(|element| element.to_f64()).collect()
}

/// A batch as numbers, before they become elements of some type. Tests change its fields at will.
#[derive(Clone, Debug)]
pub(crate) struct Input {
    pub(crate) shapes: Shapes,
    pub(crate) student: Vec<f64>,
    pub(crate) teacher: Vec<f64>,
    /// `[K, D]`; empty without a queue.
    pub(crate) keys: Vec<f64>,
}

impl Input {
    /// Independent normals.
    pub(crate) fn normal(seed: u64, shapes: Shapes) -> Self {
        let mut random = Random::new(seed);
        Input {
            shapes,
            student: random.normals(shapes.rows * shapes.student_dim),
            teacher: random.normals(shapes.rows * shapes.teacher_dim),
            keys: random.normals(shapes.queue.unwrap_or(0) * shapes.student_dim),
        }
    }

    /// Normals, of which the student's look like `data`.
    pub(crate) fn of_data(seed: u64, shapes: Shapes, data: Data) -> Self {
        let mut input = Input::normal(seed, shapes);
        let centres = |len| Random::new(!seed).normals(len);
        let teacher = || input.teacher.clone();
        let dim = shapes.student_dim;
        data.form(&mut input.student, dim, centres, teacher);
        input
    }

    pub(crate) fn problem(&self, loss: impl Into<Loss>) -> Problem {
        Problem::new(loss, self.shapes).expect("a loss that accepts these shapes")
    }

    /// A queue that holds the keys, normalised; `None` without keys.
    pub(crate) fn queue<T: Element>(&self) -> Option<Queue<T::Real>> {
        let (keys, dim) = (self.shapes.queue?, self.shapes.student_dim);
        let mut queue = Queue::new(keys, dim).expect("keys");
        let elements = cast::<T::Real>(&self.keys);
        let rows = Rows::new(&elements, [keys, dim]).expect("whole keys");
        queue.enqueue(rows).expect("finite keys");
        Some(queue)
    }

    /// `problem` with these numbers, rounded to `T`.
    pub(crate) fn inputs<T: Element>(&self, problem: &Problem) -> Inputs<T> {
        Inputs {
            problem: *problem,
            student: cast(&self.student),
            teacher: cast(&self.teacher),
            labels: (self.shapes.labels)
                .then(|| (0..self.shapes.rows as u32).map(|row| row % 3).collect()),
            queue: self
                .queue::<T>()
                .map(|queue| queue.with_normalize(problem.spec().normalize)),
        }
    }

    /// The same with rows, not keys, that `T` holds exactly.
    pub(crate) fn rounded<T: Element>(&self) -> Self {
        Input {
            student: rounded::<T>(&self.student),
            teacher: rounded::<T>(&self.teacher),
            ..self.clone()
        }
    }

    /// `problem` on these numbers, rounded to `T`.
    pub(crate) fn run<T: Element, D: Device<T>>(
        &self,
        device: &D,
        problem: &Problem,
    ) -> Evaluation<D::Gradient> {
        self.inputs::<T>(problem).evaluate(device)
    }

    /// `loss` on these numbers, rounded to `T`.
    pub(crate) fn evaluate<T: Element, D: Device<T>>(
        &self,
        device: &D,
        loss: impl Into<Loss>,
    ) -> Evaluation<D::Gradient> {
        self.run::<T, D>(device, &self.problem(loss))
    }
}

/// `$check::<T>(…)` for every element type, in an array.
macro_rules! for_every_dtype {
    ($check:ident($($argument:expr),* $(,)?)) => {
        [
            $check::<f64>($($argument),*),
            $check::<f32>($($argument),*),
            $check::<half::f16>($($argument),*),
            $check::<half::bf16>($($argument),*),
        ]
    };
}
pub(crate) use for_every_dtype;

/// `$check::<T, _>(&device)` on every device of this build, in every element type of that device.
macro_rules! on_every_device {
    ($check:ident) => {
        fn on_the_host<T: relata::Element>() {
            $check::<T, _>(&relata::Reference);
            $check::<T, _>(&relata::Cpu);
        }
        crate::common::for_every_dtype!(on_the_host());
        #[cfg(feature = "emulator")]
        {
            $check::<f32, _>(&relata::Emulator::new());
            $check::<half::f16, _>(&relata::Emulator::new().seed(1));
            $check::<half::bf16, _>(&relata::Emulator::new().seed(2));
        }
    };
}
pub(crate) use on_every_device;
