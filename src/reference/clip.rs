use super::divergence::divergence;
use super::rrd::similarities;
use super::{Matrix, dot};
use crate::loss::Clip;
use crate::problem::Value;

/// L = hard_weight · hard + soft_weight · soft of both directions, or of the first; x the student's
/// rows at length 1, and y the teacher's if there is one. `labels` mask pairs.
pub(super) fn clip(
    loss: &Clip,
    x: &Matrix,
    y: Option<&Matrix>,
    labels: Option<&[u32]>,
) -> (Value, Vec<f64>) {
    let n = x.rows() / 2;
    let (rows, of_direction) = match loss.both_ways {
        true => (2 * n, 0.5 / n as f64),
        false => (n, 1.0 / n as f64),
    };
    let (mut hard, mut soft, mut scale_gradient) = (0.0, 0.0, 0.0);
    let mut gradient = vec![0.0; x.data.len()];
    // Row i of one tower, the first row of the other, and the partner there.
    for i in 0..rows {
        let (first, partner) = if i < n { (n, i + n) } else { (0, i - n) };
        let is_key = |&k: &usize| k == partner || !is_masked(loss, y, labels, [i, k, partner]);
        let keys: Vec<usize> = (first..first + n).filter(is_key).collect();
        let own = keys.partition_point(|&k| k < partner);
        let others = x.picked(&keys);
        let logits = similarities(x.row(i), &others, loss.temperature);
        // The hard target's logits: −∞ for all but the partner.
        let mut partner = vec![f64::NEG_INFINITY; keys.len()];
        partner[own] = 0.0;
        let to_partner = divergence(&logits, &partner, |k| partner[k] - logits[k]);
        hard += of_direction * cross_entropy(&logits, own);
        let mut slopes: Vec<f64> = to_partner
            .differences
            .iter()
            .map(|d| loss.hard_weight * d)
            .collect();
        if let Some(y) = y.filter(|_| loss.soft_weight > 0.0) {
            let targets = similarities(y.row(i), &y.picked(&keys), loss.teacher_temperature);
            let to_teacher = divergence(&logits, &targets, |k| targets[k] - logits[k]);
            for k in 0..keys.len() {
                soft -= of_direction * to_teacher.p[k] * to_teacher.log_q[k];
                slopes[k] += loss.soft_weight * to_teacher.differences[k];
            }
        }
        for (k, slope) in slopes.iter().enumerate() {
            let g = of_direction * slope;
            scale_gradient += g * dot(x.row(i), others.row(k));
            for d in 0..x.dim {
                gradient[i * x.dim + d] += g * others.row(k)[d] / loss.temperature;
                gradient[keys[k] * x.dim + d] += g * x.row(i)[d] / loss.temperature;
            }
        }
    }
    let value = loss.hard_weight * hard + loss.soft_weight * soft;
    let terms = [
        ("hard", hard),
        ("soft", soft),
        ("scale_gradient", scale_gradient),
    ];
    (Value::with_terms(value, terms), gradient)
}

/// Whether row i leaves key k out of its softmaxes.
fn is_masked(
    loss: &Clip,
    y: Option<&Matrix>,
    labels: Option<&[u32]>,
    [i, k, partner]: [usize; 3],
) -> bool {
    let by_label = labels.is_some_and(|labels| labels[i] == labels[k]);
    let by_guide = y.filter(|_| loss.guided).is_some_and(|y| {
        let limit = dot(y.row(i), y.row(partner)) - loss.guide_margin + Clip::GUIDE_SLACK;
        dot(y.row(i), y.row(k)) > limit
    });
    by_label || by_guide
}

/// −log softmax(logits)[own], from how far the other logits are above the own one: no digit is lost
/// where the own one has nearly all of the weight.
fn cross_entropy(logits: &[f64], own: usize) -> f64 {
    let mut others: Vec<f64> = logits.iter().map(|l| l - logits[own]).collect();
    others.remove(own);
    let max = others.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = others.iter().map(|l| (l - max).exp()).sum();
    // Of no others −∞ and 0.
    let log_sum = if others.is_empty() {
        max
    } else {
        max + sum.ln()
    };
    log_sum.max(0.0) + (-log_sum.abs()).exp().ln_1p()
}
