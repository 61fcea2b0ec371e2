//! What is printed and recorded of a case.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use crate::cases::Case;
use crate::floor::Floor;
use crate::machine::{Machine, today};
use crate::{Options, Result};

/// Where nothing was measured.
const NONE: &str = "n/a";
const RESULTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/results");

/// Seconds that 20, 50 and 80 % of the evaluations stayed under.
#[derive(Clone, Copy)]
struct Quantiles([f64; 3]);

impl Quantiles {
    fn of(mut samples: Vec<f64>) -> Self {
        samples.sort_by(f64::total_cmp);
        let last = samples.len() - 1;
        // In whole numbers: the nearest sample, in tenths of the way to the last.
        Quantiles([2, 5, 8].map(|tenths| samples[(last * tenths + 5) / 10]))
    }

    fn median(self) -> f64 {
        self.0[1]
    }
}

/// What an evaluation adds to the memory in use, in bytes.
pub(crate) struct Peaks {
    pub(crate) ours: Option<u64>,
    pub(crate) torch: Option<u64>,
}

/// What was found out about a case.
pub(crate) struct Measurement {
    case: String,
    ours: Quantiles,
    /// None where PyTorch had to sit out.
    torch: Option<Quantiles>,
    peaks: Peaks,
    throughput: f64,
    unit: &'static str,
    /// The rate of PyTorch's sgemm, in flop/s, and what the case takes at that rate, in seconds.
    floor: Option<[f64; 2]>,
}

impl Measurement {
    pub(crate) fn new(
        case: &Case,
        ours: Vec<f64>,
        torch: Option<Vec<f64>>,
        peaks: Peaks,
        floor: Option<(Floor, [Vec<f64>; 2])>,
    ) -> Self {
        let ours = Quantiles::of(ours);
        let floor = floor.map(|(floor, units)| {
            let [product, exponentials] = units.map(|samples| Quantiles::of(samples).median());
            [floor.rate(product), floor.seconds(product, exponentials)]
        });
        let (work, unit) = case.work();
        Measurement {
            case: case.name.clone(),
            ours,
            torch: torch.map(Quantiles::of),
            peaks,
            throughput: work as f64 / ours.median(),
            unit,
            floor,
        }
    }

    /// Of the time of an evaluation, what the floor takes.
    fn share_of_floor(&self) -> Option<f64> {
        self.floor.map(|[_, seconds]| seconds / self.ours.median())
    }

    fn ratio(&self) -> Option<f64> {
        self.torch.map(|torch| torch.median() / self.ours.median())
    }
}

impl fmt::Display for Measurement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |q: Quantiles| format!("{:.3} ms", 1e3 * q.median());
        let spread = |q: Quantiles| format!("{:.0} %", 100.0 * (q.0[2] - q.0[0]) / q.median());
        let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / 1024f64.powi(2));
        f.write_str(&columns([
            &self.case,
            &ms(self.ours),
            &spread(self.ours),
            &or_none(self.torch, ms),
            &or_none(self.torch, spread),
            &or_none(self.ratio(), |ratio| format!("{ratio:.1}")),
            &or_none(self.peaks.ours, mib),
            &or_none(self.peaks.torch, mib),
            &format!("{:.2e} {}", self.throughput, self.unit),
            &or_none(self.floor, |[rate, _]| format!("{:.0} Gflop/s", rate / 1e9)),
            &or_none(self.share_of_floor(), |share| {
                format!("{:.0} %", 100.0 * share)
            }),
        ]))
    }
}

/// The heading of the lines that measurements print as: medians, from the 20th to the 80th
/// percentile in per cent of the median, memory, and the share of the floor.
pub(crate) fn heading() -> String {
    columns([
        "case",
        "relata",
        "spread",
        "PyTorch",
        "spread",
        "ratio",
        "memory",
        "PyTorch's",
        "throughput",
        "sgemm",
        "of floor",
    ])
}

fn columns(
    [
        case,
        a,
        a_spread,
        b,
        b_spread,
        ratio,
        a_mib,
        b_mib,
        throughput,
        sgemm,
        of_floor,
    ]: [&str; 11],
) -> String {
    format!(
        "{case:<26}{a:>12}{a_spread:>8}{b:>14}{b_spread:>8}{ratio:>8}{a_mib:>11}{b_mib:>12}{throughput:>20}{sgemm:>14}{of_floor:>10}"
    )
}

fn or_none<T>(value: Option<T>, show: impl Fn(T) -> String) -> String {
    value.map_or_else(|| NONE.to_owned(), show)
}

/// The lines of a results file.
pub(crate) struct Record {
    machine: Machine,
    rows: Vec<Vec<(&'static str, String)>>,
}

impl Record {
    pub(crate) fn new(machine: Machine) -> Self {
        Record {
            machine,
            rows: Vec::new(),
        }
    }

    pub(crate) fn add(&mut self, case: &Case, m: &Measurement) {
        let seconds = |q: Option<Quantiles>, at: usize| or_none(q, |q| format!("{:.5e}", q.0[at]));
        let (ours, torch) = (Some(m.ours), m.torch);
        let machine = &self.machine;
        self.rows.push(vec![
            ("device", machine.cpu.clone()),
            ("threads", machine.threads.to_string()),
            ("relata", env!("CARGO_PKG_VERSION").to_owned()),
            ("revision", machine.revision.clone()),
            ("rust", machine.rust.clone()),
            ("torch", machine.torch.clone()),
            ("case", case.name.clone()),
            ("loss", case.loss.name().to_owned()),
            ("rows", case.rows.to_string()),
            ("student_dim", case.student_dim.to_string()),
            ("teacher_dim", case.teacher_dim.to_string()),
            (
                "queue",
                case.keys().map_or(String::new(), |k| k.to_string()),
            ),
            ("dtype", "f32".to_owned()),
            ("ours_p20_s", seconds(ours, 0)),
            ("ours_p50_s", seconds(ours, 1)),
            ("ours_p80_s", seconds(ours, 2)),
            ("torch_p20_s", seconds(torch, 0)),
            ("torch_p50_s", seconds(torch, 1)),
            ("torch_p80_s", seconds(torch, 2)),
            ("ratio", or_none(m.ratio(), |ratio| format!("{ratio:.3}"))),
            ("throughput", format!("{:.4e}", m.throughput)),
            ("throughput_unit", m.unit.to_owned()),
            ("ours_peak_bytes", or_none(m.peaks.ours, |b| b.to_string())),
            (
                "torch_peak_bytes",
                or_none(m.peaks.torch, |b| b.to_string()),
            ),
            (
                "sgemm_flop_per_s",
                or_none(m.floor, |[rate, _]| format!("{rate:.4e}")),
            ),
            (
                "floor_s",
                or_none(m.floor, |[_, seconds]| format!("{seconds:.5e}")),
            ),
            (
                "share_of_floor",
                or_none(m.share_of_floor(), |share| format!("{share:.3}")),
            ),
        ]);
    }

    /// In the machine's folder, today's date for a name. A run later on the same day takes the
    /// place of one before.
    pub(crate) fn write(&self, options: &Options) -> Result<PathBuf> {
        let machine = options.machine.clone();
        let machine = machine.unwrap_or_else(|| self.machine.slug());
        let folder = options.out.as_deref().unwrap_or(Path::new(RESULTS));
        let folder = folder.join(machine);
        let mode = if options.compile { "-compiled" } else { "" };
        let path = folder.join(format!("{}{mode}.csv", today()));
        fs::create_dir_all(folder)?;
        fs::write(&path, self.csv())?;
        Ok(path)
    }

    fn csv(&self) -> String {
        let heading = self.rows.iter().take(1).map(|row| {
            let names = row.iter().map(|&(name, _)| name.to_owned());
            line(names)
        });
        let rows = self
            .rows
            .iter()
            .map(|row| line(row.iter().map(|(_, value)| value.clone())));
        heading.chain(rows).collect()
    }
}

fn line(fields: impl Iterator<Item = String>) -> String {
    let quoted = |field: String| {
        if field.contains([',', '"']) {
            format!("\"{}\"", field.replace('"', "\"\""))
        } else {
            field
        }
    };
    fields.map(quoted).collect::<Vec<_>>().join(",") + "\n"
}
