// Computes   InfoNCE's loss and gradient from the student's partial attention over the keys that are not its own. With
//            a = log Σ over those, O the mean of the keys under their softmax, b = ⟨z,y⟩/τ:
//              L_i = log(eᵃ + eᵇ) − b     ∂L_i/∂z = w (O − y)/τ     w = eᵃ/(eᵃ + eᵇ)
//            and ∂L/∂x = (g − ⟨g,z⟩z)/‖x‖ where rows are normalised.
// Buffers    student x, teacher t [N, D] f32, f16 or bf16, aligned to their element; records [N] each; partials of the
//            student's rows as an attention kernel writes them; gradient [N, D] f32; losses [N] f64; value [1] f32.
// Passes     the third of three: attention_rows, attention, this. One launch: splits' weights; the mean, 128 columns at
//            a time, O − y to `gradient` and the products on the way; then the way back through the normalisation. The
//            last block adds up the rows.
// Grid       N blocks.
// Block      256 threads. To gather: warp w takes splits w, w + 8, ...; lane l the 16 bytes l of 128 columns of theirs.
//            From there on thread t < 128 holds column t, t + 128, ...
// Shared     6.5 KiB: weights of up to 512 splits, a sum for each warp and column.
// Registers  at most 64.
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
    const RowRecord student = arguments.student_records[row], teacher = arguments.teacher_records[row];
    SHARED_ARRAY(float, weights, merge::MOST_SPLITS);
    SHARED_ARRAY(merge::WarpSums, sums, merge::WARPS);

    const double log_others = merge::weigh(arguments.partials, row, weights);
    // ⟨O − y, x⟩, ⟨t, x⟩
    double along = 0, own = 0;
    for (uint32_t first = 0; first < dim; first += COLUMNS) {
        merge::gather(arguments.partials, row, weights, first, sums);
        block_barrier();
        const uint32_t d = first + threadIdx.x;
        if (threadIdx.x < COLUMNS && d < dim) {
            const double element = to_float(x[d]), key = to_float(t[d]);
            const float g = static_cast<float>(merge::total(sums, threadIdx.x) - key * teacher.inverse_norm);
            gradient[d] = g;
            along = fma(element, static_cast<double>(g), along);
            own = fma(element, key, own);
        }
        block_barrier();
    }
    along = block_reduce<THREADS>(along, Sum());
    own = block_reduce<THREADS>(own, Sum());
    const Beside result = beside(log_others * LN_2_F64, own * student.to_logit * teacher.inverse_norm * LN_2_F64);
    merge::write_gradient(x, gradient, dim, arguments.normalized != 0, along, student.inverse_norm,
                          arguments.factor * result.share);

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
