use super::divergence::{divergence, log_ratios};
use super::log_softmax;
use crate::batch::Batch;
use crate::element::{Element, Real};
use crate::loss::{Divergence, Logits};
use crate::problem::Problem;
use crate::top_k::TopK;

/// L = T_s² Σ_i s_i D(softmax(y_i/T_t), softmax(x_i/T_s)) with the share s_i of each row in the
/// mean, 1/N or w_i/Σw. The gradient is T_s s_i · q (g − Σ q g) with g = ∂D/∂q, which is
/// T s_i (q − p) for D = KL(p‖q).
///
/// A class that is −∞ in both is masked: the row is one without it. [`Divergence`] says what
/// another −∞ does. A row of weight 0 is not read.
pub(super) fn kd_kl<T: Element>(
    loss: &Logits,
    problem: &Problem,
    batch: Batch<'_, T>,
    gradient: &mut [f64],
    mut row_losses: Option<&mut [f64]>,
) -> f64 {
    let n = batch.student.len();
    let shares = match batch.row_weights {
        Some(weights) => problem.shares(weights),
        None => vec![1.0 / problem.mean_rows() as f64; n],
    };
    let (t, classes) = (loss.student_temperature, problem.classes());
    let wide = |row: &[T]| -> Vec<f64> { row[..classes].iter().map(|l| l.to_f64()).collect() };
    let mut value = 0.0;
    gradient.fill(0.0);
    for (i, gradient) in gradient.chunks_exact_mut(batch.student.dim()).enumerate() {
        let (d, slopes) = if shares[i] == 0.0 {
            (0.0, vec![0.0; classes])
        } else if let Some(top_k) = batch.top_k {
            divergence_from_list(loss, &wide(batch.student.row(i)), top_k, i)
        } else {
            let [x, y] = [batch.student, batch.teacher].map(|rows| wide(rows.row(i)));
            divergence_of_rows(loss, &x, &y)
        };
        value += t * t * shares[i] * d;
        if let Some(losses) = row_losses.as_deref_mut() {
            losses[i] = t * t * d;
        }
        for (g, slope) in gradient.iter_mut().zip(slopes) {
            *g = problem.upstream() * t * shares[i] * slope;
        }
    }
    value
}

/// D(p, q) of two rows of logits, and its gradient with respect to x/T_s: NaN where D is not
/// finite.
fn divergence_of_rows(loss: &Logits, x: &[f64], y: &[f64]) -> (f64, Vec<f64>) {
    let mut gradient = vec![0.0; x.len()];
    let kept: Vec<usize> = (0..x.len())
        .filter(|&k| x[k] != f64::NEG_INFINITY || y[k] != f64::NEG_INFINITY)
        .collect();
    if kept.is_empty() {
        return (0.0, gradient);
    }
    let [x, y] = [x, y].map(|of| kept.iter().map(|&k| of[k]).collect::<Vec<f64>>());
    let (d, slopes) = divergence_of_row(loss, &x, &y);
    if !d.is_finite() {
        gradient.fill(f64::NAN);
        return (d, gradient);
    }
    for (k, slope) in kept.into_iter().zip(slopes) {
        gradient[k] = slope;
    }
    (d, gradient)
}

/// The same of a row of logits and a list of the teacher's classes.
fn divergence_from_list<R: Real>(
    loss: &Logits,
    x: &[f64],
    teacher: TopK<'_, R>,
    row: usize,
) -> (f64, Vec<f64>) {
    let not_finite = |d: f64| (d, vec![f64::NAN; x.len()]);
    let listed: Vec<(usize, f64)> = teacher.row(row).collect();
    let is_teacher = listed.iter().all(|&(_, log_p)| log_p < f64::INFINITY);
    if !is_teacher || !x.iter().all(|l| *l < f64::INFINITY) {
        return not_finite(f64::NAN);
    }
    if x.iter().all(|&l| l == f64::NEG_INFINITY) {
        let forward = loss.divergence == Divergence::Forward;
        return not_finite(if forward { f64::INFINITY } else { f64::NAN });
    }
    let scaled: Vec<f64> = x.iter().map(|l| l / loss.student_temperature).collect();
    let log_q = log_softmax(&scaled);
    let mut is_listed = vec![false; x.len()];
    listed
        .iter()
        .for_each(|&(class, _)| is_listed[class] = true);
    let tail: Vec<usize> = (0..x.len()).filter(|&class| !is_listed[class]).collect();

    // h: q times the derivative of D by q, of each listed class.
    let mut gradient = vec![0.0; x.len()];
    if loss.tail && !tail.is_empty() {
        // D of k + 1 classes, as of two rows of logits at temperature 1.
        let of_tail = || tail.iter().map(|&class| log_q[class]);
        let largest = of_tail().fold(f64::NEG_INFINITY, f64::max);
        // In units of the largest: a tail that is no number of f64 has a logarithm.
        let log_tail_q = match largest {
            f64::NEG_INFINITY => largest,
            _ => {
                largest
                    + of_tail()
                        .map(|log_q| (log_q - largest).exp())
                        .sum::<f64>()
                        .ln()
            }
        };
        let has_tail = log_tail_q > f64::NEG_INFINITY;
        let sum: f64 = listed.iter().map(|&(_, log_p)| log_p.exp()).sum();
        let tail_p = TopK::<R>::tail(sum, has_tail);
        let mut buckets_q: Vec<f64> = listed.iter().map(|&(class, _)| log_q[class]).collect();
        let mut buckets_p: Vec<f64> = listed.iter().map(|&(_, log_p)| log_p).collect();
        buckets_q.push(log_tail_q);
        buckets_p.push(tail_p.ln());
        let one = Logits {
            student_temperature: 1.0,
            teacher_temperature: 1.0,
            ..*loss
        };
        let (d, slopes) = divergence_of_rows(&one, &buckets_q, &buckets_p);
        for (&(class, _), &slope) in listed.iter().zip(&slopes) {
            gradient[class] = slope;
        }
        if has_tail {
            for class in tail {
                gradient[class] = slopes[listed.len()] * (log_q[class] - log_tail_q).exp();
            }
        }
        return if d.is_finite() {
            (d, gradient)
        } else {
            not_finite(d)
        };
    }
    // A sum over the listed classes alone.
    let mut d = 0.0;
    let mut sum = 0.0;
    for &(class, log_p) in &listed {
        let (term, slope) = plain_term(loss.divergence, log_p, log_q[class]);
        d += term;
        sum += slope;
        gradient[class] = slope;
    }
    for (g, log_q) in gradient.iter_mut().zip(&log_q) {
        *g -= log_q.exp() * sum;
    }
    if d.is_finite() {
        (d, gradient)
    } else {
        not_finite(d)
    }
}

/// A class's term of D as it is defined, and q times the term's derivative by q.
fn plain_term(divergence: Divergence, log_p: f64, log_q: f64) -> (f64, f64) {
    let (p, q) = (log_p.exp(), log_q.exp());
    // v log(v/w), which is 0 where v is, and v times its derivative by v.
    let of = |v: f64, log_v: f64, log_w: f64| if v > 0.0 { v * (log_v - log_w) } else { 0.0 };
    match divergence {
        Divergence::Forward => (of(p, log_p, log_q), -p),
        Divergence::Reverse => {
            let term = of(q, log_q, log_p);
            (term, term + q)
        }
        Divergence::Js { beta } => {
            let log_m = (beta * p + (1.0 - beta) * q).ln();
            let of_q = of(q, log_q, log_m);
            let term = beta * of(p, log_p, log_m) + (1.0 - beta) * of_q;
            (term, (1.0 - beta) * of_q)
        }
        Divergence::Skew { alpha } => {
            let m = alpha * p + (1.0 - alpha) * q;
            (of(p, log_p, m.ln()), -(1.0 - alpha) * p * q / m)
        }
        Divergence::SkewReverse { alpha } => {
            let m = alpha * q + (1.0 - alpha) * p;
            let term = of(q, log_q, m.ln());
            (term, term + q * (1.0 - alpha * q / m))
        }
    }
}

/// D(p, q), and its gradient with respect to x/T_s where it is finite.
fn divergence_of_row(loss: &Logits, x: &[f64], y: &[f64]) -> (f64, Vec<f64>) {
    let is_logit = |l: &f64| *l < f64::INFINITY;
    let excluded = |l: &f64| *l == f64::NEG_INFINITY;
    let forward = loss.divergence == Divergence::Forward;
    let no_distribution = y.iter().all(excluded) || (!forward && x.iter().all(excluded));
    if !x.iter().chain(y).all(is_logit) || no_distribution {
        return (f64::NAN, Vec::new());
    }
    let infinite = match loss.divergence {
        Divergence::Forward => x.iter().any(excluded),
        Divergence::Reverse => y.iter().any(excluded),
        Divergence::Js { .. } | Divergence::Skew { .. } | Divergence::SkewReverse { .. } => false,
    };
    if infinite {
        return (f64::INFINITY, Vec::new());
    }
    let [t, t_teacher] = [loss.student_temperature, loss.teacher_temperature];
    let scaled = |row: &[f64], t: f64| -> Vec<f64> { row.iter().map(|l| l / t).collect() };
    // Near the teacher y − x is exact. An offset between the two rows is taken off first.
    let max = |row: &[f64]| row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let offset = max(y) - max(x);
    let [from_y, from_x] = if offset.abs() > t || t != t_teacher {
        [max(y), max(x)]
    } else {
        [0.0; 2]
    };
    let difference = |c: usize| {
        if t == t_teacher {
            ((y[c] - from_y) - (x[c] - from_x)) / t
        } else {
            (y[c] - from_y) / t_teacher - (x[c] - from_x) / t
        }
    };
    let (x, y) = (scaled(x, t), scaled(y, t_teacher));
    if forward {
        let divergence = divergence(&x, &y, difference);
        return (divergence.kl, divergence.differences);
    }

    let log_ratios = log_ratios(&x, &y, difference);
    let probabilities =
        |row: &[f64]| -> Vec<f64> { log_softmax(row).iter().map(|log| log.exp()).collect() };
    let (p, q) = (probabilities(&y), probabilities(&x));
    let terms = (0..p.len()).map(|c| term(loss.divergence, p[c], q[c], log_ratios[c]));
    let (terms, slopes): (Vec<f64>, Vec<f64>) = terms.unzip();
    let mean: f64 = slopes.iter().sum();
    let slopes = slopes.iter().zip(&q).map(|(slope, q)| slope - q * mean);
    (terms.iter().sum(), slopes.collect())
}

/// A class's term of D(p, q), and q times the term's derivative by q. `log_ratio` is log p − log q.
///
/// The terms are those of the definition and a multiple of q − p, which adds nothing to the sum:
/// no term is then negative, and none cancels near p = q.
fn term(divergence: Divergence, p: f64, q: f64, log_ratio: f64) -> (f64, f64) {
    match divergence {
        Divergence::Forward => unreachable!("it has a function of its own"),
        Divergence::Reverse => {
            let of_q = Mixture::new(q, p, -log_ratio, [1.0, 0.0]);
            (of_q.term, q * of_q.slope_of_own())
        }
        Divergence::Js { beta } => {
            let of_p = Mixture::new(p, q, log_ratio, [1.0 - beta, beta]);
            let of_q = Mixture::new(q, p, -log_ratio, [beta, 1.0 - beta]);
            let term = beta * of_p.term + (1.0 - beta) * of_q.term;
            // ∂/∂q of both: (1 − β) log(q/m).
            let slope = if q > 0.0 {
                -(1.0 - beta) * q * of_q.log
            } else {
                0.0
            };
            (term, slope)
        }
        Divergence::Skew { alpha } => {
            let of_p = Mixture::new(p, q, log_ratio, [1.0 - alpha, alpha]);
            (of_p.term, q * of_p.slope_of_other())
        }
        Divergence::SkewReverse { alpha } => {
            let of_q = Mixture::new(q, p, -log_ratio, [1.0 - alpha, alpha]);
            (of_q.term, q * of_q.slope_of_own())
        }
    }
}

/// A class's part of KL(v‖m), with m = v + share (w − v).
struct Mixture {
    share: f64,
    rest: f64,
    /// v log(v/m) + m − v
    term: f64,
    /// z = m/v − 1, and 1 + z
    z: f64,
    u: f64,
    /// log(m/v)
    log: f64,
}

impl Mixture {
    /// `log_ratio` is log v − log w, and `rest` is 1 − share.
    fn new(v: f64, w: f64, log_ratio: f64, [share, rest]: [f64; 2]) -> Self {
        if share == 0.0 {
            // m = v
            return Mixture {
                share,
                rest,
                term: 0.0,
                z: 0.0,
                u: 1.0,
                log: 0.0,
            };
        }
        let z = share * (-log_ratio).exp_m1();
        // Not 1 + z, which would round `rest` off.
        let u = rest + share * (-log_ratio).exp();
        let log = if rest == 0.0 {
            -log_ratio
        } else if z == f64::INFINITY {
            share.ln() - log_ratio
        } else if z.abs() < 0.5 {
            z.ln_1p()
        } else {
            u.ln()
        };
        let term = if v == 0.0 {
            share * w
        } else if z.abs() < 0.1 {
            v * excess_of_log(z)
        } else {
            share * (w - v) - v * log
        };
        Mixture {
            share,
            rest,
            term,
            z,
            u,
            log,
        }
    }

    /// The term's derivative by w: share z/(1 + z).
    fn slope_of_other(&self) -> f64 {
        self.share
            * if self.u.is_finite() {
                self.z / self.u
            } else {
                1.0
            }
    }

    /// The term's derivative by v: (1 − share) z/(1 + z) − log(1 + z); 0 where v is 0, by which it
    /// is multiplied.
    fn slope_of_own(&self) -> f64 {
        let ratio = self.slope_of_other() / self.share.max(f64::MIN_POSITIVE);
        if self.log == f64::INFINITY {
            0.0
        } else if self.z.abs() < 0.1 {
            // log(1 + z) = z/(1 + z) + z²/(1 + z) − ψ(z)
            -self.share * ratio - self.z * ratio + excess_of_log(self.z)
        } else if self.rest == 0.0 {
            -self.log
        } else {
            self.rest * ratio - self.log
        }
    }
}

/// ψ(z) = z − log(1 + z) for |z| < 0.1, by its series: the direct difference cancels.
fn excess_of_log(z: f64) -> f64 {
    (2..20).rev().map(|k| (-z).powi(k) / f64::from(k)).sum()
}
