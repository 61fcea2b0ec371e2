//! Every gradient against central differences of the reference's loss, in f64.

mod common;

use common::compare::norm;
use common::losses::{losses, normalizes, shapes_of, without_banks};
use common::order;
use common::{Input, Random};
use relata::{
    Cpu, Device, Family, InfoNce, KdKl, Loss, Problem, Reference, Rkd, RkdAngle, RkdDistance, Rrd,
    Shapes,
};

/// N, D, D_t, K: the smallest, and some that are no multiple of any block.
const SIZES: [[usize; 4]; 5] = [
    [1, 3, 2, 4],
    [2, 1, 3, 1],
    [3, 4, 2, 5],
    [7, 5, 9, 11],
    [10, 17, 3, 40],
];

/// The step. Differences are then off by about step² from truncation, and ε/step from rounding.
const STEP: f64 = 1e-5;
/// Relative to the length of the gradient; a hundred times the error of the differences.
const TOLERANCE: f64 = 1e-8;
/// If the gradient is zero or nearly zero, the differences are the rounding of the loss over the
/// step.
const FLOOR: f64 = 1e-9;

/// Independent normals, of which the differences cross no kink of the loss: the first such seed
/// from `seed` on. Scores that are a power of distances want distances of about 1, as their third
/// derivative is of the order of their cube.
fn input(loss: &Loss, seed: u64, shapes: Shapes) -> Input {
    if order::length(loss).is_some() {
        let mut input = Input::normal(seed, shapes);
        let unit = (2.0 * shapes.student_dim as f64).sqrt();
        input.student.iter_mut().for_each(|x| *x /= unit);
        return input;
    }
    let mut inputs = (seed..).map(|seed| Input::normal(seed, shapes));
    let Some(margin) = order::margin(loss) else {
        return inputs.next().expect("a seed");
    };
    let smooth = |input: &Input| {
        let (x, y) = (&input.student, &input.teacher);
        let shortest = x.chunks(shapes.student_dim).map(norm).fold(1.0, f64::min);
        // Two cosines change by a step over the length of a row, at most.
        let reach = [2.0 * STEP / shortest, 0.0];
        order::within_reach(margin, x, y, shapes, reach).gradient == 0.0
    };
    inputs.find(smooth).expect("a seed")
}

/// (L(x + h) − L(x − h))/2h for every element of the student, times the upstream factor.
fn differences(problem: &Problem, input: &Input) -> Vec<f64> {
    let mut moved = input.clone();
    (0..input.student.len())
        .map(|at| {
            let mut loss_at = |t: f64| {
                moved.student[at] = input.student[at] + t;
                moved.run::<f64, _>(&Reference, problem).loss
            };
            let slope = (loss_at(STEP) - loss_at(-STEP)) / (2.0 * STEP);
            moved.student[at] = input.student[at];
            problem.upstream() * slope
        })
        .collect()
}

/// Asserts that the gradients of both devices agree with the differences; gives the length of the
/// gradient.
#[track_caller]
fn assert_gradients(problem: &Problem, input: &Input) -> f64 {
    fn assert_on<D: Device<f64, Gradient = f64>>(
        device: &D,
        problem: &Problem,
        input: &Input,
        want: &[f64],
    ) {
        let got = input.run::<f64, _>(device, problem).gradient;
        let error: Vec<f64> = got.iter().zip(want).map(|(g, w)| g - w).collect();
        let (error, budget) = (norm(&error), TOLERANCE * norm(want) + FLOOR);
        // Written so that a NaN fails.
        let within = error <= budget;
        assert!(
            within,
            "{} on {}: gradient off by {error:.2e}, {:.0} % of the budget\n{problem:?}",
            problem.loss(),
            device.name(),
            100.0 * error / budget
        );
    }
    let want = differences(problem, input);
    assert_on(&Reference, problem, input, &want);
    assert_on(&Cpu, problem, input, &want);
    norm(&want)
}

#[test]
fn gradients_agree_with_differences_for_every_loss_and_option() {
    for loss in losses() {
        let mut steepest = 0.0f64;
        for (seed, sizes) in SIZES.iter().enumerate() {
            for shapes in shapes_of(&loss, *sizes) {
                let input = input(&loss, seed as u64, shapes);
                steepest = steepest.max(assert_gradients(&input.problem(loss), &input));
            }
        }
        // There was something to compare: not all gradients were flat.
        assert!(steepest > 1e-3, "{loss:?}: steepest gradient {steepest:e}");
    }
}

#[test]
fn gradients_scale_with_the_upstream() {
    for loss in without_banks() {
        for shapes in shapes_of(&loss, [5, 4, 6, 9]) {
            let input = input(&loss, 11, shapes);
            let once = assert_gradients(&input.problem(loss), &input);
            for upstream in [-2.5, 1e-3] {
                let scaled = assert_gradients(&input.problem(loss).with_upstream(upstream), &input);
                let ratio = scaled / once / upstream.abs();
                assert!((ratio - 1.0).abs() < 1e-9, "{loss}: {ratio}");
            }
            let none = input.problem(loss).with_upstream(0.0);
            assert_eq!(assert_gradients(&none, &input), 0.0);
        }
    }
}

#[test]
fn gradients_agree_with_differences_at_every_temperature() {
    for temperature in [0.05, 0.3, 1.0, 4.0, 8.0] {
        let other = 0.7 * temperature;
        let losses: [Loss; 4] = [
            KdKl::new(temperature).into(),
            InfoNce {
                temperature,
                ..InfoNce::default()
            }
            .into(),
            Rrd {
                student_temperature: temperature,
                teacher_temperature: other,
                ..Rrd::default()
            }
            .into(),
            Rrd {
                student_temperature: other,
                teacher_temperature: temperature,
                ..Rrd::default()
            }
            .into(),
        ];
        for loss in losses {
            for shapes in shapes_of(&loss, [4, 6, 6, 12]) {
                let mut input = Input::normal(5, shapes);
                // At a temperature of 0.05 the differences' step has to be small against the
                // logits'.
                if matches!(loss.spec().family, Family::Logits(_)) {
                    let scale = 2.0 * temperature.min(1.0);
                    input.student.iter_mut().for_each(|x| *x *= scale);
                    input.teacher.iter_mut().for_each(|y| *y *= scale);
                }
                let steepness = assert_gradients(&input.problem(loss), &input);
                assert!(steepness > 1e-6, "{loss:?}: flat, {steepness:e}");
            }
        }
    }
}

fn distance(x: &[f64], y: &[f64]) -> f64 {
    let squares = x.iter().zip(y).map(|(x, y)| (x - y).powi(2));
    squares.sum::<f64>().sqrt()
}

/// d_ij/μ for i ≠ j.
fn scaled_distances(x: &[f64], dim: usize) -> Vec<f64> {
    let rows: Vec<&[f64]> = x.chunks(dim).collect();
    let mut d = Vec::new();
    for i in 0..rows.len() {
        for j in (0..rows.len()).filter(|&j| j != i) {
            d.push(distance(rows[i], rows[j]));
        }
    }
    let mean = d.iter().sum::<f64>() / d.len() as f64;
    d.iter().map(|d| d / mean).collect()
}

/// cos_jik for i, j and k all different.
fn cosines(x: &[f64], dim: usize) -> Vec<f64> {
    let rows: Vec<&[f64]> = x.chunks(dim).collect();
    let n = rows.len();
    let mut cosines = Vec::new();
    for j in 0..n {
        for i in (0..n).filter(|&i| i != j) {
            for k in (0..n).filter(|&k| k != j && k != i) {
                let (a, b) = (distance(rows[i], rows[j]), distance(rows[k], rows[j]));
                let product: f64 = (0..dim)
                    .map(|d| (rows[i][d] - rows[j][d]) * (rows[k][d] - rows[j][d]))
                    .sum();
                cosines.push(product / (a * b));
            }
        }
    }
    cosines
}

/// The fraction of the relations that differ by at most δ, and the fraction that differ by more.
fn branches(relation: fn(&[f64], usize) -> Vec<f64>, input: &Input, delta: f64) -> [f64; 2] {
    let x = relation(&input.student, input.shapes.student_dim);
    let y = relation(&input.teacher, input.shapes.teacher_dim);
    let quadratic = x
        .iter()
        .zip(&y)
        .filter(|(x, y)| (*x - *y).abs() <= delta)
        .count();
    let share = quadratic as f64 / x.len() as f64;
    [share, 1.0 - share]
}

#[test]
fn gradients_agree_with_differences_on_both_branches_of_the_huber_penalty() {
    // Points on a line have distances of all sizes, and points in the plane have angles of all
    // sizes. In forty dimensions all distances are about the same and all angles are right. So with
    // δ = 1 some relations lie on each branch.
    let line = Input::normal(1, Shapes::new(12, 1, 40));
    let plane = Input::normal(2, Shapes::new(8, 2, 3));
    let space = Input::normal(3, Shapes::new(9, 6, 4));
    let with_normalised_rows = |input: &Input| {
        let mut input = input.clone();
        for (x, dim) in [
            (&mut input.student, input.shapes.student_dim),
            (&mut input.teacher, input.shapes.teacher_dim),
        ] {
            for row in x.chunks_mut(dim) {
                let norm = norm(row);
                row.iter_mut().for_each(|x| *x /= norm);
            }
        }
        input
    };
    for normalize in [false, true] {
        for (input, delta) in [(&line, 1.0), (&space, 0.3), (&space, 0.1)] {
            if normalize && input.shapes.student_dim == 1 {
                continue; // on a line, normalised rows are all ±1
            }
            let seen = if normalize {
                with_normalised_rows(input)
            } else {
                input.clone()
            };
            let shares = branches(scaled_distances, &seen, delta);
            assert!(shares[0].min(shares[1]) > 0.03, "δ = {delta}: {shares:?}");
            let loss = RkdDistance { delta, normalize };
            assert!(assert_gradients(&input.problem(loss), input) > 1e-3);
        }
        for (input, delta) in [(&plane, 1.0), (&space, 0.5), (&space, 0.1)] {
            let seen = if normalize {
                with_normalised_rows(input)
            } else {
                input.clone()
            };
            let shares = branches(cosines, &seen, delta);
            assert!(shares[0].min(shares[1]) > 0.03, "δ = {delta}: {shares:?}");
            let loss = RkdAngle { delta, normalize };
            assert!(assert_gradients(&input.problem(loss), input) > 1e-3);
            let both = Rkd {
                distance_weight: 0.5,
                angle_weight: 3.0,
                delta,
                normalize,
            };
            assert!(assert_gradients(&input.problem(both), input) > 1e-3);
        }
    }
}

#[test]
fn gradients_of_normalised_rows_scale_inversely_with_the_rows() {
    // The gradient through a normalisation goes as 1/‖x‖, so differences would need a step for each
    // row. This compares with the gradient of the rows before they were stretched.
    let mut random = Random::new(9);
    for loss in losses().into_iter().filter(normalizes) {
        for shapes in shapes_of(&loss, [6, 5, 5, 8]) {
            let unit = input(&loss, random.next() >> 1, shapes);
            let mut stretched = unit.clone();
            let factors = [1e-3, 1.0, 1e3, 0.1, 30.0, 7.0];
            for (row, factor) in stretched.student.chunks_mut(5).zip(factors) {
                row.iter_mut().for_each(|x| *x *= factor);
            }
            assert_gradients(&unit.problem(loss), &unit);
            let want = unit.evaluate::<f64, _>(&Reference, loss).gradient;
            for got in [
                stretched.evaluate::<f64, _>(&Reference, loss).gradient,
                stretched.evaluate::<f64, _>(&Cpu, loss).gradient,
            ] {
                for (i, factor) in factors.iter().enumerate() {
                    for d in 5 * i..5 * i + 5 {
                        let off = (got[d] * factor - want[d]).abs();
                        let within = off <= 1e-11 * norm(&want);
                        assert!(within, "{loss:?}: row {i}: off by {off:e}");
                    }
                }
            }
        }
    }
}
