//! The results in words and numbers: a table, and every run on a line.

use comfy_table::{CellAlignment, LineStyle, Table, TableStyle, presets};

use crate::options::Part;
use crate::statistics::Mean;
use crate::study::{Run, Scores, Study};

const TERMINAL: TableStyle = presets::UTF8_HORIZONTAL_ONLY.row_separator(LineStyle::none());

/// The table for a terminal.
pub(crate) fn terminal(study: &Study) -> String {
    let mut table = table(study);
    table.load_style(TERMINAL);
    format!("{table}\n{}", legend(study))
}

/// The same in Markdown.
pub(crate) fn markdown(study: &Study) -> String {
    let mut table = table(study);
    table.load_style(presets::ASCII_MARKDOWN);
    format!("{table}\n\n{}\n", legend(study))
}

fn table(study: &Study) -> Table {
    let mut table = Table::new();
    table.set_header([
        "",
        "recall@1",
        "against none",
        "recall@4",
        "accuracy",
        "against none",
        "time",
        "in losses",
    ]);
    let blank = String::new;
    let mut add = |name: String, scores: &[Scores], more: [String; 4]| {
        let [versus_recall, versus_accuracy, time, share] = more;
        let recall = |at: usize| Mean::of(scores.iter().map(|s| s.recall[at])).to_string();
        let accuracy: Option<Vec<f64>> = scores.iter().map(|s| s.accuracy).collect();
        let accuracy = accuracy.map_or_else(blank, |values| Mean::of(values).to_string());
        table.add_row([
            name,
            recall(0),
            versus_recall,
            recall(1),
            accuracy,
            versus_accuracy,
            time,
            share,
        ]);
    };
    let nothing = || [blank(), blank(), blank(), blank()];
    add("pixels".to_owned(), &[study.pixels], nothing());
    add("teacher".to_owned(), &study.teachers, nothing());
    for arm in &study.arms {
        let scores: Vec<Scores> = arm.runs.iter().map(|run| run.scores).collect();
        let [mut recall, mut accuracy] = [blank(), blank()];
        if arm.method != study.arms[0].method {
            recall = versus(study, &arm.runs, |s| Some(s.recall[0]));
            accuracy = versus(study, &arm.runs, |s| s.accuracy);
        }
        let total = |of: fn(&Run) -> f64| arm.runs.iter().map(of).sum::<f64>();
        let [time, inside] = [total(|run| run.seconds), total(|run| run.seconds_in_losses)];
        let name = match arm.method == study.arms[0].method {
            true => "student, none".to_owned(),
            false => format!("student, {}", arm.method),
        };
        let time_each = format!("{:.1} s", time / arm.runs.len() as f64);
        let share = match arm.method == study.arms[0].method {
            true => blank(),
            false => format!("{:.0} %", 100.0 * inside / time),
        };
        add(name, &scores, [recall, accuracy, time_each, share]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// The mean difference to the first arm, seed by seed; with a star where it is clear.
fn versus(study: &Study, runs: &[Run], of: fn(&Scores) -> Option<f64>) -> String {
    let pairs = runs.iter().zip(&study.arms[0].runs);
    let differences = pairs.filter_map(|(run, none)| Some(of(&run.scores)? - of(&none.scores)?));
    let difference = Mean::of(differences);
    let star = if difference.is_clear() { " *" } else { "  " };
    format!("{difference:+}{star}")
}

fn legend(study: &Study) -> String {
    let characters = match study.part {
        Part::Unseen => "characters not seen in training",
        Part::Validation => "the validation characters, which are not seen in training",
    };
    let [teacher, student] = study.sizes;
    let quick = if study.quick {
        " A quick run: the numbers mean nothing."
    } else {
        ""
    };
    format!(
        "In percent, mean ± standard error over {} seeds.\n\
         Recall: on {characters}, in typefaces not seen either.\n\
         Accuracy: on the characters that were, in the same typefaces.\n\
         Against none: the mean of the differences seed by seed; * where it is more than two standard\n\
         errors from 0.\n\
         In losses: the share of the time in the distillation losses and their gradients.\n\
         Teachers have {teacher} parameters, students {student}.{quick}",
        study.seeds.len(),
    )
}

/// Every network on a line.
pub(crate) fn csv(study: &Study) -> String {
    let mut lines =
        vec!["method,seed,recall@1,recall@4,accuracy,seconds,seconds_in_losses".to_owned()];
    let mut add = |name: &str, seed: &str, scores: &Scores, seconds: Option<[f64; 2]>| {
        let [one, four] = scores.recall;
        let accuracy = scores
            .accuracy
            .map_or_else(String::new, |a| format!("{a:.6}"));
        let seconds = seconds.map_or_else(
            || ",".to_owned(),
            |[all, part]| format!("{all:.3},{part:.3}"),
        );
        lines.push(format!(
            "{name},{seed},{one:.6},{four:.6},{accuracy},{seconds}"
        ));
    };
    add("pixels", "", &study.pixels, None);
    for (seed, scores) in study.seeds.iter().zip(&study.teachers) {
        add("teacher", &seed.to_string(), scores, None);
    }
    for arm in &study.arms {
        for (seed, run) in study.seeds.iter().zip(&arm.runs) {
            let seconds = [run.seconds, run.seconds_in_losses];
            add(
                &arm.method.to_string(),
                &seed.to_string(),
                &run.scores,
                Some(seconds),
            );
        }
    }
    lines.join("\n") + "\n"
}
