//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use relata::{DType, Family, Loss, QueueUse, TeacherUse, Towers};

use crate::check;
use crate::failure::{Failure, Result};
use crate::odd::Odd;

/// Evaluates losses over the rows of the ranks of an MPI job, each of which has a part of them, and says
/// whether loss and gradient are those of one rank that has all rows.
///
/// Without files it runs on the embeddings in examples/data. Files are those of `evaluate`: .npy or
/// .safetensors, of which one with several tensors is FILE.safetensors:TENSOR. Exit code: 0, 1 where
/// a loss differs from that of one rank, or 2 after an error.
#[derive(Debug, Parser)]
#[command(name = "evaluate_ranks", version)]
pub(crate) struct Options {
    /// Student's rows [N, D], for every loss; of clip and siglip both towers, one after the other
    #[arg(long, value_name = "F")]
    pub(crate) student: Option<PathBuf>,
    /// Teacher's rows [N, D_t]
    #[arg(long, value_name = "F", requires = "student")]
    pub(crate) teacher: Option<PathBuf>,
    /// Past teacher keys [K, D], the oldest first, for rrd and info-nce
    #[arg(long, value_name = "F", requires = "student")]
    pub(crate) queue: Option<PathBuf>,
    /// Labels [N] for sup-con
    #[arg(long, value_name = "F", requires = "student")]
    pub(crate) labels: Option<PathBuf>,
    #[arg(long = "loss", value_name = "NAME", value_parser = str::parse::<Loss>, help = loss_help())]
    losses: Vec<Loss>,
    /// The rows of each rank, in order; an even number each for clip and siglip, whose rows are pairs
    /// [default: --rows, as evenly as it goes]
    #[arg(
        long,
        value_name = "N,N,...",
        value_delimiter = ',',
        conflicts_with = "rows"
    )]
    deal: Option<Vec<usize>>,
    /// Take the first N rows
    #[arg(long, value_name = "N", default_value_t = 32)]
    rows: usize,
    /// Round the inputs to f64, f32, f16 or bf16
    #[arg(long, value_name = "TYPE", value_parser = parse_dtype, default_value = "f32")]
    pub(crate) dtype: DType,
    /// How long a rank waits for the others in an exchange
    #[arg(long, value_name = "SECONDS", default_value_t = 60.0)]
    limit: f64,
    /// Have one rank do something else, to see what the others say: loss, width, dtype, leave, panic,
    /// exit, kill or stop
    #[arg(long, value_name = "RANK=WHAT")]
    pub(crate) odd: Option<Odd>,
}

impl Options {
    pub(crate) fn from_command_line() -> Result<Self> {
        Options::try_parse().map_err(Failure::from)
    }

    /// The losses asked for, or all that the data and the deal of the rows allow.
    pub(crate) fn losses(&self, deal: &[usize]) -> Vec<Loss> {
        if !self.losses.is_empty() {
            return self.losses.clone();
        }
        let all = Loss::all().into_iter();
        let in_pairs = deal.iter().all(|rows| rows.is_multiple_of(2));
        // Those of a memory bank are refused.
        all.filter(|loss| !matches!(loss.spec().family, Family::Sampled(_)))
            .filter(|loss| in_pairs || !has_halves(loss))
            .filter(|loss| self.has_data_for(loss))
            .collect()
    }

    fn has_data_for(&self, loss: &Loss) -> bool {
        let spec = loss.spec();
        let has_labels = matches!(spec.family, Family::Towers(Towers::Labels { .. }));
        self.student.is_none()
            || (self.labels.is_some() || !has_labels)
                && (self.queue.is_some() || spec.queue != QueueUse::Required)
                && (self.teacher.is_some() || spec.teacher != TeacherUse::Required)
    }

    /// How many rows each rank has.
    pub(crate) fn deal(&self, world: usize) -> Result<Vec<usize>> {
        let Some(deal) = &self.deal else {
            // In pairs, for two towers.
            let pairs = self.rows / 2;
            let until = |rank: usize| pairs * rank / world;
            let deal = (0..world).map(|rank| 2 * (until(rank + 1) - until(rank)));
            return Ok(deal.collect());
        };
        check(deal.len() == world, "--deal", || {
            format!(
                "expected {world} numbers, one for each rank, got {}",
                deal.len()
            )
        })?;
        Ok(deal.clone())
    }

    pub(crate) fn limit(&self) -> Result<Duration> {
        let limit = Duration::try_from_secs_f64(self.limit);
        let why = || format!("expected seconds, got {}", self.limit);
        limit.map_err(|_| Failure::refused("--limit", why()))
    }
}

/// Whether the rows are two towers, one after the other.
pub(crate) fn has_halves(loss: &Loss) -> bool {
    matches!(
        loss.spec().family,
        Family::Towers(Towers::Softmax { .. } | Towers::Sigmoid { .. })
    )
}

fn loss_help() -> String {
    let names: Vec<&str> = Loss::all().iter().map(Loss::name).collect();
    let names = names.join(", ");
    format!("A loss: {names}; may be repeated [default: all that files and deal allow]")
}

fn parse_dtype(name: &str) -> std::result::Result<DType, String> {
    let known = DType::ALL.into_iter().find(|dtype| dtype.name() == name);
    known.ok_or_else(|| format!("expected one of {}", DType::ALL.map(DType::name).join(", ")))
}
