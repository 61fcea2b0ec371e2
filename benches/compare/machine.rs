//! What the numbers were measured on. No host names.

use std::fs;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const MOMENT: Duration = Duration::from_millis(500);

/// The machine and the versions of a run.
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) threads: usize,
    /// `git describe`, or empty outside a repository.
    pub(crate) revision: String,
    pub(crate) rust: String,
    pub(crate) torch: String,
}

impl Machine {
    pub(crate) fn of(threads: usize, torch: &str) -> Self {
        let root = env!("CARGO_MANIFEST_DIR");
        Machine {
            cpu: cpu(),
            threads,
            revision: output("git", &["-C", root, "describe", "--always", "--dirty"]),
            rust: output("rustc", &["--version"]),
            torch: torch.to_owned(),
        }
    }

    /// Such as `xeon-avx512-2t`.
    pub(crate) fn slug(&self) -> String {
        let model = self
            .cpu
            .split('@')
            .next()
            .unwrap_or_default()
            .to_lowercase();
        let words = model.replace("(r)", " ").replace("(tm)", " ");
        let says_little = ["intel", "amd", "cpu", "processor", "with", "genuine"];
        let mut slug: Vec<_> = words
            .split(|c: char| !c.is_ascii_alphanumeric())
            .filter(|word| !word.is_empty() && !says_little.contains(word))
            .collect();
        let threads = format!("{}t", self.threads);
        slug.extend([simd(), &threads]);
        slug.join("-")
    }
}

/// The cores this process may use.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Today in UTC, as 2006-01-02.
pub(crate) fn today() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let mut day = since.map_or(0, |since| since.as_secs() / 86_400);
    let mut year = 1970;
    while day >= days_of(year) {
        day -= days_of(year);
        year += 1;
    }
    let february = days_of(year) - 337;
    let mut month = 1;
    for days in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if day < days {
            break;
        }
        day -= days;
        month += 1;
    }
    format!("{year}-{month:02}-{:02}", day + 1)
}

fn days_of(year: u64) -> u64 {
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    if leap { 366 } else { 365 }
}

fn cpu() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find(|line| line.starts_with("model name"));
    let model = match model.and_then(|line| line.split_once(':')) {
        Some((_, model)) => model.trim().to_owned(),
        None => output("sysctl", &["-n", "machdep.cpu.brand_string"]),
    };
    if model.is_empty() {
        std::env::consts::ARCH.to_owned()
    } else {
        model
    }
}

#[cfg(target_arch = "x86_64")]
fn simd() -> &'static str {
    if is_x86_feature_detected!("avx512f") {
        "avx512"
    } else if is_x86_feature_detected!("avx2") {
        "avx2"
    } else {
        "sse2"
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn simd() -> &'static str {
    std::env::consts::ARCH
}

/// The share of the cores' time, from 0 to 1, that something takes while this sleeps a moment:
/// others' work. 0 where the system does not tell.
pub(crate) fn busy() -> f64 {
    let before = ticks();
    std::thread::sleep(MOMENT);
    let after = ticks();
    match (before, after) {
        (Some((idle, all)), Some((idle_after, all_after))) if all_after > all => {
            1.0 - (idle_after - idle) / (all_after - all)
        }
        _ => 0.0,
    }
}

/// Of all cores since the system's start: idle, and altogether.
fn ticks() -> Option<(f64, f64)> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let ticks: Vec<f64> = stat
        .lines()
        .next()?
        .split_whitespace()
        .skip(1)
        .map_while(|ticks| ticks.parse().ok())
        .collect();
    // user, nice, system, idle, waiting for a disk, …
    let idle = ticks.get(3..5)?.iter().sum();
    Some((idle, ticks.iter().sum()))
}

/// What a program prints, or nothing.
fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let text = output.ok().filter(|output| output.status.success());
    let text = text.and_then(|output| String::from_utf8(output.stdout).ok());
    text.unwrap_or_default().trim().to_owned()
}
