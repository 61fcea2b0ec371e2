//! Where cargo puts an example's program. A file of its own: the tests of examples/distill, another
//! package, include it too.

use std::path::PathBuf;

/// The program of an example, which cargo builds before it runs the integration tests of the
/// example's package.
pub(crate) fn binary(example: &str) -> PathBuf {
    let test = std::env::current_exe().expect("the test knows its own path");
    let profile = test
        .ancestors()
        .nth(2)
        .expect("tests lie in <profile>/deps");
    let binary = profile
        .join("examples")
        .join(example)
        .with_extension(std::env::consts::EXE_EXTENSION);
    assert!(
        binary.is_file(),
        "build it first: cargo build --example {example} (no {})",
        binary.display()
    );
    binary
}
