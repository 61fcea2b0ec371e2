//! The memory bank: a row for each sample of a data set, which losses with sampled negatives take as
//! keys.

use std::collections::HashMap;

use crate::checks::{at_most, not_empty, same, zeroed};
use crate::element::{Element, Real};
use crate::error::{Error, Result};
use crate::loss::Range;
use crate::rows::{Rows, normalize_row};

/// A row of `dim` elements for each sample of a data set: what a network made of the sample when it
/// saw it last, averaged with what it made of it before.
///
/// [`Crd`](crate::Crd) and [`RrdBank`](crate::RrdBank) compare a row of the batch with rows of a bank
/// that [`NegativeSampler`](crate::NegativeSampler) picks. In the papers' code there are two banks:
/// the student's rows meet the teacher's bank, and the teacher's rows the student's.
///
/// The *normalizer* Z belongs to a bank too. It is set once, from the first batch
/// ([`calibrate`](Self::calibrate)), and stays.
///
/// A training step evaluates first and updates then:
///
/// ```
/// use relata::{Bank, Batch, Cpu, Crd, NegativeSampler, Rows};
/// # fn main() -> relata::Result<()> {
/// let labels = [0u32, 0, 1, 1, 2];
/// let sampler = NegativeSampler::of_other_classes(&labels, 2)?;
/// let mut teachers = Bank::<f32>::new(labels.len(), 2, 0)?;
///
/// // Samples 3 and 1 of the data set.
/// let samples = [3u32, 1];
/// let student = [0.0f32, 1.0, 1.0, 1.0];
/// let teacher = [0.6f32, 0.8, 1.0, 0.0];
/// let [student, teacher] = [Rows::new(&student, [2, 2])?, Rows::new(&teacher, [2, 2])?];
/// let indices = sampler.sample(&samples, 0)?; // the number of the step is its seed
/// let crd = Crd::default();
/// teachers.calibrate(student, &indices, crd.temperature)?;
/// let batch = Batch::of_student(student).with_bank(&teachers, &indices);
/// let evaluation = crd.problem(batch.shapes())?.evaluate(&Cpu, batch)?;
/// assert!(evaluation.loss > 0.0);
/// teachers.update(&samples, teacher, Bank::<f32>::MOMENTUM)?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Bank<R> {
    /// `[n_data, dim]`
    rows: Vec<R>,
    dim: usize,
    normalizer: Option<f64>,
}

impl<R: Real> Bank<R> {
    /// How much of an old row stays, in the papers' code.
    pub const MOMENTUM: f64 = 0.5;

    /// A bank of `samples` rows of noise: independent numbers between ±√(3/dim), so that the mean
    /// square of a row's length is 1. The same seed gives the same rows on every machine.
    ///
    /// # Errors
    /// [`Error::Empty`] if either is 0. [`Error::TooLarge`] for more samples than 2³² − 1.
    /// [`Error::OutOfMemory`] if there is no room for the rows.
    pub fn new(samples: usize, dim: usize, seed: u64) -> Result<Self> {
        check_shape(samples, dim)?;
        let mut rows: Vec<R> = zeroed("bank", samples.saturating_mul(dim))?;
        let mut random = fastrand::Rng::with_seed(seed);
        let most = (3.0 / dim as f64).sqrt();
        for x in &mut rows {
            *x = R::from_f64(most * (2.0 * random.f64() - 1.0));
        }
        Ok(Bank {
            rows,
            dim,
            normalizer: None,
        })
    }

    /// A bank of these rows, as they are, without a normalizer: of a checkpoint, or of a teacher
    /// that has seen all samples. With [`with_normalizer`](Self::with_normalizer) it is the bank
    /// whose [`rows`](Self::rows) and [`normalizer`](Self::normalizer) they were, bit for bit.
    ///
    /// # Errors
    /// As [`new`](Self::new), and [`Error::NotFinite`] for a NaN or an infinity.
    pub fn from_rows(rows: Rows<'_, R>) -> Result<Self> {
        check_shape(rows.len(), rows.dim())?;
        rows.check_finite("bank")?;
        let mut copy = zeroed("bank", rows.as_slice().len())?;
        copy.copy_from_slice(rows.as_slice());
        Ok(Bank {
            rows: copy,
            dim: rows.dim(),
            normalizer: None,
        })
    }

    /// Sets the normalizer Z, or takes it away.
    ///
    /// # Errors
    /// [`Error::Parameter`] unless it is a finite number above 0.
    pub fn with_normalizer(self, normalizer: Option<f64>) -> Result<Self> {
        if let Some(z) = normalizer {
            Range::Positive.check("normalizer", z)?;
        }
        Ok(Bank { normalizer, ..self })
    }

    /// Z, once it is set.
    #[must_use]
    pub fn normalizer(&self) -> Option<f64> {
        self.normalizer
    }

    /// The number of samples, `n_data`.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len() / self.dim
    }

    /// Whether there are no samples: never.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The number of elements in a row, D.
    #[must_use]
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// All rows, `[n_data, D]`: with the [`normalizer`](Self::normalizer) all that a checkpoint has
    /// to hold.
    ///
    /// ```
    /// # fn main() -> relata::Result<()> {
    /// use relata::{Bank, Rows};
    /// let bank = Bank::<f32>::new(3, 2, 7)?.with_normalizer(Some(6.5))?;
    /// // Save these two.
    /// let (rows, normalizer) = (bank.rows().as_slice().to_vec(), bank.normalizer());
    /// let restored = Bank::from_rows(Rows::new(&rows, [3, 2])?)?.with_normalizer(normalizer)?;
    /// assert_eq!(restored, bank);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn rows(&self) -> Rows<'_, R> {
        Rows::of(&self.rows, self.dim)
    }

    /// Moves the rows of these `samples` towards the batch's `rows`: `m · old + (1 − m) · new`, with
    /// new at length 1, and the sum at length 1 again. A sum of 0 stays 0.
    ///
    /// Where a sample is twice in the batch, its last row counts and the others leave no trace: each
    /// is averaged with what was there before the batch. This is what the papers' code does on a
    /// CPU. On a GPU that code leaves open which row wins.
    ///
    /// # Errors
    /// [`Error::Dimension`] unless there is a sample for each row, and the rows have D elements.
    /// [`Error::TooLarge`] for a sample that the bank does not have. [`Error::NotFinite`] for a row
    /// with a NaN or an infinity. [`Error::Parameter`] for a momentum that is not from 0 to 1. No
    /// row has changed then.
    pub fn update<T: Element<Real = R>>(
        &mut self,
        samples: &[u32],
        rows: Rows<'_, T>,
        momentum: f64,
    ) -> Result<()> {
        same("samples", rows.len(), samples.len())?;
        same("bank_dim", self.dim, rows.dim())?;
        Range::Fraction.check("momentum", momentum)?;
        check_indices("samples", self.len(), samples)?;
        rows.check_finite("rows")?;
        for (at, (&sample, is_last)) in samples.iter().zip(last_of_each(samples)).enumerate() {
            if !is_last {
                continue;
            }
            let new = unit_row(rows.row(at));
            let old = &mut self.rows[sample as usize * self.dim..][..self.dim];
            let mut sum: Vec<f64> = old
                .iter()
                .zip(&new)
                .map(|(old, new)| momentum * old.to_f64() + (1.0 - momentum) * new)
                .collect();
            normalize_row(&mut sum);
            for (old, sum) in old.iter_mut().zip(sum) {
                *old = R::from_f64(sum);
            }
        }
        Ok(())
    }

    /// Sets the normalizer from a batch, unless it is set already, and returns it: Z is `n_data`
    /// times the mean of exp(⟨x̂, key⟩/τ) over all rows x of the batch and their keys. `indices`,
    /// `[N, K + 1]`, are those of the keys of each row.
    ///
    /// # Errors
    /// [`Error::Dimension`] if rows do not have D elements. [`Error::Empty`] without rows or keys.
    /// [`Error::Length`] unless each row has as many keys. [`Error::TooLarge`] for an index that the
    /// bank does not have. [`Error::NotFinite`] for a row with a NaN or an infinity.
    /// [`Error::Parameter`] for a temperature out of range, or if Z is beyond the range of f64.
    pub fn calibrate<T: Element<Real = R>>(
        &mut self,
        rows: Rows<'_, T>,
        indices: &[u32],
        temperature: f64,
    ) -> Result<f64> {
        not_empty("rows", rows.len())?;
        same("bank_dim", self.dim, rows.dim())?;
        let keys = indices.len() / rows.len();
        not_empty("indices", keys)?;
        check_length(rows.len(), keys, indices)?;
        check_indices("indices", self.len(), indices)?;
        Range::Temperature.check("temperature", temperature)?;
        rows.check_finite("rows")?;
        if let Some(z) = self.normalizer {
            return Ok(z);
        }
        let mut sum = 0.0;
        for (row, of_row) in rows.iter().zip(indices.chunks_exact(keys)) {
            let x = unit_row(row);
            for &index in of_row {
                let key = self.rows().row(index as usize);
                let product: f64 = x.iter().zip(key).map(|(x, k)| x * k.to_f64()).sum();
                sum += (product / temperature).exp();
            }
        }
        let z = sum / indices.len() as f64 * self.len() as f64;
        Range::Positive.check("normalizer", z)?;
        self.normalizer = Some(z);
        Ok(z)
    }
}

/// The keys of an evaluation: which rows of which banks.
#[derive(Clone, Copy, Debug)]
pub struct SampledKeys<'a, R> {
    /// What the student's rows are compared with.
    pub bank: &'a Bank<R>,
    /// What the teacher's rows are compared with, if it is not the same bank.
    pub teacher_bank: Option<&'a Bank<R>>,
    /// `[N, K + 1]`: the keys of each row, its own first.
    pub indices: &'a [u32],
}

impl<'a, R: Real> SampledKeys<'a, R> {
    /// The banks of the student's and of the teacher's rows.
    pub(crate) fn banks(&self) -> [&'a Bank<R>; 2] {
        [self.bank, self.teacher_bank.unwrap_or(self.bank)]
    }

    /// `[n_data, K + 1]` for N rows.
    pub(crate) fn shape(&self, rows: usize) -> [usize; 2] {
        [self.bank.len(), self.indices.len() / rows.max(1)]
    }

    /// Refuses keys that are not those of `rows` rows of `dim` elements. Of `count` banks the
    /// normalizer is needed.
    pub(crate) fn check(&self, rows: usize, dim: usize, count: usize) -> Result<()> {
        let [samples, keys] = self.shape(rows);
        same("bank_dim", dim, self.bank.dim())?;
        if let Some(bank) = self.teacher_bank {
            same("teacher_bank samples", samples, bank.len())?;
            same("teacher_bank_dim", dim, bank.dim())?;
        }
        check_length(rows, keys, self.indices)?;
        check_indices("indices", samples, self.indices)?;
        for bank in self.banks().iter().take(count) {
            if bank.normalizer.is_none() {
                return Err(Error::Missing {
                    argument: "normalizer",
                    expected: "a bank with its normalizer: see Bank::calibrate",
                });
            }
        }
        Ok(())
    }
}

fn check_shape(samples: usize, dim: usize) -> Result<()> {
    not_empty("bank samples", samples)?;
    not_empty("bank_dim", dim)?;
    at_most("bank samples", u32::MAX as usize, samples)
}

fn check_length(rows: usize, keys: usize, indices: &[u32]) -> Result<()> {
    if indices.len() == rows.saturating_mul(keys) {
        return Ok(());
    }
    Err(Error::Length {
        argument: "indices",
        // The next number that is as many for each row.
        expected: rows.saturating_mul(keys + 1),
        got: indices.len(),
    })
}

/// Refuses an index that is not one of a sample.
pub(crate) fn check_indices(argument: &'static str, samples: usize, indices: &[u32]) -> Result<()> {
    let most = samples - 1;
    match indices.iter().find(|&&index| index as usize > most) {
        None => Ok(()),
        Some(&index) => at_most(argument, most, index as usize),
    }
}

/// Of each row of a batch, whether it is the last one of its sample.
pub(crate) fn last_of_each(samples: &[u32]) -> Vec<bool> {
    let last: HashMap<u32, usize> = samples.iter().copied().zip(0..).collect();
    let rows = samples.iter().enumerate();
    rows.map(|(row, sample)| last[sample] == row).collect()
}

/// A row at length 1, or zeros.
fn unit_row<T: Element>(row: &[T]) -> Vec<f64> {
    let mut unit: Vec<f64> = row.iter().map(|x| x.to_f64()).collect();
    normalize_row(&mut unit);
    unit
}
