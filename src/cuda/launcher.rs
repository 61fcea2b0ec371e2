//! Launches on a stream.
#![allow(unsafe_code, reason = "a launcher: it hands addresses to the driver")]

use std::ptr::null_mut;

use cudarc::driver::sys::{self, CUstream};

use super::failure::Doing;
use super::library::Library;
use crate::error::{Error, Result};
use crate::gpu::machine::{Launch, Launcher};

/// A stream of the current context. Launches on it run in order.
#[derive(Debug)]
pub(super) struct StreamLauncher {
    pub(super) library: &'static Library,
    pub(super) stream: CUstream,
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
        // A kernel has one parameter, a struct, which the driver copies before it returns.
        let mut parameters = [launch.arguments.as_ptr().cast_mut().cast()];
        // SAFETY: the kernel was compiled from the struct that these bytes are of. The addresses in them
        // are of memory that the launch's maker owns, borrows or has been promised, of the size that the
        // plan has computed.
        let result = unsafe {
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
        };
        result.result().doing(launch.kernel.name)
    }
}
