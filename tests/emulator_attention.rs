//! RRD and InfoNCE by their CUDA kernels, run thread for thread on the CPU, against the reference.
#![cfg(feature = "emulator")]

mod common;

use common::Input;
use common::against::as_stored;
use common::cases::{self, Case, Data};
use common::compare::{
    assert_gradient, assert_loss, assert_same_bits, assert_zero, relative_error,
};
use common::tolerances::{Tolerance, naive, tolerance};
use half::{bf16, f16};
use relata::{
    Batch, DType, Element, Emulator, Evaluation, GpuElement, InfoNce, Loss, Problem, Queue,
    Reference, Rows, Rrd, Shapes,
};

/// A seed whose schedule is shuffled and whose inputs are not aligned.
const SEED: u64 = 1;

/// What rounding the keys to f16 changes: each element by 2^-13 or so of itself, and each logit by as much of
/// a product of rows of length 1, over τ, less what evens out over D.
fn rounding_of_keys(loss: &Loss, dim: usize) -> Tolerance {
    let tau = match loss {
        Loss::Rrd(loss) => loss.student_temperature.min(loss.teacher_temperature),
        Loss::InfoNce(loss) => loss.temperature,
        _ => unreachable!(),
    };
    let of_logit = 1.5e-4 / (tau * (dim as f64).sqrt());
    Tolerance {
        loss: of_logit,
        gradient: 4e-4 + of_logit,
    }
}

/// By how much the kind of data magnifies the rounding of a loss and of its gradient.
fn conditioning(data: Data) -> Tolerance {
    let (loss, gradient) = match data {
        // The distributions, each rounded, differ by the noise, and the divergence by its square.
        Data::NearTeacher { noise } => (1.0 / (noise * noise), 1.0 / noise),
        Data::Teacher => (1e4, 1e2),
        _ => (1.0, 1.0),
    };
    Tolerance { loss, gradient }
}

fn assert_close(
    name: &str,
    problem: &Problem,
    got: &Evaluation<f32>,
    want: &Evaluation<f64>,
    within: Tolerance,
) {
    assert_loss(name, got.loss, want.loss, within.loss);
    assert_gradient(
        name,
        &got.gradient,
        &want.gradient,
        problem.shapes().student_dim,
        within.gradient,
    );
    assert_eq!(got.kl.is_some(), want.kl.is_some(), "{name}");
    if let (Loss::Rrd(loss), Some(got), Some(kl)) = (problem.loss(), got.kl, want.kl) {
        // A difference of the cross-entropy and the entropy, each rounded like its logits, by ε/τ.
        let tau = loss.student_temperature.min(loss.teacher_temperature);
        let unit = f64::from(f32::EPSILON) / tau;
        let error = (got - kl).abs();
        assert!(
            error <= 2.0 * within.loss * want.loss.abs() + unit,
            "{name}: KL {got:e}, want {kl:e}"
        );
    }
}

/// The emulator against the reference, with what a type's own rounding allows; the keys as they are stored.
fn check<T: GpuElement<Real = f32>>(
    name: &str,
    problem: &Problem,
    batch: Batch<'_, T>,
    data: Data,
) {
    let name = format!("{name} in {}", T::DTYPE);
    let keys = batch
        .queue
        .map(|queue| as_stored::<T>(queue, problem.loss()));
    let mut as_stored = batch;
    as_stored.queue = keys.as_ref();
    let got = problem
        .evaluate(&Emulator::new().seed(SEED), as_stored)
        .expect("a batch that fits");
    let want = problem
        .evaluate(&Reference, as_stored)
        .expect("a batch that fits");
    let (table, conditioning) = (tolerance(problem.loss(), T::DTYPE), conditioning(data));
    let within = Tolerance {
        loss: table.loss * conditioning.loss,
        gradient: table.gradient * conditioning.gradient,
    };
    assert_close(&name, problem, &got, &want, within);

    if keys.is_some() && T::DTYPE != DType::F32 {
        let exact = problem
            .evaluate(&Reference, batch)
            .expect("a batch that fits");
        let rounding = rounding_of_keys(problem.loss(), problem.shapes().student_dim);
        let within = Tolerance {
            loss: within.loss + rounding.loss * conditioning.loss,
            gradient: within.gradient + rounding.gradient * conditioning.gradient,
        };
        // The keys are rounded on their way to the device, and that is all that differs.
        let rounded = problem
            .evaluate(&Emulator::new().seed(SEED), batch)
            .expect("a batch that fits");
        assert_same_bits(&name, &rounded.gradient, &got.gradient);
        assert_close(
            &format!("{name}, keys in f32"),
            problem,
            &rounded,
            &exact,
            within,
        );
    }
}

#[test]
fn every_case_in_every_dtype() {
    fn check_case<T: GpuElement<Real = f32>>(case: &Case) {
        let inputs = case.inputs::<T>();
        check(&case.name, &inputs.problem, inputs.batch(), case.data);
    }
    for case in cases::tests().filter(|case| matches!(case.loss, Loss::Rrd(_) | Loss::InfoNce(_))) {
        check_case::<f32>(&case);
        check_case::<f16>(&case);
        check_case::<bf16>(&case);
    }
}

/// A batch of these shapes.
fn check_input(name: &str, loss: Loss, input: &Input) {
    fn check_as<T: GpuElement<Real = f32>>(name: &str, loss: Loss, input: &Input) {
        let (student, teacher) = (
            common::cast::<T>(&input.student),
            common::cast::<T>(&input.teacher),
        );
        let shape = [input.shapes.rows, input.shapes.student_dim];
        let queue = input.queue::<T>();
        let mut batch = Batch::new(
            Rows::new(&student, shape).expect("whole rows"),
            Rows::new(&teacher, shape).expect("whole rows"),
        );
        batch.queue = queue.as_ref();
        check(name, &input.problem(loss), batch, Data::Gaussian);
    }
    check_as::<f32>(name, loss, input);
    check_as::<f16>(name, loss, input);
    check_as::<bf16>(name, loss, input);
}

const ROWS: [usize; 4] = [1, 3, 17, 65];
const KEYS: [usize; 6] = [1, 5, 63, 64, 65, 200];
const DIMS: [usize; 11] = [1, 3, 7, 16, 20, 64, 65, 128, 130, 256, 300];

#[test]
fn every_shape() {
    for (i, &dim) in DIMS.iter().enumerate() {
        for (j, &keys) in KEYS.iter().enumerate() {
            let rows = ROWS[(i + j) % ROWS.len()];
            let name = format!("{rows}x{dim} K {keys}");
            let input = Input::normal(
                (100 * i + j) as u64,
                Shapes::new(rows, dim, dim).with_queue(keys),
            );
            let rrd = Rrd {
                student_temperature: 0.2,
                teacher_temperature: 0.1,
                ..Rrd::default()
            };
            if (i + j) % 2 == 0 {
                check_input(&format!("rrd {name}"), rrd.into(), &input);
            } else {
                check_input(
                    &format!("info-nce {name}"),
                    InfoNce::default().into(),
                    &input,
                );
            }
        }
        let rows = [1, 2, 17, 65, 130][i % 5];
        let input = Input::normal(7 + i as u64, Shapes::new(rows, dim, dim));
        check_input(
            &format!("info-nce {rows}x{dim}"),
            InfoNce::default().into(),
            &input,
        );
    }
}

#[test]
fn the_same_bits_on_any_schedule() {
    fn same<T: GpuElement<Real = f32>>(loss: Loss, shapes: Shapes) {
        let input = Input::normal(11, shapes);
        let first = input.evaluate::<T, _>(&Emulator::new(), loss);
        for seed in 1..5 {
            let name = format!("{loss} {shapes:?} in {}, seed {seed}", T::DTYPE);
            let again = input.evaluate::<T, _>(&Emulator::new().seed(seed), loss);
            assert_same_bits(&name, &again.gradient, &first.gradient);
            assert_eq!(again.loss.to_bits(), first.loss.to_bits(), "{name}");
            assert_eq!(
                again.kl.map(f64::to_bits),
                first.kl.map(f64::to_bits),
                "{name}"
            );
        }
    }
    for dim in [20, 130, 300] {
        let shapes = Shapes::new(17, dim, dim);
        for (loss, shapes) in [
            (Loss::from(Rrd::default()), shapes.with_queue(200)),
            (InfoNce::default().into(), shapes.with_queue(65)),
            (InfoNce::default().into(), shapes),
        ] {
            same::<f32>(loss, shapes);
            same::<f16>(loss, shapes);
            same::<bf16>(loss, shapes);
        }
    }
}

/// O_s − O_t cancels as the student converges. f32 is held to what the definition in f32 gives, twice over;
/// f16 to what forming q − p before rounding would give, 2.2e-4 whatever the divergence, although weights
/// are rounded in one pass: as pairs of f16.
#[test]
fn near_convergence() {
    let (n, dim, keys) = (6, 64, 1024);
    let loss = Rrd {
        student_temperature: 0.1,
        teacher_temperature: 0.1,
        ..Rrd::default()
    };
    for (kl, noise) in [(0.2, 0.87), (4e-3, 0.103), (4e-5, 0.0103)] {
        let mut errors = [[0.0f64; 3]; 3];
        for seed in 0..3u64 {
            let mut input = Input::normal(seed, Shapes::new(n, dim, dim).with_queue(keys));
            for (x, y) in input.student.iter_mut().zip(&input.teacher) {
                *x = y + noise * *x;
            }
            errors[0][seed as usize] = error_of::<f32>(&input, loss, kl);
            errors[1][seed as usize] = error_of::<f16>(&input, loss, kl);
            let (x, y) = (
                common::cast::<f32>(&input.student),
                common::cast::<f32>(&input.teacher),
            );
            let queue = input.queue::<f32>().expect("a queue");
            let (_, gradient) = naive::rrd(&x, &y, queue.keys(), dim, [0.1, 0.1]);
            let want = input.evaluate::<f32, _>(&Reference, loss);
            errors[2][seed as usize] = relative_error(&gradient, &want.gradient);
        }
        let [single, half, naive] = errors.map(|e| e.iter().sum::<f64>() / 3.0);
        println!("KL {kl}: f32 {single:.1e}, naive {naive:.1e}, f16 {half:.1e}");
        assert!(
            single <= 2.0 * naive,
            "KL {kl}: {single:e}, the definition in f32 {naive:e}"
        );
        assert!(half <= 2.2e-4, "KL {kl}: {half:e}");
    }

    fn error_of<T: GpuElement<Real = f32>>(input: &Input, loss: Rrd, kl: f64) -> f64 {
        let (student, teacher) = (
            common::cast::<T>(&input.student),
            common::cast::<T>(&input.teacher),
        );
        let shape = [input.shapes.rows, input.shapes.student_dim];
        let queue = as_stored::<T>(&input.queue::<T>().expect("a queue"), &loss.into());
        let batch = Batch::new(
            Rows::new(&student, shape).expect("whole rows"),
            Rows::new(&teacher, shape).expect("whole rows"),
        )
        .with_queue(&queue);
        let problem = input.problem(loss);
        let got = problem
            .evaluate(&Emulator::new().seed(SEED), batch)
            .expect("a batch that fits");
        let want = problem
            .evaluate(&Reference, batch)
            .expect("a batch that fits");
        let divergence = want.kl.expect("RRD's KL");
        assert!(
            divergence > 0.3 * kl && divergence < 3.0 * kl,
            "KL {divergence:e}, wanted {kl:e}"
        );
        relative_error(&got.gradient, &want.gradient)
    }
}

#[test]
fn temperatures_far_from_one() {
    for tau in [1e-30, 1e-9, 0.02, 1e9, 1e30] {
        for dim in [16, 300] {
            let queued = Input::normal(3, Shapes::new(5, dim, dim).with_queue(130));
            let batch = Input::normal(4, Shapes::new(5, dim, dim));
            let info_nce = InfoNce {
                temperature: tau,
                ..InfoNce::default()
            };
            let rrd = Rrd {
                student_temperature: 0.1,
                teacher_temperature: tau,
                ..Rrd::default()
            };
            for (loss, input) in [
                (Loss::from(rrd), &queued),
                (info_nce.into(), &queued),
                (info_nce.into(), &batch),
            ] {
                let got = input.evaluate::<f32, _>(&Emulator::new(), loss);
                let want = input.evaluate::<f32, _>(&Reference, loss);
                let name = format!("{loss} tau {tau} D {dim}");
                assert_loss(&name, got.loss, want.loss, 1e-5);
                let error = relative_error(&got.gradient, &want.gradient);
                assert!(
                    error <= 1e-5 || want.gradient_norm() < 1e-25,
                    "{name}: {error:e}"
                );
                let half = input.evaluate::<f16, _>(&Emulator::new(), loss);
                assert!(
                    half.loss.is_finite() && half.gradient.iter().all(|g| g.is_finite()),
                    "{name}"
                );
            }
        }
    }
}

/// ‖x‖² beyond f16, and rows down to its least numbers.
#[test]
fn rows_of_any_length() {
    for (factor, label) in [(2000.0, "large"), (1e-4, "small")] {
        let mut queued = Input::normal(5, Shapes::new(17, 128, 128).with_queue(70));
        let mut batch = Input::normal(6, Shapes::new(17, 128, 128));
        for input in [&mut queued, &mut batch] {
            input.student.iter_mut().for_each(|x| *x *= factor);
            input.teacher.iter_mut().for_each(|x| *x *= factor);
        }
        check_input(&format!("rrd {label}"), Rrd::default().into(), &queued);
        check_input(
            &format!("info-nce {label}"),
            InfoNce::default().into(),
            &queued,
        );
        check_input(
            &format!("info-nce {label}, batch"),
            InfoNce::default().into(),
            &batch,
        );
    }
    // Beyond what f32 can square.
    for factor in [1e37, 1e-42] {
        let mut input = Input::normal(8, Shapes::new(5, 20, 20).with_queue(70));
        input.student.iter_mut().for_each(|x| *x *= factor);
        input.teacher.iter_mut().for_each(|x| *x *= factor);
        let got = input.evaluate::<f32, _>(&Emulator::new(), Rrd::default());
        let want = input.evaluate::<f32, _>(&Reference, Rrd::default());
        assert_loss(&format!("times {factor}"), got.loss, want.loss, 1e-5);
    }
}

#[test]
fn rows_of_zeros() {
    for dim in [7, 65, 300] {
        for keys in [None, Some(65)] {
            let mut shapes = Shapes::new(5, dim, dim);
            shapes.queue = keys;
            let mut input = Input::normal(9, shapes);
            input.student[dim..2 * dim].fill(0.0);
            input.teacher[3 * dim..4 * dim].fill(0.0);
            let mut losses = vec![Loss::from(InfoNce::default())];
            losses.extend(keys.map(|_| Loss::from(Rrd::default())));
            for loss in losses {
                let name = format!("{loss} {shapes:?}");
                check_input(&name, loss, &input);
                let got = input.evaluate::<f16, _>(&Emulator::new(), loss);
                assert_zero(&name, &got.gradient[dim..2 * dim]);
            }
        }
    }
}

#[test]
fn rows_that_are_not_finite() {
    fn loss_is_nan<T: GpuElement<Real = f32>>(loss: Loss, input: &Input) {
        let got = input.evaluate::<T, _>(&Emulator::new().seed(SEED), loss);
        let name = format!("{loss} {:?} in {}: {}", input.shapes, T::DTYPE, got.loss);
        assert!(got.loss.is_nan(), "{name}");
        assert!(got.kl.is_none_or(f64::is_nan), "{name}");
    }
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        for (rows, dim) in [(1, 7), (3, 65), (3, 300)] {
            for keys in [None, Some(70)] {
                for normalize in [true, false] {
                    let mut shapes = Shapes::new(rows, dim, dim);
                    shapes.queue = keys;
                    let mut losses = vec![Loss::from(InfoNce {
                        normalize,
                        ..InfoNce::default()
                    })];
                    losses.extend(keys.map(|_| {
                        Loss::from(Rrd {
                            normalize,
                            ..Rrd::default()
                        })
                    }));
                    for loss in losses {
                        for at in [0, rows * dim - 1] {
                            let clean = Input::normal(10, shapes);
                            let (mut of_student, mut of_teacher) = (clean.clone(), clean);
                            of_student.student[at] = bad;
                            of_teacher.teacher[at] = bad;
                            for input in [&of_student, &of_teacher] {
                                loss_is_nan::<f32>(loss, input);
                                loss_is_nan::<f16>(loss, input);
                            }
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn the_upstream_factor_scales_the_gradient_alone() {
    let input = Input::normal(12, Shapes::new(3, 20, 20).with_queue(5));
    for loss in [Loss::from(Rrd::default()), InfoNce::default().into()] {
        let problem = input.problem(loss);
        let one = input.run::<f16, _>(&Emulator::new(), &problem);
        let four = input.run::<f16, _>(&Emulator::new(), &problem.upstream(-4.0));
        assert_eq!(one.loss.to_bits(), four.loss.to_bits());
        let scaled: Vec<f32> = one.gradient.iter().map(|g| -4.0 * g).collect();
        assert_same_bits("upstream", &four.gradient, &scaled);
    }
}
