//! The fake driver for the driver: its settings and what it has recorded.
#![allow(unsafe_code, reason = "looks for the fake driver among the libraries")]

use std::ffi::{CString, c_char, c_int};
use std::fs;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use candle_core::Device;

type Set = unsafe extern "C" fn(*const c_char, *const c_char) -> c_int;

/// A GPU of the fake driver's, which one test at a time has.
pub(crate) struct StandIn {
    pub(crate) device: Device,
    set: Set,
    log: PathBuf,
    _alone: MutexGuard<'static, ()>,
}

impl StandIn {
    /// None, and a line that says so, where the driver is a real one.
    pub(crate) fn found() -> Option<Self> {
        static ONE: Mutex<()> = Mutex::new(());
        let alone = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the library that the program is linked with, loaded already.
        let driver = unsafe { libloading::Library::new("libcuda.so.1") }.expect("a driver");
        // SAFETY: fake-driver/driver.c defines it so; a real driver has nothing of this name.
        let Ok(set) = (unsafe { driver.get::<Set>(b"fake_driver_set\0") }) else {
            eprintln!("SKIPPED: a driver and no fake driver");
            return None;
        };
        let log = format!("adapter-{}.log", std::process::id());
        let mut fake_driver = StandIn {
            device: Device::Cpu,
            set: *set,
            log: PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(log),
            _alone: alone,
        };
        std::mem::forget(driver);
        fake_driver.set("STAND_IN_LOG", &fake_driver.log.display().to_string());
        fake_driver.set("STAND_IN_FAIL", "");
        fake_driver.device = Device::new_cuda(0).expect("the fake driver's GPU");
        fake_driver.calls();
        Some(fake_driver)
    }

    fn set(&self, name: &str, value: &str) {
        let [name, value] = [name, value].map(|text| CString::new(text).expect("no zeros"));
        // SAFETY: two strings that end with 0.
        let failed = unsafe { (self.set)(name.as_ptr(), value.as_ptr()) };
        assert_eq!(failed, 0);
    }

    /// Lets calls of this name fail with this code from now on.
    pub(crate) fn fail(&self, call: &str, code: u32) {
        self.set("STAND_IN_FAIL", &format!("{call}:{code}"));
    }

    pub(crate) fn work_again(&self) {
        self.set("STAND_IN_FAIL", "");
    }

    /// What the driver has been called with since this was called last, but for mere questions and events.
    pub(crate) fn calls(&self) -> Vec<String> {
        let calls = fs::read_to_string(&self.log).unwrap_or_default();
        let _ = fs::remove_file(&self.log);
        let quiet = [
            "cuCtxGetCurrent",
            "cuEvent",
            "cuStreamIsCapturing",
            "cuModule",
        ];
        let deeds = calls
            .lines()
            .filter(|call| !quiet.iter().any(|name| call.starts_with(name)));
        deeds.map(str::to_owned).collect()
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        // Not when this test's thread ends, which another test would see.
        relata_candle::release_workspaces();
        let _ = fs::remove_file(&self.log);
    }
}
