use super::{Keys, Matrix, dot};
use crate::loss::Crd;
use crate::problem::Value;

/// L = Σ_i s_i ℓ_i with `shares` s of the rows, and ℓ_i the sum over row i's keys of
/// −log P/(P + c + ε) for the first, its own, and of −log c/(P + c + ε) for the others; z the rows at
/// length 1. `row_losses` become ℓ.
pub(super) fn crd(
    loss: &Crd,
    z: &Matrix,
    keys: &Keys<'_>,
    shares: &[f64],
    row_losses: &mut [f64],
) -> (Value, Vec<f64>) {
    let rows = z.rows();
    let negatives = (keys.indices.len() / rows - 1) as f64;
    let noise = negatives / keys.bank.rows() as f64;
    let mut value = 0.0;
    let mut gradient = vec![0.0; z.data.len()];
    for i in 0..rows {
        row_losses[i] = 0.0;
        for (k, key) in keys.of_row(i, rows).enumerate() {
            let score = (dot(z.row(i), key) / loss.temperature).exp() / keys.normalizer;
            let sum = score + (noise + Crd::EPSILON);
            // The slope is that by the product over τ.
            let slope = if k == 0 {
                row_losses[i] -= (score / sum).ln();
                -(noise + Crd::EPSILON) / sum
            } else {
                row_losses[i] -= (noise / sum).ln();
                score / sum
            };
            for d in 0..z.dim {
                gradient[i * z.dim + d] += shares[i] * slope * key[d] / loss.temperature;
            }
        }
        value += shares[i] * row_losses[i];
    }
    (Value::with_terms(value, []), gradient)
}
