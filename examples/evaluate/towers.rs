//! Options of the losses whose rows are compared with one another and all trained: clip, siglip and
//! sup-con.

use std::path::PathBuf;

use clap::Args;
use relata::{Family, LabelUse, Loss, ParameterValue, TeacherUse, Towers};

use crate::failure::{Failure, Result};
use crate::options::Options;

/// The files and parameters of these losses.
#[derive(Debug, Args)]
pub(crate) struct TowerOptions {
    /// In clip and siglip, the embeddings of the second tower [N, D], texts for example. Row i belongs
    /// to row i of --student, which holds the first tower's
    #[arg(long, value_name = "F", requires = "student")]
    pub(crate) student_keys: Option<PathBuf>,
    /// In clip, the teacher's second tower [N, D_t]; --teacher is its first. Once for each --teacher, in
    /// the same order
    #[arg(long, value_name = "F", requires_all = ["teachers", "student_keys"])]
    pub(crate) teacher_keys: Vec<PathBuf>,
    /// In sup-con, a label for each row, integers [N]: rows of equal labels belong together. In clip, a
    /// label for each pair: other pairs of the label are left out. With --plot, the order of the rows
    #[arg(long, value_name = "F", requires = "student")]
    pub(crate) labels: Option<PathBuf>,
    /// Weight of the partner as the target in clip [default: 1]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    hard_weight: Option<f64>,
    /// Weight of the teacher's softmax as the target in clip [default: 1]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    soft_weight: Option<f64>,
    /// In clip, give the rows of --student alone a softmax over the other tower, and not both towers'
    #[arg(long)]
    one_way: bool,
    /// In clip, leave out pairs that the teacher finds more alike than the row's own pair
    #[arg(long, requires_all = ["teachers", "teacher_keys"])]
    guided: bool,
    /// How far below the own pair's a cosine of the teacher is left out already [default: 0]
    #[arg(
        long,
        value_name = "X",
        allow_negative_numbers = true,
        requires = "guided"
    )]
    guide_margin: Option<f64>,
    /// Factor of the similarities in siglip [default: 10]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    scale: Option<f64>,
    /// What is added to the scaled similarities in siglip [default: -10]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    bias: Option<f64>,
    /// Write the gradient of --student-keys to this .npy file, as --gradient does with that of
    /// --student
    #[arg(long, value_name = "OUT.npy", requires = "student_keys")]
    pub(crate) gradient_keys: Option<PathBuf>,
}

impl TowerOptions {
    /// As [`Options::parameters`], whether given or not.
    pub(crate) fn parameters(&self) -> [(&'static str, &'static str, Option<ParameterValue>); 7] {
        let number = |given: Option<f64>| given.map(ParameterValue::Number);
        let flag = |given: bool, value| given.then_some(ParameterValue::Flag(value));
        [
            ("--hard-weight", "hard_weight", number(self.hard_weight)),
            ("--soft-weight", "soft_weight", number(self.soft_weight)),
            ("--one-way", "both_ways", flag(self.one_way, false)),
            ("--guided", "guided", flag(self.guided, true)),
            ("--guide-margin", "guide_margin", number(self.guide_margin)),
            ("--scale", "scale", number(self.scale)),
            ("--bias", "bias", number(self.bias)),
        ]
    }
}

/// Refuses losses without the files that they need, and options that the losses have no use for.
pub(crate) fn check(options: &Options) -> Result<()> {
    let losses = options.losses();
    if losses.is_empty() {
        return check_defaults(options);
    }
    losses.iter().try_for_each(|loss| {
        check_files(options, loss)?;
        check_teacher(options, loss)?;
        match loss.spec().family {
            Family::Towers(_) => check_options_of_others(options, loss),
            _ => Ok(()),
        }
    })
}

/// Without a loss by name all are evaluated that are against a teacher.
fn check_defaults(options: &Options) -> Result<()> {
    let towers = &options.towers;
    if towers.student_keys.is_some() {
        return unused("--student-keys", OF_TOWERS, "none");
    }
    if towers.labels.is_some() && options.plot.is_none() {
        return unused("--labels", OF_LABELS, "none");
    }
    if !options.on_digits() && !has_teacher(options) {
        let why =
            "expected --teacher F with it, or one of --loss clip, siglip and sup-con, got neither";
        return Err(Failure::refused("--student", why));
    }
    Ok(())
}

const OF_TOWERS: &str = "--loss clip or siglip";
const OF_LABELS: &str = "--loss sup-con or clip, or --plot";

/// The file of the second tower, and that of labels.
fn check_files(options: &Options, loss: &Loss) -> Result<()> {
    let (towers, spec) = (&options.towers, loss.spec());
    let missing = |files, option| {
        let why = format!("expected {files} with it, got no {option}");
        Err(Failure::refused(loss, why))
    };
    match (compares_two(&spec.family), towers.student_keys.is_some()) {
        (true, false) => {
            let files = "--student and --student-keys, a file of each tower,";
            return missing(files, "--student-keys");
        }
        (false, true) => return unused("--student-keys", OF_TOWERS, loss.name()),
        (true, true) | (false, false) => {}
    }
    match (spec.labels, towers.labels.is_some()) {
        (LabelUse::Required, false) => missing("--student and --labels", "--labels"),
        (LabelUse::Never, true) if options.plot.is_none() => {
            unused("--labels", OF_LABELS, loss.name())
        }
        (LabelUse::Required | LabelUse::Optional | LabelUse::Never, true)
        | (LabelUse::Optional | LabelUse::Never, false) => Ok(()),
    }
}

/// Whether a loss compares the rows of one tower with those of another.
fn compares_two(family: &Family) -> bool {
    match family {
        Family::Towers(Towers::Softmax { .. } | Towers::Sigmoid { .. }) => true,
        Family::Towers(Towers::Labels { .. })
        | Family::Pairwise(_)
        | Family::Triplet(_)
        | Family::Contrastive(_)
        | Family::Logits(_)
        | Family::Sampled(_) => false,
    }
}

/// A teacher where there is to be one, of as many towers as the student.
fn check_teacher(options: &Options, loss: &Loss) -> Result<()> {
    let spec = loss.spec();
    if spec.teacher == TeacherUse::Required && !options.on_digits() && !has_teacher(options) {
        let ids = match spec.family {
            Family::Logits(_) => " or --teacher-ids F",
            _ => "",
        };
        let why = format!("expected --teacher F{ids} with it, got none");
        return Err(Failure::refused(loss, why));
    }
    if spec.teacher == TeacherUse::Never && !options.teachers.is_empty() {
        return unused("--teacher", "a loss against a teacher", loss.name());
    }
    let (first, second) = (options.teachers.len(), options.towers.teacher_keys.len());
    if options.towers.student_keys.is_some() && first != second {
        let why = match second {
            0 => {
                "expected --teacher-keys F with it, the teacher's second tower, got none".to_owned()
            }
            _ => {
                format!("expected as many --teacher-keys, second towers, got {first} and {second}")
            }
        };
        return Err(Failure::refused("--teacher", why));
    }
    Ok(())
}

fn has_teacher(options: &Options) -> bool {
    !options.teachers.is_empty() || options.teacher_ids.is_some()
}

/// Options of other families, none of which these losses take.
fn check_options_of_others(options: &Options, loss: &Loss) -> Result<()> {
    let of_rows = "--loss rrd, info-nce or kd-kl";
    let (groups, prefixes) = (options.groups.is_some(), options.prefixes.is_some());
    for (option, is_given, takes_it) in [
        ("--groups", groups, "a loss of pairs or triples"),
        ("--prefixes", prefixes, "--loss gram, pkt or order"),
        ("--queue", options.queue.is_some(), "--loss rrd or info-nce"),
        ("--row-weights", options.row_weights.is_some(), of_rows),
        ("--per-row", options.per_row(), of_rows),
        (
            "--teacher-ids",
            options.teacher_ids.is_some(),
            "--loss kd-kl",
        ),
    ] {
        if is_given {
            return unused(option, takes_it, loss.name());
        }
    }
    Ok(())
}

/// Refuses an option that the loss `got` has no use for.
fn unused(option: &str, takes_it: &str, got: &str) -> Result<()> {
    let why = format!("expected {takes_it} with it, got {got}");
    Err(Failure::refused(option, why))
}
