//! Is hostile data answered correctly or with a clear error? Duplicates, batches of one row, equal
//! rows, NaN, infinities, zero rows, offsets and scales, on every device and in every type.

mod common;

use common::compare::{assert_gradient, norm};
use common::losses::rkd_losses;
use common::{Input, cast, on_every_device, rounded};
use half::{bf16, f16};
use relata::{
    Batch, Cpu, DType, Device, Element, Error, Evaluation, Family, InfoNce, KdKl, Loss, Problem,
    Queue, QueueUse, Real, Reference, Relation, Rkd, RkdDistance, Rows, Rrd, Shapes,
    relation_matrix, softmax,
};

const N: usize = 9;
const D: usize = 5;
/// Keys of the losses that need a queue.
const KEYS: usize = 7;

fn numbers(len: usize, seed: f64) -> Vec<f64> {
    (0..len)
        .map(|i| ((i as f64 + seed) * 12.9898).sin() * 1.7)
        .collect()
}

/// `loss` on rows of `dim` elements, with a queue only if the loss needs one.
fn evaluate<T: Element, Dev: Device<T>>(
    device: &Dev,
    loss: Loss,
    x: &[f64],
    y: &[f64],
    dim: usize,
) -> Evaluation<Dev::Gradient> {
    let shapes = Shapes::new(x.len() / dim, dim, dim);
    let input = Input {
        shapes: match loss.spec().queue {
            QueueUse::Required => shapes.with_queue(KEYS),
            QueueUse::Optional | QueueUse::Never => shapes,
        },
        student: x.to_vec(),
        teacher: y.to_vec(),
        keys: rounded::<T>(&numbers(KEYS * dim, 3.0)),
    };
    input.evaluate::<T, Dev>(device, loss)
}

fn finite<R: Real>(evaluation: &Evaluation<R>) -> bool {
    evaluation.loss.is_finite() && evaluation.gradient.iter().all(|g| g.to_f64().is_finite())
}

#[test]
fn rkd_of_a_batch_of_one_is_zero_and_every_loss_is_finite() {
    fn assert_no_relations<T: Element, Dev: Device<T>>(device: &Dev) {
        for loss in rkd_losses(Rkd::default()) {
            let got = evaluate::<T, _>(device, loss, &numbers(D, 1.0), &numbers(D, 2.0), D);
            assert_eq!(got.loss, 0.0, "{loss}");
            assert!(got.gradient.iter().all(|g| g.to_f64() == 0.0), "{loss}");
        }
        for loss in common::losses::against_teachers() {
            let got = evaluate::<T, _>(device, loss, &numbers(D, 1.0), &numbers(D, 2.0), D);
            assert!(finite(&got), "{loss}");
        }
    }
    on_every_device!(assert_no_relations);
}

#[test]
fn losses_of_duplicates_are_finite_and_agree_with_the_reference() {
    fn assert_right_with_duplicates<T: Element, Dev: Device<T>>(device: &Dev) {
        for (in_student, in_teacher) in [(true, false), (false, true), (true, true)] {
            let (mut x, mut y) = (numbers(N * D, 1.0), numbers(N * D, 2.0));
            for (rows, duplicate) in [(&mut x, in_student), (&mut y, in_teacher)] {
                if duplicate {
                    rows.copy_within(0..D, 3 * D);
                }
            }
            for loss in common::losses::against_teachers() {
                let got = evaluate::<T, _>(device, loss, &x, &y, D);
                let want = evaluate::<T, _>(&Reference, loss, &x, &y, D);
                assert!(finite(&got), "{loss}");
                let error = (got.loss - want.loss).abs() / want.loss;
                // A GPU's queue holds the keys of half types as f16. That rounds similarities by
                // 2⁻¹² and logits by 2⁻¹²/τ_t.
                let halved = device.name() == "emulator" && T::DTYPE != DType::F32;
                let tolerance = if halved && loss.spec().queue == QueueUse::Required {
                    1e-3
                } else {
                    1e-5
                };
                assert!(error <= tolerance, "{loss}: off by {error:e}");
            }
        }
    }
    on_every_device!(assert_right_with_duplicates);
}

#[test]
fn rkd_agrees_with_the_reference_if_squared_distances_vanish() {
    fn assert_right_at_spread<T: Element>(spread: f64) {
        const D: usize = 512;
        let rows = |seed: f64| {
            // Without a pattern, so that all distances are alike: f32 is exact enough for those.
            let number = |at: usize| ((at as f64 + seed).powi(2) * 12.9898).sin();
            let element = |at: usize| {
                if at.is_multiple_of(D) {
                    1.0
                } else {
                    number(at) * spread
                }
            };
            (0..N * D).map(element).collect::<Vec<f64>>()
        };
        let (x, y) = (rows(1.0), rows(2.0));
        for loss in rkd_losses(Rkd::default()) {
            let got = evaluate::<T, _>(&Cpu, loss, &x, &y, D);
            let want = evaluate::<T, _>(&Reference, loss, &x, &y, D);
            assert!(finite(&got), "{loss} at {spread:e}");
            let error = (got.loss - want.loss).abs() / want.loss;
            // f32 is not trusted if the square of 1/d overflows it. In f64 all digits are there.
            let tolerance = if spread < 1e-20 { 1e-9 } else { 1e-5 };
            assert!(error <= tolerance, "{loss} at {spread:e}: off by {error:e}");
        }
    }
    for spread in [1e-15, 1e-19, 1e-21, 1e-23, 1e-25, 1e-30] {
        assert_right_at_spread::<f32>(spread);
        assert_right_at_spread::<f64>(spread);
    }
    assert_right_at_spread::<f64>(1e-154);
}

// The gradient between two close rows does not fade with their distance. They are not duplicates.
#[test]
fn rkd_distance_of_two_nearly_equal_rows_has_a_direction() {
    // Many dimensions without a pattern: all other distances are alike, and f32 is exact enough for
    // them.
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

// Squares of 1/d exceed f32's range. If the cosines with so short an edge have no digits left, the
// kernels count the pair as one row.
#[cfg(feature = "emulator")]
#[test]
fn rkd_angle_kernels_are_finite_however_close_two_rows_are() {
    for (n, dim) in [(20, 7), (260, 5)] {
        for apart in [1e-8, 1e-12, 1e-16, 1e-18, 1e-20, 1e-25, 1e-37] {
            let x = numbers(n * dim, 1.0);
            let mut y = numbers(n * dim, 2.0);
            y[..2 * dim].iter_mut().for_each(|y| *y *= apart);
            for (student, teacher) in [(&x, &y), (&y, &x)] {
                let [student, teacher] = [student, teacher].map(|rows| cast::<f32>(rows));
                let rows = |of| Rows::new(of, [n, dim]).unwrap();
                let batch = Batch::new(rows(&student), rows(&teacher));
                let problem = Problem::new(relata::RkdAngle::default(), batch.shapes()).unwrap();
                let got = problem.evaluate(&relata::Emulator::new(), batch).unwrap();
                let want = problem.evaluate(&Reference, batch).unwrap();
                assert!(finite(&got), "{n} rows, two {apart:e} apart");
                // Only the triples with that edge at their vertex may be wrong.
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

// f32 cannot hold 1/d of a subnormal distance. If all distances are subnormal, the loss is NaN. If
// one distance is, the loss counts that pair correctly or not at all.
#[cfg(feature = "emulator")]
#[test]
fn rkd_kernels_give_nan_if_all_distances_are_subnormal() {
    const D: usize = 7;
    let emulator = relata::Emulator::new();
    for n in [20, 260] {
        let (x, y) = (numbers(n * D, 1.0), numbers(n * D, 2.0));
        let tiny: Vec<f64> = x.iter().map(|x| x * 1e-40).collect();
        let mut close = x.clone();
        close[..2 * D].iter_mut().for_each(|x| *x *= 1e-40);
        for loss in rkd_losses(Rkd::default()) {
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
fn rkd_of_equal_rows_has_no_gradient() {
    fn assert_no_gradient<T: Element, Dev: Device<T>>(device: &Dev) {
        let x = numbers(D, 1.0).repeat(N);
        for loss in rkd_losses(Rkd::default()) {
            let got = evaluate::<T, _>(device, loss, &x, &numbers(N * D, 2.0), D);
            assert!(finite(&got) && got.loss > 0.0, "{loss}");
            assert!(got.gradient.iter().all(|g| g.to_f64() == 0.0), "{loss}");
        }
    }
    on_every_device!(assert_no_gradient);
}

#[test]
fn losses_of_inputs_that_are_not_finite_are_nan() {
    fn assert_nan<T: Element, Dev: Device<T>>(device: &Dev) {
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            for at in [0, 2 * D + 3, N * D - 1] {
                for loss in common::losses::against_teachers() {
                    let family = loss.spec().family;
                    if bad < 0.0 && matches!(family, Family::Logits(_)) {
                        continue; // tests/masked_logits.rs
                    }
                    let [good_x, good_y] = [numbers(N * D, 1.0), numbers(N * D, 2.0)];
                    for student in [true, false] {
                        let (mut x, mut y) = (good_x.clone(), good_y.clone());
                        let hit = if student { &mut x } else { &mut y };
                        hit[at] = bad;
                        let got = evaluate::<T, _>(device, loss, &x, &y, D);
                        let label = format!("{loss}, {bad} in the student: {student}");
                        assert!(got.loss.is_nan(), "{label}: {}", got.loss);
                        let mut nan = got.gradient.iter().map(|g| g.to_f64().is_nan());
                        // A row of queries or logits has a gradient of its own.
                        let reached = match family {
                            Family::Pairwise(_) | Family::Triplet(_) | Family::Towers(_) => {
                                nan.all(|nan| nan)
                            }
                            Family::Contrastive(_) | Family::Logits(_) | Family::Sampled(_) => {
                                nan.any(|nan| nan)
                            }
                        };
                        assert!(reached, "{label}: the gradient hides it");
                    }
                }
            }
        }
    }
    on_every_device!(assert_nan);
}

// Too many rows for the small-batch kernels.
#[cfg(feature = "emulator")]
#[test]
fn rkd_of_many_rows_that_are_not_finite_is_nan() {
    const N: usize = 260;
    let emulator = relata::Emulator::new();
    for (bad, at, student) in [(f64::NAN, 0, true), (f64::INFINITY, N * D - 1, false)] {
        let (mut x, mut y) = (numbers(N * D, 1.0), numbers(N * D, 2.0));
        let hit = if student { &mut x } else { &mut y };
        hit[at] = bad;
        for loss in rkd_losses(Rkd::default()) {
            let got = evaluate::<f32, _>(&emulator, loss, &x, &y, D);
            let label = format!("{loss}, {bad} in the student: {student}");
            assert!(got.loss.is_nan(), "{label}: {}", got.loss);
            let mut gradient = got.gradient.iter();
            assert!(gradient.all(|g| g.is_nan()), "{label}: the gradient");
        }
    }
}

// All products of an infinite element with keys of one sign are the same infinity.
#[test]
fn rrd_and_info_nce_of_an_infinite_row_are_nan_whatever_the_sign_of_the_keys() {
    fn assert_nan<T: Element, Dev: Device<T>>(device: &Dev) {
        for sign in [1.0, -1.0] {
            for normalize in [true, false] {
                let rrd = Rrd {
                    normalize,
                    ..Rrd::default()
                };
                let info_nce = InfoNce {
                    normalize,
                    ..InfoNce::default()
                };
                let of_one_sign = |key: f64| sign * (key.abs() + 0.1);
                let good = Input {
                    shapes: Shapes::new(N, D, D).with_queue(KEYS),
                    student: numbers(N * D, 1.0),
                    teacher: numbers(N * D, 2.0),
                    keys: numbers(KEYS * D, 3.0)
                        .into_iter()
                        .map(of_one_sign)
                        .collect(),
                };
                let (mut in_student, mut in_teacher) = (good.clone(), good);
                in_student.student[2 * D + 3] = f64::INFINITY;
                in_teacher.teacher[2 * D + 3] = f64::INFINITY;
                for input in [in_student, in_teacher] {
                    for loss in [Loss::from(rrd), info_nce.into()] {
                        let got = input.evaluate::<T, _>(device, loss);
                        assert!(got.loss.is_nan(), "{loss:?}, {sign}: {}", got.loss);
                    }
                }
            }
        }
    }
    on_every_device!(assert_nan);
}

#[test]
fn rrd_and_info_nce_give_a_zero_row_no_gradient() {
    fn assert_no_direction<T: Element, Dev: Device<T>>(device: &Dev) {
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
    on_every_device!(assert_no_direction);
}

#[test]
fn losses_are_finite_if_squares_overflow_f16() {
    let x: Vec<f64> = numbers(N * D, 1.0).iter().map(|x| x * 3000.0).collect();
    for loss in common::losses::against_teachers() {
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
fn rkd_stays_exact_at_an_offset_far_beyond_the_spread() {
    fn assert_exact<Dev: Device<f32>>(device: &Dev) {
        // Rounded to f32 before they are compared: offset 1e3, spread 1e-3.
        let x: Vec<f64> = numbers(N * D, 1.0)
            .iter()
            .map(|x| f64::from((1e3 + 1e-3 * x) as f32))
            .collect();
        for loss in rkd_losses(Rkd::default()) {
            let got = evaluate::<f32, _>(device, loss, &x, &numbers(N * D, 2.0), D);
            let want = evaluate::<f32, _>(&Reference, loss, &x, &numbers(N * D, 2.0), D);
            let error = (got.loss - want.loss).abs() / want.loss;
            assert!(error <= 1e-6, "{loss}: off by {error:e}");
        }
    }
    assert_exact(&Cpu);
    #[cfg(feature = "emulator")]
    assert_exact(&relata::Emulator::new());
}

#[test]
fn rkd_does_not_depend_on_scale() {
    fn assert_scale_free<T: Element, Dev: Device<T>>(device: &Dev, scales: &[f64], tolerance: f64) {
        let (x, y) = (numbers(N * D, 1.0), numbers(N * D, 2.0));
        for loss in rkd_losses(Rkd::default()) {
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
    assert_scale_free::<f64, _>(&Cpu, &[1e-150, 1e-30, 1e30, 1e150], 1e-12);
    assert_scale_free::<f32, _>(&Cpu, &[1e-30, 1e30], 1e-6);
    #[cfg(feature = "emulator")]
    assert_scale_free::<f32, _>(&relata::Emulator::new(), &[1e-30, 1e30], 1e-6);
}

// Squares of these lengths lose digits, vanish or overflow.
#[test]
fn cosines_and_rkd_of_normalized_rows_do_not_depend_on_their_length() {
    fn assert_right<T: Element, Dev: Device<T>>(device: &Dev) {
        let (lengths, tolerance): (&[f64], f64) = match T::DTYPE {
            DType::F64 => (&[1e-300, 1e-158, 1e150, 1e300], 1e-12),
            DType::F16 => (&[1e-5, 1e4], 1e-6),
            DType::BF16 => (&[1e-39, 1e-30, 1e37], 1e-6),
            _ => (&[1e-40, 1e-30, 1e37], 1e-6),
        };
        let normalized = Rkd {
            normalize: true,
            ..Rkd::default()
        };
        for &length in lengths {
            let [x, y] = [1.0, 2.0].map(|seed| -> Vec<f64> {
                numbers(N * D, seed).iter().map(|x| x * length).collect()
            });
            let data = cast::<T>(&x);
            let rows = Rows::new(&data, [N, D]).unwrap();
            let got = relation_matrix(device, Relation::Cosine, rows).unwrap();
            let want = relation_matrix(&Reference, Relation::Cosine, rows).unwrap();
            assert_gradient(
                &format!("cosines at {length:e} in {}", T::DTYPE),
                &got,
                &want,
                N,
                tolerance,
            );
            for loss in rkd_losses(normalized) {
                let got = evaluate::<T, _>(device, loss, &x, &y, D);
                let want = evaluate::<T, _>(&Reference, loss, &x, &y, D);
                let error = (got.loss - want.loss).abs() / want.loss;
                // Kernels round unit rows to f32, and two of these directions are close.
                let tolerance = 30.0 * tolerance;
                assert!(error <= tolerance, "{loss} at {length:e}: off by {error:e}");
            }
        }
    }
    on_every_device!(assert_right);
}

#[test]
fn checked_mode_names_the_first_bad_row() {
    let mut x = cast::<f32>(&numbers(N * D, 1.0));
    let y = x.clone();
    x[4 * D + 2] = f32::NAN;
    x[6 * D] = f32::INFINITY;
    let rows = |data| Rows::new(data, [N, D]).unwrap();
    let problem = Problem::new(KdKl::default(), Shapes::new(N, D, D))
        .unwrap()
        .with_checked(true);
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

// The products are a thousand or a million times the temperature. Their rounding alone decides
// whether all exponentials vanish.
#[test]
fn rrd_and_info_nce_of_raw_rows_of_any_length_are_right() {
    fn assert_right_at_length<T: Element>(length: f64) {
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
            .map(|capacity| Queue::new(capacity, D).unwrap().with_normalize(false))
            .into_iter()
            .map(|mut queue| queue.enqueue(y).map(|()| queue).unwrap())
            .collect();
        let with_queues = queues
            .iter()
            .map(|queue| Batch::new(x, y).with_queue(queue));
        let batches: Vec<_> = with_queues
            .clone()
            .map(|batch| (Loss::from(rrd), batch))
            .chain(with_queues.map(|batch| (info_nce.into(), batch)))
            .chain([(info_nce.into(), Batch::new(x, y))])
            .collect();
        for (loss, batch) in batches {
            let problem = Problem::new(loss, batch.shapes()).unwrap();
            let got = problem.evaluate(&Cpu, batch).unwrap();
            let want = problem.evaluate(&Reference, batch).unwrap();
            let shapes = batch.shapes();
            // The rounding of a logit, and so of the loss.
            let largest_logit = 10.0 * D as f64 * length * length / 0.02;
            let rounding = largest_logit * if T::DTYPE == DType::F64 { 1e-15 } else { 5e-7 };
            let error = (got.loss - want.loss).abs();
            assert!(
                error <= rounding,
                "{loss} {shapes:?}: {} for {}",
                got.loss,
                want.loss
            );
            let difference = got.gradient.iter().zip(&want.gradient);
            let difference: Vec<f64> = difference.map(|(g, w)| g.to_f64() - w).collect();
            let error = norm(&difference);
            assert!(
                error <= 1e-5 * (want.gradient_norm() + length),
                "{loss} {shapes:?}: gradient off by {error:e}, length {:e}",
                want.gradient_norm()
            );
        }
    }
    for length in [1.0, 1e3, 1e4] {
        assert_right_at_length::<f32>(length);
        assert_right_at_length::<f16>(length);
        assert_right_at_length::<bf16>(length);
    }
    for length in [1e3, 1e8, 1e9] {
        assert_right_at_length::<f64>(length);
    }
}

// The classes do not fill the last register of a row. The padding must not count, whatever the size
// of the logits.
#[test]
fn kd_and_softmax_are_right_at_any_temperature_and_size_of_logits() {
    fn assert_right_on<T: Element>(logits: &[f64], temperature: f64) {
        let classes = logits.len() / 2;
        let [x, y] = [&logits[..classes], &logits[classes..]].map(cast::<T>);
        let [x, y] = [&x, &y].map(|rows| Rows::new(rows, [1, classes]).unwrap());
        let loss = KdKl::new(temperature);
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
        // The loss needs the difference of the two rows' maxima, which is rounded with the logits.
        assert_right_on::<f32>(&scaled(1.0), 1e-30);
        assert_right_on::<f64>(&scaled(1.0), 1e-30);
        assert_right_on::<f16>(&scaled(1e4), 1e-9);
        assert_right_on::<f32>(&scaled(1e11), 4.0);
        assert_right_on::<f64>(&scaled(1e25), 4.0);
        // A row of a vocabulary with a mask, and a row that is all masked.
        let mut masked = logits.clone();
        for (at, x) in masked.iter_mut().enumerate() {
            if at % classes % 3 == 1 {
                *x = f64::from(f32::MIN);
            }
        }
        assert_right_on::<f32>(&masked, 1.0);
        assert_right_on::<f32>(&vec![f64::from(f32::MIN); 2 * classes], 4.0);
    }
}
