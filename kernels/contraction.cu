// Computes   ∂L/∂x_i = upstream · Σ_j C_ij (x_i − x_j), with C_ij = ∂L/∂h_ij. If the distance loss
//            takes part, a multiple of r_ij is added to C_ij first. Also the loss, from the sums of
//            the coefficients' blocks.
// Buffers    rows: [N, D] f32, f16 or bf16, aligned to their element. coefficients and r: [P, P]
//            f32, symmetric, P the rows rounded up to a multiple of 64, zero beyond N. penalties:
//            [blocks of rkd_coefficients]. gradient: [N, D] f32. value: f32, the loss and, on
//            request, its two parts.
// Passes     One launch, the last. Each block adds up the penalties for itself while its first rows
//            are in flight: this takes less time than if all blocks waited for a last block of
//            rkd_coefficients.
// Grid       (tiles of rows, tiles of 64 dimensions).
// Block      256 threads; 64 rows i by 64 dimensions, PER = 4 rows a thread. If that leaves
//            multiprocessors idle, `contraction_small_batch` takes 16 rows, or 8 with PER = 2, and
//            each of four groups of 64 threads takes a quarter of the rows j:
//
//                     d0 + 4 (t % 16) .. +4
//                   +-----+-----+-- ... --+-----+
//            i0 +   | t=0 |  1  |         | 15  |       32 (64) rows j pass through shared memory
//            PER    | 16  | 17  |         | 31  |       at a time, with their coefficients; the
//            (t/16) | ...                       |       next ones are in flight, in registers
//                   +-----+-----+-- ... --+-----+
// Shared     32 KiB (small batches: 40): coefficients [j][i], rows [j][64 d], and the next ones. At
//            the end the groups' sums.
// Registers  at most 128.
// Resident   relata_contraction_f32 2 of 256 threads; relata_contraction_small_batch_f32 2 of 256
//            threads
// SASS       LDG.E.128, LDS.128, STS.128
// Loop       relata_contraction_f32 at most 2.2 x 128; relata_contraction_f16 at most 2.2 x 128;
//            relata_contraction_small_batch_f32 at most 2.2 x 128 (an element of a difference)
// Work       2 instructions an element: 2 N² D. N² D / 64 · 4 + N² D / (64, 16 or 8) · element
//            bytes are read, through L2.
// Floor      FP32 issue: 2 N² D / 33.4e12 s on an H200: 32 µs at N = 1024, D = 512.
// Numerics   By differences, which matters as much as those of the relation: x_i Σ C − Σ C x would
//            cancel. 32 rows (16 of a group) are summed on their own and then added, because short
//            sums round less.
// Order      Fixed: rows in order, in each group. Then groups in order. Penalties by thread and
//            warp.
// Reference  src/reference/rkd_angle.rs, rkd_distance.rs.
#include "common/collective.cuh"
#include "common/element.cuh"
#include "common/pair_tile.cuh"
#include "common/rkd.cuh"

namespace {

constexpr unsigned THREADS = 256;
constexpr unsigned DIMENSIONS = 64;

// Sizes of the block's tile, of ROWS rows i.
template <unsigned ROWS>
struct Tile {
    // Groups of threads that share the rows j. Rows j in shared memory at a time, and those of a
    // group among them.
    static constexpr unsigned GROUPS = ROWS == 64 ? 1 : 4, DEPTH = ROWS == 64 ? 32 : 64,
                              GROUP_DEPTH = DEPTH / GROUPS;
    // Rows i of a thread.
    static constexpr unsigned GROUP_THREADS = THREADS / GROUPS, PER = ROWS * 16 / GROUP_THREADS;
    // Elements of a buffer: coefficients and rows j.
    static constexpr unsigned COEFFICIENTS = DEPTH * ROWS, OTHERS = DEPTH * DIMENSIONS,
                              BUFFER = COEFFICIENTS + OTHERS;
    static constexpr unsigned SHARED = 2 * BUFFER;
};

struct Arguments {
    const void* rows;
    const float* coefficients;
    const float* r;
    const rkd::Scalars* scalars;
    const rkd::Penalties* penalties;
    float* value;
    float* gradient;
    double angle_value;     // weight / N³: the factor of the penalties in the loss
    double distance_value;  // weight / N²
    uint32_t n;
    uint32_t dim;
    uint32_t penalty_count;
    uint32_t tile_rows;  // rows i of a block
    float upstream;
    float distance_factor;  // 2 weight / N²
    uint32_t distance;      // whether the distance takes part
    uint32_t terms;         // whether `value` takes the two parts of the loss, not weighted
};
ARGUMENTS(Arguments, rows, coefficients, r, scalars, penalties, value, gradient, angle_value,
          distance_value, n, dim, penalty_count, tile_rows, upstream, distance_factor, distance,
          terms);

// The loss, from the penalties of all blocks.
struct Totals {
    float loss;
    // The parts of the loss, not weighted; 0 for a part of weight 0.
    float distance, angle;
    // Times r_ij, it is the derivative of the distance loss through the mean length, a part of
    // ∂L/∂h_ij.
    float through_mean;

    DEVICE Totals(const Arguments& arguments, const rkd::Scalars& scalars) {
        const rkd::Penalties all =
            rkd::reduce_penalties(arguments.penalties, arguments.penalty_count);
        const double n = arguments.n, mean = scalars.mean[0];
        const double of_mean = mean != 0 && n > 1 ? all.weighted / (mean * mean * n * (n - 1)) : 0;
        through_mean = static_cast<float>(-arguments.distance_factor * of_mean);
        const double sum =
            arguments.angle_value * all.angle + arguments.distance_value * all.distance;
        loss = static_cast<float>(sum + scalars.poison);
        const double of_distance = arguments.distance_value != 0 ? all.distance / (n * n) : 0;
        distance = static_cast<float>(of_distance + scalars.poison);
        angle = static_cast<float>(all.angle / (n * n * n) + scalars.poison);
    }
};

// Carries rows j and their coefficients to shared memory.
template <unsigned ROWS, typename T>
struct Stage {
    static constexpr unsigned CHUNKS = Tile<ROWS>::OTHERS / CHUNK<T> / THREADS;
    // Quads of coefficients: of a row j, in all, and of a thread.
    static constexpr unsigned ROW_QUADS = ROWS / 4, QUADS = Tile<ROWS>::COEFFICIENTS / 4;
    static constexpr unsigned EACH = (QUADS + THREADS - 1) / THREADS;

    const Arguments& arguments;
    uint32_t i0, d0;
    // Whether all chunks are aligned to 16 bytes.
    bool aligned;
    Chunk<T> chunks[CHUNKS];
    float c[EACH][4], r[EACH][4];

    // Loads the rows from `j0` on into registers.
    DEVICE void fetch(uint32_t j0) {
        const uint32_t n = arguments.n, dim = arguments.dim;
        UNROLL
        for (unsigned e = 0; e < CHUNKS; e++) {
            const unsigned at = (threadIdx.x + e * THREADS) * CHUNK<T>;
            const uint32_t j = j0 + at / DIMENSIONS, d = d0 + at % DIMENSIONS;
            const T* from =
                static_cast<const T*>(arguments.rows) + static_cast<uint64_t>(j) * dim + d;
            chunks[e] = fetch_chunk(from, aligned, j < n && d < dim ? dim - d : 0);
        }
        const uint64_t pitch = rkd::padded(n);
        UNROLL
        for (unsigned e = 0; e < EACH; e++) {
            const unsigned quad = threadIdx.x + e * THREADS;
            if (quad >= QUADS) continue;
            const uint64_t at = (j0 + quad / ROW_QUADS) * pitch + i0 + quad % ROW_QUADS * 4;
            pair_tile::load_side_by_side(arguments.coefficients + at, c[e]);
            if (arguments.distance) pair_tile::load_side_by_side(arguments.r + at, r[e]);
        }
    }

    // Stores them to shared memory, with the distance's derivative through the mean added to the
    // coefficients.
    DEVICE void store(float* coefficients, float* others, float per_unit, float through_mean) {
        UNROLL
        for (unsigned e = 0; e < CHUNKS; e++) {
            float values[CHUNK<T>];
            unpack(chunks[e], values);
            UNROLL
            for (unsigned i = 0; i < CHUNK<T>; i += 4)
                store4(others + (threadIdx.x + e * THREADS) * CHUNK<T> + i, values[i],
                       values[i + 1], values[i + 2], values[i + 3]);
        }
        UNROLL
        for (unsigned e = 0; e < EACH; e++) {
            const unsigned quad = threadIdx.x + e * THREADS;
            if (quad >= QUADS) continue;
            if (arguments.distance) {
                UNROLL
                for (unsigned i = 0; i < 4; i++)
                    c[e][i] = fmaf(through_mean, rkd::in_unit(r[e][i], per_unit), c[e][i]);
            }
            store4(coefficients + quad * 4, c[e][0], c[e][1], c[e][2], c[e][3]);
        }
    }
};

// Stores four contiguous elements of the gradient, from their sums.
DEVICE void store_gradient(const Arguments& arguments, uint32_t i, uint32_t d, float unit,
                           float upstream, const float (&sum)[4]) {
    if (i >= arguments.n) return;
    float* to = arguments.gradient + static_cast<uint64_t>(i) * arguments.dim + d;
    float gradient[4];
    // C is in the unit of the lengths. Its square could leave the range of f32 even if the gradient
    // does not, so the factors are applied one by one.
    UNROLL
    for (unsigned q = 0; q < 4; q++) gradient[q] = sum[q] * unit * unit * upstream;
    if (d + 4 <= arguments.dim) {
        store4(to, aligned16(to), gradient[0], gradient[1], gradient[2], gradient[3]);
    } else {
        UNROLL
        for (unsigned q = 0; q < 4; q++) {
            if (d + q < arguments.dim) to[q] = gradient[q];
        }
    }
}

template <unsigned ROWS, typename T>
DEVICE void contract(const Arguments& arguments, float* shared) {
    using Tile = Tile<ROWS>;
    constexpr unsigned PER = Tile::PER;
    const uint32_t n = arguments.n, dim = arguments.dim;
    const T* rows = static_cast<const T*>(arguments.rows);
    const uint32_t i0 = blockIdx.x * ROWS, d0 = blockIdx.y * DIMENSIONS;
    const unsigned group = threadIdx.x / Tile::GROUP_THREADS;
    const unsigned ti = threadIdx.x % Tile::GROUP_THREADS / 16 * PER, td = threadIdx.x % 16 * 4;
    Stage<ROWS, T> next{arguments, i0, d0, aligned16(rows) && dim % CHUNK<T> == 0, {}, {}, {}};
    // Load the first rows j and the block's rows i
    next.fetch(0);

    float x[PER][4], sum[PER][4] = {};
    UNROLL
    for (unsigned p = 0; p < PER; p++) {
        UNROLL
        for (unsigned q = 0; q < 4; q++) {
            const uint32_t i = i0 + ti + p, d = d0 + td + q;
            x[p][q] = i < n && d < dim ? to_float(rows[static_cast<uint64_t>(i) * dim + d]) : 0.0f;
        }
    }
    // Reduce the penalties
    const rkd::Scalars scalars = *arguments.scalars;
    const Totals totals(arguments, scalars);
    if (blockIdx.x == 0 && blockIdx.y == 0 && threadIdx.x == 0) {
        arguments.value[0] = totals.loss;
        if (arguments.terms) {
            arguments.value[1] = totals.distance;
            arguments.value[2] = totals.angle;
        }
    }
    // If the loss is NaN, so is the gradient.
    const float upstream = totals.loss == totals.loss ? arguments.upstream : totals.loss;
    // A power of two, and so is its reciprocal.
    const auto unit = static_cast<float>(scalars.unit[0]);
    const float per_unit = 1.0f / unit, through_mean = totals.through_mean;
    unsigned buffer = 0;
    next.store(shared, shared + Tile::COEFFICIENTS, per_unit, through_mean);
    block_barrier();
    for (uint32_t j0 = 0; j0 < n; j0 += Tile::DEPTH) {
        // Load the next rows j while the present ones are processed
        const bool more = n - j0 > Tile::DEPTH;
        if (more) next.fetch(j0 + Tile::DEPTH);
        // Accumulate
        const float* coefficients = shared + buffer + group * Tile::GROUP_DEPTH * ROWS + ti;
        const float* others =
            shared + buffer + Tile::COEFFICIENTS + group * Tile::GROUP_DEPTH * DIMENSIONS + td;
        float part[PER][4] = {};
        UNROLL_BY(8)
        for (unsigned j = 0; j < Tile::GROUP_DEPTH; j++) {
            float c[PER], y[4];
            pair_tile::load_side_by_side(coefficients + j * ROWS, c);
            pair_tile::load_side_by_side(others + j * DIMENSIONS, y);
            UNROLL
            for (unsigned p = 0; p < PER; p++) {
                UNROLL
                for (unsigned q = 0; q < 4; q++)
                    part[p][q] = fmaf(c[p], x[p][q] - y[q], part[p][q]);
            }
        }
        UNROLL
        for (unsigned p = 0; p < PER; p++) {
            UNROLL
            for (unsigned q = 0; q < 4; q++) sum[p][q] += part[p][q];
        }
        if (more) {
            buffer = Tile::BUFFER - buffer;
            next.store(shared + buffer, shared + buffer + Tile::COEFFICIENTS, per_unit,
                       through_mean);
            block_barrier();
        }
    }
    if constexpr (Tile::GROUPS == 1) {
        // Store
        UNROLL
        for (unsigned p = 0; p < PER; p++)
            store_gradient(arguments, i0 + ti + p, d0 + td, unit, upstream, sum[p]);
    } else {
        // Reduce over the groups: [group][i][d]
        constexpr unsigned ELEMENTS = ROWS * DIMENSIONS;
        block_barrier();
        UNROLL
        for (unsigned p = 0; p < PER; p++)
            store4(shared + group * ELEMENTS + (ti + p) * DIMENSIONS + td, sum[p][0], sum[p][1],
                   sum[p][2], sum[p][3]);
        block_barrier();
        if (threadIdx.x >= ELEMENTS / 4) return;
        float all[4] = {};
        UNROLL
        for (unsigned g = 0; g < Tile::GROUPS; g++) {
            float partial[4];
            pair_tile::load_side_by_side(shared + g * ELEMENTS + threadIdx.x * 4, partial);
            UNROLL
            for (unsigned q = 0; q < 4; q++) all[q] += partial[q];
        }
        // Store
        store_gradient(arguments, i0 + threadIdx.x / 16, d0 + td, unit, upstream, all);
    }
}

template <typename T>
DEVICE void contraction(const Arguments& arguments) {
    SHARED_ARRAY(float, shared, Tile<64>::SHARED);
    contract<64, T>(arguments, shared);
}

template <typename T>
DEVICE void contraction_small_batch(const Arguments& arguments) {
    static_assert(Tile<16>::SHARED >= Tile<8>::SHARED);
    SHARED_ARRAY(float, shared, Tile<16>::SHARED);
    if (arguments.tile_rows == 16) {
        contract<16, T>(arguments, shared);
    } else {
        contract<8, T>(arguments, shared);
    }
}

}  // namespace

EXPORT_KERNEL(relata_contraction_f32, THREADS, 2, Arguments, contraction<float>);
EXPORT_KERNEL(relata_contraction_f16, THREADS, 2, Arguments, contraction<f16>);
EXPORT_KERNEL(relata_contraction_bf16, THREADS, 2, Arguments, contraction<bf16>);
EXPORT_KERNEL(relata_contraction_small_batch_f32, THREADS, 2, Arguments,
              contraction_small_batch<float>);
EXPORT_KERNEL(relata_contraction_small_batch_f16, THREADS, 2, Arguments,
              contraction_small_batch<f16>);
EXPORT_KERNEL(relata_contraction_small_batch_bf16, THREADS, 2, Arguments,
              contraction_small_batch<bf16>);
