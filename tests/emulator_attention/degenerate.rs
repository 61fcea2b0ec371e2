//! Rows without a direction, and rows that are not numbers.

use half::f16;
use relata::{Emulator, GpuElement, InfoNce, Loss, Rrd, Shapes, WeightPrecision};

use crate::common::Input;
use crate::common::compare::assert_zero;
use crate::right::{SEED, assert_input_right};

#[test]
fn rows_of_zeros_are_right_and_have_no_gradient() {
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
                assert_input_right(&name, loss, &input);
                let got = input.evaluate::<f16, _>(&Emulator::new(), loss);
                assert_zero(&name, &got.gradient[dim..2 * dim]);
            }
        }
    }
}

#[test]
fn rows_that_are_not_finite_make_the_loss_nan() {
    fn loss_is_nan<T: GpuElement<Real = f32>>(loss: Loss, input: &Input, weights: WeightPrecision) {
        let problem = input.problem(loss).with_weight_precision(weights);
        let got = input.run::<T, _>(&Emulator::new().seed(SEED), &problem);
        let name = format!(
            "{loss} {:?} in {}, {weights:?}: {}",
            input.shapes,
            T::DTYPE,
            got.loss
        );
        assert!(got.loss.is_nan(), "{name}");
        assert!(got.term("kl").is_none_or(f64::is_nan), "{name}");
    }
    for bad in [f64::NAN, f64::NEG_INFINITY] {
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
                                loss_is_nan::<f32>(loss, input, WeightPrecision::Split);
                                loss_is_nan::<f16>(loss, input, WeightPrecision::Split);
                                loss_is_nan::<f16>(loss, input, WeightPrecision::Half);
                            }
                        }
                    }
                }
            }
        }
    }
}
