// Computes   h = ½ ‖x_i − x_j‖² and r = 1/‖x_i − x_j‖ of all pairs of rows, of the student and of
//            the teacher, with the mean length and the spread (longest over shortest) of each.
//            Decides whether the fast path is accurate enough.
// Buffers    rows: [N, D] f32, f16 or bf16, aligned to their element. h: symmetric tiles, f32
//            (fast) or f64 (accurate), or none. r: [P, P] f32, P the rows rounded up to a multiple
//            of 64 (see common/rkd.cuh). partials: [2, tile pairs]. scalars.
// Passes     Two kernels. `rkd_relation` works in f32. If the lengths need more (a spread beyond
//            the limit, or squares out of the range of f32), it says so in the scalars, and
//            `rkd_relation_accurate`, launched after it, computes them again in f64. Otherwise that
//            kernel returns at once. Small batches use one kernel, `rkd_relation_small_batch`, in
//            f64.
// Grid       (tile pairs a ≤ b of P rows, 2): student and teacher in one launch.
// Block      256 threads. Tiles of 16, 32 or 64 rows a side, 1, 4 or 16 pairs a thread: see
//            common/pair_tile.cuh. In small batches tiles of 8 or 12, with the dimensions divided
//            among the threads, so that all of a GPU has work and no block has much.
// Shared     34 KiB: both sides of the tile, 32 dimensions (f64: 16) at a time, and the next ones.
//            Small batches: 36 KiB, 256 dimensions of 8 rows a side or 128 of 12.
// Registers  at most 128.
// Resident   relata_rkd_relation_f32 2 of 256 threads; relata_rkd_relation_accurate_f32 2 of 256
//            threads; relata_rkd_relation_small_batch_f32 4 of 256 threads
// SASS       LDG.E.128, LDS.128
// Work       N² D flop for each of the two (2 instructions an element of an unordered pair). (N /
//            tile) N D elements are read, and 6 N² bytes written (accurate: 8 N²).
// Floor      FP32 issue: N² D / 33.4e12 s for each on an H200; f64 at half that rate.
// Numerics   From differences, never from a Gram matrix: accurate however close rows lie. Short
//            sums are added up. Unit rows (`normalize`) that are closer than their rounding may
//            put rows on one line are duplicates: their distance is 0. See docs/decisions/0019.
// Order      Fixed: dimensions in order (small batches: in each of 16 groups of threads). Lengths
//            by thread, warp and block. Blocks are merged by the last block or, in small batches,
//            by each block that needs them.
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
    // Rows whose squared distance is at most this are duplicates. Not 0 only for unit rows.
    float duplicate_square;
};
ARGUMENTS(Arguments, rows, h, r, partials, scalars, counter, n, dim, side, spread_limit,
          duplicate_square);

// The tile of a block, with its statistics of the lengths.
template <typename Real>
struct Tile {
    const Arguments& arguments;
    Real* shared;
    // The sum of the lengths of this thread's pairs.
    double sum = 0;
    // Squared. The shortest is 0 if rows coincide, or if a square has underflowed in f32: f64 tells
    // which.
    Real longest = 0, shortest = 1e30f;
    // The tile of 64 x 64 of h that contains this tile, or null. Whether the mirror image is
    // another tile, and whether it lies in the same tile of 64 x 64.
    Real* h = nullptr;
    float* r = nullptr;
    bool mirrored = false, mirrored_within = false;

    // Finds the place of the tile that contains the pair (i, j). `is_mirrored`: its mirror image is
    // another tile.
    DEVICE void locate(uint32_t i, uint32_t j, bool is_mirrored) {
        const uint32_t a = i / rkd::TILE, b = j / rkd::TILE;
        // Tiles below the diagonal are not stored; their mirror images above it are.
        h = a > b ? nullptr : static_cast<Real*>(arguments.h[blockIdx.y]);
        if (h != nullptr) h += rkd::tile_at(a, b);
        r = arguments.r[blockIdx.y];
        mirrored = is_mirrored;
        mirrored_within = mirrored && a == b;
    }

    // The squared length of a pair, 0 beyond the last row and for duplicates. NaN stays NaN.
    DEVICE Real inside(uint32_t i, uint32_t j, Real square) const {
        const bool counts = i < arguments.n && j < arguments.n;
        return counts && !(square <= arguments.duplicate_square) ? square : 0;
    }

    // Adds the length of a pair to the statistics and to `lengths`. Returns 1/length.
    DEVICE float add_length(uint32_t i, uint32_t j, Real squared, Real& lengths) {
        const Real length = sqrt(squared);
        // The diagonal is 0 unless the row is not finite.
        if (i <= j && j < arguments.n) {
            lengths += length;
            longest = fmax(longest, squared);
            if (i != j) shortest = fmin(shortest, squared);
        }
        // In f64 a length between f32 rows becomes 0 only if the rows coincide. Below 2^-128, 1/d
        // does not fit into f32 and is replaced by its largest power of two.
        const Real inverse = 1 / length, most = 0x1p127f;
        return squared > 0 ? static_cast<float>(inverse < most ? inverse : most) : 0.0f;
    }

    // Stores COUNT neighbouring elements of h and of r in row i, from column j on.
    template <unsigned COUNT>
    DEVICE void store(uint32_t i, uint32_t j, bool with_h, const Real (&halves)[COUNT],
                      const float (&inverses)[COUNT]) {
        const uint32_t pitch = rkd::padded(arguments.n);
        pair_tile::store_side_by_side(r + static_cast<uint64_t>(i) * pitch + j, inverses);
        if (with_h)
            pair_tile::store_side_by_side(h + i % rkd::TILE * rkd::TILE + j % rkd::TILE, halves);
    }

    template <unsigned PER, typename T>
    DEVICE void run() {
        constexpr uint32_t SIDE = 16 * PER;
        // Accumulate
        const unsigned which = blockIdx.y;
        const auto [a, b] = pair_tile::pair_of(blockIdx.x);
        const T* rows = static_cast<const T*>(arguments.rows[which]);
        Real squares[PER][PER];
        pair_tile::sums<PER, pair_tile::SquaredDifference>(rows, arguments.n, arguments.dim[which],
                                                           a * SIDE, b * SIDE, shared, squares);
        // Store
        locate(a * SIDE, b * SIDE, a != b);
        const uint32_t i = a * SIDE + threadIdx.x / 16 * PER, j = b * SIDE + threadIdx.x % 16 * PER;
        float inverses[PER][PER];
        UNROLL
        for (unsigned p = 0; p < PER; p++) {
            // Few lengths are added in `Real`: a sum in f64 for each is slow on most GPUs.
            Real lengths = 0;
            UNROLL
            for (unsigned q = 0; q < PER; q++) {
                const Real squared = inside(i + p, j + q, squares[p][q]);
                inverses[p][q] = add_length(i + p, j + q, squared, lengths);
                squares[p][q] = squared / 2;
            }
            sum += static_cast<double>(lengths);
            store(i + p, j, h != nullptr, squares[p], inverses[p]);
        }
        if (!mirrored) return;
        UNROLL
        for (unsigned q = 0; q < PER; q++) {
            Real halves[PER];
            float column[PER];
            UNROLL
            for (unsigned p = 0; p < PER; p++) {
                halves[p] = squares[p][q];
                column[p] = inverses[p][q];
            }
            store(j + q, i, h != nullptr && mirrored_within, halves, column);
        }
    }

    template <unsigned PER, typename T>
    DEVICE void run_small_batch() {
        using SmallTile = pair_tile::SmallTile<PER, Real>;
        constexpr uint32_t SIDE = SmallTile::SIDE;
        const unsigned which = blockIdx.y;
        const auto [a, b] = pair_tile::pair_of(blockIdx.x);
        const T* rows = static_cast<const T*>(arguments.rows[which]);
        const Real squared = pair_tile::small_tile_sum<PER, pair_tile::SquaredDifference>(
            rows, arguments.n, arguments.dim[which], a * SIDE, b * SIDE, shared);
        const uint32_t i = a * SIDE + threadIdx.x / SIDE, j = b * SIDE + threadIdx.x % SIDE,
                       end = rkd::padded(arguments.n);
        // The last tile may extend beyond the matrices.
        if (threadIdx.x >= SmallTile::PAIRS || i >= end || j >= end) return;
        locate(i, j, a != b);
        Real length = 0;
        const Real halves[1] = {inside(i, j, squared) / 2};
        const float inverses[1] = {add_length(i, j, 2 * halves[0], length)};
        sum += static_cast<double>(length);
        store(i, j, h != nullptr, halves, inverses);
        if (mirrored) store(j, i, h != nullptr && mirrored_within, halves, inverses);
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

// Reduces the block's lengths, and stores them as its partial statistics.
template <typename Real>
DEVICE void store_lengths(const Tile<Real>& tile) {
    const Arguments& arguments = tile.arguments;
    const rkd::Lengths lengths{tile.sum, static_cast<double>(tile.longest),
                               static_cast<double>(tile.shortest)};
    const rkd::Lengths all = block_reduce<THREADS>(lengths, rkd::MergeLengths());
    if (threadIdx.x == 0) arguments.partials[blockIdx.y * gridDim.x + blockIdx.x] = all;
}

template <typename T>
DEVICE void rkd_relation(const Arguments& arguments) {
    SHARED_ARRAY(float, shared, pair_tile::SHARED<float>);
    Tile<float> tile{arguments, shared};
    tile.template run<T>();
    store_lengths(tile);
    if (!is_last_block(arguments.counter)) return;

    const rkd::PairStats stats = rkd::reduce_lengths(arguments.partials, gridDim.x);
    if (threadIdx.x > 0) return;
    bool accurate = false;
    UNROLL
    for (unsigned which = 0; which < 2; which++) {
        const rkd::Lengths& all = stats.lengths[which];
        const double limit = arguments.spread_limit;
        // f64 is needed if a square overflows, has lost digits to underflow, or is not finite.
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
    store_lengths(tile);
    if (!is_last_block(arguments.counter)) return;
    const rkd::PairStats stats = rkd::reduce_lengths(arguments.partials, gridDim.x);
    if (threadIdx.x == 0) *arguments.scalars = rkd::accurate_scalars(stats, arguments.n);
}

template <typename T>
DEVICE void rkd_relation_small_batch(const Arguments& arguments) {
    using Tile8 = pair_tile::SmallTile<2, double>;
    using Tile12 = pair_tile::SmallTile<3, double>;
    static_assert(Tile8::SHARED >= Tile12::SHARED, "room for either");
    SHARED_ARRAY(double, shared, Tile8::SHARED);
    Tile<double> tile{arguments, shared};
    if (arguments.side == Tile12::SIDE) {
        tile.template run_small_batch<3, T>();
    } else {
        tile.template run_small_batch<2, T>();
    }
    store_lengths(tile);
}

}  // namespace

EXPORT_KERNEL(relata_rkd_relation_f32, THREADS, 2, Arguments, rkd_relation<float>);
EXPORT_KERNEL(relata_rkd_relation_f16, THREADS, 2, Arguments, rkd_relation<f16>);
EXPORT_KERNEL(relata_rkd_relation_bf16, THREADS, 2, Arguments, rkd_relation<bf16>);
EXPORT_KERNEL(relata_rkd_relation_accurate_f32, THREADS, 2, Arguments,
              rkd_relation_accurate<float>);
EXPORT_KERNEL(relata_rkd_relation_accurate_f16, THREADS, 2, Arguments, rkd_relation_accurate<f16>);
EXPORT_KERNEL(relata_rkd_relation_accurate_bf16, THREADS, 2, Arguments,
              rkd_relation_accurate<bf16>);
EXPORT_KERNEL(relata_rkd_relation_small_batch_f32, THREADS, 4, Arguments,
              rkd_relation_small_batch<float>);
EXPORT_KERNEL(relata_rkd_relation_small_batch_f16, THREADS, 4, Arguments,
              rkd_relation_small_batch<f16>);
EXPORT_KERNEL(relata_rkd_relation_small_batch_bf16, THREADS, 4, Arguments,
              rkd_relation_small_batch<bf16>);
