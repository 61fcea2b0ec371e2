//! The kernels as the program embeds them. For every .cu file: a fatbin, which holds cubins for a
//! list of GPUs, and PTX for later GPUs and for older drivers. They come from the package, or from
//! nvcc.
//!
//! Nothing of CUDA is linked, and no GPU is needed. The driver loads the kernels when the program
//! runs. docs/decisions/0006 and 0024 give the reasons.

use std::collections::hash_map::DefaultHasher;
use std::env;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::prebuilt::{self, Prebuilt};
use crate::{kernels_in, out_dir};

/// The default targets. A cubin runs on GPUs of its major version and the same or a later minor
/// version; with an `a` it runs on exactly its version. PTX runs on its version and all later ones,
/// after the driver has compiled it. So sm_80 serves 8.6 and 8.9 too, with the same instructions.
const TARGETS: &str = "sm_80 sm_90a sm_100 sm_120 compute_80";

/// The options of nvcc, which scripts/check-kernels uses too.
const OPTIONS: &str = "kernels/nvcc.options";

/// The PTX that the oldest driver compiles, which is one for CUDA 12.0. nvcc writes its own release's.
const PTX_VERSION: &str = ".version 8.0";

/// A hint that later PTX has for loads of a part of a vector. Without it the PTX means the same.
const LATER_HINT: &str = ".pragma \"used_bytes_mask";

pub(crate) type Result<T> = std::result::Result<T, String>;

pub(crate) fn build() {
    for variable in [
        "RELATA_CUDA_TARGETS",
        "NVCC",
        "CUDA_HOME",
        "CUDA_PATH",
        "PATH",
        // nvcc reads these itself.
        "NVCC_CCBIN",
        "NVCC_PREPEND_FLAGS",
        "NVCC_APPEND_FLAGS",
        "DOCS_RS",
    ] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    // The machine that builds the documentation has no nvcc and needs no kernels.
    let images = if env::var_os("DOCS_RS").is_some() {
        Ok(Images::default())
    } else {
        images()
    };
    match images {
        Ok(images) => {
            fs::write(out_dir().join("images.rs"), images.source()).expect("a file in OUT_DIR")
        }
        Err(why) => {
            for line in why.lines() {
                println!("cargo::error={line}");
            }
        }
    }
}

/// A compiled .cu file: `<name>.fatbin` and `<name>.ptx`.
struct Image {
    name: String,
    /// The entry points in it.
    exports: Vec<String>,
}

/// The source that src/gpu/cuda/images.rs includes.
#[derive(Default)]
struct Images {
    files: Vec<Image>,
    targets: Vec<String>,
    toolkit: (u32, u32),
}

impl Images {
    fn source(&self) -> String {
        let Images {
            files,
            targets,
            toolkit,
        } = self;
        let files: String = files
            .iter()
            .map(|Image { name, exports }| format!("image!({name:?}, {exports:?}), "))
            .collect();
        format!(
            "const IMAGES: &[Image] = &[{files}];\nconst TARGETS: &[&str] = &{targets:?};\n\
             const TOOLKIT: (u32, u32) = {toolkit:?};\n"
        )
    }
}

fn images() -> Result<Images> {
    let kernels = kernels_in("kernels");
    let (targets, version) = match prebuilt::find()? {
        Prebuilt::Package(package) => package.unpack()?,
        Prebuilt::Unusable(why) => {
            let nvcc = Nvcc::find().map_err(|error| format!("{why}, so {error}"))?;
            (compile(&nvcc, &kernels)?, nvcc.version)
        }
    };
    Ok(Images {
        files: kernels
            .iter()
            .map(|kernel| image(kernel))
            .collect::<Result<_>>()?,
        targets,
        toolkit: release(&version)
            .ok_or_else(|| format!("nvcc --version: expected a release, got {version:?}"))?,
    })
}

/// Compiles the kernels. Returns the targets.
fn compile(nvcc: &Nvcc, kernels: &[PathBuf]) -> Result<Vec<String>> {
    let targets = match env::var("RELATA_CUDA_TARGETS") {
        Ok(list) => parse(&list)?,
        Err(_) => nvcc.known(parse(TARGETS)?),
    };
    let shared = prebuilt::hash_of_sources(&["cuh", "options"])?;
    let next = AtomicUsize::new(0);
    let work = || -> Result<()> {
        while let Some(kernel) = kernels.get(next.fetch_add(1, Ordering::Relaxed)) {
            nvcc.compile(kernel, &targets, &shared)?;
        }
        Ok(())
    };
    let jobs = env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok());
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs.unwrap_or(1)).map(|_| scope.spawn(work)).collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().expect("a worker that returns"))
    })?;
    prebuilt::record(&targets, &nvcc.version)?;
    Ok(targets)
}

/// The image of a .cu file. It finds the entry points by text: EXPORT_KERNEL must be at the
/// beginning of a line, with the name written out.
fn image(kernel: &Path) -> Result<Image> {
    const EXPORTS: [&str; 2] = ["EXPORT_KERNEL(", "EXPORT_KERNEL_REGISTERS("];
    let source = read(kernel)?;
    let exports = source.lines().filter_map(|line| {
        EXPORTS
            .iter()
            .find_map(|export| line.trim_start().strip_prefix(export))
    });
    let exports: Vec<String> = exports
        .filter_map(|rest| rest.split(',').next())
        .map(|name| name.trim().to_owned())
        .collect();
    let plain = |name: &String| name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_');
    if let Some(name) = exports.iter().find(|&name| !plain(name)) {
        return Err(format!(
            "{}: expected the name of an entry point after {}, got {name}",
            kernel.display(),
            EXPORTS.join(" or ")
        ));
    }
    Ok(Image {
        name: stem(kernel),
        exports,
    })
}

fn parse(list: &str) -> Result<Vec<String>> {
    let targets: Vec<String> = list
        .split([' ', ',', ';'])
        .filter(|target| !target.is_empty())
        .map(str::to_owned)
        .collect();
    let known = |target: &String| {
        let number = target
            .strip_prefix("sm_")
            .or_else(|| target.strip_prefix("compute_"));
        number.is_some_and(|number| number.starts_with(|c: char| c.is_ascii_digit()))
    };
    match targets.iter().find(|target| !known(target)) {
        Some(other) => Err(format!(
            "RELATA_CUDA_TARGETS: expected names like sm_90a and compute_80, got {other}"
        )),
        None if targets.is_empty() => {
            Err("RELATA_CUDA_TARGETS: expected at least one target, got none".to_owned())
        }
        None if targets.iter().filter(|target| is_ptx(target)).count() > 1 => Err(format!(
            "RELATA_CUDA_TARGETS: expected at most one target like compute_80, got {list}"
        )),
        None => Ok(targets),
    }
}

/// Whether a target is PTX. The others are cubins.
fn is_ptx(target: &str) -> bool {
    target.starts_with("compute_")
}

/// The option of nvcc for a target.
fn gencode(target: &str) -> String {
    format!("-gencode=arch=compute_{},code={target}", number(target))
}

fn number(target: &str) -> &str {
    target.trim_start_matches(|c: char| !c.is_ascii_digit())
}

struct Nvcc {
    program: PathBuf,
    /// The output of `--version`.
    version: String,
}

impl Nvcc {
    fn find() -> Result<Self> {
        let in_folder =
            |variable| env::var_os(variable).map(|folder| Path::new(&folder).join("bin/nvcc"));
        let usual = PathBuf::from("/usr/local/cuda/bin/nvcc");
        let program = env::var_os("NVCC")
            .map(PathBuf::from)
            .or_else(|| in_folder("CUDA_HOME"))
            .or_else(|| in_folder("CUDA_PATH"))
            .or_else(|| (in_path("nvcc").is_none() && usual.is_file()).then_some(usual))
            .unwrap_or_else(|| "nvcc".into());
        let output = command(&program).arg("--version").output().map_err(|error| {
            format!(
                "the feature cuda needs nvcc, and {} does not start ({error}): set NVCC, CUDA_HOME or \
                 PATH, or get it by scripts/install-nvcc",
                program.display()
            )
        })?;
        let version = String::from_utf8_lossy(&output.stdout).into_owned();
        let release = release(&version).ok_or_else(|| {
            format!(
                "{} --version: expected a release, got {version:?}",
                program.display()
            )
        })?;
        // The driver loads kernels as libraries from CUDA 12 on, and sm_90a needs a compiler of 12.
        if release.0 < 12 {
            return Err(format!(
                "the feature cuda needs nvcc 12.0 or later, and {} is {}.{}\n\
                 scripts/install-nvcc installs a newer one; or set NVCC, CUDA_HOME or PATH",
                program.display(),
                release.0,
                release.1
            ));
        }
        Ok(Nvcc { program, version })
    }

    /// The `targets` that this release knows.
    fn known(&self, mut targets: Vec<String>) -> Vec<String> {
        let output = command(&self.program).arg("--list-gpu-code").output();
        let listed = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        let listed = listed.unwrap_or_default();
        if !listed.is_empty() {
            targets.retain(|target| {
                let number = number(target).trim_end_matches('a');
                listed.lines().any(|line| line == format!("sm_{number}"))
            });
        }
        targets
    }

    /// Writes `<stem>.fatbin` and `<stem>.ptx`, unless there are some from the same inputs. A file
    /// is empty if no target asks for it.
    fn compile(&self, kernel: &Path, targets: &[String], shared: &str) -> Result<()> {
        let fatbin = out_dir().join(format!("{}.fatbin", stem(kernel)));
        let (ptx, note) = (
            fatbin.with_extension("ptx"),
            fatbin.with_extension("inputs"),
        );
        let mut hasher = DefaultHasher::new();
        let flags = ["NVCC_CCBIN", "NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS"].map(env::var_os);
        (targets, shared, &self.version, flags, fs::read(kernel).ok()).hash(&mut hasher);
        let inputs = hasher.finish().to_string();
        if fatbin.is_file() && ptx.is_file() && read(&note).is_ok_and(|old| old == inputs) {
            return Ok(());
        }
        // If nvcc fails, what is left has no note.
        write(&note, "")?;
        let (for_ptx, cubins): (Vec<_>, Vec<_>) = targets.iter().partition(|target| is_ptx(target));
        write(&fatbin, "")?;
        if !cubins.is_empty() {
            // Six times smaller. Every driver that takes these cubins can read it: the compiler's
            // default way is that of its own major version.
            let compress = ["-Xfatbin", "-compress-all"].map(str::to_owned);
            let options = cubins.iter().map(|target| gencode(target)).chain(compress);
            self.run(kernel, "-fatbin", options, &fatbin)?;
        }
        write(&ptx, "")?;
        if let [target] = for_ptx[..] {
            let option = format!("-arch={target}");
            self.run(kernel, "-ptx", std::iter::once(option), &ptx)?;
            write(&ptx, &for_old_drivers(&read(&ptx)?))?;
        }
        write(&note, &inputs)
    }

    fn run(
        &self,
        kernel: &Path,
        form: &str,
        options: impl Iterator<Item = String>,
        to: &Path,
    ) -> Result<()> {
        let output = command(&self.program)
            .args([form, "--options-file", OPTIONS])
            .args(options)
            .arg("-o")
            .arg(to)
            .arg(kernel)
            .output()
            .map_err(|error| format!("{}: {error}", self.program.display()))?;
        if output.status.success() {
            return Ok(());
        }
        let message = String::from_utf8_lossy(&output.stderr);
        let kernel = kernel.display();
        Err(format!("nvcc does not compile {kernel}:\n{message}"))
    }
}

/// PTX that every driver from CUDA 12.0 on compiles. The kernels use nothing that is newer:
/// scripts/package assembles the result.
fn for_old_drivers(ptx: &str) -> String {
    let lines = ptx.lines().filter(|line| !line.contains(LATER_HINT));
    let lines = lines.map(|line| match line.starts_with(".version ") {
        true => PTX_VERSION,
        false => line,
    });
    lines.flat_map(|line| [line, "\n"]).collect()
}

pub(crate) fn read(file: &Path) -> Result<String> {
    fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))
}

pub(crate) fn write(file: &Path, text: &str) -> Result<()> {
    fs::write(file, text).map_err(|error| format!("{}: {error}", file.display()))
}

/// Runs nvcc with its own folder in PATH: the nvcc of a Python wheel looks there for its parts.
fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    if let Some(folder) = program.parent().filter(|folder| folder.is_absolute()) {
        let path = env::var_os("PATH").unwrap_or_default();
        let folders = std::iter::once(folder.to_owned()).chain(env::split_paths(&path));
        command.env("PATH", env::join_paths(folders).unwrap_or(path));
    }
    command
}

fn in_path(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path)
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

/// 13.0 from "Cuda compilation tools, release 13.0, V13.0.88".
fn release(version: &str) -> Option<(u32, u32)> {
    let (_, rest) = version.split_once("release ")?;
    let (major, minor) = rest.split(',').next()?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn stem(kernel: &Path) -> String {
    kernel
        .file_stem()
        .expect("a kernel's file has a name")
        .to_string_lossy()
        .into_owned()
}
