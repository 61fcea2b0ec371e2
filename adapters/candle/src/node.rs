//! A fused loss as a node of candle's graph.

use std::sync::Mutex;

use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, D, Device, Error, Layout, Result, Shape, Storage, Tensor,
};
use relata::{Family, Loss, Problem, Shapes};

use crate::cpu;
#[cfg(feature = "cuda")]
use crate::gpu;
use crate::inputs::{Inputs, no_kernels};
use crate::queue::Queue;
use crate::terms::Terms;

/// The result of an evaluation.
pub(crate) struct Evaluated {
    /// The loss, then its terms: f64 for f64, f32 for all others.
    pub(crate) value: Storage,
    /// Of the student's shape and the same type.
    pub(crate) gradient: Tensor,
}

/// Evaluates `loss`, on prefixes of the student's rows if there are any, and puts it into the
/// student's graph.
pub(crate) fn fused(
    student: &Tensor,
    teacher: &Tensor,
    queue: Option<&mut Queue>,
    prefixes: Option<&[usize]>,
    loss: Loss,
) -> Result<(Tensor, Terms)> {
    let inputs = Inputs::new(student, teacher, &loss.spec())?;
    fused_inputs(&inputs, queue, prefixes, loss, Parameters::Fixed)
}

/// What the loss's scale or bias is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Parameters {
    /// A later step has the same problem, so that on a GPU the plan and the workspace are worth
    /// keeping.
    Fixed,
    /// Another number in each step. Its gradient is wanted.
    Learned,
}

impl Parameters {
    /// The problem of a loss.
    pub(crate) fn problem(self, loss: Loss, shapes: Shapes) -> relata::Result<Problem> {
        let problem = Problem::new(loss, shapes)?;
        match (self, loss.spec().family) {
            // Towers give the gradient of their scale in any case.
            (Parameters::Learned, Family::Contrastive(_)) => problem.with_scale_gradient(),
            _ => Ok(problem),
        }
    }
}

/// As [`fused`].
pub(crate) fn fused_inputs(
    inputs: &Inputs,
    queue: Option<&mut Queue>,
    prefixes: Option<&[usize]>,
    loss: Loss,
    parameters: Parameters,
) -> Result<(Tensor, Terms)> {
    let spec = loss.spec();
    let Evaluated { value, gradient } = match inputs.student.device() {
        Device::Cpu => cpu::evaluate(inputs, queue, prefixes, loss, parameters),
        #[cfg(feature = "cuda")]
        Device::Cuda(gpu) => gpu::evaluate(inputs, queue, prefixes, loss, parameters, gpu),
        device => Err(no_kernels(device, spec.name)),
    }?;
    let evaluated = Evaluated { value, gradient };
    let loss = place(&inputs.student, evaluated, Shape::from(()), spec.name)?;
    let terms = Terms::behind(&loss, spec.terms);
    Ok((loss, terms))
}

/// Puts a finished evaluation, of a value of `shape`, into the student's graph.
pub(crate) fn place(
    student: &Tensor,
    evaluated: Evaluated,
    shape: Shape,
    name: &'static str,
) -> Result<Tensor> {
    student.apply_op1(Fused {
        name,
        value: Mutex::new(Some(evaluated.value)),
        shape,
        gradient: evaluated.gradient,
    })
}

/// A finished evaluation: forward returns its value, backward scales its gradient.
struct Fused {
    name: &'static str,
    /// Present until the node is made.
    value: Mutex<Option<Storage>>,
    /// Of the value: a scalar, or one number a row.
    shape: Shape,
    gradient: Tensor,
}

impl Fused {
    fn take(&self) -> Result<Storage> {
        let value = self.value.lock().ok().and_then(|mut value| value.take());
        value.ok_or_else(|| Error::msg(format!("{}: its value has been taken", self.name)))
    }

    /// The error of a node on another device than its value.
    fn misplaced(&self) -> Error {
        Error::msg(format!("{}: its value is on another device", self.name))
    }
}

impl CustomOp1 for Fused {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        match self.take()? {
            Storage::Cpu(value) => Ok((value, self.shape.clone())),
            _ => Err(self.misplaced()),
        }
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        match self.take()? {
            Storage::Cuda(value) => Ok((value, self.shape.clone())),
            _ => Err(self.misplaced()),
        }
    }

    fn bwd(&self, student: &Tensor, _: &Tensor, upstream: &Tensor) -> Result<Option<Tensor>> {
        // A number a row multiplies the row.
        let upstream = match upstream.rank() {
            0 => upstream.clone(),
            _ => upstream.unsqueeze(D::Minus1)?,
        };
        // The rounding comes last: a scaled loss can bring back into range what a half type could
        // not hold.
        let gradient = self.gradient.broadcast_mul(&upstream)?;
        gradient.to_dtype(student.dtype()).map(Some)
    }
}
