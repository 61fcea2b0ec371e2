// Computes   What each row brings to its pairs, from the splits' log-sums and the product with its
//            own key: see Record. And the part of the row's losses that needs no other pair.
// Buffers    rows of student and teacher [N, D], [N, D_t] f32 at length 1; stats [sets, splits, N];
//            labels [N] u32 or null; records [N]; losses [2, N] f64; row_factor [1] f64:
//            what the sum over rows is multiplied by, NaN if an input is not finite.
// Passes     The third: towers_log_sums, this, towers_gradient. One launch.
// Grid       ⌈N/8⌉.
// Block      256 threads: a warp for a row. Lanes take splits, dimensions and labels in turns.
// Shared     64 bytes, for reductions.
// Registers  at most 64.
// Work       2 D f64 flop a row, and N labels.
// Floor      Latency; with labels N² u32 from L2.
// Numerics   The own pair is kept apart, in f64. Near convergence it has nearly all of the softmax,
//            and the rest is the loss and the gradient: no subtraction forms it.
//            A masked pair and a row without keys would hide a NaN, so each row's losses get that of
//            its own pair, and all gradients that of all losses, in row_factor.
// Order      Fixed: by lane, by warp; the last block adds up the rows that count.
// Reference  src/cpu/towers/mod.rs, WithPartner.
#include "common/towers.cuh"

namespace {

using namespace towers;

constexpr unsigned THREADS = 256, WARPS = THREADS / WARP;
constexpr double LOG2_E_F64 = 1.4426950408889634;

// Mirrored in src/gpu/towers/arguments.rs.
struct Arguments {
    const float* rows[2];  // the teacher's null if it is neither target nor guide
    const Stat* stats;
    const uint32_t* labels;
    Record* records;
    double* losses;
    double* row_factor;
    unsigned* counter;
    double temperature[2];
    double guide_margin;  // less the slack
    Compared compared;
    uint32_t dim[2];
    float scale[2];  // log2(e)/τ
    float of_student;  // hard_weight + soft_weight
    float of_teacher;  // soft_weight
    uint32_t splits;
    uint32_t kind;
    float sigmoid_scale;
    float bias;
    uint32_t has_target;  // whether the teacher's softmax is one
    uint32_t has_guide;   // whether the teacher masks pairs
    uint32_t both_ways;   // whether the rows of the second half have a softmax too
    uint32_t padding;
};
ARGUMENTS(Arguments, rows, stats, labels, records, losses, row_factor, counter, temperature,
          guide_margin, compared, dim, scale, of_student, of_teacher, splits, kind, sigmoid_scale, bias,
          has_target, has_guide, both_ways, padding);

// The largest product and the log-sum, in units of 1, over all splits.
struct Merged {
    float largest;
    double sum;
};

DEVICE Merged merge(const Arguments& arguments, unsigned set, uint32_t row SITE) {
    const Stat* stats =
        arguments.stats + static_cast<uint64_t>(set) * arguments.splits * arguments.compared.rows + row;
    float largest = -infinity();
    for (uint32_t s = lane_index(); s < arguments.splits; s += WARP)
        largest = fmaxf(largest, stats[static_cast<uint64_t>(s) * arguments.compared.rows].largest);
    largest = warp_reduce(largest, Max() PASS_SITE);
    double sum = 0;
    for (uint32_t s = lane_index(); s < arguments.splits; s += WARP) {
        const Stat stat = stats[static_cast<uint64_t>(s) * arguments.compared.rows];
        if (stat.sum == 0) continue;
        sum += static_cast<double>(stat.sum) *
               exp2(static_cast<double>(stat.largest - largest) * static_cast<double>(arguments.scale[set]));
    }
    return {largest, warp_reduce(sum, Sum() PASS_SITE)};
}

// A row's softmax with its own key.
struct WithOwn {
    float largest;
    double excess;    // the log-sum over all keys less largest/τ
    double others;    // the weight of all keys but the own one
    double own_loss;  // −log of the own key's weight
    double below;     // largest/τ less the own logit
};

DEVICE WithOwn with_own(Merged merged, double own, double temperature) {
    if (merged.sum == 0) {
        const double excess = own > 0 ? own : 0;
        return {0, excess, 0, 0, -excess};
    }
    const double below = static_cast<double>(merged.largest) / temperature - own;
    const double a = below + log(merged.sum), ratio = exp(-fabs(a));
    const double own_loss = a > 0 ? a + log1p(ratio) : log1p(ratio);
    const double others = (a > 0 ? 1 : ratio) / (1 + ratio);
    const double excess = own_loss - below;
    return {merged.largest, excess < 0 ? 0 : excess, others, own_loss, below};
}

// Of a product of rows at most 1 long.
DEVICE double zero_or_nan(double product) { return product * 0; }

// The records of CLIP, and of a row's losses the hard one, and the soft one but for what the other
// pairs add.
DEVICE void softmax_row(const Arguments& arguments, uint32_t row, Record& record, double (&losses)[2] SITE) {
    const uint32_t partner = arguments.compared.partner(row);
    double products[2] = {};
    UNROLL
    for (unsigned set = 0; set < 2; set++) {
        if (arguments.rows[set] == nullptr) continue;
        products[set] = own_product(arguments.rows[set], arguments.dim[set], row, partner PASS_SITE);
    }
    losses[0] = losses[1] = zero_or_nan(products[0]) + zero_or_nan(products[1]);
    if (arguments.kind == MASKED) {
        record.label = arguments.labels == nullptr ? row : arguments.labels[row];
        record.limit = infinity();
        if (arguments.has_guide) record.limit = static_cast<float>(products[1] - arguments.guide_margin);
    }
    if (!arguments.both_ways && row >= arguments.compared.rows / 2) {
        // It has no softmax: no key weighs anything. The excess is far above the largest product/τ,
        // 1e30.
        record.excess[0] = record.excess[1] = 1e37f;
        return;
    }
    const Merged of_student = merge(arguments, 0, row PASS_SITE);
    const double own = products[0];
    const WithOwn q = with_own(of_student, own / arguments.temperature[0], arguments.temperature[0]);
    record.largest[0] = q.largest;
    record.excess[0] = static_cast<float>(q.excess * LOG2_E_F64);
    double coefficient = -static_cast<double>(arguments.of_student) * q.others;
    losses[0] += q.own_loss;
    if (arguments.has_target) {
        const Merged of_teacher = merge(arguments, 1, row PASS_SITE);
        const WithOwn p =
            with_own(of_teacher, products[1] / arguments.temperature[1], arguments.temperature[1]);
        record.largest[1] = p.largest;
        record.excess[1] = static_cast<float>(p.excess * LOG2_E_F64);
        coefficient += static_cast<double>(arguments.of_teacher) * p.others;
        losses[1] += q.excess + (1 - p.others) * q.below;
    }
    record.own = static_cast<float>(coefficient);
}

// SigLIP: −log σ(l) of the own pair, and its slope.
DEVICE void sigmoid_row(const Arguments& arguments, uint32_t row, Record& record, double (&losses)[2] SITE) {
    const double product = own_product(arguments.rows[0], arguments.dim[0], row,
                                       arguments.compared.partner(row) PASS_SITE);
    const double logit = fma(static_cast<double>(arguments.sigmoid_scale), product,
                             static_cast<double>(arguments.bias));
    const double decay = exp(-fabs(logit));
    const double slope = -(logit > 0 ? decay : 1) / (1 + decay);
    losses[0] = (logit < 0 ? -logit : 0) + log1p(decay) + zero_or_nan(product);
    losses[1] = slope;
    record.own = static_cast<float>(slope);
}

// SupCon: the log-sum of a row that counts, and whether it does.
DEVICE void labels_row(const Arguments& arguments, uint32_t row, Record& record, double (&losses)[2] SITE) {
    const double spoilt =
        zero_or_nan(own_product(arguments.rows[0], arguments.dim[0], row, row PASS_SITE));
    const Merged merged = merge(arguments, 0, row PASS_SITE);
    const uint32_t label = arguments.labels[row];
    uint32_t same = 0;
    for (uint32_t i = lane_index(); i < arguments.compared.rows; i += WARP)
        same += arguments.labels[i] == label ? 1 : 0;
    same = warp_reduce(same, Sum() PASS_SITE) - 1;
    const double excess = merged.sum == 0 ? 0 : log(merged.sum);
    record.label = label;
    record.largest[0] = merged.largest;
    record.excess[0] = static_cast<float>(excess * LOG2_E_F64);
    record.counts = same > 0 ? 1 : 0;
    record.per_target = same > 0 ? 1.0f / static_cast<float>(same) : 0;
    losses[0] = (same > 0 ? excess : 0) + spoilt;
    losses[1] = (same > 0 ? 1 : 0) + spoilt;
}

DEVICE void rows(const Arguments& arguments) {
    const uint32_t n = arguments.compared.rows, row = blockIdx.x * WARPS + warp_index();
    if (row < n) {
        Record record = {};
        double losses[2] = {};
        if (is_softmax(arguments.kind)) {
            softmax_row(arguments, row, record, losses);
        } else if (arguments.kind == SIGMOID) {
            sigmoid_row(arguments, row, record, losses);
        } else {
            labels_row(arguments, row, record, losses);
        }
        if (lane_index() == 0) {
            arguments.records[row] = record;
            arguments.losses[row] = losses[0];
            arguments.losses[n + row] = losses[1];
        }
    }
    if (!is_last_block(arguments.counter)) return;
    const bool counts = arguments.kind == LABELS;
    const double sum = block_sum_of<THREADS>(arguments.losses + (counts ? n : 0), n);
    if (threadIdx.x > 0) return;
    // Without a row that counts all sums are 0.
    *arguments.row_factor = counts ? (sum == 0 ? 0 : 1 / sum) : 1 + zero_or_nan(sum);
}

}  // namespace

EXPORT_KERNEL(relata_towers_rows, THREADS, 4, Arguments, rows);
