//! Weights of rows, the teacher's most likely classes, and vocabularies of two sizes.

use std::fs;

use npyz::NpyFile;
use safetensors::Dtype;

use crate::support::*;

/// T of all tests here.
const TEMPERATURE: f64 = 2.0;
const WEIGHTS: [f64; ROWS] = [0.5, 0.0, 2.0, 1.25, 0.25];

/// The logarithms of a row's softmax at [`TEMPERATURE`].
fn log_softmax(logits: &[f64]) -> Vec<f64> {
    let scaled: Vec<f64> = logits.iter().map(|l| l / TEMPERATURE).collect();
    let sum: f64 = scaled.iter().map(|l| l.exp()).sum();
    scaled.iter().map(|l| l - sum.ln()).collect()
}

/// T² Σ p ln(p/q), of logarithms.
fn divergence(log_p: &[f64], log_q: &[f64]) -> f64 {
    let each = log_p.iter().zip(log_q).map(|(p, q)| p.exp() * (p - q));
    TEMPERATURE * TEMPERATURE * each.sum::<f64>()
}

fn log_softmaxes(logits: &[f64], dim: usize) -> Vec<Vec<f64>> {
    logits.chunks(dim).map(log_softmax).collect()
}

/// The definition's loss of each row.
fn row_losses() -> Vec<f64> {
    let (p, q) = (
        log_softmaxes(&teacher(), DIM),
        log_softmaxes(&student(), DIM),
    );
    p.iter().zip(&q).map(|(p, q)| divergence(p, q)).collect()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn weighted_mean(values: &[f64]) -> f64 {
    let products = values
        .iter()
        .zip(WEIGHTS)
        .map(|(value, weight)| weight * value);
    products.sum::<f64>() / WEIGHTS.iter().sum::<f64>()
}

/// The devices, with their types, and how far from the definition they may be.
fn devices() -> Vec<(&'static str, f64)> {
    let mut devices = vec![
        ("--device reference --dtype f64", 1e-12),
        ("--device cpu --dtype f64", 1e-12),
        ("--device reference --dtype f32", 1e-6),
        ("--device cpu --dtype f32", 1e-5),
        ("--device cpu --dtype bf16", 1e-5),
    ];
    if cfg!(feature = "emulator") {
        devices.push(("--device emulator --dtype f32", 1e-5));
        devices.push(("--device emulator --dtype f16", 1e-5));
    }
    devices
}

/// What a run prints: one object.
fn object(files: &Files, arguments: &str) -> serde_json::Value {
    let output = files.run(&format!("--json --loss kd-kl --temperature 2 {arguments}"));
    assert_eq!(text(&output.stderr), "", "{arguments}");
    serde_json::from_slice(&output.stdout).expect("one object")
}

fn value(files: &Files, arguments: &str) -> f64 {
    object(files, arguments)["value"]
        .as_f64()
        .expect("a finite loss")
}

/// The shape and the numbers of a file of f64.
fn read(files: &Files, name: &str) -> (Vec<u64>, Vec<f64>) {
    let file = fs::File::open(files.0.path().join(name)).expect("a file");
    let file = NpyFile::new(file).expect("a .npy file");
    (file.shape().to_vec(), file.into_vec().expect("f64"))
}

fn write(files: &Files, name: &str, shape: &[usize], values: &[f64]) {
    files.write(name, &npy("<f8", shape, &f64_bytes(values)));
}

fn write_ids(files: &Files, shape: &[usize], ids: &[i64]) {
    let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    files.write("ids.npy", &npy("<i8", shape, &bytes));
}

const DENSE: &str = "--student s.npy --teacher t.npy";
const LISTS: &str = "--student s.npy --teacher-ids ids.npy --teacher-log-probs lp.npy";

#[test]
fn weights_make_the_weighted_mean_of_the_rows() {
    let files = Files::new();
    write(&files, "w.npy", &[ROWS], &WEIGHTS);
    // A row of weight 0 may hold anything, and nothing is said of it.
    let mut hollow = student();
    hollow[DIM..2 * DIM].fill(f64::NAN);
    write(&files, "hollow.npy", &[ROWS, DIM], &hollow);
    let losses = row_losses();
    for (device, tolerance) in devices() {
        let plain = value(&files, &format!("{DENSE} {device} --per-row rows.npy"));
        assert_close(plain, mean(&losses), tolerance);
        let (shape, rows) = read(&files, "rows.npy");
        assert_eq!(shape, [ROWS as u64]);
        for (got, expected) in rows.iter().zip(&losses) {
            assert_close(*got, *expected, tolerance);
        }
        for student in ["s.npy", "hollow.npy"] {
            let arguments = format!(
                "--student {student} --teacher t.npy --row-weights w.npy --checked --per-row rows.npy {device}"
            );
            assert_close(value(&files, &arguments), weighted_mean(&losses), tolerance);
            let (_, rows) = read(&files, "rows.npy");
            assert_eq!(rows[1], 0.0);
            assert_close(rows[2], losses[2], tolerance);
        }
    }
}

/// Whatever the integers' type, and whatever stands for no class.
#[test]
fn a_list_of_all_classes_is_the_teacher() {
    let files = Files::new();
    let order = [2usize, 0, 1];
    let listed = |row: &Vec<f64>| order.map(|class| row[class]);
    let p = log_softmaxes(&teacher(), DIM);
    let log_probs: Vec<f64> = p.iter().flat_map(listed).collect();
    write(&files, "lp.npy", &[ROWS, DIM], &log_probs);
    for (descr, bytes) in [
        ("|i1", 1),
        ("<i2", 2),
        ("<i4", 4),
        ("<i8", 8),
        ("|u1", 1),
        ("<u2", 2),
        ("<u4", 4),
        ("<u8", 8),
    ] {
        let ids: Vec<u8> = (0..ROWS)
            .flat_map(|_| order)
            .flat_map(|class| class.to_le_bytes()[..bytes].to_vec())
            .collect();
        files.write("ids.npy", &npy(descr, &[ROWS, DIM], &ids));
        assert_close(
            value(&files, &format!("{LISTS} --device reference")),
            mean(&row_losses()),
            1e-12,
        );
    }
    for (device, tolerance) in devices() {
        let dense = object(&files, &format!("{DENSE} {device}"));
        let lists = object(&files, &format!("{LISTS} {device} --gradient g.npy"));
        for key in ["value", "gradient_norm"] {
            let of = |object: &serde_json::Value| object[key].as_f64().expect("a number");
            assert_close(of(&lists), of(&dense), tolerance);
        }
        assert_eq!(lists["teacher_k"], 3);
        assert!(lists.get("teacher_dim").is_none(), "{lists}");
    }

    // A fourth entry, which no row has: any number stands for its class.
    let of_four = |row: &Vec<f64>| [row[2], row[0], f64::NEG_INFINITY, row[1]];
    let log_probs: Vec<f64> = p.iter().flat_map(of_four).collect();
    let ids: Vec<i64> = (0..ROWS).flat_map(|_| [2, 0, -1, 1]).collect();
    write(&files, "lp.npy", &[ROWS, 4], &log_probs);
    write_ids(&files, &[ROWS, 4], &ids);
    let padded = value(
        &files,
        &format!("{LISTS} --device cpu --dtype f64 --checked"),
    );
    assert_close(padded, mean(&row_losses()), 1e-12);

    // As safetensors.
    let (ids, log_probs): (Vec<u8>, Vec<u8>) = (
        ids.iter().flat_map(|id| id.to_le_bytes()).collect(),
        f64_bytes(&log_probs),
    );
    files.write(
        "lists.safetensors",
        &safetensors(&[
            ("ids", Dtype::I64, &[ROWS, 4], &ids),
            ("lp", Dtype::F64, &[ROWS, 4], &log_probs),
        ]),
    );
    let same = "--student s.npy --teacher-ids lists.safetensors:ids \
                --teacher-log-probs lists.safetensors:lp --device cpu --dtype f64";
    assert_eq!(value(&files, same), padded);
    // And in the table.
    let table = files.run(&format!("--loss kd-kl {LISTS}"));
    assert!(text(&table.stdout).contains(" 5 x 3/top 4 "), "{table:?}");
}

#[test]
fn a_list_has_a_tail_unless_it_is_left_out() {
    let files = Files::new();
    // Of each row the second and the third class, with halves and quarters as probabilities.
    let log_probs: Vec<f64> = (0..ROWS)
        .flat_map(|row| [[0.5, 0.25], [0.125, 0.625]][row % 2])
        .map(f64::ln)
        .collect();
    write(&files, "lp.npy", &[ROWS, 2], &log_probs);
    write_ids(&files, &[ROWS, 2], &[1, 2].repeat(ROWS));
    write(&files, "w.npy", &[ROWS], &WEIGHTS);
    let of = |has_tail: bool, reverse: bool| -> Vec<f64> {
        let q = log_softmaxes(&student(), DIM);
        let lists = log_probs.chunks(2).zip(&q);
        let row = |(list, q): (&[f64], &Vec<f64>)| {
            let (mut p, mut q) = (list.to_vec(), vec![q[1], q[2], q[0]]);
            p.push(0.25f64.ln());
            if !has_tail {
                p.pop();
                q.pop();
            }
            if reverse {
                divergence(&q, &p)
            } else {
                divergence(&p, &q)
            }
        };
        lists.map(row).collect()
    };
    for (device, tolerance) in devices() {
        for reverse in [false, true] {
            let direction = if reverse { "--divergence reverse" } else { "" };
            for (tail, has_tail) in [("", true), ("--no-tail", false)] {
                let arguments = format!("{LISTS} {direction} {tail} {device}");
                let rows = of(has_tail, reverse);
                // 0.125 and 0.625 leave a quarter, too.
                assert_close(value(&files, &arguments), mean(&rows), tolerance);
                let weighted = format!("{arguments} --row-weights w.npy --per-row rows.npy");
                assert_close(value(&files, &weighted), weighted_mean(&rows), tolerance);
                let (_, got) = read(&files, "rows.npy");
                assert_eq!(got[1], 0.0);
                assert_close(got[4], rows[4], tolerance);
            }
        }
    }
}

#[test]
fn the_first_classes_of_two_vocabularies_are_compared() {
    let files = Files::new();
    let cut = |logits: &[f64]| -> Vec<f64> {
        let rows = logits.chunks(DIM);
        rows.flat_map(|row| row[..2].to_vec()).collect()
    };
    let (x, y) = (cut(&student()), cut(&teacher()));
    write(&files, "t2.npy", &[ROWS, 2], &y);
    // What is not compared may hold anything.
    let mut padded = student();
    padded
        .chunks_mut(DIM)
        .for_each(|row| row[2] = f64::INFINITY);
    write(&files, "padded.npy", &[ROWS, DIM], &padded);
    let (p, q) = (log_softmaxes(&y, 2), log_softmaxes(&x, 2));
    let losses: Vec<f64> = p.iter().zip(&q).map(|(p, q)| divergence(p, q)).collect();
    for (device, tolerance) in devices() {
        for student in ["s.npy", "padded.npy"] {
            for teacher in ["t.npy", "t2.npy"] {
                let files_of = format!("--student {student} --teacher {teacher}");
                let got = value(
                    &files,
                    &format!("{files_of} --classes 2 --checked {device}"),
                );
                assert_close(got, mean(&losses), tolerance);
            }
        }
    }
}

/// The weighted mean is that of the losses that the same run writes.
#[test]
fn losses_of_keys_take_weights_too() {
    let files = Files::new();
    write(&files, "w.npy", &[ROWS], &WEIGHTS);
    for loss in ["rrd", "info-nce", "info-nce --queue q.npy"] {
        for (device, tolerance) in devices() {
            let run = |weights: &str| {
                let arguments = format!("--loss {loss} {weights} {device} --per-row rows.npy");
                (files.value(&arguments), read(&files, "rows.npy").1)
            };
            let (plain, rows) = run("");
            assert_close(plain, mean(&rows), tolerance);
            let (weighted, again) = run("--row-weights w.npy");
            assert_close(weighted, weighted_mean(&rows), tolerance);
            assert_eq!(again[1], 0.0);
            assert_close(again[2], rows[2], tolerance);
        }
    }
}

/// Files of sequences: `[B, N, C]`, and what belongs to each row.
#[test]
fn rows_of_sequences_have_weights_and_lists_of_their_shape() {
    let files = Files::new();
    let logits: Vec<f64> = (0..24).map(|i| f64::from(i * 7 % 23) / 4.0 - 2.0).collect();
    let weights: Vec<f64> = (0..8).map(|row| f64::from(row % 3)).collect();
    let log_probs: Vec<f64> = (0..16).map(|at| [0.5f64, 0.25][at % 2].ln()).collect();
    for (prefix, of) in [("", &[2usize, 4][..]), ("flat-", &[8])] {
        let shape = |dim: usize| [of, &[dim]].concat();
        write(&files, &format!("{prefix}x.npy"), &shape(3), &logits);
        write(&files, &format!("{prefix}w.npy"), of, &weights);
        write(&files, &format!("{prefix}lp.npy"), &shape(2), &log_probs);
        let ids: Vec<u8> = (0..16).map(|at| [2, 1][at % 2]).collect();
        files.write(&format!("{prefix}i.npy"), &npy("|u1", &shape(2), &ids));
    }
    let arguments = |prefix: &str| {
        format!(
            "--student {prefix}x.npy --teacher-ids {prefix}i.npy --teacher-log-probs {prefix}lp.npy \
             --row-weights {prefix}w.npy --device cpu --per-row {prefix}rows.npy"
        )
    };
    assert_eq!(
        value(&files, &arguments("")),
        value(&files, &arguments("flat-"))
    );
    let (of_groups, flat) = (read(&files, "rows.npy"), read(&files, "flat-rows.npy"));
    assert_eq!((of_groups.0, flat.0), (vec![2, 4], vec![8]));
    assert_eq!(of_groups.1, flat.1);
    for file in ["w", "lp", "i"] {
        let mixed = arguments("").replace(&format!(" {file}.npy"), &format!(" flat-{file}.npy"));
        let refused = format!("--loss kd-kl {mixed}");
        files.refuses(&refused, "rows without groups");
    }
}

#[test]
fn other_losses_are_left_out_or_refused() {
    let files = Files::new();
    write(&files, "w.npy", &[ROWS], &WEIGHTS);
    write(&files, "lp.npy", &[ROWS, 2], &[-1.0; 2 * ROWS]);
    write_ids(&files, &[ROWS, 2], &[0, 1].repeat(ROWS));
    let weighted = format!("{DENSE} --row-weights w.npy");
    for (arguments, argument, left_out, others) in [
        (
            &weighted[..],
            "row_weights",
            8,
            "rrd, info-nce and kd-kl do",
        ),
        (LISTS, "top_k", 10, "kd-kl does"),
    ] {
        for loss in &LOSSES[..left_out] {
            let expected = format!("error: {loss}: this {loss} takes no {argument}; {others}");
            files.refuses(&format!("{arguments} --loss {loss}"), &expected);
        }
        let output = files.run(&format!("{arguments} --json --device cpu"));
        let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(stdout.lines().count(), LOSSES.len() - left_out, "{stdout}");
        assert_eq!(
            stderr.matches("is left out: ").count(),
            left_out,
            "{stderr}"
        );
    }
    for loss in &LOSSES[..8] {
        files.refuses(
            &format!("{DENSE} --loss {loss} --device cpu --per-row r.npy"),
            &format!("--per-row: expected --loss rrd, info-nce or kd-kl with it, got {loss}"),
        );
    }
    let (_, notes) = files.json_and_notes("--loss kd-kl --device cpu --no-tail");
    assert_eq!(notes, "note: --no-tail is not used by any loss evaluated\n");
    let (_, notes) = files.json_and_notes("--loss rkd --device cpu --classes 2");
    assert_eq!(notes, "note: --classes is not used by any loss evaluated\n");
}

#[test]
fn bad_weights_and_lists_are_refused() {
    let files = Files::new();
    write(&files, "lp.npy", &[ROWS, 2], &[-1.0; 2 * ROWS]);
    write(&files, "lp3.npy", &[ROWS, 3], &[-1.0; 3 * ROWS]);
    write(&files, "lp4.npy", &[4, 2], &[-1.0; 8]);
    write(&files, "likely.npy", &[ROWS, 2], &[-0.1; 2 * ROWS]);
    write(&files, "nan.npy", &[ROWS, 2], &[f64::NAN; 2 * ROWS]);
    write(&files, "floats.npy", &[ROWS, 2], &[1.0; 2 * ROWS]);
    write(&files, "wide.npy", &[1, ROWS], &[1.0; ROWS]);
    write(&files, "short.npy", &[4], &[1.0; 4]);
    write(&files, "negative.npy", &[ROWS], &[1.0, 1.0, -0.5, 1.0, 1.0]);
    write(&files, "none.npy", &[ROWS], &[f64::NAN; ROWS]);
    write(&files, "t2.npy", &[ROWS, 2], &teacher()[..2 * ROWS]);
    write_ids(&files, &[ROWS, 2], &[0, 1].repeat(ROWS));
    let integers = |name: &str, descr: &str, id: u64, bytes: usize| {
        let mut ids = vec![[0, 1]; ROWS];
        ids[3] = [0, id];
        let all: Vec<u8> = ids
            .into_iter()
            .flatten()
            .flat_map(|id: u64| id.to_le_bytes()[..bytes].to_vec())
            .collect();
        files.write(name, &npy(descr, &[ROWS, 2], &all));
    };
    integers("minus.npy", "<i2", u64::from((-2i16) as u16), 2);
    integers("large.npy", "<i4", 3, 4);
    integers("huge.npy", "<u8", 1 << 32, 8);
    integers("twice.npy", "|u1", 0, 1);
    integers("bytes.npy", "|i4", 0, 4);
    let with = |arguments: &str| format!("--loss kd-kl {arguments}");
    let list = |ids: &str, log_probs: &str| {
        format!("--student s.npy --teacher-ids {ids}.npy --teacher-log-probs {log_probs}.npy")
    };
    for (arguments, expected) in [
        // One file of two.
        (
            "--student s.npy --teacher-ids ids.npy".to_owned(),
            "--teacher-log-probs",
        ),
        (
            "--student s.npy --teacher-log-probs lp.npy".to_owned(),
            "--teacher-ids",
        ),
        (
            "--teacher-ids ids.npy --teacher-log-probs lp.npy".to_owned(),
            "--student",
        ),
        (format!("{LISTS} --teacher t.npy"), "cannot be used with"),
        ("--student s.npy".to_owned(), "--teacher-ids"),
        // Types.
        (
            list("floats", "lp"),
            "--teacher-ids floats.npy: expected dtype i8 to i64 or u8 to u64 (|i1, <i2, <i4, <i8, \
             |u1, <u2, <u4, <u8), got \"<f8\"",
        ),
        (list("bytes", "lp"), "got \"|i4\""),
        (
            list("ids", "ids"),
            "--teacher-log-probs ids.npy: expected dtype f16, f32 or f64",
        ),
        (
            format!("{DENSE} --row-weights ids.npy"),
            "--row-weights ids.npy: expected dtype f16, f32 or f64",
        ),
        // Shapes.
        (
            list("ids", "lp3"),
            "--teacher-log-probs lp3.npy: expected 2 classes a row, as --teacher-ids ids.npy has, got 3",
        ),
        (
            list("ids", "lp4"),
            "--teacher-log-probs lp4.npy: expected 5 rows, as --teacher-ids ids.npy has, got 4",
        ),
        (
            format!("{DENSE} --row-weights short.npy"),
            "--row-weights short.npy: expected 5 rows, as --student s.npy has, got 4",
        ),
        (
            format!("{DENSE} --row-weights floats.npy"),
            "expected 5 rows, as --student s.npy has, got 10",
        ),
        (
            format!("{DENSE} --row-weights wide.npy"),
            "expected rows without groups, as --student s.npy has, got 1 groups of rows",
        ),
        // Values.
        (
            format!("{DENSE} --row-weights negative.npy"),
            "--row-weights negative.npy: expected finite numbers of at least 0, got -0.5 at row 2",
        ),
        (
            format!("{DENSE} --row-weights none.npy"),
            "got NaN at row 0",
        ),
        (
            list("minus", "lp"),
            "--teacher-ids minus.npy: expected classes from 0 and below 2^32, got -2 at row 3, column 1",
        ),
        (
            list("huge", "lp"),
            "below 2^32, got 4294967296 at row 3, column 1",
        ),
        (
            list("large", "lp"),
            "--teacher-ids large.npy: expected classes from 0 and below 3, got 3 at row 3, column 1",
        ),
        (
            format!("{LISTS} --classes 1"),
            "expected classes from 0 and below 1, got 1 at row 0, column 1",
        ),
        (
            list("twice", "lp"),
            "kd-kl: teacher classes: expected each class once in a row, got 0",
        ),
        (
            list("ids", "likely"),
            "kd-kl: teacher log_probabilities: expected probabilities that add up to at most 1",
        ),
        (
            format!("{} --checked", list("ids", "nan")),
            "--teacher-log-probs nan.npy: expected finite values, got NaN at row 0, column 0",
        ),
        // Classes.
        (
            format!("{DENSE} --classes 4"),
            "kd-kl: classes: expected at most 3, got 4",
        ),
        (format!("{DENSE} --classes -1"), "unexpected argument '-1'"),
        (
            "--student s.npy --teacher t2.npy".to_owned(),
            "kd-kl: teacher_dim: expected 3, got 2; --classes C compares the first C of both",
        ),
        // Results.
        (
            format!("{DENSE} --per-row r.npy"),
            "exactly one --loss and one --device",
        ),
        (
            format!("{DENSE} --device cpu --per-row r.npy --gradient r.npy"),
            "--per-row r.npy: expected another file than that of --gradient",
        ),
        (
            format!("{DENSE} --device cpu --per-row no/r.npy"),
            "--per-row no/r.npy: expected a path",
        ),
    ] {
        files.refuses(&with(&arguments), expected);
    }
    assert!(!files.0.path().join("r.npy").exists());
}
