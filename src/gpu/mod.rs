//! The losses as CUDA kernels: which kernels run, on what memory, in which order.
//!
//! A [plan](plan) says how a problem runs on a device: a pure function of the two. Its passes are
//! written once, against [`Launcher`](machine::Launcher); what runs a kernel is the CUDA driver or
//! the emulator.

mod arguments;
#[cfg(feature = "cuda")]
pub mod cuda;
pub(crate) mod element;
#[cfg(feature = "emulator")]
pub(crate) mod emulator;
mod evaluate;
pub(crate) mod kernels;
pub(crate) mod machine;
pub(crate) mod plan;
pub(crate) mod workspace;

mod contrastive;
mod groups;
mod logits;
mod normalize;
mod pairwise;
pub(crate) mod queue;
mod relation;
mod row_shares;
mod sampled;
mod towers;
mod triplet;
mod tuning;

pub(crate) use evaluate::{evaluate, relation_matrix, softmax};

/// Makes a [`Device`](crate::Device) of a type whose `machine()` runs the kernels.
macro_rules! gpu_device {
    ($device:ty, $name:literal) => {
        impl crate::device::sealed::Sealed for $device {}

        impl<T: crate::gpu::element::GpuElement> crate::device::Device<T> for $device {
            type Gradient = f32;

            fn name(&self) -> &'static str {
                $name
            }

            fn evaluate(
                &self,
                problem: &crate::problem::Problem,
                batch: crate::batch::Batch<'_, T>,
                gradient: &mut [f32],
                row_losses: Option<&mut [f64]>,
            ) -> crate::error::Result<crate::problem::Value> {
                crate::gpu::evaluate(&mut self.machine(), problem, batch, gradient, row_losses)
            }

            fn relation_matrix(
                &self,
                relation: crate::loss::Relation,
                rows: crate::rows::Rows<'_, T>,
                matrix: &mut [f32],
            ) -> crate::error::Result<()> {
                crate::gpu::relation_matrix(&mut self.machine(), relation, rows, matrix)
            }

            fn softmax(
                &self,
                rows: crate::rows::Rows<'_, T>,
                temperature: f64,
                probabilities: &mut [f32],
            ) -> crate::error::Result<()> {
                crate::gpu::softmax(&mut self.machine(), rows, temperature, probabilities)
            }
        }
    };
}
pub(crate) use gpu_device;
