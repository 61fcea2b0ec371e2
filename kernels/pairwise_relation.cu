// Computes   Sums over the dimensions of every two rows: Σ x_i x_j, or Σ (x_i − x_j)².
// Buffers    rows [N, D] f32, f16 or bf16, aligned to their element; slots [slices, P, P] f32, P
//            the rows up to a multiple of 64, zero beyond N; maxima [2, tiles · slices] f32; units
//            [2] f32.
// Passes     one launch for student and teacher. Unless rows are f16 or normalised, a second launch
//            of the same kernel reads the largest element from `maxima`. If it lies beyond [2^-8,
//            2^16], it computes the sums again, of rows that are multiplied by a power of two, the
//            `unit`. Else it returns. A pass that finds the unit first would read all rows once
//            more.
// Grid       (tile pairs a ≤ b of 64 rows a side, times slices of the dimensions; 2). Student and
//            teacher have numbers of slices of their own; blocks beyond those return. Slices keep
//            all multiprocessors busy where rows are few and long, which is usual for SP: 64 rows
//            of 16 384 elements are one tile. The next pass adds the slices up.
// Block      256 threads, 4 x 4 pairs a thread; layout as in common/pair_tile.cuh.
// Shared     34 KiB: both sides of the tile, 32 dimensions at a time, and the next 32.
// Registers  at most 128.
// Resident   relata_pairwise_relation_dot_f32 2 of 256 threads
// SASS       LDG.E.128, LDS.128, STG.E.128
// Loop       relata_pairwise_relation_dot_f32 at most 19 x 8; relata_pairwise_relation_difference_f32 at most 35 x 8
// Work       N² D/2 FMA for products, N² D instructions for differences, for each of student and
//            teacher; N²/64 D elements read, 4 N² slices bytes written.
// Floor      FP32 issue: N² D/2 / 33.4e12 s on an H200 for products, twice that for differences.
//            With 64 rows or fewer: bandwidth, N D elements of student and teacher.
// Numerics   32 dimensions are summed in f32, then added: short sums round less. A finite element
//            larger than 2^-30 of the largest one never overflows or vanishes.
// Order      fixed: dimensions in order within a slice. (i, j) and (j, i) have the same bits.
// Reference  src/reference/mod.rs, relation_matrix.
#include "common/math.cuh"
#include "common/pairwise.cuh"
#include "ops/relation.cuh"

namespace {

using pair_tile::load_side_by_side;
using pairwise::TILE;

constexpr unsigned THREADS = 256;
constexpr unsigned PER = 4;
// Dimensions in shared memory at a time, and how far apart the rows of a dimension lie there.
constexpr unsigned DEPTH = 32, PITCH = TILE + 4;
// Rows of one side of the tile, and of both.
constexpr unsigned SIDE = DEPTH * PITCH, BUFFER = 2 * SIDE;
// Where the largest element is trusted to leave f32's range alone, in products, their sums over
// 2^20 dimensions, and quotients of those.
constexpr float LEAST = 0x1p-8f, MOST = 0x1p16f;

struct Matrix {
    const void* rows;
    float* slots;
    uint32_t dim;
    uint32_t slices;
    uint32_t slice;  // its dimensions, a multiple of DEPTH
    uint32_t padding;
};
ARGUMENTS(Matrix, rows, slots, dim, slices, slice, padding);

// Mirrored in src/gpu/pairwise/arguments.rs.
struct Arguments {
    Matrix of[2];
    float* maxima;  // [2, maxima_pitch]; null where rows are known to be in range
    float* units;   // null in the first launch
    uint32_t n;
    uint32_t maxima_pitch;
};
ARGUMENTS(Arguments, of, maxima, units, n, maxima_pitch);

// Rows `first` .. `first + TILE` on their way to shared memory, DEPTH dimensions at a time.
template <typename T>
struct Stage {
    // A chunk is 16 bytes. Two neighbours read 32 bytes of a row, and 32 threads write to 32 banks.
    static constexpr unsigned EACH = TILE * DEPTH / CHUNK<T> / THREADS;

    const T* rows;
    uint32_t n, dim, end, first;
    // Whether all chunks lie on multiples of 16 bytes.
    bool aligned;
    Chunk<T> chunks[EACH];

    DEVICE static unsigned row(unsigned at) { return at / 2 % TILE; }
    DEVICE static unsigned dimension(unsigned at) { return (at / (2 * TILE) * 2 + at % 2) * CHUNK<T>; }

    // Zeros beyond the matrix and the slice.
    DEVICE void fetch(uint32_t depth) {
        UNROLL
        for (unsigned c = 0; c < EACH; c++) {
            const unsigned at = threadIdx.x + c * THREADS;
            const uint32_t i = first + row(at), d = depth + dimension(at);
            const unsigned count = i < n && d < end ? end - d : 0;
            chunks[c] = fetch_chunk(rows + static_cast<uint64_t>(i) * dim + d, aligned, count);
        }
    }

    DEVICE void put(float* shared, float unit) const {
        UNROLL
        for (unsigned c = 0; c < EACH; c++) {
            const unsigned at = threadIdx.x + c * THREADS;
            UNROLL
            for (unsigned e = 0; e < CHUNK<T>; e++)
                shared[(dimension(at) + e) * PITCH + row(at)] = to_float(chunks[c].elements[e]) * unit;
        }
    }

    // The largest element of those on their way, and `most`. A NaN is dropped: the sums have it.
    DEVICE float largest(float most) const {
        UNROLL
        for (unsigned c = 0; c < EACH; c++) {
            UNROLL
            for (unsigned e = 0; e < CHUNK<T>; e++) most = fmaxf(most, fabsf(to_float(chunks[c].elements[e])));
        }
        return most;
    }
};

// The power of two that takes `most` to [1, 2), within f32's range.
DEVICE float unit_of(float most) {
    const int exponent = -ilogbf(most);
    return ldexpf(1.0f, exponent < -126 ? -126 : exponent > 126 ? 126 : exponent);
}

template <typename Term, typename T>
DEVICE void relation_sums(const Arguments& arguments) {
    SHARED_ARRAY(float, shared, 2 * BUFFER);
    const unsigned which = blockIdx.y;
    const Matrix& matrix = arguments.of[which];
    const uint32_t n = arguments.n, padded = pairwise::padded(n), tiles = padded / TILE;
    float* maxima = arguments.maxima == nullptr ? nullptr : arguments.maxima + which * arguments.maxima_pitch;

    float unit = 1;
    if (arguments.units != nullptr) {
        // The second launch: is there anything to do?
        float most = 0;
        for (uint32_t i = threadIdx.x; i < tiles * matrix.slices; i += THREADS) most = fmaxf(most, maxima[i]);
        most = block_reduce<THREADS>(most, Max());
        const bool in_range = most == 0 || (most >= LEAST && most <= MOST) || most == infinity();
        if (!in_range) unit = unit_of(most);
        if (blockIdx.x == 0 && threadIdx.x == 0) arguments.units[which] = unit;
        if (in_range) return;
    }
    const uint32_t pair = blockIdx.x / matrix.slices, slice = blockIdx.x % matrix.slices;
    if (pair >= pair_tile::pairs_before(tiles)) return;
    const auto [a, b] = pair_tile::pair_of(pair);
    const uint32_t begin = slice * matrix.slice, dim = matrix.dim;
    const uint32_t end = dim - begin < matrix.slice ? dim : begin + matrix.slice;

    // Load the first dimensions.
    const T* rows = static_cast<const T*>(matrix.rows);
    const bool aligned = aligned16(rows) && dim % CHUNK<T> == 0;
    const unsigned ti = threadIdx.x / 16 * PER, tj = threadIdx.x % 16 * PER;
    Stage<T> left{rows, n, dim, end, a * TILE, aligned, {}}, right{rows, n, dim, end, b * TILE, aligned, {}};
    const bool measures = a == b && maxima != nullptr && arguments.units == nullptr;
    float sum[PER][PER] = {}, most = 0;
    unsigned buffer = 0;
    left.fetch(begin);
    right.fetch(begin);
    if (measures) most = left.largest(most);
    left.put(shared, unit);
    right.put(shared + SIDE, unit);
    block_barrier();

    // Accumulate.
    for (uint32_t depth = begin; depth < end; depth += DEPTH) {
        const bool more = end - depth > DEPTH;
        if (more) {
            left.fetch(depth + DEPTH);
            right.fetch(depth + DEPTH);
        }
        const float* of_left = shared + buffer + ti;
        const float* of_right = shared + buffer + SIDE + tj;
        float part[PER][PER] = {};
        UNROLL_BY(8)
        for (unsigned d = 0; d < DEPTH; d++) {
            float x[PER], y[PER];
            load_side_by_side(of_left + d * PITCH, x);
            load_side_by_side(of_right + d * PITCH, y);
            UNROLL
            for (unsigned p = 0; p < PER; p++) {
                UNROLL
                for (unsigned q = 0; q < PER; q++) part[p][q] = Term()(x[p], y[q], part[p][q]);
            }
        }
        UNROLL
        for (unsigned p = 0; p < PER; p++) {
            UNROLL
            for (unsigned q = 0; q < PER; q++) sum[p][q] += part[p][q];
        }
        if (more) {
            buffer = BUFFER - buffer;
            if (measures) most = left.largest(most);
            left.put(shared + buffer, unit);
            right.put(shared + buffer + SIDE, unit);
            block_barrier();
        }
    }

    // Store the tile and its mirror image, zero beyond the rows.
    const uint32_t i = a * TILE + ti, j = b * TILE + tj;
    UNROLL
    for (unsigned p = 0; p < PER; p++) {
        UNROLL
        for (unsigned q = 0; q < PER; q++) {
            if (i + p >= n || j + q >= n) sum[p][q] = 0;
        }
    }
    // A multiple of 4, as the compiler can see.
    float* slot = matrix.slots + static_cast<uint64_t>(slice) * padded * padded;
    const uint64_t fours = padded / 4;
    UNROLL
    for (unsigned p = 0; p < PER; p++)
        store4(slot + 4 * ((i + p) * fours + j / 4), sum[p][0], sum[p][1], sum[p][2], sum[p][3]);
    if (a != b) {
        UNROLL
        for (unsigned q = 0; q < PER; q++)
            store4(slot + 4 * ((j + q) * fours + i / 4), sum[0][q], sum[1][q], sum[2][q], sum[3][q]);
    }
    if (measures) {
        most = block_reduce<THREADS>(most, Max());
        if (threadIdx.x == 0) maxima[a * matrix.slices + slice] = most;
    }
}

using Product = pair_tile::Product;
using Difference = pair_tile::SquaredDifference;

}  // namespace

EXPORT_KERNEL(relata_pairwise_relation_dot_f32, THREADS, 2, Arguments, relation_sums<Product, float>);
EXPORT_KERNEL(relata_pairwise_relation_dot_f16, THREADS, 2, Arguments, relation_sums<Product, f16>);
EXPORT_KERNEL(relata_pairwise_relation_dot_bf16, THREADS, 2, Arguments, relation_sums<Product, bf16>);
EXPORT_KERNEL(relata_pairwise_relation_difference_f32, THREADS, 2, Arguments, relation_sums<Difference, float>);
EXPORT_KERNEL(relata_pairwise_relation_difference_f16, THREADS, 2, Arguments, relation_sums<Difference, f16>);
EXPORT_KERNEL(relata_pairwise_relation_difference_bf16, THREADS, 2, Arguments, relation_sums<Difference, bf16>);
