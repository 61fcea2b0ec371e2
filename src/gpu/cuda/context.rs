//! The CUDA context that is current on a thread. The raw evaluator uses it and never changes it.
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

/// A context, only for comparing it with another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Context(pub(super) CUcontext);

// SAFETY: nothing reads from the address.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    /// The context that is current on this thread.
    fn current() -> Result<Self> {
        let current = result::ctx::get_current().context("asking for the current context")?;
        current.map(Context).ok_or(Error::NoContext { got: "none" })
    }
}

/// A context with its GPU, in which the kernels are ready to be launched.
#[derive(Clone, Debug)]
pub(super) struct KernelContext {
    pub(super) handle: Context,
    pub(super) gpu: Gpu,
    library: &'static Library,
}

impl KernelContext {
    /// The context that is current on this thread.
    pub(super) fn current() -> Result<Self> {
        driver::version()?;
        let handle = Context::current()?;
        let mut device = 0;
        // SAFETY: it writes a device's handle to the address of one.
        let result = unsafe { sys::cuCtxGetDevice(&raw mut device) };
        result.result().context("asking the context for its GPU")?;
        let gpu = Gpu::of(device)?;
        let library = Library::prepared(&gpu)?;
        Ok(KernelContext {
            handle,
            gpu,
            library,
        })
    }

    /// Returns an error if another context is current.
    pub(super) fn check(&self) -> Result<()> {
        if Context::current()? == self.handle {
            Ok(())
        } else {
            Err(Error::NoContext { got: "another one" })
        }
    }

    /// A launcher for a stream of this context.
    pub(super) fn launcher(&self, stream: CUstream) -> Result<StreamLauncher> {
        self.check()?;
        Ok(StreamLauncher::new(self.library, stream))
    }

    /// The same with launches that overlap, for one evaluation. Call it only if they
    /// [can overlap](Self::can_overlap).
    pub(super) fn overlapping_launcher(&self, stream: CUstream) -> Result<StreamLauncher> {
        self.check()?;
        Ok(StreamLauncher::overlapping(self.library, stream))
    }

    /// Whether launches can overlap, in a stream and in a captured graph.
    pub(super) fn can_overlap(&self) -> Result<bool> {
        /// Older drivers cannot capture launches that overlap.
        const OLDEST: Version = Version(12, 3);
        Ok(driver::version()? >= OLDEST && self.library.waits(&self.gpu)?)
    }
}
