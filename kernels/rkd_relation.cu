// Computes   h = ½ ‖x_i − x_j‖² and r = 1/‖x_i − x_j‖ of all pairs of rows, of the student and of the teacher, with
//            the mean length and the spread (longest over shortest) of each; decides which path is accurate enough.
// Buffers    rows [N, D] f32, f16 or bf16, aligned to their element; h, symmetric tiles, f32 (fast) or f64 (accurate), or
//            none; r [P, P] f32, P the rows up to a multiple of 64 (see common/rkd.cuh); partials [2, tile pairs]; scalars.
// Passes     two kernels. `rkd_relation` works in f32; if what it finds asks for more (a spread beyond the limit, or
//            squares out of f32's range), it says so in the scalars and `rkd_relation_accurate`, launched after it,
//            does it again in f64. Else that one returns at once. Of few rows it is one: `rkd_relation_small_batch`, in f64.
// Grid       (tile pairs a ≤ b of P rows, 2): student and teacher in one launch.
// Block      256 threads; tiles of 16, 32 or 64 rows a side, 1, 4 or 16 pairs a thread: see common/pair_tile.cuh. Of few
//            rows tiles of 8 or 12, the dimensions cut among the threads, so that all of a GPU has work and no block much.
// Shared     34 KiB: both sides of the tile, 32 dimensions (f64: 16) at a time, and the next. Few: 36 KiB,
//            256 dimensions of 8 rows a side or 128 of 12.
// Registers  at most 128.
// Resident   relata_rkd_relation_f32 2 of 256 threads; relata_rkd_relation_accurate_f32 2 of 256 threads;
//            relata_rkd_relation_small_batch_f32 4 of 256 threads
// SASS       LDG.E.128, LDS.128
// Work       N² D flop for each of the two (2 instructions an element of an unordered pair);
//            (N / tile) N D elements read, 6 N² bytes written (accurate: 8 N²).
// Floor      FP32 issue: N² D / 33.4e12 s for each on an H200; f64 at half that rate.
// Numerics   from differences, never from a Gram matrix: right however close rows lie. Short sums, added up.
// Order      fixed: dimensions in order (few: in each of 16 groups of threads); lengths by thread, warp, block; blocks by
//            the last one or, of few rows, by whoever is in need of them.
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
    uint32_t padding;
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
    // Where the tile of 64 x 64 lies of which this one is a part, or nowhere; whether the mirror image is another tile,
    // and whether it is in the same of 64 x 64.
    Real* h = nullptr;
    float* r = nullptr;
    bool mirrored = false, mirrored_within = false;

    // Of the pairs (i, j) of a tile of which this says that its mirror image is another one.
    DEVICE void locate(uint32_t i, uint32_t j, bool is_mirrored) {
        const uint32_t a = i / rkd::TILE, b = j / rkd::TILE;
        // What lies below the diagonal has been put above it.
        h = a > b ? nullptr : static_cast<Real*>(arguments.h[blockIdx.y]);
        if (h != nullptr) h += rkd::tile_at(a, b);
        r = arguments.r[blockIdx.y];
        mirrored = is_mirrored;
        mirrored_within = mirrored && a == b;
    }

    // What is to be known of a pair.
    DEVICE void put(uint32_t i, uint32_t j, Real of_pair) {
        const uint32_t n = arguments.n, pitch = rkd::padded(n);
        const bool inside = i < n && j < n;
        const Real squared = inside ? of_pair : 0;
        const Real length = sqrt(squared);
        // In f64 no length between f32 rows vanishes that isn't 0. Below 2^-128 there is no 1/d in f32: the largest there is.
        const Real inverse = 1 / length, most = 0x1p127f;
        const float reciprocal = squared > 0 ? static_cast<float>(inverse < most ? inverse : most) : 0.0f;
        r[static_cast<uint64_t>(i) * pitch + j] = reciprocal;
        if (mirrored) r[static_cast<uint64_t>(j) * pitch + i] = reciprocal;
        if (h != nullptr) {
            const unsigned row = i % rkd::TILE, column = j % rkd::TILE;
            h[row * rkd::TILE + column] = squared / 2;
            if (mirrored_within) h[column * rkd::TILE + row] = squared / 2;
        }
        // The diagonal is 0 unless the row isn't finite.
        if (inside && i <= j) {
            sum += static_cast<double>(length);
            longest = fmax(longest, squared);
            if (i != j) shortest = fmin(shortest, squared);
        }
    }

    template <unsigned PER, typename T>
    DEVICE void run() {
        constexpr uint32_t SIDE = 16 * PER;
        const unsigned which = blockIdx.y;
        const auto [a, b] = pair_tile::pair_of(blockIdx.x);
        const T* rows = static_cast<const T*>(arguments.rows[which]);
        Real squares[PER][PER];
        pair_tile::sums<PER, pair_tile::SquaredDifference>(rows, arguments.n, arguments.dim[which], a * SIDE, b * SIDE,
                                                           shared, squares);
        locate(a * SIDE, b * SIDE, a != b);
        UNROLL
        for (unsigned p = 0; p < PER; p++) {
            UNROLL
            for (unsigned q = 0; q < PER; q++)
                put(a * SIDE + threadIdx.x / 16 * PER + p, b * SIDE + threadIdx.x % 16 * PER + q, squares[p][q]);
        }
    }

    template <unsigned PER, typename T>
    DEVICE void run_few() {
        using Few = pair_tile::Few<PER, Real>;
        constexpr uint32_t SIDE = Few::SIDE;
        const unsigned which = blockIdx.y;
        const auto [a, b] = pair_tile::pair_of(blockIdx.x);
        const T* rows = static_cast<const T*>(arguments.rows[which]);
        const Real squared = pair_tile::sum_of_few<PER, pair_tile::SquaredDifference>(
            rows, arguments.n, arguments.dim[which], a * SIDE, b * SIDE, shared);
        const uint32_t i = a * SIDE + threadIdx.x / SIDE, j = b * SIDE + threadIdx.x % SIDE, end = rkd::padded(arguments.n);
        // The last tile may reach beyond the matrices.
        if (threadIdx.x >= Few::PAIRS || i >= end || j >= end) return;
        locate(i, j, a != b);
        put(i, j, squared);
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

// What the block knows of the lengths goes to its slot.
template <typename Real>
DEVICE void put_lengths(const Tile<Real>& tile) {
    const Arguments& arguments = tile.arguments;
    const rkd::Lengths lengths{tile.sum, static_cast<double>(tile.longest), static_cast<double>(tile.shortest)};
    const rkd::Lengths all = block_reduce<THREADS>(lengths, rkd::Together());
    if (threadIdx.x == 0) arguments.partials[blockIdx.y * gridDim.x + blockIdx.x] = all;
}

template <typename T>
DEVICE void rkd_relation(const Arguments& arguments) {
    SHARED_ARRAY(float, shared, pair_tile::SHARED<float>);
    Tile<float> tile{arguments, shared};
    tile.template run<T>();
    put_lengths(tile);
    if (!is_last_block(arguments.counter)) return;

    const rkd::Both both = rkd::lengths_of(arguments.partials, gridDim.x);
    if (threadIdx.x > 0) return;
    bool accurate = false;
    UNROLL
    for (unsigned which = 0; which < 2; which++) {
        const rkd::Lengths& all = both.of[which];
        const double limit = arguments.spread_limit;
        // A square that overflows, or has lost digits to underflow, is f64's business; so is whatever isn't finite.
        if (!(all.longest < 1e30) || all.shortest < 1e-30 || !(all.sum < 1e30)) accurate = true;
        if (all.longest > limit * limit * all.shortest) accurate = true;
        arguments.scalars->mean[which] = rkd::mean_of(all.sum, arguments.n);
        arguments.scalars->unit[which] = 1;
    }
    arguments.scalars->poison = 0;
    arguments.scalars->accurate = accurate;
}

template <typename T>
DEVICE void rkd_relation_accurate(const Arguments& arguments) {
    if (!arguments.scalars->accurate) return;
    SHARED_ARRAY(double, shared, pair_tile::SHARED<double>);
    Tile<double> tile{arguments, shared};
    tile.template run<T>();
    put_lengths(tile);
    if (!is_last_block(arguments.counter)) return;
    const rkd::Both both = rkd::lengths_of(arguments.partials, gridDim.x);
    if (threadIdx.x == 0) *arguments.scalars = rkd::accurate_scalars(both, arguments.n);
}

template <typename T>
DEVICE void rkd_relation_small_batch(const Arguments& arguments) {
    using Eight = pair_tile::Few<2, double>;
    using Twelve = pair_tile::Few<3, double>;
    static_assert(Eight::SHARED >= Twelve::SHARED, "room for either");
    SHARED_ARRAY(double, shared, Eight::SHARED);
    Tile<double> tile{arguments, shared};
    if (arguments.side == Twelve::SIDE) {
        tile.template run_few<3, T>();
    } else {
        tile.template run_few<2, T>();
    }
    put_lengths(tile);
}

}  // namespace

EXPORT_KERNEL(relata_rkd_relation_f32, THREADS, 2, Arguments, rkd_relation<float>);
EXPORT_KERNEL(relata_rkd_relation_f16, THREADS, 2, Arguments, rkd_relation<f16>);
EXPORT_KERNEL(relata_rkd_relation_bf16, THREADS, 2, Arguments, rkd_relation<bf16>);
EXPORT_KERNEL(relata_rkd_relation_accurate_f32, THREADS, 2, Arguments, rkd_relation_accurate<float>);
EXPORT_KERNEL(relata_rkd_relation_accurate_f16, THREADS, 2, Arguments, rkd_relation_accurate<f16>);
EXPORT_KERNEL(relata_rkd_relation_accurate_bf16, THREADS, 2, Arguments, rkd_relation_accurate<bf16>);
EXPORT_KERNEL(relata_rkd_relation_small_batch_f32, THREADS, 4, Arguments, rkd_relation_small_batch<float>);
EXPORT_KERNEL(relata_rkd_relation_small_batch_f16, THREADS, 4, Arguments, rkd_relation_small_batch<f16>);
EXPORT_KERNEL(relata_rkd_relation_small_batch_bf16, THREADS, 4, Arguments, rkd_relation_small_batch<bf16>);
