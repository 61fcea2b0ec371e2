//! The emulator and every kernel, as one static library.

use std::path::{Path, PathBuf};

use crate::{kernels_in, out_dir};

pub(crate) fn build() {
    println!("cargo::rerun-if-changed=emulator");
    println!("cargo::rerun-if-env-changed=DOCS_RS");
    // As for cuda: documentation needs no kernels.
    if std::env::var_os("DOCS_RS").is_some() {
        return;
    }
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++17")
        // The tests run the kernels a lot, whatever they themselves are built with.
        .opt_level(2)
        .debug(true)
        // nvcc contracts where a kernel says fmaf, and so does the host.
        .flag("-ffp-contract=off")
        .flag("-fno-exceptions")
        .flag("-Wall")
        .flag("-Wextra")
        .flag_if_supported("-Wno-unknown-pragmas")
        .file("emulator/emulator.cpp");
    // The seeded_bugs ones are for the emulator's own tests, and are left out of everything else by the linker.
    let seeded_bugs = kernels_in("emulator/seeded_bugs");
    for kernel in kernels_in("kernels").into_iter().chain(seeded_bugs) {
        // A .cu file is C++ to this compiler.
        build.file(as_cpp(&kernel));
    }
    if has_fma() {
        build.flag_if_supported("-mfma");
    }
    if std::env::var_os("CARGO_FEATURE_EMULATOR_SANITIZE").is_some() {
        build
            .flag("-fsanitize=address,undefined")
            .flag("-fno-sanitize-recover=undefined")
            .flag("-fno-omit-frame-pointer");
        // By name, and before what they watch: rustc leaves out what a C++ linker would bring.
        println!("cargo::rustc-link-lib=dylib=asan");
        println!("cargo::rustc-link-lib=dylib=ubsan");
    } else {
        // What costs next to nothing, reported by emulator/undefined.cpp.
        build
            .flag_if_supported("-fsanitize=alignment,bounds,integer-divide-by-zero")
            .file("emulator/undefined.cpp");
    }
    if std::env::var_os("RELATA_EMULATOR_COVERAGE").is_some() {
        build
            .opt_level(0)
            .flag("--coverage")
            .flag_if_supported("-fprofile-update=atomic");
        println!("cargo::rustc-link-arg=--coverage");
    }
    println!("cargo::rerun-if-env-changed=RELATA_EMULATOR_COVERAGE");
    build.compile("relata_emulator");
}

/// Whether fmaf can be an instruction, where the kernels run that are built here, instead of a call: the
/// result is the same, and kernels consist of it.
fn has_fma() -> bool {
    let [host, target] = ["HOST", "TARGET"].map(std::env::var_os);
    #[cfg(target_arch = "x86_64")]
    return host == target && std::arch::is_x86_feature_detected!("fma");
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

/// A C++ file that includes `kernel`: compilers go by the name's ending.
fn as_cpp(kernel: &Path) -> PathBuf {
    let stem = kernel.file_stem().expect("a kernel's file has a name");
    let path = out_dir().join(stem).with_extension("cpp");
    let source = kernel.canonicalize().expect("the kernel's path");
    let include = format!("#include \"{}\"\n", source.display());
    if std::fs::read_to_string(&path).ok().as_deref() != Some(&include) {
        std::fs::write(&path, include).expect("a file in OUT_DIR");
    }
    path
}
