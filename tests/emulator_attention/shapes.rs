//! Every shape and type, on any schedule.

use half::{bf16, f16};
use relata::{Emulator, GpuElement, InfoNce, Loss, Rrd, Shapes, WeightPrecision};

use crate::check::{check, check_input};
use crate::common::Input;
use crate::common::cases::{self, Case};
use crate::common::compare::assert_same_bits;
use crate::common::compare_to_reference::assert_half_weights_right;

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

#[test]
fn weights_in_one_f16_are_right() {
    for case in cases::tests() {
        assert_half_weights_right::<f16, _>(&Emulator::new(), &case);
        assert_half_weights_right::<bf16, _>(&Emulator::new(), &case);
    }
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

/// One warp adds up the losses of all rows, some hundreds at a time.
#[test]
fn many_rows() {
    let shapes = Shapes::new(1100, 8, 8);
    let queued = Input::normal(13, shapes.with_queue(70));
    check_input("rrd of many rows", Rrd::default().into(), &queued);
    let info_nce = InfoNce::default().into();
    check_input("info-nce of many rows", info_nce, &queued);
    check_input(
        "info-nce of a large batch",
        info_nce,
        &Input::normal(14, shapes),
    );
}

#[test]
fn the_same_bits_on_any_schedule() {
    fn same<T: GpuElement<Real = f32>>(loss: Loss, shapes: Shapes, weights: WeightPrecision) {
        let input = Input::normal(11, shapes);
        let problem = input.problem(loss).weights(weights);
        let first = input.run::<T, _>(&Emulator::new(), &problem);
        for seed in 1..5 {
            let name = format!(
                "{loss} {shapes:?} in {}, {weights:?}, seed {seed}",
                T::DTYPE
            );
            let again = input.run::<T, _>(&Emulator::new().seed(seed), &problem);
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
            same::<f32>(loss, shapes, WeightPrecision::Split);
            same::<f16>(loss, shapes, WeightPrecision::Split);
            same::<bf16>(loss, shapes, WeightPrecision::Split);
            same::<bf16>(loss, shapes, WeightPrecision::Half);
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
