// The finishing passes' share in an attention: partials of all splits as one, and a gradient's way back through the
// normalisation.
#pragma once

#include "attention.cuh"
#include "collective.cuh"

// Mirrored in src/gpu/attention/arguments.rs.
struct Partials {
    const Stat* stats;
    const float* means;
    const float* scales;
    uint32_t rows;
    uint32_t splits;
    uint32_t pitch;
    uint32_t padding;
};

// What a finishing pass takes. Mirrored in src/gpu/attention/arguments.rs.
struct FinishArguments {
    const void* student;
    const void* teacher;
    const RowRecord* student_records;
    const RowRecord* teacher_records;
    Partials partials;
    float* gradient;
    double* losses;
    float* value;
    unsigned* counter;
    double factor;  // upstream/(N τ), of the student
    uint32_t dim;
    uint32_t normalized;
};

namespace merge {

constexpr unsigned THREADS = 256;
constexpr unsigned WARPS = THREADS / WARP;
// A warp takes as many columns at once, four a lane; the first as many threads of the block hold one each.
constexpr unsigned COLUMNS = 4 * WARP;
constexpr unsigned MOST_SPLITS = 512;
// Loads in flight.
constexpr unsigned BATCH = 4;

using WarpSums = float[COLUMNS];

// log2 Σ 2^logit of a row, and each split's weight: what its share of the mean is to be multiplied by. Without any
// key, -inf and weights of 0.
DEVICE double weigh(const Partials& partials, uint64_t row, float* weights SITE) {
    const float scale = partials.scales[row];
    float largest = -infinity();
    for (uint32_t s = threadIdx.x; s < partials.splits; s += THREADS)
        largest = fmaxf(largest, partials.stats[static_cast<uint64_t>(s) * partials.rows + row].largest);
    largest = block_reduce<THREADS>(largest, Max() PASS_SITE);
    double sum = 0;
    for (uint32_t s = threadIdx.x; s < partials.splits; s += THREADS) {
        const Stat stat = partials.stats[static_cast<uint64_t>(s) * partials.rows + row];
        // Also for a NaN.
        weights[s] = stat.sum == 0 ? 0 : exp2_fast((stat.largest - largest) * scale);
        sum += static_cast<double>(weights[s]) * stat.sum;
    }
    sum = block_reduce<THREADS>(sum, Sum() PASS_SITE);
    const float inverse = sum == 0 ? 0 : static_cast<float>(1 / sum);
    for (uint32_t s = threadIdx.x; s < partials.splits; s += THREADS) weights[s] *= inverse;
    block_barrier(PASS_SITE_ONLY);
    return fma(static_cast<double>(largest), static_cast<double>(scale), log2(sum));
}

// Columns `first`.. of the row's mean, as a sum for each warp: splits w, w + WARPS, ... in warp w. A sum in f32 is so
// kept short, and loads are wide and many.
DEVICE void gather(const Partials& partials, uint64_t row, const float* weights, uint32_t first, WarpSums* sums) {
    const uint32_t column = first + 4 * lane_index();
    float mean[4] = {};
    if (column < partials.pitch) {
        for (uint32_t from = warp_index(); from < partials.splits; from += BATCH * WARPS) {
            float weight[BATCH], share[BATCH][4];
            UNROLL
            for (unsigned b = 0; b < BATCH; b++) {
                const uint32_t s = from + b * WARPS;
                weight[b] = s < partials.splits ? weights[s] : 0;
                share[b][0] = share[b][1] = share[b][2] = share[b][3] = 0;
                // A split without keys has written nothing.
                const uint64_t at = static_cast<uint64_t>(s) * partials.rows + row;
                if (weight[b] != 0) load_chunk(partials.means + at * partials.pitch + column, share[b]);
            }
            UNROLL
            for (unsigned b = 0; b < BATCH; b++) {
                UNROLL
                for (unsigned i = 0; i < 4; i++) mean[i] = fmaf(weight[b], share[b][i], mean[i]);
            }
        }
    }
    store4(sums[warp_index()] + 4 * lane_index(), mean[0], mean[1], mean[2], mean[3]);
}

// A column of the mean.
DEVICE float total(const WarpSums* sums, unsigned column) {
    double sum = 0;
    UNROLL
    for (unsigned w = 0; w < WARPS; w++) sum += sums[w][column];
    return static_cast<float>(sum);
}

// Carries g, which lies in `gradient`, back to the row x as it came: factor (g − ⟨g,z⟩z)/‖x‖ with z = x/‖x‖, or
// factor · g where rows are not normalised. `along` is ⟨g,x⟩.
template <typename T>
DEVICE void write_gradient(const T* x, float* gradient, uint32_t dim, bool normalized, double along,
                           double inverse_norm, double factor) {
    const double shrink = normalized ? along * inverse_norm * inverse_norm : 0;
    factor *= inverse_norm;
    // Every thread finds what it has written itself.
    if (threadIdx.x >= COLUMNS) return;
    for (uint32_t d = threadIdx.x; d < dim; d += COLUMNS)
        gradient[d] = static_cast<float>(factor * (gradient[d] - shrink * to_float(x[d])));
}

}  // namespace merge
