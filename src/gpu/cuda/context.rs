//! The CUDA context that is current on a thread. The raw evaluator uses it and never changes it.
#![allow(unsafe_code, reason = "asks the driver")]

use std::collections::BTreeMap;
use std::ffi::c_ulonglong;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use cudarc::driver::result;
use cudarc::driver::sys::{self, CUcontext, CUstream};

use super::driver;
use super::failure::WithContext;
use super::gpu::Gpu;
use super::images::Version;
use super::launcher::StreamLauncher;
use super::library::{Library, Prepared};
use crate::error::{Error, Result};
use crate::gpu::kernels::{self, EntryPoint};
use crate::gpu::machine::{Launch, Launcher};

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

/// A context with its GPU, in which kernels are made ready and launched.
#[derive(Clone, Debug)]
pub(super) struct KernelContext {
    pub(super) handle: Context,
    known: Arc<Known>,
}

/// What the driver has said of a context, and what has been done in it.
#[derive(Debug)]
struct Known {
    gpu: Gpu,
    library: &'static Library,
    prepared: Prepared,
    /// Whether the kernels that the GPU runs wait for earlier launches: see [`Library::waits`].
    waits: OnceLock<bool>,
}

impl Known {
    /// What is known of the context with this handle, which is current. A context is asked once.
    ///
    /// The driver gives each context a number that no other context of the process ever has. An
    /// address would not do: a context that ends may leave its address to another one.
    fn of(handle: Context) -> Result<Arc<Self>> {
        static CONTEXTS: Mutex<BTreeMap<c_ulonglong, Arc<Known>>> = Mutex::new(BTreeMap::new());
        let mut number = 0;
        // SAFETY: the handle is of the current context. It writes to the address of a number.
        let result = unsafe { sys::cuCtxGetId(handle.0, &raw mut number) };
        result
            .result()
            .context("asking the context for its number")?;
        let mut contexts = CONTEXTS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = contexts.get(&number) {
            return Ok(Arc::clone(known));
        }
        let mut device = 0;
        // SAFETY: it writes a device's handle to the address of one.
        let result = unsafe { sys::cuCtxGetDevice(&raw mut device) };
        result.result().context("asking the context for its GPU")?;
        let gpu = Gpu::of(device)?;
        let library = Library::loaded(&gpu)?;
        let known = Arc::new(Known {
            gpu,
            library,
            prepared: Prepared::default(),
            waits: OnceLock::new(),
        });
        contexts.insert(number, Arc::clone(&known));
        Ok(known)
    }
}

/// Takes note of the kernels of a plan and launches nothing.
#[derive(Default)]
pub(super) struct Kernels(Vec<&'static EntryPoint>);

impl Launcher for Kernels {
    fn launch(&mut self, launch: Launch<'_>) -> Result<()> {
        self.0.push(launch.kernel);
        Ok(())
    }
}

impl KernelContext {
    /// The context that is current on this thread.
    pub(super) fn current() -> Result<Self> {
        driver::ready()?;
        let handle = Context::current()?;
        let known = Known::of(handle)?;
        Ok(KernelContext { handle, known })
    }

    pub(super) fn gpu(&self) -> &Gpu {
        &self.known.gpu
    }

    /// Makes all kernels ready. The context is current.
    pub(super) fn prepare_all(&self) -> Result<()> {
        self.prepare(kernels::all())
    }

    /// Makes the kernels that `launches` launches ready. The context is current.
    pub(super) fn prepare_for(
        &self,
        launches: impl FnOnce(&mut Kernels) -> Result<()>,
    ) -> Result<()> {
        let mut kernels = Kernels::default();
        launches(&mut kernels)?;
        self.prepare(kernels.0)
    }

    fn prepare(&self, entries: impl IntoIterator<Item = &'static EntryPoint>) -> Result<()> {
        let Known {
            gpu,
            library,
            prepared,
            ..
        } = &*self.known;
        library.prepare(entries, gpu, prepared)
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
        Ok(StreamLauncher::new(self.known.library, stream))
    }

    /// The same with launches that overlap, for one evaluation. Call it only if they
    /// [can overlap](Self::can_overlap).
    pub(super) fn overlapping_launcher(&self, stream: CUstream) -> Result<StreamLauncher> {
        self.check()?;
        Ok(StreamLauncher::overlapping(self.known.library, stream))
    }

    /// Whether launches can overlap, in a stream and in a captured graph.
    pub(super) fn can_overlap(&self) -> Result<bool> {
        /// Older drivers cannot capture launches that overlap.
        const OLDEST: Version = Version(12, 3);
        Ok(driver::version()? >= OLDEST && self.waits()?)
    }

    fn waits(&self) -> Result<bool> {
        let Known {
            gpu,
            library,
            waits,
            ..
        } = &*self.known;
        match waits.get() {
            Some(waits) => Ok(*waits),
            None => {
                let answer = library.waits(gpu)?;
                Ok(*waits.get_or_init(|| answer))
            }
        }
    }
}
