use super::divergence::divergence;
use super::{Keys, Matrix, dot};
use crate::loss::RrdBank;
use crate::problem::Value;

/// L = Σ_i s_i ℓ_i with ℓ_i = −Σ_k p_ik log q_ik over the keys of row i, and `shares` s of the rows; z,
/// y the rows at length 1. `row_losses` become ℓ.
pub(super) fn rrd_bank(
    loss: &RrdBank,
    z: &Matrix,
    y: &Matrix,
    [student_keys, teacher_keys]: &[Keys<'_>; 2],
    shares: &[f64],
    row_losses: &mut [f64],
) -> (Value, Vec<f64>) {
    let rows = z.rows();
    let mut cross_entropy = 0.0;
    let mut kl = 0.0;
    let mut gradient = vec![0.0; z.data.len()];
    for i in 0..rows {
        let a = scores(loss, z.row(i), student_keys.of_row(i, rows), student_keys);
        let b = scores(loss, y.row(i), teacher_keys.of_row(i, rows), teacher_keys);
        let over = |scores: &[f64], temperature: f64| -> Vec<f64> {
            scores.iter().map(|score| score / temperature).collect()
        };
        let [student_logits, teacher_logits] = [
            over(&a, loss.student_temperature),
            over(&b, loss.teacher_temperature),
        ];
        let divergence = divergence(&student_logits, &teacher_logits, |k| {
            teacher_logits[k] - student_logits[k]
        });
        kl += shares[i] * divergence.kl;
        row_losses[i] = 0.0;
        for (k, key) in student_keys.of_row(i, rows).enumerate() {
            row_losses[i] -= divergence.p[k] * divergence.log_q[k];
            // ∂a/∂⟨z, key⟩
            let slope = if loss.double_exponential {
                a[k] / loss.score_temperature
            } else {
                1.0
            };
            let g = shares[i] * divergence.differences[k] * slope / loss.student_temperature;
            for d in 0..z.dim {
                gradient[i * z.dim + d] += g * key[d];
            }
        }
        cross_entropy += shares[i] * row_losses[i];
    }
    (Value::with_terms(cross_entropy, [("kl", kl)]), gradient)
}

/// exp(⟨row, key⟩/T)/Z of all keys, or the products themselves.
fn scores<'a>(
    loss: &RrdBank,
    row: &[f64],
    keys: impl Iterator<Item = &'a [f64]>,
    of: &Keys<'_>,
) -> Vec<f64> {
    keys.map(|key| {
        let product = dot(row, key);
        if loss.double_exponential {
            (product / loss.score_temperature).exp() / of.normalizer
        } else {
            product
        }
    })
    .collect()
}
