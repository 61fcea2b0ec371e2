//! Laws that hold for any numbers: symmetries, minima and limits of the losses.

mod common;

use common::compare::{norm, relative_error};
use common::{Input, Random, losses, order};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use relata::{
    Cpu, Device, Enqueue, Evaluation, InfoNce, KdKl, Loss, Queue, Reference, Rkd, RkdAngle,
    RkdDistance, Rows, Rrd, Shapes,
};

/// The same cases in each run: a law that breaks for one person breaks for everyone.
fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        rng_seed: RngSeed::Fixed(20_190_406),
        failure_persistence: None,
        ..ProptestConfig::with_cases(cases)
    }
}

/// Asserts that a loss is `loss` and its gradient `gradient`, to the rounding of f64, with a
/// margin: edges that are much shorter than others amplify the rounding in a small batch of random
/// rows. Errors are relative to the value plus 0.01, the usual size of these losses and of their
/// slopes.
fn assert_is(what: &str, got: &Evaluation<f64>, loss: f64, gradient: &[f64]) {
    let off = (got.loss - loss).abs() / (loss.abs() + 0.01);
    let within = off <= 1e-10;
    assert!(
        within,
        "{what}: loss {}, want {loss}: off by {off:e}",
        got.loss
    );
    let difference: Vec<f64> = got
        .gradient
        .iter()
        .zip(gradient)
        .map(|(g, w)| g - w)
        .collect();
    let off = norm(&difference) / (norm(gradient) + 0.01);
    let within = off <= 1e-7;
    assert!(within, "{what}: gradient off by {off:e}");
}

/// Both devices, in f64.
fn on_both(input: &Input, loss: impl Into<Loss> + Copy) -> [Evaluation<f64>; 2] {
    [
        input.evaluate::<f64, _>(&Reference, loss),
        input.evaluate::<f64, _>(&Cpu, loss),
    ]
}

/// The three RKD losses, with a δ that puts relations on both branches of the penalty.
fn rkd(normalize: bool) -> [Loss; 3] {
    losses::rkd_losses(Rkd {
        distance_weight: 1.5,
        angle_weight: 0.5,
        delta: 0.5,
        normalize,
    })
}

/// A batch for the relational losses, of enough rows for angles, and enough dimensions for them to
/// vary.
fn relational() -> impl Strategy<Value = Input> {
    (3..12usize, 2..9usize, 1..9usize, any::<u64>())
        .prop_map(|(n, d, d_t, seed)| Input::normal(seed, Shapes::new(n, d, d_t)))
}

/// Any loss with a batch that it accepts.
fn any_loss() -> impl Strategy<Value = (Loss, Input)> {
    let loss = prop::sample::select(losses::losses_against_teachers());
    let sizes = (1..10usize, 1..9usize, 1..9usize, 1..20usize);
    (loss, sizes, any::<prop::sample::Index>(), any::<u64>()).prop_map(
        |(loss, (n, d, d_t, k), which, seed)| {
            let shapes = losses::shapes_of(&loss, [n, d, d_t, k]);
            (loss, Input::normal(seed, shapes[which.index(shapes.len())]))
        },
    )
}

/// A product of reflections: orthogonal.
fn rotate(rows: &mut [f64], dim: usize, seed: u64) {
    let mut random = Random::new(seed);
    for _ in 0..3 {
        let axis = random.normals(dim);
        let square: f64 = axis.iter().map(|a| a * a).sum();
        for row in rows.chunks_mut(dim) {
            let along: f64 = row.iter().zip(&axis).map(|(x, a)| x * a).sum();
            for (x, a) in row.iter_mut().zip(&axis) {
                *x -= 2.0 * along / square * a;
            }
        }
    }
}

proptest! {
    #![proptest_config(config(40))]

    #[test]
    fn rkd_ignores_translation(input in relational(), seed: u64) {
        let mut moved = input.clone();
        let shift = Random::new(seed).normals(input.shapes.student_dim);
        for row in moved.student.chunks_mut(shift.len()) {
            row.iter_mut().zip(&shift).for_each(|(x, s)| *x += s);
        }
        let shift = Random::new(!seed).normals(input.shapes.teacher_dim);
        for row in moved.teacher.chunks_mut(shift.len()) {
            row.iter_mut().zip(&shift).for_each(|(y, s)| *y += s);
        }
        for loss in rkd(false) {
            for (a, b) in on_both(&input, loss).iter().zip(&on_both(&moved, loss)) {
                assert_is("translated", b, a.loss, &a.gradient);
            }
        }
    }

    #[test]
    fn rkd_gradient_rotates_with_the_student(input in relational(), seed: u64, normalize: bool) {
        let dim = input.shapes.student_dim;
        let mut turned = input.clone();
        rotate(&mut turned.student, dim, seed);
        rotate(&mut turned.teacher, input.shapes.teacher_dim, !seed);
        for loss in rkd(normalize) {
            for (a, b) in on_both(&input, loss).iter().zip(&on_both(&turned, loss)) {
                let mut want = a.gradient.clone();
                rotate(&mut want, dim, seed);
                assert_is("turned", b, a.loss, &want);
            }
        }
    }

    #[test]
    fn rkd_ignores_scale(input in relational(), exponents in (-8.0..8.0, -8.0..8.0), normalize: bool) {
        let (by, by_teacher) = (10f64.powf(exponents.0), 10f64.powf(exponents.1));
        let mut scaled = input.clone();
        scaled.student.iter_mut().for_each(|x| *x *= by);
        scaled.teacher.iter_mut().for_each(|y| *y *= by_teacher);
        for loss in rkd(normalize) {
            for (a, mut b) in on_both(&input, loss).iter().zip(on_both(&scaled, loss)) {
                b.gradient.iter_mut().for_each(|g| *g *= by);
                assert_is("scaled", &b, a.loss, &a.gradient);
            }
        }
    }

    #[test]
    fn rkd_gradients_sum_to_zero(input in relational()) {
        let dim = input.shapes.student_dim;
        for loss in rkd(false) {
            for evaluation in on_both(&input, loss) {
                for d in 0..dim {
                    let column = evaluation.gradient.iter().skip(d).step_by(dim);
                    let sum: f64 = column.sum();
                    prop_assert!(sum.abs() <= 1e-12 * (1.0 + evaluation.gradient_norm()), "{loss}: {sum:e}");
                }
            }
        }
    }

    #[test]
    fn losses_ignore_the_order_of_rows((loss, input) in any_loss(), by in 1..9usize) {
        // Of pairs that are equally alike to the teacher the earlier one counts as less alike, and
        // rows of one element are ±1.
        prop_assume!(order::margin(&loss).is_none() || input.shapes.teacher_dim > 1);
        let n = input.shapes.rows;
        let turned = |x: &[f64]| -> Vec<f64> {
            let dim = x.len() / n;
            let mut x = x.to_vec();
            x.rotate_left(by % n * dim);
            // A rotation keeps neighbours; this does not.
            if n > 2 {
                let (first, rest) = x.split_at_mut(dim);
                first.swap_with_slice(&mut rest[..dim]);
            }
            x
        };
        let other = Input {
            student: turned(&input.student),
            teacher: turned(&input.teacher),
            ..input.clone()
        };
        for (a, b) in on_both(&input, loss).iter().zip(&on_both(&other, loss)) {
            assert_is("permuted", b, a.loss, &turned(&a.gradient));
        }
    }

    #[test]
    fn rkd_and_kd_vanish_at_the_teacher(input in relational(), seed: u64) {
        let dim = input.shapes.student_dim;
        let shapes = Shapes::new(input.shapes.rows, dim, dim);
        let same = Input { shapes, teacher: input.student.clone(), ..input };
        for temperature in [0.3, 4.0] {
            for evaluation in on_both(&same, KdKl::new(temperature)) {
                prop_assert_eq!(evaluation.loss, 0.0);
                prop_assert_eq!(evaluation.gradient_norm(), 0.0);
            }
        }
        for loss in rkd(false) {
            let evaluation = same.evaluate::<f64, _>(&Reference, loss);
            prop_assert_eq!(evaluation.loss, 0.0);
            prop_assert_eq!(evaluation.gradient_norm(), 0.0);
        }
        // RKD depends on the shape alone. The law of cosines rounds, so the loss is not exactly 0.
        let mut similar = same.clone();
        rotate(&mut similar.teacher, dim, seed);
        similar.teacher.iter_mut().for_each(|y| *y = 3.0 * *y + 1.0);
        for input in [&same, &similar] {
            for loss in rkd(false) {
                for evaluation in on_both(input, loss) {
                    prop_assert!(evaluation.loss >= 0.0 && evaluation.loss <= 1e-20, "{loss}: {evaluation:?}");
                    prop_assert!(evaluation.gradient_norm() <= 1e-10, "{loss}: {evaluation:?}");
                }
            }
        }
    }

    #[test]
    fn losses_and_divergences_are_not_negative((loss, input) in any_loss()) {
        for evaluation in on_both(&input, loss) {
            if losses::has_kl(&loss) {
                let kl = evaluation.term("kl").expect("RRD's KL");
                prop_assert!(kl >= -1e-13, "{kl:e}");
                // The cross-entropy is larger by the entropy, which is at most ln K.
                let entropy = evaluation.loss - kl;
                let most = (input.shapes.queue.expect("keys") as f64).ln();
                prop_assert!(entropy >= -1e-13 && entropy <= most + 1e-13, "{entropy} of {most}");
            } else {
                prop_assert!(evaluation.loss >= -1e-13, "{}", evaluation.loss);
                prop_assert_eq!(evaluation.term("kl"), None);
            }
        }
    }

    #[test]
    fn gradients_are_orthogonal_to_normalised_rows(
        (loss, input) in any_loss().prop_filter("normalises", |(loss, _)| losses::normalizes(loss))
    ) {
        let dim = input.shapes.student_dim;
        for evaluation in on_both(&input, loss) {
            for (g, x) in evaluation.gradient.chunks(dim).zip(input.student.chunks(dim)) {
                let along: f64 = g.iter().zip(x).map(|(g, x)| g * x).sum();
                // The normalisation projects this component out, so only rounding is left.
                prop_assert!(along.abs() <= 1e-9 * (1.0 + norm(g) * norm(x)), "{along:e}");
            }
        }
    }

    #[test]
    fn upstream_factor_scales_the_gradient_and_not_the_loss((loss, input) in any_loss(), upstream in -5.0..5.0) {
        let once = on_both(&input, loss);
        let problem = input.problem(loss).with_upstream(upstream);
        let scaled = [
            input.run::<f64, _>(&Reference, &problem),
            input.run::<f64, _>(&Cpu, &problem),
        ];
        for (a, b) in once.iter().zip(&scaled) {
            prop_assert_eq!(a.loss.to_bits(), b.loss.to_bits());
            prop_assert_eq!(a.term("kl"), b.term("kl"));
            let want: Vec<f64> = a.gradient.iter().map(|g| upstream * g).collect();
            if norm(&want) > 1e-12 {
                let error = relative_error(&b.gradient, &want);
                prop_assert!(error <= 1e-13, "{loss}: {error:e}");
            }
        }
    }

    #[test]
    fn rkd_is_the_weighted_sum_of_distance_and_angle(input in relational(), weights in (0.0..30.0, 0.0..60.0), normalize: bool) {
        let delta = 0.7;
        let (distance_weight, angle_weight) = weights;
        let both = Rkd { distance_weight, angle_weight, delta, normalize };
        let sums = on_both(&input, both);
        let distances = on_both(&input, RkdDistance { delta, normalize });
        let angles = on_both(&input, RkdAngle { delta, normalize });
        for ((sum, distance), angle) in sums.iter().zip(&distances).zip(&angles) {
            let loss = distance_weight * distance.loss + angle_weight * angle.loss;
            let parts = distance.gradient.iter().zip(&angle.gradient);
            let want: Vec<f64> = parts.map(|(d, a)| distance_weight * d + angle_weight * a).collect();
            assert_is("weighted", sum, loss, &want);
        }
    }
}

/// A queue that holds `keys`, the oldest first.
fn queue_of(keys: &[f64], dim: usize) -> Queue<f64> {
    let mut queue = Queue::new(keys.len() / dim, dim).expect("keys");
    let rows = Rows::new(keys, [keys.len() / dim, dim]).expect("whole keys");
    queue.enqueue(rows).expect("finite keys");
    queue
}

fn rrd(student_temperature: f64, teacher_temperature: f64) -> Rrd {
    Rrd {
        student_temperature,
        teacher_temperature,
        enqueue: Enqueue::Never,
        ..Rrd::default()
    }
}

proptest! {
    #![proptest_config(config(30))]

    /// The softmax of a sharp teacher has only the own key, which is then the target.
    #[test]
    fn rrd_of_a_sharp_teacher_is_info_nce(dim in 4..9usize, past in 1..20usize, tau in 0.05..1.0, seed: u64) {
        // A row at a time, as each row's negatives are all keys but its own.
        let input = Input::normal(seed, Shapes::new(1, dim, dim).with_queue(past));
        let with_own = queue_of(&[&input.keys[..], &input.teacher].concat(), dim);
        let without = queue_of(&input.keys, dim);
        let student = Rows::new(&input.student, [1, dim]).expect("a row");
        let teacher = Rows::new(&input.teacher, [1, dim]).expect("a row");
        fn assert_law<D: Device<f64, Gradient = f64>>(
            device: &D,
            tau: f64,
            [student, teacher]: [Rows<'_, f64>; 2],
            [with_own, without]: [&Queue<f64>; 2],
        ) {
            let sharp = rrd(tau, 1e-7)
                .evaluate_with_queue(device, student, teacher, &mut with_own.clone())
                .expect("a valid batch");
            let info_nce = InfoNce { temperature: tau, enqueue: Enqueue::Never, ..InfoNce::default() };
            let want = info_nce
                .evaluate_with_queue(device, student, teacher, &mut without.clone())
                .expect("a valid batch");
            assert_is("τ_t → 0", &sharp, want.loss, &want.gradient);
            // No entropy is left. (Logits over τ_t lose as many digits as it is small.)
            let entropy = sharp.loss - sharp.term("kl").expect("RRD's KL");
            assert!(entropy.abs() <= 1e-7, "{entropy:e}");
        }
        assert_law(&Reference, tau, [student, teacher], [&with_own, &without]);
        assert_law(&Cpu, tau, [student, teacher], [&with_own, &without]);
    }

    /// A flat teacher gives all keys the same weight.
    #[test]
    fn rrd_of_a_flat_teacher_has_a_uniform_target(n in 1..6usize, dim in 1..9usize, k in 1..20usize, seed: u64) {
        let tau = 0.2;
        let input = Input::normal(seed, Shapes::new(n, dim, dim).with_queue(k));
        let queue = input.queue::<f64>().expect("keys");
        for evaluation in on_both(&input, rrd(tau, 1e12)) {
            let mut want = 0.0;
            for x in input.student.chunks(dim) {
                let log_q = log_softmax_of_similarities(x, queue.keys(), tau);
                want -= log_q.iter().sum::<f64>() / (k * n) as f64;
            }
            prop_assert!((evaluation.loss - want).abs() <= 1e-10 * (1.0 + want));
            let entropy = evaluation.loss - evaluation.term("kl").expect("RRD's KL");
            prop_assert!((entropy - (k as f64).ln()).abs() <= 1e-10);
        }
    }

    #[test]
    fn info_nce_with_a_queue_is_its_definition(n in 1..6usize, dim in 1..9usize, k in 1..20usize, tau in 0.05..2.0, seed: u64) {
        let input = Input::normal(seed, Shapes::new(n, dim, dim).with_queue(k));
        let queue = input.queue::<f64>().expect("keys");
        let loss = InfoNce { temperature: tau, ..InfoNce::default() };
        let mut want = 0.0;
        for (x, y) in input.student.chunks(dim).zip(input.teacher.chunks(dim)) {
            let own: Vec<f64> = y.iter().map(|v| v / norm(y)).collect();
            let keys = [&own[..], queue.keys()].concat();
            want -= log_softmax_of_similarities(x, &keys, tau)[0] / n as f64;
        }
        for evaluation in on_both(&input, loss) {
            prop_assert!((evaluation.loss - want).abs() <= 1e-12 * (1.0 + want));
        }
    }
}

/// log softmax(⟨x, key⟩/(‖x‖τ)), by the formula.
fn log_softmax_of_similarities(x: &[f64], keys: &[f64], tau: f64) -> Vec<f64> {
    let logits: Vec<f64> = keys
        .chunks(x.len())
        .map(|key| key.iter().zip(x).map(|(k, x)| k * x).sum::<f64>() / norm(x) / tau)
        .collect();
    let sum: f64 = logits.iter().map(|l| l.exp()).sum();
    logits.iter().map(|l| l - sum.ln()).collect()
}
