// Computes   L = 1/N² Σ_ij huber(d_ij/μ_x − t_ij/μ_y), μ the mean length, and with w = huber'(·) the first part of
//            ∂L/∂h_ij = 2 r_ij/N² (w_ij/μ_x − Σ_kl w_kl d_kl/(μ_x² P)), r = 1/d, P = N (N − 1). The second, a multiple
//            of r, waits for the sum over all pairs: the contraction adds it.
// Buffers    r [N, N] f32 of student and teacher; coefficients [N, N] f32, overwritten or, where the angle's are there
//            already, added to; partials [2, blocks] f64; scalars; value [2] f32.
// Passes     one launch; the last block adds up.
// Grid       min(N² / 1024, 1024) blocks that stride over the pairs.
// Block      256 threads, a pair each at a time, side by side along the rows of the matrix.
// Shared     128 bytes for reductions.
// Registers  at most 64.
// Work       12 flop a pair; 8 bytes read, 4 written (and 4 read where added to).
// Floor      bandwidth: 12 N² bytes (16).
// Numerics   d = 1/r: two roundings. Sums of pairs in f64.
// Order      fixed: by thread, warp, block; blocks by the last one.
// Reference  src/reference/rkd_distance.rs; Park et al., arXiv 1904.05068.
#include "common/collective.cuh"
#include "common/math.cuh"
#include "common/rkd.cuh"

namespace {

constexpr unsigned THREADS = 256;

struct Arguments {
    const float* r[2];
    float* coefficients;
    double* partials;
    rkd::Scalars* scalars;
    float* value;
    unsigned* counter;
    double angle_factor;     // of the angle's mean penalty in the loss; 0 where there is none
    double distance_factor;  // of this one's
    uint32_t n;
    uint32_t add;  // to the coefficients that are there
    float delta;
    float factor;  // 2 weight / N²
};

DEVICE void rkd_distance(const Arguments& arguments) {
    rkd::Scalars& scalars = *arguments.scalars;
    const uint64_t pairs = static_cast<uint64_t>(arguments.n) * arguments.n;
    const auto unit_x = static_cast<float>(scalars.unit[0]), unit_y = static_cast<float>(scalars.unit[1]);
    // With all rows in one place there is no scale: lengths count as 0.
    const float mean_x = static_cast<float>(scalars.mean[0]), mean_y = static_cast<float>(scalars.mean[1]);
    const float scale_x = mean_x != 0 ? 1.0f / mean_x : 0.0f, scale_y = mean_y != 0 ? 1.0f / mean_y : 0.0f;
    const float delta = arguments.delta;

    double penalty = 0, weighted = 0;
    for (uint64_t at = static_cast<uint64_t>(blockIdx.x) * THREADS + threadIdx.x; at < pairs;
         at += static_cast<uint64_t>(gridDim.x) * THREADS) {
        // In the unit of the mean; a power of two, so nothing is lost.
        const float r_x = arguments.r[0][at] / unit_x, r_y = arguments.r[1][at] / unit_y;
        const float d_x = r_x > 0 ? 1.0f / r_x : 0.0f, d_y = r_y > 0 ? 1.0f / r_y : 0.0f;
        const float e = fmaf(d_x, scale_x, -(d_y * scale_y));
        const float w = fminf(fmaxf(e, -delta), delta);
        penalty += w * fmaf(-0.5f, w, e);
        weighted += w * d_x;
        const float coefficient = arguments.factor * (r_x * (w * scale_x));
        arguments.coefficients[at] = arguments.add ? arguments.coefficients[at] + coefficient : coefficient;
    }
    penalty = block_reduce<THREADS>(penalty, Sum());
    weighted = block_reduce<THREADS>(weighted, Sum());
    if (threadIdx.x == 0) {
        arguments.partials[blockIdx.x] = penalty;
        arguments.partials[gridDim.x + blockIdx.x] = weighted;
    }
    if (!is_last_block(arguments.counter)) return;
    penalty = block_sum_of<THREADS>(arguments.partials, gridDim.x);
    weighted = block_sum_of<THREADS>(arguments.partials + gridDim.x, gridDim.x);
    if (threadIdx.x == 0) {
        const double n = arguments.n, mean = scalars.mean[0];
        const double of_mean = mean != 0 && n > 1 ? weighted / (mean * mean * n * (n - 1)) : 0;
        scalars.through_mean = -arguments.factor * of_mean;
        double loss = arguments.distance_factor * penalty + scalars.poison;
        if (arguments.angle_factor != 0) loss += arguments.angle_factor * scalars.angle;
        arguments.value[0] = static_cast<float>(loss);
    }
}

}  // namespace

EXPORT_KERNEL(relata_rkd_distance, THREADS, 4, Arguments, rkd_distance);
