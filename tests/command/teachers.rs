//! Several teachers: the mean over them.

use std::fs;

use npyz::NpyFile;
use serde_json::Value;

use crate::support::*;

/// What one run gave: what it printed, the gradient and the losses of rows, if they are written.
struct Run {
    object: Value,
    gradient: Vec<f64>,
    rows: Vec<f64>,
}

impl Run {
    fn of(files: &Files, arguments: &str) -> Self {
        for name in ["g.npy", "r.npy"] {
            let _ = fs::remove_file(files.0.path().join(name));
        }
        let output = files.run(&format!(
            "--json --device reference --gradient g.npy {arguments}"
        ));
        let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(stderr, "", "{arguments}");
        let read = |name: &str| -> Vec<f64> {
            match fs::File::open(files.0.path().join(name)) {
                Ok(file) => {
                    let file = NpyFile::new(file).expect("a .npy file");
                    file.into_vec().expect("f64")
                }
                Err(_) => Vec::new(),
            }
        };
        Run {
            object: serde_json::from_str(stdout.trim()).expect("an object"),
            gradient: read("g.npy"),
            rows: read("r.npy"),
        }
    }

    fn numbers(&self) -> Vec<f64> {
        let terms = [
            "value",
            "kl",
            "distance",
            "angle",
            "hard",
            "soft",
            "scale_gradient",
        ];
        let of = |key: &&str| self.object.get(*key).and_then(Value::as_f64);
        let values = terms.iter().filter_map(of);
        values
            .chain(self.gradient.iter().copied())
            .chain(self.rows.iter().copied())
            .collect()
    }
}

/// Compares a run with the mean of single ones.
fn assert_mean(got: &Run, singles: &[Run], context: &str) {
    let singles: Vec<Vec<f64>> = singles.iter().map(Run::numbers).collect();
    let got = got.numbers();
    assert!(got.len() > ROWS * DIM, "{context}");
    for (at, got) in got.iter().enumerate() {
        let mean = singles.iter().map(|single| single[at]).sum::<f64>() / singles.len() as f64;
        let largest = singles
            .iter()
            .fold(0.0, |most: f64, single| most.max(single[at].abs()));
        assert!(
            (got - mean).abs() <= 1e-15 * largest,
            "{context}: {got} is not {mean}"
        );
    }
    assert_eq!(singles[0].len(), got.len(), "{context}");
}

fn inputs() -> Files {
    let files = Files::new();
    let rows = |width: usize, step: usize| -> Vec<f64> {
        let number = |i: usize| (i * step % 17) as f64 / 4.0 - 2.1;
        (0..ROWS * width).map(number).collect()
    };
    for (name, width, step) in [
        ("u.npy", DIM, 3),
        ("v.npy", DIM, 7),
        ("wide.npy", 7, 5),
        ("k.npy", DIM, 11),
        ("uk.npy", DIM, 13),
        ("wide-keys.npy", 7, 6),
    ] {
        let values = f64_bytes(&rows(width, step));
        files.write(name, &npy("<f8", &[ROWS, width], &values));
    }
    files.write(
        "w.npy",
        &npy("<f8", &[ROWS], &f64_bytes(&[1.0, 0.0, 3.0, 2.0, 0.5])),
    );
    files
}

#[test]
fn several_teachers_give_the_mean_over_them() {
    let files = inputs();
    for loss in LOSSES {
        // Losses of rows of one width take teachers of it.
        let third = match loss {
            "rrd" | "info-nce" | "kd-kl" => "v.npy",
            _ => "wide.npy",
        };
        let teachers = ["t.npy", "u.npy", third];
        let of_rows = match loss {
            "rrd" | "info-nce" | "kd-kl" => "--row-weights w.npy --per-row r.npy",
            _ => "",
        };
        let of = |teachers: &[&str]| {
            let named: String = teachers
                .iter()
                .map(|name| format!("--teacher {name} "))
                .collect();
            Run::of(
                &files,
                &format!("--loss {loss} --student s.npy {named} {of_rows}"),
            )
        };
        let got = of(&teachers);
        assert_mean(&got, &teachers.map(|teacher| of(&[teacher])), loss);
        let dims = if third == "v.npy" {
            "[3,3,3]"
        } else {
            "[3,3,7]"
        };
        assert_eq!(got.object["teacher_dims"].to_string(), dims);
        assert!(got.object.get("teacher_dim").is_none(), "{loss}");
        // One that is named twice weighs twice.
        let twice = of(&["t.npy", "t.npy", "u.npy"]);
        let singles = ["t.npy", "t.npy", "u.npy"].map(|teacher| of(&[teacher]));
        assert_mean(&twice, &singles, loss);
    }
}

/// MobileCLIP's loss: the hard term counts once.
#[test]
fn two_towers_have_several_teachers() {
    let files = inputs();
    let pair =
        "--loss clip --hard-weight 0.25 --soft-weight 0.75 --student s.npy --student-keys k.npy";
    let (first, second) = (
        "--teacher u.npy --teacher-keys uk.npy",
        "--teacher wide.npy --teacher-keys wide-keys.npy",
    );
    for options in ["", "--guided --guide-margin 0.1", "--one-way"] {
        let of = |teachers: &str| Run::of(&files, &format!("{pair} {teachers} {options}"));
        let got = of(&format!("{first} {second}"));
        assert_mean(&got, &[of(first), of(second)], options);
        let term = |run: &Run, name: &str| run.object[name].as_f64().expect("a term");
        let terms = 0.25 * term(&got, "hard") + 0.75 * term(&got, "soft");
        assert_close(term(&got, "value"), terms, 1e-14);
        if options.is_empty() {
            assert_close(term(&got, "hard"), term(&of(first), "hard"), 1e-15);
        }
    }
    // Whose second tower belongs to whose first is told by their order.
    files.refuses(
        &format!("{pair} --teacher u.npy --teacher wide.npy --teacher-keys wide-keys.npy --teacher-keys uk.npy"),
        "--teacher-keys wide-keys.npy: expected rows of 3 elements, as --teacher u.npy has, got 7",
    );
}

#[test]
fn each_teacher_is_checked() {
    let files = inputs();
    let values = f64_bytes(&teacher()[..4 * DIM]);
    files.write("short.npy", &npy("<f8", &[4, DIM], &values));
    let mut hollow = teacher();
    hollow[4] = f64::NAN;
    files.write("hollow.npy", &npy("<f8", &[ROWS, DIM], &f64_bytes(&hollow)));
    let start = "--student s.npy --teacher t.npy --teacher";
    for (arguments, expected) in [
        (
            "short.npy",
            "--teacher short.npy: expected 5 rows, as --student s.npy has, got 4",
        ),
        (
            "wide.npy --loss rrd",
            "rrd: teacher_dim: expected 3, got 7 of --teacher wide.npy",
        ),
        (
            "u.npy --loss rrd --queue q.npy",
            "--queue: expected one --teacher with it, whose keys it holds, got 2",
        ),
        (
            "hollow.npy --checked",
            "--teacher hollow.npy: expected finite values, got NaN at row 1, column 1",
        ),
        (
            "u.npy --device cpu --loss rkd --gradient u.npy",
            "--gradient u.npy: expected another file than that of --teacher",
        ),
        ("u.npy --rows 6", "--rows: expected at most 5"),
    ] {
        files.refuses(&format!("{start} {arguments}"), expected);
    }
    let (objects, stderr) = files.json_and_notes("--teacher hollow.npy --loss gram --device cpu");
    assert!(objects[0]["value"].is_null(), "{objects:?}");
    assert!(
        stderr.contains("hollow.npy: expected finite values"),
        "{stderr}"
    );
    // A loss of one width is left out where one teacher has another.
    let (objects, stderr) = files.json_and_notes("--teacher wide.npy --device cpu");
    assert_eq!(objects.len(), 8, "{stderr}");
    let table = files.run(&format!("{start} wide.npy --loss gram"));
    assert!(text(&table.stdout).contains(" 5 x 3/3,7 "), "{table:?}");
    // Devices agree on the mean, and rows are rounded to the same type.
    for dtype in ["f32", "bf16"] {
        let objects = files.json(&format!("--teacher wide.npy --loss rkd --dtype {dtype}"));
        let value = |at: usize| objects[at]["value"].as_f64().expect("a number");
        assert_close(value(1), value(0), 1e-5);
    }
}
