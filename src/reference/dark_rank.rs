use super::{Matrix, distance, log_softmax};
use crate::loss::DarkRank;
use crate::problem::Value;

/// L = 1/N Σ_i Σ_k −log softmax(s_k, s_k+1, …)_k, s the scores −α d^β of the teacher's nearest
/// neighbours of row i, the nearest first; and its gradient by the rows.
pub(super) fn dark_rank(loss: &DarkRank, x: &Matrix, y: &Matrix) -> (Value, Vec<f64>) {
    let n = x.rows();
    let mut value = 0.0;
    let mut gradient = vec![0.0; x.data.len()];
    for i in 0..n {
        let far = |j: usize| distance(y.row(i), y.row(j));
        let mut neighbors: Vec<usize> = (0..n).filter(|&j| j != i).collect();
        // Stable: of equally near rows the lower index stays first.
        neighbors.sort_by(|&j, &k| far(j).total_cmp(&far(k)));
        neighbors.truncate(loss.length);

        let d: Vec<f64> = neighbors
            .iter()
            .map(|&j| distance(x.row(i), x.row(j)))
            .collect();
        let scores: Vec<f64> = d.iter().map(|d| -loss.alpha * d.powf(loss.beta)).collect();
        let mut slopes = vec![0.0; scores.len()]; // ∂/∂s
        for k in 0..scores.len() {
            let log_p = log_softmax(&scores[k..]);
            value -= log_p[0] / n as f64;
            for (slope, log_p) in slopes[k..].iter_mut().zip(&log_p) {
                *slope += log_p.exp() / n as f64;
            }
            slopes[k] -= 1.0 / n as f64;
        }
        for ((&j, &d), slope) in neighbors.iter().zip(&d).zip(slopes) {
            if d == 0.0 {
                continue;
            }
            let by_d = -slope * loss.alpha * loss.beta * d.powf(loss.beta - 1.0);
            for at in 0..x.dim {
                let along = (x.row(i)[at] - x.row(j)[at]) / d;
                gradient[i * x.dim + at] += by_d * along;
                gradient[j * x.dim + at] -= by_d * along;
            }
        }
    }
    (Value::new(value), gradient)
}
