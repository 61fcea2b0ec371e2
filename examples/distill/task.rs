//! The training task of every network: batches, and the loss on labels.

use candle_core::{DType, Device, Result, Tensor};
use rand::Rng;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::index::sample;

use crate::data::Training;
use crate::metrics::squared_distances;
use crate::model::Output;

/// How many classes are in a batch, and how many images of each.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BatchSize {
    pub(crate) classes: usize,
    pub(crate) each: usize,
}

impl BatchSize {
    pub(crate) fn images(self) -> usize {
        self.classes * self.each
    }
}

/// Draws batches: some classes, some typefaces of each, every image with a random shift.
pub(crate) struct Batches {
    rng: StdRng,
    size: BatchSize,
}

impl Batches {
    pub(crate) fn new(size: BatchSize, seed: u64) -> Self {
        Batches {
            rng: StdRng::seed_from_u64(seed),
            size,
        }
    }

    /// Rows of the training images, and their classes. The images of a class are adjacent.
    pub(crate) fn draw(&mut self, of: &Training) -> Result<(Tensor, Tensor)> {
        let (mut rows, mut labels) = (Vec::new(), Vec::new());
        for class in sample(&mut self.rng, of.classes, self.size.classes) {
            for typeface in sample(&mut self.rng, of.typefaces, self.size.each) {
                let shift = self.rng.random_range(0..of.shifts);
                rows.push(of.row(shift, class, typeface) as u32);
                labels.push(class as u32);
            }
        }
        let device = of.images.device();
        Ok((Tensor::new(rows, device)?, Tensor::new(labels, device)?))
    }
}

/// Cross-entropy of the classifier plus a triplet loss on the embedding.
pub(crate) struct Task {
    /// `[n * each]`: for each row of a batch, the indices of its class's rows in a flat `[n, n]`.
    same_class: Tensor,
    /// `[n, each, n]`: 1 where the second is another image of the first one's class and the third
    /// is of another class.
    triplets: Tensor,
}

/// The margin of the triplet loss, between distances of rows of length 1, as in the RKD paper.
const MARGIN: f64 = 0.2;

impl Task {
    pub(crate) fn new(size: BatchSize, device: &Device) -> Result<Self> {
        let (n, each) = (size.images(), size.each);
        let (mut same_class, mut triplets) = (Vec::new(), Vec::new());
        for anchor in 0..n {
            let class = anchor / each;
            for positive in class * each..(class + 1) * each {
                same_class.push((anchor * n + positive) as u32);
                let is_one = |negative| positive != anchor && negative / each != class;
                triplets.extend((0..n).map(|negative| f32::from(u8::from(is_one(negative)))));
            }
        }
        Ok(Task {
            same_class: Tensor::new(same_class, device)?,
            triplets: Tensor::from_vec(triplets, (n, each, n), device)?,
        })
    }

    pub(crate) fn loss(&self, output: &Output, labels: &Tensor) -> Result<Tensor> {
        candle_nn::loss::cross_entropy(&output.logits, labels)? + self.triplet(&output.embedding)?
    }

    /// The mean over all triplets that violate the margin: Hermans et al., arXiv 1703.07737,
    /// "batch all".
    fn triplet(&self, embedding: &Tensor) -> Result<Tensor> {
        let (n, each, _) = self.triplets.dims3()?;
        // The small number keeps the root's derivative finite where two rows are equal.
        let distances = (squared_distances(embedding)?.relu()? + 1e-6)?.sqrt()?;
        let near = distances
            .flatten_all()?
            .index_select(&self.same_class, 0)?
            .reshape((n, each, 1))?;
        let far = distances.reshape((n, 1, n))?;
        let violations = ((near.broadcast_sub(&far)? + MARGIN)?.relu()? * &self.triplets)?;
        let count = violations
            .detach()
            .gt(0f32)?
            .to_dtype(DType::F32)?
            .sum_all()?;
        violations.sum_all()? / (count + 1.0)?
    }
}
