//! Every entry point of kernels/*.cu, with the struct it takes.

use std::marker::PhantomData;

use bytemuck::Pod;

use super::element::index;
use super::machine::{Launch, Launcher};
use crate::element::DType;
use crate::error::Result;

/// What the emulator knows of a kernel. Mirrors `emulator::Kernel` in emulator/emulator.h.
#[cfg(feature = "emulator")]
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Emulated {
    pub(crate) threads: u32,
    pub(crate) arguments_bytes: u32,
    pub(crate) run: unsafe extern "C" fn(*const std::ffi::c_void),
}

/// An entry point.
#[derive(Debug)]
pub(crate) struct EntryPoint {
    /// Its symbol in the fatbin.
    pub(crate) name: &'static str,
    /// The size of the struct it takes.
    pub(crate) arguments_bytes: usize,
    #[cfg(feature = "emulator")]
    pub(crate) emulated: &'static Emulated,
}

/// A kernel, compiled for one type of element or, where it doesn't depend on that, once.
#[derive(Debug)]
pub(crate) struct Family<A: 'static> {
    pub(crate) threads: u32,
    entries: &'static [EntryPoint],
    arguments: PhantomData<A>,
}

/// A kernel that takes an `A`.
#[derive(Debug)]
pub(crate) struct Kernel<A> {
    entry: &'static EntryPoint,
    threads: u32,
    arguments: PhantomData<A>,
}

impl<A: Pod> Family<A> {
    /// The kernel for elements of this type.
    pub(crate) fn of(&self, dtype: DType) -> Kernel<A> {
        self.nth(index(dtype) % self.entries.len())
    }

    /// The kernel of a family of one.
    pub(crate) fn only(&self) -> Kernel<A> {
        debug_assert_eq!(self.entries.len(), 1);
        self.nth(0)
    }

    /// The kernel of a family whose members differ by something else.
    pub(crate) fn nth(&self, index: usize) -> Kernel<A> {
        Kernel {
            entry: &self.entries[index],
            threads: self.threads,
            arguments: PhantomData,
        }
    }
}

impl<A: Pod> Kernel<A> {
    pub(crate) fn launch(
        &self,
        launcher: &mut impl Launcher,
        grid: [u32; 3],
        shared: u32,
        arguments: &A,
    ) -> Result<()> {
        launcher.launch(Launch {
            kernel: self.entry,
            grid,
            threads: self.threads,
            shared,
            arguments: bytemuck::bytes_of(arguments),
        })
    }
}

macro_rules! kernels {
    ($($(#[$doc:meta])* $family:ident: $arguments:ty, $threads:literal => [$($name:ident),+];)+) => {
        #[cfg(feature = "emulator")]
        #[allow(unsafe_code, non_upper_case_globals)]
        mod emulated {
            // SAFETY: EXPORT_KERNEL in kernels/common/platform.cuh defines these, constant, of this
            // type; one that is missing does not link.
            unsafe extern "C" {
                $($(pub(super) safe static $name: super::Emulated;)+)+
            }
        }

        $(
            $(#[$doc])*
            pub(crate) static $family: Family<$arguments> = Family {
                threads: $threads,
                entries: &[$(EntryPoint {
                    name: stringify!($name),
                    arguments_bytes: size_of::<$arguments>(),
                    #[cfg(feature = "emulator")]
                    emulated: &emulated::$name,
                }),+],
                arguments: PhantomData,
            };
        )+

        /// Every entry point.
        #[allow(dead_code, reason = "for the launchers and the tests")]
        pub(crate) fn all() -> impl Iterator<Item = &'static EntryPoint> {
            [$($family.entries),+].into_iter().flatten()
        }
    };
}

kernels! {
    /// ∂L/∂x = Σ C (x_i − x_j): a block for a tile of the gradient.
    CONTRACTION: super::rkd::ContractionArguments, 256 => [relata_contraction_f32, relata_contraction_f16, relata_contraction_bf16];
    /// The same of few rows: smaller tiles.
    CONTRACTION_SMALL_BATCH: super::rkd::ContractionArguments, 256 => [relata_contraction_small_batch_f32, relata_contraction_small_batch_f16, relata_contraction_small_batch_bf16];
    /// KL of softened logits, and its gradient: a block for a row.
    KD_KL: super::kd_kl::Arguments, 256 => [relata_kd_kl_f32, relata_kd_kl_f16, relata_kd_kl_bf16];
    /// The same for rows of many classes.
    KD_KL_LONG: super::kd_kl::Arguments, 512 => [relata_kd_kl_long_f32, relata_kd_kl_long_f16, relata_kd_kl_long_bf16];
    /// x/‖x‖ of every row: a block for a row.
    NORMALIZE: super::normalize::Arguments, 256 => [relata_normalize_f32, relata_normalize_f16, relata_normalize_bf16];
    /// The way back through x/‖x‖: a block for a row.
    NORMALIZE_BACKWARD: super::normalize::BackwardArguments, 256 => [relata_normalize_backward];
    /// The public relation matrices: a block for a tile of pairs.
    RELATION: super::relation::Arguments, 256 => [relata_relation_f32, relata_relation_f16, relata_relation_bf16];
    /// The angle penalty in f32.
    RKD_ANGLE: super::rkd::AngleArguments, 128 => [relata_rkd_angle];
    /// The angle penalty with ½d² as a pair of f32.
    RKD_ANGLE_ACCURATE: super::rkd::AngleArguments, 256 => [relata_rkd_angle_accurate];
    /// The same of few rows.
    RKD_ANGLE_SMALL_BATCH: super::rkd::SmallBatchAngleArguments, 256 => [relata_rkd_angle_small_batch];
    /// The distance penalty, the sums of the angle penalty, and the loss of both.
    RKD_COEFFICIENTS: super::rkd::CoefficientArguments, 256 => [relata_rkd_coefficients];
    /// All lengths of student and teacher in f32.
    RKD_RELATION: super::rkd::RelationArguments, 256 => [relata_rkd_relation_f32, relata_rkd_relation_f16, relata_rkd_relation_bf16];
    /// All lengths of student and teacher in f64.
    RKD_RELATION_ACCURATE: super::rkd::RelationArguments, 256 => [
        relata_rkd_relation_accurate_f32, relata_rkd_relation_accurate_f16, relata_rkd_relation_accurate_bf16
    ];
    /// The same of few rows.
    RKD_RELATION_SMALL_BATCH: super::rkd::RelationArguments, 256 => [
        relata_rkd_relation_small_batch_f32, relata_rkd_relation_small_batch_f16, relata_rkd_relation_small_batch_bf16
    ];
    /// Rows as attention reads them, and their norms: a warp for a row.
    ATTENTION_ROWS: super::attention::RowsArguments, 128 => [relata_attention_rows_f32, relata_attention_rows_f16, relata_attention_rows_bf16];
    /// Attention of halves, rows of up to 64 elements: over a queue and over the rest of a batch, with weights as two
    /// f16 and as one; as one, of student and teacher side by side.
    ATTENTION_MMA_64: super::attention::MmaArguments, 128 => [
        relata_attention_mma_64, relata_attention_mma_64_batch, relata_attention_mma_64_half,
        relata_attention_mma_64_half_batch, relata_attention_mma_64_half_pair
    ];
    /// The same, of up to 128.
    ATTENTION_MMA_128: super::attention::MmaArguments, 128 => [
        relata_attention_mma_128, relata_attention_mma_128_batch, relata_attention_mma_128_half,
        relata_attention_mma_128_half_batch, relata_attention_mma_128_half_pair
    ];
    /// The same, of up to 256.
    ATTENTION_MMA_256: super::attention::MmaArguments, 128 => [
        relata_attention_mma_256, relata_attention_mma_256_batch, relata_attention_mma_256_half,
        relata_attention_mma_256_half_batch, relata_attention_mma_256_half_pair
    ];
    /// Attention of f32 rows over keys of f32 or f16.
    ATTENTION_SIMT: super::attention::SimtArguments, 256 => [relata_attention_simt_f32, relata_attention_simt_f16];
    /// InfoNCE from the partial attentions: a block for a row.
    INFO_NCE: super::attention::FinishArguments, 256 => [relata_info_nce_f32, relata_info_nce_f16, relata_info_nce_bf16];
    /// Norms of a queue's new keys, and whether all are finite: a warp for a key.
    MEASURE_KEYS: super::queue::Arguments, 128 => [relata_measure_keys_f32, relata_measure_keys_f16, relata_measure_keys_bf16];
    /// New keys to their slots, and the ring moved on.
    WRITE_KEYS: super::queue::Arguments, 128 => [relata_write_keys_f32, relata_write_keys_f16, relata_write_keys_bf16];
    /// RRD from the partial attentions: a block for a row.
    RRD: super::attention::FinishArguments, 256 => [relata_rrd_f32, relata_rrd_f16, relata_rrd_bf16];
    /// softmax(x/τ) of every row: a block for a row.
    SOFTMAX: super::softmax::Arguments, 256 => [relata_softmax_f32, relata_softmax_f16, relata_softmax_bf16];
    /// The pairwise family: sums over the dimensions of every two rows, products or squared differences.
    PAIRWISE_RELATION_DOT: super::pairwise::RelationArguments, 256 => [
        relata_pairwise_relation_dot_f32, relata_pairwise_relation_dot_f16, relata_pairwise_relation_dot_bf16
    ];
    PAIRWISE_RELATION_DIFFERENCE: super::pairwise::RelationArguments, 256 => [
        relata_pairwise_relation_difference_f32, relata_pairwise_relation_difference_f16,
        relata_pairwise_relation_difference_bf16
    ];
    /// Relations and scales, where the normalizer's scope is the matrix.
    PAIRWISE_SCALE_DISTANCE_MEAN: super::pairwise::PenaltyArguments, 128 => [relata_pairwise_scale_distance_mean];
    PAIRWISE_SCALE_SQUARED_FROBENIUS: super::pairwise::PenaltyArguments, 128 => [relata_pairwise_scale_squared_frobenius];
    /// The penalties; where the scope is a row, relations and scales too.
    PAIRWISE_PENALTY_SP: super::pairwise::PenaltyArguments, 128 => [relata_pairwise_penalty_sp];
    PAIRWISE_PENALTY_DISTANCE_MEAN_HUBER: super::pairwise::PenaltyArguments, 128 => [relata_pairwise_penalty_distance_mean_huber];
    PAIRWISE_PENALTY_DOT_NONE_SQUARED: super::pairwise::PenaltyArguments, 128 => [relata_pairwise_penalty_dot_none_squared];
    PAIRWISE_PENALTY_SQUARED_FROBENIUS_HUBER: super::pairwise::PenaltyArguments, 128 => [
        relata_pairwise_penalty_squared_frobenius_huber
    ];
    /// The coefficients of the contraction.
    PAIRWISE_COEFFICIENTS_SP: super::pairwise::CoefficientArguments, 128 => [relata_pairwise_coefficients_sp];
    PAIRWISE_COEFFICIENTS_DISTANCE_MEAN_HUBER: super::pairwise::CoefficientArguments, 128 => [
        relata_pairwise_coefficients_distance_mean_huber
    ];
    PAIRWISE_COEFFICIENTS_DOT_NONE_SQUARED: super::pairwise::CoefficientArguments, 128 => [
        relata_pairwise_coefficients_dot_none_squared
    ];
    PAIRWISE_COEFFICIENTS_SQUARED_FROBENIUS_HUBER: super::pairwise::CoefficientArguments, 128 => [
        relata_pairwise_coefficients_squared_frobenius_huber
    ];
    /// The gradient and the loss: Σ k x_j or Σ k (x_i − x_j).
    PAIRWISE_CONTRACTION_DOT: super::pairwise::ContractionArguments, 256 => [
        relata_pairwise_contraction_dot_f32, relata_pairwise_contraction_dot_f16, relata_pairwise_contraction_dot_bf16
    ];
    PAIRWISE_CONTRACTION_DIFFERENCE: super::pairwise::ContractionArguments, 256 => [
        relata_pairwise_contraction_difference_f32, relata_pairwise_contraction_difference_f16,
        relata_pairwise_contraction_difference_bf16
    ];
}
