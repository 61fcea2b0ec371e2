// Computes   ∂L/∂x_i = upstream · Σ_j C_ij (x_i − x_j), with C_ij = ∂L/∂h_ij, to which a multiple of r_ij is added on the
//            way where the distance loss takes part.
// Buffers    rows [N, D] f32, f16 or bf16, aligned to their element; coefficients and r [N, N] f32; gradient [N, D] f32.
// Passes     one launch.
// Grid       (tiles of rows, tiles of 64 dimensions).
// Block      256 threads; 16 PER rows i by 64 dimensions, PER = 1 or 4:
//
//                     d0 + 4 (t % 16) .. +4
//                   +-----+-----+-- ... --+-----+
//            i0 +   | t=0 |  1  |         | 15  |       32 rows j pass through shared memory at a time, with their
//            PER    | 16  | 17  |         | 31  |       coefficients
//            (t/16) | ...                       |
//                   +-----+-----+-- ... --+-----+
// Shared     17 KiB: coefficients [32 j][16 PER i], rows [32 j][64 d].
// Registers  at most 128.
// SASS       LDS.128
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
constexpr unsigned LARGEST = 64;
constexpr unsigned PITCH = LARGEST + 4;

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

template <unsigned PER, typename T>
DEVICE void contract(const Arguments& arguments, float* coefficients, float* others) {
    const uint32_t n = arguments.n, dim = arguments.dim;
    const T* rows = static_cast<const T*>(arguments.rows);
    const uint32_t i0 = blockIdx.x * 16 * PER, d0 = blockIdx.y * DIMENSIONS;
    const unsigned ti = threadIdx.x / 16 * PER, td = threadIdx.x % 16 * 4;
    const auto unit = static_cast<float>(arguments.scalars->unit[0]);
    const auto through_mean = static_cast<float>(arguments.distance ? arguments.scalars->through_mean : 0.0);

    float x[PER][4], sum[PER][4] = {};
    UNROLL
    for (unsigned p = 0; p < PER; p++) {
        UNROLL
        for (unsigned q = 0; q < 4; q++) {
            const uint32_t i = i0 + ti + p, d = d0 + td + q;
            x[p][q] = i < n && d < dim ? to_float(rows[static_cast<uint64_t>(i) * dim + d]) : 0.0f;
        }
    }
    for (uint32_t j0 = 0; j0 < n; j0 += DEPTH) {
        block_barrier();
        for (unsigned e = threadIdx.x; e < 16 * PER * DEPTH; e += THREADS) {
            const uint32_t i = i0 + e / DEPTH, j = j0 + e % DEPTH;
            const uint64_t at = static_cast<uint64_t>(i) * n + j;
            float c = 0;
            if (i < n && j < n) {
                c = arguments.coefficients[at];
                if (arguments.distance) c = fmaf(through_mean, arguments.r[at] / unit, c);
            }
            coefficients[e % DEPTH * PITCH + e / DEPTH] = c;
        }
        for (unsigned e = threadIdx.x; e < DEPTH * DIMENSIONS; e += THREADS) {
            const uint32_t j = j0 + e / DIMENSIONS, d = d0 + e % DIMENSIONS;
            others[e] = j < n && d < dim ? to_float(rows[static_cast<uint64_t>(j) * dim + d]) : 0.0f;
        }
        block_barrier();
        float part[PER][4] = {};
        UNROLL_BY(8)
        for (unsigned j = 0; j < DEPTH; j++) {
            float c[PER], y[4];
            pair_tile::load_side_by_side(coefficients + j * PITCH + ti, c);
            pair_tile::load_side_by_side(others + j * DIMENSIONS + td, y);
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
    }
    // C is in the unit of the lengths; its square could leave f32's range where the gradient does not. And where the
    // loss is NaN, so is the gradient.
    const float loss = arguments.value[0];
    const float upstream = loss == loss ? arguments.upstream : loss;
    UNROLL
    for (unsigned p = 0; p < PER; p++) {
        UNROLL
        for (unsigned q = 0; q < 4; q++) {
            const uint32_t i = i0 + ti + p, d = d0 + td + q;
            if (i < n && d < dim) arguments.gradient[static_cast<uint64_t>(i) * dim + d] = sum[p][q] * unit * unit * upstream;
        }
    }
}

template <typename T>
DEVICE void contraction(const Arguments& arguments) {
    SHARED_ARRAY(float, coefficients, DEPTH * PITCH);
    SHARED_ARRAY(float, others, DEPTH * DIMENSIONS);
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
