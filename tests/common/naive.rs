//! The definitions evaluated directly, every operation in f32: distances and cosines from
//! differences and products of edges, gradients by the chain rule, as a tensor library would.
//! Products accumulate as in a matrix product: fused, in order, in blocks. A softmax sums its row
//! in eight lanes, in one sweep. Other sums are pairwise.
//!
//! That makes this module as exact as the paper's code. On 64 Gaussian rows of 128 elements the
//! gradient of the angle loss is off by 1.5e-7, here as in NumPy over OpenBLAS. (With pairwise sums
//! of the products it would be off by 1.0e-7.)

use relata::Divergence;

/// Terms that a matrix product accumulates before it starts anew.
const BLOCK: usize = 256;

/// Σ a b
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut total = 0.0;
    for (a, b) in a.chunks(BLOCK).zip(b.chunks(BLOCK)) {
        let mut block = 0.0f32;
        for k in 0..a.len() {
            block = a[k].mul_add(b[k], block);
        }
        total += block;
    }
    total
}

fn norm(x: &[f32]) -> f32 {
    let squares: Vec<f32> = x.iter().map(|x| x * x).collect();
    sum(&squares).sqrt()
}

fn sum(x: &[f32]) -> f32 {
    if x.len() <= 2 {
        return x.iter().sum();
    }
    let (a, b) = x.split_at(x.len() / 2);
    sum(a) + sum(b)
}

fn lane_sum(x: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 8];
    for x in x.chunks(8) {
        for (lane, x) in lanes.iter_mut().zip(x) {
            *lane += x;
        }
    }
    sum(&lanes)
}

/// Σ_j c_j row_j
fn combine(c: &[f32], rows: &[f32], dim: usize) -> Vec<f32> {
    let mut total = vec![0.0; dim];
    for (c, rows) in c.chunks(BLOCK).zip(rows.chunks(BLOCK * dim)) {
        let mut block = vec![0.0f32; dim];
        for (&c, row) in c.iter().zip(rows.chunks(dim)) {
            for d in 0..dim {
                block[d] = c.mul_add(row[d], block[d]);
            }
        }
        for d in 0..dim {
            total[d] += block[d];
        }
    }
    total
}

/// The penalty and its slope, δ = 1.
fn huber(e: f32) -> (f32, f32) {
    let penalty = if e.abs() <= 1.0 {
        0.5 * e * e
    } else {
        e.abs() - 0.5
    };
    (penalty, e.clamp(-1.0, 1.0))
}

/// The unit edges (x_i − x_j)/d_ij that meet in row j, `[N, D]`, and their lengths.
fn edges(x: &[f32], dim: usize, j: usize) -> (Vec<f32>, Vec<f32>) {
    let vertex = &x[j * dim..][..dim];
    let mut edges = vec![0.0; x.len()];
    let mut lengths = Vec::with_capacity(x.len() / dim);
    for (row, edge) in x.chunks(dim).zip(edges.chunks_mut(dim)) {
        for d in 0..dim {
            edge[d] = row[d] - vertex[d];
        }
        let length = norm(edge);
        if length > 0.0 {
            edge.iter_mut().for_each(|e| *e /= length);
        }
        lengths.push(length);
    }
    (edges, lengths)
}

/// Loss and gradient of [`relata::RkdDistance`].
pub(crate) fn rkd_distance(x: &[f32], y: &[f32], [n, dim, dim_t]: [usize; 3]) -> (f32, Vec<f32>) {
    let pairs = (n * (n - 1)) as f32;
    let squared = (n * n) as f32;
    let from_x: Vec<_> = (0..n).map(|j| edges(x, dim, j)).collect();
    let d: Vec<f32> = from_x
        .iter()
        .flat_map(|(_, length)| length.clone())
        .collect();
    let t: Vec<f32> = (0..n).flat_map(|j| edges(y, dim_t, j).1).collect();
    let (mu, mu_t) = (sum(&d) / pairs, sum(&t) / pairs);
    let (penalties, w): (Vec<f32>, Vec<f32>) = d
        .iter()
        .zip(&t)
        .map(|(d, t)| huber(d / mu - t / mu_t))
        .unzip();
    let through_mean = dot(&w, &d) / (mu * mu * pairs);
    let mut gradient = vec![0.0; n * dim];
    for j in 0..n {
        // ∂d_ij/∂x_j = −(the edge from j to i); every pair counts in both orders.
        let slopes: Vec<f32> = (0..n)
            .map(|i| -2.0 * (w[j * n + i] / mu - through_mean) / squared)
            .collect();
        gradient[j * dim..][..dim].copy_from_slice(&combine(&slopes, &from_x[j].0, dim));
    }
    (sum(&penalties) / squared, gradient)
}

/// Loss and gradient of [`relata::RkdAngle`], all N³ cosines from unit edges.
pub(crate) fn rkd_angle(x: &[f32], y: &[f32], [n, dim, dim_t]: [usize; 3]) -> (f32, Vec<f32>) {
    let cubed = (n * n * n) as f32;
    let mut losses = Vec::with_capacity(n);
    // What each row gets as an end of the edges of a vertex, `[vertex, N·D]`, and as the vertex.
    let mut as_end = Vec::with_capacity(n * n * dim);
    let mut as_vertex = Vec::with_capacity(n * dim);
    for j in 0..n {
        let (e, lengths) = edges(x, dim, j);
        let (f, _) = edges(y, dim_t, j);
        let (mut penalties, mut w) = (vec![0.0; n * n], vec![0.0; n * n]);
        for i in 0..n {
            for k in 0..=i {
                let cos = dot(&e[i * dim..][..dim], &e[k * dim..][..dim]);
                let target = dot(&f[i * dim_t..][..dim_t], &f[k * dim_t..][..dim_t]);
                let (penalty, slope) = huber(cos - target);
                for at in [i * n + k, k * n + i] {
                    (penalties[at], w[at]) = (penalty, slope);
                }
            }
        }
        losses.push(sum(&penalties));
        let from = as_end.len();
        for k in 0..n {
            let edge = &e[k * dim..][..dim];
            let mut g = combine(&w[k * n..][..n], &e, dim);
            let along = dot(&g, edge);
            for (g, e) in g.iter_mut().zip(edge) {
                *g = if lengths[k] > 0.0 {
                    2.0 * (*g - along * e) / lengths[k] / cubed
                } else {
                    0.0
                };
            }
            as_end.extend(g);
        }
        as_vertex.extend(combine(&vec![-1.0; n], &as_end[from..], dim));
    }
    let mut gradient = combine(&vec![1.0; n], &as_end, n * dim);
    for (g, v) in gradient.iter_mut().zip(as_vertex) {
        *g += v;
    }
    (sum(&losses) / cubed, gradient)
}

/// Row i of X Xᵀ divided by its norm, and the norm.
fn similarities(x: &[f32], dim: usize, i: usize) -> (Vec<f32>, f32) {
    let row = &x[i * dim..][..dim];
    let products: Vec<f32> = x.chunks(dim).map(|other| dot(row, other)).collect();
    normalized(&products)
}

/// Loss and gradient of [`relata::Sp`].
pub(crate) fn sp(x: &[f32], y: &[f32], [n, dim, dim_t]: [usize; 3]) -> (f32, Vec<f32>) {
    let squared = (n * n) as f32;
    let mut losses = Vec::with_capacity(n);
    let mut slopes = vec![0.0; n * n];
    for (i, slopes) in slopes.chunks_mut(n).enumerate() {
        let (u, norm) = similarities(x, dim, i);
        let (v, _) = similarities(y, dim_t, i);
        let difference: Vec<f32> = u.iter().zip(&v).map(|(u, v)| u - v).collect();
        losses.push(dot(&difference, &difference));
        let w: Vec<f32> = difference.iter().map(|e| 2.0 * e / squared).collect();
        slopes.copy_from_slice(&through_norm(&w, &u, norm));
    }
    let mut gradient = Vec::with_capacity(n * dim);
    for i in 0..n {
        // ∂L/∂G and its transpose: X appears twice in the product.
        let both: Vec<f32> = (0..n)
            .map(|j| slopes[i * n + j] + slopes[j * n + i])
            .collect();
        gradient.extend(combine(&both, x, dim));
    }
    (sum(&losses) / squared, gradient)
}

/// Loss and gradient of a mean over the pairs of unit rows: `of_row` gives the loss of a row from
/// the student's and the teacher's products, and its slope by each of the student's.
fn of_cosines(
    [x, y]: [&[f32]; 2],
    [n, dim, dim_t]: [usize; 3],
    epsilon: f32,
    of_row: impl Fn(&[f32], &[f32]) -> (f32, Vec<f32>),
) -> (f32, Vec<f32>) {
    let squared = (n * n) as f32;
    let unit = |row: &[f32]| -> Vec<f32> {
        let length = norm(row) + epsilon;
        row.iter().map(|x| x / length).collect()
    };
    let units = |x: &[f32], dim| -> Vec<f32> { x.chunks(dim).flat_map(unit).collect() };
    let (x_unit, y_unit) = (units(x, dim), units(y, dim_t));
    let products = |x: &[f32], dim: usize, i: usize| -> Vec<f32> {
        let row = &x[i * dim..][..dim];
        x.chunks(dim).map(|other| dot(row, other)).collect()
    };
    let (mut losses, mut slopes) = (Vec::new(), Vec::new());
    for i in 0..n {
        let (loss, slope) = of_row(&products(&x_unit, dim, i), &products(&y_unit, dim_t, i));
        losses.push(loss);
        slopes.extend(slope.iter().map(|w| w / squared));
    }
    let mut gradient = Vec::with_capacity(n * dim);
    for (i, row) in x.chunks(dim).enumerate() {
        let both: Vec<f32> = (0..n)
            .map(|j| slopes[i * n + j] + slopes[j * n + i])
            .collect();
        let g = combine(&both, &x_unit, dim);
        let (direction, norm) = normalized(row);
        // Through x/(‖x‖ + ε).
        let along = dot(&g, &direction) * norm / (norm + epsilon);
        gradient.extend(
            g.iter()
                .zip(&direction)
                .map(|(g, z)| (g - along * z) / (norm + epsilon)),
        );
    }
    (sum(&losses) / squared, gradient)
}

/// Loss and gradient of [`relata::Gram`].
pub(crate) fn gram(x: &[f32], y: &[f32], shape: [usize; 3]) -> (f32, Vec<f32>) {
    of_cosines([x, y], shape, 0.0, |s, t| {
        let difference: Vec<f32> = s.iter().zip(t).map(|(s, t)| s - t).collect();
        let slopes = difference.iter().map(|e| 2.0 * e).collect();
        (dot(&difference, &difference), slopes)
    })
}

/// Loss and gradient of [`relata::Order`] with its margin of 0.015.
pub(crate) fn order(x: &[f32], y: &[f32], [n, dim, dim_t]: [usize; 3]) -> (f32, Vec<f32>) {
    let units = |x: &[f32], dim| -> Vec<f32> {
        let unit = |row| normalized(row).0;
        x.chunks(dim).flat_map(unit).collect()
    };
    let (x_unit, y_unit) = (units(x, dim), units(y, dim_t));
    let pairs: Vec<(usize, usize)> = (0..n)
        .flat_map(|i| (i + 1..n).map(move |j| (i, j)))
        .collect();
    let of_pairs = |x: &[f32], dim: usize| -> Vec<f32> {
        let row = |i: usize| &x[i * dim..][..dim];
        pairs.iter().map(|&(i, j)| dot(row(i), row(j))).collect()
    };
    let (s, t) = (of_pairs(&x_unit, dim), of_pairs(&y_unit, dim_t));
    let terms = (s.len() * (s.len() - 1) / 2) as f32;
    let mut losses = Vec::with_capacity(s.len());
    let mut slopes = vec![0.0f32; s.len()];
    for b in 0..s.len() {
        let mut of_pair = Vec::with_capacity(b);
        for a in 0..b {
            let label = if t[b] < t[a] { 1.0 } else { -1.0 };
            let term = (s[b] - s[a]) * label + 0.015;
            if term > 0.0 {
                of_pair.push(term);
                slopes[b] += label;
                slopes[a] -= label;
            }
        }
        losses.push(sum(&of_pair));
    }
    let mut matrix = vec![0.0; n * n];
    for (&(i, j), slope) in pairs.iter().zip(&slopes) {
        matrix[i * n + j] = slope / terms;
        matrix[j * n + i] = slope / terms;
    }
    let mut gradient = Vec::with_capacity(n * dim);
    for (i, row) in x.chunks(dim).enumerate() {
        let g = combine(&matrix[i * n..][..n], &x_unit, dim);
        let (z, norm) = normalized(row);
        gradient.extend(through_norm(&g, &z, norm));
    }
    (sum(&losses) / terms, gradient)
}

/// Loss and gradient of [`relata::DarkRank`] with its defaults.
pub(crate) fn dark_rank(x: &[f32], y: &[f32], [n, dim, dim_t]: [usize; 3]) -> (f32, Vec<f32>) {
    let mut losses = Vec::with_capacity(n);
    let mut coefficients = vec![0.0f32; n * n];
    for i in 0..n {
        let (_, t) = edges(y, dim_t, i);
        let (_, lengths) = edges(x, dim, i);
        let mut neighbors: Vec<usize> = (0..n).filter(|&j| j != i).collect();
        neighbors.sort_by(|&j, &k| t[j].total_cmp(&t[k]));
        neighbors.truncate(4);
        let scores: Vec<f32> = neighbors
            .iter()
            .map(|&j| -3.0 * lengths[j].powf(3.0))
            .collect();
        let mut terms = Vec::new();
        let mut slopes = vec![0.0f32; scores.len()];
        for k in 0..scores.len() {
            let log_p = log_softmax(&scores[k..]);
            terms.push(-log_p[0]);
            for (slope, log_p) in slopes[k..].iter_mut().zip(&log_p) {
                *slope += log_p.exp();
            }
            slopes[k] -= 1.0;
        }
        losses.push(sum(&terms));
        for (&j, slope) in neighbors.iter().zip(slopes) {
            // By d, times 1/d: the edge is x_i − x_j.
            let by_d = -slope * 9.0 * lengths[j] * lengths[j];
            for at in [i * n + j, j * n + i] {
                coefficients[at] += by_d / n as f32;
            }
        }
    }
    let mut gradient = Vec::with_capacity(n * dim);
    for i in 0..n {
        let (unit, _) = edges(x, dim, i);
        // Edges go from row i to the others.
        let away: Vec<f32> = coefficients[i * n..][..n].iter().map(|c| -c).collect();
        gradient.extend(combine(&away, &unit, dim));
    }
    (sum(&losses) / n as f32, gradient)
}

/// Loss and gradient of [`relata::Pkt`].
pub(crate) fn pkt(x: &[f32], y: &[f32], shape: [usize; 3]) -> (f32, Vec<f32>) {
    const EPSILON: f32 = 1e-7;
    let probabilities = |s: &[f32]| -> (Vec<f32>, f32) {
        let shifted: Vec<f32> = s.iter().map(|s| (s + 1.0) / 2.0).collect();
        let total = sum(&shifted);
        (shifted.iter().map(|s| s / total).collect(), total)
    };
    of_cosines([x, y], shape, EPSILON, |s, t| {
        let ((q, total), (p, _)) = (probabilities(s), probabilities(t));
        let terms: Vec<f32> = p
            .iter()
            .zip(&q)
            .map(|(p, q)| p * ((p + EPSILON) / (q + EPSILON)).ln())
            .collect();
        let w: Vec<f32> = p.iter().zip(&q).map(|(p, q)| -p / (q + EPSILON)).collect();
        let mean = dot(&w, &q);
        let slopes = w.iter().map(|w| (w - mean) / total / 2.0).collect();
        (sum(&terms), slopes)
    })
}

fn log_softmax(logits: &[f32]) -> Vec<f32> {
    let max = logits.iter().copied().fold(f32::MIN, f32::max);
    let terms: Vec<f32> = logits.iter().map(|l| (l - max).exp()).collect();
    let log_sum = lane_sum(&terms).ln();
    logits.iter().map(|l| l - max - log_sum).collect()
}

/// Cross-entropy of q against log p's target distribution, and the slopes q − p.
fn compare(log_p: &[f32], log_q: &[f32]) -> (f32, f32, Vec<f32>) {
    let p: Vec<f32> = log_p.iter().map(|l| l.exp()).collect();
    let log_ratio: Vec<f32> = log_p.iter().zip(log_q).map(|(p, q)| p - q).collect();
    let slopes = log_q.iter().zip(&p).map(|(q, p)| q.exp() - p).collect();
    (-dot(&p, log_q), dot(&p, &log_ratio), slopes)
}

/// z = x/‖x‖ and ‖x‖.
fn normalized(x: &[f32]) -> (Vec<f32>, f32) {
    let norm = norm(x);
    (x.iter().map(|x| x / norm).collect(), norm)
}

/// (g − ⟨g,z⟩z)/‖x‖
fn through_norm(g: &[f32], z: &[f32], norm: f32) -> Vec<f32> {
    let along = dot(g, z);
    g.iter()
        .zip(z)
        .map(|(g, z)| (g - along * z) / norm)
        .collect()
}

/// A loss of student and teacher, of N, D, D_t, and its gradient.
pub(crate) type Direct = fn(&[f32], &[f32], [usize; 3]) -> (f32, Vec<f32>);

/// `direct` of the rows at unit length, and its gradient through the normalisation.
fn of_unit_rows(direct: Direct, x: &[f32], y: &[f32], shape: [usize; 3]) -> (f32, Vec<f32>) {
    let [_, dim, dim_t] = shape;
    let y: Vec<f32> = y.chunks(dim_t).flat_map(|y| normalized(y).0).collect();
    let (z, norms): (Vec<_>, Vec<_>) = x.chunks(dim).map(normalized).unzip();
    let (loss, g) = direct(&z.concat(), &y, shape);
    let rows = g.chunks(dim).zip(&z).zip(norms);
    let gradient = rows.flat_map(|((g, z), norm)| through_norm(g, z, norm));
    (loss, gradient.collect())
}

/// Loss and gradient of [`relata::RkdDistance`] with `normalize`.
pub(crate) fn rkd_distance_of_unit_rows(
    x: &[f32],
    y: &[f32],
    shape: [usize; 3],
) -> (f32, Vec<f32>) {
    of_unit_rows(rkd_distance, x, y, shape)
}

/// Loss and gradient of [`relata::RkdAngle`] with `normalize`.
pub(crate) fn rkd_angle_of_unit_rows(x: &[f32], y: &[f32], shape: [usize; 3]) -> (f32, Vec<f32>) {
    of_unit_rows(rkd_angle, x, y, shape)
}

fn logits(row: &[f32], keys: &[f32], temperature: f32) -> Vec<f32> {
    let dim = row.len();
    keys.chunks(dim)
        .map(|key| dot(row, key) / temperature)
        .collect()
}

/// Loss and gradient of [`relata::Rrd`] on normalised keys.
pub(crate) fn rrd(
    x: &[f32],
    y: &[f32],
    keys: &[f32],
    dim: usize,
    [tau_s, tau_t]: [f32; 2],
) -> (f32, Vec<f32>) {
    let n = (x.len() / dim) as f32;
    let (mut losses, mut gradient) = (Vec::new(), Vec::new());
    for (x, y) in x.chunks(dim).zip(y.chunks(dim)) {
        let ((z, norm), (y, _)) = (normalized(x), normalized(y));
        let log_p = log_softmax(&logits(&y, keys, tau_t));
        let log_q = log_softmax(&logits(&z, keys, tau_s));
        let (cross_entropy, _, slopes) = compare(&log_p, &log_q);
        losses.push(cross_entropy);
        let mut g = combine(&slopes, keys, dim);
        g.iter_mut().for_each(|g| *g /= n * tau_s);
        gradient.extend(through_norm(&g, &z, norm));
    }
    (sum(&losses) / n, gradient)
}

/// Loss and gradient of [`relata::InfoNce`]; in-batch without keys.
pub(crate) fn info_nce(
    x: &[f32],
    y: &[f32],
    keys: &[f32],
    dim: usize,
    tau: f32,
) -> (f32, Vec<f32>) {
    let n = (x.len() / dim) as f32;
    let y: Vec<f32> = y.chunks(dim).flat_map(|y| normalized(y).0).collect();
    let (mut losses, mut gradient) = (Vec::new(), Vec::new());
    for (i, x) in x.chunks(dim).enumerate() {
        let (z, norm) = normalized(x);
        let (all, target) = if keys.is_empty() {
            (y.clone(), i)
        } else {
            ([&y[i * dim..][..dim], keys].concat(), 0)
        };
        let log_q = log_softmax(&logits(&z, &all, tau));
        losses.push(-log_q[target]);
        let mut slopes: Vec<f32> = log_q.iter().map(|q| q.exp()).collect();
        slopes[target] -= 1.0;
        let mut g = combine(&slopes, &all, dim);
        g.iter_mut().for_each(|g| *g /= n * tau);
        gradient.extend(through_norm(&g, &z, norm));
    }
    (sum(&losses) / n, gradient)
}

/// Loss and gradient of [`relata::KdKl`] with another divergence than KL(p‖q).
pub(crate) fn kd_divergence(
    x: &[f32],
    y: &[f32],
    classes: usize,
    t: f32,
    divergence: Divergence,
) -> (f32, Vec<f32>) {
    let n = (x.len() / classes) as f32;
    let scaled = |row: &[f32]| -> Vec<f32> { row.iter().map(|l| l / t).collect() };
    let (mut losses, mut gradient) = (Vec::new(), Vec::new());
    for (x, y) in x.chunks(classes).zip(y.chunks(classes)) {
        let (log_p, log_q) = (log_softmax(&scaled(y)), log_softmax(&scaled(x)));
        // The divergence's term of a class, and its derivative by q.
        let term = |(log_p, log_q): (&f32, &f32)| -> (f32, f32) {
            let (p, q) = (log_p.exp(), log_q.exp());
            let log_mixed = |share: f64| (share as f32 * p + (1.0 - share) as f32 * q).ln();
            match divergence {
                Divergence::Forward => panic!("see kd_kl"),
                Divergence::Reverse => (q * (log_q - log_p), log_q - log_p),
                Divergence::Js { beta } => {
                    let (log_m, beta) = (log_mixed(beta), beta as f32);
                    let of_q = (1.0 - beta) * (log_q - log_m);
                    (beta * p * (log_p - log_m) + q * of_q, of_q)
                }
                Divergence::Skew { alpha } => {
                    let log_m = log_mixed(alpha);
                    let slope = -(1.0 - alpha as f32) * p / log_m.exp();
                    (p * (log_p - log_m), slope)
                }
                Divergence::SkewReverse { alpha } => {
                    let log_m = log_mixed(1.0 - alpha);
                    let ratio = alpha as f32 * q / log_m.exp();
                    (q * (log_q - log_m), log_q - log_m - ratio)
                }
            }
        };
        let (terms, slopes): (Vec<f32>, Vec<f32>) = log_p.iter().zip(&log_q).map(term).unzip();
        let q: Vec<f32> = log_q.iter().map(|log| log.exp()).collect();
        let mean = dot(&q, &slopes);
        losses.push(lane_sum(&terms));
        gradient.extend(q.iter().zip(&slopes).map(|(q, g)| t / n * q * (g - mean)));
    }
    (t * t * sum(&losses) / n, gradient)
}

/// Loss and gradient of [`relata::KdKl`].
pub(crate) fn kd_kl(x: &[f32], y: &[f32], classes: usize, t: f32) -> (f32, Vec<f32>) {
    let n = (x.len() / classes) as f32;
    let scaled = |row: &[f32]| -> Vec<f32> { row.iter().map(|l| l / t).collect() };
    let (mut losses, mut gradient) = (Vec::new(), Vec::new());
    for (x, y) in x.chunks(classes).zip(y.chunks(classes)) {
        let (log_p, log_q) = (log_softmax(&scaled(y)), log_softmax(&scaled(x)));
        let (_, kl, slopes) = compare(&log_p, &log_q);
        losses.push(kl);
        gradient.extend(slopes.iter().map(|s| t / n * s));
    }
    (t * t * sum(&losses) / n, gradient)
}
