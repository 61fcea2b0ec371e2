//! How much of `Order` and `DarkRank` hangs on comparisons that rounding can turn over. `Order` and
//! its gradient count terms, so a term near 0 and two pairs that are nearly equally alike to the
//! teacher count either way. `DarkRank` looks for the nearest rows, of which two may be nearly equally
//! near.

use relata::{Family, Loss, Pairwise, Penalty, Shapes};

use super::tolerances::Tolerance;

/// By how much f32 may change the difference of two cosines, each rounded by 2⁻²³ or so.
pub(crate) const COSINES: f64 = 2.0 * f32::EPSILON as f64;
/// By how much f32 may change the squares of two distances, relative to them.
pub(crate) const NEAR: f64 = 1e-6;

/// The margin, if the loss compares pairs with one another.
pub(crate) fn margin(loss: &Loss) -> Option<f64> {
    match loss.spec().family {
        Family::Pairwise(Pairwise {
            penalty: Penalty::Order { margin },
            ..
        }) => Some(margin),
        _ => None,
    }
}

/// A pair of rows: its similarity and the length of the similarity's gradient.
fn pairs(rows: &[f64], dim: usize) -> Vec<(f64, f64)> {
    let norm = |row: &[f64]| row.iter().map(|x| x * x).sum::<f64>().sqrt();
    let all: Vec<(&[f64], f64)> = rows.chunks(dim).map(|row| (row, norm(row))).collect();
    let mut pairs = Vec::new();
    for (i, (a, norm_a)) in all.iter().enumerate() {
        for (b, norm_b) in &all[i + 1..] {
            let product: f64 = a.iter().zip(*b).map(|(a, b)| a * b).sum();
            if *norm_a == 0.0 || *norm_b == 0.0 {
                pairs.push((0.0, 0.0));
                continue;
            }
            let cos = product / norm_a / norm_b;
            let slope = (1.0 - cos * cos).max(0.0).sqrt() * norm_a.recip().hypot(norm_b.recip());
            pairs.push((cos, slope));
        }
    }
    pairs
}

/// The most by which loss and gradient, as a length, change if all comparisons turn over that are
/// decided by less than `reach` in the student or the teacher. Pairs that are exactly equally alike
/// to the teacher are so on every device.
pub(crate) fn within_reach(
    margin: f64,
    student: &[f64],
    teacher: &[f64],
    shapes: Shapes,
    reach: [f64; 2],
) -> Tolerance {
    let (s, t) = (
        pairs(student, shapes.student_dim),
        pairs(teacher, shapes.teacher_dim),
    );
    let (mut loss, mut gradient) = (0.0, 0.0);
    for b in 0..s.len() {
        for a in 0..b {
            let by_teacher = t[b].0 - t[a].0;
            let label = if by_teacher < 0.0 { 1.0 } else { -1.0 };
            let term = (s[b].0 - s[a].0) * label + margin;
            let other = (s[a].0 - s[b].0) * label + margin;
            let slope = s[a].1 + s[b].1;
            if term.abs() <= reach[0] {
                loss += reach[0];
                gradient += slope;
            }
            if by_teacher != 0.0 && by_teacher.abs() <= reach[1] {
                loss += (term.max(0.0) - other.max(0.0)).abs();
                gradient += 2.0 * slope;
            }
        }
    }
    let terms = (s.len() * s.len().saturating_sub(1) / 2).max(1) as f64;
    Tolerance {
        loss: loss / terms,
        gradient: gradient / terms,
    }
}

/// How many neighbours of each row are ranked, if the loss ranks them.
pub(crate) fn length(loss: &Loss) -> Option<usize> {
    match loss.spec().family {
        Family::Pairwise(Pairwise {
            penalty: Penalty::Ranking { length, .. },
            ..
        }) => Some(length),
        _ => None,
    }
}

/// Whether each row's `length` nearest rows, and their order, are beyond `reach`, relative to the
/// distances. Rows that are exactly equally near are so on every device.
pub(crate) fn has_clear_neighbors(rows: &[f64], dim: usize, length: usize, reach: f64) -> bool {
    let all: Vec<&[f64]> = rows.chunks(dim).collect();
    all.iter().enumerate().all(|(i, row)| {
        let mut squares: Vec<f64> = all
            .iter()
            .enumerate()
            .filter(|&(j, _)| j != i)
            .map(|(_, other)| row.iter().zip(*other).map(|(a, b)| (a - b).powi(2)).sum())
            .collect();
        squares.sort_by(f64::total_cmp);
        let apart = |pair: &[f64]| pair[0] == pair[1] || pair[1] - pair[0] > reach * pair[1];
        squares.windows(2).take(length).all(apart)
    })
}

/// Whether no comparison of the loss, if it compares numbers, is so close that f32 may turn it over.
pub(crate) fn is_clear(loss: &Loss, student: &[f64], teacher: &[f64], shapes: Shapes) -> bool {
    if let Some(length) = length(loss) {
        return has_clear_neighbors(teacher, shapes.teacher_dim, length, NEAR);
    }
    margin(loss).is_none_or(|margin| {
        within_reach(margin, student, teacher, shapes, [COSINES; 2]).gradient == 0.0
    })
}
