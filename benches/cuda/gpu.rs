//! The GPU: what it is, and what it cannot do faster than.

use std::sync::Arc;

use relata::cuda::cudarc::driver::{CudaContext, sys};
use relata::{Cuda, DType, Loss};

use crate::Result;
use crate::cases::Case;

/// FP32 instructions that an unordered triple takes in the angle loss: 6 for the cosines and their difference, 2
/// to clamp it, 2 for the penalty, 6 for the gradient.
const PER_TRIPLE: f64 = 16.0;

pub(crate) struct Gpu {
    pub(crate) context: Arc<CudaContext>,
    pub(crate) name: String,
    /// Of the kernel module, such as 580.95.05, or the newest CUDA that it knows.
    pub(crate) driver: String,
    pub(crate) memory: usize,
    pub(crate) l2_bytes: usize,
    /// FP32 instructions a second.
    fp32: f64,
    /// Flop a second of the tensor cores on f16 and bf16, where known.
    tensor: Option<f64>,
    /// Bytes a second.
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
        // Lanes, and flop of f16 with sums in f32, of a multiprocessor in a cycle.
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
            // Two transfers a cycle.
            bandwidth: 2.0 * memory_clock * f64::from(attribute(BUS)?) / 8.0,
            context,
        })
    }

    /// Seconds that no implementation stays under: the busiest unit doing nothing else, at the clock the GPU
    /// promises.
    pub(crate) fn floor(&self, case: &Case, dtype: DType) -> Option<f64> {
        let [n, d, d_t] = [case.rows, case.student_dim, case.teacher_dim].map(|size| size as f64);
        let element = if dtype == DType::F32 { 4.0 } else { 2.0 };
        let seconds = match case.loss {
            Loss::RkdDistance(_) | Loss::RkdAngle(_) | Loss::Rkd(_) => {
                // Two instructions an element of a difference: of each pair once, and of each row with all on the
                // way back.
                let pairs = n * n * (d + d_t) + 2.0 * n * n * d;
                let triples = case.triplets() as f64 / 2.0;
                Some((pairs + PER_TRIPLE * triples) / self.fp32)
            }
            Loss::Rrd(_) | Loss::InfoNce(_) if dtype == DType::F32 => {
                // A multiply-add is one instruction.
                Some(case.flops() as f64 / 2.0 / self.fp32)
            }
            Loss::Rrd(_) | Loss::InfoNce(_) => {
                self.tensor.map(|tensor| case.flops() as f64 / tensor)
            }
            Loss::KdKl(_) => Some((2.0 * element + 4.0) * n * d / self.bandwidth),
            _ => None,
        };
        // A driver that does not tell the clock makes it infinite.
        seconds.filter(|seconds| seconds.is_finite())
    }
}

/// As the kernel module says.
fn driver() -> Result<String> {
    let version = std::fs::read_to_string("/proc/driver/nvidia/version").unwrap_or_default();
    let number = |word: &&str| word.contains('.') && word.starts_with(|c: char| c.is_ascii_digit());
    match version.split_whitespace().find(number) {
        Some(number) => Ok(number.to_owned()),
        None => Ok("unknown".to_owned()),
    }
}
