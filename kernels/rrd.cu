// Computes   RRD's loss, KL and gradient from the partial attentions of student and teacher. With O_s, O_t the means of
//            the keys under q and p:
//              L_i = log Σ_s − ⟨z,O_t⟩/τ_s     H(p_i) = log Σ_t − ⟨y,O_t⟩/τ_t     ∂L_i/∂z = (O_s − O_t)/τ_s
//            where attention_mma has been, with its own Σ_k p_k ⟨z,Q_k⟩ for ⟨z,O_t⟩, and so for y;
//            and ∂L/∂x = (g − ⟨g,z⟩z)/‖x‖ where rows are normalised.
// Buffers    student x, teacher [N, D] f32, f16 or bf16, aligned to their element; partials of rows 0..N (student) and
//            N..2N (teacher) as an attention kernel writes them; gradient [N, D] f32; losses [2, N] f64; value [2] f32.
// Passes     the last: attention, this. One launch: rows' lengths and splits' weights, while the first shares are on
//            their way; means, 128 columns at a time, g to `gradient` and the products on the way; then the way back
//            through the normalisation. The last block adds up the rows.
// Grid       N blocks.
// Block      256 threads. To weigh: warp 0 takes the student's row, warp 1 the teacher's. To gather: warp w takes splits
//            w, w + 8, ... of both, 8 at a time; lane l the 16 bytes l of 128 columns of theirs. From there on thread
//            t < 128 holds column t, t + 128, ...
// Shared     12.4 KiB: weights of up to 512 splits, a sum for each warp and column, of both.
// Registers  at most 128 (two blocks a multiprocessor): 64 for loads in flight.
// Work       6 splits D flop a row and some 20 D in f64; 8 splits D bytes read.
// Floor      bandwidth of L2, where the partials lie: 8 splits N D bytes, and the latency of a few reads.
// Numerics   O_s − O_t is summed as such: in f32 over at most ⌈splits/8⌉ terms; warps' sums, products and the way back
//            in f64, so that the difference loses no more than the attention has lost already.
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
    const uint64_t both[2] = {row, static_cast<uint64_t>(row) + rows};
    SHARED_ARRAY(float, student_weights, merge::MOST_SPLITS);
    SHARED_ARRAY(float, teacher_weights, merge::MOST_SPLITS);
    SHARED_ARRAY(RowRecord, records, 2);
    SHARED_ARRAY(merge::LogSum, logs, 2);
    SHARED_ARRAY(double, below, 2);
    SHARED_ARRAY(merge::WarpSums, difference_sums, merge::WARPS);
    SHARED_ARRAY(merge::WarpSums, teacher_sums, merge::WARPS);

    // The first warp finds what there is to know of the student's row, the second of the teacher's; the shares of the
    // splits are on their way meanwhile.
    const auto weigh = [&] {
        const unsigned set = warp_index();
        if (set < 2) {
            const RowRecord record = merge::record(arguments, set == 0 ? x : y, set);
            const uint64_t at = row + static_cast<uint64_t>(set) * rows;
            const merge::LogSum log =
                merge::weigh(partials, at, record.scale, set == 0 ? student_weights : teacher_weights);
            if (lane_index() == 0) {
                records[set] = record;
                logs[set] = log;
            }
        }
        block_barrier();
        if (set < 2 && partials.moments != 0) {
            const double mean = merge::mean_below(partials, row + static_cast<uint64_t>(set) * rows, both[1], logs[set].largest, teacher_weights);
            if (lane_index() == 0) below[set] = mean;
        }
    };
    // ⟨O_s − O_t, x⟩, ⟨O_t, x⟩, ⟨O_t, y⟩
    double products[3] = {};
    float last = 0;
    for (uint32_t first = 0; first < dim; first += COLUMNS) {
        float difference[4] = {}, mean[4] = {};
        const auto add = [&](uint32_t s, const float (&shares)[2][4]) {
            const float student = student_weights[s], teacher = teacher_weights[s];
            // As of a split without keys, which may have written nothing.
            if (student == 0 && teacher == 0) return;
            // O_s = Σ a S, O_t = Σ b T; of S − T for S, O_s − O_t = Σ a (S − T) + (a − b) T.
            const float rest = partials.differences != 0 ? student - teacher : -teacher;
            UNROLL
            for (unsigned i = 0; i < 4; i++) {
                difference[i] = fmaf(student, shares[0][i], fmaf(rest, shares[1][i], difference[i]));
                mean[i] = fmaf(teacher, shares[1][i], mean[i]);
            }
        };
        merge::gather(partials, both, first, [&] {
            if (first == 0) {
                weigh();
            } else {
                block_barrier();
            }
        }, add);
        merge::store(difference_sums, difference);
        merge::store(teacher_sums, mean);
        block_barrier();
        const uint32_t d = first + threadIdx.x;
        if (threadIdx.x < COLUMNS && d < dim) {
            last = merge::total(difference_sums, threadIdx.x);
            const double o_t = merge::total(teacher_sums, threadIdx.x), element = to_float(x[d]);
            if (dim - d > COLUMNS) gradient[d] = last;
            products[0] = fma(element, static_cast<double>(last), products[0]);
            products[1] = fma(element, o_t, products[1]);
            products[2] = fma(static_cast<double>(to_float(y[d])), o_t, products[2]);
        }
    }
    block_sums<THREADS>(products);
    const double along = products[0], cross = products[1], own = products[2];
    merge::write_gradient(x, gradient, dim, arguments.normalized != 0, along, records[0].inverse_norm,
                          arguments.factor, last);

    if (threadIdx.x == 0) {
        const double means[2] = {cross, own};
        double entropies[2];
        UNROLL
        for (unsigned set = 0; set < 2; set++) {
            const RowRecord& record = records[set];
            const double scale = record.scale, poison = record.to_logit * 0;
            entropies[set] = partials.moments != 0 ? fma(-below[set], scale, logs[set].excess) + poison
                                                   : fma(-means[set], record.to_logit, logs[set].total(record.scale));
        }
        arguments.losses[row] = entropies[0] * LN_2_F64;
        arguments.losses[both[1]] = (entropies[0] - entropies[1]) * LN_2_F64;
    }
    if (is_last_block(arguments.counter)) {
        double sums[2] = {};
        for (uint32_t i = threadIdx.x; i < rows; i += THREADS) {
            sums[0] += arguments.losses[i];
            sums[1] += arguments.losses[static_cast<uint64_t>(rows) + i];
        }
        block_sums<THREADS>(sums);
        if (threadIdx.x == 0) {
            arguments.value[0] = static_cast<float>(sums[0] / rows);
            arguments.value[1] = static_cast<float>(sums[1] / rows);
        }
    }
}

}  // namespace

EXPORT_KERNEL(relata_rrd_f32, THREADS, 2, FinishArguments, rrd<float>);
EXPORT_KERNEL(relata_rrd_f16, THREADS, 2, FinishArguments, rrd<f16>);
EXPORT_KERNEL(relata_rrd_bf16, THREADS, 2, FinishArguments, rrd<bf16>);
