// Computes   s_i = w_i/Σw, the share of each row in a weighted mean; 0 where its weight is 0.
// Buffers    weights w [N] f32, at least 0; shares [N] f32.
// Passes     One launch: the largest weight, the sum in units of it, the shares.
// Grid       1 block.
// Block      1024 threads. Thread t takes the weights t, t + THREADS, ...
// Shared     384 bytes for reductions.
// Registers  at most 64.
// SASS       LDG.E
// Work       Three readings of N weights, from L2 after the first. It is the time of a launch.
// Floor      Latency: two block reductions.
// Numerics   The sum is in f64, in units of the largest weight, so it cannot overflow. A share is
//            rounded once; one below f32's normal range becomes the least of it: a row counts whose
//            weight is not 0.
// Order      Fixed: by thread, by warp.
// Reference  src/row_weights.rs
#include "common/collective.cuh"

namespace {

constexpr unsigned THREADS = 1024;
constexpr float LEAST = 1.17549435e-38f;  // the least normal number

// Mirrored in src/gpu/row_shares.rs.
struct Arguments {
    const float* weights;
    float* shares;
    uint32_t rows;
    uint32_t padding;
};
ARGUMENTS(Arguments, weights, shares, rows, padding);

DEVICE void row_shares(const Arguments& arguments) {
    const float* weights = arguments.weights;
    float largest = 0;
    for (uint32_t i = threadIdx.x; i < arguments.rows; i += THREADS)
        largest = fmaxf(largest, weights[i]);
    const double unit = block_reduce<THREADS>(largest, Max());
    double sum = 0;
    if (unit > 0) {
        for (uint32_t i = threadIdx.x; i < arguments.rows; i += THREADS) sum += weights[i] / unit;
    }
    sum = block_reduce<THREADS>(sum, Sum());
    for (uint32_t i = threadIdx.x; i < arguments.rows; i += THREADS) {
        const bool counts = weights[i] > 0;
        arguments.shares[i] =
            counts ? fmaxf(static_cast<float>(weights[i] / unit / sum), LEAST) : 0.0f;
    }
}

}  // namespace

EXPORT_KERNEL(relata_row_shares, THREADS, 1, Arguments, row_shares);
