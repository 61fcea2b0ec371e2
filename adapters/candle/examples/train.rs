//! Distils a small network: RKD on its embeddings, and RRD with a queue on a projection of them.
//!
//! ```sh
//! cargo run --release -p relata-candle --example train
//! ```

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{AdamW, Module, Optimizer, ParamsAdamW, VarBuilder, VarMap, linear};
use relata_candle::{Queue, Rkd, Rrd, loss_and_terms, loss_and_terms_with_queue};

const SAMPLES: usize = 256;
const BATCH: usize = 64;
const STEPS: usize = 200;
const INPUTS: usize = 20;
/// Widths of the teacher's embedding and of the student's.
const TEACHER: usize = 32;
const STUDENT: usize = 16;

fn main() -> Result<()> {
    let device = Device::Cpu; // or, with the feature cuda, Device::new_cuda(0)?

    // The teacher is frozen, so it embeds every sample only once. Yours comes from a file.
    let inputs = Tensor::randn(0f32, 1., (SAMPLES, INPUTS), &device)?;
    let teacher = inputs
        .matmul(&Tensor::randn(0f32, 0.2, (INPUTS, TEACHER), &device)?)?
        .tanh()?;

    let variables = VarMap::new();
    let layers = VarBuilder::from_varmap(&variables, DType::F32, &device);
    let student = candle_nn::seq()
        .add(linear(INPUTS, 64, layers.pp("hidden"))?)
        .add(candle_nn::Activation::Relu)
        .add(linear(64, STUDENT, layers.pp("embedding"))?);
    // RRD compares rows of one width. The projection is trained too, and not needed afterwards.
    let projection = linear(STUDENT, TEACHER, layers.pp("projection"))?;
    let settings = ParamsAdamW {
        lr: 3e-3,
        ..ParamsAdamW::default()
    };
    let mut optimizer = AdamW::new(variables.all_vars(), settings)?;

    let mut queue = Queue::new(SAMPLES, TEACHER, DType::F32, &device)?;
    queue.enqueue(&teacher)?; // RRD's loss grows with the number of keys: begin with a full queue

    let mut losses = Vec::new();
    for step in 0..STEPS {
        let first = step * BATCH % SAMPLES;
        let target = teacher.narrow(0, first, BATCH)?;
        let embedding = student.forward(&inputs.narrow(0, first, BATCH)?)?;
        let projected = projection.forward(&embedding)?;
        let (rkd, parts) = loss_and_terms(&embedding, &target, Rkd::default())?;
        let (rrd, divergence) =
            loss_and_terms_with_queue(&projected, &target, &mut queue, Rrd::default())?;
        let loss = (rkd + rrd)?; // your task's loss is a third summand
        optimizer.backward_step(&loss)?;

        // Reading a number waits for a GPU: do it every few steps only.
        if step % 20 == 0 || step + 1 == STEPS {
            losses.push(loss.to_scalar::<f32>()?);
            print!("step {step:3}: loss {:.3}", losses[losses.len() - 1]);
            for (name, value) in [parts.to_vec()?, divergence.to_vec()?].concat() {
                print!(", {name} {value:.4}");
            }
            println!();
        }
    }
    assert!(losses[losses.len() - 1] < 0.8 * losses[0], "did not learn");
    Ok(())
}
