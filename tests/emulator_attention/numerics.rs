//! Where rounding shows: near convergence, at extreme temperatures, in rows of extreme length.

use half::{bf16, f16};
use relata::{
    Emulator, GpuElement, InfoNce, Loss, Problem, Reference, Rrd, Shapes, WeightPrecision,
};

use crate::common::cases::Inputs;
use crate::common::compare::{assert_loss, assert_same_bits, relative_error};
use crate::common::compare_to_reference::as_stored;
use crate::common::{self, Input, naive};
use crate::right::{SEED, assert_input_right};

/// O_s − O_t cancels as the student converges.
///
/// - f32 may be off by twice what the definition in f32 is off by.
/// - f16 may be off by 2.2e-4, whatever the divergence: by what forming q − p before rounding would
///   give. The kernels round the weights in one pass, as pairs of f16.
/// - Weights in one f16 may be off by √8 · 5.5e-5. Rounding the weights of student and teacher
///   separately would give 5.5e-5, 4.3e-4 and 4.1e-3 with 16384 keys. The test has an eighth of
///   these keys, so √8 fewer roundings even out.
#[test]
fn gradients_stay_exact_near_convergence() {
    let (n, dim, keys) = (4, 128, 2048);
    let loss = Rrd {
        student_temperature: 0.1,
        teacher_temperature: 0.1,
        ..Rrd::default()
    };
    for (kl, noise) in [(0.2, 0.87), (4e-3, 0.103), (4e-5, 0.0103)] {
        let mut errors = [[0.0f64; 3]; 4];
        for seed in 0..3u64 {
            let mut input = Input::normal(seed, Shapes::new(n, dim, dim).with_queue(keys));
            for (x, y) in input.student.iter_mut().zip(&input.teacher) {
                *x = y + noise * *x;
            }
            let [split, one] = [WeightPrecision::Split, WeightPrecision::Half];
            errors[0][seed as usize] = error_of::<f32>(&input, loss, kl, split);
            errors[1][seed as usize] = error_of::<f16>(&input, loss, kl, split);
            errors[3][seed as usize] = error_of::<f16>(&input, loss, kl, one);
            let (x, y) = (
                common::cast::<f32>(&input.student),
                common::cast::<f32>(&input.teacher),
            );
            let queue = input.queue::<f32>().expect("a queue");
            let (_, gradient) = naive::rrd(&x, &y, queue.keys(), dim, [0.1, 0.1]);
            let want = input.evaluate::<f32, _>(&Reference, loss);
            errors[2][seed as usize] = relative_error(&gradient, &want.gradient);
        }
        let [single, half, naive, one] = errors.map(|e| e.iter().sum::<f64>() / 3.0);
        println!(
            "KL {kl}: f32 {single:.1e}, naive {naive:.1e}, f16 {half:.1e}, weights in one f16 {one:.1e}"
        );
        assert!(
            single <= 2.0 * naive,
            "KL {kl}: {single:e}, the definition in f32 {naive:e}"
        );
        assert!(half <= 2.2e-4, "KL {kl}: {half:e}");
        assert!(
            one <= 5.5e-5 * 8f64.sqrt(),
            "KL {kl}: weights in one f16 {one:e}"
        );
    }

    fn error_of<T: GpuElement<Real = f32>>(
        input: &Input,
        loss: Rrd,
        kl: f64,
        weights: WeightPrecision,
    ) -> f64 {
        let inputs =
            inputs_as_stored::<T>(input, &input.problem(loss).with_weight_precision(weights));
        let got = inputs.evaluate(&Emulator::new().seed(SEED));
        let want = inputs.evaluate(&Reference);
        let divergence = want.term("kl").expect("RRD's KL");
        assert!(
            divergence > 0.3 * kl && divergence < 3.0 * kl,
            "KL {divergence:e}, wanted {kl:e}"
        );
        relative_error(&got.gradient, &want.gradient)
    }
}

#[test]
fn kernels_are_right_at_temperatures_far_from_one() {
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
                assert_f16_right(&format!("{name} in f16"), loss, input);
            }
        }
    }
}

/// `input` with the keys as the device stores them.
fn inputs_as_stored<T: GpuElement<Real = f32>>(input: &Input, problem: &Problem) -> Inputs<T> {
    let mut inputs = input.inputs::<T>(problem);
    let queue = inputs.queue.take();
    inputs.queue = queue.map(|queue| as_stored::<T>(&queue, problem.loss()));
    inputs
}

/// Asserts that f16 agrees with the reference on keys as they are stored, with weights of either
/// precision. Logits are as exact as f32, ε/τ. At temperatures below ε the softmax may be anything
/// finite.
fn assert_f16_right(name: &str, loss: Loss, input: &Input) {
    let problem = input.problem(loss);
    let mut inputs = inputs_as_stored::<f16>(input, &problem);
    let want = inputs.evaluate(&Reference);
    for (weights, within) in [
        (WeightPrecision::Split, 1e-5),
        (WeightPrecision::Half, 1e-3),
    ] {
        inputs.problem = problem.with_weight_precision(weights);
        let got = inputs.evaluate(&Emulator::new());
        assert!(
            got.loss.is_finite() && got.gradient.iter().all(|g| g.is_finite()),
            "{name}"
        );
        assert_loss(name, got.loss, want.loss, 1e-5);
        let error = relative_error(&got.gradient, &want.gradient);
        assert!(
            error <= within || want.gradient_norm() < 1e-25,
            "{name}, {weights:?}: {error:e}"
        );
    }
}

/// Rows with ‖x‖² beyond f16, and rows of f16's least numbers.
#[test]
fn kernels_are_right_for_rows_of_any_length() {
    for (factor, label) in [(2000.0, "large"), (1e-4, "small")] {
        let mut queued = Input::normal(5, Shapes::new(17, 128, 128).with_queue(70));
        let mut batch = Input::normal(6, Shapes::new(17, 128, 128));
        for input in [&mut queued, &mut batch] {
            input.student.iter_mut().for_each(|x| *x *= factor);
            input.teacher.iter_mut().for_each(|x| *x *= factor);
        }
        assert_input_right(&format!("rrd {label}"), Rrd::default().into(), &queued);
        assert_input_right(
            &format!("info-nce {label}"),
            InfoNce::default().into(),
            &queued,
        );
        assert_input_right(
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

/// Neither loss depends on the length of a row, and powers of two are exact. So the loss is the
/// same to the bit, even if squares are beyond f32, and the gradient grows as the rows shrink.
#[test]
fn rows_times_powers_of_two_change_no_loss() {
    fn assert_same<T: GpuElement<Real = f32>>(exponents: &[i32]) {
        for (seed, dim) in [(30, 20), (31, 128), (32, 130), (33, 300)] {
            let queued = Input::normal(seed, Shapes::new(17, dim, dim).with_queue(70));
            let batch = Input::normal(seed, Shapes::new(17, dim, dim));
            for (loss, input) in [
                (Loss::from(Rrd::default()), &queued),
                (InfoNce::default().into(), &queued),
                (InfoNce::default().into(), &batch),
            ] {
                let want = input.evaluate::<T, _>(&Emulator::new(), loss);
                for &exponent in exponents {
                    let factor = 2f64.powi(exponent);
                    let mut scaled = input.clone();
                    // Not all rows: each row of a block needs its own unit, or none.
                    let rows = 3 * dim..11 * dim;
                    scaled.student[rows.clone()]
                        .iter_mut()
                        .for_each(|x| *x *= factor);
                    scaled.teacher[5 * dim..]
                        .iter_mut()
                        .for_each(|x| *x *= factor);
                    let got = scaled.evaluate::<T, _>(&Emulator::new().seed(SEED), loss);
                    let name = format!("{loss} D {dim} in {}, rows times 2^{exponent}", T::DTYPE);
                    assert_eq!(got.loss.to_bits(), want.loss.to_bits(), "{name}");
                    assert_eq!(
                        got.term("kl").map(f64::to_bits),
                        want.term("kl").map(f64::to_bits),
                        "{name}"
                    );
                    let mut gradient = want.gradient.clone();
                    gradient[rows].iter_mut().for_each(|g| *g /= factor as f32);
                    assert_same_bits(&name, &got.gradient, &gradient);
                }
            }
        }
    }
    assert_same::<bf16>(&[-100, -45, 45, 100]);
    assert_same::<f32>(&[-100, 100]);
}

/// The loss and the divergence take their mean logits from weights that are not rounded, so they
/// are the same to the bit.
#[test]
fn weights_in_one_f16_change_only_the_gradient() {
    for [student_temperature, teacher_temperature] in [[0.1, 0.1], [0.1, 0.02], [0.02, 0.02]] {
        let loss = Rrd {
            student_temperature,
            teacher_temperature,
            ..Rrd::default()
        };
        let input = Input::normal(20, Shapes::new(8, 128, 128).with_queue(2048));
        let problem = input.problem(loss);
        let [split, half] = [WeightPrecision::Split, WeightPrecision::Half].map(|weights| {
            input.run::<f16, _>(&Emulator::new(), &problem.with_weight_precision(weights))
        });
        assert_eq!(half.loss.to_bits(), split.loss.to_bits());
        assert_eq!(
            half.term("kl").map(f64::to_bits),
            split.term("kl").map(f64::to_bits)
        );
        assert_ne!(half.gradient, split.gradient);
    }
}

/// Tensor cores truncate, which shifts the logits of a row. With the same rows and temperatures the
/// divergence is still 0, and near convergence it is off by less than 1e-7.
#[test]
fn divergence_is_exact_at_and_near_convergence() {
    let loss = Rrd {
        student_temperature: 0.02,
        teacher_temperature: 0.02,
        ..Rrd::default()
    };
    let mut input = Input::normal(21, Shapes::new(8, 128, 128).with_queue(1024));
    let noise = std::mem::replace(&mut input.student, input.teacher.clone());
    let run = |input: &Input| input.run::<f16, _>(&Emulator::new(), &input.problem(loss));
    assert_eq!(run(&input).term("kl"), Some(0.0));
    for (x, noise) in input.student.iter_mut().zip(noise) {
        *x += 1e-2 * noise;
    }
    let inputs = inputs_as_stored::<f16>(&input, &input.problem(loss));
    let got = inputs.evaluate(&Emulator::new());
    let want = inputs.evaluate(&Reference);
    let (got, want) = (
        got.term("kl").expect("RRD's KL"),
        want.term("kl").expect("RRD's KL"),
    );
    println!("KL {want:e}: off by {:e}", got - want);
    assert!((got - want).abs() < 1e-7, "{got:e}, {want:e}");
}
