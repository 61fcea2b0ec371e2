// Computes   h = ½ ‖x_i − x_j‖² and r = 1/‖x_i − x_j‖ of all pairs of rows, of the student and of the teacher, with
//            the mean length and the spread (longest over shortest) of each; decides which path is accurate enough.
// Buffers    rows [N, D] f32, f16 or bf16, aligned to their element; h, symmetric tiles, f32 (fast) or f64 (accurate), or
//            none; r [P, P] f32, P the rows up to a multiple of 64 (see common/rkd.cuh); partials [2, tile pairs]; scalars.
// Passes     two kernels. `rkd_relation` works in f32; if what it finds asks for more (a spread beyond the limit, or
//            squares out of f32's range), it says so in the scalars and `rkd_relation_accurate`, launched after it,
//            does it again in f64. Else that one returns at once.
// Grid       (tile pairs a ≤ b of P rows, 2): student and teacher in one launch.
// Block      256 threads; tiles of 16, 32 or 64 rows a side, 1, 4 or 16 pairs a thread: see common/pair_tile.cuh.
// Shared     34 KiB: both sides of the tile, 32 dimensions (f64: 16) at a time, and the next.
// Registers  at most 128.
// SASS       LDG.E.128, LDS.128
// Work       N² D flop for each of the two (2 instructions an element of an unordered pair);
//            (N / tile) N D elements read, 6 N² bytes written (accurate: 8 N²).
// Floor      FP32 issue: N² D / 33.4e12 s for each on an H200; f64 at half that rate.
// Numerics   from differences, never from a Gram matrix: right however close rows lie. Short sums, added up.
// Order      fixed: dimensions in order; lengths by thread, warp, block; blocks by the last one.
// Reference  src/reference/rkd_distance.rs; Park et al., arXiv 1904.05068.
#include "common/collective.cuh"
#include "common/pair_tile.cuh"
#include "common/rkd.cuh"

namespace {

using pair_tile::THREADS;

struct Arguments {
    const void* rows[2];
    void* h[2];
    float* r[2];
    rkd::Lengths* partials;
    rkd::Scalars* scalars;
    unsigned* counter;
    uint32_t n;
    uint32_t dim[2];
    uint32_t side;
    float spread_limit;
    // Whether no fast pass came before.
    uint32_t accurate_only;
};

// What a pass works in and leaves behind.
template <typename Real>
struct Tile {
    const Arguments& arguments;
    Real* shared;
    // Of this thread's pairs.
    double sum = 0;
    // Squared. The shortest is 0 where rows coincide, or where a square in f32 has vanished: f64 tells.
    Real longest = 0, shortest = 1e30f;

    template <unsigned PER, typename T>
    DEVICE void run() {
        const unsigned which = blockIdx.y;
        const uint32_t n = arguments.n, side = 16 * PER;
        const auto [a, b] = pair_tile::pair_of(blockIdx.x);
        const T* rows = static_cast<const T*>(arguments.rows[which]);
        Real squares[PER][PER];
        pair_tile::sums<PER, pair_tile::SquaredDifference>(rows, n, arguments.dim[which], a * side, b * side, shared,
                                                           squares);
        // A tile of 64 x 64, which this one lies in.
        Real* h = static_cast<Real*>(arguments.h[which]);
        const uint32_t tile_a = a * side / rkd::TILE, tile_b = b * side / rkd::TILE, pitch = rkd::padded(n);
        if (h != nullptr) h += rkd::tile_at(tile_a, tile_b);
        float* r = arguments.r[which];
        UNROLL
        for (unsigned p = 0; p < PER; p++) {
            UNROLL
            for (unsigned q = 0; q < PER; q++) {
                const uint32_t i = a * side + threadIdx.x / 16 * PER + p, j = b * side + threadIdx.x % 16 * PER + q;
                const bool inside = i < n && j < n;
                const Real squared = inside ? squares[p][q] : 0;
                const Real length = sqrt(squared);
                // In f64 no length between f32 rows vanishes that isn't 0; as f32 it may.
                const float reciprocal = squared > 0 ? static_cast<float>(1 / length) : 0.0f;
                r[static_cast<uint64_t>(i) * pitch + j] = reciprocal;
                if (a != b) r[static_cast<uint64_t>(j) * pitch + i] = reciprocal;
                if (h != nullptr) {
                    const unsigned row = i % rkd::TILE, column = j % rkd::TILE;
                    h[row * rkd::TILE + column] = squared / 2;
                    if (a != b && tile_a == tile_b) h[column * rkd::TILE + row] = squared / 2;
                }
                if (!inside) continue;
                // The diagonal is 0 unless the row isn't finite.
                if (i <= j) {
                    sum += static_cast<double>(length);
                    longest = fmax(longest, squared);
                    if (i != j) shortest = fmin(shortest, squared);
                }
            }
        }
    }

    template <typename T>
    DEVICE void run() {
        if (arguments.side == 64) {
            run<4, T>();
        } else if (arguments.side == 32) {
            run<2, T>();
        } else {
            run<1, T>();
        }
    }
};

template <typename V>
DEVICE rkd::Lengths of_block(double sum, V longest, V shortest) {
    rkd::Lengths lengths;
    lengths.sum = block_reduce<THREADS>(sum, Sum());
    lengths.longest = block_reduce<THREADS>(longest, Max());
    lengths.shortest = block_reduce<THREADS>(shortest, Min());
    return lengths;
}

// This block's tile, and its share of what is known of the lengths. Whether this is the last block.
template <typename Real, typename T>
DEVICE bool relate(const Arguments& arguments) {
    SHARED_ARRAY(Real, shared, pair_tile::SHARED<Real>);
    Tile<Real> tile{arguments, shared};
    tile.template run<T>();
    const rkd::Lengths lengths = of_block(tile.sum, tile.longest, tile.shortest);
    if (threadIdx.x == 0) arguments.partials[blockIdx.y * gridDim.x + blockIdx.x] = lengths;
    return is_last_block(arguments.counter);
}

// The lengths of all pairs of the student or the teacher, in every thread of the last block.
DEVICE rkd::Lengths of_all(const rkd::Lengths* partials, uint32_t count) {
    double sum = 0, longest = 0, shortest = 1e30;
    for (uint32_t i = threadIdx.x; i < count; i += THREADS) {
        sum += partials[i].sum;
        longest = fmax(longest, partials[i].longest);
        shortest = fmin(shortest, partials[i].shortest);
    }
    return of_block(sum, longest, shortest);
}

DEVICE double mean_of(double sum, uint32_t n) {
    return n > 1 ? sum / (0.5 * static_cast<double>(n) * (n - 1.0)) : sum;
}

template <typename T>
DEVICE void rkd_relation(const Arguments& arguments) {
    if (!relate<float, T>(arguments)) return;

    bool accurate = false;
    for (unsigned which = 0; which < 2; which++) {
        const rkd::Lengths all = of_all(arguments.partials + which * gridDim.x, gridDim.x);
        const double limit = arguments.spread_limit;
        // A square that overflows, or has lost digits to underflow, is f64's business; so is whatever isn't finite.
        if (!(all.longest < 1e30) || all.shortest < 1e-30 || !(all.sum < 1e30)) accurate = true;
        if (all.longest > limit * limit * all.shortest) accurate = true;
        if (threadIdx.x == 0) {
            arguments.scalars->mean[which] = mean_of(all.sum, arguments.n);
            arguments.scalars->unit[which] = 1;
        }
    }
    if (threadIdx.x == 0) {
        arguments.scalars->poison = 0;
        arguments.scalars->accurate = accurate;
    }
}

template <typename T>
DEVICE void rkd_relation_accurate(const Arguments& arguments) {
    if (!arguments.accurate_only && !arguments.scalars->accurate) return;
    if (!relate<double, T>(arguments)) return;

    double poison = 0;
    for (unsigned which = 0; which < 2; which++) {
        const rkd::Lengths all = of_all(arguments.partials + which * gridDim.x, gridDim.x);
        poison += all.sum * 0.0;
        // Within f32's range, where it is used.
        const double exponent = fmin(fmax(-floor(0.5 * log2(all.longest)), -126.0), 126.0);
        const double unit = all.longest > 0 && all.longest < 1e300 ? exp2(exponent) : 1.0;
        if (threadIdx.x == 0) {
            arguments.scalars->mean[which] = mean_of(all.sum, arguments.n) * unit;
            arguments.scalars->unit[which] = unit;
        }
    }
    if (threadIdx.x == 0) {
        arguments.scalars->poison = poison;
        arguments.scalars->accurate = 1;
    }
}

}  // namespace

EXPORT_KERNEL(relata_rkd_relation_f32, THREADS, 2, Arguments, rkd_relation<float>);
EXPORT_KERNEL(relata_rkd_relation_f16, THREADS, 2, Arguments, rkd_relation<f16>);
EXPORT_KERNEL(relata_rkd_relation_bf16, THREADS, 2, Arguments, rkd_relation<bf16>);
EXPORT_KERNEL(relata_rkd_relation_accurate_f32, THREADS, 2, Arguments, rkd_relation_accurate<float>);
EXPORT_KERNEL(relata_rkd_relation_accurate_f16, THREADS, 2, Arguments, rkd_relation_accurate<f16>);
EXPORT_KERNEL(relata_rkd_relation_accurate_bf16, THREADS, 2, Arguments, rkd_relation_accurate<bf16>);
