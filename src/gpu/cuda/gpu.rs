//! The properties of a GPU that plans and errors need.
#![allow(unsafe_code, reason = "asks the driver for attributes")]

use cudarc::driver::result;
use cudarc::driver::sys::{CUdevice, CUdevice_attribute};

use super::failure::WithContext;
use super::images::Version;
use crate::error::Result;
use crate::gpu::machine::Limits;

#[derive(Clone, Debug)]
pub(super) struct Gpu {
    pub(super) device: CUdevice,
    pub(super) name: String,
    pub(super) capability: Version,
    pub(super) limits: Limits,
}

impl Gpu {
    pub(super) fn of(device: CUdevice) -> Result<Self> {
        use CUdevice_attribute::{
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
            CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN as SHARED,
            CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT as MULTIPROCESSORS,
            CU_DEVICE_ATTRIBUTE_SINGLE_TO_DOUBLE_PRECISION_PERF_RATIO as F32_OVER_F64,
        };
        let attribute = |attribute| -> Result<u32> {
            // SAFETY: the driver is initialised and the device is one of its devices.
            let value = unsafe { result::device::get_attribute(device, attribute) };
            let value = value.context("asking the GPU for its limits")?;
            Ok(value.unsigned_abs())
        };
        Ok(Gpu {
            device,
            name: result::device::get_name(device).context("asking the GPU for its name")?,
            capability: Version(attribute(MAJOR)?, attribute(MINOR)?),
            limits: Limits {
                multiprocessors: attribute(MULTIPROCESSORS)?,
                shared_per_block: attribute(SHARED)?,
                f32_over_f64: attribute(F32_OVER_F64)?,
            },
        })
    }
}
