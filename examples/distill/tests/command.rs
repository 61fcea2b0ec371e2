//! The command that distils: its quick run, the files that it writes, and what it refuses.

#[path = "../../../tests/common/example.rs"]
mod example;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

const METHODS: [&str; 7] = [
    "none",
    "25 RKD-D",
    "50 RKD-A",
    "25 RKD-D + 50 RKD-A",
    "RRD",
    "0.3 KD",
    "0.3 KD + RRD",
];

fn distill(arguments: &[&str], out: &Path) -> Output {
    let run = Command::new(example::binary("distill"))
        .args(arguments)
        .arg("--out")
        .arg(out)
        .output();
    run.expect("the example runs")
}

/// The folder that a quick run of everything made and wrote to.
fn quick() -> &'static Path {
    static RUN: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, out) = RUN.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a folder");
        let out = folder.path().join("made/for/it");
        let said = succeeds(&["--quick"], &out);
        for method in METHODS {
            let row = format!("student, {method} ");
            assert!(said.contains(&row), "no {method} in\n{said}");
        }
        (folder, out)
    });
    out
}

/// Standard output.
fn succeeds(arguments: &[&str], out: &Path) -> String {
    let run = distill(arguments, out);
    let complaint = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{arguments:?}: {complaint}");
    String::from_utf8(run.stdout).expect("UTF-8")
}

/// Method and seed to recall@1, recall@4 and accuracy, which pixels do not have.
fn runs(out: &Path) -> BTreeMap<(String, String), Vec<f64>> {
    let text = fs::read_to_string(out.join("runs.csv")).expect("runs.csv");
    let lines = text.lines().skip(1).map(|line| {
        let fields: Vec<&str> = line.split(',').collect();
        assert_eq!(fields.len(), 7, "{line}");
        let scores = fields[2..5].iter().filter(|field| !field.is_empty());
        let scores = scores
            .map(|field| field.parse::<f64>().expect("a number"))
            .collect();
        ((fields[0].to_owned(), fields[1].to_owned()), scores)
    });
    lines.collect()
}

#[test]
fn a_quick_run_scores_every_method_and_repeats_itself() {
    let folder = tempfile::tempdir().expect("a folder");
    let few = [
        "--quick",
        "--method",
        "rkd-distance+rkd-angle",
        "--method",
        "rrd",
    ];
    succeeds(&few, folder.path());
    let (first, second) = (runs(quick()), runs(folder.path()));
    assert_eq!(second.len(), 1 + 4 * 2, "pixels, and two seeds of the rest");
    for (run, scores) in &second {
        assert_eq!(scores, &first[run], "{run:?}: the same seed, other numbers");
    }
    for name in METHODS.into_iter().chain(["teacher"]) {
        for seed in ["1", "2"] {
            let scores = &first[&(name.to_owned(), seed.to_owned())];
            assert_eq!(scores.len(), 3, "{name}");
            assert!(
                scores.iter().all(|score| (0.0..=1.0).contains(score)),
                "{name}: {scores:?}"
            );
            assert!(
                scores[0] <= scores[1],
                "{name}: recall@1 above recall@4: {scores:?}"
            );
        }
    }
    assert_eq!(first.len(), 1 + 8 * 2);
    let none = |seed: &str| &first[&("none".to_owned(), seed.to_owned())];
    assert_ne!(none("1"), none("2"), "another seed, the same numbers");
    for method in &METHODS[1..] {
        let distilled = &first[&((*method).to_owned(), "1".to_owned())];
        assert_ne!(distilled, none("1"), "{method} changed nothing");
    }
}

#[test]
fn recall_on_the_images_themselves_is_what_numpy_says() {
    let folder = tempfile::tempdir().expect("a folder");
    let validation = ["--quick", "--method", "none", "--recall-on", "validation"];
    succeeds(&validation, folder.path());
    let parts = [
        (quick(), [880.0, 1063.0], 1280.0),
        (folder.path(), [507.0, 549.0], 640.0),
    ];
    for (out, hits, images) in parts {
        let got = &runs(out)[&("pixels".to_owned(), String::new())];
        for (got, hits) in got.iter().zip(hits) {
            let right = (got - hits / images).abs() < 1e-6;
            assert!(right, "{got}, expected {hits} of {images}");
        }
    }
}

/// With two seeds, the standard error of a mean is half the difference. The same holds for
/// differences.
#[test]
fn the_table_has_means_errors_and_paired_differences() {
    let out = quick();
    let runs = runs(out);
    let table = fs::read_to_string(out.join("results.md")).expect("results.md");
    let score =
        |name: &str, seed: &str, at: usize| 100.0 * runs[&(name.to_owned(), seed.to_owned())][at];
    for method in METHODS {
        let said = table
            .lines()
            .find(|line| line.starts_with(&format!("| student, {method} ")));
        let cells: Vec<&str> = said
            .expect("a line for every method")
            .split('|')
            .map(str::trim)
            .collect();
        for (cell, against, at) in [(2, Some(3), 0), (4, None, 1), (5, Some(6), 2)] {
            let [a, b] = ["1", "2"].map(|seed| score(method, seed, at));
            close(cells[cell], (a + b) / 2.0, (a - b).abs() / 2.0);
            if let Some(against) = against.filter(|_| method != "none") {
                let [a, b] =
                    ["1", "2"].map(|seed| score(method, seed, at) - score("none", seed, at));
                close(cells[against], (a + b) / 2.0, (a - b).abs() / 2.0);
                let clear = (a + b).abs() > 2.0 * (a - b).abs();
                assert_eq!(cells[against].ends_with('*'), clear, "{}", cells[against]);
            }
        }
    }
}

/// Asserts that `said`, for example `+1.5 ± 0.2 *`, is the mean and the error to the last digit.
fn close(said: &str, mean: f64, error: f64) {
    let said = said.trim_end_matches('*').trim();
    let (left, right) = said.split_once(" ± ").expect("a mean and an error");
    for (text, value) in [(left, mean), (right, error)] {
        let got: f64 = text.parse().expect("a number");
        assert!(
            (got - value).abs() < 0.051,
            "{said}: expected {mean} ± {error}"
        );
    }
}

#[test]
fn the_plots_are_whole() {
    let out = quick();
    let [recall, distances] = ["recall.svg", "distances.svg"].map(|name| {
        let text = fs::read_to_string(out.join(name)).expect("a plot");
        assert!(!text.contains("NaN") && !text.contains("inf"), "{name}");
        text
    });
    let [recall, distances] =
        [&recall, &distances].map(|text| roxmltree::Document::parse(text).expect("well-formed"));
    let texts = |of: &roxmltree::Document| -> Vec<String> {
        let texts = of.descendants().filter(|node| node.has_tag_name("text"));
        texts
            .filter_map(|node| node.text())
            .map(|text| text.trim().to_owned())
            .collect()
    };
    for method in METHODS {
        assert!(
            texts(&recall).iter().any(|text| text == method),
            "no {method} in the legend"
        );
    }
    let titles = texts(&distances);
    assert!(titles.iter().any(|text| text == "teacher"), "{titles:?}");
    let cells = distances
        .descendants()
        .filter(|node| node.has_tag_name("rect"))
        .count();
    assert!(
        cells >= 3 * 40 * 40,
        "{cells} cells in three maps of 40 x 40"
    );
}

#[test]
fn what_is_wrong_is_refused_in_one_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("file");
    fs::write(&file, "").expect("a file");
    let cases: [(&[&str], &str); 7] = [
        (&["--method", "rkd"], "rkd-distance, rkd-angle, kd, rrd"),
        (&["--method", "rkd-angle=-1"], "above 0"),
        (&["--method", "rrd=NaN"], "above 0"),
        (&["--seeds", "0"], "--seeds"),
        (&["--steps", "many"], "--steps"),
        (&["--recall-on", "seen"], "--recall-on"),
        (&["--quick", "--seeds", "3"], "--quick"),
    ];
    for (arguments, expected) in cases {
        refused(arguments, folder.path(), expected);
    }
    refused(&["--quick"], &file, "--out");
    if !candle_core::utils::cuda_is_available() {
        refused(
            &["--quick", "--device", "cuda"],
            folder.path(),
            "--device cuda",
        );
    }
}

fn refused(arguments: &[&str], out: &Path, expected: &str) {
    let run = distill(arguments, out);
    let said = String::from_utf8(run.stderr).expect("UTF-8");
    assert_eq!(run.status.code(), Some(2), "{arguments:?}: {said}");
    assert_eq!(said.lines().count(), 1, "{arguments:?}: {said}");
    assert!(
        said.starts_with("error: ") && said.contains(expected),
        "{arguments:?}: {said}"
    );
    assert!(run.stdout.is_empty(), "{arguments:?}");
}
