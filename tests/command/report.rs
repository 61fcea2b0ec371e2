//! What it prints and writes.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use npyz::NpyFile;
use serde_json::Value;

use crate::compare::norm;
use crate::support::*;

#[test]
fn without_files_it_reports_on_the_digits() {
    let output = Files::new().run("--device cpu");
    let stdout = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(text(&output.stderr), "");
    for loss in LOSSES {
        let row = stdout
            .lines()
            .find(|line| line.split_whitespace().next() == Some(loss));
        assert!(
            row.is_some_and(|row| row.contains("cpu") && row.contains("512 x ")),
            "{loss}"
        );
    }
    // As examples/data/README.md has them.
    for (loss, value) in [
        ("rkd-distance", 0.028549195),
        ("rkd-angle", 0.038810302),
        ("rrd", 4.227796769),
        ("rrd", 3.712726043),
    ] {
        let mut rows = stdout.lines().map(str::split_whitespace);
        let row = rows
            .find(|row| row.clone().next() == Some(loss))
            .expect(loss);
        let mut numbers = row.filter_map(|cell| cell.parse::<f64>().ok());
        assert!(
            numbers.any(|got| (got - value).abs() < 2e-6 * value),
            "{value} in {stdout}"
        );
    }
    assert!(stdout.contains("median"), "a legend: {stdout}");
}

/// All of the digits would keep the reference busy for most of a minute.
#[test]
fn with_the_reference_losses_over_triples_see_fewer_digits() {
    let rows = |devices: &str, loss: &str| {
        let output = Files::new().run(&format!("--loss {loss} --json {devices}"));
        let line: Value = serde_json::from_slice(&output.stdout).expect("one object");
        line["rows"].as_u64().expect("a number")
    };
    assert_eq!(rows("--device cpu", "rkd-angle"), 512);
    assert_eq!(rows("--device reference", "rkd-distance"), 512);
    assert_eq!(rows("--device cpu", "order"), 512);
    assert_eq!(rows("--device reference", "order"), 256);
    let output = Files::new().run("--loss rkd-angle --loss sp --device cpu --device reference");
    let stdout = text(&output.stdout);
    assert_eq!(stdout.matches("256 x ").count(), 2, "{stdout}");
    assert_eq!(stdout.matches("512 x ").count(), 2, "{stdout}");
    assert!(stdout.contains("the first 256"), "{stdout}");
    // Not a terminal: no progress.
    assert_eq!(text(&output.stderr), "");
}

#[test]
fn the_table_says_how_far_a_device_is_from_the_reference() {
    let files = Files::new();
    let output = files.run("--student s.npy --teacher t.npy --loss rrd --queue q.npy --dtype f32");
    let stdout = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0));
    let cells = |device: &str| -> Vec<String> {
        let mut rows = stdout
            .lines()
            .map(|line| line.split_whitespace().map(str::to_owned).collect());
        rows.find(|cells: &Vec<String>| cells.get(1).is_some_and(|cell| cell == device))
            .expect("a row")
    };
    // loss, device, dtype, 5 x 3/3 +4, value, norm, the two deviations, time and its unit, "kl", kl
    let (reference, cpu) = (cells("reference"), cells("cpu"));
    assert_eq!(reference[2..7], ["f32", "5", "x", "3/3", "+4"]);
    assert_eq!(reference[9..11], ["-", "-"]);
    assert_eq!(reference[13], "kl");
    // The last column begins at one place.
    let start = |word: &str| {
        let of_line = |line: &str| line.find(word).map(|at| line[..at].chars().count());
        stdout.lines().filter_map(of_line).next().expect("a column")
    };
    assert_eq!(start("terms"), start("kl "), "{stdout}");
    for deviation in &cpu[9..11] {
        let deviation: f64 = deviation.parse().expect("a number");
        assert!((0.0..1e-5).contains(&deviation), "{stdout}");
    }
}

#[test]
fn json_keeps_its_keys_and_their_order() {
    let files = Files::new();
    let output = files.run("--json --student s.npy --teacher t.npy");
    let stdout = text(&output.stdout);
    let common = "loss,device,dtype,rows,student_dim,teacher_dim,value,gradient_norm,seconds";
    assert_eq!(stdout.lines().count(), 2 * LOSSES.len(), "{stdout}");
    for (i, line) in stdout.lines().enumerate() {
        let loss = LOSSES[i / 2];
        let fields: Vec<_> = line.trim_matches(['{', '}']).split(',').collect();
        let keys: Vec<_> = fields
            .iter()
            .map(|f| f.split('"').nth(1).expect("a key"))
            .collect();
        let terms = match loss {
            "rkd" => ",distance,angle",
            "rrd" => ",kl",
            _ => "",
        };
        assert_eq!(keys.join(","), format!("{common}{terms}"));
        let (device, dtype) = [("reference", "f64"), ("cpu", "f32")][i % 2];
        let start = format!(
            r#"{{"loss":"{loss}","device":"{device}","dtype":"{dtype}","rows":5,"student_dim":3,"teacher_dim":3,"value":"#
        );
        assert!(line.starts_with(&start), "{line}");
        let object: Value = serde_json::from_str(line).expect("an object");
        assert!(
            object["gradient_norm"].as_f64().expect("a number") > 0.0,
            "{line}"
        );
        assert!(
            object["seconds"].as_f64().expect("a number") > 0.0,
            "{line}"
        );
    }
}

#[test]
fn losses_and_devices_come_once_and_in_the_order_asked_for() {
    let objects = Files::new()
        .json("--loss kd-kl --loss rkd --loss kd-kl --device cpu --device reference --device cpu");
    let order: Vec<_> = objects
        .iter()
        .map(|o| (o["loss"].as_str(), o["device"].as_str()))
        .collect();
    let (cpu, reference) = (Some("cpu"), Some("reference"));
    let (kd_kl, rkd) = (Some("kd-kl"), Some("rkd"));
    assert_eq!(
        order,
        [
            (kd_kl, cpu),
            (kd_kl, reference),
            (rkd, cpu),
            (rkd, reference)
        ]
    );
}

#[test]
fn gradients_are_written_whole_and_in_their_type() {
    let files = Files::new();
    for loss in LOSSES {
        let arguments = format!("--loss {loss} --gradient g.npy --device");
        let path = files.0.path().join("g.npy");

        let reference = files
            .json(&format!("{arguments} reference --dtype f32"))
            .remove(0);
        let file = NpyFile::new(fs::File::open(&path).expect("a file")).expect("a .npy file");
        assert_eq!(file.shape(), [ROWS as u64, DIM as u64]);
        let exact: Vec<f64> = file.into_vec().expect("f64");
        assert_close(
            norm(&exact),
            reference["gradient_norm"].as_f64().expect("a norm"),
            1e-15,
        );

        // Even where it was computed in f64.
        files.json(&format!("{arguments} cpu --dtype f64"));
        let file = NpyFile::new(fs::File::open(&path).expect("a file")).expect("a .npy file");
        assert_eq!(file.shape(), [ROWS as u64, DIM as u64]);
        let single: Vec<f32> = file.into_vec().expect("f32");
        let error: Vec<f64> = single
            .iter()
            .zip(&exact)
            .map(|(g, e)| f64::from(*g) - e)
            .collect();
        assert!(
            norm(&error) <= 1e-6 * norm(&exact),
            "{loss}: {single:?} is not {exact:?}"
        );
    }
    let names = fs::read_dir(files.0.path()).expect("a directory").count();
    assert_eq!(names, 4, "nothing but the inputs and the gradient is left");
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let files = Files::new();
    for arguments in [
        "--json --student s.npy --teacher t.npy",
        "--student s.npy --teacher t.npy",
    ] {
        let mut child = Command::new(binary())
            .args(arguments.split_whitespace())
            .current_dir(files.0.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the command starts");
        drop(child.stdout.take());
        let output = child.wait_with_output().expect("the command ends");
        assert_eq!(text(&output.stderr), "");
        assert_eq!(output.status.code(), Some(0));
    }
}

/// Rows come when they are known, also to a pipe: the first, while the second takes seconds.
#[test]
fn rows_come_one_by_one() {
    let files = Files::new();
    let many: Vec<f64> = (0..512 * 64)
        .map(|i| f64::from(i * 37 % 1013) / 100.0)
        .collect();
    files.write("s.npy", &npy("<f8", &[512, 64], &f64_bytes(&many)));
    for format in ["", "--json"] {
        let start =
            "--student s.npy --teacher s.npy --device reference --loss gram --loss rkd-angle";
        let mut child = Command::new(binary())
            .args(format!("{start} {format}").split_whitespace())
            .current_dir(files.0.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the command starts");
        let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let has_row = lines.any(|line| {
            let line = line.expect("text");
            line.contains("gram") && line.contains("reference")
        });
        child.kill().expect("it still runs");
        child.wait().expect("it ends");
        assert!(has_row, "{format}");
        assert_eq!(lines.map_while(Result::ok).count(), 0, "{format}");
    }
}

#[test]
fn help_and_version_are_no_errors() {
    for (argument, expected) in [
        ("--help", "--student-temperature"),
        ("--version", "evaluate"),
    ] {
        let output = Files::new().run(argument);
        assert_eq!(output.status.code(), Some(0));
        assert!(text(&output.stdout).contains(expected));
        assert_eq!(text(&output.stderr), "");
    }
}

/// Where nobody has asked for the reference, it does not make anyone wait.
#[test]
fn the_reference_is_left_out_where_it_takes_long() {
    let files = Files::new();
    let many: Vec<f64> = (0..256).map(|i| ((i * 37 + 11) % 101) as f64).collect();
    for name in ["s.npy", "t.npy"] {
        files.write(name, &npy("<f8", &[128, 2], &f64_bytes(&many)));
    }
    let devices = |arguments: &str| -> (Vec<String>, String) {
        let (objects, stderr) = files.json_and_notes(arguments);
        let of = |object: &serde_json::Value| object["device"].as_str().map(str::to_owned);
        (objects.iter().filter_map(of).collect(), stderr)
    };
    assert_eq!(devices("--loss order").0, ["reference", "cpu"]);
    for name in ["s.npy", "t.npy"] {
        files.write(name, &npy("<f8", &[256, 1], &f64_bytes(&many)));
    }
    let (found, stderr) = devices("--loss order --loss sp");
    assert_eq!(found, ["cpu", "reference", "cpu"]);
    assert_eq!(
        stderr,
        "note: the reference is left out for order: it takes long for so many rows: --device \
         reference asks for it, --rows N takes the first N\n"
    );
    assert_eq!(devices("--loss order --rows 64").0, ["reference", "cpu"]);
    // A dash for the terms, and two for the deviations where there is no reference.
    for (rows, expected) in [("", 3), ("--rows 64", 1)] {
        let table = files.run(&format!(
            "--student s.npy --teacher t.npy --loss order {rows}"
        ));
        let table = text(&table.stdout);
        let mut lines = table.lines().map(|line| line.split_whitespace());
        let cpu = lines.find(|cells| cells.clone().take(2).eq(["order", "cpu"]));
        let dashes = cpu.expect("a row").filter(|cell| *cell == "-").count();
        assert_eq!(dashes, expected, "{table}");
    }
}

/// Many rows are long for any loss that compares rows. A NaN stops the command before it computes.
#[test]
fn the_reference_is_left_out_of_all_that_takes_long() {
    let files = Files::new();
    let left_out = |rows: usize| {
        let mut values = vec![0; rows * 512 * 2];
        values[..2].copy_from_slice(&half::f16::NAN.to_le_bytes());
        files.write("many.npy", &npy("<f2", &[rows, 512], &values));
        let output = files.run("--student many.npy --teacher many.npy --checked");
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        let notes = stderr.lines().filter_map(|line| {
            let rest = line.strip_prefix("note: the reference is left out for ")?;
            Some(rest.split(':').next()?.to_owned())
        });
        notes.collect::<Vec<_>>()
    };
    assert_eq!(left_out(256), ["order"]);
    assert_eq!(left_out(512), ["rkd-angle", "rkd", "order"]);
    assert_eq!(left_out(4096), LOSSES[..10]);
}

#[test]
fn the_first_rows_are_those_of_shorter_files() {
    let files = Files::new();
    let first = |rows: Vec<f64>| npy("<f8", &[3, DIM], &f64_bytes(&rows[..3 * DIM]));
    files.write("s3.npy", &first(student()));
    files.write("t3.npy", &first(teacher()));
    files.write(
        "w.npy",
        &npy("<f8", &[ROWS], &f64_bytes(&[1.0, 0.0, 3.0, 5.0, 7.0])),
    );
    files.write("w3.npy", &npy("<f8", &[3], &f64_bytes(&[1.0, 0.0, 3.0])));
    let of = |arguments: &str| {
        let output = files.run(&format!("--json --device reference {arguments}"));
        let object: serde_json::Value =
            serde_json::from_str(text(&output.stdout).trim()).expect("an object");
        (object["value"].clone(), object["rows"].clone())
    };
    for loss in ["--loss rkd", "--loss kd-kl --row-weights W"] {
        let cut = loss.replace('W', "w.npy");
        let short = loss.replace('W', "w3.npy");
        assert_eq!(
            of(&format!("--student s.npy --teacher t.npy --rows 3 {cut}")),
            of(&format!("--student s3.npy --teacher t3.npy {short}"))
        );
    }
    let both = "--student s.npy --teacher t.npy";
    files.refuses(
        &format!("{both} --rows 6"),
        "--rows: expected at most 5, as --student s.npy has, got 6",
    );
    files.refuses(
        &format!("{both} --rows 0 --loss rkd"),
        "rows: expected at least 1",
    );
    files.refuses("--rows 3", "--student");
    files.write("s.npy", &npy("<f8", &[5, 1, DIM], &f64_bytes(&student())));
    files.refuses(
        &format!("{both} --rows 3"),
        "--rows: expected a file of dimensions [N, D]",
    );
}
