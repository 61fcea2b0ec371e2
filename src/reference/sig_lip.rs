use super::{Matrix, dot};
use crate::loss::SigLip;
use crate::problem::Value;

/// L = −1/n Σ_ij log σ(z_ij (a ⟨x_i, x_{n+j}⟩ + b)); x the rows at length 1.
pub(super) fn sig_lip(loss: &SigLip, x: &Matrix) -> (Value, Vec<f64>) {
    let n = x.rows() / 2;
    let (mut value, mut scale_gradient, mut bias_gradient) = (0.0, 0.0, 0.0);
    let mut gradient = vec![0.0; x.data.len()];
    for i in 0..n {
        for j in 0..n {
            let z = if i == j { 1.0 } else { -1.0 };
            let (a, b) = (x.row(i), x.row(n + j));
            let similarity = dot(a, b);
            let logit = z * (loss.scale * similarity + loss.bias);
            // −log σ(l) = log(1 + e^−l), whose slope is −σ(−l).
            let decay = (-logit.abs()).exp();
            value += ((-logit).max(0.0) + decay.ln_1p()) / n as f64;
            let sigma = if logit > 0.0 { decay } else { 1.0 } / (1.0 + decay);
            let slope = -z * sigma / n as f64;
            scale_gradient += slope * similarity;
            bias_gradient += slope;
            for d in 0..x.dim {
                gradient[i * x.dim + d] += slope * loss.scale * b[d];
                gradient[(n + j) * x.dim + d] += slope * loss.scale * a[d];
            }
        }
    }
    let terms = [
        ("scale_gradient", scale_gradient),
        ("bias_gradient", bias_gradient),
    ];
    (Value::with_terms(value, terms), gradient)
}
