//! What the student is compared with.

use std::path::{Path, PathBuf};

use crate::checks::check_rows;
use crate::failure::{Failure, Result};
use crate::files::{self, Holds, Matrix};
use crate::options::Options;

/// What the student is compared with.
#[derive(Debug)]
pub(crate) enum Teacher {
    /// `--teacher`; rows without columns where there is none.
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

impl Teacher {
    /// The teachers that the options name.
    pub(crate) fn load(options: &Options) -> Result<Vec<Self>> {
        match (&options.teacher_ids, &options.teacher_log_probs) {
            (Some(ids), Some(log_probs)) => {
                TopClasses::load(ids, log_probs).map(|top| vec![Teacher::TopK(top)])
            }
            _ => Teacher::of_rows("--teacher", &options.teachers),
        }
    }

    pub(crate) fn of_rows(argument: &str, paths: &[PathBuf]) -> Result<Vec<Self>> {
        let read = |path: &PathBuf| files::read(argument, path, Holds::Rows).map(Teacher::Rows);
        paths.iter().map(read).collect()
    }

    /// No teacher of the rows of `student`.
    pub(crate) fn none_for(student: &Matrix) -> Self {
        Teacher::Rows(Matrix {
            origin: "no teacher".to_owned(),
            values: Vec::new(),
            dim: 0,
            ..*student
        })
    }

    /// Drops the rows from `rows` on.
    pub(crate) fn keep_first(&mut self, rows: usize) -> Result<()> {
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

    /// As [`Matrix::fit`].
    pub(crate) fn fit(&mut self, student: &Matrix) {
        match self {
            Teacher::Rows(teacher) => teacher.fit(student),
            Teacher::TopK(top) => {
                top.ids.fit(student);
                top.log_probs.fit(student);
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
                "expected {} classes a row, as {} has, got {}; save as many of both",
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
