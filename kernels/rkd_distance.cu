// Computes   L = 1/N² Σ_ij huber(d_ij/μ_x − t_ij/μ_y), μ the mean length, and with w = huber'(·) the first part of
//            ∂L/∂h_ij = 2 r_ij/N² (w_ij/μ_x − Σ_kl w_kl d_kl/(μ_x² P)), r = 1/d, P = N (N − 1). The second, a multiple
//            of r, waits for the sum over all pairs: the contraction adds it.
// Buffers    r [P, P] f32 of student and teacher, P the rows up to a multiple of 64, 0 beyond N; coefficients [P, P] f32, overwritten or, where the angle's are there
//            already, added to; partials [2, blocks] f64; scalars; value [2] f32.
// Passes     one launch; the last block adds up.
// Grid       min(P² / 1024, 1024) blocks that stride over the pairs.
// Block      256 threads, four pairs each at a time, side by side along the rows of the matrix.
// Shared     128 bytes for reductions.
// Registers  at most 64.
// SASS       LDG.E.128, STG.E.128
// Work       12 flop a pair; 8 bytes read, 4 written (and 4 read where added to).
// Floor      bandwidth: 12 N² bytes (16).
// Numerics   d = 1/r: two roundings. Sums of four pairs in f32, of those in f64.
// Order      fixed: by thread, warp, block; blocks by the last one.
// Reference  src/reference/rkd_distance.rs; Park et al., arXiv 1904.05068.
#include "common/collective.cuh"
#include "common/pair_tile.cuh"
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
    const uint64_t pitch = rkd::padded(arguments.n), pairs = pitch * pitch;
    // Powers of two, so nothing is lost.
    const float per_unit_x = 1.0f / static_cast<float>(scalars.unit[0]);
    const float per_unit_y = 1.0f / static_cast<float>(scalars.unit[1]);
    // With all rows in one place there is no scale: lengths count as 0.
    const float mean_x = static_cast<float>(scalars.mean[0]), mean_y = static_cast<float>(scalars.mean[1]);
    const float scale_x = mean_x != 0 ? 1.0f / mean_x : 0.0f, scale_y = mean_y != 0 ? 1.0f / mean_y : 0.0f;
    const float delta = arguments.delta;

    double penalty = 0, weighted = 0;
    for (uint64_t at = 4 * (static_cast<uint64_t>(blockIdx.x) * THREADS + threadIdx.x); at < pairs;
         at += 4 * static_cast<uint64_t>(gridDim.x) * THREADS) {
        float r_x[4], r_y[4], c[4] = {};
        pair_tile::load_side_by_side(arguments.r[0] + at, r_x);
        pair_tile::load_side_by_side(arguments.r[1] + at, r_y);
        if (arguments.add) pair_tile::load_side_by_side(arguments.coefficients + at, c);
        float few = 0, few_weighted = 0;
        UNROLL
        for (unsigned i = 0; i < 4; i++) {
            // In the unit of the mean.
            r_x[i] *= per_unit_x;
            r_y[i] *= per_unit_y;
            const float d_x = r_x[i] > 0 ? 1.0f / r_x[i] : 0.0f, d_y = r_y[i] > 0 ? 1.0f / r_y[i] : 0.0f;
            const float e = fmaf(d_x, scale_x, -(d_y * scale_y));
            const float w = fminf(fmaxf(e, -delta), delta);
            few = fmaf(w, fmaf(-0.5f, w, e), few);
            few_weighted = fmaf(w, d_x, few_weighted);
            c[i] = fmaf(arguments.factor, r_x[i] * (w * scale_x), c[i]);
        }
        penalty += few;
        weighted += few_weighted;
        store4(arguments.coefficients + at, c[0], c[1], c[2], c[3]);
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
