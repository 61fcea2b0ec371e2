//! `evaluate_ranks` under `mpirun`: what one rank gives, and errors in place of hanging.
//!
//! Needs `mpirun` of Open MPI in the path.

use std::path::PathBuf;
use std::process::{Command, Output};

/// The example, which `cargo test` has built.
fn program() -> PathBuf {
    let test = std::env::current_exe().expect("a path");
    let profile = test.ancestors().nth(2).expect("target/profile/deps/test");
    profile.join("examples/evaluate_ranks")
}

/// Runs on so many ranks. Nobody waits longer than for a minute, so that what would hang fails.
fn mpirun(options: &[&str], world: usize, arguments: &[&str]) -> Output {
    let mut command = Command::new("timeout");
    command.args(["60", "mpirun"]).args(options);
    command.args(["-n", &world.to_string()]).arg(program());
    // In a container, with fewer cores than ranks.
    for (name, value) in [
        ("OMPI_ALLOW_RUN_AS_ROOT", "1"),
        ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"),
        ("OMPI_MCA_rmaps_base_oversubscribe", "1"),
        ("OMPI_MCA_btl_vader_single_copy_mechanism", "none"),
        ("RAYON_NUM_THREADS", "1"),
    ] {
        command.env(name, value);
    }
    command.args(arguments).output().expect("mpirun")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What rank 0 prints, a line for each loss. All have to have the bits of one rank.
#[track_caller]
fn assert_same_bits(world: usize, arguments: &[&str], losses: usize) {
    let output = mpirun(&[], world, arguments);
    let (printed, errors) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{printed}{errors}");
    let same = |line: &&str| line.contains("same bits as one rank");
    assert_eq!(printed.lines().filter(same).count(), losses, "{printed}");
    assert_eq!(printed.lines().count(), losses, "{printed}");
}

/// How many losses there are, without those of a memory bank, which are refused.
fn losses() -> usize {
    let all = relata::Loss::all().into_iter();
    all.filter(|loss| !matches!(loss.spec().family, relata::Family::Sampled(_)))
        .count()
}

#[test]
fn every_loss_has_the_bits_of_one_rank() {
    let all = losses();
    for (world, dtype) in [(1, "f32"), (2, "f16"), (3, "f64"), (4, "f32")] {
        assert_same_bits(world, &["--dtype", dtype], all);
    }
}

/// Both towers lie in one file, of which the first rows of each are taken.
#[test]
fn files_are_read_as_evaluate_reads_them() {
    let data = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../examples/data/digits.safetensors"
    );
    let file = |tensor: &str| format!("{data}:{tensor}");
    let files = ["student.projection", "teacher.projection", "queue", "label"].map(file);
    let names = ["--student", "--teacher", "--queue", "--labels"];
    let mut all: Vec<&str> = names
        .iter()
        .zip(&files)
        .flat_map(|(n, f)| [n, &f[..]])
        .collect();
    all.extend(["--deal", "4,2,8"]);
    assert_same_bits(3, &all, losses());
}

#[test]
fn an_uneven_deal_has_the_bits_of_one_rank() {
    // All losses but those of two towers, whose rows are pairs.
    let losses = losses() - 2;
    for dtype in ["f32", "f16"] {
        assert_same_bits(4, &["--deal", "5,1,0,26", "--dtype", dtype], losses);
    }
    let towers = ["--loss", "clip", "--loss", "siglip", "--deal", "10,2,0,20"];
    assert_same_bits(4, &towers, 2);
}

const LATE: &str = "within 4 s, got none";

/// Runs on 3 ranks, of which rank 1 is odd. `expected` is the error on each of `ranks`.
#[track_caller]
fn assert_error(options: &[&str], odd: &str, ranks: &[usize], expected: &str) {
    let limit = if expected.ends_with(LATE) { "4" } else { "60" };
    let odd = format!("1={odd}");
    let arguments = ["--loss", "gram", "--limit", limit, "--odd", &odd];
    let output = mpirun(options, 3, &arguments);
    assert_ne!(output.status.code(), Some(124), "{odd}: it hangs");
    let errors = text(&output.stderr);
    for rank in ranks {
        let line = format!("error on rank {rank}: {expected}");
        assert!(
            errors.lines().any(|of| of == line),
            "{odd}: expected {line}, got\n{errors}"
        );
    }
}

#[test]
fn a_rank_at_odds_is_an_error_on_all() {
    for (odd, argument, expected, got) in [
        ("loss", "loss", "gram", "sp"),
        ("width", "student_dim", "32", "31"),
        ("dtype", "dtype", "f32", "f64"),
    ] {
        let error = format!(
            "{argument}: expected {expected} on all ranks as on rank 0, got {got} on rank 1"
        );
        assert_error(&[], odd, &[0, 1, 2], &error);
    }
}

#[test]
fn a_rank_that_goes_is_an_error_on_all_others() {
    let left = "rank 1: expected to take part in an exchange, got none: it has left";
    let late = format!("rank 1: expected to take part in an exchange {LATE}");
    for odd in ["leave", "panic"] {
        assert_error(&[], odd, &[0, 2], left);
    }
    assert_error(&[], "stop", &[0, 2], &late);
    // By default mpirun ends the others before they find out.
    assert_error(&["--enable-recovery"], "kill", &[0, 2], &late);
    for odd in ["kill", "exit"] {
        let arguments = ["--loss", "gram", "--odd", &format!("1={odd}")];
        let output = mpirun(&[], 3, &arguments);
        let code = output.status.code();
        assert!(!matches!(code, Some(0 | 124)), "{odd}: {output:?}");
        assert!(text(&output.stderr).contains("mpirun"), "{odd}: {output:?}");
    }
}

#[test]
fn rows_are_needed_on_some_rank() {
    let output = mpirun(&[], 2, &["--loss", "gram", "--deal", "0,0"]);
    let errors = text(&output.stderr);
    for rank in [0, 1] {
        let line = format!("error on rank {rank}: rows: expected at least 1, got 0");
        assert!(errors.contains(&line), "{errors}");
    }
}
