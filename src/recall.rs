//! How good embeddings are for retrieval.

use crate::checks::{not_empty, same};
use crate::device::Device;
use crate::element::{Element, Real};
use crate::error::{Error, Result};
use crate::evaluate::relation_matrix;
use crate::loss::Relation;
use crate::rows::Rows;

/// Recall@k, for each k: the share of rows that have a row of their own label among their k nearest
/// others.
///
/// Near is by Euclidean distance. For normalised embeddings that is the order of cosines. A row is
/// never its own neighbour. Of equally near rows the first one counts as nearer. A row without
/// another of its label is a miss.
///
/// The device computes the matrix of distances, `[N, N]`, and the host compares: N² numbers have to
/// fit into memory. The definition is that of Park et al.'s code for RKD, where a row whose
/// duplicate takes its place stops the program.
///
/// ```
/// # fn main() -> relata::Result<()> {
/// use relata::{Cpu, Rows, recall_at_k};
/// let embeddings = [0.0f32, 0.1, 0.3, 5.0];
/// let rows = Rows::new(&embeddings, [4, 1])?;
/// let recall = recall_at_k(&Cpu, rows, &["cat", "cat", "dog", "dog"], &[1, 2, 3])?;
/// assert_eq!(recall, [0.75, 0.75, 1.0]);
/// # Ok(()) }
/// ```
///
/// # Errors
/// [`Error::Empty`] without rows or columns, or for a k of 0; [`Error::Dimension`] unless there is a
/// label for each row; [`Error::NotFinite`] for a NaN or an infinity, which has no neighbours; and
/// [`Error::OutOfMemory`].
pub fn recall_at_k<T: Element, D: Device<T>, L: PartialEq>(
    device: &D,
    embeddings: Rows<'_, T>,
    labels: &[L],
    ks: &[usize],
) -> Result<Vec<f64>> {
    let n = embeddings.len();
    same("labels", n, labels.len())?;
    ks.iter().try_for_each(|&k| not_empty("k", k))?;
    embeddings.check_finite("embeddings")?;
    let distances = relation_matrix(device, Relation::Distance, embeddings)?;
    let mut hits = vec![0usize; ks.len()];
    for (i, row) in distances.chunks_exact(n).enumerate() {
        if let Some(bad) = row.iter().position(|d| !d.to_f64().is_finite()) {
            return Err(Error::NotFinite {
                argument: "distances",
                row: i,
                column: bad,
                got: row[bad].to_f64(),
            });
        }
        let rank = rank_of_nearest(row, i, |j| labels[i] == labels[j]);
        for (hits, &k) in hits.iter_mut().zip(ks) {
            *hits += usize::from(rank.is_some_and(|rank| rank < k));
        }
    }
    Ok(hits.iter().map(|&hits| hits as f64 / n as f64).collect())
}

/// How many rows are nearer to row i than the nearest one of its label is.
fn rank_of_nearest<R: Real>(
    distances: &[R],
    i: usize,
    has_label: impl Fn(usize) -> bool,
) -> Option<usize> {
    let others = || (0..distances.len()).filter(|&j| j != i);
    let is_nearer = |a: usize, b: usize| (distances[a], a) < (distances[b], b);
    let nearest = others()
        .filter(|&j| has_label(j))
        .reduce(|a, b| if is_nearer(b, a) { b } else { a })?;
    Some(others().filter(|&j| is_nearer(j, nearest)).count())
}
