// Computes   The coefficients of the contraction, k_ij, of the slope that the loss has through r_ij
//            and r_ji:
//              C_ij = (w_ij − S ∂s/∂r_ij)/s, K_ij = C_ij + C_ji, and k_ij = K_ij (dot; where it is
//              positive, of the positive cosine), ½ K_ij (shifted cosine), K_ij/r_ij (distance),
//              2 K_ij (squared distance). All are N² times ∂L/∂r; the contraction divides.
// Buffers    r [P, P] f32 of student and teacher, P the rows up to a multiple of 64, zero beyond N;
//            scales [P] and weighted [P] f32, or one of each where the normalizer's scope is the
//            matrix. k overwrites the student's r.
// Passes     one launch, after pairwise_penalty. In the contraction, this work would be done again
//            for each 64 dimensions.
// Grid       P rows.
// Block      128 threads, four pairs side by side a thread.
// Shared     none.
// Registers  at most 64.
// SASS       LDG.E.128, STG.E.128
// Work       8 bytes read of a pair, 4 written; 22 flop for each of C_ij and C_ji.
// Floor      bandwidth: 12 N² bytes; L2 holds them up to N = 2048.
// Numerics   f32; u − v from 1/s as a pair of f32: see common/pairwise.cuh. r is symmetric to the
//            bit, so C_ji comes from r_ij and what is known of row j, without a transposed read,
//            and k is symmetric to the bit.
// Order      no sums.
// Reference  src/reference/sp.rs, rkd_distance.rs; docs/maths/pairwise.md.
#include "common/pairwise.cuh"
#include "ops/normalizer.cuh"
#include "ops/penalty.cuh"
#include "ops/relation.cuh"

namespace {

using normalizer::Scope;
using pairwise::ScaledPair;
using pairwise::Scales;

constexpr unsigned THREADS = 128;
// Pairs side by side of a thread.
constexpr unsigned SIDE_BY_SIDE = 4;

// Mirrored in src/gpu/pairwise/arguments.rs.
struct Arguments {
    float* student;  // r, then k
    const float* teacher;
    const Scales* scales;
    const float* weighted;
    uint32_t n;
    float parameter;
};
ARGUMENTS(Arguments, student, teacher, scales, weighted, n, parameter);

template <typename Relation, typename Normalizer, typename Penalty>
DEVICE void coefficients(const Arguments& arguments) {
    const uint32_t n = arguments.n, padded = pairwise::padded(n), i = blockIdx.x;
    const Penalty penalty(arguments.parameter);
    constexpr bool PER_ROW = Normalizer::SCOPE == Scope::Row;
    // C_ij, by what is known of row i.
    const auto slope = [&](float x, float y, bool diagonal, const Scales& scales, float weighted) {
        const float w = penalty.slope(ScaledPair::of(x, y, scales));
        float through_scale = Normalizer::slope(x * scales.of[0].high, n);
        if (!Normalizer::HAS_DIAGONAL && diagonal) through_scale = 0;
        return fmaf(-weighted, through_scale, w) * scales.of[0].high;
    };
    const Scales scales = arguments.scales[PER_ROW ? i : 0];
    const float weighted = arguments.weighted[PER_ROW ? i : 0];
    for (uint32_t j = threadIdx.x * SIDE_BY_SIDE; j < padded; j += THREADS * SIDE_BY_SIDE) {
        const uint64_t at = SIDE_BY_SIDE * (static_cast<uint64_t>(i) * (padded / SIDE_BY_SIDE) + j / SIDE_BY_SIDE);
        float x[SIDE_BY_SIDE], y[SIDE_BY_SIDE], k[SIDE_BY_SIDE];
        pair_tile::load_side_by_side(arguments.student + at, x);
        pair_tile::load_side_by_side(arguments.teacher + at, y);
        UNROLL
        for (unsigned q = 0; q < SIDE_BY_SIDE; q++) {
            const bool diagonal = j + q == i;
            const float direct = slope(x[q], y[q], diagonal, scales, weighted);
            float mirrored = direct;
            if constexpr (PER_ROW)
                mirrored = slope(x[q], y[q], diagonal, arguments.scales[j + q], arguments.weighted[j + q]);
            k[q] = Relation::weight(direct + mirrored, x[q]);
        }
        store4(arguments.student + at, k[0], k[1], k[2], k[3]);
    }
}

using normalizer::Frobenius;
using normalizer::Mean;
using normalizer::None;
using normalizer::RowL2;
using normalizer::RowSum;
using penalty::Divergence;
using penalty::Huber;
using penalty::Squared;
using relation::Distance;
using relation::Dot;
using relation::Positive;
using relation::Shifted;
using relation::SquaredDistance;

}  // namespace

EXPORT_KERNEL(relata_pairwise_coefficients_sp, THREADS, 8, Arguments, coefficients<Dot, RowL2, Squared>);
EXPORT_KERNEL(relata_pairwise_coefficients_distance_mean_huber, THREADS, 8, Arguments, coefficients<Distance, Mean, Huber>);
EXPORT_KERNEL(relata_pairwise_coefficients_gram, THREADS, 8, Arguments, coefficients<Dot, None, Squared>);
EXPORT_KERNEL(relata_pairwise_coefficients_gram_clamped, THREADS, 8, Arguments, coefficients<Positive, None, Squared>);
EXPORT_KERNEL(relata_pairwise_coefficients_pkt, THREADS, 8, Arguments, coefficients<Shifted, RowSum, Divergence>);
EXPORT_KERNEL(relata_pairwise_coefficients_squared_frobenius_huber, THREADS, 8, Arguments, coefficients<SquaredDistance, Frobenius, Huber>);
