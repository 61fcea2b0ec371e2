//! The numbers of a case, from its seed.

use std::f64::consts::TAU;

use relata::Element;

use super::Case;

/// What the student's rows look like. The teacher's, and all keys, are standard normal.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Data {
    /// Independent and standard normal.
    Gaussian,
    /// Eight standard normal centres and rows about them: distances of very different size, which
    /// cancel in a Gram matrix and in the law of cosines.
    Clusters { spread: f64 },
    /// Rows that lie close together, far from the origin.
    Offset { offset: f64, spread: f64 },
    /// Gaussian times a factor: large ones overflow f16 when squared, small ones underflow.
    Scaled { factor: f64 },
    /// Every odd row repeats the one before it: edges of length 0.
    Duplicates,
    /// All rows are the same.
    Identical,
    /// The student's row in the middle and the teacher's first row are zero: they have no direction.
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
pub(super) fn round<T: Element>(values: &[f64]) -> Vec<T> {
    values.iter().map(|&x| T::from_f64(x)).collect()
}

pub(super) fn student(case: &Case) -> Vec<f64> {
    let (rows, dim) = (case.rows, case.student_dim);
    let mut x = normals(case, Stream::Student, rows * dim);
    match case.data {
        Data::Gaussian => {}
        Data::Clusters { spread } => {
            let centres = normals(case, Stream::Centres, CLUSTERS * dim);
            for (at, x) in x.iter_mut().enumerate() {
                let (row, column) = (at / dim, at % dim);
                *x = centres[row % CLUSTERS * dim + column] + spread * *x;
            }
        }
        Data::Offset { offset, spread } => x.iter_mut().for_each(|x| *x = offset + spread * *x),
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
        Data::Teacher => x = near_teacher(case, &x, 0.0),
        Data::NearTeacher { noise } => x = near_teacher(case, &x, noise),
    }
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

fn near_teacher(case: &Case, normals: &[f64], noise: f64) -> Vec<f64> {
    assert_eq!(case.student_dim, case.teacher_dim, "{}", case.name);
    let y = teacher(case);
    y.iter().zip(normals).map(|(y, x)| y + noise * x).collect()
}

/// Standard normal numbers by the method of Box and Muller.
fn normals(case: &Case, stream: Stream, len: usize) -> Vec<f64> {
    let mut random = SplitMix64 {
        state: SplitMix64 { state: case.seed }.next() ^ (stream as u64) << 32,
    };
    let mut out = Vec::with_capacity(len + 1);
    while out.len() < len {
        let radius = (-2.0 * random.uniform().ln()).sqrt();
        let (sin, cos) = (TAU * random.uniform()).sin_cos();
        out.extend([radius * cos, radius * sin]);
    }
    out.truncate(len);
    out
}

/// Steele, Lea, Flood: *Fast splittable pseudorandom number generators*, OOPSLA 2014. Ours, so that a
/// case's numbers don't change with the version of a crate.
struct SplitMix64 {
    state: u64,
}

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// In (0, 1]: its logarithm is finite.
    fn uniform(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }
}
