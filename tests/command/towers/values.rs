//! The values and the gradients of both towers: those of the definitions, on every device.

use std::fs;

use half::bf16;
use safetensors::Dtype;

use super::formulas::{cases, clip, slope};
use super::{
    LABELLED, LABELS, PAIR, TAUGHT, WIDTH, i64_bytes, inputs, number, object, read, run, teachers,
    write, write_labels,
};
use crate::compare::norm;
use crate::support::*;

/// The devices, with their types, and how far from the definition they may be.
fn devices() -> Vec<(&'static str, f64)> {
    let mut devices = vec![
        ("--device reference", 1e-12),
        ("--device cpu --dtype f64", 1e-12),
        ("--device reference --dtype f32", 1e-12),
        ("--device cpu", 2e-6),
        ("--device cpu --dtype bf16 --checked", 2e-6),
    ];
    if cfg!(feature = "emulator") {
        devices.push(("--device emulator --checked", 5e-6));
        devices.push(("--device emulator --dtype f16", 5e-6));
        devices.push(("--device emulator --dtype bf16", 5e-6));
    }
    devices
}

#[test]
fn losses_and_all_gradients_are_those_of_the_definitions() {
    let files = inputs();
    for case in cases() {
        let loss =
            |scale: f64, bias: f64| (case.loss)(&case.rows, case.scale + scale, case.bias + bias);
        let gradient = case.gradient();
        for (device, tolerance) in devices() {
            let two = case.rows.len() > ROWS * DIM;
            let keys = if two { "--gradient-keys h.npy" } else { "" };
            let arguments = format!("{} {device} --gradient g.npy {keys}", case.arguments);
            let object = object(&files, &arguments);
            assert_close(number(&object, "value"), loss(0.0, 0.0), tolerance);
            assert_eq!(
                (&object["rows"], &object["student_dim"]),
                (&5.into(), &3.into())
            );

            let mut got = Vec::new();
            for name in if two {
                &["g.npy", "h.npy"][..]
            } else {
                &["g.npy"]
            } {
                let (shape, half) = read(&files, name, device);
                assert_eq!(shape, [ROWS as u64, DIM as u64]);
                got.extend(half);
                fs::remove_file(files.0.path().join(name)).expect("a file");
            }
            let errors: Vec<f64> = got.iter().zip(&gradient).map(|(g, e)| g - e).collect();
            assert_eq!(got.len(), gradient.len());
            let within = (tolerance + 1e-7) * norm(&gradient);
            assert!(
                norm(&errors) <= within,
                "{arguments}: {got:?} is not {gradient:?}"
            );
            assert_close(number(&object, "gradient_norm"), norm(&got), 1e-6);

            let slopes = [
                ("scale_gradient", slope(|by| loss(by, 0.0))),
                ("bias_gradient", slope(|by| loss(0.0, by))),
            ];
            let has_bias = arguments.contains("siglip");
            for (name, slope) in &slopes[..if has_bias { 2 } else { 1 }] {
                let error = (number(&object, name) - slope).abs();
                assert!(
                    error <= 4.0 * tolerance + 1e-7,
                    "{arguments} {name}: {object}, {slope}"
                );
            }
            assert_eq!(object.get("bias_gradient").is_some(), has_bias);
        }
    }
}

/// Options of CLIP that leave out pairs, or one of the ways, against the library: labels are those of
/// pairs.
#[test]
fn clip_leaves_out_what_it_is_told_to() {
    let files = inputs();
    let (student, teacher) = ([student(), teacher()].concat(), teachers().concat());
    let rows = |data, width| relata::Rows::new(data, [2 * ROWS, width]).expect("whole rows");
    let clip = relata::Clip::default();
    let labels: Vec<u32> = LABELS.iter().map(|&label| label as u32).collect();
    let labels = labels.repeat(2);
    let guided = relata::Clip {
        guided: true,
        guide_margin: -0.25,
        ..clip
    };
    let one_way = relata::Clip {
        both_ways: false,
        ..clip
    };
    let plain = object(&files, &format!("--loss clip {TAUGHT} --device reference"));
    for (options, loss, labels) in [
        ("--one-way", one_way, None),
        ("--labels l.npy", clip, Some(&labels)),
        ("--guided --guide-margin -0.25", guided, None),
    ] {
        let arguments =
            format!("{TAUGHT} {options} --device reference --gradient g.npy --gradient-keys h.npy");
        let got = object(&files, &format!("--loss clip {arguments}"));
        let mut batch = relata::Batch::new(rows(&student, DIM), rows(&teacher, WIDTH));
        batch.labels = labels.map(|labels| &labels[..]);
        let problem = loss.problem(batch.shapes()).expect("shapes that fit");
        let want = problem.evaluate(&relata::Reference, batch).expect("a loss");
        assert_eq!(number(&got, "value"), want.loss, "{options}");
        assert_ne!(number(&got, "value"), number(&plain, "value"), "{options}");
        let halves = ["g.npy", "h.npy"].map(|name| read(&files, name, "reference").1);
        assert_eq!(halves.concat(), want.gradient, "{options}");
    }
}

/// What the library gives, to the last bit, and not weighted.
#[test]
fn clip_has_its_terms_and_the_librarys_bits() {
    let files = inputs();
    let arguments = "--hard-weight 0.5 --soft-weight 3 --device reference --gradient g.npy --gradient-keys h.npy";
    let got = object(&files, &format!("--loss clip {TAUGHT} {arguments}"));
    let (student, teacher) = ([student(), teacher()].concat(), teachers().concat());
    let loss = relata::Clip {
        hard_weight: 0.5,
        soft_weight: 3.0,
        ..relata::Clip::default()
    };
    let rows = |data, width| relata::Rows::new(data, [2 * ROWS, width]).expect("whole rows");
    let batch = relata::Batch::new(rows(&student, DIM), rows(&teacher, WIDTH));
    let problem = loss.problem(batch.shapes()).expect("shapes that fit");
    let want = problem.evaluate(&relata::Reference, batch).expect("a loss");
    assert_eq!(number(&got, "value"), want.loss);
    for (name, term) in want.terms.iter() {
        assert_eq!(number(&got, name), term);
    }
    let halves = ["g.npy", "h.npy"].map(|name| read(&files, name, "reference").1);
    assert_eq!(halves.concat(), want.gradient);
    let [hard, soft] = clip(&student, 1.0 / 0.07, 0.07);
    assert_close(number(&got, "hard"), hard, 1e-12);
    assert_close(number(&got, "soft"), soft, 1e-12);
}

#[test]
fn json_and_the_table_have_no_teacher_where_there_is_none() {
    let files = inputs();
    for (arguments, sizes, keys) in [
        (
            format!("--loss clip {TAUGHT}"),
            " 5 x 3/2 ",
            "teacher_dim,value,gradient_norm,seconds,hard,soft,scale_gradient",
        ),
        (
            format!("--loss clip {PAIR}"),
            " 5 x 3 ",
            "value,gradient_norm,seconds,hard,soft,scale_gradient",
        ),
        (
            format!("--loss siglip {PAIR}"),
            " 5 x 3 ",
            "value,gradient_norm,seconds,scale_gradient,bias_gradient",
        ),
        (
            format!("--loss sup-con {LABELLED}"),
            " 5 x 3 ",
            "value,gradient_norm,seconds,scale_gradient",
        ),
    ] {
        let output = files.run(&format!("--json --device cpu {arguments}"));
        let line = text(&output.stdout);
        let fields = line.trim().trim_matches(['{', '}']).split(',');
        let got: Vec<_> = fields.filter_map(|field| field.split('"').nth(1)).collect();
        assert_eq!(
            got.join(","),
            format!("loss,device,dtype,rows,student_dim,{keys}")
        );

        // The reference comes first, and then what deviates from it.
        let table = text(&files.run(&arguments).stdout);
        let rows: Vec<_> = table.lines().filter(|line| line.contains(sizes)).collect();
        let [_, cpu] = rows[..] else {
            panic!("{table}");
        };
        let cells: Vec<_> = cpu.split_whitespace().collect();
        // They stand before the time.
        let unit = cells
            .iter()
            .position(|cell| ["s", "ms", "µs"].contains(cell));
        let unit = unit.expect("a time");
        for deviation in &cells[unit - 3..unit - 1] {
            let deviation: f64 = deviation.parse().expect("a number");
            assert!((0.0..2e-6).contains(&deviation), "{table}");
        }
    }
}

#[test]
fn labels_are_integers_of_any_type() {
    let files = inputs();
    let value = |labels: &str| {
        let arguments = format!("--loss sup-con --student a.npy --labels {labels} --device cpu");
        number(&object(&files, &arguments), "value")
    };
    let expected = value("l.npy");
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
        // The same classes; 255 is −1 where integers have a sign.
        let labels = [255u64, 1, 255, 0, 1];
        let data: Vec<u8> = labels
            .iter()
            .flat_map(|label| label.to_le_bytes()[..bytes].to_vec())
            .collect();
        files.write("typed.npy", &npy(descr, &[ROWS], &data));
        assert_eq!(value("typed.npy"), expected, "{descr}");
    }
    let tensors = [
        ("labels", Dtype::I64, &[ROWS][..], &i64_bytes(&LABELS)[..]),
        ("floats", Dtype::F64, &[ROWS], &f64_bytes(&[1.0; ROWS])),
    ];
    files.write("l.safetensors", &safetensors(&tensors));
    assert_eq!(value("l.safetensors:labels"), expected);
    files.refuses(
        "--loss sup-con --student a.npy --labels l.safetensors:floats",
        "--labels l.safetensors:floats: expected I8 to I64 or U8 to U64, got F64",
    );
    // Without a pair of equal labels there is nothing to learn.
    write_labels(&files, "own.npy", &[1, 2, 3, 4, 5]);
    assert_eq!(value("own.npy"), 0.0);
}

#[test]
fn the_first_rows_are_taken_of_each_file() {
    let files = inputs();
    let [y, z] = teachers();
    write(&files, "a3.npy", &[3, DIM], &student()[..3 * DIM]);
    write(&files, "b3.npy", &[3, DIM], &teacher()[..3 * DIM]);
    write(&files, "y3.npy", &[3, WIDTH], &y[..3 * WIDTH]);
    write(&files, "z3.npy", &[3, WIDTH], &z[..3 * WIDTH]);
    write_labels(&files, "l3.npy", &LABELS[..3]);
    for arguments in [
        format!("--loss clip {TAUGHT}"),
        format!("--loss siglip {PAIR}"),
        format!("--loss sup-con {LABELLED}"),
    ] {
        let of = |arguments: &str| object(&files, &format!("{arguments} --device reference"));
        let (cut, short) = (
            of(&format!("{arguments} --rows 3")),
            of(&arguments.replace(".npy", "3.npy")),
        );
        for key in ["value", "gradient_norm", "scale_gradient", "rows"] {
            assert_eq!(cut[key], short[key], "{arguments}");
        }
    }
    for (arguments, short) in [
        (format!("--loss clip {TAUGHT}"), "b"),
        (format!("--loss clip {TAUGHT}"), "z"),
        (format!("--loss sup-con {LABELLED}"), "l"),
    ] {
        let option = ["--student-keys", "--teacher-keys", "--labels"][["b", "z", "l"]
            .iter()
            .position(|name| *name == short)
            .expect("a name")];
        let arguments = arguments.replace(&format!(" {short}.npy"), &format!(" {short}3.npy"));
        files.refuses(
            &format!("{arguments} --rows 4"),
            &format!("--rows: expected at most 3, as {option} {short}3.npy has, got 4"),
        );
    }
}

/// Each tower, and each of the teacher's.
#[test]
fn all_files_are_rounded_to_the_dtype_and_looked_at() {
    let files = inputs();
    let options = ["--student", "--student-keys", "--teacher", "--teacher-keys"];
    let [y, z] = teachers();
    let all = [("a", student()), ("b", teacher()), ("y", y), ("z", z)];
    for ((name, values), option) in all.into_iter().zip(options) {
        let shape = [ROWS, values.len() / ROWS];
        let at = |file: &str| TAUGHT.replace(&format!(" {name}.npy"), &format!(" {file}.npy"));
        let third: Vec<f64> = values.iter().map(|x| x / 3.0 + 0.1).collect();
        let rounded: Vec<f64> = third.iter().map(|&x| bf16::from_f64(x).to_f64()).collect();
        write(&files, "third.npy", &shape, &third);
        write(&files, "rounded.npy", &shape, &rounded);
        let value = |arguments: &str| {
            let arguments = format!("--loss clip --device reference {arguments}");
            number(&object(&files, &arguments), "value")
        };
        let coarse = value(&format!("{} --dtype bf16", at("third")));
        assert_eq!(coarse, value(&at("rounded")), "{option}");
        assert_ne!(coarse, value(&at("third")), "bf16 is coarser than f64");

        let mut hollow = values;
        hollow[shape[1] + 1] = f64::NAN;
        write(&files, "hollow.npy", &shape, &hollow);
        let place =
            format!("{option} hollow.npy: expected finite values, got NaN at row 1, column 1");
        let arguments = format!("--loss clip {} --device cpu", at("hollow"));
        let (of, stderr) = run(&files, &arguments);
        assert!(
            of["value"].is_null() && of["scale_gradient"].is_null(),
            "{of}"
        );
        assert_eq!(stderr, format!("warning: {place}; the loss is NaN\n"));
        files.refuses(&format!("{arguments} --checked"), &place);
    }
}

#[test]
fn parameters_without_use_are_noted() {
    let files = inputs();
    for (arguments, option) in [
        (
            format!("--loss siglip {PAIR} --temperature 2"),
            "--temperature",
        ),
        (format!("--loss clip {PAIR} --scale 2"), "--scale"),
        (format!("--loss sup-con {LABELLED} --bias 2"), "--bias"),
        // Without a teacher there is no soft term.
        (
            format!("--loss clip {PAIR} --soft-weight 2"),
            "--soft-weight",
        ),
        (
            format!("--loss clip {PAIR} --teacher-temperature 2"),
            "--teacher-temperature",
        ),
        (
            format!("--loss siglip {PAIR} --hard-weight 2"),
            "--hard-weight",
        ),
    ] {
        let (_, notes) = run(&files, &format!("{arguments} --device cpu"));
        let expected = format!("note: {option} is not used by any loss evaluated\n");
        assert_eq!(notes, expected);
    }
    // Two losses of the same files.
    let output = files.run(&format!(
        "--json --device cpu --loss clip --loss siglip {PAIR}"
    ));
    assert_eq!(text(&output.stdout).lines().count(), 2, "{output:?}");
}
