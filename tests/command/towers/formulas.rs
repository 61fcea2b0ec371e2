//! The losses by their definitions.

use super::{LABELLED, LABELS, PAIR, TAUGHT, WIDTH, teachers};
use crate::compare::norm;
use crate::support::*;

fn unit(rows: &[f64], width: usize) -> Vec<Vec<f64>> {
    let scaled = |row: &[f64]| row.iter().map(|x| x / norm(row)).collect();
    rows.chunks(width).map(scaled).collect()
}

/// `factor` times the cosines of the rows of `a` with those of `b`.
fn logits(a: &[f64], b: &[f64], width: usize, factor: f64) -> Vec<Vec<f64>> {
    let keys = unit(b, width);
    let dot = |row: &[f64], key: &[f64]| row.iter().zip(key).map(|(x, y)| x * y).sum::<f64>();
    let of_row = |row: &Vec<f64>| keys.iter().map(|key| factor * dot(row, key)).collect();
    unit(a, width).iter().map(of_row).collect()
}

fn log_softmax(logits: &[f64]) -> Vec<f64> {
    let sum: f64 = logits.iter().map(|l| l.exp()).sum();
    logits.iter().map(|l| l - sum.ln()).collect()
}

/// Clip's hard and soft terms of the rows of both towers, by its definition. `scale` is 1/τ.
pub(super) fn clip(rows: &[f64], scale: f64, teacher_temperature: f64) -> [f64; 2] {
    let (a, b) = rows.split_at(ROWS * DIM);
    let [y, z] = teachers();
    let mut terms = [0.0; 2];
    for (from, to, from_teacher, to_teacher) in [(a, b, &y, &z), (b, a, &z, &y)] {
        let targets = logits(from_teacher, to_teacher, WIDTH, 1.0 / teacher_temperature);
        let students = logits(from, to, DIM, scale);
        for (i, (student, target)) in students.iter().zip(&targets).enumerate() {
            let (log_q, log_p) = (log_softmax(student), log_softmax(target));
            let soft: f64 = log_p.iter().zip(&log_q).map(|(p, q)| p.exp() * q).sum();
            terms[0] -= log_q[i] / (2 * ROWS) as f64;
            terms[1] -= soft / (2 * ROWS) as f64;
        }
    }
    terms
}

fn sig_lip(rows: &[f64], scale: f64, bias: f64) -> f64 {
    let (a, b) = rows.split_at(ROWS * DIM);
    let mut sum = 0.0;
    for (i, row) in logits(a, b, DIM, scale).iter().enumerate() {
        for (j, logit) in row.iter().enumerate() {
            let z = if i == j { 1.0 } else { -1.0 };
            sum += (-z * (logit + bias)).exp().ln_1p();
        }
    }
    sum / ROWS as f64
}

/// A row without another of its label does not count.
fn sup_con(rows: &[f64], scale: f64) -> f64 {
    let all = logits(rows, rows, DIM, scale);
    let mut losses = Vec::new();
    for i in 0..ROWS {
        let others: Vec<usize> = (0..ROWS).filter(|&k| k != i).collect();
        let of_row: Vec<f64> = others.iter().map(|&k| all[i][k]).collect();
        let pairs = others.iter().zip(log_softmax(&of_row));
        let same = pairs.filter(|&(&k, _)| LABELS[k] == LABELS[i]);
        let same: Vec<f64> = same.map(|(_, log_q)| log_q).collect();
        if !same.is_empty() {
            losses.push(-same.iter().sum::<f64>() / same.len() as f64);
        }
    }
    losses.iter().sum::<f64>() / losses.len() as f64
}

/// Arguments, and the loss that they ask for as a function of all rows, a scale and a bias.
pub(super) struct Case {
    pub(super) arguments: String,
    pub(super) rows: Vec<f64>,
    pub(super) loss: fn(&[f64], f64, f64) -> f64,
    pub(super) scale: f64,
    pub(super) bias: f64,
}

pub(super) fn cases() -> Vec<Case> {
    let case = |arguments: String, loss, scale, bias| Case {
        rows: if arguments.contains("--student-keys") {
            [student(), teacher()].concat()
        } else {
            student()
        },
        arguments,
        loss,
        scale,
        bias,
    };
    let hard_and_soft = |rows: &[f64], scale: f64, _: f64| clip(rows, scale, 0.07).iter().sum();
    let weighted = |rows: &[f64], scale: f64, _: f64| {
        let [hard, soft] = clip(rows, scale, 0.25);
        0.5 * hard + 3.0 * soft
    };
    let hard = |rows: &[f64], scale: f64, _: f64| clip(rows, scale, 1.0)[0];
    let labelled = |rows: &[f64], scale: f64, _: f64| sup_con(rows, scale);
    vec![
        case(
            format!("--loss clip {TAUGHT}"),
            hard_and_soft,
            1.0 / 0.07,
            0.0,
        ),
        case(
            format!(
                "--loss clip {TAUGHT} --temperature 0.5 --teacher-temperature 0.25 --hard-weight 0.5 \
                 --soft-weight 3"
            ),
            weighted,
            2.0,
            0.0,
        ),
        case(
            format!("--loss clip {PAIR} --temperature 0.5"),
            hard,
            2.0,
            0.0,
        ),
        case(format!("--loss siglip {PAIR}"), sig_lip, 10.0, -10.0),
        case(
            format!("--loss siglip {PAIR} --scale 3 --bias -0.5"),
            sig_lip,
            3.0,
            -0.5,
        ),
        case(
            format!("--loss sup-con {LABELLED}"),
            labelled,
            1.0 / 0.07,
            0.0,
        ),
        case(
            format!("--loss sup-con {LABELLED} --temperature 0.5"),
            labelled,
            2.0,
            0.0,
        ),
    ]
}

/// The slope of `of` at 0.
pub(super) fn slope(of: impl Fn(f64) -> f64) -> f64 {
    let step = 2e-6;
    (of(step) - of(-step)) / (2.0 * step)
}

impl Case {
    /// The slopes of the loss along each element of the rows.
    pub(super) fn gradient(&self) -> Vec<f64> {
        let moved = |at: usize, by: f64| {
            let mut rows = self.rows.clone();
            rows[at] += by;
            (self.loss)(&rows, self.scale, self.bias)
        };
        (0..self.rows.len())
            .map(|at| slope(|by| moved(at, by)))
            .collect()
    }
}
