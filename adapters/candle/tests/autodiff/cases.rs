//! Every loss with its formula.

use candle_core::{DType, Device, Result, Tensor};
use relata_candle::{
    DarkRank, Divergence, Enqueue, Gram, InfoNce, KdKl, Loss, Order, Pkt, Queue, Rkd, RkdAngle,
    RkdDistance, Rrd, Sp,
};

use crate::formulas;

type Function = Box<dyn Fn(&Tensor, &Tensor) -> Result<Tensor>>;

pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) fused: Function,
    /// Candle's operations.
    pub(crate) formula: Function,
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
        pair("sp", relata_candle::sp, formulas::sp, Sp),
        pair("gram", relata_candle::gram, formulas::gram, Gram::default()),
        pair(
            "gram, clamped",
            relata_candle::gram,
            formulas::gram,
            Gram { clamp: true },
        ),
        pair("pkt", relata_candle::pkt, formulas::pkt, Pkt),
        pair(
            "order",
            relata_candle::order,
            formulas::order,
            Order { margin: 0.1 },
        ),
        pair(
            "dark-rank",
            relata_candle::dark_rank,
            formulas::dark_rank,
            // Scores that leave each neighbour a chance.
            DarkRank {
                alpha: 0.1,
                beta: 2.,
                length: 3,
            },
        ),
        pair(
            "kd-kl",
            relata_candle::kd_kl,
            formulas::kd_kl,
            KdKl::new(2.),
        ),
        pair(
            "kd-kl, reverse, two temperatures",
            relata_candle::kd_kl,
            formulas::kd_kl,
            KdKl {
                teacher_temperature: 1.5,
                divergence: Divergence::Reverse,
                ..KdKl::new(2.)
            },
        ),
        pair(
            "kd-kl, js",
            relata_candle::kd_kl,
            formulas::kd_kl,
            KdKl {
                divergence: Divergence::Js { beta: 0.25 },
                ..KdKl::new(2.)
            },
        ),
        pair(
            "kd-kl, skew",
            relata_candle::kd_kl,
            formulas::kd_kl,
            KdKl {
                divergence: Divergence::Skew { alpha: 0.1 },
                ..KdKl::new(2.)
            },
        ),
        pair(
            "kd-kl, skew-reverse",
            relata_candle::kd_kl,
            formulas::kd_kl,
            KdKl {
                divergence: Divergence::SkewReverse { alpha: 0.1 },
                ..KdKl::new(2.)
            },
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
        with_queue(
            "info-nce, queue after",
            nce(true, Enqueue::After),
            relata_candle::info_nce_with_queue,
            formulas::info_nce_with_queue,
        ),
        with_queue(
            "info-nce, queue before",
            nce(true, Enqueue::Before),
            relata_candle::info_nce_with_queue,
            formulas::info_nce_with_queue,
        ),
        with_queue(
            "rrd",
            rrd(true, Enqueue::Before),
            relata_candle::rrd,
            formulas::rrd,
        ),
        with_queue(
            "rrd, after",
            rrd(true, Enqueue::After),
            relata_candle::rrd,
            formulas::rrd,
        ),
        with_queue(
            "rrd, as it comes",
            rrd(false, Enqueue::Never),
            relata_candle::rrd,
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

/// How many keys are in the queue already.
const PAST: usize = 11;

fn with_queue<P: Into<Loss> + Copy + 'static>(
    name: &'static str,
    parameters: P,
    fused: fn(&Tensor, &Tensor, &mut Queue, P) -> Result<Tensor>,
    formula: fn(&Tensor, &Tensor, &Tensor, P) -> Result<Tensor>,
) -> Case {
    let spec = parameters.into().spec();
    Case {
        name,
        fused: Box::new(move |x, y| {
            let mut queue =
                Queue::new(1000, y.dim(1)?, y.dtype(), y.device())?.with_normalize(spec.normalize);
            queue.enqueue(&past(y)?)?;
            fused(x, y, &mut queue, parameters)
        }),
        formula: Box::new(move |x, y| {
            let keys = |rows: &Tensor| {
                if spec.normalize {
                    formulas::unit(rows)
                } else {
                    Ok(rows.clone())
                }
            };
            let mut all = vec![keys(&past(y)?)?];
            if spec.enqueue == Enqueue::Before {
                all.push(keys(y)?);
            }
            formula(x, y, &Tensor::cat(&all, 0)?, parameters)
        }),
    }
}

/// Keys of the teacher's width and type. Their values are the same for all types.
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
