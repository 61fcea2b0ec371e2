//! What these losses refuse, and the options that other losses refuse.

use super::{LABELLED, LABELS, PAIR, TAUGHT, i64_bytes, inputs, write, write_labels};
use crate::support::*;

#[test]
fn bad_files_of_towers_are_refused() {
    let files = inputs();
    write(&files, "short.npy", &[4, DIM], &teacher()[..4 * DIM]);
    write(&files, "narrow.npy", &[ROWS, 2], &teacher()[..2 * ROWS]);
    write(&files, "groups.npy", &[ROWS, 1, DIM], &teacher());
    write(&files, "wide.npy", &[ROWS, 1], &[1.0; ROWS]);
    write(&files, "floats.npy", &[ROWS], &[1.0; ROWS]);
    write_labels(&files, "l4.npy", &LABELS[..4]);
    files.write("square.npy", &npy("<i8", &[1, ROWS], &i64_bytes(&LABELS)));
    files.write("cut.npy", &npy("<i8", &[ROWS], &i64_bytes(&LABELS)[1..]));
    files.write("none.npy", &npy("<i8", &[0], &[]));
    for (arguments, expected) in [
        (
            "--loss siglip --student a.npy --student-keys short.npy",
            "--student-keys short.npy: expected 5 rows, as --student a.npy has, got 4",
        ),
        (
            "--loss siglip --student a.npy --student-keys narrow.npy",
            "--student-keys narrow.npy: expected rows of 3 elements, as --student a.npy has, got 2",
        ),
        (
            "--loss siglip --student a.npy --student-keys groups.npy",
            "--student-keys groups.npy: expected dimensions [rows, dim], got 5 groups of rows",
        ),
        (
            "--loss siglip --student groups.npy --student-keys groups.npy",
            "--student groups.npy: expected dimensions [rows, dim], got 5 groups of rows",
        ),
        (
            "--loss siglip --student a.npy --student-keys absent.npy",
            "--student-keys absent.npy: expected a file that can be read",
        ),
        (
            "--loss clip --student a.npy --student-keys b.npy --teacher y.npy --teacher-keys wide.npy",
            "--teacher-keys wide.npy: expected rows of 2 elements, as --teacher y.npy has, got 1",
        ),
        (
            "--loss clip --student a.npy --student-keys b.npy --teacher y.npy --teacher-keys short.npy",
            "--teacher-keys short.npy: expected 5 rows, as --student-keys b.npy has, got 4",
        ),
        (
            "--loss clip --student a.npy --student-keys b.npy --teacher short.npy --teacher-keys z.npy",
            "--teacher short.npy: expected 5 rows, as --student a.npy has, got 4",
        ),
        (
            "--loss sup-con --student groups.npy --labels l.npy",
            "--student groups.npy: expected dimensions [rows, dim], got 5 groups of rows",
        ),
        (
            "--loss sup-con --student a.npy --labels l4.npy",
            "--labels l4.npy: expected 5 labels, one for each row of --student a.npy, got 4",
        ),
        (
            "--loss sup-con --student a.npy --labels square.npy",
            "--labels square.npy: expected dimensions [rows], got shape [1, 5]",
        ),
        (
            "--loss sup-con --student a.npy --labels floats.npy",
            "--labels floats.npy: expected dtype i8 to i64 or u8 to u64",
        ),
        (
            "--loss sup-con --student a.npy --labels cut.npy",
            "--labels cut.npy: expected 40 bytes of data for shape [5] of i64, got 39",
        ),
        (
            "--loss sup-con --student a.npy --labels none.npy",
            "--labels none.npy: expected at least 1 row, got shape [0]",
        ),
    ] {
        files.refuses(arguments, expected);
    }
}

#[test]
fn options_without_the_losses_that_take_them_are_refused() {
    let files = inputs();
    write(&files, "w.npy", &[ROWS], &[1.0; ROWS]);
    let clip = format!("--loss clip {PAIR}");
    let sup_con = format!("--loss sup-con {LABELLED}");
    for (arguments, expected) in [
        // What a loss needs.
        (
            "--loss clip".to_owned(),
            "clip: expected --student and --student-keys, a file of each tower, with it, got no \
             --student-keys",
        ),
        (
            "--loss siglip --student a.npy".to_owned(),
            "siglip: expected --student and --student-keys, a file of each tower, with it, got no \
             --student-keys",
        ),
        (
            "--loss clip --student-keys b.npy".to_owned(),
            "--student <F>",
        ),
        (
            "--loss clip --student a.npy --teacher y.npy".to_owned(),
            "got no --student-keys",
        ),
        (
            "--loss sup-con --student a.npy".to_owned(),
            "sup-con: expected --student and --labels with it, got no --labels",
        ),
        ("--loss sup-con --labels l.npy".to_owned(), "--student <F>"),
        ("--loss sup-con".to_owned(), "got no --labels"),
        // Teachers.
        (
            "--student a.npy".to_owned(),
            "--student: expected --teacher F with it, or one of --loss clip, siglip and sup-con, got \
             neither",
        ),
        (
            "--loss rkd --student a.npy".to_owned(),
            "rkd: expected --teacher F with it, got none",
        ),
        (
            "--loss kd-kl --student a.npy".to_owned(),
            "kd-kl: expected --teacher F or --teacher-ids F with it, got none",
        ),
        (
            format!("{clip} --teacher y.npy"),
            "--teacher: expected --teacher-keys F with it, the teacher's second tower, got none",
        ),
        (format!("{clip} --teacher-keys y.npy"), "--teacher <F>"),
        (
            format!("--loss clip {TAUGHT} --teacher y.npy"),
            "--teacher: expected as many --teacher-keys, second towers, got 2 and 1",
        ),
        (
            format!("--loss clip {TAUGHT} --teacher-keys z.npy"),
            "--teacher: expected as many --teacher-keys, second towers, got 1 and 2",
        ),
        (
            format!("{clip} --hard-weight 0"),
            "clip: teacher: expected a teacher, as the hard term has no weight, got none; --teacher and \
             --teacher-keys name it",
        ),
        (
            format!("--loss siglip {TAUGHT}"),
            "--teacher: expected a loss against a teacher with it, got siglip",
        ),
        (
            format!("{sup_con} --teacher y.npy"),
            "--teacher: expected a loss against a teacher with it, got sup-con",
        ),
        (
            format!("{clip} --teacher-ids l.npy --teacher-log-probs y.npy"),
            "--teacher-ids: expected --loss kd-kl with it, got clip",
        ),
        // Files of other losses.
        (
            format!("--loss rkd {TAUGHT}"),
            "--student-keys: expected --loss clip or siglip with it, got rkd",
        ),
        (
            format!("--loss clip --loss info-nce {TAUGHT}"),
            "--student-keys: expected --loss clip or siglip with it, got info-nce",
        ),
        (
            TAUGHT.to_owned(),
            "--student-keys: expected --loss clip or siglip with it, got none",
        ),
        (
            format!("{sup_con} --student-keys b.npy"),
            "--student-keys: expected --loss clip or siglip with it, got sup-con",
        ),
        (
            "--loss siglip --student a.npy --student-keys b.npy --labels l.npy".to_owned(),
            "--labels: expected --loss sup-con or clip, or --plot with it, got siglip",
        ),
        (format!("{clip} --guided"), "--teacher <F>"),
        (format!("{clip} --guide-margin 0.1"), "--guided"),
        (
            format!("--loss clip {TAUGHT} --guided --guide-margin inf"),
            "clip: guide_margin: expected a finite number, got inf",
        ),
        (
            "--loss rkd --student a.npy --teacher b.npy --labels l.npy".to_owned(),
            "--labels: expected --loss sup-con or clip, or --plot with it, got rkd",
        ),
        (
            format!("{LABELLED} --teacher b.npy"),
            "--labels: expected --loss sup-con or clip, or --plot with it, got none",
        ),
        // Parameters.
        (
            format!("{clip} --hard-weight -1"),
            "clip: hard_weight: expected",
        ),
        (
            format!("--loss clip {TAUGHT} --soft-weight NaN"),
            "clip: soft_weight: expected",
        ),
        (
            format!("{clip} --temperature 0"),
            "clip: temperature: expected",
        ),
        (
            format!("--loss siglip {PAIR} --scale 0"),
            "siglip: scale: expected",
        ),
        (
            format!("--loss siglip {PAIR} --bias inf"),
            "siglip: bias: expected",
        ),
        (
            format!("{sup_con} --temperature -1"),
            "sup-con: temperature: expected",
        ),
        // Results.
        (
            format!("{clip} --gradient-keys h.npy"),
            "--gradient-keys: expected exactly one --loss and one --device with it",
        ),
        (
            format!("{clip} --device cpu --gradient g.npy --gradient-keys g.npy"),
            "--gradient-keys g.npy: expected another file than that of --gradient, got the same",
        ),
        (
            format!("{clip} --device cpu --gradient-keys no/h.npy"),
            "--gradient-keys no/h.npy: expected a path",
        ),
        (
            format!("{sup_con} --device cpu --gradient-keys h.npy"),
            "--student-keys <F>",
        ),
        // Rows.
        (
            format!("{clip} --rows 0"),
            "clip: rows: expected at least 1",
        ),
    ] {
        files.refuses(&arguments, expected);
    }
    for name in ["clip", "siglip", "sup-con"] {
        let inputs = if name == "sup-con" { LABELLED } else { PAIR };
        for (option, expected) in [
            ("--groups 1", "a loss of pairs or triples"),
            ("--prefixes 1,3", "--loss gram, pkt or order"),
            ("--queue s.npy", "--loss rrd or info-nce"),
            ("--row-weights w.npy", "--loss rrd, info-nce or kd-kl"),
            (
                "--per-row r.npy --device cpu",
                "--loss rrd, info-nce or kd-kl",
            ),
        ] {
            let flag = option.split(' ').next().expect("a flag");
            files.refuses(
                &format!("--loss {name} {inputs} {option}"),
                &format!("error: {flag}: expected {expected} with it, got {name}"),
            );
        }
    }
    for name in ["g.npy", "h.npy", "r.npy"] {
        assert!(!files.0.path().join(name).exists());
    }
}
