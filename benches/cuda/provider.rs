//! What PyTorch is asked to do beside us. Where it fails, out of memory or for want of a compiler, that is said and left out,
//! and the rest is timed all the same.

use std::time::Duration;

use crate::Result;
use crate::cases::Case;
use crate::record::PROVIDERS;
use crate::torch::{Files, Torch, Worker};

pub(crate) struct Provider {
    /// In [`PROVIDERS`].
    pub(crate) index: usize,
    pub(crate) version: String,
    worker: Worker,
    /// None after a failure, until the next case.
    torch: Option<Torch>,
    /// The case and the type it takes part in.
    open: Option<[String; 2]>,
}

impl Provider {
    /// Starts it: a Python without torch is the caller's error.
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

    /// What follows is about this case. If it was so already, with our weights in another precision, nothing is compiled again.
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

    /// What follows is about a case that it has no part in.
    pub(crate) fn sit_out(&mut self) {
        self.ask(Torch::close);
        self.open = None;
    }

    /// Seconds of evaluations, none if it cannot.
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
