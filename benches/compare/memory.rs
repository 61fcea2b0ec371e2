//! Peak memory: what one evaluation adds to a process that has its inputs, in a fresh process each,
//! as memory once had is rarely given back.

use std::fs;
use std::process::{Command, Stdio};

use relata::{KdKl, Loss, RkdAngle, Rrd};

use crate::cases::Case;
use crate::ours::Ours;
use crate::torch::{Files, Torch};
use crate::{Options, Result};

/// Has glibc return freed memory at once, on both sides: what the making of the inputs has left
/// behind would otherwise be used again, and not counted.
const ENVIRONMENT: [(&str, &str); 2] = [
    ("MALLOC_MMAP_THRESHOLD_", "65536"),
    ("MALLOC_TRIM_THRESHOLD_", "65536"),
];

/// `None` where the system does not tell.
pub(crate) fn of_ours(case: &Case, threads: usize) -> Result<Option<u64>> {
    let output = Command::new(std::env::current_exe()?)
        .args(["--peak-memory", &case.name])
        .args(["--threads", &threads.to_string()])
        .envs(ENVIRONMENT)
        .stderr(Stdio::inherit())
        .output()?;
    if !output.status.success() {
        return Err("the process that measures memory failed".into());
    }
    Ok(String::from_utf8(output.stdout)?.trim().parse().ok())
}

pub(crate) fn of_torch(case: &Case, files: &Files, options: &Options) -> Result<u64> {
    let mut torch = Torch::spawn(&options.worker(), &ENVIRONMENT)?;
    torch.open(case, files)?;
    torch.peak()
}

/// The child of [`of_ours`]: bytes, or why not.
pub(crate) fn added_by(case: &Case) -> String {
    let mut ours = Ours::new(case);
    warm_up();
    let before = resident_peak(true);
    ours.evaluate();
    match (before, resident_peak(false)) {
        (Some(before), Some(after)) => after.saturating_sub(before).to_string(),
        _ => "n/a".to_owned(),
    }
}

/// Starts the threads, with cases too small to leave memory behind.
fn warm_up() {
    let losses: [Loss; 3] = [
        RkdAngle::default().into(),
        Rrd::default().into(),
        KdKl::default().into(),
    ];
    let small = crate::cases::tests().filter(|case| case.rows == 17 && losses.contains(&case.loss));
    for case in small {
        Ours::new(&case).evaluate();
    }
}

/// The most memory this process has had, in bytes; from now on, if it is to start anew.
fn resident_peak(reset: bool) -> Option<u64> {
    if reset {
        fs::write("/proc/self/clear_refs", "5").ok()?;
    }
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}
