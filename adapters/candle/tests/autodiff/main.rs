//! Compares gradients through the adapter with candle's own autodiff of the formulas: in graphs,
//! and for views. The formulas are differentiated in f64 on the CPU. The adapter runs on the CPU
//! and, with the feature `cuda` and a GPU, on the GPU.

mod cases;
mod devices;
mod formulas;
mod graphs;
mod groups;
mod halves;
mod masks;
mod prefixes;
mod rows;
mod scale;
mod steps;
mod terms;
mod towers;
mod views;

use candle_core::{DType, Device, Result, Tensor, Var};

use crate::cases::{Case, numbers};

/// The rounding error allowed in f32: ‖got − want‖ / ‖want‖.
pub(crate) const F32: f64 = 1e-5;

/// The gradients with respect to `variables`, f64.
pub(crate) fn gradients(loss: &Tensor, variables: &[&Var]) -> Result<Vec<Tensor>> {
    let gradients = loss.backward()?;
    let of = |variable: &&Var| {
        let gradient = gradients.get(variable).expect("a gradient");
        assert_eq!(gradient.dtype(), variable.dtype());
        assert_eq!(gradient.dims(), variable.dims());
        gradient.to_device(&Device::Cpu)?.to_dtype(DType::F64)
    };
    variables.iter().map(of).collect()
}

/// Asserts ‖got − want‖ ≤ tolerance · ‖want‖. A NaN fails.
#[track_caller]
pub(crate) fn assert_close(label: &str, got: &Tensor, want: &Tensor, tolerance: f64) -> Result<()> {
    let got = got.to_device(&Device::Cpu)?;
    let norm = |x: &Tensor| {
        x.to_dtype(DType::F64)?
            .sqr()?
            .sum_all()?
            .sqrt()?
            .to_scalar::<f64>()
    };
    let error = norm(&(got.to_dtype(DType::F64)? - want)?)?;
    let unit = norm(want)?;
    assert!(unit > 0., "{label}: nothing to compare with");
    assert!(
        error <= tolerance * unit,
        "{label}: off by {:.2e}, allowed {tolerance:.0e}",
        error / unit
    );
    Ok(())
}

/// Checks `case` in the graph that `around` builds with it, for student and teacher of `dtype` and
/// of these shapes.
#[track_caller]
pub(crate) fn check(
    label: &str,
    case: &Case,
    shapes: [(usize, usize); 2],
    dtype: DType,
    tolerance: f64,
    around: impl Fn(&Tensor, &dyn Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor>,
) -> Result<()> {
    let label = format!("{}, {label}, {shapes:?}, {dtype:?}", case.name);
    // Only values that the type can hold, so that the comparison is about arithmetic.
    let held = |x: Tensor| x.to_dtype(dtype)?.to_dtype(DType::F64);
    let (x, y) = (held(numbers(shapes[0], 1)?)?, held(numbers(shapes[1], 2)?)?);

    let student = Var::from_tensor(&x)?;
    let want = around(&student, &|student| (case.formula)(student, &y))?;
    let want_gradient = &gradients(&want, &[&student])?[0];

    for device in devices::computing(dtype) {
        let label = format!("{label}, {:?}", device.location());
        let student = Var::from_tensor(&x.to_dtype(dtype)?.to_device(&device)?)?;
        let teacher = y.to_dtype(dtype)?.to_device(&device)?;
        let got = around(&student, &|student| (case.fused)(student, &teacher))?;
        let got_gradient = &gradients(&got, &[&student])?[0];
        assert_close(&format!("{label}: loss"), &got, &want, tolerance)?;
        assert_close(
            &format!("{label}: gradient"),
            got_gradient,
            want_gradient,
            tolerance,
        )?;
    }
    Ok(())
}
