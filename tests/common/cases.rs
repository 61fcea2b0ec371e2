//! The cases: one table that tests, gradient checks and benchmarks share.
//!
//! A case is a loss with its parameters, the shapes of a batch and a recipe for its numbers. The
//! numbers come from a seed alone, so a case is the same batch wherever it is used.

#![allow(
    dead_code,
    reason = "every test and benchmark includes this file and uses its own part of it"
)]

#[path = "cases/data.rs"]
mod data;
#[path = "losses.rs"]
pub(crate) mod losses;
#[path = "random.rs"]
pub(crate) mod random;
#[path = "cases/table.rs"]
mod table;

use relata::{Batch, Device, Element, Evaluation, Loss, Problem, Queue, Rows, Shapes};

pub(crate) use data::{Data, cast};

use relata::Family;

/// What a case is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Small and odd: compared with the reference.
    Test,
    /// Of a size that trainers use: timed.
    Bench,
    /// Small enough for the reference and large enough to time.
    Both,
    /// Too large to time on a CPU.
    Gpu,
}

/// More numbers than these are not drawn for a matrix: its rows repeat.
const MOST_NUMBERS: usize = 1 << 24;

/// A loss, the shapes of a batch and a recipe for its numbers.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Case {
    /// Says all there is to know: loss, rows × dim, teacher's dim where it differs, queue, and what
    /// deviates from the defaults, for example `rrd-256x128-k16384-own`.
    pub(crate) name: String,
    pub(crate) loss: Loss,
    /// Of towers, both halves.
    pub(crate) rows: usize,
    pub(crate) student_dim: usize,
    /// 0 without a teacher.
    pub(crate) teacher_dim: usize,
    /// Into how many groups the rows are divided; 1 if all of them are compared with one another.
    pub(crate) groups: usize,
    /// How many labels the rows have, in turns, where the loss takes labels.
    pub(crate) labels: Option<usize>,
    /// The queue's capacity, where the loss has a queue.
    pub(crate) queue: Option<usize>,
    /// How many keys of earlier batches have entered the queue: fewer than its capacity fill it in
    /// part, more make it wrap.
    pub(crate) past_keys: usize,
    /// Whether the batch's own teacher rows have entered the queue, after all others.
    pub(crate) own_keys: bool,
    /// What the student's rows look like.
    pub(crate) data: Data,
    pub(crate) seed: u64,
    pub(crate) purpose: Purpose,
}

/// The numbers of a case.
#[derive(Clone, Debug)]
pub(crate) struct Inputs<T: Element> {
    pub(crate) problem: Problem,
    pub(crate) student: Vec<T>,
    pub(crate) teacher: Vec<T>,
    pub(crate) labels: Option<Vec<u32>>,
    pub(crate) queue: Option<Queue<T::Real>>,
}

impl<T: Element> Inputs<T> {
    pub(crate) fn evaluate<D: Device<T>>(&self, device: &D) -> Evaluation<D::Gradient> {
        let evaluation = self.problem.evaluate(device, self.batch());
        evaluation.unwrap_or_else(|error| panic!("{}: {error}", self.problem.loss()))
    }

    pub(crate) fn batch(&self) -> Batch<'_, T> {
        let shapes = self.problem.shapes();
        let rows = |data, dim| Rows::new(data, [shapes.rows, dim]).expect("data of this shape");
        let batch = Batch::new(
            rows(&self.student, shapes.student_dim),
            rows(&self.teacher, shapes.teacher_dim),
        );
        Batch {
            labels: self.labels.as_deref(),
            queue: self.queue.as_ref(),
            ..batch
        }
    }
}

/// Every case, no two of the same name.
pub(crate) fn all() -> Vec<Case> {
    let cases = table::all();
    for (i, case) in cases.iter().enumerate() {
        let twin = cases[..i].iter().find(|other| other.name == case.name);
        assert_eq!(twin, None, "two cases of one name");
    }
    cases
}

/// The cases to compare with the reference.
pub(crate) fn tests() -> impl Iterator<Item = Case> {
    let small = |c: &Case| matches!(c.purpose, Purpose::Test | Purpose::Both);
    all().into_iter().filter(small)
}

/// The cases to time.
pub(crate) fn benches() -> impl Iterator<Item = Case> {
    let timed = |c: &Case| matches!(c.purpose, Purpose::Bench | Purpose::Both);
    all().into_iter().filter(timed)
}

/// The cases to time on a GPU.
pub(crate) fn on_gpus() -> impl Iterator<Item = Case> {
    all().into_iter().filter(|c| c.purpose != Purpose::Test)
}

/// Cases of more rows than the table's, for GPUs. The reference would take minutes, so tests
/// compare them with the CPU path.
pub(crate) fn many_rows() -> Vec<Case> {
    table::many_rows()
}

/// The fewest cases that launch every kernel of the losses on a GPU, together with those of
/// [`many_rows`], in all types and with weights of either precision. (Relation matrices and
/// softmaxes launch the other kernels.) Sanitizers run these cases, because sanitizers are slow.
/// tests/cuda_fake_driver checks that no kernel is missing.
pub(crate) fn of_every_kernel() -> Vec<Case> {
    let table = all();
    let of_name = |name| table.iter().find(|case| case.name == name);
    let named = table::OF_EVERY_KERNEL
        .map(|name| of_name(name).unwrap_or_else(|| panic!("no case {name}")));
    named.map(Case::clone).into()
}

impl Case {
    pub(crate) fn shapes(&self) -> Shapes {
        Shapes {
            labels: self.labels.is_some(),
            queue: self.keys(),
            ..Shapes::new(self.rows, self.student_dim, self.teacher_dim)
        }
    }

    /// The loss on these shapes. Every case is one that its loss accepts.
    pub(crate) fn problem(&self) -> Problem {
        let problem = Problem::new(self.loss, self.shapes());
        let problem = match self.groups {
            1 => problem,
            groups => problem.and_then(|problem| problem.with_groups(groups)),
        };
        problem.unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }

    /// The same without the batch entering a queue: evaluations of it can be repeated.
    pub(crate) fn evaluating_only(&self) -> Problem {
        let loss = losses::without_enqueue(self.loss);
        let case = Case {
            loss,
            ..self.clone()
        };
        case.problem()
    }

    /// The keys in the queue when the loss sees it.
    pub(crate) fn keys(&self) -> Option<usize> {
        let own = if self.own_keys { self.rows } else { 0 };
        self.queue
            .map(|capacity| capacity.min(self.past_keys + own))
    }

    pub(crate) fn inputs<T: Element>(&self) -> Inputs<T> {
        let teacher = self.teacher();
        Inputs {
            problem: self.problem(),
            student: self.student(),
            labels: self
                .labels
                .map(|labels| (0..self.rows).map(|row| (row % labels) as u32).collect()),
            queue: self.filled_queue(&teacher),
            teacher,
        }
    }

    /// `[N, D]`, row-major.
    pub(crate) fn student<T: Element>(&self) -> Vec<T> {
        self.repeated(
            &data::student(&self.distinct(self.student_dim)),
            self.student_dim,
        )
    }

    /// `[N, D_t]`, row-major.
    pub(crate) fn teacher<T: Element>(&self) -> Vec<T> {
        self.repeated(
            &data::teacher(&self.distinct(self.teacher_dim)),
            self.teacher_dim,
        )
    }

    /// The case with so few rows that their numbers are drawn in seconds.
    fn distinct(&self, dim: usize) -> Case {
        let rows = self.rows.min((MOST_NUMBERS / dim.max(1)).max(1));
        Case {
            rows,
            ..self.clone()
        }
    }

    fn repeated<T: Element>(&self, rows: &[f64], dim: usize) -> Vec<T> {
        let rounded = cast(rows);
        let all = self.rows * dim;
        if rounded.len() == all {
            return rounded;
        }
        rounded.iter().copied().cycle().take(all).collect()
    }

    /// The keys of earlier batches, `[past_keys, D]`, the oldest first, as they came: not
    /// normalised.
    pub(crate) fn past<T: Element>(&self) -> Vec<T> {
        cast(&data::past(self))
    }

    fn filled_queue<T: Element>(&self, teacher: &[T]) -> Option<Queue<T::Real>> {
        let dim = self.teacher_dim;
        let mut queue = Queue::new(self.queue?, dim)
            .expect("a capacity above 0")
            .with_normalize(losses::normalizes(&self.loss));
        let mut enqueue = |keys: &[T]| {
            let keys = Rows::new(keys, [keys.len() / dim, dim]).expect("whole keys");
            queue.enqueue(keys).expect("finite keys of this length");
        };
        enqueue(&self.past());
        if self.own_keys {
            enqueue(teacher);
        }
        Some(queue)
    }
}

// What an evaluation takes: for throughput.
impl Case {
    /// The ordered triples the angle loss counts, N³ of each group; 0 for losses without angles.
    pub(crate) fn triplets(&self) -> u64 {
        self.groups as u64 * losses::triplets(&self.loss, self.rows / self.groups)
    }

    /// The numbers that go in: student, teacher and the keys in use.
    pub(crate) fn elements(&self) -> u64 {
        let keys = self.keys().unwrap_or(0) * self.student_dim;
        (self.rows * (self.student_dim + self.teacher_dim) + keys) as u64
    }

    /// The memory traffic no implementation can avoid: everything read once, the gradient written
    /// once.
    pub(crate) fn bytes<T: Element>(&self) -> u64 {
        let (element, real) = (size_of::<T>(), size_of::<T::Real>());
        let rows = self.rows * (self.student_dim + self.teacher_dim) * element;
        let keys = self.keys().unwrap_or(0) * self.student_dim * real;
        (rows + keys + self.rows * self.student_dim * real) as u64
    }

    /// The arithmetic of the definition's cheapest known form, a multiply-add counting as two.
    pub(crate) fn flops(&self) -> u64 {
        let group = Shapes {
            rows: self.rows / self.groups,
            ..self.shapes()
        };
        self.groups as u64 * losses::flops(&self.loss, group)
    }

    /// How much of what bounds the loss an f32 evaluation does, and the unit of that in a second:
    /// triples for the angle, memory traffic for logits, arithmetic for the rest.
    pub(crate) fn work(&self) -> (u64, &'static str) {
        match self.loss.spec().family {
            Family::Logits(_) => (self.bytes::<f32>(), "B/s"),
            Family::Triplet(_) if self.triplets() > 0 => (self.triplets(), "triplet/s"),
            Family::Pairwise(_)
            | Family::Triplet(_)
            | Family::Contrastive(_)
            | Family::Towers(_)
            | Family::Sampled(_) => (self.flops(), "flop/s"),
        }
    }
}
