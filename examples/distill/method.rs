//! A method of distillation: a weighted sum of losses between the outputs of student and teacher.

use std::fmt;
use std::str::FromStr;

use candle_core::{DType, Device, Result, Tensor};
use relata_candle::{KdKl, Queue, Rkd, RkdAngle, RkdDistance, Rrd};
use relata_candle::{kd_kl, rkd, rkd_angle, rkd_distance, rrd};

use crate::model::{Network, Output};

/// The weights of the losses; 0 leaves one out.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Method {
    rkd_distance: f64,
    rkd_angle: f64,
    kd: f64,
    rrd: f64,
}

/// The default weights. Those of RKD are the authors' for a sum with a task loss. The others were
/// chosen on the validation characters (docs/decisions/0012).
const WEIGHTS: Method = Method {
    rkd_distance: Rkd::CLASSIFICATION.distance_weight,
    rkd_angle: Rkd::CLASSIFICATION.angle_weight,
    kd: 0.3,
    rrd: 1.0,
};

const NONE: Method = Method {
    rkd_distance: 0.0,
    rkd_angle: 0.0,
    kd: 0.0,
    rrd: 0.0,
};

/// The capacity of RRD's queue. It is to the 4872 training images as the paper's 16384 to its
/// 50000.
const QUEUE_CAPACITY: usize = 2048;

impl Method {
    /// The methods that are compared by default.
    pub(crate) const COMPARED: [Method; 6] = [
        Method {
            rkd_distance: WEIGHTS.rkd_distance,
            ..NONE
        },
        Method {
            rkd_angle: WEIGHTS.rkd_angle,
            ..NONE
        },
        Method {
            kd: 0.0,
            rrd: 0.0,
            ..WEIGHTS
        },
        Method {
            rrd: WEIGHTS.rrd,
            ..NONE
        },
        Method {
            kd: WEIGHTS.kd,
            ..NONE
        },
        Method {
            kd: WEIGHTS.kd,
            rrd: WEIGHTS.rrd,
            ..NONE
        },
    ];

    /// A queue for the teacher's keys, if this method needs one.
    pub(crate) fn queue(&self, dim: usize, device: &Device) -> Result<Option<Queue>> {
        match self.rrd > 0.0 {
            true => Queue::new(QUEUE_CAPACITY, dim, DType::F32, device).map(Some),
            false => Ok(None),
        }
    }

    /// The loss of the student's output against the teacher's for the same images, if there is one.
    pub(crate) fn loss(
        &self,
        network: &Network,
        student: &Output,
        teacher: &Output,
        queue: Option<&mut Queue>,
    ) -> Result<Option<Tensor>> {
        let (x, y) = (&student.embedding, &teacher.embedding);
        let mut terms = Vec::new();
        if self.rkd_distance > 0.0 && self.rkd_angle > 0.0 {
            let both = Rkd {
                distance_weight: self.rkd_distance,
                angle_weight: self.rkd_angle,
                ..Rkd::default()
            };
            terms.push(rkd(x, y, both)?);
        } else if self.rkd_distance > 0.0 {
            terms.push((rkd_distance(x, y, RkdDistance::default())? * self.rkd_distance)?);
        } else if self.rkd_angle > 0.0 {
            terms.push((rkd_angle(x, y, RkdAngle::default())? * self.rkd_angle)?);
        }
        if self.kd > 0.0 {
            let loss = kd_kl(&student.logits, &teacher.logits, KdKl::default())?;
            terms.push((loss * self.kd)?);
        }
        if let Some(queue) = queue {
            terms.push((rrd(&network.project(x)?, y, queue, Rrd::default())? * self.rrd)?);
        }
        terms
            .into_iter()
            .map(Ok)
            .reduce(|a: Result<Tensor>, b| a? + b?)
            .transpose()
    }

    fn weight_of(&mut self, name: &str) -> Option<&mut f64> {
        match name {
            "rkd-distance" => Some(&mut self.rkd_distance),
            "rkd-angle" => Some(&mut self.rkd_angle),
            "kd" => Some(&mut self.kd),
            "rrd" => Some(&mut self.rrd),
            _ => None,
        }
    }
}

/// `none`, or the losses with the weights that are not 1: `25 RKD-D + 50 RKD-A`.
impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let terms = [
            ("RKD-D", self.rkd_distance),
            ("RKD-A", self.rkd_angle),
            ("KD", self.kd),
            ("RRD", self.rrd),
        ];
        let used = terms.iter().filter(|(_, weight)| *weight > 0.0);
        let labels = used.map(|(label, weight)| match *weight == 1.0 {
            true => (*label).to_owned(),
            false => format!("{weight} {label}"),
        });
        match labels.collect::<Vec<_>>() {
            none if none.is_empty() => f.write_str("none"),
            labels => f.write_str(&labels.join(" + ")),
        }
    }
}

/// `none`, or losses with their weights, as in `rkd-distance=25+rkd-angle`.
impl FromStr for Method {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let mut method = NONE;
        if text == "none" {
            return Ok(method);
        }
        for term in text.split('+') {
            let (name, weight) = match term.split_once('=') {
                Some((name, weight)) => (name, Some(weight)),
                None => (term, None),
            };
            let (Some(set), Some(default)) = (
                method.weight_of(name),
                WEIGHTS.clone().weight_of(name).copied(),
            ) else {
                return Err(format!(
                    "expected none, or losses among rkd-distance, rkd-angle, kd, rrd, got `{name}`"
                ));
            };
            *set = match weight {
                None => default,
                Some(text) => match text.parse() {
                    Ok(weight) if weight > 0.0 && f64::is_finite(weight) => weight,
                    _ => return Err(format!("{name}: expected a weight above 0, got `{text}`")),
                },
            };
        }
        Ok(method)
    }
}
