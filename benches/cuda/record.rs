//! The printed line and the recorded row of a case.

use std::fmt;
use std::fs;
use std::path::Path;

use relata::{DType, WeightPrecision};

use crate::Result;
use crate::cases::Case;
use crate::gpu::Gpu;
use crate::machine::{Machine, today};

/// The text for a value that was not measured.
const NONE: &str = "n/a";

/// The provider that calls scaled_dot_product_attention twice.
pub(crate) const ATTENTION: &str = "attention";
/// What PyTorch evaluates: the papers' formulas in eager mode and compiled, and RRD's gradient by
/// attention.
pub(crate) const PROVIDERS: [&str; 3] = ["eager", "compiled", ATTENTION];

/// The seconds of relata's evaluations.
#[derive(Default)]
pub(crate) struct Ours {
    /// As a graph, with inputs that are in no cache.
    pub(crate) cold: Vec<f64>,
    /// As a graph, with the same inputs each time.
    pub(crate) warm: Vec<f64>,
    /// Launch by launch, with inputs that are in no cache.
    pub(crate) launches: Vec<f64>,
}

/// The seconds of all evaluations of a case.
#[derive(Default)]
pub(crate) struct Samples {
    pub(crate) ours: Ours,
    /// With launches that overlap. Empty if the GPU or the driver does not support it.
    pub(crate) overlapping: Ours,
    /// PyTorch, in the order of [`PROVIDERS`].
    pub(crate) torch: [Vec<f64>; 3],
}

pub(crate) struct Measurement {
    case: String,
    dtype: DType,
    weights: WeightPrecision,
    /// At the 20th, 50th and 80th percentile.
    cold: [f64; 3],
    warm: f64,
    launches: f64,
    /// The medians of the three with launches that overlap.
    overlapping: [Option<f64>; 3],
    torch: [Option<f64>; 3],
    floor: Option<f64>,
    throughput: f64,
    unit: &'static str,
    /// The peak memory of ours and of PyTorch.
    peaks: [Option<u64>; 2],
}

impl Measurement {
    pub(crate) fn new(
        case: &Case,
        (dtype, weights): (DType, WeightPrecision),
        samples: Samples,
        floor: Option<f64>,
        peaks: [Option<u64>; 2],
    ) -> Self {
        let median = |samples: Vec<f64>| quantile(samples, 5);
        let cold =
            [2, 5, 8].map(|tenths| quantile(samples.ours.cold.clone(), tenths).unwrap_or(f64::NAN));
        let Ours {
            cold: overlapping,
            warm,
            launches,
        } = samples.overlapping;
        let (work, unit) = match case.work() {
            (_, "B/s") => (bytes(case, dtype), "B/s"),
            work => work,
        };
        Measurement {
            case: case.name.clone(),
            dtype,
            weights,
            cold,
            warm: median(samples.ours.warm).unwrap_or(f64::NAN),
            launches: median(samples.ours.launches).unwrap_or(f64::NAN),
            overlapping: [overlapping, warm, launches].map(median),
            torch: samples.torch.map(median),
            floor,
            throughput: work as f64 / cold[1],
            unit,
            peaks,
        }
    }

    fn share_of_floor(&self) -> Option<f64> {
        self.floor.map(|floor| floor / self.cold[1])
    }

    fn ratio(&self, torch: Option<f64>) -> Option<f64> {
        torch.map(|torch| torch / self.cold[1])
    }
}

/// The name of the option's value in the command.
fn name_of(weights: WeightPrecision) -> &'static str {
    match weights {
        WeightPrecision::Half => "half",
        _ => "split",
    }
}

fn bytes(case: &Case, dtype: DType) -> u64 {
    match dtype {
        DType::F32 => case.bytes::<f32>(),
        _ => case.bytes::<half::f16>(),
    }
}

/// The quantile at `tenths` tenths, as the nearest sample. None without samples.
fn quantile(mut samples: Vec<f64>, tenths: usize) -> Option<f64> {
    samples.sort_by(f64::total_cmp);
    let last = samples.len().checked_sub(1)?;
    Some(samples[(last * tenths + 5) / 10])
}

pub(crate) fn heading() -> String {
    columns([
        "case",
        "dtype",
        "graph",
        "warm",
        "launches",
        "overlapping",
        "of floor",
        "x eager",
        "x compiled",
        "x attention",
        "throughput",
    ])
}

impl fmt::Display for Measurement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let us = |seconds: f64| format!("{:.1} µs", 1e6 * seconds);
        let times = |ratio: Option<f64>| or_none(ratio, |ratio| format!("{ratio:.1}"));
        f.write_str(&columns([
            &self.case,
            &match self.weights {
                WeightPrecision::Half => format!("{}, half", self.dtype.name()),
                _ => self.dtype.name().to_owned(),
            },
            &us(self.cold[1]),
            &us(self.warm),
            &us(self.launches),
            &or_none(self.overlapping[0], us),
            &or_none(self.share_of_floor(), |share| {
                format!("{:.0} %", 100.0 * share)
            }),
            &times(self.ratio(self.torch[0])),
            &times(self.ratio(self.torch[1])),
            &times(self.ratio(self.torch[2])),
            &format!("{:.2e} {}", self.throughput, self.unit),
        ]))
    }
}

fn columns(
    [
        case,
        dtype,
        graph,
        warm,
        launches,
        overlapping,
        floor,
        eager,
        compiled,
        attention,
        throughput,
    ]: [&str; 11],
) -> String {
    format!(
        "{case:<26}{dtype:>11}{graph:>13}{warm:>13}{launches:>13}{overlapping:>13}{floor:>9}{eager:>9}{compiled:>11}{attention:>12}{throughput:>20}"
    )
}

fn or_none<T>(value: Option<T>, show: impl Fn(T) -> String) -> String {
    value.map_or_else(|| NONE.to_owned(), show)
}

/// The lines of a results file.
pub(crate) struct Record {
    /// The columns that are the same in all rows.
    run: Vec<(&'static str, String)>,
    rows: Vec<Vec<(&'static str, String)>>,
}

impl Record {
    pub(crate) fn new(gpu: &Gpu, torch: Option<String>) -> Self {
        // Without a repository, the environment has the revision of the program.
        let revision =
            std::env::var("RELATA_REVISION").unwrap_or_else(|_| Machine::of(1, "").revision);
        let built = relata::cuda::build();
        Record {
            run: vec![
                ("date", today()),
                ("gpu", gpu.name.clone()),
                ("driver", gpu.driver.clone()),
                ("toolkit", built.toolkit),
                ("targets", built.targets.join(", ")),
                ("relata", env!("CARGO_PKG_VERSION").to_owned()),
                ("revision", revision),
                ("torch", torch.unwrap_or_else(|| NONE.to_owned())),
            ],
            rows: Vec::new(),
        }
    }

    pub(crate) fn add(&mut self, case: &Case, m: &Measurement) {
        let seconds = |seconds: f64| format!("{seconds:.5e}");
        let times = |ratio: Option<f64>| or_none(ratio, |ratio| format!("{ratio:.3}"));
        let count = |bytes: Option<u64>| or_none(bytes, |bytes| bytes.to_string());
        let mut row = self.run.clone();
        row.extend([
            ("case", case.name.clone()),
            ("loss", case.loss.name().to_owned()),
            ("rows", case.rows.to_string()),
            ("student_dim", case.student_dim.to_string()),
            ("teacher_dim", case.teacher_dim.to_string()),
            (
                "queue",
                case.keys().map_or(String::new(), |keys| keys.to_string()),
            ),
            ("dtype", m.dtype.name().to_owned()),
            ("weights", name_of(m.weights).to_owned()),
            ("graph_p20_s", seconds(m.cold[0])),
            ("graph_p50_s", seconds(m.cold[1])),
            ("graph_p80_s", seconds(m.cold[2])),
            ("graph_warm_p50_s", seconds(m.warm)),
            ("launches_p50_s", seconds(m.launches)),
            (
                "overlapping_graph_p50_s",
                or_none(m.overlapping[0], seconds),
            ),
            (
                "overlapping_graph_warm_p50_s",
                or_none(m.overlapping[1], seconds),
            ),
            (
                "overlapping_launches_p50_s",
                or_none(m.overlapping[2], seconds),
            ),
            ("throughput", format!("{:.4e}", m.throughput)),
            ("throughput_unit", m.unit.to_owned()),
            ("floor_s", or_none(m.floor, seconds)),
            ("share_of_floor", times(m.share_of_floor())),
            ("torch_eager_p50_s", or_none(m.torch[0], seconds)),
            ("torch_compiled_p50_s", or_none(m.torch[1], seconds)),
            ("torch_attention_p50_s", or_none(m.torch[2], seconds)),
            ("ratio_eager", times(m.ratio(m.torch[0]))),
            ("ratio_compiled", times(m.ratio(m.torch[1]))),
            ("ratio_attention", times(m.ratio(m.torch[2]))),
            ("ours_peak_bytes", count(m.peaks[0])),
            ("torch_peak_bytes", count(m.peaks[1])),
        ]);
        self.rows.push(row);
    }

    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let heading = self
            .rows
            .iter()
            .take(1)
            .map(|row| line(row.iter().map(|(name, _)| *name)));
        let rows = self
            .rows
            .iter()
            .map(|row| line(row.iter().map(|(_, value)| value.as_str())));
        fs::write(path, heading.chain(rows).collect::<String>())?;
        Ok(())
    }
}

fn line<'a>(fields: impl Iterator<Item = &'a str>) -> String {
    let quoted = |field: &str| {
        if field.contains([',', '"']) {
            format!("\"{}\"", field.replace('"', "\"\""))
        } else {
            field.to_owned()
        }
    };
    fields.map(quoted).collect::<Vec<_>>().join(",") + "\n"
}
