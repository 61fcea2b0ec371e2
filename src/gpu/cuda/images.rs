//! The kernels that the build script compiled, and the GPUs and drivers that can run them.

use std::fmt;

use super::gpu::Gpu;
use crate::error::{Error, Result};

/// A version of CUDA, or the compute capability of a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version(pub(super) u32, pub(super) u32);

impl Version {
    /// 13000 is 13.0.
    pub(super) fn from_driver(version: i32) -> Self {
        let version = version.unsigned_abs();
        Version(version / 1000, version % 1000 / 10)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// Bytes, aligned for the driver, which reads them as structs.
#[allow(dead_code, reason = "documentation is built without kernels")]
#[repr(C, align(64))]
struct Aligned<B: ?Sized>(B);

#[allow(unused_macros, reason = "as above")]
macro_rules! image {
    ($file:literal, $exports:expr) => {{
        static IMAGE: &Aligned<[u8]> =
            &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/", $file)));
        Image {
            fatbin: &IMAGE.0,
            exports: &$exports,
        }
    }};
}

/// The kernels of one .cu file.
pub(super) struct Image {
    pub(super) fatbin: &'static [u8],
    /// The entry points in it. Asking the driver instead would fail for each entry point of another
    /// file, and tools that watch a program's calls report such failures.
    pub(super) exports: &'static [&'static str],
}

// build/cuda.rs writes IMAGES, TARGETS and TOOLKIT.
include!(concat!(env!("OUT_DIR"), "/images.rs"));

pub(super) fn all() -> &'static [Image] {
    IMAGES
}

/// Such as `sm_80`, `sm_90a`, `compute_80`.
pub(super) fn all_targets() -> &'static [&'static str] {
    TARGETS
}

/// The same in one line.
pub(super) fn targets() -> String {
    TARGETS.join(", ")
}

/// The release of nvcc that compiled the kernels.
pub(super) fn toolkit() -> Version {
    Version(TOOLKIT.0, TOOLKIT.1)
}

/// Returns an error if the GPU or the driver cannot run the kernels. The driver's own error would
/// not say which of the two is the cause.
pub(super) fn check(gpu: &Gpu, driver: Version) -> Result<()> {
    match fit(TARGETS, gpu.capability) {
        None => Err(unsupported(gpu)),
        // A cubin runs with any driver of its major version or later. PTX runs with no driver that
        // is older than its compiler.
        Some(fit) if fit == Fit::Ptx && driver < toolkit() || driver.0 < toolkit().0 => {
            Err(old_driver(driver))
        }
        Some(_) => Ok(()),
    }
}

pub(super) fn unsupported(gpu: &Gpu) -> Error {
    Error::UnsupportedGpu {
        gpu: gpu.name.clone(),
        capability: gpu.capability.to_string(),
        built_for: targets(),
    }
}

pub(super) fn old_driver(driver: Version) -> Error {
    Error::OldDriver {
        driver: driver.to_string(),
        toolkit: toolkit().to_string(),
    }
}

/// Which form of the kernels a GPU runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fit {
    Cubin,
    /// The driver compiles this form when it loads it.
    Ptx,
}

fn fit(targets: &[&str], gpu: Version) -> Option<Fit> {
    let any = |fits: &dyn Fn(&str) -> Option<bool>| {
        targets.iter().any(|target| fits(target).unwrap_or(false))
    };
    let cubin = |target: &str| {
        let number = target.strip_prefix("sm_")?;
        let version = capability(number)?;
        Some(
            match number.strip_suffix(|c: char| c.is_ascii_lowercase()) {
                Some(_) => version == gpu,
                None => version.0 == gpu.0 && version.1 <= gpu.1,
            },
        )
    };
    // PTX with the features of one architecture (such as sm_90a) runs on that one alone. It is not
    // built.
    let ptx = |target: &str| Some(capability(target.strip_prefix("compute_")?)? <= gpu);
    if any(&cubin) {
        Some(Fit::Cubin)
    } else {
        any(&ptx).then_some(Fit::Ptx)
    }
}

/// The version in a target's number: 9.0 in `90a`, 12.0 in `120`.
fn capability(number: &str) -> Option<Version> {
    let digits = number.trim_end_matches(|c: char| c.is_ascii_lowercase());
    let number: u32 = digits.parse().ok()?;
    Some(Version(number / 10, number % 10))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cubin_fits_later_minor_versions_and_ptx_all_later_gpus() {
        let targets = ["sm_80", "sm_90a", "compute_80"];
        for (gpu, want) in [
            (Version(7, 5), None),
            (Version(8, 0), Some(Fit::Cubin)),
            (Version(8, 9), Some(Fit::Cubin)),
            (Version(9, 0), Some(Fit::Cubin)),
            (Version(10, 0), Some(Fit::Ptx)),
            (Version(12, 1), Some(Fit::Ptx)),
        ] {
            assert_eq!(fit(&targets, gpu), want, "{gpu}");
        }
        assert_eq!(fit(&["sm_86"], Version(8, 0)), None);
        assert_eq!(fit(&["sm_120"], Version(12, 1)), Some(Fit::Cubin));
        assert_eq!(fit(&["sm_90a"], Version(9, 1)), None);
        assert_eq!(fit(&[], Version(9, 0)), None);
    }

    #[test]
    fn versions_look_as_nvidia_writes_them() {
        assert_eq!(Version::from_driver(12080), Version(12, 8));
        assert_eq!(Version::from_driver(13000).to_string(), "13.0");
        assert!(Version(12, 8) < Version(13, 0) && Version(13, 0) < Version(13, 2));
    }

    #[test]
    fn every_kernel_is_in_one_image() {
        for entry in crate::gpu::kernels::all() {
            let holds = |image: &&Image| image.exports.contains(&entry.name);
            assert_eq!(all().iter().filter(holds).count(), 1, "{}", entry.name);
        }
    }

    #[test]
    fn every_image_is_a_fatbin() {
        for image in all() {
            assert_eq!(
                image.fatbin[..4],
                [0x50, 0xED, 0x55, 0xBA],
                "a fatbin's first bytes"
            );
            assert_eq!(image.fatbin.as_ptr().addr() % 64, 0);
            assert!(!image.exports.is_empty());
        }
    }
}
