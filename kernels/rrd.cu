// Computes   RRD's loss, KL and gradient from the partial attentions of student and teacher. With O_s, O_t the means of
//            the keys under q and p:
//              L_i = log Σ_s − ⟨z,O_t⟩/τ_s     H(p_i) = log Σ_t − ⟨y,O_t⟩/τ_t     ∂L_i/∂z = (O_s − O_t)/τ_s
//            where attention_mma has been, with its own Σ_k p_k ⟨z,Q_k⟩ for ⟨z,O_t⟩, and so for y;
//            and ∂L/∂x = (g − ⟨g,z⟩z)/‖x‖ where rows are normalised.
// Buffers    student x, teacher [N, D] f32, f16 or bf16, aligned to their element; partials of rows 0..N (student) and
//            N..2N (teacher) as an attention kernel writes them; gradient [N, D] f32; losses [2, N] f64; value [2] f32.
// Passes     the last: attention, this. One launch: rows' lengths and splits' weights, while the first shares are on
//            their way; means, 128 columns at a time, g to `gradient` and the products on the way; then the way back
//            through the normalisation. Where the stats have moments a row's losses are not made of the means: one warp
//            settles them, and takes the block's ticket, while the others wait for shares; that of the last ticket adds up
//            the rows.
// Grid       N blocks.
// Block      256 threads. To weigh: warp 0 takes the student's row, warp 1 the teacher's; warp 7 settles. To gather:
//            warp w takes splits w, w + 8, ... of both, 8 at a time; lane l the 16 bytes l of 128 columns of theirs. From there
//            on thread t < 128 holds column t, t + 128, ...
// Shared     12.3 KiB: weights of up to 512 splits, a sum for each warp and column, of both.
// Registers  at most 128 (two blocks a multiprocessor): 64 for loads in flight.
// Resident   relata_rrd_bf16 2 of 256 threads
// Work       6 splits D flop a row and some 20 D in f64; 8 splits D bytes read.
// Floor      bandwidth of L2, where the partials lie: 8 splits N D bytes, and the latency of three reads, one after the other:
//            stats and rows, the shares that did not fit the first time, and the losses.
// Numerics   O_s − O_t is summed as such: in f32 over at most ⌈splits/8⌉ terms; warps' sums, products and the way back
//            in f64, so that the difference loses no more than the attention has lost already.
// Order      fixed: by split within a warp, by warp; rows by lane, by the warp that drew the last ticket.
// Reference  src/reference/rrd.rs; docs/maths/rrd.md.
#include "common/attention_merge.cuh"

namespace {

// Σ_k p_k (product_k − largest) of a sample's two rows.
struct Below {
    double student = 0, teacher = 0;

    DEVICE Below operator+(const Below& other) const { return {student + other.student, teacher + other.teacher}; }
};

// With the teacher's weights. By a warp.
DEVICE Below below(const Partials& partials, const uint64_t (&rows)[2], const merge::LogSum* logs, const float* teacher_weights) {
    Below sum;
    for (uint32_t s = lane_index(); s < partials.splits; s += WARP) {
        const double weight = teacher_weights[s];
        if (weight == 0) continue;
        const Stat* split = partials.stats + static_cast<uint64_t>(s) * partials.rows;
        const Stat student = split[rows[0]], teacher = split[rows[1]];
        const auto mean = [&](const Stat& stat, float largest) {
            const double shift = static_cast<double>(stat.largest) - static_cast<double>(largest);
            return weight * fma(shift, static_cast<double>(teacher.sum), static_cast<double>(stat.moment));
        };
        sum = sum + Below{mean(student, logs[0].largest), mean(teacher, logs[1].largest)};
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
    const uint64_t both[2] = {row, static_cast<uint64_t>(row) + rows};
    const bool moments = partials.moments != 0;
    SHARED_ARRAY(float, student_weights, merge::MOST_SPLITS);
    SHARED_ARRAY(float, teacher_weights, merge::MOST_SPLITS);
    SHARED_ARRAY(RowRecord, records, 2);
    SHARED_ARRAY(merge::LogSum, logs, 2);

    // Of the clerk's first lane.
    unsigned ticket = 0;
    const auto settle = [&](double cross, double own) {
        if (lane_index() != 0) return;
        arguments.losses[row] = cross * LN_2_F64;
        arguments.losses[both[1]] = (cross - own) * LN_2_F64;
        ticket = take_ticket(arguments.counter);
    };
    const auto add_up = [&] {
        if (!is_last_ticket(ticket)) return;
        double sums[2] = {};
        warp_sums_of(arguments.losses, rows, sums);
        if (lane_index() != 0) return;
        arguments.value[0] = static_cast<float>(sums[0] / rows);
        arguments.value[1] = static_cast<float>(sums[1] / rows);
    };

    // The first warp finds what there is to know of the student's row, the second of the teacher's. What they read first is
    // asked for before their shares of the means, and by the time it is there so are most of the other warps'.
    const unsigned set = warp_index();
    const uint64_t at = row + static_cast<uint64_t>(set) * rows;
    merge::Start begun;
    if (set < 2) begun = merge::begin(arguments, set == 0 ? x : y, set, at, records[set]);
    const auto weigh = [&] {
        if (set < 2) {
            const merge::LogSum log = merge::weigh(partials, at, begun, set == 0 ? student_weights : teacher_weights);
            if (lane_index() == 0) logs[set] = log;
        }
        block_barrier();
        if (set == merge::CLERK && moments) {
            const Below means = below(partials, both, logs, teacher_weights);
            const auto entropy = [&](unsigned of, double mean) {
                const double poison = records[of].to_logit * 0;
                return fma(-mean, static_cast<double>(records[of].scale), logs[of].excess) + poison;
            };
            settle(entropy(0, means.student), entropy(1, means.teacher));
        }
    };
    const auto add = [&](uint32_t s, const float (&shares)[2][4], float (&means)[2][4]) {
        const float student = student_weights[s], teacher = teacher_weights[s];
        // O_s = Σ a S, O_t = Σ b T; of S − T for S, O_s − O_t = Σ a (S − T) + (a − b) T.
        const float rest = partials.differences != 0 ? student - teacher : -teacher;
        UNROLL
        for (unsigned i = 0; i < 4; i++) {
            means[0][i] = fmaf(student, shares[0][i], fmaf(rest, shares[1][i], means[0][i]));
            means[1][i] = fmaf(teacher, shares[1][i], means[1][i]);
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
    merge::walk<2>(partials, both, dim, weigh, add, fetch, take);
    if (set == merge::CLERK && moments) add_up();
    block_sums<merge::THREADS>(products);
    merge::write_gradient(x, gradient, dim, arguments.normalized != 0, products[0], records[0].inverse_norm, arguments.factor, last);
    if (set == merge::CLERK && !moments) {
        const auto entropy = [&](unsigned of, double mean) {
            return fma(-mean, records[of].to_logit, logs[of].total(records[of].scale));
        };
        settle(entropy(0, products[1]), entropy(1, products[2]));
        add_up();
    }
}

}  // namespace

EXPORT_KERNEL(relata_rrd_f32, merge::THREADS, 2, FinishArguments, rrd<float>);
EXPORT_KERNEL(relata_rrd_f16, merge::THREADS, 2, FinishArguments, rrd<f16>);
EXPORT_KERNEL(relata_rrd_bf16, merge::THREADS, 2, FinishArguments, rrd<bf16>);
