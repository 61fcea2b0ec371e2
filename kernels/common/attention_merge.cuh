// The finishing passes' share in an attention: partials of all splits as one, and a gradient's way back through the
// normalisation.
#pragma once

#include "attention.cuh"
#include "attention_row.cuh"
#include "collective.cuh"

// Mirrored in src/gpu/attention/arguments.rs.
struct Partials {
    const Stat* stats;
    const float* means;
    uint32_t rows;
    uint32_t splits;
    uint32_t pitch;
    // Whether the student's means are those of its weights less the teacher's: kernels/attention_mma.cu.
    uint32_t differences;
    // Whether the stats have their moments: attention_mma's.
    uint32_t moments;
    uint32_t padding;
};

// What a finishing pass takes. Mirrored in src/gpu/attention/arguments.rs.
struct FinishArguments {
    const void* student;
    const void* teacher;
    Partials partials;
    float* gradient;
    double* losses;
    float* value;
    unsigned* counter;
    double factor;             // upstream/(N τ), of the student
    float per_temperature[2];  // log2(e)/τ of student and teacher
    uint32_t dim;
    uint32_t normalized;
    uint32_t format;
    uint32_t padding;
};

namespace merge {

constexpr unsigned THREADS = 256;
constexpr unsigned WARPS = THREADS / WARP;
// A warp takes as many columns at once, four a lane; the first as many threads of the block hold one each.
constexpr unsigned COLUMNS = 4 * WARP;
constexpr unsigned MOST_SPLITS = 512;
using WarpSums = float[COLUMNS];

// As attention took the row.
template <typename T>
DEVICE RowRecord record(const FinishArguments& arguments, const T* row, unsigned set SITE) {
    return record_of(length_of_row(row, arguments.dim PASS_SITE), arguments.format, arguments.normalized != 0,
                     arguments.per_temperature[set]);
}

// log2 Σ 2^logit of a row, less `largest`'s logit, which is its largest product.
struct LogSum {
    float largest;
    double excess;

    DEVICE double total(float scale) const {
        return fma(static_cast<double>(largest), static_cast<double>(scale), excess);
    }
};

// The log-sum of a row, and each split's weight: what its share of the mean is to be multiplied by. Without any
// key, -inf and weights of 0. By a warp.
DEVICE LogSum weigh(const Partials& partials, uint64_t row, float scale, float* weights SITE) {
    float largest = -infinity();
    for (uint32_t s = lane_index(); s < partials.splits; s += WARP)
        largest = fmaxf(largest, partials.stats[static_cast<uint64_t>(s) * partials.rows + row].largest);
    largest = warp_reduce(largest, Max() PASS_SITE);
    double sum = 0;
    for (uint32_t s = lane_index(); s < partials.splits; s += WARP) {
        const Stat stat = partials.stats[static_cast<uint64_t>(s) * partials.rows + row];
        // Also for a NaN.
        weights[s] = stat.sum == 0 ? 0 : exp2_fast((stat.largest - largest) * scale);
        sum += static_cast<double>(weights[s]) * stat.sum;
    }
    sum = warp_reduce(sum, Sum() PASS_SITE);
    const float inverse = sum == 0 ? 0 : static_cast<float>(1 / sum);
    for (uint32_t s = lane_index(); s < partials.splits; s += WARP) weights[s] *= inverse;
    return {largest, log2(sum)};
}

// Σ_k p_k (product_k − largest) of a row, with the teacher's weights as `weigh` has found them. By a warp.
DEVICE double mean_below(const Partials& partials, uint64_t row, uint64_t teacher_row, float largest,
                         const float* teacher_weights SITE) {
    double sum = 0;
    for (uint32_t s = lane_index(); s < partials.splits; s += WARP) {
        if (teacher_weights[s] == 0) continue;
        const uint64_t split = static_cast<uint64_t>(s) * partials.rows;
        const Stat stat = partials.stats[split + row];
        const double shift = static_cast<double>(stat.largest) - static_cast<double>(largest);
        sum += teacher_weights[s] * fma(shift, static_cast<double>(partials.stats[split + teacher_row].sum),
                                        static_cast<double>(stat.moment));
    }
    return warp_reduce(sum, Sum() PASS_SITE);
}

// Goes over the splits with `SETS` rows' shares in four columns of a lane: split s in warp s % WARPS, so that sums in f32
// are kept short, and loads are wide, many, and on their way before anything is known of their weights. `ready()` holds
// the barrier after which those are there; `add(s, shares)` is called in order, also for splits that have written
// nothing.
template <unsigned SETS, typename Ready, typename Add>
DEVICE void gather(const Partials& partials, const uint64_t (&rows)[SETS], uint32_t first, Ready ready, Add add) {
    // Splits whose loads are in flight: more of two rows, of which there are few where splits are many.
    constexpr unsigned BATCH = 4 * SETS;
    const uint32_t column = first + 4 * lane_index();
    float shares[BATCH][SETS][4];
    const auto load = [&](uint32_t from) {
        UNROLL
        for (unsigned b = 0; b < BATCH; b++) {
            const uint32_t s = from + b * WARPS;
            UNROLL
            for (unsigned set = 0; set < SETS; set++) {
                const uint64_t at = static_cast<uint64_t>(s) * partials.rows + rows[set];
                if (s < partials.splits && column < partials.pitch)
                    load_chunk(partials.means + at * partials.pitch + column, shares[b][set]);
            }
        }
    };
    uint32_t from = warp_index();
    load(from);
    ready();
    while (from < partials.splits) {
        UNROLL
        for (unsigned b = 0; b < BATCH; b++) {
            const uint32_t s = from + b * WARPS;
            if (s < partials.splits && column < partials.pitch) add(s, shares[b]);
        }
        from += BATCH * WARPS;
        if (from < partials.splits) load(from);
    }
}

// To `sums` of the warp.
DEVICE void store(WarpSums* sums, const float (&mean)[4]) {
    store4(sums[warp_index()] + 4 * lane_index(), mean[0], mean[1], mean[2], mean[3]);
}

// A column of the mean.
DEVICE float total(const WarpSums* sums, unsigned column) {
    double sum = 0;
    UNROLL
    for (unsigned w = 0; w < WARPS; w++) sum += sums[w][column];
    return static_cast<float>(sum);
}

// Carries g back to the row x as it came: factor (g − ⟨g,z⟩z)/‖x‖ with z = x/‖x‖, or factor · g where rows are not
// normalised. g lies in `gradient`, but for the thread's last element, which is `last`. `along` is ⟨g,x⟩.
template <typename T>
DEVICE void write_gradient(const T* x, float* gradient, uint32_t dim, bool normalized, double along,
                           double inverse_norm, double factor, float last) {
    const double shrink = normalized ? along * inverse_norm * inverse_norm : 0;
    factor *= inverse_norm;
    // Every thread finds what it has written itself.
    if (threadIdx.x >= COLUMNS) return;
    for (uint32_t d = threadIdx.x; d < dim; d += COLUMNS) {
        const float g = dim - d > COLUMNS ? gradient[d] : last;
        gradient[d] = static_cast<float>(factor * (g - shrink * to_float(x[d])));
    }
}

}  // namespace merge
