//! Two building blocks in their own right: the relation matrix of a batch and the softmax of its rows.

use crate::device::Device;
use crate::element::Element;
use crate::error::Result;
use crate::loss::{check_temperature, not_empty};
use crate::problem::zeroed;
use crate::rows::Rows;

/// How two rows relate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Relation {
    /// ‖x_i − x_j‖, from differences.
    Distance,
    /// ‖x_i − x_j‖², from differences.
    SquaredDistance,
    /// ⟨x_i, x_j⟩
    Dot,
    /// ⟨x_i, x_j⟩/(‖x_i‖‖x_j‖); 0 where a row is zero.
    Cosine,
}

/// The relation of every two rows, `[N, N]`, symmetric. Distances are right however close rows lie
/// compared to their lengths, which those from a Gram matrix are not.
///
/// ```
/// # fn main() -> relata::Result<()> {
/// use relata::{Cpu, Relation, Rows, relation_matrix};
/// let points = [0.0f32, 0.0, 3.0, 4.0];
/// let distances = relation_matrix(&Cpu, Relation::Distance, Rows::new(&points, [2, 2])?)?;
/// assert_eq!(distances, [0.0, 5.0, 5.0, 0.0]);
/// # Ok(()) }
/// ```
///
/// # Errors
/// [`Error::Empty`](crate::Error::Empty) without rows or columns, and
/// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
pub fn relation_matrix<T: Element, D: Device<T>>(
    device: &D,
    relation: Relation,
    rows: Rows<'_, T>,
) -> Result<Vec<D::Gradient>> {
    not_empty("rows", rows.len())?;
    not_empty("dim", rows.dim())?;
    let mut matrix = zeroed("matrix", rows.len().saturating_mul(rows.len()))?;
    device.relation_matrix(relation, rows, &mut matrix)?;
    Ok(matrix)
}

/// softmax(x_i/τ) of every row, `[N, D]`.
///
/// ```
/// # fn main() -> relata::Result<()> {
/// let p = relata::softmax(&relata::Cpu, relata::Rows::new(&[1.0f64, 1.0], [1, 2])?, 0.1)?;
/// assert_eq!(p, [0.5, 0.5]);
/// # Ok(()) }
/// ```
///
/// # Errors
/// [`Error::Empty`](crate::Error::Empty) without rows or columns,
/// [`Error::Parameter`](crate::Error::Parameter) for a temperature out of range, and
/// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
pub fn softmax<T: Element, D: Device<T>>(
    device: &D,
    rows: Rows<'_, T>,
    temperature: f64,
) -> Result<Vec<D::Gradient>> {
    not_empty("rows", rows.len())?;
    not_empty("dim", rows.dim())?;
    check_temperature("temperature", temperature)?;
    let mut probabilities = zeroed("probabilities", rows.as_slice().len())?;
    device.softmax(rows, temperature, &mut probabilities)?;
    Ok(probabilities)
}
