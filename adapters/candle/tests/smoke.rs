//! Every loss once.

use candle_core::{DType, Device, Result, Tensor, Var};
use relata_candle::*;

#[test]
fn all() -> Result<()> {
    let x = Var::randn(0f32, 1., (9, 7), &Device::Cpu)?;
    let y = Tensor::randn(0f32, 1., (9, 7), &Device::Cpu)?;
    let mut q = Queue::new(16, 7, DType::F32, &Device::Cpu)?;
    for loss in [
        rkd_distance(&x, &y, Default::default())?,
        rkd_angle(&x, &y, Default::default())?,
        rkd(&x, &y, Default::default())?,
        kd_kl(&x, &y, Default::default())?,
        info_nce(&x, &y, Default::default())?,
        rrd(&x, &y, &mut q, Default::default())?,
        info_nce_with(&x, &y, &mut q, Default::default())?,
    ] {
        let g = (loss * 3.)?.backward()?;
        println!("{}", g.get(&x).unwrap());
    }
    Ok(())
}
