//! The gradient's file: all of it or none.

use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use npyz::WriterBuilder;
use tempfile::NamedTempFile;

use crate::failure::{Failure, Result};
use crate::plan::Job;

/// Where the gradient goes.
#[derive(Debug)]
pub(crate) struct GradientFile {
    path: PathBuf,
}

impl GradientFile {
    /// Refuses a path that cannot be written to before anything is computed for it.
    pub(crate) fn new(path: &Path) -> Result<Self> {
        // What a link points to is replaced, not the link; made, if it is not there yet.
        let pointed_to = |_| fs::read_link(path).map(|to| path.with_file_name("").join(to));
        let path = fs::canonicalize(path)
            .or_else(pointed_to)
            .unwrap_or_else(|_| path.to_owned());
        let file = GradientFile { path };
        // Renaming over a directory fails, and over a device takes its place.
        if file.path.exists() && !file.path.is_file() {
            return Err(file.refused("expected a file, got a directory or a device"));
        }
        file.temporary().map_err(|error| file.cannot_write(error))?;
        Ok(file)
    }

    /// Writes `gradient` next to the file and moves it there, so that no reader sees half of it.
    pub(crate) fn write(&self, job: &Job, gradient: &[f64]) -> Result<()> {
        // That of the student's file.
        let (rows, dim) = (job.inputs.student.rows, job.inputs.student.dim);
        let shape = match job.inputs.student.groups {
            Some(groups) => vec![groups, rows / groups, dim],
            None => vec![rows, dim],
        };
        let shape: Vec<u64> = shape.into_iter().map(|size| size as u64).collect();
        let write = || -> io::Result<()> {
            let mut file = self.temporary()?;
            let writer = BufWriter::new(file.as_file_mut());
            if job.device.is_reference() {
                write_npy(writer, &shape, gradient.iter().copied())?;
            } else {
                #[allow(clippy::cast_possible_truncation)] // f32 is what the file is to hold
                write_npy(writer, &shape, gradient.iter().map(|&g| g as f32))?;
            }
            file.persist(&self.path).map_err(|error| error.error)?;
            Ok(())
        };
        write().map_err(|error| self.cannot_write(error))
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
        builder.prefix(".gradient-").tempfile_in(directory)
    }

    fn cannot_write(&self, error: io::Error) -> Failure {
        self.refused(format!(
            "expected a path that can be written to, got: {error}"
        ))
    }

    fn refused(&self, why: impl std::fmt::Display) -> Failure {
        Failure::refused(format!("--gradient {}", self.path.display()), why)
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
