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
    /// The argument that names it, for messages.
    argument: &'static str,
    path: PathBuf,
}

impl OutFile {
    /// Refuses a path that cannot be written to before anything is computed for it.
    pub(crate) fn new(argument: &'static str, path: &Path) -> Result<Self> {
        // What a link points to is replaced, not the link; made, if it is not there yet.
        let pointed_to = |_| fs::read_link(path).map(|to| path.with_file_name("").join(to));
        let path = fs::canonicalize(path)
            .or_else(pointed_to)
            .unwrap_or_else(|_| path.to_owned());
        let file = OutFile { argument, path };
        // Renaming over a directory fails, and over a device takes its place.
        if file.path.exists() && !file.path.is_file() {
            return Err(file.refused("expected a file, got a directory or a device"));
        }
        file.temporary().map_err(|error| file.cannot_write(error))?;
        Ok(file)
    }

    /// Whether both are one file.
    pub(crate) fn is(&self, other: &OutFile) -> bool {
        self.path == other.path
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
        let directory = match self.path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        let mut builder = tempfile::Builder::new();
        // As any new file: for all to read, as far as the umask allows.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        builder.prefix(".evaluate-").tempfile_in(directory)
    }

    fn cannot_write(&self, error: io::Error) -> Failure {
        self.refused(format!(
            "expected a path that can be written to, got: {error}"
        ))
    }

    fn refused(&self, why: impl std::fmt::Display) -> Failure {
        Failure::refused(format!("{} {}", self.argument, self.path.display()), why)
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
