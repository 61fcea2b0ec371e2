//! The rows of all ranks. Each rank reads all of them, and takes its own.

use std::path::{Path, PathBuf};

use relata::ranks::Gathered;
use relata::{Batch, Element, Family, Loss, Queue, QueueUse, Rows, TeacherUse, Towers};

use crate::check;
use crate::failure::{Failure, Result};
use crate::files::{self, Holds, Matrix};
use crate::options::{Options, has_halves};

/// What was read.
pub(crate) enum Sources {
    Files(Box<Files>),
    /// `examples/data`.
    Digits,
}

pub(crate) struct Files {
    student: Matrix,
    teacher: Option<Matrix>,
    queue: Option<Matrix>,
    labels: Option<Vec<u32>>,
}

/// Rows that are compared with one another, or with those of a second tower.
#[derive(Clone, Copy)]
struct Tower<'a> {
    origin: &'a str,
    values: &'a [f64],
    dim: usize,
}

impl<'a> Tower<'a> {
    fn whole(matrix: &'a Matrix) -> Self {
        Tower {
            origin: &matrix.origin,
            values: &matrix.values,
            dim: matrix.dim,
        }
    }

    /// The towers in a file, which are its halves where there are two.
    fn of(matrix: &'a Matrix, halves: bool) -> Result<Vec<Self>> {
        let whole = Tower::whole(matrix);
        if !halves {
            return Ok(vec![whole]);
        }
        check(matrix.rows.is_multiple_of(2), &matrix.origin, || {
            format!(
                "expected two towers of as many rows each, got {} rows",
                matrix.rows
            )
        })?;
        let (first, second) = matrix.values.split_at(matrix.values.len() / 2);
        Ok([first, second]
            .map(|values| Tower { values, ..whole })
            .to_vec())
    }
}

/// The batch of all ranks for one loss.
pub(crate) struct Inputs<T: Element> {
    pub(crate) rows: usize,
    pub(crate) student: Vec<T>,
    pub(crate) student_dim: usize,
    pub(crate) teacher: Vec<T>,
    pub(crate) teacher_dim: usize,
    pub(crate) labels: Option<Vec<u32>>,
    pub(crate) queue: Option<Queue<T::Real>>,
    /// Whether the rows are two towers, one after the other.
    pub(crate) halves: bool,
}

impl Sources {
    pub(crate) fn load(options: &Options) -> Result<Self> {
        let Some(student) = &options.student else {
            return Ok(Sources::Digits);
        };
        let read = |argument, path: &Option<PathBuf>| {
            let path = path.as_deref();
            path.map(|path| files::read(argument, path, Holds::Rows))
                .transpose()
        };
        let labels = options.labels.as_deref();
        let labels = labels
            .map(|path| files::read_labels("--labels", path))
            .transpose()?;
        Ok(Sources::Files(Box::new(Files {
            student: files::read("--student", student, Holds::Rows)?,
            teacher: read("--teacher", &options.teacher)?,
            queue: read("--queue", &options.queue)?,
            labels: labels.map(|labels| labels.ids),
        })))
    }

    /// The first rows of what `loss` takes, as many as are dealt.
    pub(crate) fn inputs<T: Element>(&self, loss: &Loss, deal: &[usize]) -> Result<Inputs<T>> {
        let rows = deal.iter().sum();
        let spec = loss.spec();
        let family = spec.family;
        let halves = has_halves(loss);
        let odd = deal.iter().find(|rows| halves && !rows.is_multiple_of(2));
        check(odd.is_none(), "--deal", || {
            let rows = odd.unwrap_or(&0);
            format!("expected an even number for each rank, as {loss} has two towers, got {rows}")
        })?;
        let with_labels = matches!(family, Family::Towers(Towers::Labels { .. }));
        let takes_teacher = spec.teacher != TeacherUse::Never;
        let takes_queue = spec.queue == QueueUse::Required
            || spec.queue == QueueUse::Optional && matches!(self, Sources::Files(_));
        match self {
            Sources::Files(files) => {
                let teacher = files.teacher.as_ref().filter(|_| takes_teacher);
                let queue = files.queue.as_ref().filter(|_| takes_queue);
                let labels = files.labels.as_ref().filter(|_| with_labels);
                let towers = |matrix| Tower::of(matrix, halves);
                let student = towers(&files.student)?;
                let teacher = teacher.map(towers).transpose()?.unwrap_or_default();
                let mut inputs = Inputs::new(rows, &student, &teacher, halves)?;
                inputs.queue = queue.map(|keys| ring(keys, spec.normalize)).transpose()?;
                inputs.labels = labels.map(|all| first_labels(all, rows)).transpose()?;
                Ok(inputs)
            }
            Sources::Digits => {
                let kind = match family {
                    Family::Logits(_) => "logits",
                    Family::Pairwise(_) | Family::Triplet(_) => "embedding",
                    _ => "projection",
                };
                let student = digits(&format!("student.{kind}"), Holds::Rows)?;
                let teacher = digits(&format!("teacher.{kind}"), Holds::Rows)?;
                let [student, teacher] = [&student, &teacher].map(Tower::whole);
                // The teacher's projections are the second tower, and the student's are its teacher.
                let (students, mut teachers) = match halves {
                    true => (vec![student, teacher], vec![teacher, student]),
                    false => (vec![student], vec![teacher]),
                };
                if !takes_teacher {
                    teachers.clear();
                }
                let mut inputs = Inputs::new(rows, &students, &teachers, halves)?;
                if takes_queue {
                    inputs.queue = Some(ring(&digits("queue", Holds::Rows)?, spec.normalize)?);
                }
                if with_labels {
                    let labels = files::read_labels("labels", &digits_tensor("label"))?;
                    inputs.labels = Some(first_labels(&labels.ids, rows)?);
                }
                Ok(inputs)
            }
        }
    }
}

impl<T: Element> Inputs<T> {
    /// The first rows of each tower, as many of each.
    fn new(rows: usize, student: &[Tower], teacher: &[Tower], halves: bool) -> Result<Self> {
        let take = |towers: &[Tower]| -> Result<(Vec<T>, usize)> {
            let mut values = Vec::new();
            let each = rows / towers.len().max(1);
            for tower in towers {
                let there = tower.values.len() / tower.dim.max(1);
                check(there >= each, tower.origin, || {
                    format!("expected at least {each} rows, got {there}")
                })?;
                let first = &tower.values[..each * tower.dim];
                values.extend(first.iter().map(|&value| T::from_f64(value)));
            }
            Ok((values, towers.first().map_or(0, |tower| tower.dim)))
        };
        let (student, student_dim) = take(student)?;
        let (teacher, teacher_dim) = take(teacher)?;
        Ok(Inputs {
            rows,
            student,
            student_dim,
            teacher,
            teacher_dim,
            labels: None,
            queue: None,
            halves,
        })
    }

    pub(crate) fn batch(&self) -> relata::Result<Batch<'_, T>> {
        let batch = Batch::new(
            Rows::new(&self.student, [self.rows, self.student_dim])?,
            Rows::new(&self.teacher, [self.rows, self.teacher_dim])?,
        );
        Ok(match &self.labels {
            Some(labels) => batch.with_labels(labels),
            None => batch,
        })
    }

    /// The rows of one rank, cut to this width.
    pub(crate) fn of_rank(&self, deal: &[usize], rank: usize, width: usize) -> Self {
        let own = self.places(deal, rank);
        let pick = |all: &[T], dim: usize, width: usize| -> Vec<T> {
            let rows = own.iter().map(|&row| &all[row * dim..][..width]);
            rows.collect::<Vec<_>>().concat()
        };
        let labels = self.labels.as_ref();
        Inputs {
            rows: own.len(),
            student: pick(&self.student, self.student_dim, width),
            student_dim: width,
            teacher: pick(&self.teacher, self.teacher_dim, self.teacher_dim),
            labels: labels.map(|all| own.iter().map(|&row| all[row]).collect()),
            queue: self.queue.clone(),
            ..*self
        }
    }

    /// The gradients of all ranks as that of one.
    pub(crate) fn together<P: bytemuck::Pod>(&self, deal: &[usize], ranks: &Gathered) -> Vec<P> {
        let dim = self.student_dim;
        let mut all = vec![P::zeroed(); self.rows * dim];
        for (rank, bytes) in ranks.iter().enumerate() {
            let own: Vec<P> = bytemuck::pod_collect_to_vec(bytes);
            for (row, values) in self.places(deal, rank).into_iter().zip(own.chunks(dim)) {
                all[row * dim..][..dim].copy_from_slice(values);
            }
        }
        all
    }

    /// Where the rows of a rank are among all.
    fn places(&self, deal: &[usize], rank: usize) -> Vec<usize> {
        let (before, own) = (deal[..rank].iter().sum::<usize>(), deal[rank]);
        if !self.halves {
            return (before..before + own).collect();
        }
        let first = before / 2..(before + own) / 2;
        let second = first.clone().map(|row| self.rows / 2 + row);
        first.clone().chain(second).collect()
    }
}

fn ring<R: relata::Real>(keys: &Matrix, normalize: bool) -> Result<Queue<R>> {
    let refused = |error: relata::Error| Failure::refused(&keys.origin, error);
    let values: Vec<R> = keys
        .values
        .iter()
        .map(|&value| R::from_f64(value))
        .collect();
    let queue = Queue::new(keys.rows, keys.dim).map_err(refused)?;
    let mut queue = queue.with_normalize(normalize);
    let rows = Rows::new(&values, [keys.rows, keys.dim]).map_err(refused)?;
    queue.enqueue(rows).map_err(refused)?;
    Ok(queue)
}

fn first_labels(all: &[u32], rows: usize) -> Result<Vec<u32>> {
    let first = all.get(..rows).map(<[u32]>::to_vec);
    let why = || format!("expected at least {rows} labels, got {}", all.len());
    first.ok_or_else(|| Failure::refused("--labels", why()))
}

fn digits(tensor: &str, holds: Holds) -> Result<Matrix> {
    files::read(tensor, &digits_tensor(tensor), holds)
}

fn digits_tensor(name: &str) -> PathBuf {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/data");
    PathBuf::from(format!(
        "{}:{name}",
        data.join("digits.safetensors").display()
    ))
}
