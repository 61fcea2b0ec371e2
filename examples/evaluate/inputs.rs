//! Which matrices each loss is evaluated on.

use std::path::{Path, PathBuf};

use relata::{Family, LabelUse, Loss, Pairwise, Penalty, QueueUse, Shapes};

use crate::checks::{WITHOUT_GROUPS, check_rows, check_weights, check_width};
use crate::failure::{Failure, Result};
use crate::files::{self, Holds, Labels, Matrix};
use crate::options::Options;
use crate::teacher::Teacher;

/// What one loss is evaluated on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Inputs<'a> {
    pub(crate) student: &'a Matrix,
    /// One of the teachers: see [`each`](Self::each).
    pub(crate) teacher: &'a Teacher,
    /// The student with all of its teachers, and which of them is the teacher.
    pair: &'a Pair,
    nth: usize,
    /// The second tower of a loss that compares two.
    pub(crate) second: Option<&'a Pair>,
    /// Past teacher keys, the oldest first, for a loss that takes a queue.
    pub(crate) keys: Option<&'a Matrix>,
    /// One column: what each row counts for.
    pub(crate) row_weights: Option<&'a Matrix>,
    /// For each row, which others it belongs to.
    pub(crate) labels: Option<&'a Labels>,
}

impl<'a> Inputs<'a> {
    /// How many teachers there are, of which a loss is the mean.
    pub(crate) fn teachers(&self) -> usize {
        self.pair.teachers.len()
    }

    /// The same with each of the teachers.
    pub(crate) fn each(self) -> impl Iterator<Item = Self> {
        let teachers = self.pair.teachers.iter().enumerate();
        teachers.map(move |(nth, teacher)| Inputs {
            teacher,
            nth,
            ..self
        })
    }

    /// The rows of a batch: those of both towers, one after the other, where there are two.
    pub(crate) fn batch_rows(&self) -> usize {
        self.student.rows * if self.second.is_some() { 2 } else { 1 }
    }

    pub(crate) fn has_teacher(&self) -> bool {
        self.teacher.matrix().dim > 0
    }

    /// The second tower's student.
    pub(crate) fn second_student(&self) -> Option<&'a Matrix> {
        self.second.map(|second| &second.student)
    }

    /// The second tower's teacher.
    pub(crate) fn second_teacher(&self) -> Option<&'a Matrix> {
        self.second.map(|second| second.teachers[self.nth].matrix())
    }

    /// The sizes of a batch, without its queue.
    pub(crate) fn shapes(&self) -> Shapes {
        let (rows, dim) = (self.batch_rows(), self.student.dim);
        let shapes = match self.teacher {
            Teacher::Rows(teacher) => Shapes::new(rows, dim, teacher.dim),
            Teacher::TopK(top) => Shapes::of_top_k(rows, dim, top.ids.dim),
        };
        Shapes {
            row_weights: self.row_weights.is_some(),
            labels: self.labels.is_some(),
            ..shapes
        }
    }
}

/// A student and its teachers of the same samples, at least one.
#[derive(Debug)]
pub(crate) struct Pair {
    student: Matrix,
    teachers: Vec<Teacher>,
}

/// Rows whose relations are drawn.
#[derive(Debug)]
pub(crate) struct Pictured<'a> {
    pub(crate) student: &'a Matrix,
    pub(crate) teacher: &'a Matrix,
    /// One for each row, or none.
    labels: Vec<u32>,
}

impl Pictured<'_> {
    /// The rows in the order of their labels.
    pub(crate) fn by_label(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.student.rows).collect();
        order.sort_by_key(|&row| self.labels.get(row));
        order
    }
}

/// All that was read.
#[derive(Debug)]
pub(crate) struct Sources {
    pairs: Pairs,
    /// `--queue`.
    queue: Option<Matrix>,
    /// `--row-weights`.
    row_weights: Option<Matrix>,
    /// `--student-keys` and `--teacher-keys`.
    second: Option<Pair>,
    /// `--labels`.
    labels: Option<Labels>,
}

#[derive(Debug)]
enum Pairs {
    /// `--student` and its teacher, for every loss.
    Files(Box<Pair>),
    /// The embeddings in `examples/data`.
    Digits(Box<Digits>),
}

/// Of two networks on the same images, what each kind of loss is for.
#[derive(Debug)]
struct Digits {
    embedding: Pair,
    /// The first rows of `embedding`, for losses that compare triples, or pairs with pairs.
    triples: Pair,
    projection: Pair,
    logits: Pair,
    queue: Matrix,
}

impl Sources {
    /// Reads the files the options name, or those of `examples/data`.
    pub(crate) fn load(options: &Options) -> Result<Self> {
        let pairs = match &options.student {
            Some(student) => Pairs::Files(Box::new(Pair::load(student, options)?)),
            None => Pairs::Digits(Box::new(Digits::load(options.asks_for_reference())?)),
        };
        let (second, labels) = match &pairs {
            Pairs::Files(first) => (
                first.load_second(options)?,
                first.student.load_labels(options)?,
            ),
            // The command line asks for files beside these.
            Pairs::Digits(_) => (None, None),
        };
        let read = |argument, path: &Option<PathBuf>, holds| {
            let path = path.as_deref();
            path.map(|path| files::read(argument, path, holds))
                .transpose()
        };
        let queue = read("--queue", &options.queue, Holds::Rows)?;
        if queue.is_some() && options.teachers.len() > 1 {
            let why = format!(
                "expected one --teacher with it, whose keys it holds, got {}",
                options.teachers.len()
            );
            return Err(Failure::refused("--queue", why));
        }
        let mut row_weights = read("--row-weights", &options.row_weights, Holds::Weights)?;
        if let (Some(weights), Some(rows)) = (&mut row_weights, options.rows) {
            weights.keep_first(rows)?;
        }
        if let Some(weights) = &mut row_weights {
            if let Pairs::Files(pair) = &pairs {
                weights.fit(&pair.student);
            }
            check_weights(weights)?;
        }
        if let Some(Matrix {
            origin,
            groups: Some(groups),
            ..
        }) = &queue
        {
            let why = format!(
                "expected dimensions [keys, dim], got {groups} groups of keys; {WITHOUT_GROUPS}"
            );
            return Err(Failure::refused(origin, why));
        }
        Ok(Sources {
            pairs,
            queue,
            row_weights,
            second,
            labels,
        })
    }

    /// The matrices `loss` is evaluated on.
    pub(crate) fn inputs(&self, loss: &Loss) -> Inputs<'_> {
        let pair = match &self.pairs {
            Pairs::Files(pair) => pair,
            Pairs::Digits(digits) => match loss.spec().family {
                Family::Pairwise(Pairwise {
                    penalty: Penalty::Order { .. },
                    ..
                })
                | Family::Triplet(_) => &digits.triples,
                Family::Pairwise(_) => &digits.embedding,
                Family::Contrastive(_) | Family::Towers(_) | Family::Sampled(_) => {
                    &digits.projection
                }
                Family::Logits(_) => &digits.logits,
            },
        };
        Inputs {
            student: &pair.student,
            teacher: &pair.teachers[0],
            pair,
            nth: 0,
            keys: self.keys(loss),
            row_weights: self.row_weights.as_ref(),
            second: self.second.as_ref(),
            // For a picture alone, if the loss takes none.
            labels: self
                .labels
                .as_ref()
                .filter(|_| loss.spec().labels != LabelUse::Never),
        }
    }

    /// What a picture shows.
    pub(crate) fn pictured(&self) -> Result<Pictured<'_>> {
        let refused = |got: &str| {
            let why = format!("expected one teacher's rows, and one tower of each, got {got}");
            Err(Failure::refused("--plot", why))
        };
        let pair = match &self.pairs {
            Pairs::Files(pair) => pair,
            Pairs::Digits(digits) => &digits.embedding,
        };
        let teacher = match &pair.teachers[..] {
            [Teacher::Rows(rows)] if rows.dim > 0 => rows,
            [Teacher::TopK(_)] => return refused("lists of classes"),
            [_, _, ..] => return refused("several teachers"),
            _ => return refused("no teacher"),
        };
        if self.second.is_some() {
            return refused("two towers");
        }
        let labels = match (&self.labels, &self.pairs) {
            (Some(labels), _) => labels.ids.clone(),
            (None, Pairs::Digits(_)) => {
                let labels = files::read_labels("label", &digits_tensor("label"))?;
                labels.ids[..pair.student.rows].to_vec()
            }
            (None, Pairs::Files(_)) => Vec::new(),
        };
        Ok(Pictured {
            student: &pair.student,
            teacher,
            labels,
        })
    }

    fn keys(&self, loss: &Loss) -> Option<&Matrix> {
        let given = self.queue.as_ref();
        match (loss.spec().queue, &self.pairs) {
            (QueueUse::Never, _) => None,
            (QueueUse::Required, Pairs::Digits(digits)) => given.or(Some(&digits.queue)),
            (QueueUse::Required, Pairs::Files(_)) | (QueueUse::Optional, _) => given,
        }
    }
}

impl Pair {
    fn load(student: &Path, options: &Options) -> Result<Self> {
        let student = files::read("--student", student, Holds::Rows)?;
        Pair::cut(student, Teacher::load(options)?, options)
    }

    /// Reads the second tower, if the options name one: `self` is the first.
    fn load_second(&self, options: &Options) -> Result<Option<Self>> {
        let towers = &options.towers;
        let Some(student) = &towers.student_keys else {
            return Ok(None);
        };
        let student = files::read("--student-keys", student, Holds::Rows)?;
        let teachers = Teacher::of_rows("--teacher-keys", &towers.teacher_keys)?;
        for student in [&self.student, &student] {
            student.without_groups()?;
        }
        let second = Pair::cut(student, teachers, options)?;
        check_rows(&self.student, &second.student)?;
        check_width(&self.student, &second.student)?;
        for (first, second) in self.teachers.iter().zip(&second.teachers) {
            check_width(first.matrix(), second.matrix())?;
        }
        Ok(Some(second))
    }

    /// The first rows, of as many as are asked for.
    fn cut(mut student: Matrix, mut teachers: Vec<Teacher>, options: &Options) -> Result<Self> {
        if let Some(rows) = options.rows {
            student.keep_first(rows)?;
            for teacher in &mut teachers {
                teacher.keep_first(rows)?;
            }
        }
        if teachers.is_empty() {
            teachers.push(Teacher::none_for(&student));
        }
        Pair::new(student, teachers)
    }

    fn new(mut student: Matrix, mut teachers: Vec<Teacher>) -> Result<Self> {
        for teacher in &teachers {
            student.fit(teacher.matrix());
        }
        for teacher in &mut teachers {
            teacher.fit(&student);
            check_rows(&student, teacher.matrix())?;
        }
        Ok(Pair { student, teachers })
    }
}

/// How many of the digits a loss over triples, or over pairs of pairs, sees where the reference is
/// asked for. It takes N³D or N⁴ for such a loss, which for all 512 of them is a quarter of a minute
/// or more.
pub(crate) const DIGITS_FOR_TRIPLES: usize = 256;

impl Digits {
    /// Reads the held-out digits: see `examples/data/README.md`.
    fn load(for_reference: bool) -> Result<Self> {
        let pair = |kind: &str, rows: usize| {
            let tensor = |of: &str| -> Result<Matrix> {
                let path = digits_tensor(&format!("{of}.{kind}"));
                let mut matrix = files::read(of, &path, Holds::Rows)?;
                matrix.keep_first(rows.min(matrix.rows))?;
                Ok(matrix)
            };
            Pair::new(tensor("student")?, vec![Teacher::Rows(tensor("teacher")?)])
        };
        let for_triples = if for_reference {
            DIGITS_FOR_TRIPLES
        } else {
            usize::MAX
        };
        Ok(Digits {
            triples: pair("embedding", for_triples)?,
            embedding: pair("embedding", usize::MAX)?,
            projection: pair("projection", usize::MAX)?,
            logits: pair("logits", usize::MAX)?,
            queue: files::read("queue", &digits_tensor("queue"), Holds::Rows)?,
        })
    }
}

/// Outputs of two networks on the same images.
pub(crate) const DIGITS: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/examples/data/digits.safetensors"
);

fn digits_tensor(name: &str) -> PathBuf {
    PathBuf::from(format!("{DIGITS}:{name}"))
}
