//! Where results go: a file of its own for each, and none that is read.

use std::fs;

use crate::support::*;

const INPUTS: &str = "--student s.npy --teacher t.npy --device cpu";

/// Paths of one file, whether it is there or not.
#[test]
fn two_results_are_two_files() {
    let files = Files::new();
    files.write("k.npy", &npy("<f8", &[ROWS, DIM], &f64_bytes(&teacher())));
    fs::create_dir(files.0.path().join("d")).expect("a directory");
    let whole = files.0.path().join("new.npy");
    let refuses = || {
        for other in ["./new.npy", "d/../new.npy", whole.to_str().expect("text")] {
            for (arguments, second, first) in [
                (
                    format!("--loss rkd {INPUTS} --gradient new.npy --plot {other}"),
                    "--plot",
                    "--gradient",
                ),
                (
                    format!("--loss kd-kl {INPUTS} --gradient new.npy --per-row {other}"),
                    "--per-row",
                    "--gradient",
                ),
                (
                    format!(
                        "--loss siglip --student s.npy --student-keys k.npy --device cpu --gradient {other} \
                         --gradient-keys new.npy"
                    ),
                    "--gradient-keys",
                    "--gradient",
                ),
            ] {
                let same = format!(": expected another file than that of {first}, got the same");
                files.refuses(&arguments, &same);
                files.refuses(&arguments, &format!("error: {second} "));
            }
        }
    };
    refuses();
    assert!(!whole.exists());
    #[cfg(unix)]
    {
        use std::os::unix::fs::symlink;
        // A link to a link to nothing.
        symlink("new.npy", files.0.path().join("d-link.npy")).expect("a link");
        symlink("../d-link.npy", files.0.path().join("d/link.npy")).expect("a link");
        files.refuses(
            &format!("--loss rkd {INPUTS} --gradient new.npy --plot d/link.npy"),
            "--plot d/link.npy: expected another file than that of --gradient",
        );
        assert!(!whole.exists());
    }
    files.write("new.npy", b"before");
    refuses();
    assert_eq!(fs::read(&whole).expect("a file"), b"before");
}

#[test]
fn what_is_read_is_not_overwritten() {
    let files = Files::new();
    let rows = npy("<f8", &[ROWS, DIM], &f64_bytes(&teacher()));
    for name in ["k.npy", "y.npy", "lp.npy"] {
        files.write(name, &rows);
    }
    files.write("w.npy", &npy("<f8", &[ROWS], &f64_bytes(&[1.0; ROWS])));
    files.write("l.npy", &npy("|u1", &[ROWS], &[1; ROWS]));
    files.write("i.npy", &npy("|u1", &[ROWS, DIM], &[0, 1, 2].repeat(ROWS)));
    let values = f64_bytes(&student());
    let tensor = ("x", safetensors::Dtype::F64, &[ROWS, DIM][..], &values[..]);
    files.write("s.safetensors", &safetensors(&[tensor]));
    let at = |name: &str| files.0.path().join(name);
    #[cfg(unix)]
    std::os::unix::fs::symlink("s.npy", at("link.npy")).expect("a link");
    let towers = "--device cpu --loss clip --student s.npy --student-keys k.npy --teacher t.npy \
                  --teacher-keys y.npy";
    let lists =
        "--device cpu --loss kd-kl --student s.npy --teacher-ids i.npy --teacher-log-probs lp.npy";
    let mut cases = vec![
        (format!("{INPUTS} --plot"), "s.npy", "--student"),
        (format!("{INPUTS} --plot"), "./t.npy", "--teacher"),
        (
            format!("{INPUTS} --loss rkd --gradient"),
            "s.npy",
            "--student",
        ),
        (
            format!("{INPUTS} --loss rrd --queue q.npy --per-row"),
            "q.npy",
            "--queue",
        ),
        (
            format!("{INPUTS} --loss kd-kl --row-weights w.npy --per-row"),
            "w.npy",
            "--row-weights",
        ),
        (
            format!("{INPUTS} --labels l.npy --plot"),
            "l.npy",
            "--labels",
        ),
        (
            format!("{towers} --gradient-keys"),
            "k.npy",
            "--student-keys",
        ),
        (format!("{towers} --gradient"), "y.npy", "--teacher-keys"),
        (format!("{lists} --gradient"), "i.npy", "--teacher-ids"),
        (
            format!("{lists} --gradient"),
            "lp.npy",
            "--teacher-log-probs",
        ),
        (
            "--student s.safetensors:x --teacher t.npy --plot".to_owned(),
            "s.safetensors",
            "--student",
        ),
    ];
    if cfg!(unix) {
        cases.push((format!("{INPUTS} --plot"), "link.npy", "--student"));
    }
    for (arguments, output, input) in cases {
        let before = fs::read(at(output)).expect("a file");
        let option = arguments.split(' ').next_back().expect("an option");
        files.refuses(
            &format!("{arguments} {output}"),
            &format!("{option} {output}: expected another file than that of {input}, got the same"),
        );
        assert_eq!(fs::read(at(output)).expect("a file"), before, "{arguments}");
    }
    let digits = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/examples/data/digits.safetensors"
    );
    let before = fs::read(digits).expect("the digits");
    let output = files.run(&format!("--loss gram --device cpu --plot {digits}"));
    let is_whole = fs::read(digits).expect("the digits") == before;
    if !is_whole {
        fs::write(digits, &before).expect("the digits are as they were");
    }
    assert!(is_whole && output.status.code() == Some(2), "{output:?}");
}
