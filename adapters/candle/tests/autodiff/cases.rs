//! Every loss beside its formula.

use candle_core::{DType, Device, Result, Tensor};
use relata_candle::{Enqueue, InfoNce, KdKl, Queue, Rkd, RkdAngle, RkdDistance, Rrd};

use crate::formulas;

type Loss = Box<dyn Fn(&Tensor, &Tensor) -> Result<Tensor>>;

pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) fused: Loss,
    /// Of candle's operations.
    pub(crate) formula: Loss,
}

/// All losses, with the parameters that change what is computed.
pub(crate) fn all() -> Vec<Case> {
    let distance = |delta, normalize| RkdDistance { delta, normalize };
    let angle = |delta, normalize| RkdAngle { delta, normalize };
    let nce = |normalize, enqueue| InfoNce {
        temperature: 0.3,
        normalize,
        enqueue,
    };
    let rrd = |normalize, enqueue| Rrd {
        student_temperature: 0.3,
        teacher_temperature: 0.2,
        normalize,
        enqueue,
    };
    vec![
        pair(
            "rkd-distance",
            relata_candle::rkd_distance,
            formulas::rkd_distance,
            distance(1., false),
        ),
        pair(
            "rkd-distance, linear",
            relata_candle::rkd_distance,
            formulas::rkd_distance,
            distance(0.05, false),
        ),
        pair(
            "rkd-distance, unit rows",
            relata_candle::rkd_distance,
            formulas::rkd_distance,
            distance(1., true),
        ),
        pair(
            "rkd-angle",
            relata_candle::rkd_angle,
            formulas::rkd_angle,
            angle(1., false),
        ),
        pair(
            "rkd-angle, linear",
            relata_candle::rkd_angle,
            formulas::rkd_angle,
            angle(0.1, false),
        ),
        pair(
            "rkd-angle, unit rows",
            relata_candle::rkd_angle,
            formulas::rkd_angle,
            angle(1., true),
        ),
        pair("rkd", relata_candle::rkd, formulas::rkd, Rkd::default()),
        pair(
            "rkd, classification",
            relata_candle::rkd,
            formulas::rkd,
            Rkd::CLASSIFICATION,
        ),
        pair(
            "kd-kl",
            relata_candle::kd_kl,
            formulas::kd_kl,
            KdKl { temperature: 2. },
        ),
        pair(
            "info-nce",
            relata_candle::info_nce,
            formulas::info_nce,
            nce(true, Enqueue::After),
        ),
        pair(
            "info-nce, as it comes",
            relata_candle::info_nce,
            formulas::info_nce,
            nce(false, Enqueue::After),
        ),
        beside(
            "info-nce, queue after",
            nce(true, Enqueue::After),
            info_nce_with,
            formulas::info_nce_with,
        ),
        beside(
            "info-nce, queue before",
            nce(true, Enqueue::Before),
            info_nce_with,
            formulas::info_nce_with,
        ),
        beside("rrd", rrd(true, Enqueue::Before), rrd_with, formulas::rrd),
        beside(
            "rrd, after",
            rrd(true, Enqueue::After),
            rrd_with,
            formulas::rrd,
        ),
        beside(
            "rrd, as it comes",
            rrd(false, Enqueue::Never),
            rrd_with,
            formulas::rrd,
        ),
    ]
}

fn pair<P: Copy + 'static>(
    name: &'static str,
    fused: fn(&Tensor, &Tensor, P) -> Result<Tensor>,
    formula: fn(&Tensor, &Tensor, P) -> Result<Tensor>,
    parameters: P,
) -> Case {
    Case {
        name,
        fused: Box::new(move |x, y| fused(x, y, parameters)),
        formula: Box::new(move |x, y| formula(x, y, parameters)),
    }
}

/// A loss that has a queue, and what its formula has to know of it.
trait Beside: Copy + 'static {
    fn normalize(&self) -> bool;
    fn enqueue(&self) -> Enqueue;
}

impl Beside for Rrd {
    fn normalize(&self) -> bool {
        self.normalize
    }
    fn enqueue(&self) -> Enqueue {
        self.enqueue
    }
}

impl Beside for InfoNce {
    fn normalize(&self) -> bool {
        self.normalize
    }
    fn enqueue(&self) -> Enqueue {
        self.enqueue
    }
}

fn rrd_with(x: &Tensor, y: &Tensor, queue: &mut Queue, loss: Rrd) -> Result<Tensor> {
    relata_candle::rrd(x, y, queue, loss)
}

fn info_nce_with(x: &Tensor, y: &Tensor, queue: &mut Queue, loss: InfoNce) -> Result<Tensor> {
    relata_candle::info_nce_with(x, y, queue, loss)
}

/// Keys that are in the queue already.
const PAST: usize = 11;

fn beside<P: Beside>(
    name: &'static str,
    parameters: P,
    fused: fn(&Tensor, &Tensor, &mut Queue, P) -> Result<Tensor>,
    formula: fn(&Tensor, &Tensor, &Tensor, P) -> Result<Tensor>,
) -> Case {
    Case {
        name,
        fused: Box::new(move |x, y| {
            let mut queue = Queue::new(1000, y.dim(1)?, y.dtype(), y.device())?
                .normalize(parameters.normalize());
            queue.enqueue(&past(y)?)?;
            fused(x, y, &mut queue, parameters)
        }),
        formula: Box::new(move |x, y| {
            let keys = |rows: &Tensor| {
                if parameters.normalize() {
                    formulas::unit(rows)
                } else {
                    Ok(rows.clone())
                }
            };
            let mut all = vec![keys(&past(y)?)?];
            if parameters.enqueue() == Enqueue::Before {
                all.push(keys(y)?);
            }
            formula(x, y, &Tensor::cat(&all, 0)?, parameters)
        }),
    }
}

/// Keys of the teacher's length and type that do not depend on the type.
fn past(teacher: &Tensor) -> Result<Tensor> {
    numbers((PAST, teacher.dim(1)?), 77)?
        .to_dtype(DType::BF16)?
        .to_dtype(teacher.dtype())?
        .to_device(teacher.device())
}

/// f64 numbers from −1 to 1, all different, the same in every run.
pub(crate) fn numbers(shape: (usize, usize), seed: u32) -> Result<Tensor> {
    let number =
        |i: usize| ((i as f64 + 1.) * 12.9898 + f64::from(seed) * 78.233).sin() * 43758.5453;
    let numbers: Vec<f64> = (0..shape.0 * shape.1)
        .map(|i| 2. * number(i).rem_euclid(1.) - 1.)
        .collect();
    Tensor::from_vec(numbers, shape, &Device::Cpu)
}
