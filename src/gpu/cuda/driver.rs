//! Loading the driver. Without a driver cudarc panics, even when asked for an error's text. So
//! nothing of cudarc may be called before [`ready`] has succeeded.
#![allow(
    unsafe_code,
    reason = "loads the driver's library and asks its version"
)]

use std::error::Error as _;
use std::ffi::c_int;
use std::sync::{Arc, OnceLock};

use cudarc::driver::result;
use cudarc::driver::{CudaContext, sys};

use super::failure::{NO_DEVICE, STUB_LIBRARY, WithContext, code, message};
use super::images::{self, Version};
use crate::error::{Error, Result};

#[cfg(not(windows))]
const NAMES: [&str; 2] = ["libcuda.so.1", "libcuda.so"];
#[cfg(windows)]
const NAMES: [&str; 1] = ["nvcuda.dll"];

/// Loads and initialises the driver, once for the process. Returns an error if it is older than
/// CUDA 12: it lacks functions that this module calls, and cudarc panics where one is missing.
pub(super) fn ready() -> Result<()> {
    const OLDEST: Version = Version(12, 0);
    static READY: OnceLock<()> = OnceLock::new();
    if READY.get().is_none() {
        load()?;
        initialize()?;
        let version = newest()?;
        if version < OLDEST {
            return Err(images::old_driver(version, OLDEST));
        }
        READY.get_or_init(|| ());
    }
    Ok(())
}

/// The newest version of CUDA that the driver supports.
pub(super) fn version() -> Result<Version> {
    ready()?;
    newest()
}

/// The same. The driver is loaded and initialised.
fn newest() -> Result<Version> {
    let mut version: c_int = 0;
    // SAFETY: it writes to the address of an int.
    let result = unsafe { sys::cuDriverGetVersion(&raw mut version) };
    result
        .result()
        .context("asking the driver for its version")?;
    Ok(Version::from_driver(version))
}

/// The primary context of a GPU. Makes it current on this thread.
pub(super) fn context(ordinal: usize) -> Result<Arc<CudaContext>> {
    ready()?;
    let gpus = result::device::get_count().context("counting the GPUs")?;
    let gpus = usize::try_from(gpus).unwrap_or(0);
    if ordinal >= gpus {
        return Err(Error::NoSuchGpu { ordinal, gpus });
    }
    CudaContext::new(ordinal).context("opening the GPU's primary context")
}

/// Loads the library of the driver from the places in which cudarc looks.
fn load() -> Result<()> {
    static DRIVER: OnceLock<libloading::Library> = OnceLock::new();
    if DRIVER.get().is_some() {
        return Ok(());
    }
    let mut whys: Vec<String> = Vec::new();
    for name in NAMES {
        // SAFETY: loading a library runs its initialisers. Any process may load NVIDIA's library,
        // at any time and more than once. It stays loaded.
        match unsafe { libloading::Library::new(name) } {
            Ok(library) => {
                DRIVER.get_or_init(|| library);
                return Ok(());
            }
            // The source of libloading's error is the message of the system.
            Err(why) => whys.push(why.source().unwrap_or(&why).to_string()),
        }
    }
    Err(Error::NoDriver {
        why: whys.remove(0),
    })
}

fn initialize() -> Result<()> {
    match result::init() {
        Err(error) if code(error) == NO_DEVICE => Err(Error::NoSuchGpu {
            ordinal: 0,
            gpus: 0,
        }),
        // A library that the CUDA toolkit has for linking, found in the place of the driver.
        Err(error) if code(error) == STUB_LIBRARY => Err(Error::NoDriver {
            why: message(error),
        }),
        initialized => initialized.context("initialising the driver"),
    }
}
