//! Compiles the emulator and every kernel into one static library.

use std::path::{Path, PathBuf};

use crate::{kernels_in, out_dir};

pub(crate) fn build() {
    println!("cargo::rerun-if-changed=emulator");
    println!("cargo::rerun-if-env-changed=DOCS_RS");
    // The machine that builds the documentation needs no kernels.
    if std::env::var_os("DOCS_RS").is_some() {
        return;
    }
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++17")
        // The tests run the kernels often, so optimise them also in a debug build.
        .opt_level(2)
        .debug(true)
        // A multiplication and an addition become one operation only where a kernel says fmaf, as
        // with nvcc.
        .flag("-ffp-contract=off")
        .flag("-fno-exceptions")
        .flag("-Wall")
        .flag("-Wextra")
        .flag_if_supported("-Wno-unknown-pragmas")
        .file("emulator/emulator.cpp")
        .file("emulator/arithmetic.cpp");
    // The seeded bugs are for the tests of the emulator. The linker leaves them out of everything
    // else.
    let seeded_bugs = kernels_in("emulator/seeded_bugs");
    for kernel in kernels_in("kernels").into_iter().chain(seeded_bugs) {
        // To this compiler a .cu file is C++.
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
        // Link the libraries of the sanitizers by name: a C++ linker adds them by itself, rustc
        // does not.
        println!("cargo::rustc-link-lib=dylib=asan");
        println!("cargo::rustc-link-lib=dylib=ubsan");
    } else {
        // These checks cost almost nothing. emulator/undefined.cpp reports what they find.
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

/// Whether the CPU that runs these kernels has an instruction for fmaf, which they use everywhere.
/// A call gives the same result and is slower.
fn has_fma() -> bool {
    let [host, target] = ["HOST", "TARGET"].map(std::env::var_os);
    #[cfg(target_arch = "x86_64")]
    return host == target && std::arch::is_x86_feature_detected!("fma");
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

/// A C++ file that includes `kernel`: compilers tell languages by the ending of the name.
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
