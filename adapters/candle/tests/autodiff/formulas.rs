//! The losses as their papers print them, in candle's operations, for candle to differentiate. Only
//! the parameters are relata's.

use candle_core::{D, DType, Result, Tensor};
use relata_candle::{
    DarkRank, Divergence, Gram, InfoNce, KdKl, Order, Pkt, Rkd, RkdAngle, RkdDistance, Rrd, Sp,
};

pub(crate) fn rkd_distance(x: &Tensor, y: &Tensor, loss: RkdDistance) -> Result<Tensor> {
    let scaled = |rows: &Tensor| -> Result<Tensor> {
        let d = distances(&optionally_unit(rows, loss.normalize)?)?;
        let n = rows.dim(0)? as f64;
        let mean = (d.sum_all()? / (n * (n - 1.)))?;
        d.broadcast_div(&mean)
    };
    huber(&(scaled(x)? - scaled(y)?)?, loss.delta)?.mean_all()
}

pub(crate) fn rkd_angle(x: &Tensor, y: &Tensor, loss: RkdAngle) -> Result<Tensor> {
    let cosines = |rows: &Tensor| -> Result<Tensor> {
        let rows = optionally_unit(rows, loss.normalize)?;
        let edges = differences(&rows)?.broadcast_div(&lengths(&rows)?.unsqueeze(2)?)?;
        edges.matmul(&edges.transpose(1, 2)?)
    };
    huber(&(cosines(x)? - cosines(y)?)?, loss.delta)?.mean_all()
}

pub(crate) fn rkd(x: &Tensor, y: &Tensor, loss: Rkd) -> Result<Tensor> {
    let Rkd {
        delta, normalize, ..
    } = loss;
    let distance = rkd_distance(x, y, RkdDistance { delta, normalize })?;
    let angle = rkd_angle(x, y, RkdAngle { delta, normalize })?;
    (distance * loss.distance_weight)? + (angle * loss.angle_weight)?
}

pub(crate) fn sp(x: &Tensor, y: &Tensor, _: Sp) -> Result<Tensor> {
    let similarities = |rows: &Tensor| unit(&rows.matmul(&rows.t()?)?);
    (similarities(x)? - similarities(y)?)?.sqr()?.mean_all()
}

pub(crate) fn gram(x: &Tensor, y: &Tensor, loss: Gram) -> Result<Tensor> {
    let similarities = |rows: &Tensor| {
        let unit = unit(rows)?;
        let cosines = unit.matmul(&unit.t()?)?;
        if loss.clamp {
            cosines.relu()
        } else {
            Ok(cosines)
        }
    };
    (similarities(x)? - similarities(y)?)?.sqr()?.mean_all()
}

pub(crate) fn pkt(x: &Tensor, y: &Tensor, _: Pkt) -> Result<Tensor> {
    const EPSILON: f64 = 1e-7;
    let probabilities = |rows: &Tensor| -> Result<Tensor> {
        let lengths = (rows.sqr()?.sum_keepdim(1)?.sqrt()? + EPSILON)?;
        let rows = rows.broadcast_div(&lengths)?;
        let shifted = ((rows.matmul(&rows.t()?)? + 1.)? / 2.)?;
        shifted.broadcast_div(&shifted.sum_keepdim(1)?)
    };
    let (q, p) = (probabilities(x)?, probabilities(y)?);
    let ratios = ((&p + EPSILON)? / (q + EPSILON)?)?;
    (p * ratios.log()?)?.mean_all()
}

pub(crate) fn order(x: &Tensor, y: &Tensor, loss: Order) -> Result<Tensor> {
    let n = x.dim(0)?;
    let pairs: Vec<u32> = (0..n)
        .flat_map(|i| (i + 1..n).map(move |j| (i * n + j) as u32))
        .collect();
    let count = pairs.len();
    let pairs = Tensor::new(pairs, x.device())?;
    // s_b − s_a at [a, b]
    let differences = |rows: &Tensor| -> Result<Tensor> {
        let unit = unit(rows)?;
        let cosines = unit.matmul(&unit.t()?)?.flatten_all()?;
        let of_pairs = cosines.index_select(&pairs, 0)?;
        of_pairs
            .unsqueeze(0)?
            .broadcast_sub(&of_pairs.unsqueeze(1)?)
    };
    let lower = differences(y)?.lt(0f64)?.to_dtype(x.dtype())?;
    let label = ((lower * 2.)? - 1.)?;
    let terms = ((differences(x)? * label)? + loss.margin)?.relu()?;
    let upper = (Tensor::triu2(count, x.dtype(), x.device())?
        - Tensor::eye(count, x.dtype(), x.device())?)?;
    // Of two rows there is one pair, and nothing to compare it with.
    (terms * upper)?.sum_all()? / (count * (count - 1) / 2).max(1) as f64
}

pub(crate) fn dark_rank(x: &Tensor, y: &Tensor, loss: DarkRank) -> Result<Tensor> {
    let n = x.dim(0)?;
    let length = loss.length.min(n - 1);
    let mut neighbors: Vec<u32> = Vec::new();
    for (i, row) in distances(y)?
        .to_dtype(DType::F64)?
        .to_vec2::<f64>()?
        .iter()
        .enumerate()
    {
        let mut others: Vec<usize> = (0..n).filter(|&j| j != i).collect();
        others.sort_by(|&j, &k| row[j].total_cmp(&row[k]));
        neighbors.extend(others[..length].iter().map(|&j| j as u32));
    }
    let neighbors = Tensor::from_vec(neighbors, (n, length), x.device())?;
    // The diagonal of the lengths is 1, and no neighbour.
    let scores = (lengths(x)?.powf(loss.beta)? * -loss.alpha)?.gather(&neighbors, 1)?;
    let mut sum = scores.sum_all()?.neg()?;
    for k in 0..length {
        let left = scores.narrow(1, k, length - k)?;
        sum = (sum + left.log_sum_exp(1)?.sum_all()?)?;
    }
    sum / n as f64
}

pub(crate) fn kd_kl(x: &Tensor, y: &Tensor, loss: KdKl) -> Result<Tensor> {
    let t = loss.student_temperature;
    let log_q = log_softmax(&(x / t)?)?;
    let log_p = log_softmax(&(y / loss.teacher_temperature)?)?;
    let (p, q) = (log_p.exp()?, log_q.exp()?);
    let kl = |log_v: &Tensor, log_w: &Tensor| -> Result<Tensor> {
        (log_v.exp()? * (log_v - log_w)?)?.sum(D::Minus1)
    };
    let mixed = |share: f64| -> Result<Tensor> { ((&p * share)? + (&q * (1.0 - share))?)?.log() };
    let divergences = match loss.divergence {
        Divergence::Forward => kl(&log_p, &log_q),
        Divergence::Reverse => kl(&log_q, &log_p),
        Divergence::Js { beta } => {
            let log_m = mixed(beta)?;
            (kl(&log_p, &log_m)? * beta)? + (kl(&log_q, &log_m)? * (1.0 - beta))?
        }
        Divergence::Skew { alpha } => kl(&log_p, &mixed(alpha)?),
        Divergence::SkewReverse { alpha } => kl(&log_q, &mixed(1.0 - alpha)?),
    };
    divergences?.mean_all()? * (t * t)
}

pub(crate) fn info_nce(x: &Tensor, y: &Tensor, loss: InfoNce) -> Result<Tensor> {
    let [z, y] = [
        optionally_unit(x, loss.normalize)?,
        optionally_unit(y, loss.normalize)?,
    ];
    let log_q = log_softmax(&(z.matmul(&y.t()?)? / loss.temperature)?)?;
    (log_q * eye_like(x)?)?.sum_all()? / -(x.dim(0)? as f64)
}

/// `keys`: the keys in the queue when the loss is computed. They include the batch's own if it
/// enters before.
pub(crate) fn info_nce_with_queue(
    x: &Tensor,
    y: &Tensor,
    keys: &Tensor,
    loss: InfoNce,
) -> Result<Tensor> {
    let [z, y] = [
        optionally_unit(x, loss.normalize)?,
        optionally_unit(y, loss.normalize)?,
    ];
    let own = (&z * y)?.sum_keepdim(1)?;
    let logits = Tensor::cat(&[own, z.matmul(&keys.t()?)?], 1)?;
    let log_q = log_softmax(&(logits / loss.temperature)?)?;
    log_q.narrow(1, 0, 1)?.mean_all()?.neg()
}

/// As [`info_nce_with_queue`].
pub(crate) fn rrd(x: &Tensor, y: &Tensor, keys: &Tensor, loss: Rrd) -> Result<Tensor> {
    let log_softmax_of = |rows: &Tensor, temperature: f64| -> Result<Tensor> {
        let rows = optionally_unit(rows, loss.normalize)?;
        log_softmax(&(rows.matmul(&keys.t()?)? / temperature)?)
    };
    let p = log_softmax_of(y, loss.teacher_temperature)?.exp()?;
    let log_q = log_softmax_of(x, loss.student_temperature)?;
    (p * log_q)?.sum(1)?.mean_all()?.neg()
}

pub(crate) fn unit(rows: &Tensor) -> Result<Tensor> {
    rows.broadcast_div(&rows.sqr()?.sum_keepdim(1)?.sqrt()?)
}

fn optionally_unit(rows: &Tensor, normalize: bool) -> Result<Tensor> {
    if normalize {
        unit(rows)
    } else {
        Ok(rows.clone())
    }
}

/// `[N, N, D]`: x_i − x_j at (j, i).
fn differences(rows: &Tensor) -> Result<Tensor> {
    rows.unsqueeze(0)?.broadcast_sub(&rows.unsqueeze(1)?)
}

/// `[N, N]`: distances, and 1 on the diagonal, where the root of 0 would have no derivative.
fn lengths(rows: &Tensor) -> Result<Tensor> {
    (differences(rows)?.sqr()?.sum(2)? + eye_like(rows)?)?.sqrt()
}

fn distances(rows: &Tensor) -> Result<Tensor> {
    lengths(rows)? - eye_like(rows)?
}

fn eye_like(rows: &Tensor) -> Result<Tensor> {
    Tensor::eye(rows.dim(0)?, rows.dtype(), rows.device())
}

fn huber(u: &Tensor, delta: f64) -> Result<Tensor> {
    let size = u.abs()?;
    let near = (u.sqr()? * 0.5)?;
    let far = ((&size - 0.5 * delta)? * delta)?;
    size.le(delta)?.where_cond(&near, &far)
}

pub(crate) fn log_softmax(logits: &Tensor) -> Result<Tensor> {
    let shifted = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?.detach())?;
    shifted.broadcast_sub(&shifted.exp()?.sum_keepdim(D::Minus1)?.log()?)
}
