//! The picture of the relations: `--plot`.

use crate::support::*;

/// Rows along the axes, in turns: [`ROWS`] is 5.
fn axes(first: [f64; 3], second: [f64; 3]) -> Vec<f64> {
    [first, second, first, second, first].concat()
}

/// The shapes of one colour in a picture.
fn shapes(svg: &str, colour: &str) -> usize {
    svg.matches(&format!("fill=\"{colour}\"")).count()
}

const RED: &str = "#B2182B";
const WHITE: &str = "#FFFFFF";

#[test]
fn rows_of_a_label_lie_side_by_side() {
    let files = Files::new();
    let (x, y, z) = ([1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 3.0]);
    let write = |name: &str, rows: Vec<f64>| {
        files.write(name, &npy("<f8", &[ROWS, DIM], &f64_bytes(&rows)));
    };
    write("s.npy", axes(x, y));
    write("t.npy", axes(z, x));
    let labels: Vec<u8> = [7u8, 3, 7, 3, 7].to_vec();
    files.write("l.npy", &npy("|u1", &[ROWS, 1], &labels));
    let picture = |options: &str| {
        let start = "--loss gram --device cpu --student s.npy --teacher t.npy --plot p.svg";
        let output = files.run(&format!("{start} {options}"));
        assert!(output.status.success(), "{}", text(&output.stderr));
        std::fs::read_to_string(files.0.path().join("p.svg")).expect("a picture")
    };
    let (in_turns, sorted) = (picture(""), picture("--labels l.npy"));
    for svg in [&in_turns, &sorted] {
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        for title in ["student", "teacher", "student − teacher"] {
            assert!(svg.contains(title), "{title}");
        }
    }
    // Two panels have cosines of 0 and 1: a run of each in a row of the sorted ones, and five in turns.
    // The third has none. The background is white too.
    assert_eq!(shapes(&sorted, RED), 2 * 5);
    assert_eq!(shapes(&sorted, WHITE), 1 + 2 * 5 + 5);
    assert_eq!(shapes(&in_turns, RED), 2 * (3 * 3 + 2 * 2));
}

#[test]
fn the_digits_have_a_picture_without_a_file() {
    let files = Files::new();
    let arguments = "--loss gram --device cpu --plot p.svg";
    let output = files.run(arguments);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let svg = std::fs::read_to_string(files.0.path().join("p.svg")).expect("a picture");
    // 512 rows are not 512 cells.
    assert!((1000..3 * 64 * 64 + 500).contains(&svg.matches("<rect").count()));
}

#[test]
fn pictures_that_cannot_be_are_refused() {
    let files = Files::new();
    files.write("k.npy", &npy("<f8", &[ROWS, DIM], &f64_bytes(&teacher())));
    for (arguments, expected) in [
        (
            "--loss siglip --student s.npy --student-keys k.npy --plot p.svg",
            "--plot: expected one teacher's rows, and one tower of each, got no teacher",
        ),
        (
            "--loss clip --student s.npy --student-keys k.npy --teacher t.npy --teacher-keys k.npy --plot \
             p.svg",
            "got two towers",
        ),
        (
            "--loss gram --student s.npy --teacher t.npy --teacher k.npy --plot p.svg",
            "got several teachers",
        ),
        (
            "--loss gram --device cpu --student s.npy --teacher t.npy --gradient p.svg --plot p.svg",
            "--plot p.svg: expected another file than that of --gradient, got the same",
        ),
        (
            "--student s.npy --teacher t.npy --plot missing/p.svg",
            "expected a path that can be written to",
        ),
    ] {
        files.refuses(arguments, expected);
        assert!(!files.0.path().join("p.svg").exists(), "{arguments}");
    }
}

/// A student near its teacher has small differences, and the scale says how small.
#[test]
fn scales_have_significant_digits() {
    let files = Files::new();
    for (cosine, expected) in [(0.25, "0.243"), (0.004, "0.00400"), (1e-5, "1.00e-5")] {
        let student = axes([1.0, 0.0, 0.0], [0.0, 1.0, 0.0]);
        let teacher = axes([1.0, 0.0, 0.0], [cosine, 1.0, 0.0]);
        for (name, rows) in [("s.npy", student), ("t.npy", teacher)] {
            files.write(name, &npy("<f8", &[ROWS, DIM], &f64_bytes(&rows)));
        }
        let arguments = "--loss gram --device cpu --student s.npy --teacher t.npy --plot p.svg";
        let output = files.run(arguments);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let svg = std::fs::read_to_string(files.0.path().join("p.svg")).expect("a picture");
        let lines: Vec<&str> = svg.lines().map(str::trim).collect();
        let count = |text: &str| lines.iter().filter(|line| **line == text).count();
        assert_eq!(
            [count("1.00"), count("-1.00"), count("0")],
            [2, 2, 3],
            "{svg}"
        );
        assert_eq!(
            [count(expected), count(&format!("-{expected}"))],
            [1, 1],
            "{svg}"
        );
    }
}
