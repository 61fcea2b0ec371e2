// Computes   InfoNCE's loss and gradient from the student's partial attention over the keys that are not its own. With
//            a = log Σ over those, O the mean of the keys under their softmax, b = ⟨z,y⟩/τ:
//              L_i = log(eᵃ + eᵇ) − b     ∂L_i/∂z = w (O − y)/τ     w = eᵃ/(eᵃ + eᵇ)
//            and ∂L/∂x = (g − ⟨g,z⟩z)/‖x‖ where rows are normalised.
// Buffers    student x, teacher t [N, D] f32, f16 or bf16, aligned to their element; partials of the student's rows as an
//            attention kernel writes them; gradient [N, D] f32; losses [N] f64; value [1] f32.
// Passes     the last: attention, this. One launch: rows' lengths and splits' weights, while the first shares are on
//            their way; the mean, 128 columns at a time, O − y to `gradient` and the products on the way; then the way
//            back through the normalisation. The last block adds up the rows.
// Grid       N blocks.
// Block      256 threads. To weigh: warp 0. To gather: warp w takes splits w, w + 8, ..., 4 at a time; lane l the 16
//            bytes l of 128 columns of theirs. From there on thread t < 128 holds column t, t + 128, ...
// Shared     6.6 KiB: weights of up to 512 splits, a sum for each warp and column.
// Registers  at most 64 (four blocks a multiprocessor): 16 for loads in flight.
// Work       2 splits D flop a row and some 15 D in f64; 4 splits D bytes read.
// Floor      bandwidth of L2, where the partials lie: 4 splits N D bytes, and the latency of a few reads.
// Numerics   the own key is kept apart: near convergence it has all but a little of the softmax, and that little is the
//            loss and the gradient, here w and log(1 + eᵃ⁻ᵇ), neither of which is formed by a subtraction.
// Order      fixed: by split within a warp, by warp; rows by the last block.
// Reference  src/reference/info_nce.rs; docs/maths/rrd.md.
#include "common/attention_merge.cuh"

namespace {

using merge::COLUMNS;
using merge::THREADS;

struct Beside {
    double excess;  // log(eᵃ + eᵇ) − b
    double share;   // of eᵃ in the sum
};

DEVICE Beside beside(double a, double b) {
    const double ratio = exp(-fabs(a - b));
    if (a > b) return {a - b + log1p(ratio), 1 / (1 + ratio)};
    return {log1p(ratio), ratio / (1 + ratio)};
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
    SHARED_ARRAY(double, log, 1);
    SHARED_ARRAY(merge::WarpSums, sums, merge::WARPS);

    // The first warp finds what there is to know of the student's row, the second of the teacher's; the shares of the
    // splits are on their way meanwhile.
    const auto weigh = [&] {
        if (warp_index() < 2) {
            const unsigned set = warp_index();
            const RowRecord record = merge::record(arguments, set == 0 ? x : t, set);
            const double others = set == 0 ? merge::weigh(arguments.partials, row, record.scale, weights).total(record.scale) : 0;
            if (lane_index() == 0) records[set] = record;
            if (threadIdx.x == 0) log[0] = others;
        }
        block_barrier();
    };
    // ⟨O − y, x⟩, ⟨t, x⟩
    double products[2] = {};
    float last = 0;
    for (uint32_t first = 0; first < dim; first += COLUMNS) {
        float mean[4] = {};
        const auto add = [&](uint32_t s, const float (&shares)[1][4]) {
            const float weight = weights[s];
            // As of a split without keys, which may have written nothing.
            if (weight == 0) return;
            UNROLL
            for (unsigned i = 0; i < 4; i++) mean[i] = fmaf(weight, shares[0][i], mean[i]);
        };
        merge::gather(arguments.partials, rows, first, [&] {
            if (first == 0) {
                weigh();
            } else {
                block_barrier();
            }
        }, add);
        merge::store(sums, mean);
        block_barrier();
        const uint32_t d = first + threadIdx.x;
        if (threadIdx.x < COLUMNS && d < dim) {
            const double element = to_float(x[d]), key = to_float(t[d]);
            last = static_cast<float>(merge::total(sums, threadIdx.x) - key * records[1].inverse_norm);
            if (dim - d > COLUMNS) gradient[d] = last;
            products[0] = fma(element, static_cast<double>(last), products[0]);
            products[1] = fma(element, key, products[1]);
        }
    }
    block_sums<THREADS>(products);
    const double along = products[0], own = products[1];
    const Beside result =
        beside(log[0] * LN_2_F64, own * records[0].to_logit * records[1].inverse_norm * LN_2_F64);
    merge::write_gradient(x, gradient, dim, arguments.normalized != 0, along, records[0].inverse_norm,
                          arguments.factor * result.share, last);

    if (threadIdx.x == 0) arguments.losses[row] = result.excess;
    if (is_last_block(arguments.counter)) {
        const double loss = block_sum_of<THREADS>(arguments.losses, gridDim.x);
        if (threadIdx.x == 0) arguments.value[0] = static_cast<float>(loss / gridDim.x);
    }
}

}  // namespace

EXPORT_KERNEL(relata_info_nce_f32, THREADS, 4, FinishArguments, info_nce<float>);
EXPORT_KERNEL(relata_info_nce_f16, THREADS, 4, FinishArguments, info_nce<f16>);
EXPORT_KERNEL(relata_info_nce_bf16, THREADS, 4, FinishArguments, info_nce<bf16>);
