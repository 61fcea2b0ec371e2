// Computes   Σ_k c_k key_k of each row over a split of its keys.
// Buffers    coefficients c [N, keys] f64; bank [n_data, D] f32; indices [N, keys] u32; sums [splits, N,
//            D] f64.
// Passes     The third: sampled_products, sampled_rows, this, sampled_finish. One launch.
// Grid       (N, splits of the keys, ⌈D/128⌉).
// Block      256 threads. Warp w takes the keys w, w + 8, ...; a lane has 4 columns of them.
// Shared     8192 bytes: the sums of the 8 warps.
// Registers  at most 64.
// Work       N keys D FMA in f64.
// Floor      Bandwidth: 4 N keys D bytes of the bank, from L2 if the bank fits there.
// Numerics   All in f64.
// Order      Fixed: by warp, then over the warps.
// Reference  src/cpu/sampled.rs, Weighted.
#include "common/collective.cuh"

namespace {

constexpr unsigned THREADS = 256, WARPS = THREADS / WARP, COLUMNS = 128, OF_LANE = COLUMNS / WARP;

// Mirrored in src/gpu/sampled/arguments.rs.
struct Arguments {
    const double* coefficients;
    const float* bank;
    const uint32_t* indices;
    double* sums;
    uint32_t rows;
    uint32_t dim;
    uint32_t keys;
    uint32_t keys_of_split;
};
ARGUMENTS(Arguments, coefficients, bank, indices, sums, rows, dim, keys, keys_of_split);

DEVICE void gradient(const Arguments& arguments) {
    SHARED_ARRAY(double, of_warps, WARPS * COLUMNS);
    const uint32_t row = blockIdx.x, split = blockIdx.y, dim = arguments.dim, keys = arguments.keys;
    const uint32_t first_column = blockIdx.z * COLUMNS;
    const uint32_t begin = split * arguments.keys_of_split, left = keys - begin;
    const uint32_t end = begin + (left < arguments.keys_of_split ? left : arguments.keys_of_split);
    const uint64_t start = static_cast<uint64_t>(row) * keys;
    // Accumulate
    double sums[OF_LANE] = {};
    UNROLL_BY(2)
    for (uint32_t k = begin + warp_index(); k < end; k += WARPS) {
        const double coefficient = arguments.coefficients[start + k];
        const float* key = arguments.bank + static_cast<uint64_t>(arguments.indices[start + k]) * dim;
        UNROLL
        for (unsigned i = 0; i < OF_LANE; i++) {
            const uint32_t d = first_column + lane_index() + i * WARP;
            if (d < dim) sums[i] = fma(coefficient, static_cast<double>(key[d]), sums[i]);
        }
    }
    // Reduce
    UNROLL
    for (unsigned i = 0; i < OF_LANE; i++)
        of_warps[warp_index() * COLUMNS + lane_index() + i * WARP] = sums[i];
    block_barrier();
    const uint32_t d = first_column + threadIdx.x;
    if (threadIdx.x < COLUMNS && d < dim) {
        double sum = 0;
        UNROLL
        for (unsigned w = 0; w < WARPS; w++) sum += of_warps[w * COLUMNS + threadIdx.x];
        arguments.sums[(static_cast<uint64_t>(split) * arguments.rows + row) * dim + d] = sum;
    }
}

}  // namespace

EXPORT_KERNEL(relata_sampled_gradient, THREADS, 4, Arguments, gradient);
