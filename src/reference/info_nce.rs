use super::rrd::similarities;
use super::{Matrix, dot, log_softmax};
use crate::loss::InfoNce;
use crate::problem::Value;

/// L = Σ_i s_i ℓ_i with ℓ_i = −log softmax(logits_i)[target] and `shares` s of the rows; z, y the
/// rows as the loss takes them. `row_losses` become ℓ.
pub(super) fn info_nce(
    loss: &InfoNce,
    z: &Matrix,
    y: &Matrix,
    queue: Option<&Matrix>,
    shares: &[f64],
    row_losses: &mut [f64],
) -> (Value, Vec<f64>) {
    let (mut value, mut scale_gradient) = (0.0, 0.0);
    let mut gradient = vec![0.0; z.data.len()];
    for i in 0..z.rows() {
        // The keys of anchor i, and which of them is its own.
        let (keys, target) = match queue {
            None => (y.data.clone(), i),
            Some(queue) => ([y.row(i), &queue.data].concat(), 0),
        };
        let keys = Matrix {
            data: keys,
            dim: y.dim,
        };
        let log_q = log_softmax(&similarities(z.row(i), &keys, loss.temperature));
        row_losses[i] = -log_q[target];
        value += shares[i] * row_losses[i];
        for k in 0..keys.rows() {
            let slope = log_q[k].exp() - if k == target { 1.0 } else { 0.0 };
            scale_gradient += shares[i] * slope * dot(z.row(i), keys.row(k));
            for d in 0..z.dim {
                gradient[i * z.dim + d] += shares[i] * slope * keys.row(k)[d] / loss.temperature;
            }
        }
    }
    let terms = [("scale_gradient", scale_gradient)];
    (Value::with_terms(value, terms), gradient)
}
