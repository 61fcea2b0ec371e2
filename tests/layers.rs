//! Holds the layers of `src/`: a module imports only modules of a lower rank.
//!
//! The test reads the source as text. It counts every mention of `crate::module` outside comments,
//! and every item that a `use` line takes from the crate's root. It leaves out parts behind
//! `#[cfg(test)]` and files called `tests.rs`. Modules of one folder may import each other.

use std::fs;
use std::path::{Path, PathBuf};

/// The ranks, lowest first. Modules of one rank do not import each other.
const RANKS: [&[&str]; 13] = [
    &["error", "simd"],
    &["element"],
    &["rows"],
    &["shapes", "checks"],
    &["loss", "top_k", "row_weights"],
    &["queue", "bank", "prefixes"],
    &["batch"],
    &["problem"],
    &["device"],
    &["reference", "cpu", "gpu"],
    &["evaluate", "check", "sampler", "negative_sampler"],
    &["recall", "ranks"],
    &["lib"],
];

fn rank(module: &str) -> Option<usize> {
    RANKS.iter().position(|rank| rank.contains(&module))
}

/// Every file of Rust below `folder`, but no tests.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("a folder of sources");
    let mut files = Vec::new();
    for path in entries.map(|entry| entry.expect("an entry").path()) {
        if path.file_stem().is_some_and(|stem| stem == "tests") {
            continue;
        }
        if path.is_dir() {
            files.extend(self::files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// The code before the tests, without comments.
fn code_of(file: &Path) -> String {
    let text = fs::read_to_string(file).expect("UTF-8");
    let code = text.split("#[cfg(test)]\nmod ").next().unwrap_or(&text);
    let lines = code
        .lines()
        .map(|line| line.split("//").next().unwrap_or(line));
    lines.collect::<Vec<_>>().join("\n")
}

/// The line and the module of each mention: `c` and `d` in `use crate::{c, d::E};`.
fn imports(code: &str) -> Vec<(usize, &str)> {
    let mut imports = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let before = &code[..at];
        let line = before.lines().count().max(1);
        let is_use = before
            .rsplit(['\n', ';'])
            .next()
            .unwrap_or(before)
            .contains("use ");
        let rest = &code[at + "crate::".len()..];
        let paths: Vec<&str> = match rest.strip_prefix('{') {
            Some(list) => list[..list.find(';').unwrap_or(list.len())]
                .split(',')
                .collect(),
            None => vec![rest],
        };
        for path in paths.into_iter().map(str::trim) {
            let is_name = |c: char| c.is_alphanumeric() || c == '_';
            let name = &path[..path.find(|c| !is_name(c)).unwrap_or(path.len())];
            if rank(name).is_some() {
                imports.push((line, name));
            } else if is_use && rest.starts_with(path) {
                // An item of the crate's root.
                imports.push((line, "lib"));
            }
        }
    }
    imports
}

#[test]
fn modules_import_only_lower_layers() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut wrong = Vec::new();
    for file in files(&source) {
        let inside = file.strip_prefix(&source).expect("a file of src");
        let first = inside.iter().next().expect("a name").to_string_lossy();
        let module = first.trim_end_matches(".rs");
        let Some(own) = rank(module) else {
            wrong.push(format!("src/{}: {module} has no rank", inside.display()));
            continue;
        };
        for (line, import) in imports(&code_of(&file)) {
            if import != module && rank(import).is_some_and(|of| of >= own) {
                let at = format!("src/{}:{line}", inside.display());
                wrong.push(format!("{at}: {module} -> {import}"));
            }
        }
    }
    assert!(wrong.is_empty(), "no lower layers: {wrong:#?}");
}
