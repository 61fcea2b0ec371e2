use super::log_softmax;

/// KL(p‖q) = Σ p (log p − log q), and q − p of each class, with p = softmax(y) and q = softmax(x).
/// `difference` is y − x of a class, but for an offset that all classes share: the caller forms it
/// with less rounding than y and x have. Where a y is −∞, p is 0.
///
/// Over the classes with p > 0, let d be the difference less its mean under p. With Q the sum of q
/// over the other classes, log p − log q = d + KL, so Σ p e^−d = e^KL (1 − Q). As Σ p d = 0,
/// KL = log(1 + S) − log(1 − Q) with S = Σ p (e^−d − 1 + d). No term of S is negative. So no digit
/// is lost where the distributions are close, unlike in the first formula.
pub(super) fn divergence(x: &[f64], y: &[f64], difference: impl Fn(usize) -> f64) -> Divergence {
    let log_p = log_softmax(y);
    let log_q = log_softmax(x);
    let classes: Vec<usize> = (0..y.len()).collect();
    let (possible, excluded): (Vec<usize>, Vec<usize>) = classes
        .into_iter()
        .partition(|&k| y[k] != f64::NEG_INFINITY);
    let p: Vec<f64> = log_p.iter().map(|log_p| log_p.exp()).collect();
    let term = |&k: &usize| p[k] * (log_p[k] - log_q[k]);
    let kl: f64 = possible.iter().map(term).sum();
    let mut differences: Vec<f64> = log_q
        .iter()
        .zip(&p)
        .map(|(log_q, p)| log_q.exp() - p)
        .collect();
    // The first formula where it is exact, and where the second might overflow. NaN goes here too.
    let close = kl < 1.0;
    if !close {
        return Divergence {
            p,
            log_q,
            differences,
            kl,
        };
    }

    let mut d: Vec<f64> = possible.iter().map(|&k| difference(k)).collect();
    // Twice: the first mean is only as exact as the largest difference.
    for _ in 0..2 {
        let weighted: f64 = possible.iter().zip(&d).map(|(&k, d)| p[k] * d).sum();
        let mean = weighted / possible.iter().map(|&k| p[k]).sum::<f64>();
        d.iter_mut().for_each(|d| *d -= mean);
    }
    // p (e^−d − 1) of each possible class.
    let mut ratios = Vec::with_capacity(d.len());
    let mut sum = 0.0;
    for (&k, d) in possible.iter().zip(&d) {
        let a = -d;
        if a.abs() < 0.1 {
            ratios.push(p[k] * a.exp_m1());
            sum += p[k] * excess(a);
        } else {
            let ratio = (log_p[k] + a).exp() - p[k];
            ratios.push(ratio);
            sum += ratio - p[k] * a;
        }
    }
    let of_excluded: f64 = excluded.iter().map(|&k| log_q[k].exp()).sum();
    for (&k, ratio) in possible.iter().zip(&ratios) {
        differences[k] = (ratio - p[k] * sum - of_excluded * (p[k] + ratio)) / (1.0 + sum);
    }
    Divergence {
        p,
        log_q,
        differences,
        kl: sum.ln_1p() - (-of_excluded).ln_1p(),
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

/// log p − log q of each class, with p = softmax(y) and q = softmax(x). `difference` is as in
/// [`divergence`].
///
/// Over the classes where both are above 0, let d be the difference less its mean under p, P and Q
/// the sums of p and q, and S = Σ p (e^−d − 1 + d). With log p − log q = d + c, Σ q is
/// e^−c (P + S), so c = log(P + S) − log Q. Where p and q are close c is small, and as exact as S.
pub(super) fn log_ratios(x: &[f64], y: &[f64], difference: impl Fn(usize) -> f64) -> Vec<f64> {
    let (log_p, log_q) = (log_softmax(y), log_softmax(x));
    let direct: Vec<f64> = log_p.iter().zip(&log_q).map(|(p, q)| p - q).collect();
    let (both, one): (Vec<usize>, Vec<usize>) = (0..x.len()).partition(|&k| direct[k].is_finite());
    let p = |k: usize| log_p[k].exp();
    let p_alone: f64 = one.iter().map(|&k| p(k)).sum();
    let q_alone: f64 = one.iter().map(|&k| log_q[k].exp()).sum();
    // Of less than half of p or q there is nothing near.
    if p_alone > 0.5 || q_alone > 0.5 {
        return direct;
    }
    let mut d: Vec<f64> = both.iter().map(|&k| difference(k)).collect();
    // Twice: the first mean is only as exact as the largest difference.
    for _ in 0..2 {
        let weighted: f64 = both.iter().zip(&d).map(|(&k, d)| p(k) * d).sum();
        let mean = weighted / both.iter().map(|&k| p(k)).sum::<f64>();
        d.iter_mut().for_each(|d| *d -= mean);
    }
    let of_excess = |(&k, d): (&usize, &f64)| {
        let a = -d;
        if a.abs() < 0.1 {
            p(k) * excess(a)
        } else {
            (log_p[k] + a).exp() - p(k) - p(k) * a
        }
    };
    let sum: f64 = both.iter().zip(&d).map(of_excess).sum();
    let c = (sum - p_alone).ln_1p() - (-q_alone).ln_1p();
    // NaN goes the direct way too.
    let close = c.abs() < 1.0;
    if !close {
        return direct;
    }
    let mut ratios = direct;
    for (&k, d) in both.iter().zip(&d) {
        ratios[k] = d + c;
    }
    ratios
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
