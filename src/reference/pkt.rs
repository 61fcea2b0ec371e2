use super::{Matrix, dot};
use crate::loss::Pkt;
use crate::problem::Value;

/// L = 1/N² Σ_ij P_ij(Y) log((P_ij(Y) + ε)/(P_ij(X) + ε)), P_i the products of unit row i with all
/// rows, plus 1, divided by their sum; and its gradient by the unit rows.
pub(super) fn pkt(x: &Matrix, y: &Matrix) -> (Value, Vec<f64>) {
    let n = x.rows();
    let n2 = (n * n) as f64;
    let mut value = 0.0;
    let mut gradient = vec![0.0; x.data.len()];
    for i in 0..n {
        let (q, sum) = probabilities(x, i);
        let (p, _) = probabilities(y, i);
        let terms = p.iter().zip(&q).map(|(p, q)| {
            // log((p + ε)/(q + ε)), which is 0 where p and q are one number
            p * ((p - q) / (q + Pkt::EPSILON)).ln_1p()
        });
        value += terms.sum::<f64>() / n2;
        // ∂L/∂q, and then through the sum.
        let slopes = p.iter().zip(&q).map(|(p, q)| -p / (q + Pkt::EPSILON) / n2);
        let slopes: Vec<f64> = slopes.collect();
        let mean = dot(&slopes, &q);
        for j in 0..n {
            let slope = (slopes[j] - mean) / sum; // ∂L/∂S_ij
            for d in 0..x.dim {
                gradient[i * x.dim + d] += slope * x.row(j)[d];
                gradient[j * x.dim + d] += slope * x.row(i)[d];
            }
        }
    }
    (Value::new(value), gradient)
}

/// P_i, and the sum that divides it.
fn probabilities(x: &Matrix, i: usize) -> (Vec<f64>, f64) {
    let row: Vec<f64> = (0..x.rows())
        .map(|j| dot(x.row(i), x.row(j)) + 1.0)
        .collect();
    let sum: f64 = row.iter().sum();
    (row.iter().map(|s| s / sum).collect(), sum)
}
