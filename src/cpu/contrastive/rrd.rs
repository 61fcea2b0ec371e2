//! RRD: the attention of the student and that of the teacher over the queue.
//!
//! O_s and O_t are the means of the keys under q and p:
//!
//! ```text
//! L_i = log-sum_s − ⟨z, O_t⟩/τ_s      H(p_i) = log-sum_t − ⟨y, O_t⟩/τ_t      ∂L_i/∂z = (O_s − O_t)/τ_s
//! ```
//!
//! Near the teacher KL_i = L_i − H(p_i) is lost in rounding: `divergence` computes it.

use super::attention::{Sharing, attention_forward};
use super::divergence::{NEAR, divergence_of};
use super::initial_maxima;
use super::tiles::Keys;
use crate::batch::Batch;
use crate::cpu::buffer::Buffer;
use crate::cpu::embeddings::{Embeddings, RowScaling};
use crate::cpu::parallel::try_map_blocks;
use crate::cpu::sums::dot;
use crate::element::Element;
use crate::error::Result;
use crate::problem::Problem;
use crate::queue::Queue;
use crate::row_weights::RowMean;

/// The loss, and the divergence and the gradient of 1/τ_s, by `mean` those of the rows: H(p_i, q_i),
/// KL(p_i‖q_i) and ⟨z, O_s − O_t⟩. `None` if an input is not finite.
pub(super) fn rrd<T: Element>(
    temperatures: [f64; 2],
    problem: &Problem,
    batch: Batch<'_, T>,
    queue: &Queue<T::Real>,
    mean: &RowMean,
    row_losses: Option<&mut [f64]>,
    gradient: &mut [T::Real],
) -> Result<Option<(f64, [f64; 2])>> {
    let [student_temperature, teacher_temperature] = temperatures;
    let scaling = RowScaling::normalized_if(problem.spec().normalize);
    let Some((z, y)) = Embeddings::<T::Real>::both(batch, scaling)? else {
        return Ok(None);
    };
    let keys = Keys {
        data: queue.keys(),
        len: queue.len(),
        dim: queue.dim(),
        stride: queue.dim(),
    };
    let attend = |rows, temperature| {
        attention_forward(
            rows,
            keys,
            &initial_maxima(rows, problem.rows_after(), queue),
            Sharing::of(problem),
            temperature,
        )
    };
    let student = attend(&z, student_temperature)?;
    let teacher = attend(&y, teacher_temperature)?;

    let (n, dim) = (z.rows, z.dim);
    let mut values: Vec<(f64, f64, f64)> = try_map_blocks(gradient, dim, &|i, out| {
        let o_s = &student.mean[i * dim..][..dim];
        let o_t = &teacher.mean[i * dim..][..dim];
        let mut g = Buffer::any(dim)?;
        for ((g, &s), &t) in g.iter_mut().zip(o_s).zip(o_t) {
            *g = s - t;
        }
        let factor = mean.factor(i, student_temperature);
        z.write_gradient(i, factor, &g, out);
        let cross_entropy = student.log_sum[i] - dot(z.row(i), o_t) / student_temperature;
        let entropy = teacher.log_sum[i] - dot(y.row(i), o_t) / teacher_temperature;
        let along = dot(&g, &z.row(i)[..dim]);
        Ok((cross_entropy, cross_entropy - entropy, along))
    })?;
    let near: Vec<usize> = (0..n).filter(|&i| values[i].1 < NEAR).collect();
    if !near.is_empty() {
        let exact = divergence_of(&near, temperatures, batch, [&z, &y], keys, &teacher)?;
        for (i, kl) in near.into_iter().zip(exact) {
            // Rows so long that a product over τ overflows keep what they have.
            let kl = if kl.is_finite() { kl } else { values[i].1 };
            values[i].1 = kl.max(0.0);
        }
    }
    let cross_entropies = || values.iter().map(|&(cross_entropy, ..)| cross_entropy);
    let kls = values.iter().map(|&(_, kl, _)| kl);
    let along = values.iter().map(|&(.., along)| along);
    if let Some(losses) = row_losses {
        mean.store(cross_entropies(), losses);
    }
    let terms = [mean.mean(kls), mean.mean(along)];
    Ok(Some((mean.mean(cross_entropies()), terms)))
}
