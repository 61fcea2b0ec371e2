// Computes   p = softmax(x/τ) of every row.
// Buffers    x [N, D] f32, f16 or bf16, aligned to its element; p [N, D] f32.
// Passes     One launch: the row's maximum and sum in one read, then a second read, from L2, and
//            the write.
// Grid       N blocks.
// Block      256 threads, side by side along the row: thread t takes elements t, t + 256, ...
// Shared     64 bytes, for reductions.
// Registers  at most 64.
// Work       4 D flop and D exponentials a row; D elements read, 4 D bytes written.
// Floor      Bandwidth: (element + 4) N D bytes.
// Numerics   The maximum is subtracted before anything is scaled. Sums are in f32, by thread, then
//            by tree. An element of −∞ has p = 0. A row of nothing else is NaN, and so is one
//            with NaN or +∞.
// Order      Fixed: by thread, by warp, by block.
// Reference  src/reference/mod.rs, softmax.
#include "common/collective.cuh"
#include "common/element.cuh"
#include "common/softmax_row.cuh"

namespace {

constexpr unsigned THREADS = 256;

// Mirrored in src/gpu/logits/softmax.rs.
struct Arguments {
    const void* rows;
    float* probabilities;
    uint32_t dim;
    float inverse_temperature;
};
ARGUMENTS(Arguments, rows, probabilities, dim, inverse_temperature);

template <typename T>
DEVICE void softmax(const Arguments& arguments) {
    const uint64_t start = static_cast<uint64_t>(blockIdx.x) * arguments.dim;
    const T* x = static_cast<const T*>(arguments.rows) + start;
    float* p = arguments.probabilities + start;
    const float scale = arguments.inverse_temperature * LOG2_E;

    // Maximum and sum
    OnlineSoftmax row;
    for (uint32_t c = threadIdx.x; c < arguments.dim; c += THREADS) row.add(to_float(x[c]), scale);
    row = row.of_block<THREADS>(scale);
    // Store
    const float inverse = 1.0f / row.sum, from = row.origin();
    for (uint32_t c = threadIdx.x; c < arguments.dim; c += THREADS)
        p[c] = exp2_fast((to_float(x[c]) - from) * scale) * inverse;
}

}  // namespace

EXPORT_KERNEL(relata_softmax_f32, THREADS, 4, Arguments, softmax<float>);
EXPORT_KERNEL(relata_softmax_f16, THREADS, 4, Arguments, softmax<f16>);
EXPORT_KERNEL(relata_softmax_bf16, THREADS, 4, Arguments, softmax<bf16>);
