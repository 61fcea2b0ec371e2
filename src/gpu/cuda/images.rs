//! The kernels as the build script has compiled them, and the GPUs and drivers they are for.

use std::fmt;

use super::gpu::Gpu;
use crate::error::{Error, Result};

/// A version of CUDA, or a GPU's compute capability.
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

/// Bytes where the driver, which reads them as structs, may want them.
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

/// A file of kernels.
pub(super) struct Image {
    pub(super) fatbin: &'static [u8],
    /// The entry points in it. To ask the driver instead would be an error for each that lies elsewhere, and what watches
    /// a program's calls reports those.
    pub(super) exports: &'static [&'static str],
}

// IMAGES, TARGETS and TOOLKIT, by build/cuda.rs.
include!(concat!(env!("OUT_DIR"), "/images.rs"));

pub(super) fn all() -> &'static [Image] {
    IMAGES
}

/// `sm_80, sm_90a, compute_80`
pub(super) fn targets() -> String {
    TARGETS.join(", ")
}

/// The release of nvcc that compiled them.
pub(super) fn toolkit() -> Version {
    Version(TOOLKIT.0, TOOLKIT.1)
}

/// Says which of GPU and driver keeps the kernels from running, before the driver does in its way.
pub(super) fn check(gpu: &Gpu, driver: Version) -> Result<()> {
    match fit(TARGETS, gpu.capability) {
        None => Err(unsupported(gpu)),
        // Cubins run on any driver of their major version or later, PTX on none older than its compiler.
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

/// How a GPU comes to its kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fit {
    Cubin,
    /// The driver compiles them.
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
    // PTX of an architecture's own features is for that one only, and such is not built.
    let ptx = |target: &str| Some(capability(target.strip_prefix("compute_")?)? <= gpu);
    if any(&cubin) {
        Some(Fit::Cubin)
    } else {
        any(&ptx).then_some(Fit::Ptx)
    }
}

/// 9.0 of `90a`, 12.0 of `120`.
fn capability(number: &str) -> Option<Version> {
    let digits = number.trim_end_matches(|c: char| c.is_ascii_lowercase());
    let number: u32 = digits.parse().ok()?;
    Some(Version(number / 10, number % 10))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cubins_go_to_later_minors_and_ptx_to_all_later_gpu() {
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
    fn versions_read_as_nvidia_writes_them() {
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
