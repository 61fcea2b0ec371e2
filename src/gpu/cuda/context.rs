//! The context that is current on a thread, which the raw entry takes as it finds it.
#![allow(unsafe_code, reason = "asks the driver")]

use cudarc::driver::result;
use cudarc::driver::sys::{self, CUcontext, CUstream};

use super::driver;
use super::failure::WithContext;
use super::gpu::Gpu;
use super::images::Version;
use super::launcher::StreamLauncher;
use super::library::Library;
use crate::error::{Error, Result};

/// A context to compare with, not to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Context(pub(super) CUcontext);

// SAFETY: no one looks behind the address.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    /// The one that is current on this thread.
    fn current() -> Result<Self> {
        let current = result::ctx::get_current().context("asking for the current context")?;
        current.map(Context).ok_or(Error::NoContext { got: "none" })
    }
}

/// Where kernels are launched: a context with its GPU and the kernels ready in it.
#[derive(Clone, Debug)]
pub(super) struct KernelContext {
    pub(super) context: Context,
    pub(super) gpu: Gpu,
    library: &'static Library,
}

impl KernelContext {
    /// The context that is current on this thread.
    pub(super) fn current() -> Result<Self> {
        driver::version()?;
        let context = Context::current()?;
        let mut device = 0;
        // SAFETY: it writes to the address of a device's handle.
        let result = unsafe { sys::cuCtxGetDevice(&raw mut device) };
        result.result().context("asking the context for its GPU")?;
        let gpu = Gpu::of(device)?;
        let library = Library::prepared(&gpu)?;
        Ok(KernelContext {
            context,
            gpu,
            library,
        })
    }

    /// Refuses to go on where another context is current.
    pub(super) fn check(&self) -> Result<()> {
        if Context::current()? == self.context {
            Ok(())
        } else {
            Err(Error::NoContext { got: "another one" })
        }
    }

    /// Launches on a stream of this context.
    pub(super) fn launcher(&self, stream: CUstream) -> Result<StreamLauncher> {
        self.check()?;
        Ok(StreamLauncher::new(self.library, stream))
    }

    /// The same with launches that overlap, for one evaluation. Only where they [can](Self::can_overlap).
    pub(super) fn overlapping_launcher(&self, stream: CUstream) -> Result<StreamLauncher> {
        self.check()?;
        Ok(StreamLauncher::overlapping(self.library, stream))
    }

    /// Whether launches can overlap, in a stream and where it is captured.
    pub(super) fn can_overlap(&self) -> Result<bool> {
        /// What overlaps could not be captured before.
        const OLDEST: Version = Version(12, 3);
        Ok(driver::version()? >= OLDEST && self.library.waits(&self.gpu)?)
    }
}
