//! What is printed: lines of JSON or a table.

use crate::inputs::DIGITS_FOR_TRIPLES;
use crate::measurement::{Deviation, Measurement};
use crate::options::Options;
use crate::plan::{Job, QueueSetup};
use crate::teacher::Teacher;

/// One object on one line, its keys in a fixed order.
pub(crate) fn json(job: &Job, measured: &Measurement) -> String {
    let mut fields = vec![
        ("loss", string(job.loss.name())),
        ("device", string(job.device.name())),
        ("dtype", string(job.dtype.name())),
        ("rows", job.inputs.student.rows.to_string()),
        ("student_dim", job.inputs.student.dim.to_string()),
    ];
    if job.inputs.has_teacher() {
        fields.push(match job.inputs.teacher {
            Teacher::Rows(_) if job.inputs.teachers() > 1 => {
                ("teacher_dims", format!("[{}]", teacher_dims(job)))
            }
            Teacher::Rows(rows) => ("teacher_dim", rows.dim.to_string()),
            Teacher::TopK(top) => ("teacher_k", top.ids.dim.to_string()),
        });
    }
    if job.parts.groups() > 1 {
        fields.push(("groups", job.parts.groups().to_string()));
    }
    fields.extend([
        ("value", number(measured.value)),
        ("gradient_norm", number(measured.gradient_norm())),
        ("seconds", number(measured.seconds)),
    ]);
    fields.extend(
        measured
            .terms
            .iter()
            .map(|&(name, value)| (name, number(value))),
    );
    let fields: Vec<String> = fields
        .iter()
        .map(|(key, value)| format!("{}:{value}", string(key)))
        .collect();
    format!("{{{}}}", fields.join(","))
}

fn string(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// The shortest digits that read back as the same f64; JSON has no NaN, so null stands for it.
fn number(value: f64) -> String {
    serde_json::Value::from(value).to_string()
}

/// A row per job, each of which is a line as soon as it is known.
pub(crate) struct Table {
    widths: [usize; COLUMNS],
    has_begun: bool,
}

const COLUMNS: usize = 10;
const HEADER: [&str; COLUMNS] = [
    "loss",
    "device",
    "dtype",
    "rows x dims",
    "value",
    "|gradient|",
    "loss dev.",
    "gradient dev.",
    "time",
    "terms",
];
/// Columns of words, which begin at the left.
const LEFT: [usize; 4] = [0, 1, 2, COLUMNS - 1];
/// Of a number in the columns of results: `1.234567e-10`.
const NUMBER: usize = 12;
/// `999.99 ms`.
const TIME: usize = 9;
const GAP: &str = "  ";

const LEGEND: &str = "\
rows x dims: N x D of the student, after B x where there are groups, or of each tower in clip and siglip; /D_t
of the teacher, of each if there are several, or /top k of its classes, +K keys in the queue's file.
loss dev. |L - L_ref|/|L_ref| and gradient dev. |g - g_ref|/|g_ref|: from the reference, in f64, on inputs
rounded to the same dtype; - where it is not among the devices. time: loss and gradient, the median of
repeated evaluations.
terms: rrd's KL(p||q); the two parts of rkd and of clip, not weighted; the derivatives of the loss by its scale
(1/temperature in clip and sup-con) and its bias.";

/// What the inputs are.
fn digits(with_reference: bool) -> String {
    let all = "\nInputs: two networks on 512 images of digits, examples/data/digits.safetensors";
    if with_reference {
        format!(
            "{all}; the first {DIGITS_FOR_TRIPLES}\nfor rkd-angle, rkd and order, because the \
             reference takes N^3 D or N^4 for them."
        )
    } else {
        format!("{all}.")
    }
}

impl Table {
    /// Of these jobs, whose words are known before their numbers.
    pub(crate) fn new(jobs: &[Job]) -> Self {
        let mut widths = HEADER.map(str::len);
        for job in jobs {
            for (width, word) in widths.iter_mut().zip(words(job)) {
                *width = word.chars().count().max(*width);
            }
        }
        widths[4..6].fill(NUMBER);
        widths[8] = TIME;
        let has_begun = false;
        Table { widths, has_begun }
    }

    /// The lines of a job, which begin with the header once.
    pub(crate) fn row(
        &mut self,
        job: &Job,
        measured: &Measurement,
        deviation: Option<Deviation>,
    ) -> String {
        let none = || "-".to_owned();
        let (value, gradient) = match deviation {
            Some(of) => (format!("{:.1e}", of.value), format!("{:.1e}", of.gradient)),
            None => (none(), none()),
        };
        let [loss, device, dtype, sizes] = words(job);
        let row = self.line([
            loss,
            device,
            dtype,
            sizes,
            significant(measured.value),
            significant(measured.gradient_norm()),
            value,
            gradient,
            time(measured.seconds),
            terms(measured),
        ]);
        if std::mem::replace(&mut self.has_begun, true) {
            return row;
        }
        let header = self.line(HEADER.map(str::to_owned));
        format!("{header}\n{}\n{row}", self.rule())
    }

    /// What the columns mean.
    pub(crate) fn finish(self, options: &Options) -> String {
        let digits = if options.on_digits() {
            digits(options.asks_for_reference())
        } else {
            String::new()
        };
        format!("{}\n{LEGEND}{digits}", self.rule())
    }

    fn line(&self, cells: [String; COLUMNS]) -> String {
        let cells = cells.iter().zip(self.widths).enumerate();
        let padded = cells.map(|(column, (cell, width))| match LEFT.contains(&column) {
            true => format!("{cell:<width$}"),
            false => format!("{cell:>width$}"),
        });
        let line = padded.collect::<Vec<_>>().join(GAP);
        line.trim_end().to_owned()
    }

    fn rule(&self) -> String {
        "─".repeat(self.widths.iter().sum::<usize>() + GAP.len() * (COLUMNS - 1))
    }
}

/// What is known of a row before it is computed.
fn words(job: &Job) -> [String; 4] {
    [
        job.loss.name().to_owned(),
        job.device.name().to_owned(),
        job.dtype.name().to_owned(),
        sizes(job),
    ]
}

/// The named terms, or a dash.
fn terms(measured: &Measurement) -> String {
    let each = |&(name, value): &(_, f64)| format!("{name} {}", significant(value));
    let terms: Vec<String> = measured.terms.iter().map(each).collect();
    if terms.is_empty() {
        "-".to_owned()
    } else {
        terms.join(", ")
    }
}

/// The widths of the teachers, as a list.
fn teacher_dims(job: &Job) -> String {
    let each = job.inputs.each();
    let dims: Vec<String> = each
        .map(|inputs| inputs.teacher.matrix().dim.to_string())
        .collect();
    dims.join(",")
}

fn sizes(job: &Job) -> String {
    let student = job.inputs.student;
    let teacher = match job.inputs.teacher {
        Teacher::Rows(_) if !job.inputs.has_teacher() => String::new(),
        Teacher::Rows(_) => format!("/{}", teacher_dims(job)),
        Teacher::TopK(top) => format!("/top {}", top.ids.dim),
    };
    let rows = match job.parts.groups() {
        1 => student.rows.to_string(),
        groups => format!("{groups} x {}", student.rows / groups),
    };
    let sizes = format!("{rows} x {}{teacher}", student.dim);
    match (QueueSetup::of(&job.loss, job.inputs.keys), job.inputs.keys) {
        (Some(_), keys) => format!("{sizes} +{}", keys.map_or(0, |keys| keys.rows)),
        (None, _) => sizes,
    }
}

/// Seven significant digits.
fn significant(value: f64) -> String {
    let magnitude = value.abs();
    if !(1e-3..1e5).contains(&magnitude) {
        return format!("{value:.6e}");
    }
    let decimals = [1e4, 1e3, 1e2, 1e1, 1e0, 1e-1, 1e-2, 1e-3]
        .iter()
        .position(|power| magnitude >= *power)
        .map_or(0, |position| position + 2);
    format!("{value:.decimals$}")
}

fn time(seconds: f64) -> String {
    if seconds < 1e-3 {
        format!("{:.1} µs", seconds * 1e6)
    } else if seconds < 1.0 {
        format!("{:.2} ms", seconds * 1e3)
    } else {
        format!("{seconds:.2} s")
    }
}
