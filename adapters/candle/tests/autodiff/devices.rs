//! Where the adapter is asked.

use candle_core::{DType, Device};

/// The devices that have kernels for `dtype`: the CPU first, and the GPU if there is one.
pub(crate) fn computing(dtype: DType) -> Vec<Device> {
    let gpu = gpu().filter(|_| dtype != DType::F64);
    [Device::Cpu].into_iter().chain(gpu).collect()
}

#[cfg(not(feature = "cuda"))]
pub(crate) fn gpu() -> Option<Device> {
    None
}

/// The first GPU. Without one this says SKIPPED once; with RELATA_REQUIRE_CUDA=1 it panics.
#[cfg(feature = "cuda")]
pub(crate) fn gpu() -> Option<Device> {
    static CARD: std::sync::LazyLock<Option<Device>> = std::sync::LazyLock::new(|| {
        let why = match Device::new_cuda(0) {
            Ok(_) if beside_a_fake_driver() => "a fake driver for the driver".to_owned(),
            Ok(gpu) => return Some(gpu),
            Err(why) => why.to_string(),
        };
        let required = std::env::var("RELATA_REQUIRE_CUDA").is_ok_and(|required| required == "1");
        assert!(!required, "RELATA_REQUIRE_CUDA=1 and no GPU: {why}");
        // Past the capture of what tests print, so that it is seen.
        let _ = std::io::Write::write_fmt(
            &mut std::io::stderr(),
            format_args!("SKIPPED on CUDA: {why}\n"),
        );
        None
    });
    CARD.clone()
}

/// Whether what answers is fake-driver/driver.c, which runs no kernel.
#[cfg(feature = "cuda")]
#[allow(unsafe_code, reason = "looks for a name among the driver's")]
fn beside_a_fake_driver() -> bool {
    // SAFETY: the library that the program is linked with, loaded already.
    let driver = unsafe { libloading::Library::new("libcuda.so.1") };
    // SAFETY: only looked for, never called.
    driver.is_ok_and(|driver| unsafe { driver.get::<*const ()>(b"fake_driver_set\0") }.is_ok())
}
