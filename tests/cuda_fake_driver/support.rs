//! Runs a test in a process of its own that finds the fake driver where the driver would be.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// What the process runs as, and where it finds its log.
const INSIDE: &str = "STAND_IN_TEST";
const LOG: &str = "STAND_IN_LOG";

/// What a process finds instead of a driver.
pub(crate) enum Driver {
    StandIn,
    /// A file that is no library.
    Broken,
}

/// Runs `test`, the body of the test of this name, beside a fake driver with these settings.
pub(crate) fn beside(name: &str, driver: Driver, settings: &[(&str, &str)], test: fn()) {
    if env::var(INSIDE).is_ok_and(|inside| inside == name) {
        return test();
    }
    let folder = match driver {
        Driver::StandIn => fake_driver(),
        Driver::Broken => broken(),
    };
    let log =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}.log", std::process::id()));
    let output = Command::new(env::current_exe().expect("the test knows its own path"))
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env(INSIDE, name)
        .env(LOG, &log)
        .env("LD_LIBRARY_PATH", folder)
        .envs(settings.iter().copied())
        .output()
        .expect("the test starts itself");
    let calls = fs::read_to_string(&log).unwrap_or_default();
    let _ = fs::remove_file(log);
    assert!(
        output.status.success() && String::from_utf8_lossy(&output.stdout).contains("1 passed"),
        "{name} beside the stand-in:\n{}{}\nits calls:\n{calls}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
}

/// What the driver has been called with since this was called last.
pub(crate) fn calls() -> Vec<String> {
    let path = env::var(LOG).expect("a test beside the stand-in");
    let calls = fs::read_to_string(&path).unwrap_or_default();
    let _ = fs::remove_file(path);
    calls.lines().map(str::to_owned).collect()
}

/// Those of `calls` that are not mere questions.
pub(crate) fn deeds(calls: Vec<String>) -> Vec<String> {
    let asks = |call: &String| call.starts_with("cuCtxGetCurrent");
    calls.into_iter().filter(|call| !asks(call)).collect()
}

fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::create_dir_all(&folder).expect("a folder for tests");
    folder
}

/// Compiled once, with the compiler that nvcc needs too.
fn fake_driver() -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let build = || {
        let folder = folder(&format!("stand-in-{}", std::process::id()));
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cuda_fake_driver/libcuda.c");
        let compiler = env::var("CC").unwrap_or_else(|_| "cc".to_owned());
        let status = Command::new(&compiler)
            .args(["-shared", "-fPIC", "-Wall", "-Werror", "-o"])
            .arg(folder.join("libcuda.so.1"))
            .arg(source)
            .status();
        assert!(
            status.is_ok_and(|status| status.success()),
            "{compiler} compiles the stand-in"
        );
        // cudarc looks for this name first.
        fs::copy(folder.join("libcuda.so.1"), folder.join("libcuda.so")).expect("a copy");
        folder
    };
    FOLDER.get_or_init(build).clone()
}

fn broken() -> PathBuf {
    let folder = folder("broken");
    for name in ["libcuda.so.1", "libcuda.so"] {
        fs::write(folder.join(name), "no library").expect("a file");
    }
    folder
}
