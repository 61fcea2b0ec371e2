//! Launching kernels on a stream.
#![allow(unsafe_code, reason = "passes addresses to the driver")]

use std::ptr::null_mut;

use cudarc::driver::sys::{
    self, CUlaunchAttribute, CUlaunchAttributeID, CUlaunchAttributeValue, CUlaunchConfig, CUstream,
};

use super::failure::WithContext;
use super::library::Library;
use crate::error::{Error, Result};
use crate::gpu::machine::{Launch, Launcher};

/// A stream of the current context. Launches on it run in order.
#[derive(Debug)]
pub(super) struct StreamLauncher {
    library: &'static Library,
    stream: CUstream,
    overlap: Overlap,
}

/// Whether the driver may prepare a launch while the launch before it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Overlap {
    Never,
    /// Not for the next launch, but for all later ones. The next launch follows work of others: a
    /// copy, or a kernel that may end although the work before it has not.
    AfterNext,
    Always,
}

impl StreamLauncher {
    pub(super) fn new(library: &'static Library, stream: CUstream) -> Self {
        StreamLauncher {
            library,
            stream,
            overlap: Overlap::Never,
        }
    }

    /// With programmatic dependent launch. The kernels of `library` must [wait](Library::waits).
    pub(super) fn overlapping(library: &'static Library, stream: CUstream) -> Self {
        StreamLauncher {
            library,
            stream,
            overlap: Overlap::AfterNext,
        }
    }
}

impl Launcher for StreamLauncher {
    fn launch(&mut self, launch: Launch<'_>) -> Result<()> {
        let expected = launch.kernel.arguments_bytes;
        if launch.arguments.len() != expected {
            return Err(Error::Kernel {
                kernel: launch.kernel.name,
                fault: format!("takes {expected} bytes, not {}", launch.arguments.len()),
            });
        }
        let function = self.library.function(launch.kernel)?;
        let [x, y, z] = launch.grid;
        // A kernel has one parameter, a struct. The driver copies it before it returns.
        let mut parameters = [launch.arguments.as_ptr().cast_mut().cast()];
        let result = if self.overlap == Overlap::Always {
            let mut attribute = overlap_attribute();
            let config = CUlaunchConfig {
                gridDimX: x,
                gridDimY: y,
                gridDimZ: z,
                blockDimX: launch.threads,
                blockDimY: 1,
                blockDimZ: 1,
                sharedMemBytes: launch.shared,
                hStream: self.stream,
                attrs: &raw mut attribute,
                numAttrs: 1,
            };
            let parameters = parameters.as_mut_ptr();
            // SAFETY: as below. Configuration and attribute live until the driver returns. The
            // kernel reads and writes no memory before all earlier launches are done.
            unsafe { sys::cuLaunchKernelEx(&raw const config, function, parameters, null_mut()) }
        } else {
            // SAFETY: these bytes are the struct that the kernel takes. The addresses in it are of
            // memory that the caller owns, borrows or has been promised, of the size that the plan
            // computed.
            unsafe {
                sys::cuLaunchKernel(
                    function,
                    x,
                    y,
                    z,
                    launch.threads,
                    1,
                    1,
                    launch.shared,
                    self.stream,
                    parameters.as_mut_ptr(),
                    null_mut(),
                )
            }
        };
        if self.overlap == Overlap::AfterNext {
            self.overlap = Overlap::Always;
        }
        result.result().context(launch.kernel.name)
    }
}

/// The attribute that lets the driver start a launch before the previous one ends.
fn overlap_attribute() -> CUlaunchAttribute {
    CUlaunchAttribute {
        id: CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
        pad: [0; 4],
        value: CUlaunchAttributeValue {
            programmaticStreamSerializationAllowed: 1,
        },
    }
}
