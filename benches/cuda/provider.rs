//! Evaluations by PyTorch, to compare with. If PyTorch fails, for example because memory or a
//! compiler is missing, this prints why and the rest is timed without it.

use std::time::Duration;

use crate::Result;
use crate::cases::Case;
use crate::record::PROVIDERS;
use crate::torch::{Files, Torch, Worker};

pub(crate) struct Provider {
    /// The index in [`PROVIDERS`].
    pub(crate) index: usize,
    pub(crate) version: String,
    worker: Worker,
    /// None after a failure, until the next case.
    torch: Option<Torch>,
    /// The case and the type that it evaluates, or None if it has no part in the case.
    open: Option<[String; 2]>,
}

impl Provider {
    /// Starts a Python. One without torch is an error.
    pub(crate) fn new(index: usize, worker: Worker) -> Result<Self> {
        let torch = Torch::spawn(&worker, &[])?;
        Ok(Provider {
            index,
            version: torch.version.clone(),
            worker,
            torch: Some(torch),
            open: None,
        })
    }

    pub(crate) fn name(&self) -> &'static str {
        PROVIDERS[self.index]
    }

    /// Selects a case. If it is already selected, for another precision of our weights, PyTorch
    /// does not compile it again.
    pub(crate) fn open(&mut self, case: &Case, files: &Files, dtype: &str, copies: usize) {
        let asked = Some([case.name.clone(), dtype.to_owned()]);
        if self.open == asked && self.torch.is_some() {
            return;
        }
        self.open = asked;
        if self.torch.is_none() {
            self.torch = self.tried(Torch::spawn(&self.worker, &[]));
        }
        self.ask(|torch| torch.open_copies(case, files, dtype, copies));
    }

    /// Selects no case: PyTorch has no part in the next one.
    pub(crate) fn sit_out(&mut self) {
        self.ask(Torch::close);
        self.open = None;
    }

    /// The seconds per evaluation, in a turn of `seconds`. Empty after a failure.
    pub(crate) fn turn(&mut self, seconds: f64) -> Vec<f64> {
        self.ask(|torch| torch.turn(Duration::from_secs_f64(seconds)))
            .unwrap_or_default()
    }

    pub(crate) fn peak(&mut self) -> Option<u64> {
        self.ask(Torch::peak)
    }

    fn ask<R>(&mut self, request: impl FnOnce(&mut Torch) -> Result<R>) -> Option<R> {
        let answer = match &mut self.torch {
            Some(torch) if self.open.is_some() => request(torch),
            _ => return None,
        };
        let answer = self.tried(answer);
        if answer.is_none() {
            self.torch = None;
        }
        answer
    }

    fn tried<R>(&self, answer: Result<R>) -> Option<R> {
        answer
            .inspect_err(|why| eprintln!("cuda: PyTorch, {}, is left out here: {why}", self.name()))
            .ok()
    }
}
