//! Running the command on small files.

use std::fs;
use std::io::{Cursor, Write};
use std::path::PathBuf;
use std::process::Output;

use safetensors::{Dtype, tensor::TensorView};
use serde_json::Value;
use tempfile::TempDir;
use zip::CompressionMethod;
use zip::write::{SimpleFileOptions, ZipWriter};

use crate::example;

/// Those against a teacher, which run where none is named.
pub(crate) const LOSSES: [&str; 11] = [
    "rkd-distance",
    "rkd-angle",
    "rkd",
    "sp",
    "gram",
    "pkt",
    "order",
    "dark-rank",
    "rrd",
    "info-nce",
    "kd-kl",
];
pub(crate) const ROWS: usize = 5;
pub(crate) const DIM: usize = 3;
pub(crate) const KEYS: usize = 4;

/// What names a file that is read.
const INPUTS: [&str; 9] = [
    "--student",
    "--teacher",
    "--teacher-ids",
    "--teacher-log-probs",
    "--row-weights",
    "--queue",
    "--student-keys",
    "--teacher-keys",
    "--labels",
];

pub(crate) fn binary() -> PathBuf {
    example::binary("evaluate")
}

/// A directory of input files.
pub(crate) struct Files(pub(crate) TempDir);

impl Files {
    /// `s.npy`, `t.npy` `[5, 3]` and `q.npy` `[4, 3]`, of values that every dtype holds exactly.
    pub(crate) fn new() -> Self {
        let files = Files(TempDir::new().expect("a temporary directory"));
        files.write("s.npy", &npy("<f8", &[ROWS, DIM], &f64_bytes(&student())));
        files.write("t.npy", &npy("<f8", &[ROWS, DIM], &f64_bytes(&teacher())));
        files.write("q.npy", &npy("<f8", &[KEYS, DIM], &f64_bytes(&keys())));
        files
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.0.path().join(name), bytes).expect("a file is written");
    }

    /// Runs the command in the directory; the arguments are separated by spaces.
    pub(crate) fn run(&self, arguments: &str) -> Output {
        assert_cmd::Command::new(binary())
            .args(arguments.split_whitespace())
            .current_dir(self.0.path())
            .output()
            .expect("the command runs")
    }

    /// The objects printed, and the lines on standard error, of `s.npy` against `t.npy`.
    pub(crate) fn json_and_notes(&self, arguments: &str) -> (Vec<Value>, String) {
        let (student, teacher) = ("--student s.npy", "--teacher t.npy");
        let output = self.run(&format!("--json {student} {teacher} {arguments}"));
        let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(0), "{arguments}: {stderr}");
        let objects = stdout
            .lines()
            .map(|line| serde_json::from_str(line).expect(line));
        (objects.collect(), stderr)
    }

    /// As [`json_and_notes`](Self::json_and_notes) where nothing is to be noted.
    pub(crate) fn json(&self, arguments: &str) -> Vec<Value> {
        let (objects, stderr) = self.json_and_notes(arguments);
        assert_eq!(stderr, "", "{arguments}");
        objects
    }

    /// The value of one loss on one device.
    pub(crate) fn value(&self, arguments: &str) -> f64 {
        let objects = self.json(arguments);
        assert_eq!(objects.len(), 1, "{arguments}");
        objects[0]["value"].as_f64().expect("a finite loss")
    }

    /// Exit code 2, one line that contains `expected` on standard error, nothing on standard
    /// output.
    pub(crate) fn refuses(&self, arguments: &str, expected: &str) {
        let output = self.run(arguments);
        let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(2), "{arguments}: {stderr}");
        assert_eq!(stdout, "", "{arguments}");
        assert_eq!(stderr.lines().count(), 1, "{arguments}: {stderr}");
        assert!(stderr.starts_with("error: "), "{arguments}: {stderr}");
        assert!(stderr.contains(expected), "{arguments}: {stderr}");
        // What is wrong with a file that is read comes with what helps.
        let subject = stderr.split(": ").nth(1).unwrap_or_default();
        let of_input = |option: &&str| subject.starts_with(&format!("{option} "));
        if INPUTS.iter().any(of_input) {
            assert!(stderr.contains("; "), "{arguments}: no cure: {stderr}");
        }
    }

    /// Refuses a file of these bytes as student.
    pub(crate) fn refuses_file(&self, name: &str, bytes: &[u8], expected: &str) {
        self.write(name, bytes);
        self.refuses(&format!("--student {name} --teacher t.npy"), expected);
        self.refuses(&format!("--student {name} --teacher t.npy"), name);
    }
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

pub(crate) fn student() -> Vec<f64> {
    (0..ROWS * DIM)
        .map(|i| ((i * 7 + 3) % 11) as f64 / 4.0 - 1.0)
        .collect()
}

pub(crate) fn teacher() -> Vec<f64> {
    (0..ROWS * DIM)
        .map(|i| ((i * 5 + 2) % 13) as f64 / 8.0 - 0.5)
        .collect()
}

pub(crate) fn keys() -> Vec<f64> {
    (0..KEYS * DIM)
        .map(|i| ((i * 3 + 1) % 7) as f64 / 2.0 - 1.0)
        .collect()
}

pub(crate) fn f64_bytes(values: &[f64]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

pub(crate) fn npy(descr: &str, shape: &[usize], data: &[u8]) -> Vec<u8> {
    let shape: String = shape.iter().map(|size| format!("{size},")).collect();
    npy_header(
        &format!("'descr': '{descr}', 'fortran_order': False, 'shape': ({shape})"),
        data,
    )
}

pub(crate) fn npy_header(entries: &str, data: &[u8]) -> Vec<u8> {
    let header = format!("{{{entries}, }}\n");
    let len = u16::try_from(header.len()).expect("a short header");
    [
        b"\x93NUMPY\x01\x00",
        &len.to_le_bytes()[..],
        header.as_bytes(),
        data,
    ]
    .concat()
}

pub(crate) fn safetensors_header(header: &str, data: &[u8]) -> Vec<u8> {
    [
        &(header.len() as u64).to_le_bytes(),
        header.as_bytes(),
        data,
    ]
    .concat()
}

/// A `.npz` file of members, with their compression.
pub(crate) fn npz(members: &[(&str, CompressionMethod, &[u8])]) -> Vec<u8> {
    let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
    for &(name, method, bytes) in members {
        // As NumPy writes them, whatever their size.
        let options = SimpleFileOptions::default()
            .compression_method(method)
            .large_file(true);
        archive.start_file(name, options).expect("a member starts");
        archive.write_all(bytes).expect("a member is written");
    }
    archive.finish().expect("an archive").into_inner()
}

pub(crate) fn safetensors(tensors: &[(&str, Dtype, &[usize], &[u8])]) -> Vec<u8> {
    let views = tensors.iter().map(|&(name, dtype, shape, data)| {
        (
            name,
            TensorView::new(dtype, shape.to_vec(), data).expect("a consistent tensor"),
        )
    });
    safetensors::serialize(views, None).expect("a file")
}

pub(crate) fn assert_close(got: f64, expected: f64, tolerance: f64) {
    let error = (got - expected).abs() / expected.abs();
    assert!(
        error <= tolerance,
        "{got} is not {expected}: off by {error:e}, not {tolerance:e}"
    );
}
