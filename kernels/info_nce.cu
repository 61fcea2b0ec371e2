// Computes   InfoNCE's loss and gradient from the student's partial attention over the keys that are not its own. With
//            a = log Σ over those, O the mean of the keys under their softmax, b = ⟨z,y⟩/τ:
//              L_i = log(eᵃ + eᵇ) − b     ∂L_i/∂z = w (O − y)/τ     w = eᵃ/(eᵃ + eᵇ)
//            and ∂L/∂x = (g − ⟨g,z⟩z)/‖x‖ where rows are normalised.
// Buffers    student x, teacher t [N, D] f32, f16 or bf16, aligned to their element; partials of the student's rows as an
//            attention kernel writes them; gradient [N, D] f32; losses [N] f64; value [1] f32.
// Passes     the last: attention, this. One launch: rows' lengths and splits' weights, while the first shares are on
//            their way; the mean, 128 columns at a time, O − y to `gradient` and ⟨O − y, x⟩ on the way; then the way
//            back through the normalisation. The loss is not made of the mean: one warp settles it, and takes the block's
//            ticket, while the others wait for shares; that of the last ticket adds up the rows.
// Grid       N blocks.
// Block      256 threads. To weigh: warp 0; own logit: warp 1; to settle: warp 7. To gather: warp w takes splits w,
//            w + 8, ..., 4 at a time; lane l the 16 bytes l of 128 columns of theirs. From there on
//            thread t < 128 holds column t, t + 128, ...
// Shared     6.2 KiB: weights of up to 512 splits, a sum for each warp and column.
// Registers  at most 64 (four blocks a multiprocessor): 16 for loads in flight.
// Resident   relata_info_nce_bf16 4 of 256 threads
// Work       2 splits D flop a row and some 15 D in f64; 4 splits D bytes read.
// Floor      bandwidth of L2, where the partials lie: 4 splits N D bytes, and the latency of a few reads.
// Numerics   the own key is kept apart: near convergence it has all but a little of the softmax, and that little is the
//            loss and the gradient, here w and log(1 + eᵃ⁻ᵇ), neither of which is formed by a subtraction.
// Order      fixed: by split within a warp, by warp; rows by lane, by the warp that drew the last ticket.
// Reference  src/reference/info_nce.rs; docs/maths/rrd.md.
#include "common/attention_merge.cuh"

namespace {

struct Beside {
    double excess;  // log(eᵃ + eᵇ) − b
    double share;   // of eᵃ in the sum
};

DEVICE Beside beside(double a, double b) {
    const double ratio = exp(-fabs(a - b));
    if (a > b) return {a - b + log1p(ratio), 1 / (1 + ratio)};
    return {log1p(ratio), ratio / (1 + ratio)};
}

// ⟨x,y⟩, by a warp.
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
    SHARED_ARRAY(float, weights, merge::MOST_SPLITS);
    SHARED_ARRAY(RowRecord, records, 2);
    SHARED_ARRAY(double, own, 1);
    SHARED_ARRAY(double, log, 1);
    SHARED_ARRAY(double, share, 1);

    // The first warp finds what there is to know of the student's row, the second of the teacher's and of both. What they
    // read first is asked for before their shares of the mean, and by the time it is there so are most of the other warps'.
    const unsigned set = warp_index();
    merge::Start begun;
    if (set < 2) begun = merge::begin(arguments, set == 0 ? x : t, set, row, records[set]);
    // Of the clerk's first lane.
    unsigned ticket = 0;
    const auto weigh = [&] {
        if (set < 2) {
            const double found =
                set == 0 ? merge::weigh(arguments.partials, row, begun, weights).total(begun.scale) : product(x, t, dim);
            if (lane_index() == 0) (set == 0 ? log : own)[0] = found;
        }
        block_barrier();
        if (set == merge::CLERK && lane_index() == 0) {
            const double logit = own[0] * records[0].to_logit * records[1].inverse_norm;
            const Beside result = beside(log[0] * LN_2_F64, logit * LN_2_F64);
            share[0] = result.share;
            arguments.losses[row] = result.excess;
            ticket = take_ticket(arguments.counter);
        }
    };
    const auto add = [&](uint32_t s, const float (&shares)[1][4], float (&means)[1][4]) {
        UNROLL
        for (unsigned i = 0; i < 4; i++) means[0][i] = fmaf(weights[s], shares[0][i], means[0][i]);
    };
    struct Elements {
        T x, t;
    };
    const auto fetch = [&](uint32_t d) { return Elements{x[d], t[d]}; };
    // ⟨O − y, x⟩
    double along[1] = {};
    float last = 0;
    const auto take = [&](uint32_t d, const Elements& elements, const float (&means)[1]) {
        last = static_cast<float>(means[0] - static_cast<double>(to_float(elements.t)) * records[1].inverse_norm);
        if (dim - d > merge::COLUMNS) gradient[d] = last;
        along[0] = fma(static_cast<double>(to_float(elements.x)), static_cast<double>(last), along[0]);
    };
    merge::walk<1>(arguments.partials, rows, dim, weigh, add, fetch, take);
    if (set == merge::CLERK && is_last_ticket(ticket)) {
        double loss[1] = {};
        warp_sums_of(arguments.losses, gridDim.x, loss);
        if (lane_index() == 0) arguments.value[0] = static_cast<float>(loss[0] / gridDim.x);
    }
    block_sums<merge::THREADS>(along);
    merge::write_gradient(x, gradient, dim, arguments.normalized != 0, along[0], records[0].inverse_norm,
                          arguments.factor * share[0], last);
}

}  // namespace

EXPORT_KERNEL(relata_info_nce_f32, merge::THREADS, 4, FinishArguments, info_nce<float>);
EXPORT_KERNEL(relata_info_nce_f16, merge::THREADS, 4, FinishArguments, info_nce<f16>);
EXPORT_KERNEL(relata_info_nce_bf16, merge::THREADS, 4, FinishArguments, info_nce<bf16>);
