//! Distils two towers: two linear layers learn from a fixed teacher's pairs, by CLIP's soft term
//! alone and with a learned scale. It prints how often a row finds its partner, before and after, on
//! samples that were not trained on.
//!
//! ```sh
//! cargo run --release -p relata-candle --example clip_distill
//! ```

use candle_core::{D, DType, Device, Result, Tensor, Var};
use candle_nn::{AdamW, Module, Optimizer, ParamsAdamW, VarBuilder, VarMap, linear_no_bias};
use relata_candle::{Clip, clip, clip_with_scale};

const SAMPLES: usize = 1024;
const HELD_OUT: usize = 256;
const BATCH: usize = 128;
const STEPS: usize = 300;
/// What a pair has in common, and the inputs that show it.
const CONTENT: usize = 16;
const IMAGE: usize = 48;
const TEXT: usize = 40;
/// Widths of the teacher's towers and of the student's.
const TEACHER: usize = 64;
const STUDENT: usize = 24;

fn main() -> Result<()> {
    let device = Device::Cpu; // or, with the feature cuda, Device::new_cuda(0)?
    let random = |rows: usize, columns: usize, deviation: f32| {
        Tensor::randn(0f32, deviation, (rows, columns), &device)
    };

    // Both sides of a pair show the same content, each with noise of its own.
    let content = random(SAMPLES, CONTENT, 1.)?;
    let shown = |width: usize| {
        let noise = random(SAMPLES, width, 2.)?;
        content.matmul(&random(CONTENT, width, 1.)?)? + noise
    };
    let (images, texts) = (shown(IMAGE)?, shown(TEXT)?);
    // The teacher knows the content better than the inputs show it. It is frozen, so it embeds every
    // sample only once. Yours comes from a file.
    let embedding = random(CONTENT, TEACHER, 1.)?;
    let embedded = || (content.clone() + random(SAMPLES, CONTENT, 0.3)?)?.matmul(&embedding);
    let teacher = (embedded()?, embedded()?);

    let variables = VarMap::new();
    let layers = VarBuilder::from_varmap(&variables, DType::F32, &device);
    let of_images = linear_no_bias(IMAGE, STUDENT, layers.pp("images"))?;
    let of_texts = linear_no_bias(TEXT, STUDENT, layers.pp("texts"))?;
    let logit_scale = Var::new((1f32 / 0.07).ln(), &device)?;
    let trained = [variables.all_vars(), vec![logit_scale.clone()]].concat();
    let settings = ParamsAdamW {
        lr: 3e-3,
        weight_decay: 0.,
        ..ParamsAdamW::default()
    };
    let mut optimizer = AdamW::new(trained, settings)?;
    let soft = Clip {
        hard_weight: 0.,
        ..Clip::default()
    };

    let seen = SAMPLES - HELD_OUT;
    let held_out = |all: &Tensor| all.narrow(0, seen, HELD_OUT);
    let found = |images: &Tensor, texts: &Tensor| recall(&held_out(images)?, &held_out(texts)?);
    let student = || -> Result<(Tensor, Tensor)> {
        Ok((of_images.forward(&images)?, of_texts.forward(&texts)?))
    };
    let (x, y) = student()?;
    println!("partners found among {HELD_OUT} pairs that are not trained on");
    println!("teacher: {:.3}", found(&teacher.0, &teacher.1)?);
    let before = found(&x, &y)?;
    println!("student before: {before:.3}");

    for step in 0..STEPS {
        let first = step * BATCH % seen;
        let batch = |all: &Tensor| all.narrow(0, first, BATCH);
        let (x, y) = (batch(&images)?, batch(&texts)?);
        let (x, y) = (of_images.forward(&x)?, of_texts.forward(&y)?);
        let (of_x, of_y) = (batch(&teacher.0)?, batch(&teacher.1)?);
        let scale = logit_scale.exp()?;
        let loss = clip_with_scale(&x, &y, Some((&of_x, &of_y)), &scale, soft)?;
        optimizer.backward_step(&loss)?;
        if step % 50 == 0 || step + 1 == STEPS {
            // What the loss cannot go below: the teacher's own entropy.
            let entropy = clip(&of_x, &of_y, Some((&of_x, &of_y)), soft)?;
            println!(
                "step {step:3}: soft term {:.4}, at the teacher {:.4}, scale {:.2}",
                loss.to_scalar::<f32>()?,
                entropy.to_scalar::<f32>()?,
                scale.to_scalar::<f32>()?
            );
        }
    }

    let (x, y) = student()?;
    let after = found(&x, &y)?;
    println!("student after: {after:.3}");
    assert!(after > before + 0.5, "did not learn");
    Ok(())
}

/// The share of rows that are nearest to their partner, both ways.
fn recall(images: &Tensor, texts: &Tensor) -> Result<f64> {
    let unit = |x: &Tensor| x.broadcast_div(&x.sqr()?.sum_keepdim(1)?.sqrt()?);
    let cosines = unit(images)?.matmul(&unit(texts)?.t()?)?;
    let n = cosines.dim(0)?;
    let own = Tensor::arange(0u32, n as u32, cosines.device())?;
    let mut found = 0.;
    for side in [cosines.clone(), cosines.t()?] {
        let nearest = side.contiguous()?.argmax(D::Minus1)?.eq(&own)?;
        found += nearest
            .to_dtype(DType::F64)?
            .sum_all()?
            .to_scalar::<f64>()?;
    }
    Ok(found / (2 * n) as f64)
}
