//! A file of results: all of it or none.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use npyz::WriterBuilder;
use tempfile::NamedTempFile;

use crate::failure::{Failure, Result};

/// Where results go.
#[derive(Debug)]
pub(crate) struct OutFile {
    /// The argument that names it and the path as it is given, for messages.
    name: String,
    /// The file itself: what links point to is replaced, not a link.
    path: PathBuf,
}

impl OutFile {
    /// Refuses a path that cannot be written to before anything is computed for it.
    pub(crate) fn new(argument: &'static str, path: &Path) -> Result<Self> {
        let name = format!("{argument} {}", path.display());
        let path = resolved(path);
        let file = OutFile { name, path };
        // Renaming over a directory fails, and over a device takes its place.
        if file.path.exists() && !file.path.is_file() {
            return Err(file.refused("expected a file, got a directory or a device"));
        }
        file.temporary().map_err(|error| file.cannot_write(error))?;
        Ok(file)
    }

    /// Refuses a path of the same file, which `argument` names.
    pub(crate) fn check_is_not(&self, argument: &str, path: &Path) -> Result<()> {
        if self.path == resolved(path) {
            let why = format!("expected another file than that of {argument}, got the same");
            return Err(self.refused(why));
        }
        Ok(())
    }

    /// The same of what another argument names.
    pub(crate) fn check_differs(&self, argument: &str, other: &OutFile) -> Result<()> {
        self.check_is_not(argument, &other.path)
    }

    /// Writes `values` next to the file and moves it there, so that no reader sees half of it.
    pub(crate) fn write<T: npyz::AutoSerialize>(
        &self,
        shape: &[usize],
        values: impl Iterator<Item = T>,
    ) -> Result<()> {
        let shape: Vec<u64> = shape.iter().map(|&size| size as u64).collect();
        self.replace(|file| write_npy(BufWriter::new(file), &shape, values))
    }

    /// The same with text.
    pub(crate) fn write_text(&self, text: &str) -> Result<()> {
        self.replace(|file| file.write_all(text.as_bytes()))
    }

    fn replace(&self, write: impl FnOnce(&mut File) -> io::Result<()>) -> Result<()> {
        let replace = || -> io::Result<()> {
            let mut file = self.temporary()?;
            write(file.as_file_mut())?;
            file.persist(&self.path).map_err(|error| error.error)?;
            Ok(())
        };
        replace().map_err(|error| self.cannot_write(error))
    }

    /// A file in the same directory, which is removed unless it is renamed.
    fn temporary(&self) -> io::Result<NamedTempFile> {
        let mut builder = tempfile::Builder::new();
        // As any new file: for all to read, as far as the umask allows.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        builder
            .prefix(".evaluate-")
            .tempfile_in(directory(&self.path))
    }

    fn cannot_write(&self, error: io::Error) -> Failure {
        self.refused(format!(
            "expected a path that can be written to, got: {error}"
        ))
    }

    fn refused(&self, why: impl std::fmt::Display) -> Failure {
        Failure::refused(&self.name, why)
    }
}

/// The one path of a file, whatever links lead to it and whether it is there or not; the path as it is
/// where no directory holds it.
fn resolved(path: &Path) -> PathBuf {
    /// As many links as Linux follows.
    const MOST_LINKS: usize = 40;
    let mut path = path.to_owned();
    for _ in 0..MOST_LINKS {
        match fs::read_link(&path) {
            Ok(to) => path = path.with_file_name("").join(to),
            Err(_) => break,
        }
    }
    // A file that is not there yet has a directory that is.
    let of_directory = || {
        let directory = fs::canonicalize(directory(&path)).ok()?;
        Some(directory.join(path.file_name()?))
    };
    fs::canonicalize(&path)
        .ok()
        .or_else(of_directory)
        .unwrap_or(path)
}

/// The directory that a file is in.
fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

fn write_npy<T: npyz::AutoSerialize>(
    mut writer: impl Write,
    shape: &[u64],
    elements: impl Iterator<Item = T>,
) -> io::Result<()> {
    let mut npy = npyz::WriteOptions::new()
        .default_dtype()
        .shape(shape)
        .writer(&mut writer)
        .begin_nd()?;
    npy.extend(elements)?;
    npy.finish()?;
    writer.flush()
}
