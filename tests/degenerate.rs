//! Is hostile data answered rightly or clearly? Duplicates, batches of one, equal rows, NaN, infinities,
//! zero rows, offsets and scales, on every device and in every type.

use half::{bf16, f16};
use relata::{
    Batch, Cpu, DType, Device, Element, Error, Evaluation, InfoNce, KdKl, Loss, Problem, Queue,
    Real, Reference, Rkd, RkdAngle, RkdDistance, Rows, Rrd, Shapes, softmax,
};

const N: usize = 9;
const D: usize = 5;

fn numbers(len: usize, seed: f64) -> Vec<f64> {
    (0..len)
        .map(|i| ((i as f64 + seed) * 12.9898).sin() * 1.7)
        .collect()
}

fn cast<T: Element>(values: &[f64]) -> Vec<T> {
    values.iter().map(|&v| T::from_f64(v)).collect()
}

fn evaluate<T: Element, Dev: Device<T>>(
    device: &Dev,
    loss: Loss,
    x: &[f64],
    y: &[f64],
    dim: usize,
) -> Evaluation<Dev::Gradient> {
    let (x, y) = (cast::<T>(x), cast::<T>(y));
    let n = x.len() / dim;
    let mut batch = Batch::new(
        Rows::new(&x, [n, dim]).unwrap(),
        Rows::new(&y, [n, dim]).unwrap(),
    );
    let keys = cast::<T>(&numbers(7 * dim, 3.0));
    let mut queue = Queue::new(7, dim).unwrap();
    queue.enqueue(Rows::new(&keys, [7, dim]).unwrap()).unwrap();
    if matches!(loss, Loss::Rrd(_)) {
        batch = batch.with_queue(&queue);
    }
    let problem = Problem::new(loss, batch.shapes()).unwrap();
    problem.evaluate(device, batch).unwrap()
}

fn finite<R: Real>(evaluation: &Evaluation<R>) -> bool {
    evaluation.loss.is_finite() && evaluation.gradient.iter().all(|g| g.to_f64().is_finite())
}

/// Calls `$check::<T>` for every element type on every device.
macro_rules! everywhere {
    ($check:ident) => {
        $check::<f64, _>(&Reference);
        $check::<f64, _>(&Cpu);
        $check::<f32, _>(&Reference);
        $check::<f32, _>(&Cpu);
        $check::<f16, _>(&Cpu);
        $check::<bf16, _>(&Cpu);
        #[cfg(feature = "emulator")]
        {
            $check::<f32, _>(&relata::Emulator::new());
            $check::<f16, _>(&relata::Emulator::new().seed(1));
            $check::<bf16, _>(&relata::Emulator::new().seed(2));
        }
    };
}

fn rkd_losses() -> [Loss; 3] {
    [
        RkdDistance::default().into(),
        RkdAngle::default().into(),
        Rkd::default().into(),
    ]
}

#[test]
fn a_batch_of_one_has_no_relations() {
    fn check<T: Element, Dev: Device<T>>(device: &Dev) {
        for loss in rkd_losses() {
            let got = evaluate::<T, _>(device, loss, &numbers(D, 1.0), &numbers(D, 2.0), D);
            assert_eq!(got.loss, 0.0, "{loss}");
            assert!(got.gradient.iter().all(|g| g.to_f64() == 0.0), "{loss}");
        }
        for loss in Loss::all() {
            let got = evaluate::<T, _>(device, loss, &numbers(D, 1.0), &numbers(D, 2.0), D);
            assert!(finite(&got), "{loss}");
        }
    }
    everywhere!(check);
}

#[test]
fn duplicates_are_finite_and_agree_with_the_reference() {
    fn check<T: Element, Dev: Device<T>>(device: &Dev) {
        for (in_student, in_teacher) in [(true, false), (false, true), (true, true)] {
            let (mut x, mut y) = (numbers(N * D, 1.0), numbers(N * D, 2.0));
            for (rows, duplicate) in [(&mut x, in_student), (&mut y, in_teacher)] {
                if duplicate {
                    rows.copy_within(0..D, 3 * D);
                }
            }
            for loss in Loss::all() {
                let got = evaluate::<T, _>(device, loss, &x, &y, D);
                let want = evaluate::<T, _>(&Reference, loss, &x, &y, D);
                assert!(finite(&got), "{loss}");
                let error = (got.loss - want.loss).abs() / want.loss;
                // A GPU's queue holds the keys of half types as f16, which rounds similarities by 2⁻¹² and
                // logits by that over τ_t.
                let halved = device.name() == "emulator" && T::DTYPE != DType::F32;
                let tolerance = if halved && matches!(loss, Loss::Rrd(_)) {
                    1e-3
                } else {
                    1e-5
                };
                assert!(error <= tolerance, "{loss}: off by {error:e}");
            }
        }
    }
    everywhere!(check);
}

#[test]
fn rows_whose_squared_distances_vanish_agree_with_the_reference() {
    fn check<T: Element>(spread: f64) {
        const D: usize = 512;
        let rows = |seed| {
            let mut rows = numbers(N * D, seed);
            for (at, x) in rows.iter_mut().enumerate() {
                *x = if at % D == 0 { 1.0 } else { *x * spread };
            }
            rows
        };
        let (x, y) = (rows(1.0), rows(2.0));
        for loss in rkd_losses() {
            let got = evaluate::<T, _>(&Cpu, loss, &x, &y, D);
            let want = evaluate::<f64, _>(&Reference, loss, &x, &y, D);
            assert!(finite(&got), "{loss} at {spread:e}");
            let error = (got.loss - want.loss).abs() / want.loss;
            assert!(error <= 1e-5, "{loss} at {spread:e}: off by {error:e}");
        }
    }
    for spread in [1e-15, 1e-19, 1e-21, 1e-23, 1e-25, 1e-30] {
        check::<f32>(spread);
        check::<f64>(spread);
    }
}

// Two rows pull at each other with a force that does not fade with their distance, and are no duplicates.
#[test]
fn two_rows_all_but_equal_have_a_direction() {
    // Many, and without a pattern: all other distances are alike, and f32 would do for them.
    const D: usize = 64;
    let numbers = |seed: f64| -> Vec<f64> {
        let at = |i: usize| (i as f64 + seed).powi(2);
        (0..N * D).map(|i| (at(i) * 12.9898).sin()).collect()
    };
    let y = numbers(2.0);
    for apart in [1e-12, 1e-18, 1e-22, 1e-25, 1e-35] {
        let mut x = numbers(1.0);
        x[..2 * D].iter_mut().for_each(|x| *x *= apart);
        let got = evaluate::<f32, _>(&Cpu, RkdDistance::default().into(), &x, &y, D);
        let want = evaluate::<f32, _>(&Reference, RkdDistance::default().into(), &x, &y, D);
        for (g, w) in got.gradient.iter().zip(&want.gradient) {
            let error = (f64::from(*g) - w).abs();
            assert!(
                error <= 1e-6 * want.gradient_norm(),
                "{g} for {w} at {apart:e}"
            );
        }
    }
}

// Squares of 1/d beyond f32's range; where cosines with so short an edge are made of no digits, the pair counts as one.
#[cfg(feature = "emulator")]
#[test]
fn kernels_are_finite_however_close_two_rows_are() {
    for (n, dim) in [(20, 7), (260, 5)] {
        for apart in [1e-8, 1e-12, 1e-16, 1e-18, 1e-20, 1e-25, 1e-37] {
            let x = numbers(n * dim, 1.0);
            let mut y = numbers(n * dim, 2.0);
            y[..2 * dim].iter_mut().for_each(|y| *y *= apart);
            for (student, teacher) in [(&x, &y), (&y, &x)] {
                let [student, teacher] = [student, teacher].map(|rows| cast::<f32>(rows));
                let rows = |of| Rows::new(of, [n, dim]).unwrap();
                let batch = Batch::new(rows(&student), rows(&teacher));
                let problem = Problem::new(RkdAngle::default(), batch.shapes()).unwrap();
                let got = problem.evaluate(&relata::Emulator::new(), batch).unwrap();
                let want = problem.evaluate(&Reference, batch).unwrap();
                assert!(finite(&got), "{n} rows, two {apart:e} apart");
                // What is in doubt is the triples with that edge at their vertex.
                let triples = if apart < 1e-9 {
                    6.0 / (n * n) as f64
                } else {
                    0.0
                };
                let error = (got.loss - want.loss).abs();
                assert!(
                    error <= triples + 1e-6 * want.loss,
                    "{n} rows, two {apart:e} apart: {} for {}",
                    got.loss,
                    want.loss
                );
            }
        }
    }
}

// f32 has no 1/d of subnormal distances: where all are so, the kernels have no number to give and say so; where a pair is, it
// pulls as it should or not at all.
#[cfg(feature = "emulator")]
#[test]
fn kernels_know_no_subnormal_distances() {
    const D: usize = 7;
    let emulator = relata::Emulator::new();
    for n in [20, 260] {
        let (x, y) = (numbers(n * D, 1.0), numbers(n * D, 2.0));
        let tiny: Vec<f64> = x.iter().map(|x| x * 1e-40).collect();
        let mut close = x.clone();
        close[..2 * D].iter_mut().for_each(|x| *x *= 1e-40);
        for loss in rkd_losses() {
            for (x, y) in [(&tiny, &y), (&y, &tiny)] {
                let got = evaluate::<f32, _>(&emulator, loss, x, y, D);
                assert!(got.loss.is_nan(), "{loss} of {n} rows: {}", got.loss);
            }
            let got = evaluate::<f32, _>(&emulator, loss, &close, &y, D);
            let want = evaluate::<f32, _>(&Reference, loss, &close, &y, D);
            assert!(finite(&got), "{loss} of {n} rows");
            let error = (got.loss - want.loss).abs();
            assert!(
                error <= 6.0 / (n * n) as f64,
                "{loss} of {n} rows: off by {error:e}"
            );
        }
    }
}

#[test]
fn equal_rows_have_no_gradient() {
    fn check<T: Element, Dev: Device<T>>(device: &Dev) {
        let x = numbers(D, 1.0).repeat(N);
        for loss in rkd_losses() {
            let got = evaluate::<T, _>(device, loss, &x, &numbers(N * D, 2.0), D);
            assert!(finite(&got) && got.loss > 0.0, "{loss}");
            assert!(got.gradient.iter().all(|g| g.to_f64() == 0.0), "{loss}");
        }
    }
    everywhere!(check);
}

#[test]
fn what_is_not_finite_makes_the_loss_nan() {
    fn check<T: Element, Dev: Device<T>>(device: &Dev) {
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            for at in [0, 2 * D + 3, N * D - 1] {
                for loss in Loss::all() {
                    let (mut x, mut y) = (numbers(N * D, 1.0), numbers(N * D, 2.0));
                    x[at] = bad;
                    let got = evaluate::<T, _>(device, loss, &x, &y, D);
                    assert!(got.loss.is_nan(), "{loss}, student {bad}: {}", got.loss);
                    x = numbers(N * D, 1.0);
                    y[at] = bad;
                    let got = evaluate::<T, _>(device, loss, &x, &y, D);
                    assert!(got.loss.is_nan(), "{loss}, teacher {bad}: {}", got.loss);
                }
            }
        }
    }
    everywhere!(check);
}

#[test]
fn a_zero_row_has_no_direction() {
    fn check<T: Element, Dev: Device<T>>(device: &Dev) {
        let mut x = numbers(N * D, 1.0);
        x[2 * D..3 * D].fill(0.0);
        let losses: [Loss; 2] = [Rrd::default().into(), InfoNce::default().into()];
        for loss in losses {
            let got = evaluate::<T, _>(device, loss, &x, &numbers(N * D, 2.0), D);
            assert!(finite(&got), "{loss}");
            let zero = &got.gradient[2 * D..3 * D];
            assert!(zero.iter().all(|g| g.to_f64() == 0.0), "{loss}");
            assert!(got.gradient[0].to_f64() != 0.0, "{loss}");
        }
    }
    everywhere!(check);
}

#[test]
fn squares_beyond_f16_do_not_overflow() {
    let x: Vec<f64> = numbers(N * D, 1.0).iter().map(|x| x * 3000.0).collect();
    for loss in Loss::all() {
        let got = evaluate::<f16, _>(&Cpu, loss, &x, &numbers(N * D, 2.0), D);
        assert!(finite(&got), "{loss}");
        #[cfg(feature = "emulator")]
        {
            let emulator = relata::Emulator::new();
            let got = evaluate::<f16, _>(&emulator, loss, &x, &numbers(N * D, 2.0), D);
            assert!(finite(&got), "{loss}");
        }
    }
}

#[test]
fn an_offset_far_beyond_the_spread_costs_nothing() {
    fn check<Dev: Device<f32>>(device: &Dev) {
        // Rounded to f32 before they are compared: offset 1e3, spread 1e-3.
        let x: Vec<f64> = numbers(N * D, 1.0)
            .iter()
            .map(|x| f64::from((1e3 + 1e-3 * x) as f32))
            .collect();
        for loss in rkd_losses() {
            let got = evaluate::<f32, _>(device, loss, &x, &numbers(N * D, 2.0), D);
            let want = evaluate::<f32, _>(&Reference, loss, &x, &numbers(N * D, 2.0), D);
            let error = (got.loss - want.loss).abs() / want.loss;
            assert!(error <= 1e-6, "{loss}: off by {error:e}");
        }
    }
    check(&Cpu);
    #[cfg(feature = "emulator")]
    check(&relata::Emulator::new());
}

#[test]
fn scale_does_not_matter() {
    fn check<T: Element, Dev: Device<T>>(device: &Dev, scales: &[f64], tolerance: f64) {
        let (x, y) = (numbers(N * D, 1.0), numbers(N * D, 2.0));
        for loss in rkd_losses() {
            let want = evaluate::<f64, _>(&Cpu, loss, &x, &y, D);
            for &scale in scales {
                let x: Vec<f64> = x.iter().map(|x| x * scale).collect();
                let got = evaluate::<T, _>(device, loss, &x, &y, D);
                let error = ((got.loss - want.loss) / want.loss).abs();
                assert!(error < tolerance, "{loss} at {scale:e}: off by {error:e}");
                // The gradient has the unit of 1/x.
                let norm = got.gradient_norm() * scale / want.gradient_norm();
                assert!(
                    (norm - 1.0).abs() < 10.0 * tolerance,
                    "{loss} at {scale:e}: {norm}"
                );
            }
        }
    }
    check::<f64, _>(&Cpu, &[1e-150, 1e-30, 1e30, 1e150], 1e-12);
    check::<f32, _>(&Cpu, &[1e-30, 1e30], 1e-6);
    #[cfg(feature = "emulator")]
    check::<f32, _>(&relata::Emulator::new(), &[1e-30, 1e30], 1e-6);
}

#[test]
fn the_checked_mode_names_the_first_bad_row() {
    let mut x = cast::<f32>(&numbers(N * D, 1.0));
    let y = x.clone();
    x[4 * D + 2] = f32::NAN;
    x[6 * D] = f32::INFINITY;
    let rows = |data| Rows::new(data, [N, D]).unwrap();
    let problem = Problem::new(KdKl::default(), Shapes::new(N, D, D))
        .unwrap()
        .checked(true);
    let error = problem
        .evaluate(&Cpu, Batch::new(rows(&x), rows(&y)))
        .unwrap_err();
    assert!(
        matches!(error, Error::NotFinite { argument: "student", row: 4, column: 2, got } if got.is_nan())
    );
    let error = problem
        .evaluate(&Cpu, Batch::new(rows(&y), rows(&x)))
        .unwrap_err();
    assert!(matches!(
        error,
        Error::NotFinite {
            argument: "teacher",
            row: 4,
            column: 2,
            ..
        }
    ));
}

// Products of a thousand or a million times the temperature: their rounding alone decides where all exponentials vanish.
#[test]
fn raw_rows_of_any_length_have_a_softmax() {
    fn check<T: Element>(length: f64) {
        let x: Vec<f64> = numbers(N * D, 1.0).iter().map(|x| x * length).collect();
        let y: Vec<f64> = numbers(N * D, 2.0).iter().map(|y| y * length).collect();
        let (x, y) = (cast::<T>(&x), cast::<T>(&y));
        let [x, y] = [&x, &y].map(|rows| Rows::new(rows, [N, D]).unwrap());
        let info_nce = InfoNce {
            normalize: false,
            ..InfoNce::default()
        };
        let rrd = Rrd {
            normalize: false,
            ..Rrd::default()
        };
        let queues: Vec<_> = [1, 3, 4 * N]
            .map(|capacity| Queue::new(capacity, D).unwrap().normalize(false))
            .into_iter()
            .map(|mut queue| queue.enqueue(y).map(|()| queue).unwrap())
            .collect();
        let beside = queues
            .iter()
            .map(|queue| Batch::new(x, y).with_queue(queue));
        let batches: Vec<_> = beside
            .clone()
            .map(|batch| (Loss::from(rrd), batch))
            .chain(beside.map(|batch| (info_nce.into(), batch)))
            .chain([(info_nce.into(), Batch::new(x, y))])
            .collect();
        for (loss, batch) in batches {
            let problem = Problem::new(loss, batch.shapes()).unwrap();
            let got = problem.evaluate(&Cpu, batch).unwrap();
            let want = problem.evaluate(&Reference, batch).unwrap();
            let shapes = batch.shapes();
            // What a logit is rounded by, and the loss with it.
            let largest_logit = 10.0 * D as f64 * length * length / 0.02;
            let rounding = largest_logit * if T::DTYPE == DType::F64 { 1e-15 } else { 5e-7 };
            let error = (got.loss - want.loss).abs();
            assert!(
                error <= rounding,
                "{loss} {shapes:?}: {} for {}",
                got.loss,
                want.loss
            );
            let difference: f64 = got
                .gradient
                .iter()
                .zip(&want.gradient)
                .map(|(g, w)| (g.to_f64() - w).powi(2))
                .sum();
            let error = difference.sqrt();
            assert!(
                error <= 1e-5 * (want.gradient_norm() + length),
                "{loss} {shapes:?}: gradient off by {error:e} beside {:e}",
                want.gradient_norm()
            );
        }
    }
    for length in [1.0, 1e3, 1e4] {
        check::<f32>(length);
        check::<f16>(length);
        check::<bf16>(length);
    }
    for length in [1e3, 1e8, 1e9] {
        check::<f64>(length);
    }
}

// Classes do not fill the last register of a row: what fills it up must not take part, whatever the logits' size.
#[test]
fn classes_are_counted_at_any_temperature_and_size_of_logits() {
    fn check<T: Element>(logits: &[f64], temperature: f64) {
        let classes = logits.len() / 2;
        let [x, y] = [&logits[..classes], &logits[classes..]].map(cast::<T>);
        let [x, y] = [&x, &y].map(|rows| Rows::new(rows, [1, classes]).unwrap());
        let loss = KdKl { temperature };
        let got = loss.evaluate(&Cpu, x, y).unwrap();
        let want = loss.evaluate(&Reference, x, y).unwrap();
        let close = |got: f64, want: f64| (got - want).abs() <= 2e-5 * (want.abs() + 1e-30);
        assert!(
            close(got.loss, want.loss),
            "{} for {} at {temperature:e}",
            got.loss,
            want.loss
        );
        for (g, w) in got.gradient.iter().zip(&want.gradient) {
            assert!(
                (g.to_f64() - w).abs() <= 2e-6 * temperature,
                "{g:?} for {w:e}"
            );
        }
        let got = softmax(&Cpu, x, temperature).unwrap();
        let want = softmax(&Reference, x, temperature).unwrap();
        for (p, q) in got.iter().zip(&want) {
            assert!(
                (p.to_f64() - q).abs() <= 1e-6,
                "{p:?} for {q:e} at {temperature:e}"
            );
        }
    }
    for classes in [1, 5, 16, 37] {
        let logits = numbers(2 * classes, 1.0);
        let scaled = |by: f64| -> Vec<f64> { logits.iter().map(|x| x * by).collect() };
        // The difference of the two rows' maxima, which the loss has to have, is rounded with the logits.
        check::<f32>(&scaled(1.0), 1e-30);
        check::<f64>(&scaled(1.0), 1e-30);
        check::<f16>(&scaled(1e4), 1e-9);
        check::<f32>(&scaled(1e11), 4.0);
        check::<f64>(&scaled(1e25), 4.0);
        // A row of a vocabulary with a mask, and one that is masked altogether.
        let mut masked = logits.clone();
        for (at, x) in masked.iter_mut().enumerate() {
            if at % classes % 3 == 1 {
                *x = f64::from(f32::MIN);
            }
        }
        check::<f32>(&masked, 1.0);
        check::<f32>(&vec![f64::from(f32::MIN); 2 * classes], 4.0);
    }
}
