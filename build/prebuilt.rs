//! The compiled kernels in the package, which scripts/package makes: docs/decisions/0024.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use crate::cuda::{Result, read, write};
use crate::out_dir;

/// In the package; a checkout has none.
const FOLDER: &str = "prebuilt";

/// In that folder, and beside the kernels that nvcc has compiled: three lines, `sources <hash>`,
/// `targets <names>` and `nvcc <version>`.
const RECORD: &str = "record.txt";

/// The endings of the files that nvcc reads in kernels/.
const SOURCES: [&str; 3] = ["cu", "cuh", "options"];

/// Compiled kernels, and what they were compiled from.
pub(crate) struct Package {
    sources: String,
    targets: Vec<String>,
    nvcc: String,
}

pub(crate) enum Prebuilt {
    Package(Package),
    /// Why nvcc has to compile the kernels.
    Unusable(String),
}

pub(crate) fn find() -> Result<Prebuilt> {
    let file = Path::new(FOLDER).join(RECORD);
    if !file.is_file() {
        let why = "only relata's package has compiled kernels, and this is a checkout";
        return Ok(Prebuilt::Unusable(why.to_owned()));
    }
    println!("cargo::rerun-if-changed={FOLDER}");
    let mut asks = ["NVCC", "RELATA_CUDA_TARGETS"].into_iter();
    if let Some(variable) = asks.find(|name| env::var_os(name).is_some()) {
        let why = format!("{variable} is set, which asks for kernels other than the package's");
        return Ok(Prebuilt::Unusable(why));
    }
    let package = Package::read(&file)?;
    if package.sources != hash_of_sources(&SOURCES)? {
        let why = "kernels/ or build/ differs from what prebuilt/ was compiled from";
        return Ok(Prebuilt::Unusable(why.to_owned()));
    }
    Ok(Prebuilt::Package(package))
}

impl Package {
    fn read(record: &Path) -> Result<Self> {
        let text = read(record)?;
        let field = |name: &str| {
            let mut values = text.lines().filter_map(|line| line.strip_prefix(name));
            let value = values.next().map(str::trim);
            value.ok_or_else(|| format!("{}: expected a line {name}, got none", record.display()))
        };
        Ok(Package {
            sources: field("sources")?.to_owned(),
            targets: field("targets")?.split(' ').map(str::to_owned).collect(),
            nvcc: field("nvcc")?.to_owned(),
        })
    }

    /// Copies the kernels to where nvcc would write them. Returns their targets, and the version of
    /// nvcc.
    pub(crate) fn unpack(self) -> Result<(Vec<String>, String)> {
        let io = |error| format!("{FOLDER}: {error}");
        for entry in fs::read_dir(FOLDER).map_err(io)? {
            let from = entry.map_err(io)?.path();
            let to = out_dir().join(from.file_name().expect("an entry has a name"));
            let ending = from.extension().unwrap_or_default();
            if ending == "fatbin" || ending == "ptx" {
                fs::copy(&from, &to).map_err(io)?;
                // If nvcc has run here before, its note would still say that these are its files.
                let _ = fs::remove_file(to.with_extension("inputs"));
            }
        }
        Ok((self.targets, self.nvcc))
    }
}

/// Writes down what the kernels in `OUT_DIR` were compiled from.
pub(crate) fn record(targets: &[String], nvcc: &str) -> Result<()> {
    let release = nvcc.lines().find(|line| line.contains("release "));
    let (sources, targets) = (hash_of_sources(&SOURCES)?, targets.join(" "));
    let nvcc = release.unwrap_or_default();
    let text = format!("sources {sources}\ntargets {targets}\nnvcc {nvcc}\n");
    write(&out_dir().join(RECORD), &text)
}

/// FNV-1a of what the compiled kernels depend on: names and contents of the files in kernels/ that
/// have one of the `endings`, and the code that calls nvcc. It tells an edited file. std's hash may
/// change with the release of Rust.
pub(crate) fn hash_of_sources(endings: &[&str]) -> Result<String> {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut add = |bytes: &[u8]| {
        for &byte in bytes {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
    };
    add(include_bytes!("cuda.rs"));
    let mut files = Vec::new();
    sources_in(Path::new("kernels"), endings, &mut files)?;
    // Windows separates folders otherwise.
    let mut named: Vec<_> = files
        .iter()
        .map(|file| (file.to_string_lossy().replace('\\', "/"), file))
        .collect();
    named.sort();
    for (name, file) in named {
        let text = read(file)?;
        add(name.as_bytes());
        add(&(text.len() as u64).to_le_bytes());
        add(text.as_bytes());
    }
    Ok(format!("{hash:016x}"))
}

fn sources_in(folder: &Path, endings: &[&str], files: &mut Vec<PathBuf>) -> Result<()> {
    let io = |error| format!("{}: {error}", folder.display());
    for entry in fs::read_dir(folder).map_err(io)? {
        let path = entry.map_err(io)?.path();
        let ending = path.extension().unwrap_or_default().to_string_lossy();
        if path.is_dir() {
            sources_in(&path, endings, files)?;
        } else if endings.contains(&&*ending) {
            files.push(path);
        }
    }
    Ok(())
}
