use super::Matrix;
use super::divergence::divergence;
use crate::loss::KdKl;
use crate::problem::Value;

/// L = T²/N Σ_i KL(softmax(y_i/T) ‖ softmax(x_i/T)); its gradient is (T/N)(q − p).
pub(super) fn kd_kl(loss: &KdKl, x: &Matrix, y: &Matrix) -> (Value, Vec<f64>) {
    let n = x.rows() as f64;
    let t = loss.temperature;
    let mut value = 0.0;
    let mut gradient = Vec::with_capacity(x.data.len());
    for i in 0..x.rows() {
        let (x, y) = (x.row(i), y.row(i));
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
        value += t * t / n * divergence.kl;
        gradient.extend(divergence.differences.iter().map(|d| t / n * d));
    }
    (Value::new(value), gradient)
}
