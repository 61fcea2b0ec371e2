//! The fake driver: its settings and its record of calls.
#![allow(unsafe_code, reason = "calls the fake driver's own function")]

use std::ffi::{CString, c_char, c_int};
use std::fs;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use candle_core::Device;

type Set = unsafe extern "C" fn(*const c_char, *const c_char) -> c_int;

/// The fake driver's GPU. One test at a time has it.
pub(crate) struct FakeDriver {
    pub(crate) device: Device,
    set: Set,
    log: PathBuf,
    _alone: MutexGuard<'static, ()>,
}

impl FakeDriver {
    /// None, and a line that says so, if the driver is a real one.
    pub(crate) fn found() -> Option<Self> {
        static ONE: Mutex<()> = Mutex::new(());
        let alone = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the program is linked with this library, which is loaded already.
        let driver = unsafe { libloading::Library::new("libcuda.so.1") }.expect("a driver");
        // SAFETY: fake-driver/driver.c defines it so; a real driver has no function of this name.
        let Ok(set) = (unsafe { driver.get::<Set>(b"fake_driver_set\0") }) else {
            eprintln!("SKIPPED: the driver is not the fake one");
            return None;
        };
        let log = format!("adapter-{}.log", std::process::id());
        let mut fake_driver = FakeDriver {
            device: Device::Cpu,
            set: *set,
            log: PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(log),
            _alone: alone,
        };
        std::mem::forget(driver);
        fake_driver.set("FAKE_DRIVER_LOG", &fake_driver.log.display().to_string());
        fake_driver.set("FAKE_DRIVER_FAIL", "");
        fake_driver.device = Device::new_cuda(0).expect("the fake driver's GPU");
        fake_driver.calls();
        Some(fake_driver)
    }

    fn set(&self, name: &str, value: &str) {
        let [name, value] = [name, value].map(|text| CString::new(text).expect("no zeros"));
        // SAFETY: both strings end with 0.
        let failed = unsafe { (self.set)(name.as_ptr(), value.as_ptr()) };
        assert_eq!(failed, 0);
    }

    /// Makes calls of this name fail with this code from now on.
    pub(crate) fn fail(&self, call: &str, code: u32) {
        self.set("FAKE_DRIVER_FAIL", &format!("{call}:{code}"));
    }

    pub(crate) fn work_again(&self) {
        self.set("FAKE_DRIVER_FAIL", "");
    }

    /// The driver's calls since the last call of this, without mere queries and events.
    pub(crate) fn calls(&self) -> Vec<String> {
        let calls = fs::read_to_string(&self.log).unwrap_or_default();
        let _ = fs::remove_file(&self.log);
        let quiet = [
            "cuCtxGetCurrent",
            "cuEvent",
            "cuStreamIsCapturing",
            "cuModule",
        ];
        let kept = calls
            .lines()
            .filter(|call| !quiet.iter().any(|name| call.starts_with(name)));
        kept.map(str::to_owned).collect()
    }
}

impl Drop for FakeDriver {
    fn drop(&mut self) {
        // Now, not when this test's thread ends: another test would record those calls.
        relata_candle::release_workspaces();
        let _ = fs::remove_file(&self.log);
    }
}
