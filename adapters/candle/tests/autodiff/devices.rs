//! The devices that the adapter is tested on.

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
    static GPU: std::sync::LazyLock<Option<Device>> = std::sync::LazyLock::new(|| {
        let why = match Device::new_cuda(0) {
            Ok(_) if is_fake_driver() => "a fake driver".to_owned(),
            Ok(gpu) => return Some(gpu),
            Err(why) => why.to_string(),
        };
        let required = std::env::var("RELATA_REQUIRE_CUDA").is_ok_and(|required| required == "1");
        assert!(!required, "RELATA_REQUIRE_CUDA=1 and no GPU: {why}");
        // Not println!: tests capture that, and this must be seen.
        let _ = std::io::Write::write_fmt(
            &mut std::io::stderr(),
            format_args!("SKIPPED on CUDA: {why}\n"),
        );
        None
    });
    GPU.clone()
}

/// Whether the driver is fake-driver/driver.c, which runs no kernel.
#[cfg(feature = "cuda")]
#[allow(unsafe_code, reason = "looks for a name in the driver")]
fn is_fake_driver() -> bool {
    // SAFETY: the program is linked with this library, which is loaded already.
    let driver = unsafe { libloading::Library::new("libcuda.so.1") };
    // SAFETY: the name is only looked for, never called.
    driver.is_ok_and(|driver| unsafe { driver.get::<*const ()>(b"fake_driver_set\0") }.is_ok())
}
