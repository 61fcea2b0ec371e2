//! Every shape and type, on any schedule.

use half::{bf16, f16};
use relata::{Emulator, Family, GpuElement, InfoNce, Loss, Rrd, Shapes, WeightPrecision};

use crate::common::Input;
use crate::common::cases::{self, Case};
use crate::common::compare::assert_same_bits;
use crate::common::compare_to_reference::assert_half_weights_right;
use crate::right::{assert_input_right, assert_right};

#[test]
fn kernels_agree_with_the_reference_on_every_case_in_every_dtype() {
    fn assert_case_right<T: GpuElement<Real = f32>>(case: &Case) {
        assert_right::<T>(&case.name, case.inputs(), case.data);
    }
    let has_keys = |case: &Case| matches!(case.loss.spec().family, Family::Contrastive(_));
    for case in cases::tests().filter(has_keys) {
        assert_case_right::<f32>(&case);
        assert_case_right::<f16>(&case);
        assert_case_right::<bf16>(&case);
    }
}

#[test]
fn weights_in_one_f16_are_right_on_every_case() {
    for case in cases::tests() {
        assert_half_weights_right::<f16, _>(&Emulator::new(), &case);
        assert_half_weights_right::<bf16, _>(&Emulator::new(), &case);
    }
}

const ROWS: [usize; 4] = [1, 3, 17, 65];
const KEYS: [usize; 6] = [1, 5, 63, 64, 65, 200];
const DIMS: [usize; 11] = [1, 3, 7, 16, 20, 64, 65, 128, 130, 256, 300];

#[test]
fn kernels_are_right_for_every_shape() {
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
                assert_input_right(&format!("rrd {name}"), rrd.into(), &input);
            } else {
                assert_input_right(
                    &format!("info-nce {name}"),
                    InfoNce::default().into(),
                    &input,
                );
            }
        }
        let rows = [1, 2, 17, 65, 130][i % 5];
        let input = Input::normal(7 + i as u64, Shapes::new(rows, dim, dim));
        assert_input_right(
            &format!("info-nce {rows}x{dim}"),
            InfoNce::default().into(),
            &input,
        );
    }
}

/// One warp adds up the losses of all rows, hundreds at a time.
#[test]
fn kernels_are_right_for_many_rows() {
    let shapes = Shapes::new(1100, 8, 8);
    let queued = Input::normal(13, shapes.with_queue(70));
    assert_input_right("rrd of many rows", Rrd::default().into(), &queued);
    let info_nce = InfoNce::default().into();
    assert_input_right("info-nce of many rows", info_nce, &queued);
    assert_input_right(
        "info-nce of a large batch",
        info_nce,
        &Input::normal(14, shapes),
    );
}

#[test]
fn kernels_give_the_same_bits_under_any_schedule() {
    fn assert_same<T: GpuElement<Real = f32>>(
        loss: Loss,
        shapes: Shapes,
        weights: WeightPrecision,
    ) {
        let input = Input::normal(11, shapes);
        let problem = input.problem(loss).with_weight_precision(weights);
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
                again.term("kl").map(f64::to_bits),
                first.term("kl").map(f64::to_bits),
                "{name}"
            );
        }
    }
    // Rows of 24 elements are whole multiples of 16 bytes. The seeds shift student and teacher, and
    // each of them alone.
    for dim in [20, 24, 130, 300] {
        let shapes = Shapes::new(17, dim, dim);
        for (loss, shapes) in [
            (Loss::from(Rrd::default()), shapes.with_queue(200)),
            (InfoNce::default().into(), shapes.with_queue(65)),
            (InfoNce::default().into(), shapes),
        ] {
            assert_same::<f32>(loss, shapes, WeightPrecision::Split);
            assert_same::<f16>(loss, shapes, WeightPrecision::Split);
            assert_same::<bf16>(loss, shapes, WeightPrecision::Split);
            assert_same::<bf16>(loss, shapes, WeightPrecision::Half);
        }
    }
}

#[test]
fn upstream_factor_scales_only_the_gradient() {
    let input = Input::normal(12, Shapes::new(3, 20, 20).with_queue(5));
    for loss in [Loss::from(Rrd::default()), InfoNce::default().into()] {
        let problem = input.problem(loss);
        let one = input.run::<f16, _>(&Emulator::new(), &problem);
        let four = input.run::<f16, _>(&Emulator::new(), &problem.with_upstream(-4.0));
        assert_eq!(one.loss.to_bits(), four.loss.to_bits());
        let scaled: Vec<f32> = one.gradient.iter().map(|g| -4.0 * g).collect();
        assert_same_bits("upstream", &four.gradient, &scaled);
    }
}
