use super::{Matrix, log_softmax};
use crate::loss::KdKl;
use crate::problem::Value;

/// L = T²/N Σ_i KL(softmax(y_i/T) ‖ softmax(x_i/T)); its gradient is (T/N)(q − p).
pub(super) fn kd_kl(loss: &KdKl, x: &Matrix, y: &Matrix) -> (Value, Vec<f64>) {
    let n = x.rows() as f64;
    let t = loss.temperature;
    let scaled = |row: &[f64]| -> Vec<f64> { row.iter().map(|l| l / t).collect() };
    let mut value = 0.0;
    let mut gradient = Vec::with_capacity(x.data.len());
    for i in 0..x.rows() {
        let log_p = log_softmax(&scaled(y.row(i)));
        let log_q = log_softmax(&scaled(x.row(i)));
        for (log_p, log_q) in log_p.iter().zip(&log_q) {
            value += t * t / n * log_p.exp() * (log_p - log_q);
            gradient.push(t / n * (log_q.exp() - log_p.exp()));
        }
    }
    (Value::new(value), gradient)
}
