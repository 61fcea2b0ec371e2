//! Weights of rows and losses of rows: of the losses of logits, and of those with keys.

#[path = "../common/mod.rs"]
mod common;

mod keys;
mod logits;

/// Some rows count not at all.
fn weights(rows: usize) -> Vec<f64> {
    (0..rows)
        .map(|row| [0.5, 0.0, 2.0, 1.25][row % 4])
        .collect()
}

/// w_i/Σw, and 0 where all weights are.
fn shares(weights: &[f64]) -> Vec<f64> {
    let sum: f64 = weights.iter().sum();
    let share = |weight: &f64| if sum == 0.0 { 0.0 } else { weight / sum };
    weights.iter().map(share).collect()
}
