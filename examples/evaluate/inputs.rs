//! Which matrices each loss is evaluated on.

use std::path::{Path, PathBuf};

use relata::{Family, Loss, Pairwise, Penalty, QueueUse};

use crate::failure::{Failure, Result};
use crate::files::{self, Matrix};
use crate::options::Options;

/// What one loss is evaluated on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Inputs<'a> {
    pub(crate) student: &'a Matrix,
    pub(crate) teacher: &'a Matrix,
    /// Past teacher keys, the oldest first, for a loss that takes a queue.
    pub(crate) keys: Option<&'a Matrix>,
}

/// A student and the teacher of the same samples.
#[derive(Debug)]
struct Pair {
    student: Matrix,
    teacher: Matrix,
}

/// All that was read.
#[derive(Debug)]
pub(crate) struct Sources {
    pairs: Pairs,
    /// `--queue`.
    queue: Option<Matrix>,
}

#[derive(Debug)]
enum Pairs {
    /// `--student` and `--teacher`, for every loss.
    Files(Pair),
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
        let pairs = match (&options.student, &options.teacher) {
            (Some(student), Some(teacher)) => Pairs::Files(Pair::load(student, teacher)?),
            _ => Pairs::Digits(Box::new(Digits::load(options.asks_for_reference())?)),
        };
        let queue = options.queue.as_deref();
        let queue = queue.map(|path| files::read("--queue", path)).transpose()?;
        if let Some(Matrix {
            origin,
            groups: Some(groups),
            ..
        }) = &queue
        {
            let why = format!("expected dimensions [keys, dim], got {groups} groups of keys");
            return Err(Failure::refused(origin, why));
        }
        Ok(Sources { pairs, queue })
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
                Family::Contrastive(_) => &digits.projection,
                Family::Logits(_) => &digits.logits,
            },
        };
        Inputs {
            student: &pair.student,
            teacher: &pair.teacher,
            keys: self.keys(loss),
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

impl Pair {
    fn load(student: &Path, teacher: &Path) -> Result<Self> {
        let student = files::read("--student", student)?;
        let teacher = files::read("--teacher", teacher)?;
        if student.rows != teacher.rows {
            let why = format!(
                "expected {} rows, as {} has, got {}",
                student.rows, student.origin, teacher.rows
            );
            return Err(Failure::refused(&teacher.origin, why));
        }
        if student.groups != teacher.groups {
            let text = |groups: Option<usize>| match groups {
                Some(groups) => format!("{groups} groups of rows"),
                None => "rows without groups".to_owned(),
            };
            let (expected, got) = (text(student.groups), text(teacher.groups));
            let why = format!("expected {expected}, as {} has, got {got}", student.origin);
            return Err(Failure::refused(&teacher.origin, why));
        }
        Ok(Pair { student, teacher })
    }

    /// The same of the first `rows` samples.
    fn first(&self, rows: usize) -> Self {
        let first = |matrix: &Matrix| {
            let rows = rows.min(matrix.rows);
            Matrix {
                origin: matrix.origin.clone(),
                values: matrix.values[..rows * matrix.dim].to_vec(),
                rows,
                dim: matrix.dim,
                groups: None,
            }
        };
        Pair {
            student: first(&self.student),
            teacher: first(&self.teacher),
        }
    }
}

/// How many of the digits a loss over triples, or over pairs of pairs, sees where the reference is
/// asked for. It takes N³D or N⁴ for such a loss, which for all 512 of them is a quarter of a minute
/// or more.
pub(crate) const DIGITS_FOR_TRIPLES: usize = 256;

impl Digits {
    /// Reads the held-out digits: see `examples/data/README.md`.
    fn load(for_reference: bool) -> Result<Self> {
        let pair = |kind: &str| {
            Pair::load(
                &digits_tensor(&format!("student.{kind}")),
                &digits_tensor(&format!("teacher.{kind}")),
            )
        };
        let embedding = pair("embedding")?;
        Ok(Digits {
            triples: embedding.first(if for_reference {
                DIGITS_FOR_TRIPLES
            } else {
                embedding.student.rows
            }),
            embedding,
            projection: pair("projection")?,
            logits: pair("logits")?,
            queue: files::read("queue", &digits_tensor("queue"))?,
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
