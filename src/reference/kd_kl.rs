use super::Matrix;
use super::divergence::divergence;
use crate::loss::KdKl;
use crate::problem::Value;

/// L = T²/N Σ_i KL(softmax(y_i/T) ‖ softmax(x_i/T)); its gradient is (T/N)(q − p).
///
/// A class that is −∞ in both is masked: the row is one without it. A student's −∞ elsewhere makes
/// the loss +∞ and the row's gradient NaN.
pub(super) fn kd_kl(loss: &KdKl, x: &Matrix, y: &Matrix) -> (Value, Vec<f64>) {
    let n = x.rows() as f64;
    let t = loss.temperature;
    let mut value = 0.0;
    let mut gradient = vec![0.0; x.data.len()];
    for (i, gradient) in gradient.chunks_exact_mut(x.dim).enumerate() {
        let kept: Vec<usize> = (0..x.dim)
            .filter(|&k| x.row(i)[k] != f64::NEG_INFINITY || y.row(i)[k] != f64::NEG_INFINITY)
            .collect();
        if kept.is_empty() {
            continue;
        }
        let [x, y] = [x, y].map(|of| kept.iter().map(|&k| of.row(i)[k]).collect::<Vec<f64>>());
        let (kl, differences) = divergence_of_row(&x, &y, t);
        value += t * t / n * kl;
        if !kl.is_finite() {
            gradient.fill(f64::NAN);
            continue;
        }
        for (k, difference) in kept.into_iter().zip(differences) {
            gradient[k] = t / n * difference;
        }
    }
    (Value::new(value), gradient)
}

/// KL(p‖q), and q − p where that is finite.
fn divergence_of_row(x: &[f64], y: &[f64], t: f64) -> (f64, Vec<f64>) {
    let is_logit = |l: &f64| *l < f64::INFINITY;
    if !x.iter().chain(y).all(is_logit) || y.iter().all(|&l| l == f64::NEG_INFINITY) {
        return (f64::NAN, Vec::new());
    }
    if x.contains(&f64::NEG_INFINITY) {
        return (f64::INFINITY, Vec::new());
    }
    let scaled = |row: &[f64]| -> Vec<f64> { row.iter().map(|l| l / t).collect() };
    // Near the teacher y − x is exact. An offset between the two rows is taken off first.
    let max = |row: &[f64]| row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let offset = max(y) - max(x);
    let [from_y, from_x] = if offset.abs() > t {
        [max(y), max(x)]
    } else {
        [0.0; 2]
    };
    let difference = |c: usize| ((y[c] - from_y) - (x[c] - from_x)) / t;
    let divergence = divergence(&scaled(x), &scaled(y), difference);
    (divergence.kl, divergence.differences)
}
