//! The numbers of a case, from its seed.

use relata::Element;

use super::Case;
use super::random::Random;

/// What the student's rows look like. The teacher's, and all keys, are standard normal.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Data {
    /// Independent and standard normal.
    Gaussian,
    /// Eight standard normal centres and rows about them: distances of very different size, which
    /// cancel in a Gram matrix and in the law of cosines.
    Clusters { spread: f64 },
    /// Rows that lie close together, far from the origin: `spread` times Gaussian, plus `offset` in
    /// every dimension.
    Offset { offset: f64, spread: f64 },
    /// Gaussian plus `distance` times one standard normal row: rows that lie that many times
    /// farther from the origin than from each other.
    Translated { distance: f64 },
    /// Gaussian times a factor: large ones overflow f16 when squared, small ones underflow.
    Scaled { factor: f64 },
    /// Every odd row repeats the one before it: edges of length 0.
    Duplicates,
    /// All rows are the same.
    Identical,
    /// The student's row in the middle and the teacher's first row are zero: they have no
    /// direction.
    ZeroRow,
    /// The teacher's rows (of the same dim): the loss's minimum.
    Teacher,
    /// The teacher's rows and a little noise: a student that has nearly converged.
    NearTeacher { noise: f64 },
}

const CLUSTERS: usize = 8;

/// The independent sequences that a seed gives.
#[derive(Clone, Copy)]
enum Stream {
    Student = 1,
    Teacher = 2,
    Past = 3,
    Centres = 4,
}

/// The elements nearest to `values`.
pub(crate) fn cast<T: Element>(values: &[f64]) -> Vec<T> {
    values.iter().map(|&x| T::from_f64(x)).collect()
}

impl Data {
    /// Makes a student's rows of standard normals look like this. `centres` gives so many more
    /// standard normals, and `teacher` gives the teacher's rows.
    pub(crate) fn form(
        self,
        x: &mut [f64],
        dim: usize,
        centres: impl FnOnce(usize) -> Vec<f64>,
        teacher: impl FnOnce() -> Vec<f64>,
    ) {
        let rows = x.len() / dim;
        let near_teacher = |x: &mut [f64], noise: f64| {
            let y = teacher();
            assert_eq!(x.len(), y.len(), "student and teacher of one width");
            x.iter_mut().zip(y).for_each(|(x, y)| *x = y + noise * *x);
        };
        match self {
            Data::Gaussian => {}
            Data::Clusters { spread } => {
                let centres = centres(CLUSTERS * dim);
                for (at, x) in x.iter_mut().enumerate() {
                    let (row, column) = (at / dim, at % dim);
                    *x = centres[row % CLUSTERS * dim + column] + spread * *x;
                }
            }
            Data::Offset { offset, spread } => x.iter_mut().for_each(|x| *x = offset + spread * *x),
            Data::Translated { distance } => {
                let row = centres(dim);
                for (at, x) in x.iter_mut().enumerate() {
                    *x += distance * row[at % dim];
                }
            }
            Data::Scaled { factor } => x.iter_mut().for_each(|x| *x *= factor),
            Data::Duplicates => {
                for row in (1..rows).step_by(2) {
                    x.copy_within((row - 1) * dim..row * dim, row * dim);
                }
            }
            Data::Identical => {
                for row in 1..rows {
                    x.copy_within(..dim, row * dim);
                }
            }
            Data::ZeroRow => x[rows / 2 * dim..][..dim].fill(0.0),
            Data::Teacher => near_teacher(x, 0.0),
            Data::NearTeacher { noise } => near_teacher(x, noise),
        }
    }
}

pub(super) fn student(case: &Case) -> Vec<f64> {
    let dim = case.student_dim;
    let mut x = normals(case, Stream::Student, case.rows * dim);
    let centres = |len| normals(case, Stream::Centres, len);
    case.data.form(&mut x, dim, centres, || teacher(case));
    x
}

pub(super) fn teacher(case: &Case) -> Vec<f64> {
    let mut y = normals(case, Stream::Teacher, case.rows * case.teacher_dim);
    if case.data == Data::ZeroRow {
        y[..case.teacher_dim].fill(0.0);
    }
    y
}

pub(super) fn past(case: &Case) -> Vec<f64> {
    normals(case, Stream::Past, case.past_keys * case.teacher_dim)
}

fn normals(case: &Case, stream: Stream, len: usize) -> Vec<f64> {
    let seed = Random::new(case.seed).next() ^ ((stream as u64) << 32);
    Random::new(seed).paired_normals(len)
}
