use super::*;
use crate::cpu::pairwise;
use crate::rows::Rows;

const N: usize = 6;
const D: usize = 4;
const D_T: usize = 3;

const RELATIONS: [Relation; 6] = [
    Relation::Distance,
    Relation::SquaredDistance,
    Relation::Dot,
    Relation::Cosine,
    Relation::PositiveCosine,
    Relation::ShiftedCosine,
];
const NORMALIZERS: [Normalizer; 5] = [
    Normalizer::None,
    Normalizer::Mean,
    Normalizer::RowL2,
    Normalizer::RowSum,
    Normalizer::Frobenius,
];
const PENALTIES: [Penalty; 2] = [Penalty::Squared, Penalty::Huber { delta: 0.3 }];

fn each() -> impl Iterator<Item = Pairwise> {
    RELATIONS.into_iter().flat_map(|relation| {
        NORMALIZERS.into_iter().flat_map(move |normalizer| {
            let of = move |penalty| Pairwise::new(relation, normalizer, penalty);
            PENALTIES.into_iter().map(of)
        })
    })
}

fn all() -> impl Iterator<Item = Pairwise> {
    each().chain([divergence()])
}

/// A divergence wants rows of relations that are not negative and add up to the same number.
fn divergence() -> Pairwise {
    let penalty = Penalty::Divergence { epsilon: 1e-3 };
    Pairwise::new(Relation::ShiftedCosine, Normalizer::RowSum, penalty)
}

/// Numbers in (−1, 1), the same on every run.
fn numbers(len: usize, mut state: u64) -> Vec<f64> {
    (0..len)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
        })
        .collect()
}

/// u of all pairs, by plain loops.
fn scaled(loss: &Pairwise, rows: &[f64], dim: usize) -> Vec<f64> {
    let n = rows.len() / dim;
    let row = |i: usize| &rows[i * dim..][..dim];
    let dot = |i: usize, j: usize| -> f64 { row(i).iter().zip(row(j)).map(|(a, b)| a * b).sum() };
    let cosine = |i: usize, j: usize| dot(i, j) / (dot(i, i) * dot(j, j)).sqrt();
    let square = |i: usize, j: usize| -> f64 {
        let pairs = row(i).iter().zip(row(j));
        pairs.map(|(a, b)| (a - b).powi(2)).sum()
    };
    let r: Vec<f64> = (0..n * n)
        .map(|at| (at / n, at % n))
        .map(|(i, j)| match loss.relation {
            Relation::Distance => square(i, j).sqrt(),
            Relation::SquaredDistance => square(i, j),
            Relation::Dot => dot(i, j),
            Relation::Cosine => cosine(i, j),
            Relation::PositiveCosine => cosine(i, j).max(0.0),
            Relation::ShiftedCosine => 0.5 * (1.0 + cosine(i, j)),
        })
        .collect();
    let total: f64 = r.iter().map(|r| r * r).sum();
    let off_diagonal: f64 = (0..n * n)
        .filter(|at| at / n != at % n)
        .map(|at| r[at])
        .sum();
    (0..n * n)
        .map(|at| {
            let row = &r[at / n * n..][..n];
            r[at]
                / match loss.normalizer {
                    Normalizer::None => 1.0,
                    Normalizer::Mean => off_diagonal / (n * (n - 1)) as f64,
                    Normalizer::RowL2 => row.iter().map(|r| r * r).sum::<f64>().sqrt(),
                    Normalizer::RowSum => row.iter().sum(),
                    Normalizer::Frobenius => total.sqrt(),
                }
        })
        .collect()
}

fn plain(loss: &Pairwise, student: &[f64], teacher: &[f64]) -> f64 {
    let (u, v) = (scaled(loss, student, D), scaled(loss, teacher, D_T));
    let penalties = u.iter().zip(&v).map(|(&u, &v)| {
        let e = u - v;
        match loss.penalty {
            Penalty::Squared => e * e,
            Penalty::Huber { delta } if e.abs() <= delta => 0.5 * e * e,
            Penalty::Huber { delta } => delta * (e.abs() - 0.5 * delta),
            Penalty::Divergence { epsilon } => v * ((v + epsilon) / (u + epsilon)).ln(),
            Penalty::Order { .. } | Penalty::Ranking { .. } => unreachable!("no sum over pairs"),
        }
    });
    penalties.sum::<f64>() / u.len() as f64
}

fn generic<T: Element>(
    loss: &Pairwise,
    [student, teacher]: [&[T]; 2],
    [dim, teacher_dim]: [usize; 2],
) -> (f64, Vec<T::Real>) {
    let n = student.len() / dim;
    let student = Rows::new(student, [n, dim]).expect("rows");
    let teacher = Rows::new(teacher, [n, teacher_dim]).expect("rows");
    let mut gradient = vec![T::Real::from_f64(7.0); n * dim];
    let batch = Batch::new(student, teacher);
    let value = pairwise(loss, false, batch, 1.0, &mut gradient).expect("memory");
    (value.expect("finite"), gradient)
}

fn largest(values: impl IntoIterator<Item = f64>) -> f64 {
    values.into_iter().fold(0.0, |m, x| m.max(x.abs()))
}

#[test]
fn gradients_of_all_combinations_are_central_differences() {
    let (student, teacher) = (numbers(N * D, 1), numbers(N * D_T, 2));
    for loss in all() {
        let (value, gradient) = generic(&loss, [&student[..], &teacher], [D, D_T]);
        let want = plain(&loss, &student, &teacher);
        assert!(
            (value - want).abs() <= 1e-12 * want,
            "{loss:?}: {value}, not {want}"
        );
        let size = largest(gradient.iter().copied());
        for at in 0..N * D {
            let step = 1e-5;
            let moved = |by: f64| {
                let mut student = student.clone();
                student[at] += by;
                plain(&loss, &student, &teacher)
            };
            let want = (moved(step) - moved(-step)) / (2.0 * step);
            let error = (gradient[at] - want).abs() / size;
            assert!(error <= 1e-6, "{loss:?}, element {at}: off by {error}");
        }
    }
}

#[test]
fn f32_is_close_to_f64() {
    let single = |values: Vec<f64>| -> Vec<f32> { values.iter().map(|&x| x as f32).collect() };
    for n in [N, 37, 130] {
        let (student, teacher) = (single(numbers(n * 40, 3)), single(numbers(n * 23, 4)));
        let double = |x: &[f32]| -> Vec<f64> { x.iter().map(|&x| f64::from(x)).collect() };
        // The sum of products is near 0 here, and f32 knows it to few digits.
        let near_zero = |loss: &Pairwise| {
            matches!(loss.normalizer, Normalizer::Mean | Normalizer::RowSum)
                && matches!(loss.relation, Relation::Dot | Relation::Cosine)
        };
        for loss in all().filter(|loss| !near_zero(loss)) {
            let (value, gradient) = generic(&loss, [&student[..], &teacher], [40, 23]);
            let (want, exact) =
                generic(&loss, [&double(&student)[..], &double(&teacher)], [40, 23]);
            assert!(
                (value - want).abs() <= 1e-6 * want,
                "{loss:?}: {value}, not {want}"
            );
            let error = gradient.iter().zip(&exact).map(|(g, e)| f64::from(*g) - e);
            let error = largest(error) / largest(exact.iter().copied());
            assert!(error <= 2e-6, "{loss:?}, N = {n}: off by {error}");
        }
    }
}

#[test]
fn rkd_distance_is_one_of_them() {
    let penalty = Penalty::Huber { delta: 0.2 };
    let loss = Pairwise::new(Relation::Distance, Normalizer::Mean, penalty);
    let (student, teacher) = (numbers(70 * D, 5), numbers(70 * D_T, 6));
    let (value, gradient) = generic(&loss, [&student[..], &teacher], [D, D_T]);
    let student = Rows::new(&student, [70, D]).expect("rows");
    let teacher = Rows::new(&teacher, [70, D_T]).expect("rows");
    let mut special = vec![0.0; gradient.len()];
    let batch = Batch::new(student, teacher);
    let want = pairwise::evaluate(&loss, false, batch, 1.0, &mut special)
        .expect("memory")
        .expect("finite");
    assert!((value - want).abs() <= 1e-13 * want);
    let error = largest(gradient.iter().zip(&special).map(|(a, b)| a - b));
    assert!(error <= 1e-12 * largest(special), "off by {error}");
}

#[test]
fn degenerate_rows_give_finite_values() {
    let zero = vec![0.0f32; N * D];
    let equal = vec![0.5f32; N * D];
    let mut with_zero_row: Vec<f32> = numbers(N * D, 7).iter().map(|&x| x as f32).collect();
    with_zero_row[..D].fill(0.0);
    for loss in all() {
        for student in [&zero, &equal, &with_zero_row] {
            for rows in [1, N] {
                let both = [&student[..rows * D], &with_zero_row[..rows * D]];
                let (value, gradient) = generic(&loss, both, [D, D]);
                assert!(value.is_finite(), "{loss:?}, N = {rows}: {value}");
                assert!(
                    gradient.iter().all(|g| g.is_finite()),
                    "{loss:?}, N = {rows}"
                );
            }
        }
        let zeros = loss.normalizer != Normalizer::None;
        let (_, gradient) = generic(&loss, [&zero[..], &with_zero_row], [D, D]);
        assert!(!zeros || gradient.iter().all(|&g| g == 0.0), "{loss:?}");
    }
}

#[test]
fn scale_divides_the_gradient_and_leaves_the_loss() {
    let student: Vec<f32> = numbers(N * D, 8).iter().map(|&x| x as f32).collect();
    let teacher: Vec<f32> = numbers(N * D_T, 9).iter().map(|&x| x as f32).collect();
    for loss in all().filter(|loss| loss.normalizer != Normalizer::None) {
        let (value, gradient) = generic(&loss, [&student[..], &teacher], [D, D_T]);
        for scale in [2f32.powi(100), 2f32.powi(-80)] {
            let scaled: Vec<f32> = student.iter().map(|x| x * scale).collect();
            let (same, divided) = generic(&loss, [&scaled[..], &teacher], [D, D_T]);
            assert_eq!(value, same, "{loss:?}");
            if !loss.relation.is_of_directions() {
                for (g, d) in gradient.iter().zip(&divided) {
                    let error = (f64::from(*g) - f64::from(*d) * f64::from(scale)).abs();
                    assert!(error <= 1e-6 * f64::from(g.abs()), "{loss:?}: {g}, {d}");
                }
            }
        }
    }
}

/// Some rows are small, and have no products with the others. So their own products are the row of
/// the relation, however small they are.
#[test]
fn rows_that_relate_only_to_small_rows_count_as_much() {
    fn assert_same<T: Element>(small: f64, tolerance: f64) {
        let [student, teacher] = [21, 22].map(|seed| numbers(N * D, seed));
        let loss = Pairwise::new(Relation::Dot, Normalizer::RowL2, Penalty::Squared);
        let value_at = |small: f64| {
            let apart = |rows: &[f64]| -> Vec<T> {
                let element = |(at, x): (usize, &f64)| match (at / D < N / 2, at % D < D / 2) {
                    (true, true) => T::from_f64(*x),
                    (false, false) => T::from_f64(x * small),
                    _ => T::from_f64(0.0),
                };
                rows.iter().enumerate().map(element).collect()
            };
            generic(&loss, [&apart(&student)[..], &apart(&teacher)], [D, D]).0
        };
        // A power of two: it rounds nothing.
        let (value, want) = (value_at(small), value_at(1.0));
        let error = (value - want).abs() / want;
        assert!(error <= tolerance, "{small:e}: {value}, not {want}");
    }
    assert_same::<f32>(2f64.powi(-73), 1e-6);
    assert_same::<f64>(2f64.powi(-280), 1e-12);
}

/// Squared distances whose own squares vanish in f64, as the rows lie far from the origin.
#[test]
fn frobenius_norms_of_small_relations_do_not_vanish() {
    let loss = Pairwise::new(
        Relation::SquaredDistance,
        Normalizer::Frobenius,
        Penalty::Squared,
    );
    let [student, teacher] = [23, 24].map(|seed| numbers(N * D, seed));
    let value_at = |small: f64| {
        let mut rows: Vec<f64> = student.iter().map(|x| x * small).collect();
        rows.iter_mut().step_by(D).for_each(|x| *x = 1.0);
        generic(&loss, [&rows[..], &teacher], [D, D]).0
    };
    let (value, want) = (value_at(2f64.powi(-300)), value_at(1.0));
    assert!((value - want).abs() <= 1e-12 * want, "{value}, not {want}");
}

/// The student's second row lies opposite to its first one, but for rounding: the probability of
/// the two is as small as ε.
#[test]
fn a_divergence_of_opposite_rows_is_exact_in_f32() {
    let (mut student, teacher) = (numbers(N * D, 25), numbers(N * D_T, 26));
    for d in 0..D {
        student[D + d] = -1.0000001 * student[d];
    }
    let single = |values: &[f64]| -> Vec<f32> { values.iter().map(|&x| x as f32).collect() };
    let (student, teacher) = (single(&student), single(&teacher));
    let double = |x: &[f32]| -> Vec<f64> { x.iter().map(|&x| f64::from(x)).collect() };
    let penalty = Penalty::Divergence { epsilon: 1e-7 };
    let loss = Pairwise::new(Relation::ShiftedCosine, Normalizer::RowSum, penalty);
    let (value, _) = generic(&loss, [&student[..], &teacher], [D, D_T]);
    let (want, _) = generic(&loss, [&double(&student)[..], &double(&teacher)], [D, D_T]);
    assert!((value - want).abs() <= 1e-9 * want, "{value}, not {want}");
}

#[test]
fn a_divergence_near_zero_is_exact() {
    // v = 1/4, u = (1 + x)/4: v (x − log(1 + x)) + ε x = ⅛ x² − x³/12 + … + ε x
    let penalty = Divergence { epsilon: 0.0 };
    for x in [1e-1, 1e-3, 1e-6, 1e-9] {
        let u = 0.25 + 0.25 * x;
        let exact: f64 = 4.0 * (u - 0.25);
        let terms = (2..40).rev().map(|k| (-exact).powi(k) / f64::from(k));
        let want = 0.25 * terms.sum::<f64>();
        let got = penalty.value(u, 0.25);
        assert!((got - want).abs() <= 1e-14 * want, "{x}: {got}, not {want}");
    }
    // And far away, where the logarithm is taken.
    let penalty = Divergence { epsilon: 1e-7 };
    for (u, v) in [(0.0f64, 0.01f64), (0.3, 0.01), (0.01, 0.0), (1e-9, 0.5)] {
        let want = v * ((v + 1e-7) / (u + 1e-7)).ln() + (u - v);
        let got = penalty.value(u, v);
        assert!(
            (got - want).abs() <= 1e-14 * (want.abs() + v),
            "{u}, {v}: {got}, not {want}"
        );
    }
}
