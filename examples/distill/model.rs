//! The networks: layers with ReLU between them that end in an embedding, a linear classifier on the
//! embedding, and for RRD a linear projection to the teacher's dimension.

use candle_core::{Device, Result, Tensor, Var};
use candle_nn::{Linear, Module};
use rand::Rng;
use rand::rngs::StdRng;

pub(crate) struct Network {
    trunk: Vec<Linear>,
    classifier: Linear,
    projection: Linear,
    variables: Vec<Var>,
}

/// A network's output for a batch.
pub(crate) struct Output {
    /// `[n, dim]`, rows of length 1, which retrieval compares.
    pub(crate) embedding: Tensor,
    /// `[n, classes]`
    pub(crate) logits: Tensor,
}

impl Network {
    /// `widths`: of the input, the hidden layers and the embedding. `projected`: the projection's
    /// dimension.
    pub(crate) fn new(
        widths: &[usize],
        classes: usize,
        projected: usize,
        rng: &mut StdRng,
        device: &Device,
    ) -> Result<Self> {
        let mut variables = Vec::new();
        let mut linear = |inputs, outputs| linear(inputs, outputs, rng, device, &mut variables);
        let trunk = widths.windows(2).map(|w| linear(w[0], w[1]));
        let trunk = trunk.collect::<Result<Vec<_>>>()?;
        let dim = widths[widths.len() - 1];
        Ok(Network {
            trunk,
            classifier: linear(dim, classes)?,
            projection: linear(dim, projected)?,
            variables,
        })
    }

    pub(crate) fn forward(&self, images: &Tensor) -> Result<Output> {
        let mut x = images.clone();
        for (i, layer) in self.trunk.iter().enumerate() {
            x = layer.forward(&if i == 0 { x } else { x.relu()? })?;
        }
        Ok(Output {
            logits: self.classifier.forward(&x)?,
            embedding: unit_rows(&x)?,
        })
    }

    /// The embedding in the teacher's dimension, for RRD.
    pub(crate) fn project(&self, embedding: &Tensor) -> Result<Tensor> {
        self.projection.forward(embedding)
    }

    pub(crate) fn variables(&self) -> Vec<Var> {
        self.variables.clone()
    }

    /// The number of trained parameters, without the projection, which is discarded.
    pub(crate) fn size(&self) -> usize {
        let layers = self.trunk.iter().chain([&self.classifier]);
        let bias = |layer: &Linear| layer.bias().map_or(0, Tensor::elem_count);
        layers
            .map(|layer| layer.weight().elem_count() + bias(layer))
            .sum()
    }
}

/// He's initialisation, uniform. candle's own random numbers on the CPU cannot be seeded, so these
/// are drawn here.
fn linear(
    inputs: usize,
    outputs: usize,
    rng: &mut StdRng,
    device: &Device,
    variables: &mut Vec<Var>,
) -> Result<Linear> {
    let bound = (6.0 / inputs as f32).sqrt();
    let weight = (0..inputs * outputs).map(|_| rng.random_range(-bound..bound));
    let weight = Tensor::from_vec(weight.collect::<Vec<_>>(), (outputs, inputs), device)?;
    let weight = Var::from_tensor(&weight)?;
    let bias = Var::from_tensor(&Tensor::zeros(outputs, weight.dtype(), device)?)?;
    variables.extend([weight.clone(), bias.clone()]);
    Ok(Linear::new(
        weight.as_tensor().clone(),
        Some(bias.as_tensor().clone()),
    ))
}

/// Rows divided by their lengths.
fn unit_rows(x: &Tensor) -> Result<Tensor> {
    let length = (x.sqr()?.sum_keepdim(1)? + 1e-12)?.sqrt()?;
    x.broadcast_div(&length)
}
