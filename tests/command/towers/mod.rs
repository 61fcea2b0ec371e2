//! The losses of two towers and of labels.

mod formulas;
mod refusals;
mod values;

use std::fs;

use npyz::NpyFile;
use serde_json::Value;

use crate::support::*;

/// D_t.
const WIDTH: usize = 2;
/// Integers that f64 does not tell apart, and a negative one.
const LABELS: [i64; ROWS] = [-7, 1 << 53, -7, (1 << 53) + 1, 1 << 53];

const PAIR: &str = "--student a.npy --student-keys b.npy";
const TAUGHT: &str = "--student a.npy --student-keys b.npy --teacher y.npy --teacher-keys z.npy";
const LABELLED: &str = "--student a.npy --labels l.npy";

/// `a.npy`, `b.npy` `[5, 3]`, `y.npy`, `z.npy` `[5, 2]` and `l.npy` `[5]`.
fn inputs() -> Files {
    let files = Files::new();
    write(&files, "a.npy", &[ROWS, DIM], &student());
    write(&files, "b.npy", &[ROWS, DIM], &teacher());
    let [first, second] = teachers();
    write(&files, "y.npy", &[ROWS, WIDTH], &first);
    write(&files, "z.npy", &[ROWS, WIDTH], &second);
    write_labels(&files, "l.npy", &LABELS);
    files
}

fn teachers() -> [Vec<f64>; 2] {
    [(3, 1), (5, 2)].map(|(factor, start)| {
        let number = |i| ((i * factor + start) % 7) as f64 / 2.0 - 1.25;
        (0..ROWS * WIDTH).map(number).collect()
    })
}

fn write(files: &Files, name: &str, shape: &[usize], values: &[f64]) {
    files.write(name, &npy("<f8", shape, &f64_bytes(values)));
}

fn i64_bytes(labels: &[i64]) -> Vec<u8> {
    labels
        .iter()
        .flat_map(|label| label.to_le_bytes())
        .collect()
}

fn write_labels(files: &Files, name: &str, labels: &[i64]) {
    files.write(name, &npy("<i8", &[labels.len()], &i64_bytes(labels)));
}

/// The shape and the numbers of a file: f64 of the reference, f32 of all others.
fn read(files: &Files, name: &str, device: &str) -> (Vec<u64>, Vec<f64>) {
    let file = fs::File::open(files.0.path().join(name)).expect("a file");
    let file = NpyFile::new(file).expect("a .npy file");
    let shape = file.shape().to_vec();
    if device.contains("reference") {
        return (shape, file.into_vec().expect("f64"));
    }
    let single: Vec<f32> = file.into_vec().expect("f32");
    (shape, single.into_iter().map(f64::from).collect())
}

/// What a run prints: one object, and the lines on standard error.
fn run(files: &Files, arguments: &str) -> (Value, String) {
    let output = files.run(&format!("--json {arguments}"));
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{arguments}: {stderr}");
    let object = serde_json::from_slice(&output.stdout).expect("one object");
    (object, stderr)
}

fn object(files: &Files, arguments: &str) -> Value {
    let (object, stderr) = run(files, arguments);
    assert_eq!(stderr, "", "{arguments}");
    object
}

fn number(object: &Value, key: &str) -> f64 {
    let number = object[key].as_f64();
    number.unwrap_or_else(|| panic!("{key} in {object}"))
}
