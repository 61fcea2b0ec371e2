// Computes   RRD's loss, KL and gradient from the partial attentions of student and teacher. With O_s, O_t the means of
//            the keys under q and p:
//              L_i = log Σ_s − ⟨z,O_t⟩/τ_s     H(p_i) = log Σ_t − ⟨y,O_t⟩/τ_t     ∂L_i/∂z = (O_s − O_t)/τ_s
//            and ∂L/∂x = (g − ⟨g,z⟩z)/‖x‖ where rows are normalised.
// Buffers    student x, teacher [N, D] f32, f16 or bf16, aligned to their element; records [N] each; partials of rows
//            0..N (student) and N..2N (teacher) as an attention kernel writes them; gradient [N, D] f32; losses [2, N]
//            f64; value [2] f32.
// Passes     the third of three: attention_rows, attention, this. One launch: splits' weights; means, 128 columns at a
//            time, g to `gradient` and the products on the way; then the way back through the normalisation. The last
//            block adds up the rows.
// Grid       N blocks.
// Block      256 threads. To gather: warp w takes splits w, w + 8, ...; lane l the 16 bytes l of 128 columns of theirs.
//            From there on thread t < 128 holds column t, t + 128, ...
// Shared     12.5 KiB: weights of up to 512 splits, a sum for each warp and column, of both.
// Registers  at most 64.
// Work       4 splits D flop a row and some 20 D in f64; 8 splits D bytes read.
// Floor      bandwidth of L2, where the partials lie: 8 splits N D bytes, and the latency of a few reads.
// Numerics   a sum over splits in f32 has at most ⌈splits/8⌉ terms; warps' sums, products and the way back in f64, so
//            that O_s − O_t loses no more than the attention has lost already.
// Order      fixed: by split within a warp, by warp; rows by the last block.
// Reference  src/reference/rrd.rs; docs/maths/rrd.md.
#include "common/attention_merge.cuh"

namespace {

using merge::COLUMNS;
using merge::THREADS;

template <typename T>
DEVICE void rrd(const FinishArguments& arguments) {
    const uint32_t dim = arguments.dim, row = blockIdx.x, rows = gridDim.x;
    const uint64_t start = static_cast<uint64_t>(row) * dim;
    const T* x = static_cast<const T*>(arguments.student) + start;
    const T* y = static_cast<const T*>(arguments.teacher) + start;
    float* gradient = arguments.gradient + start;
    const Partials& partials = arguments.partials;
    const uint64_t teacher_row = static_cast<uint64_t>(row) + rows;
    SHARED_ARRAY(float, student_weights, merge::MOST_SPLITS);
    SHARED_ARRAY(float, teacher_weights, merge::MOST_SPLITS);
    SHARED_ARRAY(merge::WarpSums, student_sums, merge::WARPS);
    SHARED_ARRAY(merge::WarpSums, teacher_sums, merge::WARPS);

    const double log_student = merge::weigh(partials, row, student_weights);
    const double log_teacher = merge::weigh(partials, teacher_row, teacher_weights);
    // ⟨O_s − O_t, x⟩, ⟨O_t, x⟩, ⟨O_t, y⟩
    double along = 0, cross = 0, own = 0;
    for (uint32_t first = 0; first < dim; first += COLUMNS) {
        merge::gather(partials, row, student_weights, first, student_sums);
        merge::gather(partials, teacher_row, teacher_weights, first, teacher_sums);
        block_barrier();
        const uint32_t d = first + threadIdx.x;
        if (threadIdx.x < COLUMNS && d < dim) {
            const float o_s = merge::total(student_sums, threadIdx.x), o_t = merge::total(teacher_sums, threadIdx.x);
            const double element = to_float(x[d]);
            gradient[d] = o_s - o_t;
            along = fma(element, static_cast<double>(o_s - o_t), along);
            cross = fma(element, static_cast<double>(o_t), cross);
            own = fma(static_cast<double>(to_float(y[d])), static_cast<double>(o_t), own);
        }
        block_barrier();
    }
    along = block_reduce<THREADS>(along, Sum());
    cross = block_reduce<THREADS>(cross, Sum());
    own = block_reduce<THREADS>(own, Sum());
    const RowRecord student = arguments.student_records[row], teacher = arguments.teacher_records[row];
    merge::write_gradient(x, gradient, dim, arguments.normalized != 0, along, student.inverse_norm, arguments.factor);

    if (threadIdx.x == 0) {
        const double cross_entropy = fma(-cross, student.to_logit, log_student) * LN_2_F64;
        const double entropy = fma(-own, teacher.to_logit, log_teacher) * LN_2_F64;
        arguments.losses[row] = cross_entropy;
        arguments.losses[teacher_row] = cross_entropy - entropy;
    }
    if (is_last_block(arguments.counter)) {
        const double loss = block_sum_of<THREADS>(arguments.losses, rows);
        const double kl = block_sum_of<THREADS>(arguments.losses + rows, rows);
        if (threadIdx.x == 0) {
            arguments.value[0] = static_cast<float>(loss / rows);
            arguments.value[1] = static_cast<float>(kl / rows);
        }
    }
}

}  // namespace

EXPORT_KERNEL(relata_rrd_f32, THREADS, 4, FinishArguments, rrd<float>);
EXPORT_KERNEL(relata_rrd_f16, THREADS, 4, FinishArguments, rrd<f16>);
EXPORT_KERNEL(relata_rrd_bf16, THREADS, 4, FinishArguments, rrd<bf16>);
