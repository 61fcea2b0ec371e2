//! The command line.

use std::path::PathBuf;

use clap::Parser;
use relata::{DType, Divergence, Enqueue, Family, Loss, ParameterValue, WeightPrecision};

use crate::devices::DeviceKind;
use crate::failure::{Failure, Result};
use crate::towers::TowerOptions;

/// Evaluates distillation losses of a student against a teacher, and their gradients with respect
/// to the student.
///
/// Without files it runs on the real embeddings in examples/data. The losses of two towers and of
/// labels (clip, siglip, sup-con) need files of their own and run where --loss names them. Those of a
/// memory bank (crd, rrd-bank) are in the library only. Prints a table, or with --json one object a
/// line. Files are .npy or .npz (f16, f32, f64), or .safetensors (F16, BF16, F32, F64). Of many arrays
/// FILE.npz:NAME or FILE.safetensors:NAME is one; NAME may be a pattern, such as '*.weight', of one
/// name. Last dimensions of 1 count for nothing: [N, D, 1] are N rows.
#[derive(Debug, Parser)]
#[command(name = "evaluate", version, after_help = AFTER_HELP)]
pub(crate) struct Options {
    /// Student's embeddings [N, D] (or logits). Those of shape [B, N, D] are B groups of N rows: see
    /// --groups
    #[arg(long, value_name = "F")]
    pub(crate) student: Option<PathBuf>,
    /// Teacher's embeddings [N, D_t] or [B, N, D_t] (or logits). clip can do without; siglip and sup-con
    /// take none. May be repeated: losses, gradients and terms are the mean of those with each teacher
    #[arg(long = "teacher", value_name = "F", requires = "student")]
    pub(crate) teachers: Vec<PathBuf>,
    /// In place of --teacher, in kd-kl: the teacher's k most likely classes of each row, integers
    /// [N, k] or [B, N, k]. All other classes count as one: see --no-tail
    #[arg(long, value_name = "F", requires_all = ["student", "teacher_log_probs"], conflicts_with = "teachers")]
    pub(crate) teacher_ids: Option<PathBuf>,
    /// The logarithms of their probabilities, floats of the same shape. A class of -inf is left out
    #[arg(long, value_name = "F", requires = "teacher_ids")]
    pub(crate) teacher_log_probs: Option<PathBuf>,
    /// What each row counts for in rrd, info-nce and kd-kl, floats [N] or [B, N] of at least 0: the loss
    /// is the weighted mean of the rows'. A row of weight 0 may hold anything
    #[arg(long, value_name = "F")]
    pub(crate) row_weights: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) towers: TowerOptions,
    /// Take the first N rows of all files, but those of --queue [default: all]
    #[arg(long, value_name = "N", requires = "student")]
    pub(crate) rows: Option<usize>,
    #[arg(long = "loss", value_name = "NAME", value_parser = str::parse::<Loss>, help = loss_help())]
    losses: Vec<Loss>,
    /// A device: reference, cpu and, built with the feature of that name, emulator (slow) and cuda;
    /// may be repeated [default: cpu, cuda if there is a GPU, and the reference unless it takes more than
    /// some seconds]. The table shows deviations where the reference is among them
    #[arg(long = "device", value_name = "NAME", value_parser = DeviceKind::parse)]
    pub(crate) devices: Vec<DeviceKind>,
    /// Round the inputs to f64, f32, f16 or bf16 [default: f64 for the reference, else f32]
    #[arg(long, value_name = "TYPE", value_parser = parse_dtype)]
    pub(crate) dtype: Option<DType>,
    /// L2-normalise the rows first, as rrd and info-nce do by default
    #[arg(long, conflicts_with = "no_normalize")]
    normalize: bool,
    /// Take the rows, and the keys of the queue, as they come, as rkd* do by default
    #[arg(long)]
    no_normalize: bool,
    /// The mean over prefixes of the student's rows, for gram, pkt and order: up to 16 increasing
    /// widths. The teacher's rows are whole
    #[arg(long, value_name = "D,D,...", value_delimiter = ',')]
    pub(crate) prefixes: Option<Vec<usize>>,
    /// Take the rows as B groups of equal size, in order, for the losses of pairs and triples: rows of
    /// different groups are not compared, and the loss is the mean of the groups' [default: B of files
    /// of shape [B, N, D], else 1]
    #[arg(long, value_name = "B")]
    pub(crate) groups: Option<usize>,
    /// Negative similarities count as 0, in gram
    #[arg(long)]
    clamp: bool,
    /// Huber's delta in rkd* [default: 1]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    delta: Option<f64>,
    /// Weight of the distance loss in rkd [default: 1]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    distance_weight: Option<f64>,
    /// Weight of the angle loss in rkd [default: 2]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    angle_weight: Option<f64>,
    /// Margin in order [default: 0.015]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    margin: Option<f64>,
    /// Scale of the scores in dark-rank [default: 3]; with --divergence skew and skew-reverse, how
    /// much of its own the mixture has [default: 0.1]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    alpha: Option<f64>,
    /// Power of the distances in dark-rank [default: 3]; with --divergence js, the teacher's share of
    /// the mixture [default: 0.5]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    beta: Option<f64>,
    /// Neighbours of each row in dark-rank [default: 4]
    #[arg(long, value_name = "L")]
    length: Option<usize>,
    /// Past teacher keys [K, D], the oldest first, for rrd and info-nce; K is the queue's capacity
    /// [default: none: rrd starts from an empty queue, info-nce is in-batch]
    #[arg(long, value_name = "F")]
    pub(crate) queue: Option<PathBuf>,
    /// Whether the teacher's rows enter the queue before the loss, after it or not at all (none)
    /// [default: before for rrd, after for info-nce]
    #[arg(long, value_name = "WHEN", value_parser = parse_enqueue)]
    enqueue: Option<Enqueue>,
    /// Student's temperature in rrd and kd-kl [default: 0.1 and 4]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    student_temperature: Option<f64>,
    /// Teacher's temperature in rrd, clip and kd-kl [default: 0.02, 0.07 and 4]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    teacher_temperature: Option<f64>,
    /// Temperature in info-nce, clip (the student's), sup-con and kd-kl, where it is that of student
    /// and teacher [default: 0.07, and 4 in kd-kl]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    temperature: Option<f64>,
    /// Divergence in kd-kl: forward, reverse, js, skew or skew-reverse [default: forward]
    #[arg(long, value_name = "NAME", value_parser = parse_divergence)]
    divergence: Option<Divergence>,
    /// Compare the first C classes of student and teacher in kd-kl, whose vocabularies may differ
    /// [default: 0, all of them, of which both have as many]
    #[arg(long, value_name = "C")]
    classes: Option<usize>,
    /// Leave out the classes that --teacher-ids does not list, in kd-kl, instead of counting them as
    /// one
    #[arg(long)]
    no_tail: bool,
    /// How precise rrd's and info-nce's softmax weights are in f16 and bf16 on cuda and the
    /// emulator: split (two f16) or half (one, a third less work) [default: split]
    #[arg(long, value_name = "HOW", value_parser = parse_weights)]
    pub(crate) weights: Option<WeightPrecision>,
    /// Write the gradient, of the shape of --student, to this .npy file: f64 for the reference, else f32. Takes one
    /// --loss and one --device
    #[arg(long, value_name = "OUT.npy")]
    pub(crate) gradient: Option<PathBuf>,
    /// Write the loss of each row, [N] or [B, N] in f64, to this .npy file: those that rrd, info-nce and
    /// kd-kl are the mean of, or the weighted mean. Takes one --loss and one --device
    #[arg(long, value_name = "OUT.npy")]
    pub(crate) per_row: Option<PathBuf>,
    /// Draw the cosines of all rows with one another, the student's, the teacher's and their difference,
    /// to this .svg file. With --labels, or on the digits, rows of a label lie side by side
    #[arg(long, value_name = "OUT.svg")]
    pub(crate) plot: Option<PathBuf>,
    /// Print one JSON object a line, and nothing else, to standard output
    #[arg(long)]
    pub(crate) json: bool,
    /// Refuse inputs with NaN or infinities instead of giving a NaN loss
    #[arg(long)]
    pub(crate) checked: bool,
}

const AFTER_HELP: &str = "\
Times are the median of repeated evaluations after a warm-up: for about half a second, at least 3 and at \
most 100 of them. An evaluation that takes more than a second is run and timed once.

Exit code: 0, or 2 where an argument, a file or a value is refused, which one line on standard error \
explains.";

impl Options {
    pub(crate) fn from_command_line() -> Result<Self> {
        Options::try_parse().map_err(Failure::from)
    }

    /// The losses asked for by name, each once; empty for all there are.
    pub(crate) fn losses(&self) -> Vec<Loss> {
        let mut losses = self.losses.clone();
        keep_first(&mut losses);
        losses
    }

    /// The devices to run on, each once.
    pub(crate) fn devices(&self) -> Vec<DeviceKind> {
        let mut devices = self.devices.clone();
        keep_first(&mut devices);
        if devices.is_empty() {
            devices = DeviceKind::at_hand(self.dtype);
        }
        devices
    }

    /// Whether no device was asked for.
    pub(crate) fn default_devices(&self) -> bool {
        self.devices.is_empty()
    }

    /// Refuses devices that were asked for and cannot do it.
    pub(crate) fn check_devices(&self) -> Result<()> {
        let mut devices = self.devices.iter();
        devices.try_for_each(|device| device.check(self.dtype))
    }

    /// Whether the reference is among the devices to run on.
    pub(crate) fn asks_for_reference(&self) -> bool {
        self.devices().contains(&DeviceKind::Reference)
    }

    /// Whether the inputs are the embeddings in `examples/data`.
    pub(crate) fn on_digits(&self) -> bool {
        self.student.is_none()
    }

    /// The losses' parameters that were given: the option, the parameter's name, and its value.
    pub(crate) fn parameters(&self) -> Vec<(&'static str, &'static str, ParameterValue)> {
        let number = |given: Option<f64>| given.map(ParameterValue::Number);
        let flag = |given: bool, value| given.then_some(ParameterValue::Flag(value));
        // With --divergence they belong to it.
        let own = |given: Option<f64>| number(given.filter(|_| self.divergence.is_none()));
        let all = [
            ("--normalize", "normalize", flag(self.normalize, true)),
            (
                "--no-normalize",
                "normalize",
                flag(self.no_normalize, false),
            ),
            ("--clamp", "clamp", flag(self.clamp, true)),
            ("--delta", "delta", number(self.delta)),
            (
                "--distance-weight",
                "distance_weight",
                number(self.distance_weight),
            ),
            ("--angle-weight", "angle_weight", number(self.angle_weight)),
            ("--margin", "margin", number(self.margin)),
            ("--alpha", "alpha", own(self.alpha)),
            ("--beta", "beta", own(self.beta)),
            ("--length", "length", self.length.map(ParameterValue::Count)),
            (
                "--enqueue",
                "enqueue",
                self.enqueue.map(ParameterValue::Enqueue),
            ),
            // Before those of student and teacher, which override it.
            ("--temperature", "temperature", number(self.temperature)),
            (
                "--student-temperature",
                "student_temperature",
                number(self.student_temperature),
            ),
            (
                "--teacher-temperature",
                "teacher_temperature",
                number(self.teacher_temperature),
            ),
            (
                "--divergence",
                "divergence",
                self.divergence().map(ParameterValue::Divergence),
            ),
            (
                "--classes",
                "classes",
                self.classes.map(ParameterValue::Count),
            ),
            ("--no-tail", "tail", flag(self.no_tail, false)),
        ];
        let given = all.into_iter().chain(self.towers.parameters());
        given
            .filter_map(|(option, name, value)| Some((option, name, value?)))
            .collect()
    }

    /// The divergence asked for, with its parameter.
    fn divergence(&self) -> Option<Divergence> {
        let (beta, alpha) = (self.beta, self.alpha);
        self.divergence.map(|divergence| match divergence {
            Divergence::Js { beta: usual } => Divergence::Js {
                beta: beta.unwrap_or(usual),
            },
            Divergence::Skew { alpha: usual } => Divergence::Skew {
                alpha: alpha.unwrap_or(usual),
            },
            Divergence::SkewReverse { alpha: usual } => Divergence::SkewReverse {
                alpha: alpha.unwrap_or(usual),
            },
            other => other,
        })
    }

    /// Refuses losses that take a memory bank.
    pub(crate) fn check_banks(&self) -> Result<()> {
        match self.losses.iter().find(|loss| needs_bank(loss)) {
            None => Ok(()),
            Some(loss) => {
                let why = "its keys come from a memory bank, which this command does not have; in the \
                           library it is relata::Bank";
                Err(Failure::refused(loss, why))
            }
        }
    }

    /// Refuses a parameter of another divergence than the one asked for.
    pub(crate) fn check_divergence(&self) -> Result<()> {
        let Some(divergence) = self.divergence else {
            return Ok(());
        };
        let has_beta = matches!(divergence, Divergence::Js { .. });
        let has_alpha = matches!(
            divergence,
            Divergence::Skew { .. } | Divergence::SkewReverse { .. }
        );
        for (option, given, has, expected) in [
            ("--beta", self.beta, has_beta, "js"),
            ("--alpha", self.alpha, has_alpha, "skew or skew-reverse"),
        ] {
            if given.is_some() && !has {
                let name = divergence.name();
                let why = format!("expected --divergence {expected} with it, got {name}");
                return Err(Failure::refused(option, why));
            }
        }
        Ok(())
    }

    /// Whether the losses of rows are to be written.
    pub(crate) fn per_row(&self) -> bool {
        self.per_row.is_some()
    }
}

/// Whether a loss takes a memory bank, for which there is no file here.
pub(crate) fn needs_bank(loss: &Loss) -> bool {
    matches!(loss.spec().family, Family::Sampled(_))
}

fn loss_help() -> String {
    let of_files = |loss: &&Loss| !needs_bank(loss);
    let losses = Loss::all();
    let names: Vec<_> = losses.iter().filter(of_files).map(Loss::name).collect();
    format!(
        "A loss: {}; may be repeated [default: all against a teacher that the shapes allow]",
        names.join(", ")
    )
}

/// Drops what is there already.
fn keep_first<T: PartialEq + Copy>(items: &mut Vec<T>) {
    let mut kept: Vec<T> = Vec::new();
    items.retain(|item| {
        let new = !kept.contains(item);
        kept.push(*item);
        new
    });
}

fn parse_dtype(name: &str) -> std::result::Result<DType, String> {
    let known = DType::ALL.into_iter().find(|dtype| dtype.name() == name);
    known.ok_or_else(|| format!("expected one of {}", DType::ALL.map(DType::name).join(", ")))
}

fn parse_weights(name: &str) -> std::result::Result<WeightPrecision, String> {
    match name {
        "split" => Ok(WeightPrecision::Split),
        "half" => Ok(WeightPrecision::Half),
        _ => Err("expected one of split, half".to_owned()),
    }
}

fn parse_divergence(name: &str) -> std::result::Result<Divergence, String> {
    let mut all = Divergence::ALL.into_iter();
    all.find(|divergence| divergence.name() == name)
        .ok_or_else(|| {
            let names = Divergence::ALL.map(Divergence::name);
            format!("expected one of {}", names.join(", "))
        })
}

fn parse_enqueue(name: &str) -> std::result::Result<Enqueue, String> {
    match name {
        "before" => Ok(Enqueue::Before),
        "after" => Ok(Enqueue::After),
        "none" => Ok(Enqueue::Never),
        _ => Err("expected one of before, after, none".to_owned()),
    }
}
