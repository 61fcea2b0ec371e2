//! PyTorch's side: baseline_pytorch.py as a worker behind two pipes.

use std::fs;
use std::io::{BufRead, BufReader, Lines, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use relata::{Divergence, Family, Loss, Pairwise, ParameterValue, Penalty};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::Result;
use crate::cases::{Case, Inputs};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/baseline_pytorch.py");

/// How the worker is started.
#[derive(Clone, Debug)]
pub(crate) struct Worker {
    /// The Python that has torch.
    pub(crate) python: PathBuf,
    pub(crate) script: PathBuf,
    pub(crate) arguments: Vec<String>,
}

impl Worker {
    pub(crate) fn new(python: Option<&Path>, arguments: Vec<String>) -> Self {
        Worker {
            python: python.unwrap_or(Path::new("python3")).to_owned(),
            script: SCRIPT.into(),
            arguments,
        }
    }
}

/// The numbers of a case as files: both sides get the same. They are gone when this is.
pub(crate) struct Files {
    folder: TempDir,
    student: Value,
    teacher: Value,
    labels: Value,
    queue: Value,
}

impl Files {
    pub(crate) fn new(case: &Case, inputs: &Inputs<f32>) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let write = |name: &str, data: &[f32], dim: usize| -> Result<Value> {
            let path = folder.path().join(name);
            fs::write(&path, bytemuck::cast_slice(data))?;
            Ok(json!({ "path": path, "shape": [data.len() / dim, dim] }))
        };
        Ok(Files {
            student: write("student", &inputs.student, case.student_dim)?,
            teacher: match case.teacher_dim {
                0 => Value::Null,
                dim => write("teacher", &inputs.teacher, dim)?,
            },
            labels: json!(inputs.labels),
            queue: match &inputs.queue {
                Some(queue) => write("queue", queue.keys(), queue.dim())?,
                None => Value::Null,
            },
            folder,
        })
    }

    fn gradient(&self) -> PathBuf {
        self.folder.path().join("gradient")
    }
}

/// What PyTorch got.
pub(crate) struct Evaluated {
    pub(crate) loss: f64,
    pub(crate) gradient: Vec<f32>,
}

/// The worker. It ends when this is dropped.
pub(crate) struct Torch {
    process: Child,
    /// None once it is to end.
    requests: Option<ChildStdin>,
    replies: Lines<BufReader<ChildStdout>>,
    pub(crate) version: String,
}

impl Torch {
    /// With variables of its own in the environment.
    pub(crate) fn spawn(worker: &Worker, environment: &[(&str, &str)]) -> Result<Self> {
        let python = &worker.python;
        let mut process = Command::new(python)
            .arg(&worker.script)
            .args(&worker.arguments)
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("--python {}: {error}", python.display()))?;
        let requests = process.stdin.take();
        let replies = process.stdout.take().ok_or("no stdout")?;
        let mut torch = Torch {
            process,
            requests,
            replies: BufReader::new(replies).lines(),
            version: String::new(),
        };
        let hello = torch.reply()?;
        torch.version = hello["torch"].as_str().unwrap_or_default().to_owned();
        Ok(torch)
    }

    /// What follows is about this case, as f32.
    pub(crate) fn open(&mut self, case: &Case, files: &Files) -> Result<()> {
        self.open_copies(case, files, "f32", 1)
    }

    /// The same in another type, and with so many copies of the inputs, taken in turns.
    pub(crate) fn open_copies(
        &mut self,
        case: &Case,
        files: &Files,
        dtype: &str,
        copies: usize,
    ) -> Result<()> {
        self.ask(&json!({
            "do": "open",
            "loss": case.loss.name(),
            "parameters": parameters(&case.loss),
            "groups": case.groups,
            "student": files.student,
            "teacher": files.teacher,
            "labels": files.labels,
            "queue": files.queue,
            "dtype": dtype,
            "copies": copies,
        }))?;
        Ok(())
    }

    /// Forgets the case, for the memory it takes.
    #[allow(dead_code, reason = "for a GPU, which others want memory of")]
    pub(crate) fn close(&mut self) -> Result<()> {
        self.ask(&json!({ "do": "close" }))?;
        Ok(())
    }

    pub(crate) fn check(&mut self, files: &Files) -> Result<Evaluated> {
        let path = files.gradient();
        let reply = self.ask(&json!({ "do": "check", "gradient": path }))?;
        Ok(Evaluated {
            loss: number(&reply["loss"])?,
            gradient: bytemuck::pod_collect_to_vec(&fs::read(path)?),
        })
    }

    /// As [`Ours::turn`].
    pub(crate) fn turn(&mut self, budget: Duration) -> Result<Vec<f64>> {
        let reply = self.ask(&json!({ "do": "time", "budget": budget.as_secs_f64() }))?;
        numbers(&reply["seconds"])
    }

    /// Seconds of each product `[rows, inner] · [inner, columns]`, and of the exponentials of as
    /// many numbers as it has results.
    #[allow(dead_code, reason = "for a CPU: a GPU's floor is known from its clock")]
    pub(crate) fn units(&mut self, shape: [usize; 3], budget: Duration) -> Result<[Vec<f64>; 2]> {
        let budget = budget.as_secs_f64();
        let reply = self.ask(&json!({ "do": "units", "shape": shape, "budget": budget }))?;
        Ok([
            numbers(&reply["products"])?,
            numbers(&reply["exponentials"])?,
        ])
    }

    /// What an evaluation adds to the memory of the worker: of use in a fresh one.
    pub(crate) fn peak(&mut self) -> Result<u64> {
        let reply = self.ask(&json!({ "do": "peak" }))?;
        reply["bytes"]
            .as_u64()
            .ok_or_else(|| format!("expected bytes, got {reply}").into())
    }

    fn ask(&mut self, request: &Value) -> Result<Value> {
        let mut requests = self.requests.as_ref().ok_or("no stdin")?;
        writeln!(requests, "{request}")?;
        self.reply()
    }

    fn reply(&mut self) -> Result<Value> {
        let line = self.replies.next();
        let line = line.ok_or("PyTorch's process ended; what it said is above")??;
        Ok(serde_json::from_str(&line)?)
    }
}

impl Drop for Torch {
    fn drop(&mut self) {
        self.requests = None;
        // It has nothing left to read, so it ends; how does not matter any more.
        let _ = self.process.wait();
    }
}

fn numbers(values: &Value) -> Result<Vec<f64>> {
    let values = values.as_array().ok_or("no seconds")?;
    values.iter().map(number).collect()
}

fn number(value: &Value) -> Result<f64> {
    value
        .as_f64()
        .ok_or_else(|| format!("expected a number, got {value}").into())
}

/// The loss's parameters by name. PyTorch's side takes the queue as it is.
fn parameters(loss: &Loss) -> Value {
    let all = loss.parameters().into_iter();
    let known = all.flat_map(|(name, value)| match value {
        ParameterValue::Number(number) => vec![(name.to_owned(), json!(number))],
        ParameterValue::Flag(flag) => vec![(name.to_owned(), json!(flag))],
        ParameterValue::Count(count) => vec![(name.to_owned(), json!(count))],
        ParameterValue::Enqueue(_) => Vec::new(),
        ParameterValue::Divergence(divergence) => {
            let own = match divergence {
                Divergence::Forward | Divergence::Reverse => None,
                Divergence::Js { beta } => Some(("beta".to_owned(), json!(beta))),
                Divergence::Skew { alpha } | Divergence::SkewReverse { alpha } => {
                    Some(("alpha".to_owned(), json!(alpha)))
                }
            };
            let named = (name.to_owned(), json!(divergence.name()));
            [named].into_iter().chain(own).collect()
        }
    });
    Value::Object(known.collect())
}

/// What PyTorch keeps for the backward pass: of the angle loss 2N²D + 2N³ floats, of the order of
/// pairs about five for every two pairs. Other losses keep little.
pub(crate) fn kept_bytes(case: &Case) -> f64 {
    let groups = case.groups as f64;
    let (n, d) = (case.rows as f64 / groups, case.student_dim as f64);
    let floats = match case.loss.spec().family {
        Family::Pairwise(Pairwise {
            penalty: Penalty::Order { .. },
            ..
        }) => 5.0 * (n * (n - 1.0) / 2.0).powi(2),
        _ if case.triplets() > 0 => 2.0 * n * n * d + 2.0 * n * n * n,
        _ => 0.0,
    };
    4.0 * groups * floats
}
