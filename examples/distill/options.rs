//! The command line.

use std::path::PathBuf;

use candle_core::Device;
use clap::{Parser, ValueEnum};

use crate::failure::{Failure, Result};
use crate::method::Method;
use crate::train::Plan;

/// Trains a teacher on characters in many typefaces, then small students with and without
/// distillation, and compares how well each finds characters again that none of them was trained
/// on.
///
/// Prints a table and writes it with the plots into a folder: results.md, runs.csv, recall.svg,
/// distances.svg.
#[derive(Debug, Parser)]
#[command(name = "distill", version, after_help = AFTER_HELP)]
pub(crate) struct Options {
    /// Seeds: each gives another teacher, other initial weights and other batches
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=100))]
    seeds: u64,
    /// The first seed; the others follow it
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(..=1 << 32))]
    first_seed: u64,
    /// A sum of losses to distil with, each with its weight if another than the default is wanted,
    /// such as rkd-distance=25+rkd-angle=50; or none. Losses: rkd-distance, rkd-angle, kd, rrd. May
    /// be repeated; none is always among them [default: none, every loss alone, both of RKD,
    /// kd+rrd]
    #[arg(long = "method", value_name = "LOSSES", value_parser = str::parse::<Method>)]
    methods: Vec<Method>,
    /// The characters to measure recall on. Choose weights on validation, never on unseen
    #[arg(long, value_enum, value_name = "PART", default_value_t = Part::Unseen)]
    pub(crate) recall_on: Part,
    /// Steps to train a student for [default: 1500]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    steps: Option<u32>,
    /// cpu, or cuda where built with that feature
    #[arg(long, value_enum, value_name = "NAME", default_value_t = Kind::Cpu)]
    device: Kind,
    /// Tiny networks, two seeds and a few steps: shows that all of it runs, and nothing else
    #[arg(long, conflicts_with_all = ["seeds", "steps"])]
    pub(crate) quick: bool,
    /// The folder for what is written; it is made if need be
    #[arg(long, value_name = "DIR", default_value = "target/distill")]
    pub(crate) out: PathBuf,
}

const AFTER_HELP: &str = "\
The same seeds give the same numbers on the same machine, times aside.

Exit code: 0, or 2 where an argument is refused or something fails, which one line on standard error explains.";

/// Characters that are not trained on.
#[derive(Debug, Clone, Copy, PartialEq, ValueEnum)]
pub(crate) enum Part {
    /// Those for results
    Unseen,
    /// Those to choose weights by
    Validation,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Kind {
    Cpu,
    Cuda,
}

impl Options {
    pub(crate) fn from_command_line() -> Result<Self> {
        Options::try_parse().map_err(Failure::from)
    }

    pub(crate) fn device(&self) -> Result<Device> {
        match self.device {
            Kind::Cpu => Ok(Device::Cpu),
            Kind::Cuda => Device::new_cuda(0).map_err(|e| {
                let why = e.to_string();
                let first = why.lines().next().unwrap_or("no reason given");
                Failure::refused("--device cuda", first)
            }),
        }
    }

    pub(crate) fn seeds(&self) -> Vec<u64> {
        let count = if self.quick { 2 } else { self.seeds };
        (self.first_seed..self.first_seed + count).collect()
    }

    /// What to compare, each once; without distillation comes first.
    pub(crate) fn methods(&self) -> Vec<Method> {
        let mut asked = vec![Method::default()];
        match self.methods.is_empty() {
            true => asked.extend(Method::COMPARED),
            false => asked.extend(&self.methods),
        }
        let mut methods = Vec::new();
        for method in asked {
            if !methods.contains(&method) {
                methods.push(method);
            }
        }
        methods
    }

    pub(crate) fn plan(&self) -> Plan {
        let mut plan = if self.quick { Plan::QUICK } else { Plan::FULL };
        if let Some(steps) = self.steps {
            plan.steps = steps as usize;
        }
        plan
    }
}
