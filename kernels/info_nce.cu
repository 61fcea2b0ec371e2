// Computes   InfoNCE's loss and gradient from the student's partial attention over the keys that
//            are not its own. With a = log Σ over those keys, O the mean of the keys under their
//            softmax, and b = ⟨z,y⟩/τ:
//              L_i = log(eᵃ + eᵇ) − b     ∂L_i/∂z = w (O − y)/τ     w = eᵃ/(eᵃ + eᵇ)
//            and ∂L/∂x = (g − ⟨g,z⟩z)/‖x‖ where rows are normalised.
// Buffers    student x, teacher t [N, D] f32, f16 or bf16, aligned to their element; partials of
//            the student's rows as an attention kernel writes them; gradient [N, D] f32; losses [2, N]
//            f64; value [1] f32.
// Passes     The last: attention, this. One launch. It computes the rows' lengths and the splits'
//            weights while the first partial means are on their way. Then it merges the mean, 128
//            columns at a time, writes O − y to `gradient` and sums ⟨O − y, x⟩. Then it goes back
//            through the normalisation. The loss does not need the mean: one warp computes it and
//            takes the block's ticket, while the others wait for partial means. The warp with the
//            last ticket adds up the rows.
// Grid       N blocks.
// Block      256 threads. Warp 0 computes the splits' weights, warp 1 the row's own logit, and warp
//            7 the loss. To merge, warp w takes splits w, w + 8, ..., 4 at a time, and lane l takes
//            the 16 bytes l of 128 columns. From there on thread t < 128 holds columns t, t + 128,
//            ...
// Shared     6.2 KiB: weights of up to 512 splits, and a sum for each warp and column.
// Registers  at most 64 (four blocks a multiprocessor): 16 are for loads in flight.
// Resident   relata_info_nce_bf16 4 of 256 threads
// Work       2 splits D flop a row and about 15 D in f64; 4 splits D bytes read.
// Floor      Bandwidth of L2, where the partials lie: 4 splits N D bytes, and the latency of a few
//            reads.
// Numerics   The own key is kept apart. Near convergence it has nearly all of the softmax, and the
//            rest is the loss and the gradient. Here that rest is w and log(1 + eᵃ⁻ᵇ), and no
//            subtraction forms either of them.
// Order      Fixed: by split within a warp, by warp. The warp with the last ticket adds the rows by
//            lane.
// Reference  src/reference/info_nce.rs; docs/maths/rrd.md.
#include "common/attention_merge.cuh"

namespace {

struct WithOwnKey {
    double loss;           // log(eᵃ + eᵇ) − b
    double others_weight;  // eᵃ/(eᵃ + eᵇ)
};

// Adds the own key's logit b to the log-sum a of the others.
DEVICE WithOwnKey add_own_key(double a, double b) {
    const double ratio = exp(-fabs(a - b));
    if (a > b) return {a - b + log1p(ratio), 1 / (1 + ratio)};
    return {log1p(ratio), ratio / (1 + ratio)};
}

// ⟨x,y⟩, in every lane. A warp calls it.
template <typename T>
DEVICE double product(const T* x, const T* y, uint32_t dim) {
    double sum = 0;
    for (uint32_t d = lane_index(); d < dim; d += WARP)
        sum = fma(static_cast<double>(to_float(x[d])), static_cast<double>(to_float(y[d])), sum);
    return warp_reduce(sum, Sum());
}

template <typename T>
DEVICE void info_nce(const FinishArguments& arguments) {
    const uint32_t dim = arguments.dim, row = blockIdx.x;
    const uint64_t start = static_cast<uint64_t>(row) * dim;
    const T* x = static_cast<const T*>(arguments.student) + start;
    const T* t = static_cast<const T*>(arguments.teacher) + start;
    float* gradient = arguments.gradient + start;
    const uint64_t rows[1] = {row};
    SHARED_ARRAY(float, weights, merge::MAX_SPLITS);
    SHARED_ARRAY(RowRecord, records, 2);
    SHARED_ARRAY(double, own_product, 1);
    SHARED_ARRAY(double, log_sum, 1);
    SHARED_ARRAY(double, others_weight, 1);

    // Compute the rows' lengths: warp 0 the student's, warp 1 the teacher's. Their first loads are
    // issued before those of the partial means. When their data is there, so is most of the other
    // warps'.
    const unsigned set = warp_index();
    merge::RowState state;
    if (set < 2) state = merge::load_row(arguments, set == 0 ? x : t, set, row, records[set]);
    unsigned ticket = 0;  // in lane 0 of FINALIZE_WARP
    const auto weigh = [&] {
        // Compute the splits' weights and the own product
        if (set < 2) {
            const double found =
                set == 0 ? merge::split_weights(arguments.partials, row, state, weights)
                               .total(state.scale)
                         : product(x, t, dim);
            if (lane_index() == 0) (set == 0 ? log_sum : own_product)[0] = found;
        }
        block_barrier();
        // Compute the row's loss
        if (set == merge::FINALIZE_WARP && lane_index() == 0) {
            const double logit = own_product[0] * records[0].to_logit * records[1].inverse_norm;
            const WithOwnKey result = add_own_key(log_sum[0] * LN_2_F64, logit * LN_2_F64);
            others_weight[0] = result.others_weight;
            arguments.losses[row] = result.loss;
            ticket = take_ticket(arguments.counter);
        }
    };
    const auto add = [&](uint32_t s, const float (&partial)[1][4], float (&means)[1][4]) {
        UNROLL
        for (unsigned i = 0; i < 4; i++)
            means[0][i] = fmaf(weights[s], partial[0][i], means[0][i]);
    };
    struct Elements {
        T x, t;
    };
    const auto fetch = [&](uint32_t d) { return Elements{x[d], t[d]}; };
    // ⟨O − y, x⟩
    double along[1] = {};
    float last = 0;
    const auto take = [&](uint32_t d, const Elements& elements, const float (&means)[1]) {
        last = static_cast<float>(
            means[0] - static_cast<double>(to_float(elements.t)) * records[1].inverse_norm);
        if (dim - d > merge::COLUMNS) gradient[d] = last;
        along[0] =
            fma(static_cast<double>(to_float(elements.x)), static_cast<double>(last), along[0]);
    };
    // Merge the mean
    merge::merge_means<1>(arguments.partials, rows, dim, weigh, add, fetch, take);
    // Sum the loss over the rows, in the last block
    if (set == merge::FINALIZE_WARP && is_last_ticket(ticket)) {
        double loss[1] = {};
        warp_sums_of(arguments.losses, gridDim.x, loss);
        if (lane_index() == 0) arguments.value[0] = static_cast<float>(loss[0] / gridDim.x);
    }
    // Store the gradient, and that of 1/τ for weigh_rows
    block_sums<merge::THREADS>(along);
    if (threadIdx.x == 0)
        arguments.losses[row + gridDim.x] = others_weight[0] * along[0] * records[0].inverse_norm;
    merge::write_gradient(x, gradient, dim, arguments.normalized != 0, along[0],
                          records[0].inverse_norm, arguments.factor * others_weight[0], last);
}

}  // namespace

EXPORT_KERNEL(relata_info_nce_f32, merge::THREADS, 4, FinishArguments, info_nce<float>);
EXPORT_KERNEL(relata_info_nce_f16, merge::THREADS, 4, FinishArguments, info_nce<f16>);
EXPORT_KERNEL(relata_info_nce_bf16, merge::THREADS, 4, FinishArguments, info_nce<bf16>);
