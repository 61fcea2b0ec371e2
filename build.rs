//! Builds the kernels: for GPUs with nvcc or from the package, for the emulator with the host's C++
//! compiler.

#[cfg(feature = "cuda")]
#[path = "build/cuda.rs"]
mod cuda;
#[cfg(feature = "emulator")]
#[path = "build/emulator.rs"]
mod emulator;
#[cfg(feature = "cuda")]
#[path = "build/prebuilt.rs"]
mod prebuilt;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build");
    #[cfg(feature = "cuda")]
    cuda::build();
    #[cfg(feature = "emulator")]
    emulator::build();
}

/// The .cu files in a folder.
#[cfg(any(feature = "cuda", feature = "emulator"))]
fn kernels_in(folder: &str) -> Vec<std::path::PathBuf> {
    println!("cargo::rerun-if-changed={folder}");
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .expect("a folder of kernels")
        .map(|entry| entry.expect("an entry of a folder of kernels").path())
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
