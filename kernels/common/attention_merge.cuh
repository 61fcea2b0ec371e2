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
// The warp that settles a row's loss and takes the block's ticket for it, while the others go on with the gradient. It
// holds no column.
constexpr unsigned CLERK = WARPS - 1;
using WarpSums = float[COLUMNS];

// log2 Σ 2^logit of a row, less `largest`'s logit, which is its largest product.
struct LogSum {
    float largest;
    double excess;

    DEVICE double total(float scale) const {
        return fma(static_cast<double>(largest), static_cast<double>(scale), excess);
    }
};

// What a warp knows of a row before it waits for the others: as little as it can be, beside loads in flight.
struct Start {
    float largest;  // product of all splits
    float scale;    // of the row's record
};

// Finds a row's record and largest product, both asked for at once. By a warp.
template <typename T>
DEVICE Start begin(const FinishArguments& arguments, const T* row, unsigned set, uint64_t at, RowRecord& record SITE) {
    const Partials& partials = arguments.partials;
    const auto largest = [&](uint32_t s) {
        return s < partials.splits ? partials.stats[static_cast<uint64_t>(s) * partials.rows + at].largest : -infinity();
    };
    float first[4];
    UNROLL
    for (unsigned b = 0; b < 4; b++) first[b] = largest(lane_index() + b * WARP);
    const RowRecord found = record_of(length_of_row(row, arguments.dim PASS_SITE), arguments.format,
                                      arguments.normalized != 0, arguments.per_temperature[set]);
    if (lane_index() == 0) record = found;
    float most = fmaxf(fmaxf(first[0], first[1]), fmaxf(first[2], first[3]));
    for (uint32_t s = lane_index() + 4 * WARP; s < partials.splits; s += WARP) most = fmaxf(most, largest(s));
    return {warp_reduce(most, Max() PASS_SITE), found.scale};
}

// The log-sum of a row, and each split's weight: what its share of the mean is to be multiplied by. Without any
// key, -inf and weights of 0. By a warp.
DEVICE LogSum weigh(const Partials& partials, uint64_t row, Start start, float* weights SITE) {
    double sum = 0;
    for (uint32_t s = lane_index(); s < partials.splits; s += WARP) {
        const Stat stat = partials.stats[static_cast<uint64_t>(s) * partials.rows + row];
        // Also for a NaN.
        weights[s] = stat.sum == 0 ? 0 : exp2_fast((stat.largest - start.largest) * start.scale);
        sum += static_cast<double>(weights[s]) * stat.sum;
    }
    sum = warp_reduce(sum, Sum() PASS_SITE);
    const float inverse = sum == 0 ? 0 : static_cast<float>(1 / sum);
    for (uint32_t s = lane_index(); s < partials.splits; s += WARP) weights[s] *= inverse;
    return {start.largest, log2(sum)};
}

// Goes over the splits with `SETS` rows' shares in four columns of a lane: split s in warp s % WARPS, so that sums in f32
// are kept short, and loads are wide, many, and on their way before anything is known of their weights. `ready()` holds
// the barrier after which those are there; `add(s, shares)` is called in order.
template <unsigned SETS, typename Ready, typename Add>
DEVICE void gather(const Partials& partials, const uint64_t (&rows)[SETS], uint32_t first, Ready ready, Add add) {
    // Splits whose loads are in flight: more of two rows, of which there are few where splits are many.
    constexpr unsigned BATCH = 4 * SETS;
    const uint32_t column = first + 4 * lane_index();
    float shares[BATCH][SETS][4];
    const auto load = [&](uint32_t s, float (&of_split)[SETS][4]) {
        UNROLL
        for (unsigned set = 0; set < SETS; set++) {
            const uint64_t at = static_cast<uint64_t>(s) * partials.rows + rows[set];
            if (s < partials.splits && column < partials.pitch)
                load_chunk(partials.means + at * partials.pitch + column, of_split[set]);
        }
    };
    UNROLL
    for (unsigned b = 0; b < BATCH; b++) load(warp_index() + b * WARPS, shares[b]);
    ready();
    for (uint32_t from = warp_index(); from < partials.splits; from += BATCH * WARPS) {
        UNROLL
        for (unsigned b = 0; b < BATCH; b++) {
            const uint32_t s = from + b * WARPS;
            if (s < partials.splits && column < partials.pitch) add(s, shares[b]);
            load(s + BATCH * WARPS, shares[b]);
        }
    }
}

// Goes over the columns, COLUMNS at a time. `weigh()` holds the barrier after which the weights are there;
// `add(s, shares, means)` adds the shares of a split to what a lane has of MEANS means. Then a thread has a column d of
// each: `take(d, elements, means)`, with what `fetch(d)` gave it before the others were waited for.
template <unsigned MEANS, unsigned SETS, typename Weigh, typename Add, typename Fetch, typename Take>
DEVICE void walk(const Partials& partials, const uint64_t (&rows)[SETS], uint32_t dim, Weigh weigh, Add add, Fetch fetch,
                 Take take SITE) {
    SHARED_ARRAY(WarpSums, sums, MEANS * WARPS);
    for (uint32_t first = 0; first < dim; first += COLUMNS) {
        float shared_means[MEANS][4] = {};
        const auto ready = [&] {
            if (first == 0) {
                weigh();
            } else {
                // Those of the columns before have been read.
                block_barrier(PASS_SITE_ONLY);
            }
        };
        gather(partials, rows, first, ready, [&](uint32_t s, const float (&shares)[SETS][4]) { add(s, shares, shared_means); });
        UNROLL
        for (unsigned m = 0; m < MEANS; m++) {
            const float(&mean)[4] = shared_means[m];
            store4(sums[m * WARPS + warp_index()] + 4 * lane_index(), mean[0], mean[1], mean[2], mean[3]);
        }
        const uint32_t d = first + threadIdx.x;
        const bool holds = threadIdx.x < COLUMNS && d < dim;
        const auto elements = fetch(holds ? d : 0);
        block_barrier(PASS_SITE_ONLY);
        if (!holds) continue;
        float means[MEANS];
        UNROLL
        for (unsigned m = 0; m < MEANS; m++) {
            double sum = 0;
            UNROLL
            for (unsigned w = 0; w < WARPS; w++) sum += sums[m * WARPS + w][threadIdx.x];
            means[m] = static_cast<float>(sum);
        }
        take(d, elements, means);
    }
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
