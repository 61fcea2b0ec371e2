//! The compiled kernels in the package, which scripts/package makes: docs/decisions/0024.

use std::fs;
use std::path::{Path, PathBuf};

use crate::cuda::{Result, read, write};
use crate::out_dir;

/// In the package; a checkout has none.
const FOLDER: &str = "prebuilt";

/// In that folder, and beside the kernels that nvcc has compiled: three lines, `sources <hash>`,
/// `targets <names>` and `nvcc <version>`.
const RECORD: &str = "record.txt";

/// Stands before the reason why there is no nvcc.
pub(crate) const DIFFERS: &str = "kernels/ differs from what prebuilt/ was compiled from, so ";

/// Compiled kernels, and what they were compiled from.
pub(crate) struct Package {
    sources: String,
    targets: Vec<String>,
    nvcc: String,
}

impl Package {
    pub(crate) fn read() -> Result<Option<Self>> {
        let file = Path::new(FOLDER).join(RECORD);
        if !file.is_file() {
            return Ok(None);
        }
        println!("cargo::rerun-if-changed={FOLDER}");
        let text = read(&file)?;
        let field = |name: &str| {
            let mut values = text.lines().filter_map(|line| line.strip_prefix(name));
            let value = values.next().map(str::trim);
            value.ok_or_else(|| format!("{}: expected a line {name}, got none", file.display()))
        };
        Ok(Some(Package {
            sources: field("sources")?.to_owned(),
            targets: field("targets")?.split(' ').map(str::to_owned).collect(),
            nvcc: field("nvcc")?.to_owned(),
        }))
    }

    /// Whether these sources were compiled.
    pub(crate) fn fits(&self) -> Result<bool> {
        Ok(self.sources == hash_of_sources()?)
    }

    /// Copies the kernels to where nvcc would write them. Returns their targets, and the version of
    /// nvcc.
    pub(crate) fn unpack(self) -> Result<(Vec<String>, String)> {
        let io = |error| format!("{FOLDER}: {error}");
        for entry in fs::read_dir(FOLDER).map_err(io)? {
            let from = entry.map_err(io)?;
            let kernel = [".fatbin", ".ptx"].iter().any(|end| {
                let name = from.file_name();
                name.to_string_lossy().ends_with(end)
            });
            if kernel {
                fs::copy(from.path(), out_dir().join(from.file_name())).map_err(io)?;
            }
        }
        Ok((self.targets, self.nvcc))
    }
}

/// Writes down what the kernels in `OUT_DIR` were compiled from.
pub(crate) fn record(targets: &[String], nvcc: &str) -> Result<()> {
    let release = nvcc.lines().find(|line| line.contains("release "));
    let (sources, targets) = (hash_of_sources()?, targets.join(" "));
    let nvcc = release.unwrap_or_default();
    let text = format!("sources {sources}\ntargets {targets}\nnvcc {nvcc}\n");
    write(&out_dir().join(RECORD), &text)
}

/// FNV-1a of names and contents of everything that nvcc reads in kernels/. It tells an edited file.
/// std's hash may change with the release of Rust.
fn hash_of_sources() -> Result<String> {
    let mut files = Vec::new();
    sources_in(Path::new("kernels"), &mut files)?;
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut add = |bytes: &[u8]| {
        for &byte in bytes {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
    };
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

fn sources_in(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let io = |error| format!("{}: {error}", folder.display());
    for entry in fs::read_dir(folder).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if path.is_dir() {
            sources_in(&path, files)?;
        } else if path.extension().is_some_and(|end| end != "md") {
            files.push(path);
        }
    }
    Ok(())
}
