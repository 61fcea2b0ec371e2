//! Which rows of a bank are a row's keys.

use std::collections::HashMap;
use std::hash::Hash;

use crate::bank::check_indices;
use crate::checks::{at_most, not_empty, zeroed};
use crate::error::Result;

/// Draws the keys of a batch from a [`Bank`](crate::Bank): of each row its own sample, and K others.
///
/// What it draws depends on the samples of the batch and on a seed, and on nothing that was drawn
/// before. So a training run goes on from a checkpoint as if nothing had happened, if the number of
/// the step makes the seed. The same seed draws the same on every machine.
///
/// The negatives of a row are different samples. Only where there are fewer than K to choose from, they
/// are drawn one by one, and some come twice. This is what the data set class of CRD's code does.
///
/// ```
/// # fn main() -> relata::Result<()> {
/// let labels = ["cat", "cat", "dog", "emu", "dog"];
/// let sampler = relata::NegativeSampler::of_other_classes(&labels, 2)?;
/// let indices = sampler.sample(&[4, 1], 0)?;
/// assert_eq!([indices[0], indices[3]], [4, 1]);
/// for negative in &indices[1..3] {
///     assert_ne!(labels[*negative as usize], "dog");
/// }
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct NegativeSampler {
    /// All samples, class by class.
    by_class: Vec<u32>,
    /// Where the class of each sample begins and ends there.
    class_of: Vec<[u32; 2]>,
    negatives: usize,
    relaxed: bool,
}

impl NegativeSampler {
    /// Draws K = `negatives` samples whose label is another than the row's own.
    ///
    /// # Errors
    /// [`Error::Empty`](crate::Error::Empty) without labels or negatives, or if all labels are the
    /// same. [`Error::TooLarge`](crate::Error::TooLarge) for more than 2³² − 1 samples, or more than
    /// 2³² − 2 negatives.
    pub fn of_other_classes<L: Eq + Hash>(labels: &[L], negatives: usize) -> Result<Self> {
        not_empty("labels", labels.len())?;
        let mut known = HashMap::new();
        // In order of appearance, so that nothing depends on the map's order.
        let mut classes: Vec<Vec<u32>> = Vec::new();
        at_most("samples", u32::MAX as usize, labels.len())?;
        for (sample, label) in (0u32..).zip(labels) {
            let class = *known.entry(label).or_insert(classes.len());
            match classes.get_mut(class) {
                Some(samples) => samples.push(sample),
                None => classes.push(vec![sample]),
            }
        }
        Self::new(&classes, labels.len(), negatives)
    }

    /// Draws K = `negatives` of the `samples` samples of a data set, but not the row's own.
    ///
    /// # Errors
    /// [`Error::Empty`](crate::Error::Empty) for fewer than two samples, or no negatives.
    /// [`Error::TooLarge`](crate::Error::TooLarge) for more than 2³² − 1 samples, or more than 2³² − 2
    /// negatives.
    pub fn of_others(samples: usize, negatives: usize) -> Result<Self> {
        at_most("samples", u32::MAX as usize, samples)?;
        let classes: Vec<Vec<u32>> = (0u32..).take(samples).map(|sample| vec![sample]).collect();
        Self::new(&classes, samples, negatives)
    }

    fn new(classes: &[Vec<u32>], samples: usize, negatives: usize) -> Result<Self> {
        not_empty("negatives", negatives)?;
        // With the own key a row has one more.
        at_most("negatives", u32::MAX as usize - 1, negatives)?;
        not_empty("other classes", classes.len().saturating_sub(1))?;
        let mut class_of = vec![[0; 2]; samples];
        let mut begin = 0;
        for class in classes {
            let end = begin + class.len() as u32;
            for &sample in class {
                class_of[sample as usize] = [begin, end];
            }
            begin = end;
        }
        Ok(NegativeSampler {
            by_class: classes.concat(),
            class_of,
            negatives,
            relaxed: false,
        })
    }

    /// Sets whether the first key of a row is any sample of the row's class, itself among them
    /// (`relax` in CRD's code), and not the row's own sample (`exact`). Off at first.
    #[must_use]
    pub fn with_relaxed(self, relaxed: bool) -> Self {
        NegativeSampler { relaxed, ..self }
    }

    /// The indices of the keys of these samples' rows, `[N, K + 1]`: each row's own first, then its
    /// negatives in a random order.
    ///
    /// # Errors
    /// [`Error::TooLarge`](crate::Error::TooLarge) for a sample that does not exist.
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory) if there is no room for the indices.
    pub fn sample(&self, samples: &[u32], seed: u64) -> Result<Vec<u32>> {
        check_indices("samples", self.class_of.len(), samples)?;
        let keys = self.negatives + 1;
        let mut indices: Vec<u32> = zeroed("indices", samples.len().saturating_mul(keys))?;
        let mut random = fastrand::Rng::with_seed(seed);
        let mut order = Vec::new();
        for (&sample, of_row) in samples.iter().zip(indices.chunks_exact_mut(keys)) {
            let [begin, end] = self.class_of[sample as usize];
            of_row[0] = match self.relaxed {
                false => sample,
                true => self.by_class[random.u32(begin..end) as usize],
            };
            let negatives = &mut of_row[1..];
            let others = self.by_class.len() - (end - begin) as usize;
            if negatives.len() > others {
                for negative in negatives {
                    let at = random.usize(0..others);
                    let skipped = if at < begin as usize { 0 } else { end - begin };
                    *negative = self.by_class[at + skipped as usize];
                }
            } else {
                if order.is_empty() {
                    order = (0u32..).take(self.by_class.len()).collect();
                }
                draw_distinct(&mut order, &mut random, begin..end, negatives);
                for negative in negatives {
                    *negative = self.by_class[*negative as usize];
                }
            }
        }
        Ok(indices)
    }
}

/// Fills `drawn` with different elements of `order` that are not in `excluded`: a shuffle that stops
/// as soon as it has them. Whatever order it starts from, each outcome is equally likely.
fn draw_distinct(
    order: &mut [u32],
    random: &mut fastrand::Rng,
    excluded: std::ops::Range<u32>,
    drawn: &mut [u32],
) {
    let mut at = 0;
    for drawn in drawn {
        *drawn = loop {
            let other = random.usize(at..order.len());
            order.swap(at, other);
            at += 1;
            if !excluded.contains(&order[at - 1]) {
                break order[at - 1];
            }
        };
    }
}
