//! Logits of −∞, which mask classes.

use candle_core::{DType, Result, Tensor, Var};
use relata_candle::{KdKl, kd_kl};

use crate::{assert_close, devices, gradients};

const MASKED: f64 = f64::NEG_INFINITY;

/// The values of the definition with 40 digits (mpmath), for T = 1.
#[test]
fn a_masked_class_counts_in_no_sum() -> Result<()> {
    let gradient = [
        [0.0, -0.23105857863000488, 0.23105857863000488],
        [
            -0.08879516359836027,
            0.25493927613892914,
            -0.16614411254056887,
        ],
    ];
    for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, 1e-6), (DType::BF16, 4e-3)] {
        for device in devices::computing(dtype) {
            let tensor = |rows: [[f64; 3]; 2]| Tensor::new(&rows, &device)?.to_dtype(dtype);
            let weights = Var::from_tensor(&tensor([[0.5, 1.0, 2.0], [0.0, 1.0, -1.0]])?)?;
            let mask = tensor([[MASKED, 0.0, 0.0], [0.0; 3]])?;
            let teacher = tensor([[MASKED, 2.0, 1.0], [1.0, 0.0, 1.0]])?;
            let student = weights.broadcast_add(&mask)?;
            let loss = kd_kl(&student, &teacher, KdKl::new(1.0))?;
            let value = loss.to_dtype(DType::F64)?.to_scalar::<f64>()?;
            let label = format!("{dtype:?}");
            assert!(
                (value - 0.559_661_154_451_865).abs() <= tolerance,
                "{label}: {value}"
            );
            let got = &gradients(&loss, &[&weights])?[0];
            let want = Tensor::new(&gradient, &candle_core::Device::Cpu)?;
            assert_close(&label, got, &want, tolerance)?;
            assert_eq!(got.to_vec2::<f64>()?[0][0], 0.0, "{label}");
        }
    }
    Ok(())
}

#[test]
fn a_class_that_the_student_alone_excludes_makes_the_loss_infinite() -> Result<()> {
    for device in devices::computing(DType::F32) {
        let tensor = |rows: [[f64; 3]; 1]| Tensor::new(&rows, &device)?.to_dtype(DType::F32);
        let student = Var::from_tensor(&tensor([[MASKED, 1.0, 2.0]])?)?;
        let loss = kd_kl(&student, &tensor([[0.0, 2.0, 1.0]])?, KdKl::default())?;
        assert_eq!(loss.to_scalar::<f32>()?, f32::INFINITY);
        let got = gradients(&loss, &[&student])?[0].to_vec2::<f64>()?;
        assert!(got[0].iter().all(|g| g.is_nan()), "{got:?}");
    }
    Ok(())
}
