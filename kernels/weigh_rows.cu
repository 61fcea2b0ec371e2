// Computes   What weights make of a plain mean of the losses of rows: value = Σ s_i ℓ_i, and the
//            gradient of row i times s_i. And the losses of rows, and the gradient of the scale 1/τ,
//            where someone asks for them.
// Buffers    losses ℓ [width + 1, N] f64: the loss of each row, then its terms, then its gradient of
//            the scale; shares s [N] f32 or null; gradient [N, D] f32, multiplied in place; value
//            [width] f32, or [width + 1] with the gradient of the scale; losses of rows [N] f32 or
//            null.
// Passes     One launch, after the last of the loss. Most evaluations have none of these and skip it:
//            so the kernels before it need no register for weights.
// Grid       A block for each row, or 1 where there are no shares.
// Block      256 threads. Thread t takes elements t, t + 256, ... of its block's row. Block 0 adds up
//            the losses too.
// Shared     64 bytes, for reductions.
// Registers  at most 64.
// Work       8 bytes an element of the gradient, 2 flop in f64.
// Floor      Bandwidth: the gradient is read and written once more.
// Numerics   A share is f32, the product is in f64 and rounded once. A row without a share has a
//            gradient and a loss of 0, whatever it held.
// Order      Fixed: by thread, by warp.
// Reference  src/row_weights.rs
#include "common/collective.cuh"

namespace {

constexpr unsigned THREADS = 256;

// Mirrored in src/gpu/row_shares.rs.
struct Arguments {
    const double* losses;
    const float* shares;
    float* gradient;
    float* value;
    float* row_losses;
    uint32_t rows;
    uint32_t dim;
    uint32_t width;
    uint32_t of_scale;  // whether the gradient of the scale is wanted
};
ARGUMENTS(Arguments, losses, shares, gradient, value, row_losses, rows, dim, width, of_scale);

// The mean of a loss, a term or the gradient of the scale.
DEVICE void weigh_losses(const Arguments& arguments, uint32_t term) {
    const double* losses = arguments.losses + static_cast<uint64_t>(term) * arguments.rows;
    const double per_row = 1.0 / arguments.rows;
    double sum = 0;
    for (uint32_t i = threadIdx.x; i < arguments.rows; i += THREADS) {
        const double share = arguments.shares != nullptr ? arguments.shares[i] : per_row;
        if (share != 0) sum = fma(share, losses[i], sum);
    }
    sum = block_reduce<THREADS>(sum, Sum());
    if (threadIdx.x == 0) arguments.value[term] = static_cast<float>(sum);
}

DEVICE void weigh_rows(const Arguments& arguments) {
    const float* shares = arguments.shares;
    if (blockIdx.x == 0) {
        if (shares != nullptr) {
            for (uint32_t term = 0; term < arguments.width; term++) weigh_losses(arguments, term);
        }
        if (arguments.of_scale) weigh_losses(arguments, arguments.width);
        if (arguments.row_losses != nullptr) {
            for (uint32_t i = threadIdx.x; i < arguments.rows; i += THREADS) {
                const bool counts = shares == nullptr || shares[i] != 0;
                arguments.row_losses[i] = counts ? static_cast<float>(arguments.losses[i]) : 0.0f;
            }
        }
    }
    if (shares == nullptr) return;
    const double share = shares[blockIdx.x];
    float* row = arguments.gradient + static_cast<uint64_t>(blockIdx.x) * arguments.dim;
    for (uint32_t d = threadIdx.x; d < arguments.dim; d += THREADS)
        row[d] = share == 0 ? 0.0f : static_cast<float>(share * row[d]);
}

}  // namespace

EXPORT_KERNEL(relata_weigh_rows, THREADS, 4, Arguments, weigh_rows);
