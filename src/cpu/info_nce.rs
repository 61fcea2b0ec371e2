//! InfoNCE: the student's attention, over the teacher's rows or over the queue and the own key.

use rayon::prelude::*;

use super::attention::{Keys, attend};
use super::buffer::Buffer;
use super::embeddings::{Embeddings, Entry};
use super::rrd::{dot, seeds};
use crate::element::Element;
use crate::error::Result;
use crate::loss::InfoNce;
use crate::problem::{Batch, Value};

pub(super) fn info_nce<T: Element>(
    loss: &InfoNce,
    batch: Batch<'_, T>,
    upstream: f64,
    gradient: &mut [T::Real],
) -> Result<Value> {
    let entry = Entry::normalized_if(loss.normalize);
    let z = Embeddings::<T::Real>::new(batch.student, entry)?;
    let y = Embeddings::<T::Real>::new(batch.teacher, entry)?;
    if !(z.finite && y.finite) {
        gradient.fill(T::Real::from_f64(f64::NAN));
        return Ok(Value::new(f64::NAN));
    }
    let keys = match batch.queue {
        None => Keys {
            data: &y.data,
            len: y.rows,
            dim: y.dim,
            stride: y.stride,
        },
        Some(queue) => Keys {
            data: queue.keys(),
            len: queue.len(),
            dim: queue.dim(),
            stride: queue.dim(),
        },
    };
    let seeds = match batch.queue {
        None => (0..z.rows).map(|i| dot(z.row(i), y.row(i))).collect(),
        Some(queue) => seeds(&z, queue),
    };
    let attention = attend(&z, keys, &seeds, loss.temperature)?;

    let (n, dim) = (z.rows, z.dim);
    let factor = upstream / (n as f64 * loss.temperature);
    let losses: Vec<f64> = gradient
        .par_chunks_exact_mut(dim)
        .enumerate()
        .map(|(i, out)| {
            let own = &y.row(i)[..dim];
            let own_logit = dot(z.row(i), own) / loss.temperature;
            // The own key is among the keys in-batch; beside a queue it is one more. Its weight there
            // against that of the queue:
            let (log_sum, queue_weight) = match batch.queue {
                None => (attention.log_sum[i], 1.0),
                Some(_) => beside(attention.log_sum[i], own_logit),
            };
            let mean = &attention.mean[i * dim..][..dim];
            let mut g = Buffer::any(dim)?;
            for ((g, mean), own) in g.iter_mut().zip(mean).zip(own) {
                // queue_weight · mean + (1 − queue_weight) · own − own
                *g = T::Real::from_f64(queue_weight * (mean.to_f64() - own.to_f64()));
            }
            z.write_gradient(i, factor, &g, out);
            Ok(log_sum - own_logit)
        })
        .collect::<Result<_>>()?;
    Ok(Value::new(losses.iter().sum::<f64>() / n as f64))
}

/// log(e^a + e^b), and the share of e^a in that sum.
fn beside(a: f64, b: f64) -> (f64, f64) {
    let max = a.max(b);
    let (ea, eb) = ((a - max).exp(), (b - max).exp());
    (max + (ea + eb).ln(), ea / (ea + eb))
}
