// Computes   The relations r of student and teacher from their sums over the dimensions, their
//            scales s, and the penalties of u and v, u = r(X)/s(X), v = r(Y)/s(Y):
//              loss of row i      l_i = Σ_j pen(u_ij, v_ij)
//              weighted scale     S = Σ_j w_ij u_ij, w = pen', over the normalizer's scope
// Buffers    slots [slices, P, P] f32 of student and teacher, P the rows up to a multiple of 64,
//            zero beyond N: slot 0 becomes r; units [2] f32; sums [2, P] f64; scales [P], or [1] if
//            the scope is the matrix; losses [P] f64; partials [P] f64; weighted [P] f32, or [1].
// Passes     after pairwise_relation. Where the scope is a row, `penalty` does all of it. Where it
//            is the matrix, `scale` makes r and the scales, and `penalty` the rest; in both, the
//            block that ends last adds up what the rows' blocks have left.
// Grid       P rows: blocks of rows beyond N write the zeros that the next passes read.
// Block      128 threads, four pairs side by side a thread.
// Shared     less than 1 KiB, for reductions.
// Registers  at most 64.
// SASS       LDG.E.128
// Work       8 slices bytes read of a pair, and 16 flop in f32 and 3 in f64.
// Floor      bandwidth: 8 N² slices bytes, or 8 N² (slices + 1) and 8 written if r is written; L2
//            holds them up to N = 2048.
// Numerics   terms of the normalizer and their sums in f64. u − v from 1/s as a pair of f32: see
//            common/pairwise.cuh. Penalties of four pairs are summed in f32, and those in f64.
//            Relations below 2^-110 times the square of the unit count as 0.
// Order      fixed: slices in order; sums by thread, warp, block, and row.
// Reference  src/reference/sp.rs, rkd_distance.rs; docs/maths/pairwise.md.
#include "common/collective.cuh"
#include "common/pairwise.cuh"
#include "ops/normalizer.cuh"
#include "ops/penalty.cuh"
#include "ops/relation.cuh"

namespace {

using normalizer::Scope;
using pairwise::Inverse;
using pairwise::ScaledPair;
using pairwise::Scales;

constexpr unsigned THREADS = 128;
// Pairs side by side of a thread.
constexpr unsigned SIDE_BY_SIDE = 4;

// Mirrored in src/gpu/pairwise/arguments.rs.
struct Arguments {
    float* r[2];  // [slices, P, P]
    const float* units;  // null if both are 1
    double* sums;
    Scales* scales;
    double* losses;
    double* partials;
    float* weighted;
    unsigned* counter;
    uint32_t slices[2];
    uint32_t n;
    float parameter;
};
ARGUMENTS(Arguments, r, units, sums, scales, losses, partials, weighted, counter, slices, n, parameter);

// The row of the block.
template <typename Relation, typename Normalizer, typename Penalty>
struct Row {
    const Arguments& arguments;
    uint32_t padded;

    DEVICE explicit Row(const Arguments& arguments)
        : arguments(arguments), padded(pairwise::padded(arguments.n)) {}

    // Four relations from column j on: a multiple of 4 into the matrix, as the compiler can see.
    DEVICE uint64_t at(uint32_t j) const {
        return SIDE_BY_SIDE * (static_cast<uint64_t>(blockIdx.x) * (padded / SIDE_BY_SIDE) + j / SIDE_BY_SIDE);
    }

    // Makes the relations of its sums, and gives the sum of the normalizer's terms, in every
    // thread.
    DEVICE double make(unsigned which) const {
        float* r = arguments.r[which];
        const uint32_t slices = arguments.slices[which];
        const uint64_t slot = static_cast<uint64_t>(padded) * padded;
        double sum = 0;
        for (uint32_t j = threadIdx.x * SIDE_BY_SIDE; j < padded; j += THREADS * SIDE_BY_SIDE) {
            float four[SIDE_BY_SIDE] = {};
            UNROLL_BY(4)
            for (uint32_t s = 0; s < slices; s++) {
                float of_slice[SIDE_BY_SIDE];
                pair_tile::load_side_by_side(r + s * slot + at(j), of_slice);
                UNROLL
                for (unsigned q = 0; q < SIDE_BY_SIDE; q++) four[q] += of_slice[q];
            }
            UNROLL
            for (unsigned q = 0; q < SIDE_BY_SIDE; q++) {
                four[q] = Relation::of_sum(four[q]);
                if (!Relation::KEEPS_ZERO && (blockIdx.x >= arguments.n || j + q >= arguments.n)) four[q] = 0;
                if (Normalizer::HAS_DIAGONAL || j + q != blockIdx.x) sum += Normalizer::term(four[q]);
            }
            if (!Relation::IS_SUM || slices > 1) store4(r + at(j), four[0], four[1], four[2], four[3]);
        }
        return block_reduce<THREADS>(sum, Sum());
    }

    // s as a reciprocal, from the sum over the scope.
    DEVICE Inverse inverse(unsigned which, double sum) const {
        const double unit = arguments.units == nullptr ? 1.0 : static_cast<double>(arguments.units[which]);
        return Inverse::of(Normalizer::scale(sum, arguments.n, Relation::of_unit(unit)));
    }

    // {l_i, Σ_j w_ij u_ij}, in every thread. Each thread reads relations that it has made itself.
    DEVICE void penalize(const Scales& scales, double (&sums)[2]) const {
        const Penalty penalty(arguments.parameter);
        sums[0] = sums[1] = 0;
        for (uint32_t j = threadIdx.x * SIDE_BY_SIDE; j < padded; j += THREADS * SIDE_BY_SIDE) {
            float x[SIDE_BY_SIDE], y[SIDE_BY_SIDE], loss = 0, weighted = 0;
            pair_tile::load_side_by_side(arguments.r[0] + at(j), x);
            pair_tile::load_side_by_side(arguments.r[1] + at(j), y);
            UNROLL
            for (unsigned q = 0; q < SIDE_BY_SIDE; q++) {
                const auto pair = ScaledPair::of(x[q], y[q], scales);
                loss += penalty.value(pair);
                weighted = fmaf(penalty.slope(pair), pair.u, weighted);
            }
            sums[0] += loss;
            sums[1] += weighted;
        }
        block_sums<THREADS>(sums);
    }
};

// Where the scope is the matrix: r, and the scales.
template <typename Relation, typename Normalizer>
DEVICE void scale(const Arguments& arguments) {
    static_assert(Normalizer::SCOPE == Scope::Matrix);
    const Row<Relation, Normalizer, penalty::Squared> row(arguments);
    UNROLL
    for (unsigned which = 0; which < 2; which++) {
        const double sum = row.make(which);
        if (threadIdx.x == 0) arguments.sums[which * row.padded + blockIdx.x] = sum;
    }
    if (!is_last_block(arguments.counter)) return;
    Scales scales;
    UNROLL
    for (unsigned which = 0; which < 2; which++)
        scales.of[which] = row.inverse(which, block_sum_of<THREADS>(arguments.sums + which * row.padded, row.padded));
    if (threadIdx.x == 0) arguments.scales[0] = scales;
}

template <typename Relation, typename Normalizer, typename Penalty>
DEVICE void penalize(const Arguments& arguments) {
    const Row<Relation, Normalizer, Penalty> row(arguments);
    double sums[2];
    if constexpr (Normalizer::SCOPE == Scope::Row) {
        Scales scales;
        UNROLL
        for (unsigned which = 0; which < 2; which++) scales.of[which] = row.inverse(which, row.make(which));
        row.penalize(scales, sums);
        if (threadIdx.x == 0) {
            arguments.scales[blockIdx.x] = scales;
            arguments.losses[blockIdx.x] = sums[0];
            arguments.weighted[blockIdx.x] = static_cast<float>(sums[1]);
        }
    } else {
        row.penalize(arguments.scales[0], sums);
        if (threadIdx.x == 0) {
            arguments.losses[blockIdx.x] = sums[0];
            arguments.partials[blockIdx.x] = sums[1];
        }
        if (!is_last_block(arguments.counter)) return;
        const double weighted = block_sum_of<THREADS>(arguments.partials, row.padded);
        if (threadIdx.x == 0) arguments.weighted[0] = static_cast<float>(weighted);
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

// SP.
EXPORT_KERNEL(relata_pairwise_penalty_sp, THREADS, 8, Arguments, penalize<Dot, RowL2, Squared>);
// RKD's distance, which has kernels of its own: a second opinion on it.
EXPORT_KERNEL(relata_pairwise_scale_distance_mean, THREADS, 8, Arguments, scale<Distance, Mean>);
EXPORT_KERNEL(relata_pairwise_penalty_distance_mean_huber, THREADS, 8, Arguments, penalize<Distance, Mean, Huber>);
// Gram anchoring.
EXPORT_KERNEL(relata_pairwise_penalty_gram, THREADS, 8, Arguments, penalize<Dot, None, Squared>);
EXPORT_KERNEL(relata_pairwise_penalty_gram_clamped, THREADS, 8, Arguments, penalize<Positive, None, Squared>);
// PKT.
EXPORT_KERNEL(relata_pairwise_penalty_pkt, THREADS, 8, Arguments, penalize<Shifted, RowSum, Divergence>);
// No loss: with these, an instance tests each part.
EXPORT_KERNEL(relata_pairwise_scale_squared_frobenius, THREADS, 8, Arguments, scale<SquaredDistance, Frobenius>);
EXPORT_KERNEL(relata_pairwise_penalty_squared_frobenius_huber, THREADS, 8, Arguments, penalize<SquaredDistance, Frobenius, Huber>);
