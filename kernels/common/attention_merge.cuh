// What the pass after the attention needs (rrd.cu, info_nce.cu): it merges the partial
// attentions of all splits, and carries a gradient back through the normalisation.
//
// A block has one sample. Its steps:
//
//     rows' lengths, largest products            load_row        warps 0 and 1
//     each split's weight, the row's log-sum     split_weights   warps 0 and 1
//     weighted sum of the splits' means          merge_means     all warps, 128 columns at a time
//     the row's loss, the ticket                 the kernel      FINALIZE_WARP
//     gradient of the row as it came             write_gradient  128 threads
#pragma once

#include "attention.cuh"
#include "attention_row.cuh"
#include "collective.cuh"
#include "divergence.cuh"

// The partial attentions. Mirrored in src/gpu/contrastive/arguments.rs.
struct Partials {
    const Stat* stats;   // [splits, rows]
    const float* means;  // [splits, rows, pitch]
    uint32_t rows;
    uint32_t splits;
    uint32_t pitch;
    // Whether the student's means are Σ (w − v) key, with the teacher's weights v: see
    // kernels/attention_mma.cu.
    uint32_t differences;
    // Whether the stats have moments. Those of attention_mma do.
    uint32_t moments;
    uint32_t padding;
};
ARGUMENTS(Partials, stats, means, rows, splits, pitch, differences, moments, padding);

// The arguments of the last pass. Mirrored in src/gpu/contrastive/arguments.rs.
struct FinishArguments {
    const void* student;
    const void* teacher;
    Partials partials;
    float* gradient;
    double* losses;
    float* value;
    unsigned* counter;
    NearRow* near_rows;        // [N], of RRD
    uint32_t* any_near;        // of RRD: 0 before the launch, 1 if a row is near its teacher
    double factor;             // upstream/(N τ), with the student's τ
    float per_temperature[2];  // log2(e)/τ of student and teacher
    uint32_t dim;
    uint32_t normalized;
    uint32_t format;
    uint32_t padding;
};
ARGUMENTS(FinishArguments, student, teacher, partials, gradient, losses, value, counter, near_rows,
          any_near, factor, per_temperature, dim, normalized, format, padding);

namespace merge {

constexpr unsigned THREADS = 256;
constexpr unsigned WARPS = THREADS / WARP;
// A warp reads this many columns at once, four a lane. Later the first COLUMNS threads of the block
// hold one column each.
constexpr unsigned COLUMNS = 4 * WARP;
constexpr unsigned MAX_SPLITS = 512;
// The warp that finishes a row's loss and takes the block's ticket, while the other warps go on
// with the gradient. It holds no column.
constexpr unsigned FINALIZE_WARP = WARPS - 1;
using WarpSums = float[COLUMNS];

// log2 Σ 2^logit of a row, in two parts: the largest product, and by how much the log-sum exceeds
// that product's logit.
struct LogSum {
    float largest;
    double excess;

    DEVICE double total(float scale) const {
        return fma(static_cast<double>(largest), static_cast<double>(scale), excess);
    }
};

// What a warp keeps in registers of its row. It is small, because the loads of the means take the
// other registers.
struct RowState {
    float largest;  // product of all splits
    float scale;    // of the row's record
};

// Computes a row's record and finds its largest product. The loads for both are issued together.
// A warp calls it.
template <typename T>
DEVICE RowState load_row(const FinishArguments& arguments, const T* row, unsigned set, uint64_t at,
                         RowRecord& record SITE) {
    const Partials& partials = arguments.partials;
    const auto largest = [&](uint32_t s) {
        return s < partials.splits
                   ? partials.stats[static_cast<uint64_t>(s) * partials.rows + at].largest
                   : -infinity();
    };
    // Issue the first loads of the stats
    float first[4];
    UNROLL
    for (unsigned b = 0; b < 4; b++) first[b] = largest(lane_index() + b * WARP);
    // Compute the row's record
    const RowRecord found =
        record_of(length_of_row(row, arguments.dim PASS_SITE), arguments.format,
                  arguments.normalized != 0, arguments.per_temperature[set]);
    if (lane_index() == 0) record = found;
    // Find the largest product
    float most = fmaxf(fmaxf(first[0], first[1]), fmaxf(first[2], first[3]));
    for (uint32_t s = lane_index() + 4 * WARP; s < partials.splits; s += WARP)
        most = fmaxf(most, largest(s));
    return {warp_reduce(most, Max() PASS_SITE), found.scale};
}

// Computes a row's log-sum and writes each split's weight: the factor of its mean in the row's
// mean. A row without any key has the log-sum −inf and weights of 0. A warp calls it.
DEVICE LogSum split_weights(const Partials& partials, uint64_t row, RowState state,
                            float* weights SITE) {
    double sum = 0;
    for (uint32_t s = lane_index(); s < partials.splits; s += WARP) {
        const Stat stat = partials.stats[static_cast<uint64_t>(s) * partials.rows + row];
        // A NaN in the sum goes to the second branch, and on to the weight.
        weights[s] = stat.sum == 0 ? 0 : exp2_fast((stat.largest - state.largest) * state.scale);
        sum += static_cast<double>(weights[s]) * stat.sum;
    }
    sum = warp_reduce(sum, Sum() PASS_SITE);
    const float inverse = sum == 0 ? 0 : static_cast<float>(1 / sum);
    for (uint32_t s = lane_index(); s < partials.splits; s += WARP) weights[s] *= inverse;
    return {state.largest, log2(sum)};
}

// Goes over the splits. A lane reads four columns of the partial means of `SETS` rows, and warp w
// takes the splits s with s % WARPS = w. That keeps the sums in f32 short. The loads are wide and
// many, and they are issued before anything is known of the weights. `ready()` holds the barrier
// after which the weights are there. `add(s, partial)` is called in the order of the splits.
template <unsigned SETS, typename Ready, typename Add>
DEVICE void for_each_split(const Partials& partials, const uint64_t (&rows)[SETS], uint32_t first,
                           Ready ready, Add add) {
    // Splits whose loads are in flight. It is more for two rows: there the batch is small when the
    // splits are many, so registers are free.
    constexpr unsigned BATCH = 4 * SETS;
    const uint32_t column = first + 4 * lane_index();
    float loaded[BATCH][SETS][4];
    const auto load = [&](uint32_t s, float (&partial)[SETS][4]) {
        UNROLL
        for (unsigned set = 0; set < SETS; set++) {
            const uint64_t at = static_cast<uint64_t>(s) * partials.rows + rows[set];
            if (s < partials.splits && column < partials.pitch)
                load_chunk(partials.means + at * partials.pitch + column, partial[set]);
        }
    };
    // Issue the first loads
    UNROLL
    for (unsigned b = 0; b < BATCH; b++) load(warp_index() + b * WARPS, loaded[b]);
    // Wait for the weights
    ready();
    // Accumulate, and issue the next loads
    for (uint32_t from = warp_index(); from < partials.splits; from += BATCH * WARPS) {
        UNROLL
        for (unsigned b = 0; b < BATCH; b++) {
            const uint32_t s = from + b * WARPS;
            if (s < partials.splits && column < partials.pitch) add(s, loaded[b]);
            load(s + BATCH * WARPS, loaded[b]);
        }
    }
}

// Computes MEANS merged means, COLUMNS columns at a time. It calls:
//   weigh()                    once; it holds the barrier after which the weights are there
//   add(s, partial, means)     to add the partial means of split s to a lane's four columns
//   fetch(d)                   to load what the next call needs, before the block waits
//   take(d, elements, means)   in the thread that has column d, with what fetch(d) gave
template <unsigned MEANS, unsigned SETS, typename Weigh, typename Add, typename Fetch,
          typename Take>
DEVICE void merge_means(const Partials& partials, const uint64_t (&rows)[SETS], uint32_t dim,
                        Weigh weigh, Add add, Fetch fetch, Take take SITE) {
    SHARED_ARRAY(WarpSums, sums, MEANS * WARPS);
    for (uint32_t first = 0; first < dim; first += COLUMNS) {
        float lane_means[MEANS][4] = {};
        const auto ready = [&] {
            if (first == 0) {
                weigh();
            } else {
                // Other threads may still read the sums of the columns before.
                block_barrier(PASS_SITE_ONLY);
            }
        };
        // Accumulate this warp's splits
        for_each_split(partials, rows, first, ready,
                       [&](uint32_t s, const float (&partial)[SETS][4]) {
                           add(s, partial, lane_means);
                       });
        // Store the warp's sums
        UNROLL
        for (unsigned m = 0; m < MEANS; m++) {
            const float(&mean)[4] = lane_means[m];
            store4(sums[m * WARPS + warp_index()] + 4 * lane_index(), mean[0], mean[1], mean[2],
                   mean[3]);
        }
        const uint32_t d = first + threadIdx.x;
        const bool holds = threadIdx.x < COLUMNS && d < dim;
        const auto elements = fetch(holds ? d : 0);
        block_barrier(PASS_SITE_ONLY);
        if (!holds) continue;
        // Merge the warps' sums
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

// Carries g back to the row x as it came, and writes the result to `gradient`. It is
// factor (g − ⟨g,z⟩z)/‖x‖ with z = x/‖x‖, or factor · g where rows are not normalised. g lies in
// `gradient`, except for the thread's last element, which is `last`. `along` is ⟨g,x⟩.
template <typename T>
DEVICE void write_gradient(const T* x, float* gradient, uint32_t dim, bool normalized, double along,
                           double inverse_norm, double factor, float last) {
    const double shrink = normalized ? along * inverse_norm * inverse_norm : 0;
    factor *= inverse_norm;
    // Each thread reads only what it has written itself, so no barrier is needed.
    if (threadIdx.x >= COLUMNS) return;
    for (uint32_t d = threadIdx.x; d < dim; d += COLUMNS) {
        const float g = dim - d > COLUMNS ? gradient[d] : last;
        gradient[d] = static_cast<float>(factor * (g - shrink * to_float(x[d])));
    }
}

}  // namespace merge
