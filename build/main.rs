//! Builds the kernels: with nvcc for a card, with the host's C++ compiler for the emulator.

#[cfg(feature = "cuda")]
mod cuda;
#[cfg(feature = "emulator")]
mod emulator;

fn main() {
    println!("cargo::rerun-if-changed=build");
    #[cfg(feature = "cuda")]
    cuda::build();
    #[cfg(feature = "emulator")]
    emulator::build();
}

/// kernels/*.cu
#[cfg(any(feature = "cuda", feature = "emulator"))]
fn kernels() -> Vec<std::path::PathBuf> {
    println!("cargo::rerun-if-changed=kernels");
    let mut files: Vec<_> = std::fs::read_dir("kernels")
        .expect("the folder of kernels")
        .map(|entry| entry.expect("an entry of the folder of kernels").path())
        .filter(|path| path.extension().is_some_and(|e| e == "cu"))
        .collect();
    files.sort();
    files
}

#[cfg(any(feature = "cuda", feature = "emulator"))]
fn out_dir() -> std::path::PathBuf {
    std::env::var_os("OUT_DIR")
        .expect("cargo sets OUT_DIR")
        .into()
}
