//! Relational distillation losses.
mod cpu;
mod device;
mod element;
mod error;
mod loss;
mod problem;
mod queue;
pub mod reference;
mod rows;

pub use device::{Cpu, Device, Reference};
pub use element::{DType, Element, Real};
pub use error::{Error, Result};
pub use loss::{InfoNce, KdKl, Loss, Rkd, RkdAngle, RkdDistance, Rrd};
pub use problem::{Batch, Evaluation, Problem, Shapes, Value};
pub use queue::{Enqueue, Queue};
pub use rows::Rows;
