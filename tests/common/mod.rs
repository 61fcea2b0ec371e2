//! What the integration tests share.

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
pub(crate) mod tolerances;

use relata::{
    Batch, Device, Element, Evaluation, InfoNce, KdKl, Loss, Problem, Queue, Rkd, RkdAngle,
    RkdDistance, Rows, Rrd, Shapes,
};

/// SplitMix64, with normals by Box and Muller: the same numbers everywhere, from a seed.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Random(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in (0, 1].
    pub(crate) fn uniform(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    pub(crate) fn normal(&mut self) -> f64 {
        let radius = (-2.0 * self.uniform().ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    pub(crate) fn normals(&mut self, len: usize) -> Vec<f64> {
        (0..len).map(|_| self.normal()).collect()
    }
}

/// The nearest elements.
pub(crate) fn cast<T: Element>(values: &[f64]) -> Vec<T> {
    values.iter().map(|&v| T::from_f64(v)).collect()
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

    /// `problem` on these numbers, rounded to `T`.
    pub(crate) fn run<T: Element, D: Device<T>>(
        &self,
        device: &D,
        problem: &Problem,
    ) -> Evaluation<D::Gradient> {
        let (student, teacher) = (cast::<T>(&self.student), cast::<T>(&self.teacher));
        let queue = self.queue::<T>();
        let mut batch = Batch::new(
            Rows::new(&student, [self.shapes.rows, self.shapes.student_dim]).expect("whole rows"),
            Rows::new(&teacher, [self.shapes.rows, self.shapes.teacher_dim]).expect("whole rows"),
        );
        batch.queue = queue.as_ref();
        problem.evaluate(device, batch).expect("a valid batch")
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

/// Every loss with every option off its default at least once.
pub(crate) fn losses() -> Vec<Loss> {
    let mut losses = Loss::all();
    for (delta, normalize) in [(1.0, true), (0.2, false), (0.2, true)] {
        losses.push(RkdDistance { delta, normalize }.into());
        losses.push(RkdAngle { delta, normalize }.into());
        let rkd = Rkd {
            delta,
            normalize,
            ..Rkd::CLASSIFICATION
        };
        losses.push(rkd.into());
    }
    for (student_temperature, teacher_temperature, normalize) in
        [(0.04, 0.1, true), (0.5, 0.5, true), (1.0, 2.0, false)]
    {
        let rrd = Rrd {
            student_temperature,
            teacher_temperature,
            normalize,
            ..Rrd::default()
        };
        losses.push(rrd.into());
    }
    for (temperature, normalize) in [(0.5, true), (1.0, false)] {
        let info_nce = InfoNce {
            temperature,
            normalize,
            ..InfoNce::default()
        };
        losses.push(info_nce.into());
        losses.push(KdKl { temperature }.into());
    }
    losses
}

/// The shapes a loss accepts that come nearest to N, D, D_t, and K if it may have a queue: with and
/// without one, where both are possible.
pub(crate) fn shapes_of(loss: &Loss, [n, d, d_t, k]: [usize; 4]) -> Vec<Shapes> {
    let square = Shapes::new(n, d, d);
    match loss {
        Loss::RkdDistance(_) | Loss::RkdAngle(_) | Loss::Rkd(_) => vec![Shapes::new(n, d, d_t)],
        Loss::Rrd(_) => vec![square.with_queue(k)],
        Loss::InfoNce(_) => vec![square, square.with_queue(k)],
        Loss::KdKl(_) => vec![square],
        other => panic!("which shapes does {other} accept? Add an arm"),
    }
}

/// Whether the loss takes its rows L2-normalised.
pub(crate) fn normalizes(loss: &Loss) -> bool {
    match loss {
        Loss::RkdDistance(loss) => loss.normalize,
        Loss::RkdAngle(loss) => loss.normalize,
        Loss::Rkd(loss) => loss.normalize,
        Loss::Rrd(loss) => loss.normalize,
        Loss::InfoNce(loss) => loss.normalize,
        Loss::KdKl(_) => false,
        other => panic!("does {other} normalise its rows? Add an arm"),
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
