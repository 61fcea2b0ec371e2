//! Is RKD right however close rows lie? Compares the CPU path with the reference on close pairs and
//! on clusters within clusters, in the student and in the teacher. Compares the whole gradient, and
//! also each row's, because the gradient of a close pair is far larger than all others.

mod common;

use common::Input;
use common::compare::relative_error;
use common::losses::rkd_losses;
use relata::{Cpu, Element, Loss, Reference, Rkd, Shapes};

/// Each range of rows that lie close, with the factor by which they are closer than the rest.
type Clusters = &'static [(std::ops::Range<usize>, f64)];

const N: usize = 13;

const CLUSTERS: [Clusters; 8] = [
    &[(0..2, 1e-7)],
    &[(0..2, 1e-10)],
    &[(3..6, 1e-12)],
    &[(0..2, 1e-60)],
    // The square of 1/d overflows.
    &[(0..2, 1e-156)],
    // Clusters within a cluster, and one apart from them.
    &[(0..5, 1e-9), (1..4, 1e-9), (2..4, 1e-5), (7..9, 1e-14)],
    // All rows, as two clusters.
    &[(0..6, 1e-11), (6..N, 1e-8)],
    // All rows are close, so no pair is close compared with the rest.
    &[(0..N, 1e-30)],
];

/// What the gradient is multiplied by.
const UPSTREAM: f64 = 0.5;

/// Draws each cluster together. Its first row becomes `to` times itself; every other row becomes
/// the first plus `closer` times the cluster's factor times itself.
fn draw_together(
    rows: &mut [f64],
    dim: usize,
    clusters: &[(std::ops::Range<usize>, f64)],
    to: f64,
    closer: f64,
) {
    for (cluster, apart) in clusters {
        let (first, others) = rows[cluster.start * dim..cluster.end * dim].split_at_mut(dim);
        for x in &mut *first {
            *x *= to;
        }
        for row in others.chunks_exact_mut(dim) {
            for (x, first) in row.iter_mut().zip(&*first) {
                *x = first + *x * apart * closer;
            }
        }
    }
}

/// About ten times the measured errors.
struct Tolerance {
    loss: f64,
    /// Of the whole gradient, and of each row's.
    gradient: f64,
}

const IN_F64: Tolerance = Tolerance {
    loss: 1e-12,
    gradient: 1e-9,
};

fn assert_right<T: Element>(loss: Loss, input: &Input, what: &str, tolerance: &Tolerance) {
    let problem = input.problem(loss).with_upstream(UPSTREAM);
    let got = input.run::<T, _>(&Cpu, &problem);
    let want = input.run::<T, _>(&Reference, &problem);
    let name = format!("{loss} in {}, {:?}, {what}", T::DTYPE, input.shapes);
    let error = (got.loss - want.loss).abs() / want.loss;
    assert!(
        error < tolerance.loss,
        "{name}: {} for {}",
        got.loss,
        want.loss
    );
    let error = relative_error(&got.gradient, &want.gradient);
    assert!(
        error < tolerance.gradient,
        "{name}: the gradient is off by {error:e}"
    );
    let dim = input.shapes.student_dim;
    let rows = got.gradient.chunks(dim).zip(want.gradient.chunks(dim));
    for (i, (got, want)) in rows.enumerate() {
        let error = relative_error(got, want);
        assert!(
            error < tolerance.gradient,
            "{name}: row {i} is off by {error:e}"
        );
    }
}

fn losses(normalize: bool) -> [Loss; 3] {
    let [distance, angle, _] = rkd_losses(Rkd {
        normalize,
        ..Rkd::default()
    });
    let weighted = Rkd {
        angle_weight: 0.5,
        delta: 0.3,
        normalize,
        ..Rkd::default()
    };
    [angle, distance, weighted.into()]
}

/// A factor on top of the clusters' for the student's rows and one for the teacher's: `None` for no
/// clusters, 1 for the clusters as they are, 0 for duplicates.
const CLOSER: [[Option<f64>; 2]; 5] = [
    [None, Some(1.0)],
    [Some(1.0), None],
    [Some(1.0), Some(1.0)],
    [Some(0.0), Some(1.0)],
    [Some(1.0), Some(0.0)],
];

fn input(
    seed: u64,
    dims: [usize; 2],
    clusters: Clusters,
    to: f64,
    closer: [Option<f64>; 2],
) -> Input {
    let mut input = Input::normal(seed, Shapes::new(N, dims[0], dims[1]));
    let rows = [&mut input.student, &mut input.teacher];
    for ((rows, dim), closer) in rows.into_iter().zip(dims).zip(closer) {
        if let Some(closer) = closer {
            draw_together(rows, dim, clusters, to, closer);
        }
    }
    input
}

/// Near the origin, where f64 has numbers that are close.
#[test]
fn rkd_is_right_however_close_rows_lie() {
    for (seed, clusters) in CLUSTERS.into_iter().enumerate() {
        for dims in [[16, 16], [3, 40], [2, 3]] {
            for closer in CLOSER {
                let input = input(seed as u64, dims, clusters, 0.0, closer);
                let what = format!("{clusters:?} {closer:?}");
                for loss in losses(false) {
                    assert_right::<f64>(loss, &input, &what, &IN_F64);
                }
            }
        }
    }
}

/// The same in f32, as close as f32 has numbers.
#[test]
fn rkd_is_right_however_close_rows_lie_in_f32() {
    const CLOSE: [Clusters; 2] = [
        &[(0..2, 1e-12)],
        &[(0..4, 1e-10), (1..3, 1e-9), (6..9, 1e-15)],
    ];
    let tolerance = Tolerance {
        loss: 1e-12,
        gradient: 5e-7,
    };
    for (seed, clusters) in CLOSE.into_iter().enumerate() {
        for closer in CLOSER {
            let input = input(seed as u64, [16, 7], clusters, 0.0, closer);
            let what = format!("{clusters:?} {closer:?}");
            for loss in losses(false) {
                assert_right::<f32>(loss, &input, &what, &tolerance);
            }
        }
    }
}

/// Within a cluster so close that d² has no digits left, angles are what they are in a wider one. The
/// reference itself loses digits there.
#[test]
fn rkd_of_rows_whose_squared_distances_vanish_is_right() {
    for closer in CLOSER {
        for loss in losses(false) {
            let loss_at = |clusters: Clusters| {
                let input = input(5, [16, 7], clusters, 0.0, closer);
                input.evaluate::<f64, _>(&Cpu, loss).loss
            };
            let (got, want) = (loss_at(&[(2..5, 1e-160)]), loss_at(&[(2..5, 1e-100)]));
            let error = (got - want).abs() / want;
            assert!(error < 1e-12, "{loss} {closer:?}: {got} for {want}");
        }
    }
}

/// Rows so close that 1/d is infinite, in student or teacher, or in both. The angle of such rows is
/// right, or it is NaN: never a panic, and never a wrong number.
#[test]
fn rkd_of_rows_whose_inverse_distance_is_infinite_is_right_or_nan() {
    for closer in CLOSER {
        let input = input(2, [16, 7], &[(0..2, 1e-309), (4..6, 1e-12)], 0.0, closer);
        for loss in losses(false) {
            let got = input.evaluate::<f64, _>(&Cpu, loss).loss;
            let want = input.evaluate::<f64, _>(&Reference, loss).loss;
            let may_be_nan = !matches!(loss, Loss::RkdDistance(_));
            assert!(
                (got - want).abs() <= 1e-12 * want || (may_be_nan && got.is_nan()),
                "{loss} {closer:?}: {got} for {want}"
            );
        }
    }
}

/// Normalised rows are close if their directions are. How close they are depends on their last
/// digits.
#[test]
fn rkd_of_close_directions_is_right() {
    const CLOSE: [Clusters; 2] = [&[(0..2, 4e-7)], &[(0..4, 5e-7), (6..9, 3e-7)]];
    let tolerance = Tolerance {
        loss: 1e-9,
        gradient: 1e-7,
    };
    for (seed, clusters) in CLOSE.into_iter().enumerate() {
        for closer in &CLOSER[..3] {
            let input = input(seed as u64, [16, 7], clusters, 1.0, *closer);
            let what = format!("{clusters:?} {closer:?}");
            for loss in losses(true) {
                assert_right::<f64>(loss, &input, &what, &tolerance);
            }
        }
    }
}

/// One row much longer than all others: then all others are close, compared with it.
#[test]
fn rkd_with_one_row_far_away_is_right() {
    for far in [1e7, 1e9, 1e20, 1e60] {
        for [student, teacher] in [[true, false], [false, true], [true, true]] {
            let mut input = Input::normal(7, Shapes::new(N, 16, 7));
            if student {
                input.student[..16].iter_mut().for_each(|x| *x *= far);
            }
            if teacher {
                // Another row than the student's.
                input.teacher[7..14].iter_mut().for_each(|x| *x *= far);
            }
            let what = format!("{far:e} {student} {teacher}");
            assert_right::<f64>(losses(false)[0], &input, &what, &IN_F64);
        }
    }
}

/// Rows of every length: clusters within clusters. They are others in the teacher, so that a pair
/// can be close in one of the two and an ordinary one in the other.
#[test]
fn rkd_of_rows_of_every_length_is_right() {
    // Pairs up to 1e6 times closer than the longest distance are ordinary ones.
    let tolerance = Tolerance {
        loss: 3e-10,
        gradient: 5e-9,
    };
    for decades in [0.3, 1.0, 3.0, 6.5, 11.0] {
        for order in 0..4 {
            let mut input = Input::normal(order, Shapes::new(N, 16, 7));
            let shrink = |rows: &mut [f64], dim: usize, place: &dyn Fn(usize) -> usize| {
                for (i, row) in rows.chunks_exact_mut(dim).enumerate() {
                    let factor = 10f64.powf(-decades * place(i) as f64);
                    row.iter_mut().for_each(|x| *x *= factor);
                }
            };
            shrink(&mut input.student, 16, &|i| i);
            match order {
                0 => {}
                1 => shrink(&mut input.teacher, 7, &|i| i),
                2 => shrink(&mut input.teacher, 7, &|i| N - 1 - i),
                _ => shrink(&mut input.teacher, 7, &|i| 5 * i % N),
            }
            let what = format!("{decades} decades a row, order {order}");
            assert_right::<f64>(losses(false)[0], &input, &what, &tolerance);
        }
    }
}

/// More rows than a block of vertices or a tile has, half of them close. The halves are not the
/// same in student and teacher.
#[test]
fn rkd_of_many_close_rows_is_right() {
    let n = 150;
    for (student, teacher) in [(1e-12, 1.0), (1.0, 1e-12), (1e-12, 1e-9)] {
        let mut input = Input::normal(3, Shapes::new(n, 5, 9));
        input.student[..5 * n / 2]
            .iter_mut()
            .for_each(|x| *x *= student);
        let rows = n / 4..3 * n / 4;
        input.teacher[9 * rows.start..9 * rows.end]
            .iter_mut()
            .for_each(|x| *x *= teacher);
        let what = format!("{student:e} {teacher:e}");
        assert_right::<f64>(losses(false)[0], &input, &what, &IN_F64);
    }
}

/// Beyond 1e-154 of the largest element, squares of distances vanish.
#[test]
fn rkd_of_two_rows_is_right_where_the_square_of_their_distance_vanishes() {
    for sides in [[true, false], [false, true], [true, true]] {
        let input = |apart: f64| {
            let closer = sides.map(|side| side.then_some(apart));
            input(11, [16, 7], &[(2..4, 1.0)], 0.0, closer)
        };
        for loss in losses(false)
            .into_iter()
            .filter(|loss| loss.name() != "rkd-distance")
        {
            // How close they are makes no difference to the angles, nor to the mean distance.
            let want = input(1e-100).evaluate::<f64, _>(&Reference, loss);
            for apart in [1e-140, 1e-160, 1e-170, 1e-250] {
                let got = input(apart).evaluate::<f64, _>(&Cpu, loss);
                let error = (got.loss - want.loss).abs() / want.loss;
                assert!(
                    error < 1e-12,
                    "{loss}, {apart:e} {sides:?}: off by {error:e}"
                );
                assert!(got.gradient.iter().all(|g| g.is_finite()), "{loss}");
            }
        }
    }
}

/// All rows agree in all digits but those of a few small elements.
#[test]
fn rkd_is_right_however_far_rows_agree() {
    let (shapes, common) = (Shapes::new(N, 6, 6), 2);
    for (exponent, together) in [
        (-100, 1.0),
        (-156, 1.0),
        (-170, 1.0),
        (-300, 1.0),
        (-156, 1e-9),
    ] {
        let unit = 10f64.powi(exponent);
        let mut apart = Input::normal(12, shapes);
        for rows in [&mut apart.student, &mut apart.teacher] {
            for row in rows.chunks_exact_mut(6) {
                row[..common].fill(0.0);
            }
            draw_together(rows, 6, &[(1..4, together)], 0.0, 1.0);
        }
        let mut agree = apart.clone();
        for rows in [&mut agree.student, &mut agree.teacher] {
            for row in rows.chunks_exact_mut(6) {
                row.iter_mut().for_each(|x| *x *= unit);
                row[..common].copy_from_slice(&[1.5, -0.3]);
            }
        }
        for loss in losses(false) {
            let want = apart.evaluate::<f64, _>(&Reference, loss);
            let got = agree.evaluate::<f64, _>(&Cpu, loss);
            let what = format!("{loss}, {unit:e} {together:e}");
            let error = (got.loss - want.loss).abs() / want.loss;
            assert!(error < 1e-12, "{what}: {} for {}", got.loss, want.loss);
            let gradient: Vec<f64> = got.gradient.iter().map(|g| g * unit).collect();
            let error = relative_error(&gradient, &want.gradient);
            assert!(error < 1e-9, "{what}: the gradient is off by {error:e}");
        }
    }
}
