//! A hundred steps beside the official code: golden/bank.json.

use relata::{Bank, Batch, Cpu, Crd, Loss, Problem, Rows, RrdBank};
use serde_json::Value;

use crate::common::cast;
use crate::common::compare::assert_loss;

const SAMPLES: usize = 40;
const DIM: usize = 16;
const FEATURES: [usize; 2] = [12, 14];
const ROWS: usize = 8;
const NEGATIVES: usize = 10;
const STEP_LENGTH: f64 = 0.05;

/// A number from −1 to 1 without a pattern.
fn noise(a: f64, c: f64, i: usize, d: usize) -> f64 {
    let x = 43.7 * (a * (i as f64 + 1.0) + c * (d as f64 + 1.0)).sin();
    2.0 * (x - x.floor()) - 1.0
}

/// The batch of a step. Two of its rows are of the same sample.
struct Inputs {
    samples: Vec<u32>,
    /// Of the student and of the teacher.
    features: [Vec<f64>; 2],
    indices: Vec<u32>,
}

impl Inputs {
    fn of(step: usize) -> Self {
        let samples: Vec<usize> = (0..ROWS)
            .map(|i| (7 * step + 3 * i * i) % SAMPLES)
            .collect();
        let mut indices = Vec::new();
        for (i, &sample) in samples.iter().enumerate() {
            indices.push(sample);
            indices.extend(
                (1..=NEGATIVES).map(|k| {
                    (sample + 1 + (k * (13 + step) + 5 * i * i) % (SAMPLES - 1)) % SAMPLES
                }),
            );
        }
        let features = |width: usize, [a, c]: [f64; 2]| -> Vec<f64> {
            let of_row = |(i, &sample): (usize, &usize)| {
                let of = move |d| noise(a, c, sample, d) + 0.1 * ((step + i + d) as f64).cos();
                (0..width).map(of).collect::<Vec<_>>()
            };
            samples.iter().enumerate().flat_map(of_row).collect()
        };
        let small = |numbers: &[usize]| numbers.iter().map(|&i| i as u32).collect();
        Inputs {
            features: [
                features(FEATURES[0], [17.3, 5.7]),
                features(FEATURES[1], [9.1, 14.9]),
            ],
            samples: small(&samples),
            indices: small(&indices),
        }
    }
}

/// A linear layer without a bias, and how it is trained.
struct Layer {
    /// `[DIM, width]`
    weights: Vec<f64>,
    width: usize,
}

impl Layer {
    fn new(width: usize, [a, c]: [f64; 2]) -> Self {
        let weights = (0..DIM * width).map(|at| noise(a, c, at / width, at % width));
        Layer {
            weights: weights.collect(),
            width,
        }
    }

    fn forward(&self, features: &[f64]) -> Vec<f64> {
        let mut rows = Vec::new();
        for x in features.chunks_exact(self.width) {
            let products = self.weights.chunks_exact(self.width);
            rows.extend(products.map(|w| w.iter().zip(x).map(|(w, x)| w * x).sum::<f64>()));
        }
        rows
    }

    fn step(&mut self, features: &[f64], gradient: &[f64]) {
        let rows = gradient
            .chunks_exact(DIM)
            .zip(features.chunks_exact(self.width));
        for (g, x) in rows {
            for (w, g) in self.weights.chunks_exact_mut(self.width).zip(g) {
                for (w, x) in w.iter_mut().zip(x) {
                    *w -= STEP_LENGTH * g * x;
                }
            }
        }
    }
}

fn bank([a, c]: [f64; 2]) -> Vec<f64> {
    let most = (3.0 / DIM as f64).sqrt();
    let numbers = (0..SAMPLES * DIM).map(|at| most * noise(a, c, at / DIM, at % DIM));
    numbers.collect()
}

/// The banks of the student and of the teacher.
struct Banks<R>([Bank<R>; 2]);

impl<R: relata::Real> Banks<R> {
    fn new() -> Self {
        Banks([[12.9, 78.2], [39.3, 11.1]].map(|of| {
            let rows = cast::<R>(&bank(of));
            Bank::from_rows(Rows::new(&rows, [SAMPLES, DIM]).expect("rows")).expect("a bank")
        }))
    }

    /// The loss of one step, and the gradients of the student's and of the teacher's rows. The banks
    /// are as they are after it.
    fn step(&mut self, kind: &str, inputs: &Inputs, rows: [&[f64]; 2]) -> (f64, [Vec<f64>; 2]) {
        let rows = rows.map(cast::<R>);
        let [student, teacher] = [0, 1].map(|i| Rows::new(&rows[i], [ROWS, DIM]).expect("rows"));
        let [students, teachers] = &mut self.0;
        let temperature = Crd::default().temperature;
        let indices = &inputs.indices;
        for (bank, rows) in [(&mut *teachers, student), (&mut *students, teacher)] {
            bank.calibrate(rows, indices, temperature)
                .expect("calibrates");
        }
        let evaluate = |loss: Loss, batch: Batch<'_, R>| {
            let problem = Problem::new(loss, batch.shapes()).expect("accepted");
            problem.evaluate(&Cpu, batch).expect("evaluates")
        };
        let wide = |gradient: Vec<R>| gradient.iter().map(|g| g.to_f64()).collect::<Vec<_>>();
        let (loss, gradients) = if kind == "crd" {
            let crd = Loss::from(Crd::default());
            let of = |rows, bank| evaluate(crd, Batch::of_student(rows).with_bank(bank, indices));
            let [s, t] = [of(student, teachers), of(teacher, students)];
            (s.loss + t.loss, [wide(s.gradient), wide(t.gradient)])
        } else {
            let batch = Batch::new(student, teacher)
                .with_bank(teachers, indices)
                .with_teacher_bank(students);
            let evaluation = evaluate(RrdBank::default().into(), batch);
            let none = vec![0.0; ROWS * DIM];
            (evaluation.loss, [wide(evaluation.gradient), none])
        };
        for (bank, rows) in [(students, student), (teachers, teacher)] {
            let momentum = Bank::<R>::MOMENTUM;
            bank.update(&inputs.samples, rows, momentum)
                .expect("updates");
        }
        (loss, gradients)
    }
}

fn numbers(value: &Value) -> Vec<f64> {
    let numbers = value.as_array().expect("numbers").iter();
    numbers
        .map(|number| number.as_f64().expect("a number"))
        .collect()
}

fn assert_numbers(label: &str, got: &[f64], want: &[f64], within: f64) {
    for (got, want) in got.iter().zip(want) {
        assert!(
            (got - want).abs() <= within * (1.0 + want.abs()),
            "{label}: {got} {want}"
        );
    }
}

#[test]
fn a_hundred_steps_are_those_of_the_official_code() {
    let text = include_str!("../golden/bank.json");
    let golden: Value = serde_json::from_str(text).expect("JSON");
    for kind in ["crd", "rrd"] {
        let golden = &golden[kind];
        let losses = numbers(&golden["losses"]);
        assert_eq!(losses.len(), 100);
        let mut layers = [
            Layer::new(FEATURES[0], [7.7, 3.1]),
            Layer::new(FEATURES[1], [4.3, 8.9]),
        ];
        let (mut banks, mut narrow) = (Banks::<f64>::new(), Banks::<f32>::new());
        for (step, want) in losses.into_iter().enumerate() {
            let inputs = Inputs::of(step);
            let rows = [0, 1].map(|side| layers[side].forward(&inputs.features[side]));
            let rows = [&rows[0][..], &rows[1][..]];
            let (got, gradients) = banks.step(kind, &inputs, rows);
            assert_loss(&format!("{kind}, step {step}"), got, want, 1e-9);
            for (side, gradient) in gradients.iter().enumerate() {
                layers[side].step(&inputs.features[side], gradient);
            }
            // In f32 on the same rows, with banks of its own.
            let (got, _) = narrow.step(kind, &inputs, rows);
            assert_loss(&format!("{kind} in f32, step {step}"), got, want, 1e-5);
        }
        // What has been learned, and what the banks hold in the end.
        let want = numbers(&golden["student_weights"]);
        assert_numbers(kind, &layers[0].weights[..want.len()], &want, 1e-9);
        let last = Inputs::of(99).samples[0] as usize;
        for (side, name) in ["student_bank_row", "teacher_bank_row"]
            .into_iter()
            .enumerate()
        {
            let row = banks.0[side].rows().row(last).to_vec();
            assert_numbers(name, &row, &numbers(&golden[name]), 1e-9);
        }
        // That of the student's rows is the one of the teacher's bank.
        for (side, name) in ["teacher", "student"].into_iter().enumerate() {
            let want = golden["normalizers"][name].as_f64().expect("a number");
            let got = banks.0[side].normalizer().expect("calibrated");
            assert_loss(name, got, want, 1e-12);
        }
    }
}
