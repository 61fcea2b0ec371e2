//! Every entry point of kernels/*.cu, with the struct it takes.
//!
//! A kernel that is compiled once is a [`Kernel`]. A kernel that is compiled several times is a
//! family, [`ByVariant`]: an enum says which of its entry points a launch takes. Most families have
//! an entry point for each type of element, [`ByDType`].

use std::fmt;
use std::marker::PhantomData;

use super::arguments::ArgumentType;
use super::element::{GpuDType, KeyType};
use super::machine::{Launch, Launcher};
use super::towers::Kind as TowersKind;
use crate::error::Result;

/// What the emulator knows of a kernel. Mirrors `emulator::Kernel` in emulator/emulator.h.
#[cfg(feature = "emulator")]
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Emulated {
    pub(crate) threads: u32,
    pub(crate) arguments_bytes: u32,
    pub(crate) arguments: super::emulator::CppFields,
    pub(crate) run: unsafe extern "C" fn(*const std::ffi::c_void),
}

/// A function of a .cu file that can be launched.
#[derive(Debug)]
pub(crate) struct EntryPoint {
    /// Its symbol in the fatbin.
    pub(crate) name: &'static str,
    /// The size of the struct it takes.
    pub(crate) arguments_bytes: usize,
    /// The fields of that struct.
    #[cfg(feature = "emulator")]
    pub(crate) arguments: &'static [super::arguments::Field],
    #[cfg(feature = "emulator")]
    pub(crate) emulated: &'static Emulated,
}

impl EntryPoint {
    /// An entry point that takes an `A`.
    pub(crate) const fn new<A: ArgumentType>(
        name: &'static str,
        #[cfg(feature = "emulator")] emulated: &'static Emulated,
    ) -> Self {
        EntryPoint {
            name,
            arguments_bytes: size_of::<A>(),
            #[cfg(feature = "emulator")]
            arguments: A::FIELDS,
            #[cfg(feature = "emulator")]
            emulated,
        }
    }
}

/// A kernel that takes an `A`.
#[derive(Debug)]
pub(crate) struct Kernel<A> {
    entry: &'static EntryPoint,
    threads: u32,
    arguments: PhantomData<A>,
}

impl<A: ArgumentType> Kernel<A> {
    /// Launches `grid` blocks with `shared` bytes of dynamic shared memory each.
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

/// A family: a kernel that takes an `A`, compiled once for each value of `V`.
pub(crate) struct ByVariant<V, A> {
    /// The threads of a block.
    pub(crate) threads: u32,
    entry: fn(V) -> &'static EntryPoint,
    arguments: PhantomData<A>,
}

/// A kernel that is compiled for each type of element.
pub(crate) type ByDType<A> = ByVariant<GpuDType, A>;

impl<V, A> ByVariant<V, A> {
    /// The kernel of this variant.
    pub(crate) fn of(&self, variant: V) -> Kernel<A> {
        Kernel {
            entry: (self.entry)(variant),
            threads: self.threads,
            arguments: PhantomData,
        }
    }
}

impl<V, A> fmt::Debug for ByVariant<V, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ByVariant").finish_non_exhaustive()
    }
}

/// The entry points of an attention kernel on tensor cores: the keys and how weights are rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MmaVariant {
    /// Over a queue, each weight as the sum of two f16.
    Split,
    /// Over the other rows of the batch, each weight as the sum of two f16.
    SplitBatch,
    /// Over a queue, each weight as one f16.
    Half,
    /// Over the other rows of the batch, each weight as one f16.
    HalfBatch,
    /// Over a queue, a sample's student row and teacher row together: the difference of their
    /// weights as one f16, and the teacher's weight as one f16.
    HalfPair,
}

/// Declares the kernels and their entry points: `once`, or one for each variant of an enum.
/// `$threads` is the number of threads of a block.
macro_rules! kernels {
    ($(
        $(#[$doc:meta])*
        $kernel:ident: $arguments:ty, $threads:literal =>
            $(once $single:ident)? $(by $enum:ident { $($variant:ident: $entry:ident),+ $(,)? })?;
    )+) => {
        #[cfg(feature = "emulator")]
        #[allow(unsafe_code, non_upper_case_globals)]
        mod emulated {
            // SAFETY: EXPORT_KERNEL in kernels/common/platform.cuh defines these as constants of
            // this type. One that is missing does not link.
            unsafe extern "C" {
                $(
                    $(pub(super) safe static $single: super::Emulated;)?
                    $($(pub(super) safe static $entry: super::Emulated;)+)?
                )+
            }
        }

        $(
            $(kernels!(@entry $single, $arguments);)?
            $($(kernels!(@entry $entry, $arguments);)+)?

            $(#[$doc])*
            pub(crate) static $kernel:
                kernels!(@type $arguments, $(once $single)? $(by $enum)?) =
                kernels!(@value $threads, $(once $single)? $(by $enum { $($variant: $entry),+ })?);
        )+

        /// Every entry point.
        #[allow(dead_code, reason = "for cuda and the tests")]
        pub(crate) fn all() -> impl Iterator<Item = &'static EntryPoint> {
            [$($(&$single,)? $($(&$entry,)+)?)+].into_iter()
        }
    };
    (@type $arguments:ty, once $single:ident) => { Kernel<$arguments> };
    (@type $arguments:ty, by $enum:ident) => { ByVariant<$enum, $arguments> };
    (@value $threads:literal, once $single:ident) => {
        Kernel { threads: $threads, entry: &$single, arguments: PhantomData }
    };
    (@value $threads:literal, by $enum:ident { $($variant:ident: $entry:ident),+ }) => {
        ByVariant {
            threads: $threads,
            entry: |variant| match variant {
                $($enum::$variant => &$entry),+
            },
            arguments: PhantomData,
        }
    };
    (@entry $name:ident, $arguments:ty) => {
        #[allow(non_upper_case_globals, reason = "a symbol in the fatbin")]
        static $name: EntryPoint = EntryPoint::new::<$arguments>(
            stringify!($name),
            #[cfg(feature = "emulator")]
            &emulated::$name,
        );
    };
}

kernels! {
    /// ∂L/∂x = Σ C (x_i − x_j): a block for a tile of the gradient.
    CONTRACTION: super::triplet::ContractionArguments, 256 => by GpuDType {
        F32: relata_contraction_f32,
        F16: relata_contraction_f16,
        BF16: relata_contraction_bf16,
    };
    /// The same of a small batch: smaller tiles.
    CONTRACTION_SMALL_BATCH: super::triplet::ContractionArguments, 256 => by GpuDType {
        F32: relata_contraction_small_batch_f32,
        F16: relata_contraction_small_batch_f16,
        BF16: relata_contraction_small_batch_bf16,
    };
    /// Divergences of softened logits other than KL(p‖q), and their gradients: a block for a row.
    KD_DIVERGENCE: super::logits::DivergenceArguments, 512 => by GpuDType {
        F32: relata_kd_divergence_f32,
        F16: relata_kd_divergence_f16,
        BF16: relata_kd_divergence_bf16,
    };
    /// KL of softened logits, and its gradient: a block for a row.
    KD_KL: super::logits::Arguments, 256 => by GpuDType {
        F32: relata_kd_kl_f32,
        F16: relata_kd_kl_f16,
        BF16: relata_kd_kl_bf16,
    };
    /// The same for rows of many classes.
    KD_KL_LONG: super::logits::Arguments, 512 => by GpuDType {
        F32: relata_kd_kl_long_f32,
        F16: relata_kd_kl_long_f16,
        BF16: relata_kd_kl_long_bf16,
    };
    /// Divergences of softened logits from a list of the teacher's classes: a block for a row.
    KD_TOP_K: super::logits::TopKArguments, 512 => by GpuDType {
        F32: relata_kd_top_k_f32,
        F16: relata_kd_top_k_f16,
        BF16: relata_kd_top_k_bf16,
    };
    /// The means of the groups' losses and terms: a block for each.
    MEAN_OF_GROUPS: super::groups::Arguments, 256 => once relata_mean_of_groups;
    /// x/‖x‖ of every row: a block for a row.
    NORMALIZE: super::normalize::Arguments, 256 => by GpuDType {
        F32: relata_normalize_f32,
        F16: relata_normalize_f16,
        BF16: relata_normalize_bf16,
    };
    /// The way back through x/‖x‖: a block for a row.
    NORMALIZE_BACKWARD: super::normalize::BackwardArguments, 256 => once relata_normalize_backward;
    /// The public relation matrices: a block for a tile of pairs.
    RELATION: super::relation::Arguments, 256 => by GpuDType {
        F32: relata_relation_f32,
        F16: relata_relation_f16,
        BF16: relata_relation_bf16,
    };
    /// The angle penalty in f32.
    RKD_ANGLE: super::triplet::AngleArguments, 128 => once relata_rkd_angle;
    /// The angle penalty with ½d² as a pair of f32.
    RKD_ANGLE_ACCURATE: super::triplet::AngleArguments, 256 => once relata_rkd_angle_accurate;
    /// The same of a small batch.
    RKD_ANGLE_SMALL_BATCH: super::triplet::SmallBatchAngleArguments, 256 => once relata_rkd_angle_small_batch;
    /// The distance penalty, the sums of the angle penalty, and the loss of both.
    RKD_COEFFICIENTS: super::triplet::CoefficientArguments, 256 => once relata_rkd_coefficients;
    /// All lengths of student and teacher in f32.
    RKD_RELATION: super::triplet::RelationArguments, 256 => by GpuDType {
        F32: relata_rkd_relation_f32,
        F16: relata_rkd_relation_f16,
        BF16: relata_rkd_relation_bf16,
    };
    /// All lengths of student and teacher in f64.
    RKD_RELATION_ACCURATE: super::triplet::RelationArguments, 256 => by GpuDType {
        F32: relata_rkd_relation_accurate_f32,
        F16: relata_rkd_relation_accurate_f16,
        BF16: relata_rkd_relation_accurate_bf16,
    };
    /// The same of a small batch.
    RKD_RELATION_SMALL_BATCH: super::triplet::RelationArguments, 256 => by GpuDType {
        F32: relata_rkd_relation_small_batch_f32,
        F16: relata_rkd_relation_small_batch_f16,
        BF16: relata_rkd_relation_small_batch_bf16,
    };
    /// Rows as attention reads them, and their norms: a warp for a row.
    ATTENTION_ROWS: super::contrastive::RowsArguments, 128 => by GpuDType {
        F32: relata_attention_rows_f32,
        F16: relata_attention_rows_f16,
        BF16: relata_attention_rows_bf16,
    };
    /// Attention of halves, rows of up to 64 elements: over a queue and over the rest of a batch,
    /// with weights as two f16 and as one; as one, of student and teacher side by side.
    ATTENTION_MMA_64: super::contrastive::MmaArguments, 128 => by MmaVariant {
        Split: relata_attention_mma_64,
        SplitBatch: relata_attention_mma_64_batch,
        Half: relata_attention_mma_64_half,
        HalfBatch: relata_attention_mma_64_half_batch,
        HalfPair: relata_attention_mma_64_half_pair,
    };
    /// The same, of up to 128.
    ATTENTION_MMA_128: super::contrastive::MmaArguments, 128 => by MmaVariant {
        Split: relata_attention_mma_128,
        SplitBatch: relata_attention_mma_128_batch,
        Half: relata_attention_mma_128_half,
        HalfBatch: relata_attention_mma_128_half_batch,
        HalfPair: relata_attention_mma_128_half_pair,
    };
    /// The same, of up to 256.
    ATTENTION_MMA_256: super::contrastive::MmaArguments, 128 => by MmaVariant {
        Split: relata_attention_mma_256,
        SplitBatch: relata_attention_mma_256_batch,
        Half: relata_attention_mma_256_half,
        HalfBatch: relata_attention_mma_256_half_batch,
        HalfPair: relata_attention_mma_256_half_pair,
    };
    /// Attention of f32 rows over keys of f32 or f16.
    ATTENTION_SIMT: super::contrastive::SimtArguments, 256 => by KeyType {
        F32: relata_attention_simt_f32,
        F16: relata_attention_simt_f16,
    };
    /// InfoNCE from the partial attentions: a block for a row.
    INFO_NCE: super::contrastive::FinishArguments, 256 => by GpuDType {
        F32: relata_info_nce_f32,
        F16: relata_info_nce_f16,
        BF16: relata_info_nce_bf16,
    };
    /// Norms of a queue's new keys, and whether all are finite: a warp for a key.
    MEASURE_KEYS: super::queue::Arguments, 128 => by GpuDType {
        F32: relata_measure_keys_f32,
        F16: relata_measure_keys_f16,
        BF16: relata_measure_keys_bf16,
    };
    /// New keys to their slots, and the ring moved on.
    WRITE_KEYS: super::queue::Arguments, 128 => by GpuDType {
        F32: relata_write_keys_f32,
        F16: relata_write_keys_f16,
        BF16: relata_write_keys_bf16,
    };
    /// RRD from the partial attentions: a block for a row.
    RRD: super::contrastive::FinishArguments, 256 => by GpuDType {
        F32: relata_rrd_f32,
        F16: relata_rrd_f16,
        BF16: relata_rrd_bf16,
    };
    /// RRD's KL of the rows near their teacher: a tile of rows and a split of the keys a block.
    RRD_DIVERGENCE: super::contrastive::DivergenceArguments, 256 => by GpuDType {
        F32: relata_rrd_divergence_f32,
        F16: relata_rrd_divergence_f16,
        BF16: relata_rrd_divergence_bf16,
    };
    /// The share of each row in a weighted mean: one block.
    ROW_SHARES: super::row_shares::Arguments, 1024 => once relata_row_shares;
    /// A weighted mean of a plain one, and the losses of rows: a block for a row.
    WEIGH_ROWS: super::row_shares::WeighArguments, 256 => once relata_weigh_rows;
    /// Towers: the log-sums of rows over a split of their keys.
    TOWERS_LOG_SUMS: super::towers::LogSumArguments, 256 => once relata_towers_log_sums;
    /// The same with pairs that are left out.
    TOWERS_LOG_SUMS_MASKED: super::towers::LogSumArguments, 256 => once relata_towers_log_sums_masked;
    /// Towers: what each row brings to its pairs, a warp for a row.
    TOWERS_ROWS: super::towers::RowArguments, 256 => once relata_towers_rows;
    /// Towers: the keys under the coefficients of pairs.
    TOWERS_GRADIENT: super::towers::GradientArguments, 256 => by TowersKind {
        Softmax: relata_towers_gradient_softmax,
        Sigmoid: relata_towers_gradient_sigmoid,
        Labels: relata_towers_gradient_labels,
        Masked: relata_towers_gradient_masked,
    };
    /// Towers: the gradient of a row as it came, and the loss: a block for a row.
    TOWERS_FINISH: super::towers::FinishArguments, 256 => once relata_towers_finish;
    /// Rows of a batch into a bank: a warp for a row.
    BANK_UPDATE: super::sampled::update::UpdateArguments, 128 => by GpuDType {
        F32: relata_bank_update_f32,
        F16: relata_bank_update_f16,
        BF16: relata_bank_update_bf16,
    };
    /// Sampled keys: products of rows with their keys, a block for a row and a split of its keys.
    SAMPLED_PRODUCTS: super::sampled::ProductArguments, 256 => by GpuDType {
        F32: relata_sampled_products_f32,
        F16: relata_sampled_products_f16,
        BF16: relata_sampled_products_bf16,
    };
    /// Sampled keys: losses and coefficients, a block for a row.
    SAMPLED_ROWS: super::sampled::RowArguments, 256 => once relata_sampled_rows;
    /// Sampled keys: the keys under their coefficients.
    SAMPLED_GRADIENT: super::sampled::GradientArguments, 256 => once relata_sampled_gradient;
    /// Sampled keys: the gradient of a row as it came, and the loss: a block for a row.
    SAMPLED_FINISH: super::sampled::FinishArguments, 256 => by GpuDType {
        F32: relata_sampled_finish_f32,
        F16: relata_sampled_finish_f16,
        BF16: relata_sampled_finish_bf16,
    };
    /// softmax(x/τ) of every row: a block for a row.
    SOFTMAX: super::logits::SoftmaxArguments, 256 => by GpuDType {
        F32: relata_softmax_f32,
        F16: relata_softmax_f16,
        BF16: relata_softmax_bf16,
    };
    /// The pairwise family: products of every two rows.
    PAIRWISE_RELATION_DOT: super::pairwise::RelationArguments, 256 => by GpuDType {
        F32: relata_pairwise_relation_dot_f32,
        F16: relata_pairwise_relation_dot_f16,
        BF16: relata_pairwise_relation_dot_bf16,
    };
    /// The pairwise family: squared distances of every two rows.
    PAIRWISE_RELATION_DIFFERENCE: super::pairwise::RelationArguments, 256 => by GpuDType {
        F32: relata_pairwise_relation_difference_f32,
        F16: relata_pairwise_relation_difference_f16,
        BF16: relata_pairwise_relation_difference_bf16,
    };
    /// Relations and scales, where the normalizer's scope is the matrix.
    PAIRWISE_SCALE_DISTANCE_MEAN: super::pairwise::PenaltyArguments, 128 => once relata_pairwise_scale_distance_mean;
    /// Relations and scales, where the normalizer's scope is the matrix.
    PAIRWISE_SCALE_SQUARED_FROBENIUS: super::pairwise::PenaltyArguments, 128 => once relata_pairwise_scale_squared_frobenius;
    /// The penalties; where the scope is a row, relations and scales too.
    PAIRWISE_PENALTY_SP: super::pairwise::PenaltyArguments, 128 => once relata_pairwise_penalty_sp;
    /// The penalties; where the scope is a row, relations and scales too.
    PAIRWISE_PENALTY_DISTANCE_MEAN_HUBER: super::pairwise::PenaltyArguments, 128 => once relata_pairwise_penalty_distance_mean_huber;
    /// The penalties; where the scope is a row, relations and scales too.
    PAIRWISE_PENALTY_GRAM: super::pairwise::PenaltyArguments, 128 => once relata_pairwise_penalty_gram;
    /// The penalties; where the scope is a row, relations and scales too.
    PAIRWISE_PENALTY_GRAM_CLAMPED: super::pairwise::PenaltyArguments, 128 => once relata_pairwise_penalty_gram_clamped;
    /// The penalties; where the scope is a row, relations and scales too.
    PAIRWISE_PENALTY_PKT: super::pairwise::PenaltyArguments, 128 => once relata_pairwise_penalty_pkt;
    /// The penalties; where the scope is a row, relations and scales too.
    PAIRWISE_PENALTY_SQUARED_FROBENIUS_HUBER: super::pairwise::PenaltyArguments, 128 => once relata_pairwise_penalty_squared_frobenius_huber;
    /// The coefficients of the contraction.
    PAIRWISE_COEFFICIENTS_SP: super::pairwise::CoefficientArguments, 128 => once relata_pairwise_coefficients_sp;
    /// The coefficients of the contraction.
    PAIRWISE_COEFFICIENTS_DISTANCE_MEAN_HUBER: super::pairwise::CoefficientArguments, 128 => once relata_pairwise_coefficients_distance_mean_huber;
    /// The coefficients of the contraction.
    PAIRWISE_COEFFICIENTS_GRAM: super::pairwise::CoefficientArguments, 128 => once relata_pairwise_coefficients_gram;
    /// The coefficients of the contraction.
    PAIRWISE_COEFFICIENTS_GRAM_CLAMPED: super::pairwise::CoefficientArguments, 128 => once relata_pairwise_coefficients_gram_clamped;
    /// The coefficients of the contraction.
    PAIRWISE_COEFFICIENTS_PKT: super::pairwise::CoefficientArguments, 128 => once relata_pairwise_coefficients_pkt;
    /// The coefficients of the contraction.
    PAIRWISE_COEFFICIENTS_SQUARED_FROBENIUS_HUBER: super::pairwise::CoefficientArguments, 128 => once relata_pairwise_coefficients_squared_frobenius_huber;
    /// The order of pairs: both similarities of every pair i < j, in a row.
    PAIRWISE_ORDER_COLLECT: super::pairwise::OrderArguments, 128 => once relata_pairwise_order_collect;
    /// The order of pairs: every pair compared with every pair, the loss and the coefficients.
    PAIRWISE_ORDER_COUNT: super::pairwise::OrderArguments, 256 => once relata_pairwise_order_count;
    /// The ranking of neighbours: which they are, their coefficients, and the loss of each row.
    PAIRWISE_RANKING_SELECT: super::pairwise::RankingArguments, 128 => by GpuDType {
        F32: relata_pairwise_ranking_select_f32,
        F16: relata_pairwise_ranking_select_f16,
        BF16: relata_pairwise_ranking_select_bf16,
    };
    /// The ranking of neighbours: the matrix of coefficients.
    PAIRWISE_RANKING_SPREAD: super::pairwise::RankingArguments, 128 => once relata_pairwise_ranking_spread;
    /// The gradient and the loss: Σ K_ij x_j.
    PAIRWISE_CONTRACTION_DOT: super::pairwise::ContractionArguments, 256 => by GpuDType {
        F32: relata_pairwise_contraction_dot_f32,
        F16: relata_pairwise_contraction_dot_f16,
        BF16: relata_pairwise_contraction_dot_bf16,
    };
    /// The gradient and the loss: Σ K_ij (x_i − x_j).
    PAIRWISE_CONTRACTION_DIFFERENCE: super::pairwise::ContractionArguments, 256 => by GpuDType {
        F32: relata_pairwise_contraction_difference_f32,
        F16: relata_pairwise_contraction_difference_f16,
        BF16: relata_pairwise_contraction_difference_bf16,
    };
}
