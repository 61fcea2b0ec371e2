// Computes   ⟨x/‖x‖, key⟩ of each row with the rows of a bank that are its keys, and 1/‖x‖.
// Buffers    rows of student and teacher [N, D] f32, f16 or bf16, aligned to their element; banks of
//            either [n_data, D] f32; indices [N, keys] u32; products [sets, N, keys] f64; inverse_norms
//            [sets, N] f64: 1/‖x‖, or 0.
// Passes     The first: this, sampled_rows, sampled_gradient, sampled_finish. One launch.
// Grid       (N, splits of the keys, sets): the student's rows are set 0, the teacher's 1.
// Block      256 threads. A warp takes 4 keys at a time; its lanes lie side by side along a row.
// Shared     64 bytes, for reductions.
// Registers  at most 80.
// Work       N keys D FMA in f64, and as many elements of the banks.
// Floor      Bandwidth: 4 N keys D bytes of each bank, from L2 if the bank fits there.
// Numerics   All in f64: a softmax of exponentials magnifies the rounding of a product by thousands.
//            Rows are not divided by their length, products are. A NaN or an infinity in a row makes
//            its products NaN.
// Order      Fixed: by lane, by warp.
// Reference  src/cpu/sampled.rs, Products.
#include "common/collective.cuh"
#include "common/element.cuh"

namespace {

constexpr unsigned THREADS = 256, WARPS = THREADS / WARP, KEYS = 4;

// Mirrored in src/gpu/sampled/arguments.rs.
struct Arguments {
    const void* rows[2];
    const float* banks[2];
    const uint32_t* indices;
    double* products;
    double* inverse_norms;
    uint32_t row_count;
    uint32_t dim;
    uint32_t keys;
    uint32_t keys_of_split;
};
ARGUMENTS(Arguments, rows, banks, indices, products, inverse_norms, row_count, dim, keys, keys_of_split);

template <typename T>
DEVICE void products(const Arguments& arguments) {
    const uint32_t row = blockIdx.x, set = blockIdx.z, dim = arguments.dim, keys = arguments.keys;
    const T* x = static_cast<const T*>(arguments.rows[set]) + static_cast<uint64_t>(row) * dim;
    // Norm
    double sum = 0;
    for (uint32_t d = threadIdx.x; d < dim; d += THREADS) {
        const double value = to_float(x[d]);
        sum = fma(value, value, sum);
    }
    sum = block_reduce<THREADS>(sum, Sum());
    // NaN if the row is not finite. No sum of squares of f32 leaves the range of f64.
    const double norm = sqrt(sum) + sum * 0.0;
    const double inverse_norm = norm == 0 ? 0 : 1 / norm;
    const uint64_t of_set = static_cast<uint64_t>(set) * arguments.row_count + row;
    if (blockIdx.y == 0 && threadIdx.x == 0) arguments.inverse_norms[of_set] = inverse_norm;

    // Multiply
    const uint32_t begin = blockIdx.y * arguments.keys_of_split;
    const uint32_t left = keys - begin;
    const uint32_t end = begin + (left < arguments.keys_of_split ? left : arguments.keys_of_split);
    const uint32_t* indices = arguments.indices + static_cast<uint64_t>(row) * keys;
    double* out = arguments.products + of_set * keys;
    for (uint32_t first = begin + warp_index() * KEYS; first < end; first += WARPS * KEYS) {
        const float* key[KEYS];
        UNROLL
        for (unsigned i = 0; i < KEYS; i++) {
            // Beyond the end the last key counts once more, and is not stored.
            const uint32_t k = i < end - first ? first + i : end - 1;
            key[i] = arguments.banks[set] + static_cast<uint64_t>(indices[k]) * dim;
        }
        double sums[KEYS] = {};
        for (uint32_t d = lane_index(); d < dim; d += WARP) {
            const double value = to_float(x[d]);
            UNROLL
            for (unsigned i = 0; i < KEYS; i++)
                sums[i] = fma(value, static_cast<double>(key[i][d]), sums[i]);
        }
        const double product = warp_reduce_scatter<WARP>(sums, Sum()) * inverse_norm;
        const unsigned which = scattered_index<WARP, KEYS>();
        if (lane_index() % (WARP / KEYS) == 0 && which < end - first) out[first + which] = product;
    }
}

}  // namespace

EXPORT_KERNEL(relata_sampled_products_f32, THREADS, 3, Arguments, products<float>);
EXPORT_KERNEL(relata_sampled_products_f16, THREADS, 3, Arguments, products<f16>);
EXPORT_KERNEL(relata_sampled_products_bf16, THREADS, 3, Arguments, products<bf16>);
