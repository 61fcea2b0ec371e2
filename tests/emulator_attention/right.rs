//! The emulator against the reference on one batch of RRD or InfoNCE.

use half::{bf16, f16};
use relata::{DType, Emulator, GpuElement, Loss, WeightPrecision};

use crate::common::Input;
use crate::common::cases::{Data, Inputs};
use crate::common::compare::assert_same_bits;
use crate::common::compare_to_reference::Comparison;
use crate::common::tolerances::{conditioning, rounding_of_keys};

/// A seed with a shuffled schedule and with inputs that are not aligned.
pub(crate) const SEED: u64 = 1;

/// Asserts that the emulator is right on the keys as it stores them, to what the type's own
/// rounding allows; and on the keys as they come, to what rounding the keys changes.
pub(crate) fn assert_right<T: GpuElement<Real = f32>>(name: &str, inputs: Inputs<T>, data: Data) {
    let emulator = Emulator::new().seed(SEED);
    let as_they_come = Comparison::of_data(
        &emulator,
        &format!("{name}, keys in f32"),
        inputs.clone(),
        data,
    );
    let stored = Comparison::of_data(&emulator, name, inputs, data).keys_as_stored();
    let got = stored.evaluate();
    stored.assert_right(&got);

    let problem = &stored.inputs.problem;
    if stored.inputs.queue.is_some() && T::DTYPE != DType::F32 {
        let rounding = rounding_of_keys(problem.loss(), problem.shapes().student_dim);
        let rounding = rounding.magnified(conditioning(data, T::DTYPE));
        let as_they_come = as_they_come.and_within(rounding);
        let rounded = as_they_come.evaluate();
        as_they_come.assert_right(&rounded);
        // The keys are rounded on their way to the device, and nothing else differs.
        assert_same_bits(&as_they_come.name, &rounded.gradient, &got.gradient);
    }
}

/// Asserts that the emulator is right on a batch of these numbers in every type; in half types,
/// with weights of either precision.
pub(crate) fn assert_input_right(name: &str, loss: Loss, input: &Input) {
    fn assert_right_in<T: GpuElement<Real = f32>>(name: &str, loss: Loss, input: &Input) {
        let problem = input.problem(loss);
        assert_right(name, input.inputs::<T>(&problem), Data::Gaussian);
        if T::DTYPE != DType::F32 {
            let half = problem.with_weight_precision(WeightPrecision::Half);
            let name = format!("{name}, weights in f16");
            assert_right(&name, input.inputs::<T>(&half), Data::Gaussian);
        }
    }
    assert_right_in::<f32>(name, loss, input);
    assert_right_in::<f16>(name, loss, input);
    assert_right_in::<bf16>(name, loss, input);
}
