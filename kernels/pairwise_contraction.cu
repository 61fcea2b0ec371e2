// Computes   ∂L/∂x_i = upstream/N² · Σ_j k_ij x_j (dot), or Σ_j k_ij (x_i − x_j) (distances), and
//            the loss.
// Buffers    rows [N, D] f32, f16 or bf16, aligned to their element; k [P, P] f32, symmetric, P the
//            rows up to a multiple of 64, zero beyond N; losses [P] f64; units [2] f32; gradient
//            [N, D] f32; value [1] f32; total [1] f64, of the losses of several launches.
// Passes     one launch, the last (but for the way back through a normalisation). One block adds up
//            the losses of the rows, when its tile is done.
// Grid       (tiles of rows, tiles of 64 dimensions).
// Block      256 threads; 64 rows i by 64 dimensions, PER = 4 rows by 4 dimensions a thread. Where
//            that leaves multiprocessors idle, 16 rows, and each of four groups of 64 threads has a
//            quarter of the rows j:
//
//                     d0 + 4 (t % 16) .. +4
//                   +-----+-----+-- ... --+-----+
//            i0 +   | t=0 |  1  |         | 15  |       32 (64) rows j pass through shared memory at a
//            4      | 16  | 17  |         | 31  |       time, with their coefficients; the next are on
//            (t/16) | ...                       |       their way in registers
//                   +-----+-----+-- ... --+-----+
// Shared     40 KiB: coefficients [j][i], rows [j][64 d], and the next; in the end the groups'
//            sums.
// Registers  at most 128.
// Resident   relata_pairwise_contraction_dot_f32 2 of 256 threads
// SASS       LDG.E.128, LDS.128, STS.128
// Work       dot: N² D FMA, distances: 2 N² D instructions; N² D/64 · 4 + N² D/(64 or 16) · element
//            bytes read, through L2.
// Floor      FP32 issue: N² D / 33.4e12 s on an H200 for dot: 16 µs at N = 1024, D = 512; twice
//            that for distances. With 64 rows or fewer: bandwidth, N D (element + 4) bytes.
// Numerics   distances by differences: x_i Σ k − Σ k x would cancel. 32 rows (of a group 16) are
//            summed in f32, then added: short sums round less. Rows are multiplied by their unit,
//            so that no product leaves f32's range. NaN: if an input is not finite, all
//            coefficients of each row i, or one of them, are NaN, and so is its gradient.
// Order      fixed: rows in order, of a group; then groups in order.
// Reference  src/reference/sp.rs, rkd_distance.rs; docs/maths/pairwise.md.
#include "common/collective.cuh"
#include "common/pairwise.cuh"
#include "ops/relation.cuh"

namespace {

using pair_tile::load_side_by_side;

constexpr unsigned THREADS = 256;
constexpr unsigned DIMENSIONS = 64;
// Rows i and dimensions of a thread.
constexpr unsigned PER = 4;

// The block's tile, of so many rows i.
template <unsigned ROWS>
struct Tile {
    // Groups of threads that share the rows j; rows j in shared memory at a time, and those of a
    // group.
    static constexpr unsigned GROUPS = 64 / ROWS, DEPTH = ROWS == 64 ? 32 : 64, OF_GROUP = DEPTH / GROUPS;
    static constexpr unsigned THREADS_OF_GROUP = THREADS / GROUPS;
    // What a buffer holds of coefficients, and of rows.
    static constexpr unsigned COEFFICIENTS = DEPTH * ROWS, OTHERS = DEPTH * DIMENSIONS, BUFFER = COEFFICIENTS + OTHERS;
    static constexpr unsigned SHARED = 2 * BUFFER;
    static_assert(ROWS / PER * DIMENSIONS / PER == THREADS_OF_GROUP);
};

// Mirrored in src/gpu/pairwise/arguments.rs.
struct Arguments {
    const void* rows;
    const float* coefficients;
    const double* losses;
    const float* units;  // null if both are 1
    float* value;
    float* gradient;
    double* total;       // of the losses of prefixes; null for rows as a whole
    double loss_factor;  // 1 over the number of terms, N² for most losses, and that of prefixes
    uint32_t n;
    uint32_t dim;
    uint32_t tile_rows;  // 64 or 16
    float factor;        // upstream times the same
    uint32_t first;      // whether nothing is in the total yet
    uint32_t padding;
};
ARGUMENTS(Arguments, rows, coefficients, losses, units, value, gradient, total, loss_factor, n, dim,
          tile_rows, factor, first, padding);

// Rows j and their coefficients, on their way to shared memory.
template <unsigned ROWS, typename T>
struct Stage {
    static constexpr unsigned CHUNKS = Tile<ROWS>::OTHERS / CHUNK<T> / THREADS;
    // Fours of coefficients: side by side of a row j, and of a thread.
    static constexpr unsigned ACROSS = ROWS / 4, EACH = Tile<ROWS>::COEFFICIENTS / 4 / THREADS;

    const Arguments& arguments;
    uint32_t i0, d0;
    // Whether all chunks lie on multiples of 16 bytes.
    bool aligned;
    Chunk<T> chunks[CHUNKS];
    float c[EACH][4];

    DEVICE void fetch(uint32_t j0) {
        const uint32_t n = arguments.n, dim = arguments.dim;
        UNROLL
        for (unsigned e = 0; e < CHUNKS; e++) {
            const unsigned at = (threadIdx.x + e * THREADS) * CHUNK<T>;
            const uint32_t j = j0 + at / DIMENSIONS, d = d0 + at % DIMENSIONS;
            const T* from = static_cast<const T*>(arguments.rows) + static_cast<uint64_t>(j) * dim + d;
            chunks[e] = fetch_chunk(from, aligned, j < n && d < dim ? dim - d : 0);
        }
        const uint64_t fours = pairwise::padded(n) / 4;
        UNROLL
        for (unsigned e = 0; e < EACH; e++) {
            const unsigned four = threadIdx.x + e * THREADS;
            load_side_by_side(arguments.coefficients + 4 * ((j0 + four / ACROSS) * fours + i0 / 4 + four % ACROSS), c[e]);
        }
    }

    DEVICE void put(float* coefficients, float* others, float unit) {
        UNROLL
        for (unsigned e = 0; e < CHUNKS; e++) {
            float values[CHUNK<T>];
            unpack(chunks[e], values);
            UNROLL
            for (unsigned i = 0; i < CHUNK<T>; i += 4)
                store4(others + (threadIdx.x + e * THREADS) * CHUNK<T> + i, values[i] * unit, values[i + 1] * unit,
                       values[i + 2] * unit, values[i + 3] * unit);
        }
        UNROLL
        for (unsigned e = 0; e < EACH; e++)
            store4(coefficients + (threadIdx.x + e * THREADS) * 4, c[e][0], c[e][1], c[e][2], c[e][3]);
    }
};

// Four elements of the gradient side by side.
DEVICE void store(const Arguments& arguments, uint32_t i, uint32_t d, float unit, const float (&sum)[4]) {
    if (i >= arguments.n) return;
    float* to = arguments.gradient + static_cast<uint64_t>(i) * arguments.dim + d;
    float gradient[4];
    UNROLL
    for (unsigned q = 0; q < 4; q++) gradient[q] = sum[q] * arguments.factor * unit;
    if (d + 4 <= arguments.dim) {
        store4(to, aligned16(to), gradient[0], gradient[1], gradient[2], gradient[3]);
    } else {
        UNROLL
        for (unsigned q = 0; q < 4; q++) {
            if (d + q < arguments.dim) to[q] = gradient[q];
        }
    }
}

template <typename Relation, unsigned ROWS, typename T>
DEVICE void contract(const Arguments& arguments, float* shared) {
    using Tile = Tile<ROWS>;
    const uint32_t n = arguments.n, dim = arguments.dim;
    const T* rows = static_cast<const T*>(arguments.rows);
    const uint32_t i0 = blockIdx.x * ROWS, d0 = blockIdx.y * DIMENSIONS;
    const unsigned group = threadIdx.x / Tile::THREADS_OF_GROUP;
    const unsigned ti = threadIdx.x % Tile::THREADS_OF_GROUP / 16 * PER, td = threadIdx.x % 16 * 4;
    const float unit = arguments.units == nullptr ? 1.0f : arguments.units[0];

    // Load the first rows j, and the thread's own rows i.
    Stage<ROWS, T> next{arguments, i0, d0, aligned16(rows) && dim % CHUNK<T> == 0, {}, {}};
    next.fetch(0);
    float x[PER][4] = {}, sum[PER][4] = {};
    if constexpr (!Relation::LINEAR_IN_ROW) {
        UNROLL
        for (unsigned p = 0; p < PER; p++) {
            UNROLL
            for (unsigned q = 0; q < 4; q++) {
                const uint32_t i = i0 + ti + p, d = d0 + td + q;
                x[p][q] = i < n && d < dim ? to_float(rows[static_cast<uint64_t>(i) * dim + d]) * unit : 0.0f;
            }
        }
    }
    unsigned buffer = 0;
    next.put(shared, shared + Tile::COEFFICIENTS, unit);
    block_barrier();

    // Accumulate.
    for (uint32_t j0 = 0; j0 < n; j0 += Tile::DEPTH) {
        const bool more = n - j0 > Tile::DEPTH;
        if (more) next.fetch(j0 + Tile::DEPTH);
        const float* coefficients = shared + buffer + group * Tile::OF_GROUP * ROWS + ti;
        const float* others = shared + buffer + Tile::COEFFICIENTS + group * Tile::OF_GROUP * DIMENSIONS + td;
        float part[PER][4] = {};
        UNROLL_BY(8)
        for (unsigned j = 0; j < Tile::OF_GROUP; j++) {
            float c[PER], y[4];
            load_side_by_side(coefficients + j * ROWS, c);
            load_side_by_side(others + j * DIMENSIONS, y);
            UNROLL
            for (unsigned p = 0; p < PER; p++) {
                UNROLL
                for (unsigned q = 0; q < 4; q++)
                    part[p][q] = fmaf(c[p], Relation::LINEAR_IN_ROW ? y[q] : x[p][q] - y[q], part[p][q]);
            }
        }
        UNROLL
        for (unsigned p = 0; p < PER; p++) {
            UNROLL
            for (unsigned q = 0; q < 4; q++) sum[p][q] += part[p][q];
        }
        if (more) {
            buffer = Tile::BUFFER - buffer;
            next.put(shared + buffer, shared + buffer + Tile::COEFFICIENTS, unit);
            block_barrier();
        }
    }

    // Store, once the groups' sums are added.
    if constexpr (Tile::GROUPS == 1) {
        UNROLL
        for (unsigned p = 0; p < PER; p++) store(arguments, i0 + ti + p, d0 + td, unit, sum[p]);
    } else {
        // [group][i][d]
        constexpr unsigned ELEMENTS = ROWS * DIMENSIONS;
        block_barrier();
        UNROLL
        for (unsigned p = 0; p < PER; p++)
            store4(shared + group * ELEMENTS + (ti + p) * DIMENSIONS + td, sum[p][0], sum[p][1], sum[p][2], sum[p][3]);
        block_barrier();
        static_assert(ELEMENTS / 4 == THREADS);
        float all[4] = {};
        UNROLL
        for (unsigned g = 0; g < Tile::GROUPS; g++) {
            float of_group[4];
            load_side_by_side(shared + g * ELEMENTS + threadIdx.x * 4, of_group);
            UNROLL
            for (unsigned q = 0; q < 4; q++) all[q] += of_group[q];
        }
        store(arguments, i0 + threadIdx.x / 16, d0 + td, unit, all);
    }
}

template <typename Relation, typename T>
DEVICE void contraction(const Arguments& arguments) {
    static_assert(Tile<16>::SHARED >= Tile<64>::SHARED);
    SHARED_ARRAY(float, shared, Tile<16>::SHARED);
    if (arguments.tile_rows == 64) {
        contract<Relation, 64, T>(arguments, shared);
    } else {
        contract<Relation, 16, T>(arguments, shared);
    }
    if (blockIdx.x == 0 && blockIdx.y == 0) {
        const double sum = block_sum_of<THREADS>(arguments.losses, pairwise::padded(arguments.n));
        if (threadIdx.x == 0) {
            double loss = arguments.loss_factor * sum;
            if (arguments.total != nullptr) {
                if (!arguments.first) loss += *arguments.total;
                *arguments.total = loss;
            }
            arguments.value[0] = static_cast<float>(loss);
        }
    }
}

using relation::Dot;
// The squared distance has the same form; the factor 2 is in its coefficients.
using relation::Distance;

}  // namespace

EXPORT_KERNEL(relata_pairwise_contraction_dot_f32, THREADS, 2, Arguments, contraction<Dot, float>);
EXPORT_KERNEL(relata_pairwise_contraction_dot_f16, THREADS, 2, Arguments, contraction<Dot, f16>);
EXPORT_KERNEL(relata_pairwise_contraction_dot_bf16, THREADS, 2, Arguments, contraction<Dot, bf16>);
EXPORT_KERNEL(relata_pairwise_contraction_difference_f32, THREADS, 2, Arguments, contraction<Distance, float>);
EXPORT_KERNEL(relata_pairwise_contraction_difference_f16, THREADS, 2, Arguments, contraction<Distance, f16>);
EXPORT_KERNEL(relata_pairwise_contraction_difference_bf16, THREADS, 2, Arguments, contraction<Distance, bf16>);
