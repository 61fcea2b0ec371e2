//! The files it reads: their shapes, and how they name what they hold.

use std::fs;

use npyz::NpyFile;
use safetensors::Dtype;

use crate::support::*;

/// The value, the number of rows and the number of groups.
fn run(files: &Files, arguments: &str) -> (f64, u64, Option<u64>) {
    let output = files.run(&format!("--json --device cpu {arguments}"));
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{arguments}: {stderr}");
    let object: serde_json::Value = serde_json::from_str(stdout.trim()).expect("one object");
    (
        object["value"].as_f64().expect("a finite loss"),
        object["rows"].as_u64().expect("a number"),
        object.get("groups").and_then(serde_json::Value::as_u64),
    )
}

fn write(files: &Files, name: &str, shape: &[usize], values: &[f64]) {
    files.write(name, &npy("<f8", shape, &f64_bytes(values)));
}

/// What squeezing forgot: `[N, D, 1]` is N rows and no N groups.
#[test]
fn last_dimensions_of_1_are_no_dimensions() {
    let files = Files::new();
    let plain = run(&files, "--loss gram --student s.npy --teacher t.npy");
    assert_eq!((plain.1, plain.2), (5, None));
    for ones in [&[1][..], &[1, 1], &[1, 1, 1, 1]] {
        let shape = [&[ROWS, DIM], ones].concat();
        write(&files, "s1.npy", &shape, &student());
        write(&files, "t1.npy", &shape, &teacher());
        let values = f64_bytes(&student());
        let tensor = ("x", Dtype::F64, &shape[..], &values[..]);
        files.write("s1.safetensors", &safetensors(&[tensor]));
        for (student, teacher) in [
            ("s1.npy", "t.npy"),
            ("s.npy", "t1.npy"),
            ("s1.npy", "t1.npy"),
            ("s1.safetensors", "t1.npy"),
        ] {
            let got = run(
                &files,
                &format!("--loss gram --student {student} --teacher {teacher}"),
            );
            assert_eq!(got, plain, "{student} {teacher} {shape:?}");
        }
        // The gradient has the shape of the file.
        run(
            &files,
            "--loss gram --student s1.npy --teacher t.npy --gradient g.npy",
        );
        let file = fs::File::open(files.0.path().join("g.npy")).expect("a gradient");
        let file = NpyFile::new(file).expect("a .npy file");
        let shape: Vec<u64> = shape.iter().map(|&size| size as u64).collect();
        assert_eq!(file.shape(), shape);
    }
    // Of one element, too, and of groups.
    write(&files, "one.npy", &[15, 1, 1], &student());
    let got = run(&files, "--loss sp --student one.npy --teacher one.npy");
    assert_eq!((got.1, got.2), (15, None));
    write(&files, "g.npy", &[3, 5, 1, 1], &student());
    let got = run(&files, "--loss sp --student g.npy --teacher g.npy");
    assert_eq!((got.1, got.2), (3, None));
    let values: Vec<f64> = (0..24).map(|i| f64::from(i * 7 % 23)).collect();
    write(&files, "g3.npy", &[2, 4, 3], &values);
    let plain = run(&files, "--loss sp --student g3.npy --teacher g3.npy");
    assert_eq!((plain.1, plain.2), (8, Some(2)));
    write(&files, "g4.npy", &[2, 4, 3, 1], &values);
    for (student, teacher) in [("g4", "g3"), ("g3", "g4"), ("g4", "g4")] {
        let arguments = format!("--loss sp --student {student}.npy --teacher {teacher}.npy");
        assert_eq!(run(&files, &arguments), plain);
    }
}

/// Weights, labels and keys.
#[test]
fn columns_are_lists() {
    let files = Files::new();
    let weights = [1.0, 0.0, 3.0, 2.0, 0.5];
    write(&files, "w.npy", &[ROWS], &weights);
    write(&files, "q1.npy", &[KEYS, DIM, 1], &keys());
    for shape in [&[ROWS, 1][..], &[ROWS, 1, 1]] {
        write(&files, "w1.npy", shape, &weights);
        files.write("l1.npy", &npy("|u1", shape, &[1, 1, 2, 2, 1]));
        let of = |weights: &str| {
            let start = "--loss kd-kl --student s.npy --teacher t.npy --row-weights";
            run(&files, &format!("{start} {weights}"))
        };
        assert_eq!(of("w1.npy"), of("w.npy"));
        run(&files, "--loss sup-con --student s.npy --labels l1.npy");
    }
    let of = |queue: &str| {
        let start = "--loss rrd --student s.npy --teacher t.npy --queue";
        run(&files, &format!("{start} {queue}"))
    };
    assert_eq!(of("q1.npy"), of("q.npy"));
}

/// What belongs to groups of rows has a last dimension of 1 where that is what it holds.
#[test]
fn groups_may_have_one_element_a_row() {
    let files = Files::new();
    let values: Vec<f64> = (0..24).map(|i| f64::from(i * 7 % 23) / 4.0).collect();
    write(&files, "x.npy", &[2, 4, 3], &values);
    write(&files, "y.npy", &[2, 4, 1], &values[..8]);
    write(&files, "flat.npy", &[8, 1], &values[..8]);
    write(&files, "narrow.npy", &[2, 4], &values[..8]);
    // Teachers and students of one element.
    for (student, teacher, same) in [
        ("x", "y", "x.npy --teacher flat.npy"),
        ("y", "x", "flat.npy --teacher x.npy"),
    ] {
        let arguments = format!("--loss sp --student {student}.npy --teacher {teacher}.npy");
        let got = run(&files, &arguments);
        assert_eq!((got.1, got.2), (8, Some(2)));
        let rows = npy("<f8", &[8, 3], &f64_bytes(&values));
        let of_files = fs::read(files.0.path().join("x.npy")).expect("a file");
        files.write("x.npy", &rows);
        let same = run(&files, &format!("--loss sp --groups 2 --student {same}"));
        files.write("x.npy", &of_files);
        assert_eq!(got, same);
    }
    files.refuses(
        "--loss sp --student x.npy --teacher narrow.npy",
        "expected 8 rows, as --student x.npy has, got 2",
    );
    // The likeliest class of each row.
    write(&files, "lp.npy", &[2, 4, 1], &[-0.5; 8]);
    files.write("i.npy", &npy("|u1", &[2, 4, 1], &[0, 1, 2, 0, 1, 2, 0, 1]));
    let lists = "--loss kd-kl --student x.npy --teacher-ids i.npy --teacher-log-probs lp.npy";
    assert_eq!(run(&files, lists).1, 8);
    // Groups of one row.
    write(&files, "x1.npy", &[8, 1, 3], &values);
    write(&files, "w1.npy", &[8, 1], &[1.0; 8]);
    let single = "--loss kd-kl --student x1.npy --teacher x1.npy --row-weights w1.npy";
    assert_eq!(run(&files, single).1, 8);
}

/// As in Python, whose dictionaries numpy.load reads: the last one counts.
#[test]
fn of_a_repeated_key_the_last_counts() {
    let files = Files::new();
    let plain = run(&files, "--loss gram --student s.npy --teacher t.npy");
    let by_column: Vec<f64> = (0..ROWS * DIM)
        .map(|at| student()[at % ROWS * DIM + at / ROWS])
        .collect();
    for (entries, values) in [
        (
            "'fortran_order': True, 'fortran_order': False, 'descr': '<f8', 'shape': (5, 3)",
            student(),
        ),
        (
            "'fortran_order': False, 'fortran_order': True, 'descr': '<f8', 'shape': (5, 3)",
            by_column,
        ),
        (
            "'shape': (3, 5), 'descr': '<f4', 'fortran_order': False, 'descr': '<f8', 'shape': (5, 3)",
            student(),
        ),
    ] {
        files.write("twice.npy", &npy_header(entries, &f64_bytes(&values)));
        let got = run(&files, "--loss gram --student twice.npy --teacher t.npy");
        assert_eq!(got, plain, "{entries}");
    }
}
