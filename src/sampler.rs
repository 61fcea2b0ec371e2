//! Batches with several samples of each class.

use std::collections::HashMap;
use std::hash::Hash;

use crate::checks::not_empty;
use crate::error::Result;

/// Draws batches of a few classes with m samples of each, without end.
///
/// Losses that compare rows of a batch learn little from classes with one row. A batch goes through
/// the classes in a random order and takes m random samples of each, or all it has, until the batch
/// is full. Its last class may have fewer. A batch is short only if the classes together do not fill
/// it. No sample is in a batch twice.
///
/// The same seed gives the same batches on every machine. This is the sampler of Park et al.'s code
/// for RKD, which takes m = 5.
///
/// ```
/// # fn main() -> relata::Result<()> {
/// let labels = ["cat", "cat", "cat", "dog", "dog", "emu"];
/// let sampler = relata::MPerClassSampler::new(&labels, 4, 2, 0)?;
/// for batch in sampler.take(100) {
///     assert_eq!(batch.len(), 4);
///     for label in ["cat", "dog", "emu"] {
///         assert!(batch.iter().filter(|&&i| labels[i] == label).count() <= 2);
///     }
/// }
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct MPerClassSampler {
    /// The samples of each class. Both orders change with every batch.
    classes: Vec<Vec<usize>>,
    batch_size: usize,
    per_class: usize,
    random: fastrand::Rng,
}

impl MPerClassSampler {
    /// A sampler over the samples that `labels` has a label for. A batch has `batch_size` of them,
    /// `per_class` of a class.
    ///
    /// # Errors
    /// [`Error::Empty`](crate::Error::Empty) if there are no labels, or a size is 0.
    pub fn new<L: Eq + Hash>(
        labels: &[L],
        batch_size: usize,
        per_class: usize,
        seed: u64,
    ) -> Result<Self> {
        not_empty("labels", labels.len())?;
        not_empty("batch_size", batch_size)?;
        not_empty("per_class", per_class)?;
        // In order of appearance, so that the batches do not depend on the map's order.
        let mut classes: Vec<Vec<usize>> = Vec::new();
        let mut class_of = HashMap::new();
        for (sample, label) in labels.iter().enumerate() {
            let class = *class_of.entry(label).or_insert(classes.len());
            match classes.get_mut(class) {
                Some(samples) => samples.push(sample),
                None => classes.push(vec![sample]),
            }
        }
        Ok(MPerClassSampler {
            classes,
            batch_size,
            per_class,
            random: fastrand::Rng::with_seed(seed),
        })
    }
}

impl Iterator for MPerClassSampler {
    type Item = Vec<usize>;

    /// The indices of the next batch's samples. There always is one.
    fn next(&mut self) -> Option<Vec<usize>> {
        let mut batch = Vec::new();
        for drawn in 0..self.classes.len() {
            let room = self.batch_size - batch.len();
            if room == 0 {
                break;
            }
            let class = self.random.usize(drawn..self.classes.len());
            self.classes.swap(drawn, class);
            let samples = &mut self.classes[drawn];
            let count = self.per_class.min(samples.len());
            for k in 0..count {
                let other = self.random.usize(k..samples.len());
                samples.swap(k, other);
            }
            batch.extend_from_slice(&samples[..count.min(room)]);
        }
        Some(batch)
    }
}
