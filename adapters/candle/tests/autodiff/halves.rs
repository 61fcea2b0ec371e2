//! Half types: sums are f32, and rounding comes last.

use candle_core::{DType, Result, Var};

use crate::cases::{self, numbers};
use crate::{F32, assert_close, check, devices, gradients};

/// The gradient is f32 until it is rounded. The rounding error is half a unit in the last place of
/// each element, and at most twice that below f16's normal range, where elements of these gradients
/// lie.
const ROUNDED: [(DType, f64); 2] = [(DType::F16, 1e-3), (DType::BF16, 4e-3)];

#[test]
fn gradients_of_half_types() -> Result<()> {
    for case in cases::all() {
        for (dtype, tolerance) in ROUNDED {
            for shapes in [[(7, 5), (7, 5)], [(19, 21), (19, 21)]] {
                check("half", &case, shapes, dtype, tolerance, |x, loss| loss(x))?;
            }
        }
    }
    Ok(())
}

/// The trainer's loss scaling saves gradients below what f16 can hold, if they are scaled before
/// they are rounded. Only losses that do not depend on the length of rows: the longer the rows, the
/// smaller are their gradients. DarkRank's grow.
#[test]
fn loss_scaling_saves_small_gradients() -> Result<()> {
    const LENGTH: f64 = 3e4;
    const SCALE: f64 = 65536.;
    let depends = |case: &cases::Case| {
        case.name.starts_with("kd-kl")
            || case.name.ends_with("as it comes")
            || case.name == "dark-rank"
    };
    for case in cases::all().iter().filter(|case| !depends(case)) {
        let half = (numbers((19, 21), 1)? * LENGTH)?.to_dtype(DType::F16)?;
        let teacher = numbers((19, 21), 2)?.to_dtype(DType::F16)?;
        let wide = Var::from_tensor(&half.to_dtype(DType::F64)?)?;
        let want = (case.formula)(&wide, &teacher.to_dtype(DType::F64)?)?;
        let want = &gradients(&want, &[&wide])?[0];

        for device in devices::computing(DType::F16) {
            let student = Var::from_tensor(&half.to_device(&device)?)?;
            let loss = (case.fused)(&student, &teacher.to_device(&device)?)?;
            let lost = &gradients(&loss, &[&student])?[0];
            let saved = (&gradients(&(loss * SCALE)?, &[&student])?[0] / SCALE)?;
            assert_close(case.name, &saved, want, 1e-3)?;
            // Without scaling, f16 did lose something.
            let off = (lost - want)?.sqr()?.sum_all()?.to_scalar::<f64>()?.sqrt();
            let unit = want.sqr()?.sum_all()?.to_scalar::<f64>()?.sqrt();
            assert!(
                off > 0.01 * unit,
                "{}: f16 held it to {:.1e}",
                case.name,
                off / unit
            );
        }
    }
    Ok(())
}

/// The value itself is not rounded to the half type.
#[test]
fn values_of_half_types() -> Result<()> {
    for case in cases::all() {
        for dtype in [DType::F16, DType::BF16] {
            let [x, y] = [
                numbers((10, 8), 1)?.to_dtype(dtype)?,
                numbers((10, 8), 2)?.to_dtype(dtype)?,
            ];
            let want = (case.formula)(&x.to_dtype(DType::F64)?, &y.to_dtype(DType::F64)?)?;
            assert_close(case.name, &(case.fused)(&x, &y)?, &want, F32)?;
        }
    }
    Ok(())
}
