use super::rrd::similarities;
use super::{Matrix, dot, log_softmax};
use crate::loss::SupCon;
use crate::problem::Value;

/// L = mean over the rows with a P(i) of −1/|P(i)| Σ_{p ∈ P(i)} log softmax(S_i)_p over all other
/// rows; x the rows at length 1.
pub(super) fn sup_con(loss: &SupCon, x: &Matrix, labels: &[u32]) -> (Value, Vec<f64>) {
    let rows = x.rows();
    let positives = |i: usize| {
        (0..rows)
            .filter(move |&k| k != i && labels[k] == labels[i])
            .count()
    };
    let counted = (0..rows).filter(|&i| positives(i) > 0).count();
    let (mut value, mut scale_gradient) = (0.0, 0.0);
    let mut gradient = vec![0.0; x.data.len()];
    for i in (0..rows).filter(|&i| positives(i) > 0) {
        let mut logits = similarities(x.row(i), x, loss.temperature);
        logits[i] = f64::NEG_INFINITY;
        let log_q = log_softmax(&logits);
        for k in (0..rows).filter(|&k| k != i) {
            let target = f64::from(u8::from(labels[k] == labels[i])) / positives(i) as f64;
            if target > 0.0 {
                value -= target * log_q[k] / counted as f64;
            }
            let g = (log_q[k].exp() - target) / counted as f64;
            scale_gradient += g * dot(x.row(i), x.row(k));
            for d in 0..x.dim {
                gradient[i * x.dim + d] += g * x.row(k)[d] / loss.temperature;
                gradient[k * x.dim + d] += g * x.row(i)[d] / loss.temperature;
            }
        }
    }
    let terms = [("scale_gradient", scale_gradient)];
    (Value::with_terms(value, terms), gradient)
}
