//! The files it reads: their shapes, and how they name what they hold.

use std::fs;

use npyz::NpyFile;
use safetensors::Dtype;
use zip::CompressionMethod::{Deflated, Stored};

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

#[test]
fn arrays_of_npz_files_are_read_by_name() {
    let files = Files::new();
    let plain = run(&files, "--loss gram --student s.npy --teacher t.npy");
    let of = |values: &[f64]| npy("<f8", &[ROWS, DIM], &f64_bytes(values));
    let (student, teacher) = (of(&student()), of(&teacher()));
    let by_column: Vec<f64> = (0..ROWS * DIM)
        .map(|at| self::student()[at % ROWS * DIM + at / ROWS])
        .collect();
    let columns = npy_header(
        "'descr': '<f8', 'fortran_order': True, 'shape': (5, 3)",
        &f64_bytes(&by_column),
    );
    for method in [Stored, Deflated] {
        files.write("only.npz", &npz(&[("arr_0.npy", method, &teacher)]));
        let members = [
            ("student.npy", method, &student[..]),
            ("teacher.npy", method, &teacher),
            ("by/column.npy", method, &columns),
            ("x.safetensors:y.npy", method, &student),
            ("notes.txt", method, b"of no use"),
        ];
        files.write("both.npz", &npz(&members));
        for (student, teacher) in [
            ("both.npz:student", "both.npz:teacher"),
            ("both.npz:student", "only.npz"),
            ("s.npy", "only.npz:arr_0"),
            ("both.npz:by/column", "t.npy"),
            ("both.npz:by*", "both.npz:t?acher"),
            ("both.npz:x.safetensors:y", "t.npy"),
        ] {
            let arguments = format!("--loss gram --student {student} --teacher {teacher}");
            assert_eq!(run(&files, &arguments), plain, "{arguments}");
        }
        let start = "--teacher t.npy --student";
        for (student, expected) in [
            (
                "both.npz",
                "--student both.npz: expected FILE.npz:NAME, got no name; choose one of 4: ",
            ),
            (
                "both.npz:x",
                "expected a name in the file or a pattern of one, got \"x\"; choose one of 4: ",
            ),
            (
                "both.npz:[st]*",
                "expected a pattern of one name in the file, got \"[st]*\"; choose one of 2: student, teacher",
            ),
            ("none.npz:x", "expected a file that can be read"),
        ] {
            files.refuses(&format!("{start} {student}"), expected);
        }
    }
    // What is read of an archive is not written to.
    files.refuses(
        "--student both.npz:student --teacher t.npy --plot both.npz",
        "--plot both.npz: expected another file than that of --student",
    );
}

/// Damaged, or made to mislead.
#[test]
fn hostile_npz_files_are_refused() {
    let files = Files::new();
    let good = npy("<f8", &[ROWS, DIM], &f64_bytes(&student()));
    let stored = npz(&[("a.npy", Stored, &good)]);
    let deflated = npz(&[("a.npy", Deflated, &good)]);
    let at = |archive: &[u8], bytes: &[u8]| {
        let mut found = archive.windows(bytes.len());
        found
            .position(|window| window == bytes)
            .expect("it is there")
    };
    let changed = |archive: &[u8], at: usize, bytes: &[u8]| {
        let mut archive = archive.to_vec();
        archive[at..at + bytes.len()].copy_from_slice(bytes);
        archive
    };
    // The last byte of the data, which the checksum knows.
    let data = at(&stored, b"\x93NUMPY") + good.len() - 1;
    let central = at(&deflated, b"PK\x01\x02");
    let claims = |archive: &[u8], method: u16, size: u32| {
        let central = at(archive, b"PK\x01\x02");
        let archive = changed(archive, central + 10, &method.to_le_bytes());
        changed(&archive, central + 24, &size.to_le_bytes())
    };
    let huge = npy("<f8", &[1 << 25, 4], &[]);
    let truncated = npz(&[("a.npy", Deflated, &huge)]);
    for (bytes, expected) in [
        (Vec::new(), "expected a .npz file, got: "),
        (good.clone(), "expected a .npz file, got: "),
        (stored[..stored.len() - 1].to_vec(), "expected a .npz file"),
        (stored[..central / 2].to_vec(), "expected a .npz file"),
        (npz(&[]), "expected a file that holds an array, got none"),
        (
            npz(&[("a.txt", Stored, &good)]),
            "expected a file that holds an array, got none",
        ),
        (
            npz(&[("a.npy", Stored, &good[..good.len() - 1])]),
            "expected 120 bytes of data for shape [5, 3] of f64, got 119",
        ),
        (
            npz(&[("a.npy", Deflated, b"no array")]),
            "cut off after 8 bytes",
        ),
        (changed(&stored, data, &[0x7f]), "Invalid checksum"),
        (claims(&stored, 0, 1 << 30), "expected \"a\" in the file's"),
        (
            claims(&truncated, 8, 1 << 30),
            "bytes that stand for 1073741824",
        ),
        (claims(&stored, 12, 1 << 10), "expected"),
        (claims(&stored, 99, 1 << 10), "expected"),
    ] {
        files.refuses_file("bad.npz", &bytes, expected);
    }
}

#[test]
fn tensors_are_found_by_pattern() {
    let files = Files::new();
    let plain = run(&files, "--loss gram --student s.npy --teacher t.npy");
    let shape: &[usize] = &[ROWS, DIM];
    let (student, teacher) = (f64_bytes(&student()), f64_bytes(&teacher()));
    let tensors: Vec<(&str, Dtype, &[usize], &[u8])> = vec![
        ("model.student.out", Dtype::F64, shape, &student),
        ("model.teacher.out", Dtype::F64, shape, &teacher),
        ("model.teacher.out*", Dtype::F64, shape, &student),
        ("x[0]", Dtype::F64, shape, &student),
        ("a.npz:b", Dtype::F64, shape, &student),
    ];
    files.write("m.safetensors", &safetensors(&tensors));
    for (student, teacher) in [
        ("m.safetensors:*student*", "t.npy"),
        ("s.npy", "m.safetensors:*.teacher.out"),
        ("s.npy", "m.safetensors:model.?eacher.out"),
        ("m.safetensors:x[0]", "m.safetensors:*r.o[tu][!a-s]"),
        ("m.safetensors:a.npz:b", "t.npy"),
        // A name that is a pattern, too.
        ("m.safetensors:model.teacher.out*", "t.npy"),
    ] {
        let arguments = format!("--loss gram --student {student} --teacher {teacher}");
        assert_eq!(run(&files, &arguments), plain, "{arguments}");
    }
    for (pattern, expected) in [
        (
            "*out",
            "expected a pattern of one name in the file, got \"*out\"; choose one of 2: ",
        ),
        (
            "*in",
            "expected a name in the file or a pattern of one, got \"*in\"; choose one of 5: ",
        ),
        ("x[", "expected a name in the file or a pattern of one"),
        ("***", "expected a"),
    ] {
        let arguments = format!("--teacher t.npy --student m.safetensors:{pattern}");
        files.refuses(&arguments, expected);
    }
}
