//! What bounds a loss on a CPU: its products at the rate of PyTorch's sgemm, and its exponentials.

use relata::{Family, Target, Towers};

use crate::cases::Case;

/// Rows and columns of the product that sgemm is timed by, at most. Larger ones leave the caches,
/// which relata's never do, and are slower.
const MOST: usize = 1024;

/// A loss's products and exponentials.
#[derive(Clone, Copy)]
pub(crate) struct Floor {
    /// A multiply-add counts as two.
    pub(crate) flops: u64,
    pub(crate) exponentials: u64,
    /// `[rows, inner, columns]` of the product that sgemm is timed by.
    pub(crate) shape: [usize; 3],
}

impl Floor {
    /// None where products are not what takes the time.
    pub(crate) fn of(case: &Case) -> Option<Self> {
        // Rows of other groups are not compared.
        let (n, d) = (case.rows / case.groups, case.student_dim);
        let [rows, dim, teacher_dim] = [n, d, case.teacher_dim].map(|x| x as u64);
        match case.loss.spec().family {
            Family::Contrastive(contrastive) => {
                let keys = case.keys().unwrap_or(n);
                let softmaxes = match contrastive.target {
                    Target::Teacher { .. } => 2,
                    Target::OwnKey => 1,
                };
                Some(Floor {
                    flops: case.flops(),
                    exponentials: softmaxes * rows * keys as u64,
                    shape: [n.min(MOST), d, keys.min(MOST)],
                })
            }
            // Half a product for each relation and a whole one for the contraction. The
            // differences of distances are not among them: sgemm has none.
            Family::Pairwise(_) | Family::Triplet(_) if case.triplets() == 0 => Some(Floor {
                flops: case.groups as u64 * rows * rows * (dim + teacher_dim + 2 * dim),
                exponentials: 0,
                shape: [n.min(MOST), d, n.min(MOST)],
            }),
            // Two sweeps form the product of each two rows that meet. Each softmax takes an
            // exponential for either row in both of them.
            Family::Towers(towers) => {
                let halves = rows * rows / 4;
                let (pairs, exponentials, keys) = match towers {
                    Towers::Softmax { .. } if teacher_dim == 0 => (halves, 4, n / 2),
                    Towers::Softmax { .. } => (halves, 8, n / 2),
                    Towers::Sigmoid { .. } => (halves, 1, n / 2),
                    Towers::Labels { .. } => (rows * rows / 2, 4, n),
                };
                Some(Floor {
                    flops: case.flops(),
                    exponentials: exponentials * pairs,
                    shape: [keys.min(MOST), d, keys.min(MOST)],
                })
            }
            // The keys of a sample lie scattered over a bank: a matrix product is no floor.
            Family::Pairwise(_) | Family::Triplet(_) | Family::Logits(_) | Family::Sampled(_) => {
                None
            }
        }
    }

    /// Seconds, from those of one product of the shape and of as many exponentials as it has
    /// results.
    pub(crate) fn seconds(&self, product: f64, exponentials: f64) -> f64 {
        let [rows, _, columns] = self.shape.map(|x| x as f64);
        let each = exponentials / (rows * columns);
        self.flops as f64 / self.rate(product) + self.exponentials as f64 * each
    }

    /// Floating-point operations in a second.
    pub(crate) fn rate(&self, product: f64) -> f64 {
        let [rows, inner, columns] = self.shape.map(|x| x as f64);
        2.0 * rows * inner * columns / product
    }
}
