// Computes   RRD's loss, KL and gradient from the partial attentions of student and teacher. With
//            O_s, O_t the means of the keys under q and p:
//              L_i = log Σ_s − ⟨z,O_t⟩/τ_s     H(p_i) = log Σ_t − ⟨y,O_t⟩/τ_t
//              ∂L_i/∂z = (O_s − O_t)/τ_s       KL_i = L_i − H(p_i)
//            and ∂L/∂x = (g − ⟨g,z⟩z)/‖x‖ where rows are normalised. After attention_mma it takes
//            Σ_k p_k ⟨z,Q_k⟩ from the moments of the stats in the place of ⟨z,O_t⟩, and so for y.
// Buffers    student x, teacher [N, D] f32, f16 or bf16, aligned to their element; partials of rows
//            0..N (student) and N..2N (teacher) as an attention kernel writes them; gradient [N, D]
//            f32; losses [3, N] f64: of the loss, the KL and ⟨O_s − O_t, z⟩, the gradient of 1/τ_s;
//            near_rows [N]; value [2] f32.
// Passes     The last but one: attention, this, rrd_divergence. One launch. It computes the rows' lengths and the splits'
//            weights while the first partial means are on their way. Then it merges the means, 128
//            columns at a time, writes g to `gradient` and sums the products. Then it goes back
//            through the normalisation. Where the stats have moments, a row's losses do not need
//            the means: one warp computes them and takes the block's ticket, while the others wait
//            for partial means. The warp with the last ticket adds up the rows.
// Grid       N blocks.
// Block      256 threads. Warp 0 computes the weights of the student's row, warp 1 those of the
//            teacher's, and warp 7 the loss. To merge, warp w takes splits w, w + 8, ... of both
//            rows, 8 at a time, and lane l takes the 16 bytes l of 128 columns. From there on
//            thread t < 128 holds columns t, t + 128, ...
// Shared     12.3 KiB: weights of up to 512 splits, and a sum for each warp and column, of both
//            rows.
// Registers  at most 128 (two blocks a multiprocessor): 64 are for loads in flight.
// Resident   relata_rrd_bf16 2 of 256 threads
// Work       6 splits D flop a row and about 20 D in f64; 8 splits D bytes read.
// Floor      Bandwidth of L2, where the partials lie: 8 splits N D bytes. And the latency of three
//            reads, one after the other: stats and rows, the partial means that did not fit the
//            first time, and the losses.
// Numerics   KL is a difference here. rrd_divergence computes it again where it is small.
//            O_s − O_t is summed as a difference: in f32 over at most ⌈splits/8⌉ terms. The sums of
//            the warps, the products and the way back are in f64. So the difference loses no more
//            than the attention has lost already.
// Order      Fixed: by split within a warp, by warp. The warp with the last ticket adds the rows by
//            lane.
// Reference  src/reference/rrd.rs; docs/maths/rrd.md.
#include "common/attention_merge.cuh"

namespace {

// Σ_k p_k (product_k − largest) of a sample's two rows, each with its own products.
struct ShiftedMeans {
    double student = 0, teacher = 0;

    DEVICE ShiftedMeans operator+(const ShiftedMeans& other) const {
        return {student + other.student, teacher + other.teacher};
    }
};

// Merges the moments of all splits, in every lane. A warp calls it.
DEVICE ShiftedMeans shifted_means(const Partials& partials, const uint64_t (&rows)[2],
                                  const merge::LogSum* logs, const float* teacher_weights) {
    ShiftedMeans sum;
    for (uint32_t s = lane_index(); s < partials.splits; s += WARP) {
        const double weight = teacher_weights[s];
        if (weight == 0) continue;
        const Stat* split = partials.stats + static_cast<uint64_t>(s) * partials.rows;
        const Stat student = split[rows[0]], teacher = split[rows[1]];
        const auto mean = [&](const Stat& stat, float largest) {
            const double shift = static_cast<double>(stat.largest) - static_cast<double>(largest);
            return weight *
                   fma(shift, static_cast<double>(teacher.sum), static_cast<double>(stat.moment));
        };
        sum = sum + ShiftedMeans{mean(student, logs[0].largest), mean(teacher, logs[1].largest)};
    }
    return warp_reduce(sum, Sum());
}

template <typename T>
DEVICE void rrd(const FinishArguments& arguments) {
    const uint32_t dim = arguments.dim, row = blockIdx.x, rows = gridDim.x;
    const uint64_t start = static_cast<uint64_t>(row) * dim;
    const T* x = static_cast<const T*>(arguments.student) + start;
    const T* y = static_cast<const T*>(arguments.teacher) + start;
    float* gradient = arguments.gradient + start;
    const Partials& partials = arguments.partials;
    const uint64_t row_pair[2] = {row, static_cast<uint64_t>(row) + rows};
    const bool moments = partials.moments != 0;
    SHARED_ARRAY(float, student_weights, merge::MAX_SPLITS);
    SHARED_ARRAY(float, teacher_weights, merge::MAX_SPLITS);
    SHARED_ARRAY(RowRecord, records, 2);
    SHARED_ARRAY(merge::LogSum, logs, 2);

    // FINALIZE_WARP alone calls these two: the first stores the row's losses and takes the ticket,
    // and the second sums the losses over the rows if the ticket is the last.
    unsigned ticket = 0;  // in lane 0 of FINALIZE_WARP
    const auto store_losses = [&](double cross_entropy, double entropy) {
        if (lane_index() != 0) return;
        arguments.losses[row] = cross_entropy * LN_2_F64;
        // KL is not negative, but the rounding of what is almost 0 may be.
        const double difference = cross_entropy - entropy;
        const double kl = difference < 0 ? 0 : difference * LN_2_F64;
        arguments.losses[row_pair[1]] = kl;
        if (kl < NEAR_KL) *arguments.any_near = 1;
        ticket = take_ticket(arguments.counter);
    };
    const auto sum_losses = [&] {
        if (!is_last_ticket(ticket)) return;
        double sums[2] = {};
        warp_sums_of(arguments.losses, rows, sums);
        if (lane_index() != 0) return;
        arguments.value[0] = static_cast<float>(sums[0] / rows);
        arguments.value[1] = static_cast<float>(sums[1] / rows);
    };

    // Compute the rows' lengths: warp 0 the student's, warp 1 the teacher's. Their first loads are
    // issued before those of the partial means. When their data is there, so is most of the other
    // warps'.
    const unsigned set = warp_index();
    const uint64_t at = row + static_cast<uint64_t>(set) * rows;
    merge::RowState state;
    if (set < 2) state = merge::load_row(arguments, set == 0 ? x : y, set, at, records[set]);
    const auto weigh = [&] {
        // Compute the splits' weights
        if (set < 2) {
            const merge::LogSum log = merge::split_weights(
                partials, at, state, set == 0 ? student_weights : teacher_weights);
            if (lane_index() == 0) logs[set] = log;
        }
        block_barrier();
        // Compute the row's losses from the moments
        if (set == merge::FINALIZE_WARP && moments) {
            const ShiftedMeans means = shifted_means(partials, row_pair, logs, teacher_weights);
            const auto entropy = [&](unsigned of, double mean) {
                const double poison = records[of].to_logit * 0;
                return fma(-mean, static_cast<double>(records[of].scale), logs[of].excess) + poison;
            };
            store_losses(entropy(0, means.student), entropy(1, means.teacher));
        }
    };
    const auto add = [&](uint32_t s, const float (&partial)[2][4], float (&means)[2][4]) {
        const float student = student_weights[s], teacher = teacher_weights[s];
        // With partial means S and T, O_s = Σ a S and O_t = Σ b T. Where the attention computed S −
        // T in the place of S, O_s − O_t = Σ a (S − T) + (a − b) T.
        const float rest = partials.differences != 0 ? student - teacher : -teacher;
        UNROLL
        for (unsigned i = 0; i < 4; i++) {
            means[0][i] = fmaf(student, partial[0][i], fmaf(rest, partial[1][i], means[0][i]));
            means[1][i] = fmaf(teacher, partial[1][i], means[1][i]);
        }
    };
    struct Elements {
        T x, y;
    };
    const auto fetch = [&](uint32_t d) { return Elements{x[d], y[d]}; };
    // ⟨O_s − O_t, x⟩, ⟨O_t, x⟩, ⟨O_t, y⟩
    double products[3] = {};
    float last = 0;
    const auto take = [&](uint32_t d, const Elements& elements, const float (&means)[2]) {
        const double element = to_float(elements.x), o_t = means[1];
        last = means[0];
        if (dim - d > merge::COLUMNS) gradient[d] = last;
        products[0] = fma(element, static_cast<double>(last), products[0]);
        products[1] = fma(element, o_t, products[1]);
        products[2] = fma(static_cast<double>(to_float(elements.y)), o_t, products[2]);
    };
    // Merge the means
    merge::merge_means<2>(partials, row_pair, dim, weigh, add, fetch, take);
    if (set == merge::FINALIZE_WARP && moments) sum_losses();
    // Store the gradient
    block_sums<merge::THREADS>(products);
    merge::write_gradient(x, gradient, dim, arguments.normalized != 0, products[0],
                          records[0].inverse_norm, arguments.factor, last);
    // Store what rrd_divergence and weigh_rows need of the row
    if (threadIdx.x == 0) {
        arguments.losses[row_pair[1] + rows] = products[0] * records[0].inverse_norm;
        const double factors[2] = {records[0].inverse_norm * arguments.per_temperature[0],
                                   records[1].inverse_norm * arguments.per_temperature[1]};
        const double mean = products[2] * factors[1] - products[1] * factors[0];
        arguments.near_rows[row] = {{factors[0], factors[1]},
                                    static_cast<float>(logs[1].total(records[1].scale)),
                                    static_cast<float>(mean)};
    }
    // Compute the row's losses from the means
    if (set == merge::FINALIZE_WARP && !moments) {
        const auto entropy = [&](unsigned of, double mean) {
            return fma(-mean, records[of].to_logit, logs[of].total(records[of].scale));
        };
        store_losses(entropy(0, products[1]), entropy(1, products[2]));
        sum_losses();
    }
}

}  // namespace

EXPORT_KERNEL(relata_rrd_f32, merge::THREADS, 2, FinishArguments, rrd<float>);
EXPORT_KERNEL(relata_rrd_f16, merge::THREADS, 2, FinishArguments, rrd<f16>);
EXPORT_KERNEL(relata_rrd_bf16, merge::THREADS, 2, FinishArguments, rrd<bf16>);
