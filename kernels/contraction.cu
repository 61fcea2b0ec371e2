// Computes   ∂L/∂x_i = upstream · Σ_j C_ij (x_i − x_j), with C_ij = ∂L/∂h_ij, to which a multiple of r_ij is added on the
//            way where the distance loss takes part.
// Buffers    rows [N, D] f32, f16 or bf16, aligned to their element; coefficients and r [P, P] f32, symmetric, P the rows
//            up to a multiple of 64, zero beyond N; gradient [N, D] f32.
// Passes     one launch.
// Grid       (tiles of rows, tiles of 64 dimensions).
// Block      256 threads; 16 PER rows i by 64 dimensions, PER = 1 or 4:
//
//                     d0 + 4 (t % 16) .. +4
//                   +-----+-----+-- ... --+-----+
//            i0 +   | t=0 |  1  |         | 15  |       32 rows j pass through shared memory at a time, with their
//            PER    | 16  | 17  |         | 31  |       coefficients; the next 32 are on their way in registers
//            (t/16) | ...                       |
//                   +-----+-----+-- ... --+-----+
// Shared     32 KiB: coefficients [32 j][16 PER i], rows [32 j][64 d], and the next.
// Registers  at most 128.
// SASS       LDG.E.128, LDS.128, STS.128
// Loop       relata_contraction_f32 at most 2.2 x 128; relata_contraction_f16 at most 2.2 x 128 (an element of a difference)
// Work       2 instructions an element: 2 N² D; N² D / 64 · 4 + N² D / (16 PER) · element bytes read, through L2.
// Floor      FP32 issue: 2 N² D / 33.4e12 s on an H200: 32 µs at N = 1024, D = 512.
// Numerics   by differences, which matters as much as those of the relation: x_i Σ C − Σ C x would cancel. 32 rows are
//            summed, then added: short sums round less.
// Order      fixed: rows in order.
// Reference  src/reference/rkd_angle.rs, rkd_distance.rs.
#include "common/collective.cuh"
#include "common/element.cuh"
#include "common/pair_tile.cuh"
#include "common/rkd.cuh"

namespace {

constexpr unsigned THREADS = 256;
constexpr unsigned DIMENSIONS = 64;
// Rows j in shared memory at a time.
constexpr unsigned DEPTH = 32;
// What a buffer holds of coefficients, and of rows.
constexpr unsigned BUFFER = DEPTH * DIMENSIONS;

struct Arguments {
    const void* rows;
    const float* coefficients;
    const float* r;
    const rkd::Scalars* scalars;
    const float* value;
    float* gradient;
    uint32_t n;
    uint32_t dim;
    uint32_t rows_per_thread;
    float upstream;
    // Whether r takes part.
    uint32_t distance;
    uint32_t padding;
};

// 32 rows j and their coefficients, on their way to shared memory.
template <unsigned PER, typename T>
struct Stage {
    static constexpr unsigned CHUNKS = BUFFER / CHUNK<T> / THREADS;
    // Fours of coefficients: in all, and of a thread.
    static constexpr unsigned FOURS = 4 * PER * DEPTH, EACH = (FOURS + THREADS - 1) / THREADS;

    const Arguments& arguments;
    uint32_t i0, d0;
    float per_unit, through_mean;
    // Whether all chunks lie on multiples of 16 bytes.
    bool aligned;
    Chunk<T> chunks[CHUNKS];
    float c[EACH][4], r[EACH][4];

    DEVICE void fetch(uint32_t j0) {
        const uint32_t n = arguments.n, dim = arguments.dim;
        UNROLL
        for (unsigned e = 0; e < CHUNKS; e++) {
            const unsigned at = (threadIdx.x + e * THREADS) * CHUNK<T>;
            const uint32_t j = j0 + at / DIMENSIONS, d = d0 + at % DIMENSIONS;
            const T* from = static_cast<const T*>(arguments.rows) + static_cast<uint64_t>(j) * dim + d;
            chunks[e] = fetch_chunk(from, aligned, j < n && d < dim ? dim - d : 0);
        }
        const uint64_t pitch = rkd::padded(n);
        UNROLL
        for (unsigned e = 0; e < EACH; e++) {
            const unsigned four = threadIdx.x + e * THREADS;
            if (four >= FOURS) continue;
            const uint64_t at = (j0 + four / (4 * PER)) * pitch + i0 + four % (4 * PER) * 4;
            pair_tile::load_side_by_side(arguments.coefficients + at, c[e]);
            if (arguments.distance) pair_tile::load_side_by_side(arguments.r + at, r[e]);
        }
    }

    DEVICE void put(float* coefficients, float* others) {
        UNROLL
        for (unsigned e = 0; e < CHUNKS; e++) {
            float values[CHUNK<T>];
            unpack(chunks[e], values);
            UNROLL
            for (unsigned i = 0; i < CHUNK<T>; i += 4)
                store4(others + (threadIdx.x + e * THREADS) * CHUNK<T> + i, values[i], values[i + 1], values[i + 2],
                       values[i + 3]);
        }
        UNROLL
        for (unsigned e = 0; e < EACH; e++) {
            const unsigned four = threadIdx.x + e * THREADS;
            if (four >= FOURS) continue;
            if (arguments.distance) {
                UNROLL
                for (unsigned i = 0; i < 4; i++) c[e][i] = fmaf(through_mean, r[e][i] * per_unit, c[e][i]);
            }
            store4(coefficients + four * 4, c[e][0], c[e][1], c[e][2], c[e][3]);
        }
    }
};

template <unsigned PER, typename T>
DEVICE void contract(const Arguments& arguments, float* coefficients, float* others) {
    const uint32_t n = arguments.n, dim = arguments.dim;
    const T* rows = static_cast<const T*>(arguments.rows);
    const uint32_t i0 = blockIdx.x * 16 * PER, d0 = blockIdx.y * DIMENSIONS;
    const unsigned ti = threadIdx.x / 16 * PER, td = threadIdx.x % 16 * 4;
    const auto unit = static_cast<float>(arguments.scalars->unit[0]);
    // A power of two, as its reciprocal is.
    Stage<PER, T> next{arguments, i0, d0, 1.0f / unit,
                       static_cast<float>(arguments.distance ? arguments.scalars->through_mean : 0.0),
                       aligned16(rows) && dim % CHUNK<T> == 0, {}, {}, {}};

    float x[PER][4], sum[PER][4] = {};
    UNROLL
    for (unsigned p = 0; p < PER; p++) {
        UNROLL
        for (unsigned q = 0; q < 4; q++) {
            const uint32_t i = i0 + ti + p, d = d0 + td + q;
            x[p][q] = i < n && d < dim ? to_float(rows[static_cast<uint64_t>(i) * dim + d]) : 0.0f;
        }
    }
    unsigned buffer = 0;
    next.fetch(0);
    next.put(coefficients, others);
    block_barrier();
    for (uint32_t j0 = 0; j0 < n; j0 += DEPTH) {
        const bool more = n - j0 > DEPTH;
        if (more) next.fetch(j0 + DEPTH);
        float part[PER][4] = {};
        UNROLL_BY(8)
        for (unsigned j = 0; j < DEPTH; j++) {
            float c[PER], y[4];
            pair_tile::load_side_by_side(coefficients + buffer + j * 16 * PER + ti, c);
            pair_tile::load_side_by_side(others + buffer + j * DIMENSIONS + td, y);
            UNROLL
            for (unsigned p = 0; p < PER; p++) {
                UNROLL
                for (unsigned q = 0; q < 4; q++) part[p][q] = fmaf(c[p], x[p][q] - y[q], part[p][q]);
            }
        }
        UNROLL
        for (unsigned p = 0; p < PER; p++) {
            UNROLL
            for (unsigned q = 0; q < 4; q++) sum[p][q] += part[p][q];
        }
        if (more) {
            buffer = BUFFER - buffer;
            next.put(coefficients + buffer, others + buffer);
            block_barrier();
        }
    }
    // C is in the unit of the lengths; its square could leave f32's range where the gradient does not. And where the
    // loss is NaN, so is the gradient.
    const float loss = arguments.value[0];
    const float upstream = loss == loss ? arguments.upstream : loss;
    UNROLL
    for (unsigned p = 0; p < PER; p++) {
        const uint32_t i = i0 + ti + p, d = d0 + td;
        if (i >= n) continue;
        float* to = arguments.gradient + static_cast<uint64_t>(i) * dim + d;
        UNROLL
        for (unsigned q = 0; q < 4; q++) sum[p][q] = sum[p][q] * unit * unit * upstream;
        if (d + 4 <= dim) {
            store4(to, aligned16(to), sum[p][0], sum[p][1], sum[p][2], sum[p][3]);
        } else {
            UNROLL
            for (unsigned q = 0; q < 4; q++) {
                if (d + q < dim) to[q] = sum[p][q];
            }
        }
    }
}

template <typename T>
DEVICE void contraction(const Arguments& arguments) {
    SHARED_ARRAY(float, coefficients, 2 * BUFFER);
    SHARED_ARRAY(float, others, 2 * BUFFER);
    if (arguments.rows_per_thread == 4) {
        contract<4, T>(arguments, coefficients, others);
    } else {
        contract<1, T>(arguments, coefficients, others);
    }
}

}  // namespace

EXPORT_KERNEL(relata_contraction_f32, THREADS, 2, Arguments, contraction<float>);
EXPORT_KERNEL(relata_contraction_f16, THREADS, 2, Arguments, contraction<f16>);
EXPORT_KERNEL(relata_contraction_bf16, THREADS, 2, Arguments, contraction<bf16>);
