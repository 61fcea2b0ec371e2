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
    ($name:literal, $exports:expr) => {{
        static FATBIN: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(
            env!("OUT_DIR"),
            "/",
            $name,
            ".fatbin"
        )));
        // The driver takes PTX as text that ends with 0.
        static PTX: &str = concat!(
            include_str!(concat!(env!("OUT_DIR"), "/", $name, ".ptx")),
            "\0"
        );
        Image {
            fatbin: &FATBIN.0,
            ptx: PTX.as_bytes(),
            exports: &$exports,
        }
    }};
}

/// The kernels of one .cu file, in two forms.
pub(super) struct Image {
    fatbin: &'static [u8],
    ptx: &'static [u8],
    /// The entry points in it. Asking the driver instead would fail for each entry point of another
    /// file, and tools that watch a program's calls report such failures.
    pub(super) exports: &'static [&'static str],
}

// build/cuda.rs writes IMAGES, TARGETS and TOOLKIT.
include!(concat!(env!("OUT_DIR"), "/images.rs"));

impl Image {
    pub(super) fn bytes(&self, form: Form) -> &'static [u8] {
        match form {
            Form::Cubin => self.fatbin,
            Form::Ptx => self.ptx,
        }
    }
}

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

/// The form of the kernels that this GPU with this driver runs. Returns an error if there is none.
/// The driver's own error would not say which of the two is the cause.
pub(super) fn form(gpu: &Gpu, driver: Version) -> Result<Form> {
    choose(TARGETS, toolkit(), gpu.capability, driver).map_err(|refusal| match refusal {
        Refusal::Gpu => unsupported(gpu),
        Refusal::Driver => old_driver(driver, toolkit()),
    })
}

pub(super) fn unsupported(gpu: &Gpu) -> Error {
    Error::UnsupportedGpu {
        gpu: gpu.name.clone(),
        capability: gpu.capability.to_string(),
        built_for: targets(),
    }
}

pub(super) fn old_driver(driver: Version, expected: Version) -> Error {
    Error::OldDriver {
        driver: driver.to_string(),
        toolkit: expected.to_string(),
    }
}

/// A form of the kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// Machine code, in a fatbin.
    Cubin,
    /// The driver compiles this form when it loads it.
    Ptx,
}

/// What stands in the way of the kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    Gpu,
    Driver,
}

/// Cubins run with any driver of their compiler's major version or later. build/cuda.rs lowers PTX
/// to what the oldest driver compiles.
fn choose(
    targets: &[&str],
    toolkit: Version,
    gpu: Version,
    driver: Version,
) -> std::result::Result<Form, Refusal> {
    let cubin = fit(targets, Form::Cubin, gpu);
    if cubin && driver.0 >= toolkit.0 {
        Ok(Form::Cubin)
    } else if fit(targets, Form::Ptx, gpu) {
        Ok(Form::Ptx)
    } else if cubin {
        Err(Refusal::Driver)
    } else {
        Err(Refusal::Gpu)
    }
}

/// Whether one of `targets` is this form for this GPU.
fn fit(targets: &[&str], form: Form, gpu: Version) -> bool {
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
    let fits = |target: &&str| match form {
        Form::Cubin => cubin(target),
        Form::Ptx => ptx(target),
    };
    targets.iter().any(|target| fits(target).unwrap_or(false))
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
        let choose = |targets: &[&str], gpu| choose(targets, Version(13, 0), gpu, Version(13, 0));
        for (gpu, want) in [
            (Version(7, 5), Err(Refusal::Gpu)),
            (Version(8, 0), Ok(Form::Cubin)),
            (Version(8, 9), Ok(Form::Cubin)),
            (Version(9, 0), Ok(Form::Cubin)),
            (Version(10, 0), Ok(Form::Ptx)),
            (Version(12, 1), Ok(Form::Ptx)),
        ] {
            assert_eq!(choose(&targets, gpu), want, "{gpu}");
        }
        assert_eq!(choose(&["sm_86"], Version(8, 0)), Err(Refusal::Gpu));
        assert_eq!(choose(&["sm_120"], Version(12, 1)), Ok(Form::Cubin));
        assert_eq!(choose(&["sm_90a"], Version(9, 1)), Err(Refusal::Gpu));
        assert_eq!(choose(&[], Version(9, 0)), Err(Refusal::Gpu));
    }

    #[test]
    fn a_driver_older_than_the_cubins_compiles_ptx() {
        let (toolkit, gpu) = (Version(13, 0), Version(8, 6));
        let all = ["sm_80", "compute_80"];
        for (targets, driver, want) in [
            (&all[..], Version(12, 0), Ok(Form::Ptx)),
            (&all[..], Version(12, 9), Ok(Form::Ptx)),
            (&all[..], Version(13, 2), Ok(Form::Cubin)),
            (&all[..1], Version(12, 9), Err(Refusal::Driver)),
            (&all[1..], Version(13, 2), Ok(Form::Ptx)),
        ] {
            let got = choose(targets, toolkit, gpu, driver);
            assert_eq!(got, want, "{targets:?} and a driver for {driver}");
        }
        // Compiled by 12.8, cubins run with every driver for CUDA 12.
        let got = choose(&all, Version(12, 8), gpu, Version(12, 0));
        assert_eq!(got, Ok(Form::Cubin));
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
    fn every_image_has_the_forms_of_its_targets() {
        let has = |form| TARGETS.iter().any(|name| name.starts_with(form));
        for image in all() {
            let fatbin = image.fatbin;
            assert_eq!(fatbin.starts_with(&[0x50, 0xED, 0x55, 0xBA]), has("sm_"));
            assert_eq!(fatbin.as_ptr().addr() % 64, 0);
            let ptx = str::from_utf8(image.ptx).expect("text");
            let version = ptx.lines().find(|line| line.starts_with(".version"));
            let expected = has("compute_").then_some(".version 8.0");
            assert_eq!(version, expected);
            assert!(ptx.ends_with('\0') && !ptx[..ptx.len() - 1].contains('\0'));
            assert!(!image.exports.is_empty());
        }
    }
}
