//! The values it reports: those of the definitions, in every type, on every device.

use half::{bf16, f16};
use safetensors::Dtype;
use serde_json::Value;

use crate::compare::norm;
use crate::support::*;

/// Rows scaled to length 1.
fn unit(rows: &[f64]) -> Vec<Vec<f64>> {
    let scaled = |row: &[f64]| row.iter().map(|x| x / norm(row)).collect();
    rows.chunks(DIM).map(scaled).collect()
}

fn log_softmax(row: &[f64], keys: &[Vec<f64>], temperature: f64) -> Vec<f64> {
    let dot = |key: &Vec<f64>| row.iter().zip(key).map(|(a, b)| a * b).sum::<f64>();
    let logits: Vec<f64> = keys.iter().map(|key| dot(key) / temperature).collect();
    let sum: f64 = logits.iter().map(|l| l.exp()).sum();
    logits.iter().map(|l| l - sum.ln()).collect()
}

/// RRD's cross-entropy against `keys`, from its definition.
fn rrd(keys: &[Vec<f64>]) -> f64 {
    let cross_entropy = |(z, y): (Vec<f64>, Vec<f64>)| -> f64 {
        let (log_q, log_p) = (log_softmax(&z, keys, 0.1), log_softmax(&y, keys, 0.02));
        log_p.iter().zip(log_q).map(|(p, q)| -p.exp() * q).sum()
    };
    let rows = unit(&student()).into_iter().zip(unit(&teacher()));
    rows.map(cross_entropy).sum::<f64>() / ROWS as f64
}

#[test]
fn devices_agree_in_every_dtype() {
    let files = Files::new();
    for loss in LOSSES {
        let queue = if loss == "rrd" { "--queue q.npy" } else { "" };
        for (dtype, tolerance) in [("f64", 1e-12), ("f32", 1e-5), ("f16", 1e-5), ("bf16", 1e-5)] {
            let objects = files.json(&format!("--loss {loss} {queue} --dtype {dtype}"));
            for key in ["value", "gradient_norm"] {
                let of = |object: &Value| object[key].as_f64().expect("a number");
                assert_close(of(&objects[1]), of(&objects[0]), tolerance);
            }
            assert_eq!(
                (&objects[0]["dtype"], &objects[1]["dtype"]),
                (&dtype.into(), &dtype.into())
            );
        }
    }
}

/// The mean of what it gives for files of cut rows.
#[test]
fn prefixes_give_the_mean_of_cut_rows() {
    let files = Files::new();
    for width in 1..=2 {
        let cut: Vec<f64> = student()
            .chunks(DIM)
            .flat_map(|row| row[..width].to_vec())
            .collect();
        let bytes = npy("<f8", &[ROWS, width], &f64_bytes(&cut));
        files.write(&format!("s{width}.npy"), &bytes);
    }
    // Rows of one element lie opposite to one another, which pkt's logarithm magnifies.
    for (loss, tolerance) in [
        ("gram", 1e-12),
        ("gram --clamp", 1e-12),
        ("pkt", 2e-11),
        ("order", 1e-12),
    ] {
        for device in ["reference", "cpu"] {
            let arguments = format!("--loss {loss} --device {device} --dtype f64");
            let single = |student: &str| {
                let files_of = format!("--json --student {student} --teacher t.npy");
                let output = files.run(&format!("{files_of} {arguments}"));
                let object: Value = serde_json::from_str(&text(&output.stdout)).expect("an object");
                object["value"].as_f64().expect("a finite loss")
            };
            let singles = ["s1.npy", "s2.npy", "s.npy"].map(single);
            let mean = singles.iter().sum::<f64>() / 3.0;
            let got = files.value(&format!("{arguments} --prefixes 1,2,3"));
            assert_close(got, mean, tolerance);
            let got = files.value(&format!("{arguments} --prefixes 2"));
            assert_close(got, singles[1], tolerance);
        }
    }
}

/// `g.npy` and `h.npy`, of shape `[2, 4, 3]`; `g2.npy` and `h2.npy`, of shape `[8, 3]`; and each of the
/// groups as `g-0.npy` and so on.
fn write_groups(files: &Files) {
    for (name, factor) in [("g", 7), ("h", 5)] {
        let number = |i: i32| f64::from(i * factor % 23) / 4.0 - 2.6;
        let values: Vec<f64> = (1..=24).map(number).collect();
        let write = |name: String, shape: &[usize], values: &[f64]| {
            files.write(&name, &npy("<f8", shape, &f64_bytes(values)));
        };
        write(format!("{name}.npy"), &[2, 4, 3], &values);
        write(format!("{name}2.npy"), &[8, 3], &values);
        for (nth, group) in values.chunks(12).enumerate() {
            write(format!("{name}-{nth}.npy"), &[4, 3], group);
        }
    }
}

/// Two files, and the arguments: the value and the gradient's norm.
fn evaluate(files: &Files, student: &str, teacher: &str, arguments: &str) -> Value {
    let of = format!("--json --student {student}.npy --teacher {teacher}.npy");
    let output = files.run(&format!("{of} {arguments}"));
    assert_eq!(text(&output.stderr), "", "{arguments}");
    serde_json::from_str(&text(&output.stdout)).expect("an object")
}

/// The mean of what it gives for files of single groups, whether the option or the files' shape
/// makes the groups.
#[test]
fn groups_give_the_mean_of_single_groups() {
    let files = Files::new();
    write_groups(&files);
    let value = |object: &Value| object["value"].as_f64().expect("a finite loss");
    for loss in &LOSSES[..8] {
        for device in ["reference", "cpu"] {
            let arguments = format!("--loss {loss} --device {device} --dtype f64");
            let singles = [("g-0", "h-0"), ("g-1", "h-1")]
                .map(|(student, teacher)| value(&evaluate(&files, student, teacher, &arguments)));
            let mean = (singles[0] + singles[1]) / 2.0;
            let option = evaluate(&files, "g2", "h2", &format!("{arguments} --groups 2"));
            let shape = evaluate(&files, "g", "h", &arguments);
            for got in [&option, &shape] {
                assert_close(value(got), mean, 1e-12);
                assert_eq!((&got["rows"], &got["groups"]), (&8.into(), &2.into()));
            }
            // The option has the last word.
            let whole = evaluate(&files, "g2", "h2", &arguments);
            let one = evaluate(&files, "g", "h", &format!("{arguments} --groups 1"));
            assert_eq!(value(&one), value(&whole));
            assert!(one.get("groups").is_none(), "{one}");
        }
    }
    // Rows of logits are not compared: they have no groups.
    for arguments in [
        "--loss kd-kl --device cpu",
        "--loss kd-kl --device reference",
    ] {
        let [of, flat] = [("g", "h"), ("g2", "h2")]
            .map(|(student, teacher)| value(&evaluate(&files, student, teacher, arguments)));
        assert_eq!(of, flat);
    }
    // With prefixes, and in the table.
    let arguments = "--loss gram --device cpu --dtype f64 --prefixes 1,2";
    let singles = [("g-0", "h-0"), ("g-1", "h-1")]
        .map(|(student, teacher)| value(&evaluate(&files, student, teacher, arguments)));
    let got = value(&evaluate(&files, "g", "h", arguments));
    assert_close(got, (singles[0] + singles[1]) / 2.0, 1e-12);
    #[cfg(feature = "emulator")]
    for loss in ["gram", "rkd", "order --margin 0.1"] {
        let on = |device| {
            let arguments = format!("--loss {loss} --device {device} --dtype f32");
            value(&evaluate(&files, "g", "h", &arguments))
        };
        assert_close(on("emulator"), on("reference"), 1e-5);
    }
    let table = files.run("--student g.npy --teacher h.npy --loss gram");
    assert!(text(&table.stdout).contains(" 2 x 4 x 3/3 "), "{table:?}");
}

/// A gradient has the shape of the student's file.
#[test]
fn a_gradient_of_groups_has_groups() {
    let files = Files::new();
    write_groups(&files);
    let mut data = Vec::new();
    for (student, teacher, option, shape) in [
        ("g", "h", "", "(2, 4, 3,"),
        ("g2", "h2", "--groups 2", "(8, 3,"),
    ] {
        let arguments = format!("--loss sp --device cpu --gradient o.npy {option}");
        evaluate(&files, student, teacher, &arguments);
        let bytes = std::fs::read(files.0.path().join("o.npy")).expect("a gradient");
        let (header, numbers) = bytes.split_at(bytes.len() - 24 * 4);
        let header = String::from_utf8_lossy(header);
        assert!(header.contains(shape), "{header}");
        data.push(numbers.to_vec());
    }
    assert_eq!(data[0], data[1]);
}

/// It has to be asked for, by name; in any type it has.
#[cfg(feature = "emulator")]
#[test]
fn the_emulator_agrees() {
    let files = Files::new();
    for loss in [
        "rkd-distance",
        "rkd",
        "sp",
        "gram --clamp",
        "pkt",
        "order --margin 0.1",
        "gram --prefixes 1,3",
        "order --prefixes 2",
        "dark-rank --alpha 0.5 --beta 2 --length 3",
        "kd-kl",
        "kd-kl --divergence js",
    ] {
        for dtype in ["f32", "f16", "bf16"] {
            let devices = "--device reference --device emulator";
            let objects = files.json(&format!("--loss {loss} --dtype {dtype} {devices}"));
            assert_eq!(objects[1]["device"], "emulator");
            for key in ["value", "gradient_norm"] {
                let of = |object: &Value| object[key].as_f64().expect("a number");
                assert_close(of(&objects[1]), of(&objects[0]), 1e-5);
            }
        }
    }
}

/// Two f16 a weight or one: the gradients differ, and both are right. What doesn't round weights
/// does not care.
#[cfg(feature = "emulator")]
#[test]
fn weights_are_as_precise_as_asked_for() {
    let files = Files::new();
    let norms = |weights: &str, tolerance: f64| {
        let devices = "--device reference --device cpu --device emulator";
        let arguments =
            format!("--loss rrd --queue q.npy --dtype bf16 --weights {weights} {devices}");
        let objects = files.json(&arguments);
        for key in ["value", "gradient_norm"] {
            let of = |object: &Value| object[key].as_f64().expect("a number");
            assert_close(of(&objects[2]), of(&objects[0]), tolerance);
        }
        [1, 2].map(|at: usize| objects[at]["gradient_norm"].as_f64())
    };
    // Keys are rounded to f16 in any case.
    let ([cpu, split], [same, half]) = (norms("split", 2e-3), norms("half", 4e-3));
    assert_eq!(cpu, same);
    assert_ne!(split, half);
}

/// Inputs that a type does not hold are rounded to it, for the reference as well.
#[test]
fn inputs_are_rounded_to_the_dtype_asked_for() {
    let files = Files::new();
    let third = |values: Vec<f64>| values.into_iter().map(|x| x / 3.0).collect::<Vec<f64>>();
    let rounded = |x: f64| bf16::from_f64(x).to_f64();
    let write = |name: &str, values: &[f64]| {
        files.write(name, &npy("<f8", &[ROWS, DIM], &f64_bytes(values)));
    };
    let (student, teacher) = (third(student()), third(teacher()));
    write("s.npy", &student);
    write("t.npy", &teacher);
    let exact = files.value("--loss rkd --device reference");
    let coarse = files.value("--loss rkd --device reference --dtype bf16");
    write(
        "s.npy",
        &student.into_iter().map(rounded).collect::<Vec<_>>(),
    );
    write(
        "t.npy",
        &teacher.into_iter().map(rounded).collect::<Vec<_>>(),
    );
    assert_eq!(coarse, files.value("--loss rkd --device reference"));
    assert!(coarse != exact, "bf16 is coarser than f64");
}

#[test]
fn the_queue_is_what_the_order_of_enqueueing_makes_it() {
    let files = Files::new();
    let value =
        |arguments: &str| files.value(&format!("--loss rrd --device reference {arguments}"));
    let (stored, batch) = (unit(&keys()), unit(&teacher()));
    let expected = rrd(&stored);
    assert_close(value("--queue q.npy --enqueue none"), expected, 1e-12);
    assert_close(value("--queue q.npy --enqueue after"), expected, 1e-12);
    // Four slots for five keys: the last four of the batch.
    let expected = rrd(&batch[1..]);
    assert_close(value("--queue q.npy --enqueue before"), expected, 1e-12);
    assert_close(value("--queue q.npy"), expected, 1e-12);
    assert_close(value(""), rrd(&batch), 1e-12);
    files.refuses(
        "--student s.npy --teacher t.npy --loss rrd --enqueue none",
        "queue keys",
    );
}

#[test]
fn info_nce_is_in_batch_unless_it_has_a_queue() {
    let files = Files::new();
    let value =
        |arguments: &str| files.value(&format!("--loss info-nce --device reference {arguments}"));
    let (z, y) = (unit(&student()), unit(&teacher()));
    let in_batch: f64 = (0..ROWS).map(|i| -log_softmax(&z[i], &y, 0.07)[i]).sum();
    assert_close(value(""), in_batch / ROWS as f64, 1e-12);
    let with_queue = |queue: &[Vec<f64>]| -> f64 {
        let logits = |i: usize| log_softmax(&z[i], &[&y[i..=i], queue].concat(), 0.5)[0];
        (0..ROWS).map(|i| -logits(i)).sum::<f64>() / ROWS as f64
    };
    assert_close(
        value("--queue q.npy --temperature 0.5"),
        with_queue(&unit(&keys())),
        1e-12,
    );
    let before = value("--queue q.npy --temperature 0.5 --enqueue before");
    assert_close(before, with_queue(&y[1..]), 1e-12);
}

#[test]
fn without_normalisation_rows_and_keys_are_taken_as_they_come() {
    let files = Files::new();
    let rows =
        |values: Vec<f64>| -> Vec<Vec<f64>> { values.chunks(DIM).map(<[f64]>::to_vec).collect() };
    let (z, y) = (rows(student()), rows(teacher()));
    let logits = |i: usize| log_softmax(&z[i], &[&y[i..=i], &rows(keys())].concat(), 0.5)[0];
    let expected: f64 = (0..ROWS).map(|i| -logits(i)).sum::<f64>() / ROWS as f64;
    let arguments =
        "--loss info-nce --device reference --no-normalize --temperature 0.5 --queue q.npy";
    assert_close(files.value(arguments), expected, 1e-12);
}

#[test]
fn every_type_of_file_gives_the_same_values() {
    let files = Files::new();
    let expected: Vec<f64> = vec![files.value("--loss rkd --device reference")];
    let rounded = |bytes: fn(f64) -> Vec<u8>, values: Vec<f64>| -> Vec<u8> {
        values.into_iter().flat_map(bytes).collect()
    };
    let as_f32 = |x: f64| (x as f32).to_le_bytes().to_vec();
    let as_f16 = |x: f64| f16::from_f64(x).to_le_bytes().to_vec();
    let as_bf16 = |x: f64| bf16::from_f64(x).to_le_bytes().to_vec();
    let as_f64 = |x: f64| x.to_le_bytes().to_vec();
    files.write(
        "s32.npy",
        &npy("<f4", &[ROWS, DIM], &rounded(as_f32, student())),
    );
    files.write(
        "t16.npy",
        &npy("<f2", &[ROWS, DIM], &rounded(as_f16, teacher())),
    );
    let shape: &[usize] = &[ROWS, DIM];
    let tensors = [
        ("bf16", Dtype::BF16, rounded(as_bf16, student())),
        ("f16", Dtype::F16, rounded(as_f16, student())),
        ("f32", Dtype::F32, rounded(as_f32, student())),
        ("f64", Dtype::F64, rounded(as_f64, student())),
    ];
    let tensors: Vec<_> = tensors
        .iter()
        .map(|(name, t, data)| (*name, *t, shape, &data[..]))
        .collect();
    files.write("s.safetensors", &safetensors(&tensors));
    let only = rounded(as_bf16, teacher());
    files.write(
        "t.safetensors",
        &safetensors(&[("only", Dtype::BF16, shape, &only)]),
    );
    // Column by column, the high byte of a number first, and with dimensions of 1.
    let by_column = |values: &[f64]| -> Vec<f64> {
        let column = |d: usize| values.iter().skip(d).step_by(DIM).copied();
        (0..DIM).flat_map(column).collect()
    };
    let high_first = |x: f64| x.to_be_bytes().to_vec();
    let data = rounded(high_first, by_column(&student()));
    let header = format!("'descr': '>f8', 'fortran_order': True, 'shape': ({ROWS}, {DIM})");
    files.write("columns.npy", &npy_header(&header, &data));
    let data = rounded(as_f64, teacher());
    files.write("pooled.npy", &npy("<f8", &[ROWS, DIM, 1, 1], &data));
    for (student, teacher) in [
        ("columns.npy", "pooled.npy"),
        ("s32.npy", "t16.npy"),
        ("s.safetensors:bf16", "t.safetensors"),
        ("s.safetensors:f16", "t.safetensors:only"),
        ("s.safetensors:f32", "t.npy"),
        ("s.safetensors:f64", "t.npy"),
    ] {
        let output = files.run(&format!(
            "--student {student} --teacher {teacher} --loss rkd --device reference --json"
        ));
        let object: Value = serde_json::from_slice(&output.stdout).expect("an object");
        assert_eq!(
            object["value"].as_f64(),
            Some(expected[0]),
            "{student} {teacher}"
        );
    }
    let start = "--teacher t.npy --student";
    files.refuses(&format!("{start} s.safetensors"), "choose one of 4: ");
    files.refuses(
        &format!("{start} s.safetensors:f8"),
        "expected a name in the file or a pattern of one, got \"f8\"",
    );
}

/// Groups of rows, `[2, 3, 4]`, by their first index and by their last.
#[test]
fn groups_may_lie_in_either_order() {
    let files = Files::new();
    let shape = [2, 3, 4];
    let element = |[g, row, d]: [usize; 3]| ((g * 12 + row * 4 + d) as f64 * 0.7).sin();
    let mut by_rows = Vec::new();
    for (g, row) in (0..2).flat_map(|g| (0..3).map(move |row| (g, row))) {
        by_rows.extend((0..4).map(|d| element([g, row, d])));
    }
    let mut by_groups = Vec::new();
    for (d, row) in (0..4).flat_map(|d| (0..3).map(move |row| (d, row))) {
        by_groups.extend((0..2).map(|g| element([g, row, d])));
    }
    files.write("rows.npy", &npy("<f8", &shape, &f64_bytes(&by_rows)));
    let header = "'descr': '<f8', 'fortran_order': True, 'shape': (2, 3, 4)";
    files.write("groups.npy", &npy_header(header, &f64_bytes(&by_groups)));
    let doubled: Vec<f64> = by_rows.iter().map(|x| x * x).collect();
    files.write("t.npy", &npy("<f8", &shape, &f64_bytes(&doubled)));
    let value = |student: &str| {
        let start = "--teacher t.npy --loss gram --device reference --json --student";
        let output = files.run(&format!("{start} {student}"));
        let object: Value = serde_json::from_slice(&output.stdout).expect("an object");
        object["value"].as_f64().expect("a number")
    };
    assert_eq!(value("groups.npy"), value("rows.npy"));
    assert_ne!(value("rows.npy"), 0.0);
}
