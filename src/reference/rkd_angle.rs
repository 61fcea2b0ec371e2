use rayon::prelude::*;

use super::{Matrix, huber, huber_slope};
use crate::problem::Value;

/// How many sets of vertices are summed separately. Fixed, so that the sums come out the same on
/// any number of threads.
const SETS: usize = 16;

/// L = 1/N³ Σ_jik huber(cos_jik(X) − cos_jik(Y)), every triple formed from its edges.
pub(super) fn rkd_angle(delta: f64, x: &Matrix, y: &Matrix) -> (Value, Vec<f64>) {
    let n = x.rows();
    let n3 = (n as f64).powi(3);
    let sets: Vec<(f64, Vec<f64>)> = (0..SETS)
        .into_par_iter()
        .map(|set| {
            let mut loss = 0.0;
            let mut gradient = vec![0.0; x.data.len()];
            for j in (set..n).step_by(SETS) {
                loss += vertex(delta, j, x, y, &mut gradient);
            }
            (loss, gradient)
        })
        .collect();

    let mut loss = 0.0;
    let mut gradient = vec![0.0; x.data.len()];
    for (l, g) in sets {
        loss += l / n3;
        for (sum, g) in gradient.iter_mut().zip(g) {
            *sum += g / n3;
        }
    }
    (Value::new(loss), gradient)
}

/// The triples whose vertex is j: their sum of penalties; their derivatives are added to
/// `gradient`.
fn vertex(delta: f64, j: usize, x: &Matrix, y: &Matrix, gradient: &mut [f64]) -> f64 {
    let n = x.rows();
    let (e, length) = edges(x, j);
    let (f, _) = edges(y, j);

    let mut loss = 0.0;
    let mut edge_gradient = vec![0.0; n * x.dim];
    for i in 0..n {
        let cos = cosines(&e, i, n);
        let teacher_cos = cosines(&f, i, n);
        let mut w = vec![0.0; n];
        for k in 0..n {
            let difference = cos[k] - teacher_cos[k];
            loss += huber(delta, difference);
            w[k] = huber_slope(delta, difference);
        }
        // ∂cos/∂(x_k − x_j) = (e_i − cos e_k)/d_kj. The same holds of the end i; as each pair of
        // ends comes in both orders, the two make twice the sum over one.
        for d in 0..x.dim {
            let e_d = &e[d * n..][..n];
            let g_d = &mut edge_gradient[d * n..][..n];
            for k in 0..n {
                let slope = if length[k] == 0.0 {
                    0.0
                } else {
                    w[k] / length[k]
                };
                g_d[k] += 2.0 * slope * (e_d[i] - cos[k] * e_d[k]);
            }
        }
    }
    for d in 0..x.dim {
        for k in 0..n {
            gradient[k * x.dim + d] += edge_gradient[d * n + k];
            gradient[j * x.dim + d] -= edge_gradient[d * n + k];
        }
    }
    loss
}

/// The unit edges (x_i − x_j)/d_ij from vertex j, 0 where d_ij = 0, and the lengths d_ij.
/// Stored `[D, N]`, so that the loops over ends run along memory.
fn edges(x: &Matrix, j: usize) -> (Vec<f64>, Vec<f64>) {
    let n = x.rows();
    let mut edges = vec![0.0; n * x.dim];
    let mut lengths = vec![0.0; n];
    for i in 0..n {
        lengths[i] = super::distance(x.row(i), x.row(j));
        if lengths[i] > 0.0 {
            for d in 0..x.dim {
                edges[d * n + i] = (x.row(i)[d] - x.row(j)[d]) / lengths[i];
            }
        }
    }
    (edges, lengths)
}

/// ⟨e_i, e_k⟩ for all k.
fn cosines(edges: &[f64], i: usize, n: usize) -> Vec<f64> {
    let mut cos = vec![0.0; n];
    for e_d in edges.chunks_exact(n) {
        for k in 0..n {
            cos[k] += e_d[i] * e_d[k];
        }
    }
    cos
}
