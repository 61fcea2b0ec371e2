//! The kernels in the driver: loaded once for the whole process, whatever the context.
#![allow(unsafe_code, reason = "loads the images")]

use std::collections::HashMap;
use std::ffi::{CString, c_int};
use std::ptr::{self, null_mut};
use std::sync::OnceLock;

use cudarc::driver::result::DriverError;
use cudarc::driver::sys::{self, CUfunction, CUfunction_attribute, CUkernel};

use super::failure::{NO_BINARY_FOR_GPU, UNSUPPORTED_PTX_VERSION, WithContext, code};
use super::gpu::Gpu;
use super::{driver, images};
use crate::error::{Error, Result};
use crate::gpu::kernels::{self, EntryPoint};

/// Every entry point by name. A `CUkernel` belongs to no context: it runs in that of the stream.
#[derive(Debug)]
pub(super) struct Library {
    kernels: HashMap<&'static str, Kernel>,
}

#[derive(Clone, Copy, Debug)]
struct Kernel(CUkernel);

// SAFETY: a handle that the driver looks up; its functions may be called from any thread.
unsafe impl Send for Kernel {}
// SAFETY: as above.
unsafe impl Sync for Kernel {}

impl Library {
    /// The kernels, ready to be launched in the current context, which is of `gpu`. Whatever the driver
    /// has to do for their first launch is done now: a launch while a graph is captured could not.
    pub(super) fn prepared(gpu: &Gpu) -> Result<&'static Self> {
        let version = driver::version()?;
        images::check(gpu, version)?;
        static LIBRARY: OnceLock<Library> = OnceLock::new();
        let library = match LIBRARY.get() {
            Some(library) => library,
            None => {
                let loaded = Library::load().map_err(|why| explain(why, gpu, version))?;
                LIBRARY.get_or_init(|| loaded)
            }
        };
        for kernel in library.kernels.values() {
            kernel
                .prepare(gpu)
                .map_err(|why| explain(why, gpu, version))?;
        }
        Ok(library)
    }

    /// The kernel as launches take it.
    pub(super) fn function(&self, entry: &EntryPoint) -> Result<CUfunction> {
        match self.kernels.get(entry.name) {
            Some(kernel) => Ok(kernel.0.cast()),
            None => Err(not_built(entry)),
        }
    }

    /// Whether the kernels that `gpu` runs wait by themselves for the launches before them: those compiled
    /// for 9.0 and later do. A GPU may have got others, from PTX, so the driver is asked.
    pub(super) fn waits(&self, gpu: &Gpu) -> Result<bool> {
        const FIRST: c_int = 90;
        for kernel in self.kernels.values() {
            let compiled_for = kernel.compiled_for(gpu);
            if compiled_for.context("asking the kernels what they are for")? < FIRST {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn load() -> std::result::Result<Self, Failed> {
        let mut libraries = HashMap::new();
        for image in images::all() {
            let mut library = null_mut();
            // SAFETY: a fatbin, which holds its own length and lives as long as the program; no options.
            let result = unsafe {
                sys::cuLibraryLoadData(
                    &raw mut library,
                    image.fatbin.as_ptr().cast(),
                    null_mut(),
                    null_mut(),
                    0,
                    null_mut(),
                    null_mut(),
                    0,
                )
            };
            result.result()?;
            libraries.extend(image.exports.iter().map(|&export| (export, library)));
        }
        let mut kernels = HashMap::new();
        for entry in kernels::all() {
            let name = CString::new(entry.name).expect("a C identifier");
            let Some(&library) = libraries.get(entry.name) else {
                return Err(Failed::Here(not_built(entry)));
            };
            let mut kernel = ptr::null_mut();
            // SAFETY: a library loaded above, and a string that ends with 0.
            let result =
                unsafe { sys::cuLibraryGetKernel(&raw mut kernel, library, name.as_ptr()) };
            result.result()?;
            kernels.insert(entry.name, Kernel(kernel));
        }
        Ok(Library { kernels })
    }
}

impl Kernel {
    /// Loads it into the current context and lets it have all the shared memory there is.
    fn prepare(self, gpu: &Gpu) -> std::result::Result<(), Failed> {
        use CUfunction_attribute::{
            CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as DYNAMIC,
            CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES as STATIC,
        };
        let mut function = null_mut();
        // SAFETY: a kernel of a library that is never unloaded.
        unsafe { sys::cuKernelGetFunction(&raw mut function, self.0) }.result()?;
        let mut of_its_own: c_int = 0;
        // SAFETY: as above; it writes to the address of an int.
        let result =
            unsafe { sys::cuKernelGetAttribute(&raw mut of_its_own, STATIC, self.0, gpu.device) };
        result.result()?;
        let most = c_int::try_from(gpu.limits.shared_per_block).unwrap_or(c_int::MAX);
        // SAFETY: as above.
        let result =
            unsafe { sys::cuKernelSetAttribute(DYNAMIC, most - of_its_own, self.0, gpu.device) };
        Ok(result.result()?)
    }

    /// The compute capability that its code was written for, 90 for 9.0, whatever GPU it was translated for.
    fn compiled_for(self, gpu: &Gpu) -> std::result::Result<c_int, DriverError> {
        use CUfunction_attribute::CU_FUNC_ATTRIBUTE_PTX_VERSION as PTX;
        let mut version: c_int = 0;
        // SAFETY: a kernel of a library that is never unloaded; it writes to the address of an int.
        let result =
            unsafe { sys::cuKernelGetAttribute(&raw mut version, PTX, self.0, gpu.device) };
        result.result()?;
        Ok(version)
    }
}

/// Why the kernels are not there.
enum Failed {
    Driver(DriverError),
    Here(Error),
}

impl From<DriverError> for Failed {
    fn from(error: DriverError) -> Self {
        Failed::Driver(error)
    }
}

fn explain(why: Failed, gpu: &Gpu, driver: images::Version) -> Error {
    match why {
        Failed::Here(error) => error,
        Failed::Driver(error) if code(error) == NO_BINARY_FOR_GPU => images::unsupported(gpu),
        Failed::Driver(error) if code(error) == UNSUPPORTED_PTX_VERSION => {
            images::old_driver(driver)
        }
        Failed::Driver(error) => {
            let failed: Result<()> = Err(error).context("loading the kernels");
            failed.unwrap_err()
        }
    }
}

fn not_built(entry: &EntryPoint) -> Error {
    Error::Kernel {
        kernel: entry.name,
        fault: format!("is not among those built for {}", images::targets()),
    }
}
