//! The named terms of an evaluation.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, Error, Result, Storage, Tensor};

/// The named terms that an evaluation computes with the loss, for logging: RRD's `kl`, RKD's
/// `distance` and `angle`, which are not weighted. Other losses have none. See [`relata::Terms`].
///
/// No gradient goes through them, and they keep no graph alive.
///
/// They cost nothing until they are read. On a GPU they lie in the loss's memory, and each read
/// copies a few bytes to the host, for which it waits for the stream. Read them every few steps.
#[derive(Clone, Debug)]
pub struct Terms {
    names: &'static [&'static str],
    /// The loss. Its storage holds the terms after its one element.
    loss: Tensor,
}

impl Terms {
    /// The terms of these names behind `loss`.
    pub(crate) fn behind(loss: &Tensor, names: &'static [&'static str]) -> Self {
        Terms {
            names,
            loss: loss.detach(),
        }
    }

    /// The term of this name, if the loss has one.
    ///
    /// # Errors
    /// On a GPU, what went wrong there since the launch.
    pub fn get(&self, name: &str) -> Result<Option<f64>> {
        let terms = self.to_vec()?;
        let found = terms.iter().find(|&&(known, _)| known == name);
        Ok(found.map(|&(_, value)| value))
    }

    /// All terms, in the order of [`Spec::terms`](relata::Spec::terms).
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn to_vec(&self) -> Result<Vec<(&'static str, f64)>> {
        if self.names.is_empty() {
            return Ok(Vec::new());
        }
        let (storage, _) = self.loss.storage_and_layout();
        let elements = match &*storage {
            Storage::Cpu(storage) => storage.to_cpu_storage(),
            Storage::Cuda(storage) => storage.to_cpu_storage(),
            Storage::Metal(storage) => storage.to_cpu_storage(),
        }?;
        let values: Vec<f64> = match elements {
            CpuStorage::F64(elements) => elements,
            CpuStorage::F32(elements) => elements.into_iter().map(f64::from).collect(),
            _ => return Err(Error::msg("relata-candle: expected a loss of f64 or f32")),
        };
        let terms = values.into_iter().skip(1); // the loss comes first
        Ok(self.names.iter().copied().zip(terms).collect())
    }
}
