//! InfoNCE: the student's attention over the other teacher rows, or over the queue, compared with
//! the row's own key.

use super::attention::{Sharing, attention_forward};
use super::tiles::Keys;
use super::{initial_max, initial_maxima};
use crate::batch::Batch;
use crate::cpu::buffer::Buffer;
use crate::cpu::embeddings::{Embeddings, RowScaling};
use crate::cpu::parallel::{map, try_map_blocks};
use crate::cpu::sums::dot;
use crate::element::Element;
use crate::error::Result;
use crate::problem::Problem;
use crate::row_weights::RowMean;

/// The loss, and the gradient of 1/τ. `None` if an input is not finite.
pub(super) fn info_nce<T: Element>(
    temperature: f64,
    problem: &Problem,
    batch: Batch<'_, T>,
    mean_of: &RowMean,
    row_losses: Option<&mut [f64]>,
    gradient: &mut [T::Real],
) -> Result<Option<(f64, f64)>> {
    let scaling = RowScaling::normalized_if(problem.spec().normalize);
    let Some((z, y)) = Embeddings::<T::Real>::both(batch, scaling)? else {
        return Ok(None);
    };
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
    // The own key is kept apart. Near convergence it has almost all of the softmax, and the small
    // rest is the loss.
    let sharing = match batch.queue {
        None => Sharing::ExceptOwn,
        Some(_) => Sharing::of(problem),
    };
    let initial_maxima = match batch.queue {
        None if z.rows == 1 => vec![0.0],
        None => map(z.rows, &|i| {
            initial_max(z.row(i), &y.row((i + 1) % z.rows)[..z.dim])
        }),
        Some(queue) => initial_maxima(&z, problem.rows_after(), queue),
    };
    let attention = attention_forward(&z, keys, &initial_maxima, sharing, temperature)?;

    let dim = z.dim;
    let values: Vec<(f64, f64)> = try_map_blocks(gradient, dim, &|i, out| {
        let own = &y.row(i)[..dim];
        let own_logit = dot(z.row(i), own) / temperature;
        let (excess, others_weight) = log_ratio(attention.log_sum[i], own_logit);
        let mean = &attention.mean[i * dim..][..dim];
        let mut g = Buffer::any(dim)?;
        for ((g, mean), own) in g.iter_mut().zip(mean).zip(own) {
            // weight · mean + (1 − weight) · own − own
            *g = T::Real::from_f64(others_weight * (mean.to_f64() - own.to_f64()));
        }
        let factor = mean_of.factor(i, temperature);
        z.write_gradient(i, factor, &g, out);
        Ok((excess, dot(&g, &z.row(i)[..dim])))
    })?;
    let losses = || values.iter().map(|&(loss, _)| loss);
    if let Some(out) = row_losses {
        mean_of.store(losses(), out);
    }
    let along = values.iter().map(|&(_, along)| along);
    Ok(Some((mean_of.mean(losses()), mean_of.mean(along))))
}

/// log((e^a + e^b)/e^b), and the share of e^a in that sum.
fn log_ratio(a: f64, b: f64) -> (f64, f64) {
    let ratio = (-(a - b).abs()).exp();
    if a > b {
        (a - b + ratio.ln_1p(), 1.0 / (1.0 + ratio))
    } else {
        (ratio.ln_1p(), ratio / (1.0 + ratio))
    }
}
