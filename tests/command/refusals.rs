//! What it leaves out, warns of or refuses: one line, exit code 2.

use std::fs;

use serde_json::Value;

use crate::support::*;

#[test]
fn what_the_shapes_do_not_allow_is_left_out_with_a_note_or_refused_by_name() {
    let files = Files::new();
    files.write(
        "t.npy",
        &npy("<f8", &[ROWS, DIM - 1], &f64_bytes(&teacher()[..10])),
    );
    let (objects, stderr) = files.json_and_notes("--device cpu --temperature 2");
    let losses: Vec<_> = objects
        .iter()
        .map(|o| o["loss"].as_str().expect("a name"))
        .collect();
    assert_eq!(losses, LOSSES[..8]);
    for (line, loss) in stderr.lines().zip(&LOSSES[8..]) {
        let start = format!("note: {loss} is left out: teacher_dim: expected 3, got 2");
        assert!(line.starts_with(&start), "{line}");
    }
    assert!(
        stderr.ends_with("note: --temperature is not used by any loss evaluated\n"),
        "{stderr}"
    );
    for loss in &LOSSES[8..] {
        let arguments = format!("--student s.npy --teacher t.npy --loss {loss}");
        files.refuses(
            &arguments,
            &format!("{loss}: teacher_dim: expected 3, got 2"),
        );
    }
    files.write("q2.npy", &npy("<f8", &[5, 2], &f64_bytes(&keys()[..10])));
    files.write("t.npy", &npy("<f8", &[ROWS, DIM], &f64_bytes(&teacher())));
    let arguments = "--student s.npy --teacher t.npy --queue q2.npy";
    files.refuses(
        &format!("{arguments} --loss rrd"),
        "queue_dim: expected 3, got 2",
    );
    let (objects, stderr) = files.json_and_notes("--queue q2.npy --device cpu");
    assert_eq!(objects.len(), 9, "{stderr}");
}

#[test]
fn nan_and_infinity_give_nan_and_a_warning_or_are_refused() {
    let files = Files::new();
    for (name, at, got) in [("s.npy", 4, f64::NAN), ("t.npy", 7, f64::INFINITY)] {
        let mut values = if name == "s.npy" {
            student()
        } else {
            teacher()
        };
        values[at] = got;
        let good = fs::read(files.0.path().join(name)).expect("a file");
        files.write(name, &npy("<f8", &[ROWS, DIM], &f64_bytes(&values)));
        let (row, column) = (at / DIM, at % DIM);
        let place =
            format!("{name}: expected finite values, got {got} at row {row}, column {column}");
        for queue in ["", "--queue q.npy --enqueue before"] {
            let (objects, stderr) = files.json_and_notes(queue);
            assert_eq!(objects.len(), 2 * LOSSES.len());
            for object in &objects {
                assert!(
                    object["value"].is_null() && object["gradient_norm"].is_null(),
                    "{object}"
                );
                assert_eq!(
                    object["loss"] == "rrd",
                    object.get("kl").is_some_and(Value::is_null)
                );
            }
            let warnings = stderr.lines().filter(|line| line.starts_with("warning: "));
            assert!(
                warnings.clone().all(|line| line.contains(&place)),
                "{stderr}"
            );
            assert_eq!(warnings.count(), 1, "{stderr}");
        }
        files.refuses("--student s.npy --teacher t.npy --checked", &place);
        files.write("nan.npy", &npy("<f8", &[ROWS, DIM], &f64_bytes(&values)));
        files.write(name, &good);
    }
    // No queue takes such keys.
    let arguments = "--student s.npy --teacher t.npy --queue nan.npy";
    files.refuses(
        arguments,
        "--queue nan.npy: expected finite values, got inf at row 2, column 1",
    );
    // 1e5 is finite, but not as f16.
    files.write(
        "s.npy",
        &npy("<f8", &[ROWS, DIM], &f64_bytes(&[1e5; ROWS * DIM])),
    );
    let (objects, stderr) = files.json_and_notes("--loss rkd --device cpu --dtype f16");
    assert!(
        objects[0]["value"].is_null() && stderr.contains("which is inf as f16"),
        "{stderr}"
    );
}

#[test]
fn bad_arguments_are_refused() {
    let files = Files::new();
    for (arguments, expected) in [
        ("--student s.npy", "--teacher"),
        ("--teacher t.npy", "--student"),
        ("s.npy", "unexpected argument"),
        ("--bogus", "--bogus"),
        ("--loss", "--loss"),
        (
            "--loss triplet",
            "expected one of rkd-distance, rkd-angle, rkd, sp, gram, pkt, order, dark-rank, rrd, info-nce, clip, \
             siglip, sup-con, crd, rrd-bank, kd-kl",
        ),
        ("--loss crd", "error: crd: its keys come from a memory bank"),
        (
            "--loss rrd-bank --student s.npy --teacher t.npy",
            "error: rrd-bank: its keys come from a memory bank",
        ),
        (
            "--loss crd --student s.npy --teacher t.npy",
            "error: crd: its keys come from a memory bank",
        ),
        (
            "--loss rkd --loss crd --student s.npy",
            "error: crd: its keys come from a memory bank",
        ),
        ("--device tpu", "expected one of reference, cpu"),
        ("--dtype f8", "expected one of f64, f32, f16, bf16"),
        ("--enqueue later", "expected one of before, after, none"),
        ("--weights double", "expected one of split, half"),
        ("--normalize --no-normalize", "cannot be used with"),
        ("--delta many", "--delta"),
        ("--json --json", "--json"),
        (
            "--delta -1",
            "delta: expected a finite number above 0, got -1",
        ),
        ("--delta 0", "delta: expected"),
        (
            "--loss rkd --distance-weight -1",
            "rkd: distance_weight: expected",
        ),
        (
            "--loss rkd --angle-weight NaN",
            "rkd: angle_weight: expected",
        ),
        (
            "--loss rrd --student-temperature 0",
            "rrd: student_temperature: expected",
        ),
        (
            "--loss rrd --teacher-temperature inf",
            "rrd: teacher_temperature: expected",
        ),
        ("--loss order --margin -1", "order: margin: expected"),
        ("--loss gram --prefixes 1,x", "--prefixes"),
        (
            "--loss gram --prefixes 2,2",
            "gram: prefixes: expected widths of at least 1 that increase, got 2",
        ),
        (
            "--loss pkt --prefixes 0,2",
            "pkt: prefixes: expected widths of at least 1 that increase, got 0",
        ),
        (
            "--loss order --prefixes 1,1000",
            "order: prefixes: expected at most",
        ),
        (
            "--loss rkd --prefixes 1,2",
            "rkd: this rkd takes no prefixes",
        ),
        ("--loss gram --groups x", "--groups"),
        (
            "--loss gram --groups 0",
            "gram: groups: expected at least 1, got 0",
        ),
        (
            "--loss rkd --groups 3",
            "rkd: groups: expected a divisor of the number of rows, got 3",
        ),
        (
            "--loss kd-kl --groups 2",
            "kd-kl: this kd-kl takes no groups",
        ),
        ("--loss rrd --groups 2", "rrd: this rrd takes no groups"),
        ("--loss dark-rank --beta 0", "dark-rank: beta: expected"),
        (
            "--loss dark-rank --length 0",
            "dark-rank: length: expected at least 1, got 0",
        ),
        (
            "--loss kd-kl --temperature -4",
            "kd-kl: student_temperature: expected",
        ),
        (
            "--loss kd-kl --teacher-temperature 0",
            "kd-kl: teacher_temperature: expected",
        ),
        (
            "--loss kd-kl --divergence total",
            "expected one of forward, reverse, js, skew, skew-reverse",
        ),
        (
            "--loss kd-kl --divergence js --beta 1.5",
            "kd-kl: beta: expected a number from 0 to 1, got 1.5",
        ),
        (
            "--loss kd-kl --divergence skew --alpha NaN",
            "kd-kl: alpha: expected a number from 0 to 1, got NaN",
        ),
        (
            "--loss kd-kl --divergence skew --beta 0.5",
            "--beta: expected --divergence js with it, got skew",
        ),
        (
            "--loss kd-kl --divergence js --alpha 0.5",
            "--alpha: expected --divergence skew or skew-reverse with it, got js",
        ),
        ("--gradient g.npy", "exactly one --loss and one --device"),
        (
            "--gradient g.npy --loss rkd",
            "exactly one --loss and one --device",
        ),
        (
            "--gradient g.npy --device cpu",
            "exactly one --loss and one --device",
        ),
        (
            "--gradient no/g.npy --loss rkd --device cpu",
            "no/g.npy: expected a path",
        ),
        (
            "--gradient . --loss rkd --device cpu",
            "expected a file, got a directory",
        ),
    ] {
        files.refuses(arguments, expected);
    }
    assert!(!files.0.path().join("g.npy").exists());
}

#[test]
fn devices_that_are_not_there_are_refused() {
    let files = Files::new();
    let inputs = "--student s.npy --teacher t.npy";
    for (device, built_in) in [
        ("emulator", cfg!(feature = "emulator")),
        ("cuda", cfg!(feature = "cuda")),
    ] {
        if built_in {
            let arguments = format!("{inputs} --device {device} --dtype f64");
            files.refuses(
                &arguments,
                &format!("--device {device}: expected --dtype f32"),
            );
        } else {
            let hint = format!("built without it: build with --features {device}");
            files.refuses(&format!("--device {device}"), &hint);
        }
    }
    if cfg!(feature = "cuda") {
        let output = files.run(&format!("{inputs} --device cuda --loss kd-kl"));
        let stderr = text(&output.stderr);
        let without_a_gpu = output.status.code() == Some(2)
            && stderr.starts_with("error: --device cuda: ")
            && stderr.lines().count() == 1;
        assert!(output.status.success() || without_a_gpu, "{stderr}");
    }
}

#[test]
fn files_that_are_none_are_refused() {
    let files = Files::new();
    fs::create_dir(files.0.path().join("dir.npy")).expect("a directory");
    files.write("s.txt", b"1 2 3");
    for (name, expected) in [
        ("absent.npy", "expected a file that can be read"),
        ("absent.safetensors:x", "expected a file that can be read"),
        ("dir.npy", "expected a file, got a directory"),
        (".", "expected a .npy, .npz or .safetensors file"),
        ("s.txt", "expected a .npy, .npz or .safetensors file"),
        ("s.npy:x", "expected a .npy, .npz or .safetensors file"),
    ] {
        for arguments in [
            format!("--student {name} --teacher t.npy"),
            format!("--student s.npy --teacher {name}"),
            format!("--student s.npy --teacher t.npy --queue {name}"),
        ] {
            files.refuses(&arguments, expected);
            files.refuses(&arguments, &format!(" {name}: "));
        }
    }
    files.write(
        "t.npy",
        &npy("<f8", &[4, DIM], &f64_bytes(&teacher()[..12])),
    );
    let arguments = "--student s.npy --teacher t.npy";
    files.refuses(
        arguments,
        "--teacher t.npy: expected 5 rows, as --student s.npy has, got 4",
    );
}

#[test]
fn files_whose_groups_differ_are_refused() {
    let files = Files::new();
    let of = |shape: &[usize]| npy("<f8", shape, &f64_bytes(&[1.0; 24]));
    files.write("s.npy", &of(&[3, 2, 4]));
    for (shape, expected) in [
        (
            &[2, 3, 4][..],
            "expected 3 groups of rows, as --student s.npy has, got 2 groups of rows",
        ),
        (
            &[6, 4],
            "expected 3 groups of rows, as --student s.npy has, got rows without groups",
        ),
        (
            &[3, 4, 2],
            "expected 6 rows, as --student s.npy has, got 12",
        ),
    ] {
        files.write("t.npy", &of(shape));
        let arguments = "--student s.npy --teacher t.npy --groups 3";
        files.refuses(arguments, &format!("--teacher t.npy: {expected}"));
    }
    // A queue has none.
    files.write("t.npy", &of(&[3, 2, 4]));
    files.refuses(
        "--student s.npy --teacher t.npy --queue s.npy",
        "--queue s.npy: expected dimensions [keys, dim], got 3 groups of keys",
    );
    // Of all losses, those of keys are left out.
    let (objects, stderr) = files.json_and_notes("--device cpu");
    let losses: Vec<_> = objects.iter().filter_map(|o| o["loss"].as_str()).collect();
    assert_eq!(losses, [&LOSSES[..8], &LOSSES[10..]].concat());
    assert_eq!(
        stderr,
        "note: rrd is left out: this rrd takes no groups\n\
         note: info-nce is left out: this info-nce takes no groups\n"
    );
}

#[cfg(unix)]
#[test]
fn files_that_cannot_be_read_or_have_no_end_are_refused() {
    use std::os::unix::fs::{PermissionsExt, symlink};

    let files = Files::new();
    symlink("/dev/zero", files.0.path().join("zero.npy")).expect("a link");
    files.refuses(
        "--student zero.npy --teacher t.npy",
        "expected a regular file",
    );

    let path = files.0.path().join("s.npy");
    fs::set_permissions(&path, PermissionsExt::from_mode(0o000)).expect("permissions are set");
    // The superuser reads it all the same.
    if fs::File::open(&path).is_err() {
        files.refuses(
            "--student s.npy --teacher t.npy",
            "expected a file that can be read",
        );
    }
}

#[cfg(unix)]
#[test]
fn a_gradient_goes_where_links_point_to() {
    let files = Files::new();
    let at = |name: &str| files.0.path().join(name);
    for link in ["first.npy", "again.npy"] {
        std::os::unix::fs::symlink("target.npy", at(link)).expect("a link");
        files.json(&format!("--loss rkd --device cpu --gradient {link}"));
        assert!(
            fs::symlink_metadata(at(link))
                .expect("it is there")
                .is_symlink()
        );
        let gradient = fs::read(at("target.npy")).expect("a gradient");
        assert!(gradient.starts_with(b"\x93NUMPY"));
    }
}

#[cfg(target_os = "linux")]
#[test]
fn names_that_are_no_text_stay_on_one_line() {
    use std::os::unix::ffi::OsStrExt;

    for name in [
        &b"\xff\xfe.npy"[..],
        b"two\nlines.npy",
        b"\x1b[2J.safetensors:a\nb",
    ] {
        let output = assert_cmd::Command::new(binary())
            .args(["--teacher", "t.npy", "--student"])
            .arg(std::ffi::OsStr::from_bytes(name))
            .output()
            .expect("the command runs");
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr:?}");
        assert!(
            stderr.starts_with("error: --student ") && !stderr.contains('\x1b'),
            "{stderr:?}"
        );
    }
}
