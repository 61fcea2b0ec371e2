use super::{Matrix, dot};
use crate::problem::Value;

/// L = 1/N² Σ_ij (Ĝ_ij(X) − Ĝ_ij(Y))², Ĝ the Gram matrix with each row divided by its length, and
/// its gradient through both the products and the lengths.
pub(super) fn sp(x: &Matrix, y: &Matrix) -> (Value, Vec<f64>) {
    let n = x.rows();
    let n2 = (n * n) as f64;
    let mut loss = 0.0;
    let mut gradient = vec![0.0; x.data.len()];
    for i in 0..n {
        let (u, length) = gram_row(x, i);
        let (v, _) = gram_row(y, i);
        let w: Vec<f64> = u.iter().zip(&v).map(|(u, v)| 2.0 * (u - v) / n2).collect();
        loss += u.iter().zip(&v).map(|(u, v)| (u - v).powi(2)).sum::<f64>() / n2;
        if length == 0.0 {
            continue; // the direction of the row has no derivative there
        }
        let along = dot(&w, &u);
        for j in 0..n {
            let slope = (w[j] - along * u[j]) / length; // ∂L/∂G_ij
            for d in 0..x.dim {
                gradient[i * x.dim + d] += slope * x.row(j)[d];
                gradient[j * x.dim + d] += slope * x.row(i)[d];
            }
        }
    }
    (Value::new(loss), gradient)
}

/// Row i of the Gram matrix divided by its length (0 where that is 0), and the length.
fn gram_row(x: &Matrix, i: usize) -> (Vec<f64>, f64) {
    let mut row: Vec<f64> = (0..x.rows()).map(|j| dot(x.row(i), x.row(j))).collect();
    let length = dot(&row, &row).sqrt();
    for g in &mut row {
        *g = if length == 0.0 { 0.0 } else { *g / length };
    }
    (row, length)
}
