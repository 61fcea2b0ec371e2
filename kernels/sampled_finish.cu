// Computes   The gradient of each row as it came, from the sums of its splits, and the mean of the
//            rows' losses.
// Buffers    rows [N, D] f32, f16 or bf16; inverse_norms [N] f64; sums [splits, N, D] f64; losses [width,
//            N] f64; gradient [N, D] f32; value [width] f32.
// Passes     The last: sampled_products, sampled_rows, sampled_gradient, this. One launch, and
//            weigh_rows where rows have weights.
// Grid       N blocks.
// Block      256 threads, side by side along the row.
// Shared     64 bytes, for reductions.
// Registers  at most 64.
// Work       2 splits additions an element in f64.
// Floor      Bandwidth: 16 splits N D bytes.
// Numerics   All in f64; a gradient is rounded once.
// Order      Fixed: by split, by thread, by warp.
// Reference  src/cpu/sampled.rs, UnitRow::write_gradient.
#include "common/collective.cuh"
#include "common/element.cuh"

namespace {

constexpr unsigned THREADS = 256;

// Mirrored in src/gpu/sampled/arguments.rs.
struct Arguments {
    const void* rows;
    const double* inverse_norms;
    const double* sums;
    const double* losses;
    float* gradient;
    float* value;
    unsigned* counter;
    double factor;  // of the gradient
    uint32_t row_count;
    uint32_t dim;
    uint32_t splits;
    uint32_t width;  // 1, or 2 with the divergence
};
ARGUMENTS(Arguments, rows, inverse_norms, sums, losses, gradient, value, counter, factor, row_count, dim,
          splits, width);

DEVICE double sum_of_splits(const Arguments& arguments, uint64_t at) {
    const uint64_t matrix = static_cast<uint64_t>(arguments.row_count) * arguments.dim;
    double sum = 0;
    for (uint32_t s = 0; s < arguments.splits; s++) sum += arguments.sums[s * matrix + at];
    return sum;
}

template <typename T>
DEVICE void finish(const Arguments& arguments) {
    const uint32_t dim = arguments.dim, n = arguments.row_count;
    const uint64_t start = static_cast<uint64_t>(blockIdx.x) * dim;
    const T* x = static_cast<const T*>(arguments.rows) + start;
    const double inverse_norm = arguments.inverse_norms[blockIdx.x];
    double along = 0;
    for (uint32_t d = threadIdx.x; d < dim; d += THREADS)
        along = fma(sum_of_splits(arguments, start + d), to_float(x[d]) * inverse_norm, along);
    along = block_reduce<THREADS>(along, Sum());
    const double factor = arguments.factor * inverse_norm;
    for (uint32_t d = threadIdx.x; d < dim; d += THREADS) {
        const double g = sum_of_splits(arguments, start + d);
        const double unit = to_float(x[d]) * inverse_norm;
        arguments.gradient[start + d] = static_cast<float>((g - along * unit) * factor);
    }
    if (is_last_block(arguments.counter)) {
        for (uint32_t which = 0; which < arguments.width; which++) {
            const double sum =
                block_sum_of<THREADS>(arguments.losses + static_cast<uint64_t>(which) * n, n);
            if (threadIdx.x == 0) arguments.value[which] = static_cast<float>(sum / n);
        }
    }
}

}  // namespace

EXPORT_KERNEL(relata_sampled_finish_f32, THREADS, 4, Arguments, finish<float>);
EXPORT_KERNEL(relata_sampled_finish_f16, THREADS, 4, Arguments, finish<f16>);
EXPORT_KERNEL(relata_sampled_finish_bf16, THREADS, 4, Arguments, finish<bf16>);
