//! Tests with a fake driver in place of NVIDIA's.
//!
//! A process loads `libcuda.so` once and keeps it. So each test of [`with_fake_driver!`] starts
//! this test binary again, for that one test, in a process that finds the fake driver:
//!
//! 1. The test compiles libcuda.c to `libcuda.so`, once for all tests.
//! 2. It starts the binary with the test's own name, with the fake driver's folder in
//!    `LD_LIBRARY_PATH`, with the settings as environment variables (libcuda.c lists them), and
//!    with `FAKE_DRIVER_TEST` set to the test's name.
//! 3. In that process the same test finds its own name in `FAKE_DRIVER_TEST` and runs its body. The
//!    fake driver writes each call to a log, which [`calls`] reads.
//! 4. The first process checks that the second one passed, and else prints what it printed.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The name of the test that a process is to run with the fake driver.
const TEST: &str = "FAKE_DRIVER_TEST";
/// The path of its log.
const LOG: &str = "FAKE_DRIVER_LOG";

/// A test with the fake driver: a name, settings and a body.
macro_rules! with_fake_driver {
    ($name:ident, [$(($setting:literal, $value:literal)),*], $body:block) => {
        $crate::fake_driver::in_a_process!($name, Fake, [$(($setting, $value)),*], $body);
    };
}
pub(crate) use with_fake_driver;

/// A test with a driver that does not load: a name and a body.
macro_rules! with_broken_driver {
    ($name:ident, $body:block) => {
        $crate::fake_driver::in_a_process!($name, Broken, [], $body);
    };
}
pub(crate) use with_broken_driver;

macro_rules! in_a_process {
    ($name:ident, $driver:ident, [$(($setting:literal, $value:literal)),*], $body:block) => {
        #[test]
        fn $name() {
            let name = concat!(module_path!(), "::", stringify!($name));
            // The test runner's names begin behind the name of the crate.
            let name = name.split_once("::").map_or(name, |(_, name)| name);
            $crate::fake_driver::run(
                name,
                $crate::fake_driver::Driver::$driver,
                &[$(($setting, $value)),*],
                || $body,
            );
        }
    };
}
pub(crate) use in_a_process;

/// What a process finds in place of NVIDIA's driver.
pub(crate) enum Driver {
    Fake,
    /// A file that is no library.
    Broken,
}

/// Runs `test`, the body of the test of this name, in a process of its own.
pub(crate) fn run(name: &str, driver: Driver, settings: &[(&str, &str)], test: fn()) {
    if env::var(TEST).is_ok_and(|this| this == name) {
        return test();
    }
    let folder = match driver {
        Driver::Fake => fake(),
        Driver::Broken => broken(),
    };
    let log =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}.log", std::process::id()));
    let output = Command::new(env::current_exe().expect("the test knows its own path"))
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env(TEST, name)
        .env(LOG, &log)
        .env("LD_LIBRARY_PATH", folder)
        .envs(settings.iter().copied())
        .output()
        .expect("the test starts itself");
    let calls = fs::read_to_string(&log).unwrap_or_default();
    let _ = fs::remove_file(log);
    assert!(
        output.status.success()
            && String::from_utf8_lossy(&output.stdout).contains("1 passed")
            && no_source_changed(&calls),
        "{name} with the fake driver:\n{}{}\nits calls:\n{calls}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
}

/// The driver's calls since the last call of this function, as libcuda.c writes them. Panics if the
/// host overwrote memory that a copy to the GPU had still to read.
pub(crate) fn calls() -> Vec<String> {
    let path = env::var(LOG).expect("a test with the fake driver");
    let calls = fs::read_to_string(&path).unwrap_or_default();
    let _ = fs::remove_file(path);
    assert!(no_source_changed(&calls), "{calls}");
    calls.lines().map(str::to_owned).collect()
}

/// Whether every copy to the GPU read its source while that was what it had been at the call.
fn no_source_changed(calls: &str) -> bool {
    !calls.lines().any(|call| call.starts_with("changed"))
}

/// `calls` without those that only ask.
pub(crate) fn actions(calls: Vec<String>) -> Vec<String> {
    let asks = |call: &String| call.starts_with("cuCtxGet");
    calls.into_iter().filter(|call| !asks(call)).collect()
}

/// The names of the kernels launched since the last call, without `relata_`. Nothing else was done.
pub(crate) fn kernels() -> Vec<String> {
    let calls = actions(calls());
    let names = calls.iter().map(|call| {
        let name = call.strip_prefix("cuLaunchKernel relata_");
        name.unwrap_or_else(|| panic!("no launch: {call}"))
    });
    names
        .map(|name| name.split(' ').next().expect("a name").to_owned())
        .collect()
}

fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::create_dir_all(&folder).expect("a folder for tests");
    folder
}

/// The folder of the fake driver, compiled once with the compiler that nvcc needs too.
fn fake() -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let build = || {
        let folder = folder(&format!("fake-driver-{}", std::process::id()));
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cuda_fake_driver/libcuda.c");
        let compiler = env::var("CC").unwrap_or_else(|_| "cc".to_owned());
        let status = Command::new(&compiler)
            .args(["-shared", "-fPIC", "-Wall", "-Werror", "-o"])
            .arg(folder.join("libcuda.so.1"))
            .arg(source)
            .status();
        assert!(
            status.is_ok_and(|status| status.success()),
            "{compiler} compiles the fake driver"
        );
        // cudarc looks for this name first.
        fs::copy(folder.join("libcuda.so.1"), folder.join("libcuda.so")).expect("a copy");
        folder
    };
    FOLDER.get_or_init(build).clone()
}

fn broken() -> PathBuf {
    let folder = folder("broken-driver");
    for name in ["libcuda.so.1", "libcuda.so"] {
        fs::write(folder.join(name), "no library").expect("a file");
    }
    folder
}
