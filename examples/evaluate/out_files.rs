//! The files that results are written to, and that none of them is read.

use std::path::{Path, PathBuf};

use crate::failure::{Failure, Result};
use crate::files;
use crate::inputs::DIGITS;
use crate::options::Options;
use crate::out_file::OutFile;

/// Where the results go that are to be written.
#[derive(Debug)]
pub(crate) struct OutFiles {
    pub(crate) gradient: Option<OutFile>,
    pub(crate) gradient_keys: Option<OutFile>,
    pub(crate) row_losses: Option<OutFile>,
    pub(crate) plot: Option<OutFile>,
}

impl OutFiles {
    /// Those that the options name; refuses two that are one, and one that is read.
    pub(crate) fn new(options: &Options) -> Result<Self> {
        let open = |argument, path: &Option<PathBuf>| {
            let path = path.as_deref();
            path.map(|path| OutFile::new(argument, path)).transpose()
        };
        // Of one loss on one device.
        let of_one = |argument, path: &Option<PathBuf>| match path {
            None => Ok(None),
            Some(_) => {
                check_single(options, argument)?;
                open(argument, path)
            }
        };
        let files = OutFiles {
            gradient: of_one("--gradient", &options.gradient)?,
            gradient_keys: of_one("--gradient-keys", &options.towers.gradient_keys)?,
            row_losses: of_one("--per-row", &options.per_row)?,
            plot: open("--plot", &options.plot)?,
        };
        let all = [
            ("--gradient", &files.gradient),
            ("--gradient-keys", &files.gradient_keys),
            ("--per-row", &files.row_losses),
            ("--plot", &files.plot),
        ];
        let inputs = inputs(options);
        for (at, (_, file)) in all.into_iter().enumerate() {
            let Some(file) = file else { continue };
            for (argument, path) in &inputs {
                file.check_is_not(argument, path)?;
            }
            for (argument, other) in &all[..at] {
                if let Some(other) = other {
                    file.check_differs(argument, other)?;
                }
            }
        }
        Ok(files)
    }
}

/// The files that are read, and what names them.
fn inputs(options: &Options) -> Vec<(&'static str, PathBuf)> {
    let towers = &options.towers;
    let single = [
        ("--student", &options.student),
        ("--teacher-ids", &options.teacher_ids),
        ("--teacher-log-probs", &options.teacher_log_probs),
        ("--row-weights", &options.row_weights),
        ("--queue", &options.queue),
        ("--student-keys", &towers.student_keys),
        ("--labels", &towers.labels),
    ];
    let repeated = [
        ("--teacher", &options.teachers),
        ("--teacher-keys", &towers.teacher_keys),
    ];
    let single = single
        .into_iter()
        .flat_map(|(argument, path)| path.iter().map(move |path| (argument, path)));
    let repeated = repeated
        .into_iter()
        .flat_map(|(argument, paths)| paths.iter().map(move |path| (argument, path)));
    let digits = Path::new(DIGITS).to_owned();
    let given = single
        .chain(repeated)
        .map(|(argument, path)| (argument, files::split_name(path).0));
    given
        .chain(options.on_digits().then_some(("the digits", digits)))
        .collect()
}

/// Refuses more than one loss on one device, where the results of one are written.
fn check_single(options: &Options, argument: &str) -> Result<()> {
    let (losses, devices) = (options.losses().len(), options.devices.len());
    if losses != 1 || options.devices().len() != 1 {
        let why = format!(
            "expected exactly one --loss and one --device with it, got {losses} and {devices}"
        );
        return Err(Failure::refused(argument, why));
    }
    Ok(())
}
