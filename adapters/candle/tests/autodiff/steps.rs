//! Training steps with a queue.

use candle_core::{DType, Device, Result, Tensor};
use relata_candle::{InfoNce, Queue, Rrd, info_nce_with_queue, rrd};

use crate::cases::numbers;
use crate::{F32, assert_close, devices};

/// Batches of several sizes, and one with a NaN: losses and keys are the same as from one large
/// batch at each step.
#[test]
fn a_queue_fills_alike_on_every_device() -> Result<()> {
    for dtype in [DType::F64, DType::F32, DType::F16, DType::BF16] {
        let keys_as = if dtype == DType::F64 { 1e-15 } else { 5e-4 };
        for device in devices::computing(dtype) {
            let mut queue = Queue::new(20, 6, dtype, &device)?;
            let mut entered: Vec<Tensor> = Vec::new();
            for (step, rows) in [(1, 8), (2, 3), (3, 8), (4, 15), (5, 1)] {
                let on = |seed| -> Result<Tensor> {
                    numbers((rows, 6), seed)?
                        .to_dtype(dtype)?
                        .to_device(&device)
                };
                let (student, teacher) = (on(step)?, on(step + 50)?);
                let got = rrd(&student, &teacher, &mut queue, Rrd::default())?;
                entered.push(teacher.to_device(&Device::Cpu)?.to_dtype(DType::F64)?);

                // The same in f64, from all keys that have entered.
                let mut whole = Queue::new(20, 6, DType::F64, &Device::Cpu)?;
                whole.enqueue(&Tensor::cat(&entered, 0)?)?;
                let wide = |x: &Tensor| x.to_device(&Device::Cpu)?.to_dtype(DType::F64);
                let never = Rrd {
                    enqueue: relata_candle::Enqueue::Never,
                    ..Rrd::default()
                };
                let want = rrd(&wide(&student)?, &wide(&teacher)?, &mut whole, never)?;
                let label = format!("{dtype:?}, {:?}, step {step}", device.location());
                // On a GPU, unit keys of half types are stored as f16.
                let exact = device.is_cpu() || dtype == DType::F32;
                assert_close(&label, &got, &want, if exact { F32 } else { 5e-3 })?;
                assert_close(&label, &queue.to_tensor()?, &whole.to_tensor()?, keys_as)?;

                let bad = (&teacher / 0.)?;
                let loss = info_nce_with_queue(&student, &bad, &mut queue, InfoNce::default())?;
                assert!(
                    loss.to_device(&Device::Cpu)?
                        .to_dtype(DType::F64)?
                        .to_scalar::<f64>()?
                        .is_nan()
                );
                assert_eq!(queue.len()?, whole.len()?, "{label}");
            }
        }
    }
    Ok(())
}
