//! How good embeddings and logits are.

use candle_core::{Result, Tensor};

/// The share of rows among whose `k` nearest others there is one of the same class, for each `k`.
pub(crate) fn recall<const K: usize>(
    embedding: &Tensor,
    labels: &[u32],
    ks: [usize; K],
) -> Result<[f64; K]> {
    let most = ks.iter().copied().max().unwrap_or(0);
    let distances = squared_distances(embedding)?.to_vec2::<f32>()?;
    let mut hits = [0usize; K];
    for (i, row) in distances.iter().enumerate() {
        let mut others: Vec<usize> = (0..row.len()).filter(|&j| j != i).collect();
        let most = most.min(others.len());
        if most == 0 {
            continue;
        }
        // Of equally near rows the first: the result must not depend on how the selection works.
        let order = |a: &usize, b: &usize| row[*a].total_cmp(&row[*b]).then(a.cmp(b));
        others.select_nth_unstable_by(most - 1, order);
        let nearest = &mut others[..most];
        nearest.sort_unstable_by(order);
        let rank = nearest.iter().position(|&j| labels[j] == labels[i]);
        for (hits, k) in hits.iter_mut().zip(ks) {
            *hits += usize::from(rank.is_some_and(|rank| rank < k));
        }
    }
    Ok(hits.map(|hits| hits as f64 / labels.len().max(1) as f64))
}

/// The share of rows whose largest logit is that of their class.
pub(crate) fn accuracy(logits: &Tensor, labels: &[u32]) -> Result<f64> {
    let said = logits.argmax(1)?.to_vec1::<u32>()?;
    let right = said
        .iter()
        .zip(labels)
        .filter(|(said, label)| said == label);
    Ok(right.count() as f64 / labels.len().max(1) as f64)
}

/// Between all rows of `[n, dim]`: `[n, n]`, rounding errors below 0 included.
pub(crate) fn squared_distances(x: &Tensor) -> Result<Tensor> {
    let lengths = x.sqr()?.sum_keepdim(1)?;
    let products = (x.matmul(&x.t()?)? * 2.0)?;
    lengths.broadcast_add(&lengths.t()?)? - products
}
