//! Whether files belong to one another: each refusal names what helps.

use crate::failure::{Failure, Result};
use crate::files::{self, Labels, Matrix};
use crate::options::Options;

/// What helps where rows have groups.
pub(crate) const WITHOUT_GROUPS: &str =
    "a.reshape(-1, dim) in NumPy or PyTorch makes one group of them";

impl Matrix {
    /// Refuses groups, where rows of all groups are compared.
    pub(crate) fn without_groups(&self) -> Result<()> {
        match self.groups {
            None => Ok(()),
            Some(groups) => {
                let why = format!(
                    "expected dimensions [rows, dim], got {groups} groups of rows; {WITHOUT_GROUPS}"
                );
                Err(Failure::refused(&self.origin, why))
            }
        }
    }

    /// Reads a label for each row, if the options name a file of them.
    pub(crate) fn load_labels(&self, options: &Options) -> Result<Option<Labels>> {
        let Some(path) = &options.towers.labels else {
            return Ok(None);
        };
        self.without_groups()?;
        let mut labels = files::read_labels("--labels", path)?;
        if let Some(rows) = options.rows {
            check_enough(rows, labels.ids.len(), &labels.origin)?;
            labels.ids.truncate(rows);
        }
        if labels.ids.len() != self.rows {
            let why = format!(
                "expected {} labels, one for each row of {}, got {}; {}",
                self.rows,
                self.origin,
                labels.ids.len(),
                first_rows(self.rows.min(labels.ids.len()))
            );
            return Err(Failure::refused(&labels.origin, why));
        }
        Ok(Some(labels))
    }

    /// Drops the rows from `rows` on.
    pub(crate) fn keep_first(&mut self, rows: usize) -> Result<()> {
        if self.groups.is_some() {
            let why = format!(
                "expected a file of dimensions [N, D], got {}, of [B, N, D]",
                self.origin
            );
            return Err(Failure::refused("--rows", why));
        }
        check_enough(rows, self.rows, &self.origin)?;
        self.rows = rows;
        self.values.truncate(rows * self.dim);
        Ok(())
    }
}

/// What helps where files have different numbers of rows.
fn first_rows(rows: usize) -> String {
    format!("--rows {rows} takes the first {rows} of all files")
}

/// Refuses to take the first `rows` of fewer.
fn check_enough(rows: usize, most: usize, origin: &str) -> Result<()> {
    if rows <= most {
        return Ok(());
    }
    let why = format!("expected at most {most}, as {origin} has, got {rows}");
    Err(Failure::refused("--rows", why))
}

/// Refuses weights that are negative or not finite.
pub(crate) fn check_weights(weights: &Matrix) -> Result<()> {
    let mut values = weights.values.iter().enumerate();
    match values.find(|(_, weight)| !(weight.is_finite() && **weight >= 0.0)) {
        None => Ok(()),
        Some((row, weight)) => {
            let why = format!(
                "expected finite numbers of at least 0, got {weight} at row {row}; 0 leaves a row out"
            );
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
    let (expected, got, cure) = if first.rows != other.rows {
        let cure = match (first.groups, other.groups) {
            (None, None) => first_rows(first.rows.min(other.rows)),
            _ => "both are to be of the same samples".to_owned(),
        };
        (format!("{} rows", first.rows), other.rows.to_string(), cure)
    } else if first.groups != other.groups {
        let cure = "a.reshape in NumPy or PyTorch gives it the other's".to_owned();
        (text(first.groups), text(other.groups), cure)
    } else {
        return Ok(());
    };
    let why = format!(
        "expected {expected}, as {} has, got {got}; {cure}",
        first.origin
    );
    Err(Failure::refused(&other.origin, why))
}

/// Refuses rows of another width than those of the first tower.
pub(crate) fn check_width(first: &Matrix, second: &Matrix) -> Result<()> {
    if first.dim == second.dim {
        return Ok(());
    }
    let why = format!(
        "expected rows of {} elements, as {} has, got {}; project both towers to one width first",
        first.dim, first.origin, second.dim
    );
    Err(Failure::refused(&second.origin, why))
}
