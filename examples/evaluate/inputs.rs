//! Which matrices each loss is evaluated on.

use std::path::{Path, PathBuf};

use relata::{Family, Loss, Pairwise, Penalty, QueueUse};

use crate::failure::{Failure, Result};
use crate::files::{self, Holds, Matrix};
use crate::options::Options;

/// What one loss is evaluated on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Inputs<'a> {
    pub(crate) student: &'a Matrix,
    pub(crate) teacher: &'a Teacher,
    /// Past teacher keys, the oldest first, for a loss that takes a queue.
    pub(crate) keys: Option<&'a Matrix>,
    /// One column: what each row counts for.
    pub(crate) row_weights: Option<&'a Matrix>,
}

/// What the student is compared with.
#[derive(Debug)]
pub(crate) enum Teacher {
    /// `--teacher`
    Rows(Matrix),
    /// `--teacher-ids` and `--teacher-log-probs`
    TopK(TopClasses),
}

/// Of each row, the most likely classes.
#[derive(Debug)]
pub(crate) struct TopClasses {
    /// The classes as the file has them.
    pub(crate) ids: Matrix,
    /// The same; 0 where the file has no class because it has no probability.
    pub(crate) classes: Vec<u32>,
    pub(crate) log_probs: Matrix,
}

/// A student and the teacher of the same samples.
#[derive(Debug)]
struct Pair {
    student: Matrix,
    teacher: Teacher,
}

/// All that was read.
#[derive(Debug)]
pub(crate) struct Sources {
    pairs: Pairs,
    /// `--queue`.
    queue: Option<Matrix>,
    /// `--row-weights`.
    row_weights: Option<Matrix>,
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
        let read = |argument, path: &Option<PathBuf>, holds| {
            let path = path.as_deref();
            path.map(|path| files::read(argument, path, holds))
                .transpose()
        };
        let queue = read("--queue", &options.queue, Holds::Rows)?;
        let mut row_weights = read("--row-weights", &options.row_weights, Holds::Weights)?;
        if let (Some(weights), Some(rows)) = (&mut row_weights, options.rows) {
            weights.keep_first(rows)?;
        }
        if let Some(weights) = &row_weights {
            check_weights(weights)?;
        }
        if let Some(Matrix {
            origin,
            groups: Some(groups),
            ..
        }) = &queue
        {
            let why = format!("expected dimensions [keys, dim], got {groups} groups of keys");
            return Err(Failure::refused(origin, why));
        }
        Ok(Sources {
            pairs,
            queue,
            row_weights,
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
                Family::Contrastive(_) | Family::Towers(_) => &digits.projection,
                Family::Logits(_) => &digits.logits,
            },
        };
        Inputs {
            student: &pair.student,
            teacher: &pair.teacher,
            keys: self.keys(loss),
            row_weights: self.row_weights.as_ref(),
        }
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

impl Matrix {
    /// Drops the rows from `rows` on.
    fn keep_first(&mut self, rows: usize) -> Result<()> {
        if self.groups.is_some() {
            let why = format!(
                "expected a file of dimensions [N, D], got {}, of [B, N, D]",
                self.origin
            );
            return Err(Failure::refused("--rows", why));
        }
        if rows > self.rows {
            let why = format!(
                "expected at most {}, as {} has, got {rows}",
                self.rows, self.origin
            );
            return Err(Failure::refused("--rows", why));
        }
        self.rows = rows;
        self.values.truncate(rows * self.dim);
        Ok(())
    }
}

impl Teacher {
    fn load(options: &Options) -> Result<Self> {
        // One of both has come: the command line asks for it.
        match (&options.teacher_ids, &options.teacher_log_probs) {
            (Some(ids), Some(log_probs)) => TopClasses::load(ids, log_probs).map(Teacher::TopK),
            _ => Teacher::of_rows(options.teacher.as_deref().unwrap_or(Path::new(""))),
        }
    }

    fn of_rows(path: &Path) -> Result<Self> {
        files::read("--teacher", path, Holds::Rows).map(Teacher::Rows)
    }

    /// Drops the rows from `rows` on.
    fn keep_first(&mut self, rows: usize) -> Result<()> {
        match self {
            Teacher::Rows(teacher) => teacher.keep_first(rows),
            Teacher::TopK(top) => {
                top.ids.keep_first(rows)?;
                top.log_probs.keep_first(rows)?;
                top.classes.truncate(rows * top.ids.dim);
                Ok(())
            }
        }
    }

    /// The rows or their lists: both have as many columns as a row has entries.
    pub(crate) fn matrix(&self) -> &Matrix {
        match self {
            Teacher::Rows(rows) => rows,
            Teacher::TopK(top) => &top.ids,
        }
    }
}

impl TopClasses {
    fn load(ids: &Path, log_probs: &Path) -> Result<Self> {
        let ids = files::read("--teacher-ids", ids, Holds::Classes)?;
        let log_probs = files::read("--teacher-log-probs", log_probs, Holds::Rows)?;
        check_rows(&ids, &log_probs)?;
        if ids.dim != log_probs.dim {
            let why = format!(
                "expected {} classes a row, as {} has, got {}",
                ids.dim, ids.origin, log_probs.dim
            );
            return Err(Failure::refused(&log_probs.origin, why));
        }
        let mut top = TopClasses {
            classes: Vec::new(),
            ids,
            log_probs,
        };
        top.check_below(f64::from(u32::MAX) + 1.0, "2^32")?;
        let class = |(at, &id): (usize, &f64)| if top.is_listed(at) { id as u32 } else { 0 };
        top.classes = top.ids.values.iter().enumerate().map(class).collect();
        Ok(top)
    }

    /// Whether an entry has a probability. Where a row has fewer classes, files hold any number.
    fn is_listed(&self, at: usize) -> bool {
        self.log_probs.values[at] != f64::NEG_INFINITY
    }

    /// Refuses what is no class below `classes`, which `described` says in words.
    pub(crate) fn check_below(&self, classes: f64, described: &str) -> Result<()> {
        let ids = &self.ids;
        let mut entries = ids.values.iter().enumerate();
        let wrong = entries.find(|&(at, &id)| self.is_listed(at) && !(0.0..classes).contains(&id));
        match wrong {
            None => Ok(()),
            Some((at, id)) => {
                let (row, column) = (at / ids.dim, at % ids.dim);
                let why = format!(
                    "expected classes from 0 and below {described}, got {id} at row {row}, column \
                     {column}; an entry of log-probability -inf is left out"
                );
                Err(Failure::refused(&ids.origin, why))
            }
        }
    }
}

/// Refuses weights that are negative or not finite.
fn check_weights(weights: &Matrix) -> Result<()> {
    let mut values = weights.values.iter().enumerate();
    match values.find(|(_, weight)| !(weight.is_finite() && **weight >= 0.0)) {
        None => Ok(()),
        Some((row, weight)) => {
            let why = format!("expected finite numbers of at least 0, got {weight} at row {row}");
            Err(Failure::refused(&weights.origin, why))
        }
    }
}

/// Refuses `other` unless its rows, and the groups of them, are those of `first`.
pub(crate) fn check_rows(first: &Matrix, other: &Matrix) -> Result<()> {
    let text = |groups: Option<usize>| match groups {
        Some(groups) => format!("{groups} groups of rows"),
        None => "rows without groups".to_owned(),
    };
    let (expected, got) = if first.rows != other.rows {
        (format!("{} rows", first.rows), other.rows.to_string())
    } else if first.groups != other.groups {
        (text(first.groups), text(other.groups))
    } else {
        return Ok(());
    };
    let why = format!("expected {expected}, as {} has, got {got}", first.origin);
    Err(Failure::refused(&other.origin, why))
}

impl Pair {
    fn load(student: &Path, options: &Options) -> Result<Self> {
        let mut student = files::read("--student", student, Holds::Rows)?;
        let mut teacher = Teacher::load(options)?;
        if let Some(rows) = options.rows {
            student.keep_first(rows)?;
            teacher.keep_first(rows)?;
        }
        Pair::new(student, teacher)
    }

    fn new(student: Matrix, teacher: Teacher) -> Result<Self> {
        check_rows(&student, teacher.matrix())?;
        Ok(Pair { student, teacher })
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
            Pair::new(tensor("student")?, Teacher::Rows(tensor("teacher")?))
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

fn digits_tensor(name: &str) -> PathBuf {
    let file = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/examples/data/digits.safetensors"
    );
    PathBuf::from(format!("{file}:{name}"))
}
