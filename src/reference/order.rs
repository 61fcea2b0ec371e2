use super::{Matrix, dot};
use crate::loss::Order;
use crate::problem::Value;

/// L = 1/M Σ_{a<b} max(0, (s_b − s_a) l_ab + margin) over the pairs a and b of rows, row by row, and
/// its gradient by the unit rows. With fewer than two pairs it is 0.
pub(super) fn order(loss: &Order, x: &Matrix, y: &Matrix) -> (Value, Vec<f64>) {
    let n = x.rows();
    let pairs: Vec<(usize, usize)> = (0..n)
        .flat_map(|i| (i + 1..n).map(move |j| (i, j)))
        .collect();
    let similarities = |m: &Matrix| -> Vec<f64> {
        let of_pair = |&(i, j): &(usize, usize)| dot(m.row(i), m.row(j));
        pairs.iter().map(of_pair).collect()
    };
    let (s, t) = (similarities(x), similarities(y));
    let mut gradient = vec![0.0; x.data.len()];
    if pairs.len() < 2 {
        return (Value::new(0.0), gradient);
    }
    let count = (pairs.len() as u64 * (pairs.len() as u64 - 1) / 2) as f64;
    let mut value = 0.0;
    let mut slopes = vec![0.0; pairs.len()]; // M ∂L/∂s
    for b in 0..pairs.len() {
        for a in 0..b {
            let label = if t[b] < t[a] { 1.0 } else { -1.0 };
            let term = (s[b] - s[a]) * label + loss.margin;
            if term > 0.0 {
                value += term;
                slopes[b] += label;
                slopes[a] -= label;
            }
        }
    }
    for (&(i, j), slope) in pairs.iter().zip(slopes) {
        for d in 0..x.dim {
            gradient[i * x.dim + d] += slope / count * x.row(j)[d];
            gradient[j * x.dim + d] += slope / count * x.row(i)[d];
        }
    }
    (Value::new(value / count), gradient)
}
