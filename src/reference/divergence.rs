use super::log_softmax;

/// KL(p‖q) = Σ p (log p − log q), and q − p of each class, with p = softmax(y) and q = softmax(x).
/// `difference` is y − x of each class, but for an offset that all classes share: the caller forms
/// it with less rounding than y and x have.
///
/// Let d be the difference less its mean under p. Then log p − log q = d + KL, so Σ p e^−d = e^KL,
/// and as Σ p d = 0, KL = log(1 + S) with S = Σ p (e^−d − 1 + d). No term of S is negative. So no
/// digit is lost where the distributions are close, unlike in the first formula.
pub(super) fn divergence(x: &[f64], y: &[f64], difference: impl Fn(usize) -> f64) -> Divergence {
    let log_p = log_softmax(y);
    let log_q = log_softmax(x);
    let p: Vec<f64> = log_p.iter().map(|log_p| log_p.exp()).collect();
    let log_ratios = log_p.iter().zip(&log_q).map(|(log_p, log_q)| log_p - log_q);
    let kl: f64 = p.iter().zip(log_ratios).map(|(p, ratio)| p * ratio).sum();
    // The first formula where it is exact, and where the second might overflow. NaN goes here too.
    let close = kl < 1.0;
    if !close {
        let differences = log_q.iter().zip(&p).map(|(log_q, p)| log_q.exp() - p);
        let differences = differences.collect();
        return Divergence {
            p,
            log_q,
            differences,
            kl,
        };
    }

    let mut d: Vec<f64> = (0..y.len()).map(difference).collect();
    // Twice: the first mean is only as exact as the largest difference.
    for _ in 0..2 {
        let mean = p.iter().zip(&d).map(|(p, d)| p * d).sum::<f64>() / p.iter().sum::<f64>();
        d.iter_mut().for_each(|d| *d -= mean);
    }
    // p (e^−d − 1) of each class.
    let mut ratios = Vec::with_capacity(d.len());
    let mut sum = 0.0;
    for ((p, log_p), d) in p.iter().zip(&log_p).zip(&d) {
        let a = -d;
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
    let differences = p.iter().zip(&ratios).map(difference).collect();
    Divergence {
        p,
        log_q,
        differences,
        kl: sum.ln_1p(),
    }
}

pub(super) struct Divergence {
    pub(super) p: Vec<f64>,
    pub(super) log_q: Vec<f64>,
    /// q − p
    pub(super) differences: Vec<f64>,
    /// KL(p‖q)
    pub(super) kl: f64,
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
