use super::{Matrix, distance, huber, huber_slope};
use crate::problem::Value;

/// L = 1/N² Σ_ij huber(d_ij/μ_x − t_ij/μ_y), and its gradient through both d and μ_x.
pub(super) fn rkd_distance(delta: f64, x: &Matrix, y: &Matrix) -> (Value, Vec<f64>) {
    let n = x.rows();
    let n2 = (n * n) as f64;
    let pairs = (n * (n - 1)) as f64;
    let (d, mean_d) = distances(x);
    let (t, mean_t) = distances(y);

    let mut loss = 0.0;
    let mut w = vec![0.0; n * n];
    let mut sum_wd = 0.0;
    for ij in 0..n * n {
        let e = scaled(d[ij], mean_d) - scaled(t[ij], mean_t);
        loss += huber(delta, e) / n2;
        w[ij] = huber_slope(delta, e) / n2;
        sum_wd += w[ij] * d[ij];
    }

    let mut gradient = vec![0.0; x.data.len()];
    for i in 0..n {
        for j in 0..n {
            let d_ij = d[i * n + j];
            if d_ij == 0.0 {
                continue; // the distance has no derivative there
            }
            let dl_dd = w[i * n + j] / mean_d - sum_wd / (mean_d * mean_d * pairs);
            for k in 0..x.dim {
                gradient[i * x.dim + k] += 2.0 * dl_dd * (x.row(i)[k] - x.row(j)[k]) / d_ij;
            }
        }
    }
    (Value::new(loss), gradient)
}

/// All distances, and their mean over i ≠ j (0 for a single row).
fn distances(x: &Matrix) -> (Vec<f64>, f64) {
    let n = x.rows();
    let mut d = vec![0.0; n * n];
    for i in 0..n {
        for j in 0..n {
            d[i * n + j] = distance(x.row(i), x.row(j));
        }
    }
    let pairs = n * (n - 1);
    let mean = if pairs == 0 {
        0.0
    } else {
        d.iter().sum::<f64>() / pairs as f64
    };
    (d, mean)
}

/// d/μ, or 0 where all rows are equal.
fn scaled(d: f64, mean: f64) -> f64 {
    if mean == 0.0 { 0.0 } else { d / mean }
}
