//! The kernels as the driver has loaded them: each form once for the whole process, for every
//! context.
#![allow(unsafe_code, reason = "loads the images")]

use std::collections::{HashMap, HashSet};
use std::ffi::{CString, c_int};
use std::ptr::{self, null_mut};
use std::sync::{Mutex, OnceLock, PoisonError};

use cudarc::driver::result::DriverError;
use cudarc::driver::sys::{self, CUfunction, CUfunction_attribute, CUkernel};

use super::failure::{NO_BINARY_FOR_GPU, UNSUPPORTED_PTX_VERSION, WithContext, code};
use super::gpu::Gpu;
use super::images::Form;
use super::{driver, images};
use crate::error::{Error, Result};
use crate::gpu::kernels::{self, EntryPoint};

/// Every entry point by name. A `CUkernel` belongs to no context: it runs in the context of the
/// stream.
#[derive(Debug)]
pub(super) struct Library {
    kernels: HashMap<&'static str, Kernel>,
}

/// The kernels that are ready to be launched in a context, by name.
#[derive(Debug, Default)]
pub(super) struct Prepared(Mutex<HashSet<&'static str>>);

#[derive(Clone, Copy, Debug)]
struct Kernel(CUkernel);

// SAFETY: a handle for the driver, whose functions any thread may call.
unsafe impl Send for Kernel {}
// SAFETY: as above.
unsafe impl Sync for Kernel {}

impl Library {
    /// The kernels, for any context of `gpu`.
    pub(super) fn loaded(gpu: &Gpu) -> Result<&'static Self> {
        static OF_CUBINS: OnceLock<Library> = OnceLock::new();
        static OF_PTX: OnceLock<Library> = OnceLock::new();
        let version = driver::version()?;
        let form = images::form(gpu, version)?;
        let library = match form {
            Form::Cubin => &OF_CUBINS,
            Form::Ptx => &OF_PTX,
        };
        if let Some(library) = library.get() {
            return Ok(library);
        }
        let loaded = Library::load(form).map_err(|why| explain(why, gpu, version))?;
        Ok(library.get_or_init(|| loaded))
    }

    /// Makes these kernels ready to be launched in the current context, which is a context of
    /// `gpu`, but for those in `prepared`. The driver does all work for a first launch now: it could
    /// not do it while a graph is captured.
    pub(super) fn prepare(
        &self,
        entries: impl IntoIterator<Item = &'static EntryPoint>,
        gpu: &Gpu,
        prepared: &Prepared,
    ) -> Result<()> {
        let mut prepared = prepared.0.lock().unwrap_or_else(PoisonError::into_inner);
        for entry in entries {
            if prepared.contains(entry.name) {
                continue;
            }
            let kernel = self.kernel(entry)?;
            if let Err(why) = kernel.prepare(gpu) {
                return Err(explain(why, gpu, driver::version()?));
            }
            prepared.insert(entry.name);
        }
        Ok(())
    }

    /// The handle with which a launch names the kernel.
    pub(super) fn function(&self, entry: &EntryPoint) -> Result<CUfunction> {
        Ok(self.kernel(entry)?.0.cast())
    }

    fn kernel(&self, entry: &EntryPoint) -> Result<Kernel> {
        let kernel = self.kernels.get(entry.name);
        kernel.copied().ok_or_else(|| not_built(entry))
    }

    /// Whether the kernels that `gpu` runs wait by themselves for the launches before them. Kernels
    /// compiled for 9.0 and later do. A GPU may run older ones, from PTX, so this asks the driver.
    pub(super) fn waits(&self, gpu: &Gpu) -> Result<bool> {
        const FIRST: c_int = 90;
        for kernel in self.kernels.values() {
            let compiled_for = kernel.compiled_for(gpu);
            if compiled_for.context("asking which GPU the kernels are compiled for")? < FIRST {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn load(form: Form) -> std::result::Result<Self, Failed> {
        let mut libraries = HashMap::new();
        for image in images::all() {
            let mut library = null_mut();
            // SAFETY: a fatbin holds its own length, and PTX ends with 0. They live as long as the
            // program. There are no options.
            let result = unsafe {
                sys::cuLibraryLoadData(
                    &raw mut library,
                    image.bytes(form).as_ptr().cast(),
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
    /// Loads the kernel into the current context and allows it all shared memory of a block.
    fn prepare(self, gpu: &Gpu) -> std::result::Result<(), Failed> {
        use CUfunction_attribute::{
            CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as DYNAMIC,
            CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES as STATIC,
        };
        let mut function = null_mut();
        // SAFETY: a kernel of a library that is never unloaded.
        unsafe { sys::cuKernelGetFunction(&raw mut function, self.0) }.result()?;
        let mut static_bytes: c_int = 0;
        // SAFETY: as above. It writes to the address of an int.
        let result =
            unsafe { sys::cuKernelGetAttribute(&raw mut static_bytes, STATIC, self.0, gpu.device) };
        result.result()?;
        let most = c_int::try_from(gpu.limits.shared_per_block).unwrap_or(c_int::MAX);
        // SAFETY: as above.
        let result =
            unsafe { sys::cuKernelSetAttribute(DYNAMIC, most - static_bytes, self.0, gpu.device) };
        Ok(result.result()?)
    }

    /// The compute capability that the kernel was compiled for: 90 is 9.0. If the driver compiled
    /// it from PTX, this is the version of the PTX.
    fn compiled_for(self, gpu: &Gpu) -> std::result::Result<c_int, DriverError> {
        use CUfunction_attribute::CU_FUNC_ATTRIBUTE_PTX_VERSION as PTX;
        let mut version: c_int = 0;
        // SAFETY: a kernel of a library that is never unloaded. It writes to the address of an int.
        let result =
            unsafe { sys::cuKernelGetAttribute(&raw mut version, PTX, self.0, gpu.device) };
        result.result()?;
        Ok(version)
    }
}

/// Why the kernels could not be loaded.
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
            images::old_driver(driver, images::toolkit())
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
