use super::{Matrix, log_softmax};
use crate::loss::KdKl;
use crate::problem::Value;

/// L = T²/N Σ_i KL(softmax(y_i/T) ‖ softmax(x_i/T)); its gradient is (T/N)(q − p).
pub(super) fn kd_kl(loss: &KdKl, x: &Matrix, y: &Matrix) -> (Value, Vec<f64>) {
    let n = x.rows() as f64;
    let t = loss.temperature;
    let mut value = 0.0;
    let mut gradient = Vec::with_capacity(x.data.len());
    for i in 0..x.rows() {
        let (kl, differences) = divergence(x.row(i), y.row(i), t);
        value += t * t / n * kl;
        gradient.extend(differences.iter().map(|difference| t / n * difference));
    }
    (Value::new(value), gradient)
}

/// KL(p‖q) = Σ p (log p − log q), and q − p of each class.
///
/// Let d be (y − x)/T less its mean under p. Then log p − log q = d + KL, so Σ p e^−d = e^KL, and
/// as Σ p d = 0, KL = log(1 + S) with S = Σ p (e^−d − 1 + d). No term of S is negative. So no digit
/// is lost where the distributions are close or T is large, unlike in the first formula.
fn divergence(x: &[f64], y: &[f64], t: f64) -> (f64, Vec<f64>) {
    let scaled = |row: &[f64]| -> Vec<f64> { row.iter().map(|l| l / t).collect() };
    let log_p = log_softmax(&scaled(y));
    let log_q = log_softmax(&scaled(x));
    let p: Vec<f64> = log_p.iter().map(|log_p| log_p.exp()).collect();
    let log_ratios = log_p.iter().zip(&log_q).map(|(log_p, log_q)| log_p - log_q);
    let kl: f64 = p.iter().zip(log_ratios).map(|(p, ratio)| p * ratio).sum();
    // The first formula where it is exact, and where the second might overflow. NaN goes here too.
    let close = kl < 1.0;
    if !close {
        let differences = log_q.iter().zip(&p).map(|(log_q, p)| log_q.exp() - p);
        return (kl, differences.collect());
    }

    // Near the teacher y − x is exact. An offset between the two rows is taken off first.
    let max = |row: &[f64]| row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let offset = max(y) - max(x);
    let [from_y, from_x] = if offset.abs() > t {
        [max(y), max(x)]
    } else {
        [0.0; 2]
    };
    let difference = |(y, x): (&f64, &f64)| (y - from_y) - (x - from_x);
    let mut d: Vec<f64> = y.iter().zip(x).map(difference).collect();
    // Twice: the first mean is only as exact as the largest difference.
    for _ in 0..2 {
        let mean = p.iter().zip(&d).map(|(p, d)| p * d).sum::<f64>() / p.iter().sum::<f64>();
        d.iter_mut().for_each(|d| *d -= mean);
    }
    // p (e^−d − 1) of each class.
    let mut ratios = Vec::with_capacity(d.len());
    let mut sum = 0.0;
    for ((p, log_p), d) in p.iter().zip(&log_p).zip(&d) {
        let a = -d / t;
        if a.abs() < 0.1 {
            ratios.push(p * a.exp_m1());
            sum += p * excess(a);
        } else {
            let ratio = (log_p + a).exp() - p;
            ratios.push(ratio);
            sum += ratio - p * a;
        }
    }
    let difference = |(p, ratio): (&f64, &f64)| (ratio - p * sum) / (1.0 + sum);
    (sum.ln_1p(), p.iter().zip(&ratios).map(difference).collect())
}

/// e^a − 1 − a for |a| < 0.1, by its series: the direct difference cancels.
fn excess(a: f64) -> f64 {
    let mut term = a * a / 2.0;
    let mut sum = 0.0;
    for k in 3..16 {
        sum += term;
        term *= a / f64::from(k);
    }
    sum
}
