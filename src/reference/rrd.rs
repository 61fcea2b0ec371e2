use super::divergence::divergence;
use super::{Matrix, dot};
use crate::loss::Rrd;
use crate::problem::Value;

/// L = Σ_i s_i ℓ_i with ℓ_i = −Σ_k p_ik log q_ik over the keys of the queue, and `shares` s of the
/// rows; z, y the rows as the loss takes them. `row_losses` become ℓ.
pub(super) fn rrd(
    loss: &Rrd,
    z: &Matrix,
    y: &Matrix,
    queue: &Matrix,
    shares: &[f64],
    row_losses: &mut [f64],
) -> (Value, Vec<f64>) {
    let mut cross_entropy = 0.0;
    let mut kl = 0.0;
    let mut scale_gradient = 0.0;
    let mut gradient = vec![0.0; z.data.len()];
    for i in 0..z.rows() {
        // y/τ_t − z/τ_s: a difference of logits is its product with a key.
        let rows = z.row(i).iter().zip(y.row(i));
        let between: Vec<f64> = rows
            .map(|(z, y)| y / loss.teacher_temperature - z / loss.student_temperature)
            .collect();
        let divergence = divergence(
            &similarities(z.row(i), queue, loss.student_temperature),
            &similarities(y.row(i), queue, loss.teacher_temperature),
            |k| dot(&between, queue.row(k)),
        );
        kl += shares[i] * divergence.kl;
        row_losses[i] = 0.0;
        for k in 0..queue.rows() {
            row_losses[i] -= divergence.p[k] * divergence.log_q[k];
            scale_gradient += shares[i] * divergence.differences[k] * dot(z.row(i), queue.row(k));
            for d in 0..z.dim {
                gradient[i * z.dim + d] += shares[i] * divergence.differences[k] * queue.row(k)[d]
                    / loss.student_temperature;
            }
        }
        cross_entropy += shares[i] * row_losses[i];
    }
    let terms = [("kl", kl), ("scale_gradient", scale_gradient)];
    (Value::with_terms(cross_entropy, terms), gradient)
}

/// ⟨row, key⟩/τ for all keys.
pub(super) fn similarities(row: &[f64], keys: &Matrix, temperature: f64) -> Vec<f64> {
    (0..keys.rows())
        .map(|k| dot(row, keys.row(k)) / temperature)
        .collect()
}
