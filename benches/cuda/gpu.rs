//! The GPU: its properties, and the least time that it needs for a case.

use std::sync::Arc;

use relata::cuda::cudarc::driver::{CudaContext, sys};
use relata::{Cuda, DType, Family, Relation};

use crate::Result;
use crate::cases::Case;

/// FP32 instructions for an unordered triple in the angle loss: 6 for the cosines and their
/// difference, 2 to clamp it, 2 for the penalty, 6 for the gradient.
const PER_TRIPLE: f64 = 16.0;

pub(crate) struct Gpu {
    pub(crate) context: Arc<CudaContext>,
    pub(crate) name: String,
    /// The version of the kernel module, such as 580.95.05.
    pub(crate) driver: String,
    pub(crate) memory: usize,
    pub(crate) l2_bytes: usize,
    /// FP32 instructions per second.
    fp32: f64,
    /// Flop per second of the tensor cores on f16 and bf16, if known.
    tensor: Option<f64>,
    /// Bytes per second.
    bandwidth: f64,
}

impl Gpu {
    pub(crate) fn new(cuda: &Cuda, ordinal: usize) -> Result<Self> {
        use sys::CUdevice_attribute::{
            CU_DEVICE_ATTRIBUTE_CLOCK_RATE as CLOCK,
            CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH as BUS,
            CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE as L2,
            CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE as MEMORY_CLOCK,
            CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT as MULTIPROCESSORS,
        };
        let context = CudaContext::new(ordinal)?;
        let attribute = |attribute| {
            context
                .attribute(attribute)
                .map(|value| value.unsigned_abs())
        };
        let capability = context.compute_capability()?;
        // Of a multiprocessor per cycle: FP32 lanes, and flop of f16 with sums in f32.
        let (lanes, tensor) = match capability {
            (8, 0) => (64, Some(2048)),
            (8, 6) => (128, Some(512)),
            (8, 9) => (128, Some(1024)),
            (9, 0) => (128, Some(4096)),
            (10, 0) => (128, Some(8192)),
            _ => (128, None),
        };
        let cycles = f64::from(attribute(MULTIPROCESSORS)?) * f64::from(attribute(CLOCK)?) * 1e3;
        let memory_clock = f64::from(attribute(MEMORY_CLOCK)?) * 1e3;
        Ok(Gpu {
            name: cuda.gpu_name().to_owned(),
            driver: driver()?,
            memory: context.total_mem()?,
            l2_bytes: attribute(L2)? as usize,
            fp32: cycles * f64::from(lanes),
            tensor: tensor.map(|flop| cycles * f64::from(flop)),
            // Two transfers per cycle.
            bandwidth: 2.0 * memory_clock * f64::from(attribute(BUS)?) / 8.0,
            context,
        })
    }

    /// The seconds that every implementation needs at least: the time of the busiest unit alone, at
    /// the nominal clock. None if the throughput of that unit is unknown.
    pub(crate) fn floor(&self, case: &Case, dtype: DType) -> Option<f64> {
        let [n, d, d_t] = [case.rows, case.student_dim, case.teacher_dim].map(|size| size as f64);
        // Rows of other groups are not compared.
        let others = n / case.groups as f64;
        let element = if dtype == DType::F32 { 4.0 } else { 2.0 };
        // Each pair once in the relation, and each row with all rows in the gradient.
        let pairs = n * others * ((d + d_t) / 2.0 + d);
        let seconds = match case.loss.spec().family {
            Family::Pairwise(pairwise) => {
                let per_element = match pairwise.relation {
                    // A subtraction and a multiply-add.
                    Relation::Distance | Relation::SquaredDistance => 2.0,
                    // A multiply-add.
                    Relation::Dot
                    | Relation::Cosine
                    | Relation::PositiveCosine
                    | Relation::ShiftedCosine => 1.0,
                };
                Some(per_element * pairs / self.fp32)
            }
            Family::Triplet(_) => {
                let triples = case.triplets() as f64 / 2.0;
                Some((2.0 * pairs + PER_TRIPLE * triples) / self.fp32)
            }
            // A multiply-add is one instruction and two flop.
            Family::Contrastive(_) if dtype == DType::F32 => {
                Some(case.flops() as f64 / 2.0 / self.fp32)
            }
            Family::Towers(_) => Some(case.flops() as f64 / 2.0 / self.fp32),
            // The keys of a row are read for their products and for the gradient.
            Family::Sampled(_) => {
                let [_, keys] = case.shapes().bank.unwrap_or_default();
                Some(8.0 * n * keys as f64 * d / self.bandwidth)
            }
            Family::Contrastive(_) => self.tensor.map(|tensor| case.flops() as f64 / tensor),
            Family::Logits(_) => Some((2.0 * element + 4.0) * n * d / self.bandwidth),
        };
        // If the driver does not tell the clock, the time is infinite.
        seconds.filter(|seconds| seconds.is_finite())
    }
}

/// The version of the kernel module.
fn driver() -> Result<String> {
    let version = std::fs::read_to_string("/proc/driver/nvidia/version").unwrap_or_default();
    let number = |word: &&str| word.contains('.') && word.starts_with(|c: char| c.is_ascii_digit());
    match version.split_whitespace().find(number) {
        Some(number) => Ok(number.to_owned()),
        None => Ok("unknown".to_owned()),
    }
}
