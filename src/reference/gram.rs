use super::{Matrix, dot};
use crate::loss::Gram;
use crate::problem::Value;

/// L = 1/N² Σ_ij (S_ij(X) − S_ij(Y))², S the products of unit rows, and its gradient by those rows.
/// With `clamp` negative products count as 0. A row's product with itself is 1, or 0 for a row of
/// zeros: a constant.
pub(super) fn gram(loss: &Gram, x: &Matrix, y: &Matrix) -> (Value, Vec<f64>) {
    let n = x.rows();
    let n2 = (n * n) as f64;
    let similarity = |m: &Matrix, i: usize, j: usize| {
        let s = dot(m.row(i), m.row(j));
        if loss.clamp { s.max(0.0) } else { s }
    };
    let is_zero = |m: &Matrix, i: usize| m.row(i).iter().all(|&x| x == 0.0);
    let mut value = 0.0;
    let mut gradient = vec![0.0; x.data.len()];
    for i in 0..n {
        if is_zero(x, i) != is_zero(y, i) {
            value += 1.0 / n2;
        }
        for j in (0..n).filter(|&j| j != i) {
            let s = similarity(x, i, j);
            let e = s - similarity(y, i, j);
            value += e * e / n2;
            if loss.clamp && s == 0.0 {
                continue;
            }
            // Row i of the product, and row j.
            for d in 0..x.dim {
                gradient[i * x.dim + d] += 2.0 * e / n2 * x.row(j)[d];
                gradient[j * x.dim + d] += 2.0 * e / n2 * x.row(i)[d];
            }
        }
    }
    (Value::new(value), gradient)
}
