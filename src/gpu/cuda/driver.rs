//! The driver, if there is one. cudarc panics without, even to say what went wrong, so nothing of it may
//! be called before [`version`] has succeeded.
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
use super::images::Version;
use crate::error::{Error, Result};

#[cfg(not(windows))]
const NAMES: [&str; 2] = ["libcuda.so.1", "libcuda.so"];
#[cfg(windows)]
const NAMES: [&str; 1] = ["nvcuda.dll"];

/// The newest CUDA that the driver knows. The driver has been initialised when this returns.
pub(super) fn version() -> Result<Version> {
    load()?;
    initialize()?;
    let mut version: c_int = 0;
    // SAFETY: it writes to the address of an int.
    let result = unsafe { sys::cuDriverGetVersion(&raw mut version) };
    result
        .result()
        .context("asking the driver for its version")?;
    Ok(Version::from_driver(version))
}

/// The primary context of a GPU, current on this thread.
pub(super) fn context(ordinal: usize) -> Result<Arc<CudaContext>> {
    version()?;
    let gpus = result::device::get_count().context("counting the GPUs")?;
    let gpus = usize::try_from(gpus).unwrap_or(0);
    if ordinal >= gpus {
        return Err(Error::NoSuchGpu { ordinal, gpus });
    }
    CudaContext::new(ordinal).context("opening the GPU's primary context")
}

/// Looks where cudarc will.
fn load() -> Result<()> {
    static DRIVER: OnceLock<libloading::Library> = OnceLock::new();
    if DRIVER.get().is_some() {
        return Ok(());
    }
    let mut whys: Vec<String> = Vec::new();
    for name in NAMES {
        // SAFETY: what a library does when it is loaded is its own affair; NVIDIA's may be loaded by any
        // process, at any time and more than once. It stays loaded.
        match unsafe { libloading::Library::new(name) } {
            Ok(library) => {
                DRIVER.get_or_init(|| library);
                return Ok(());
            }
            // What the system says is the source of what libloading says.
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
        // What the toolkit has to link with, found where the driver should be.
        Err(error) if code(error) == STUB_LIBRARY => Err(Error::NoDriver {
            why: message(error),
        }),
        initialized => initialized.context("initialising the driver"),
    }
}
