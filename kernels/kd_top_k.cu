// Computes   L = T²/N · Σ_i D(p_i, q_i) and ∂L/∂x = T/N · q (g − Σ q g), g = ∂D/∂q, where p is known
//            for k classes of each row. With a tail, D is that of k + 1 classes: the listed ones,
//            and all others together. Without, it is summed over the listed classes alone.
// Buffers    student x [N, C] f32, f16 or bf16, aligned to its element; ids [N, k] u32 and
//            log_p [N, k] f32, of which entries of −∞ are left out; gradient [N, C] f32; partials
//            [N] f64; value [2] f32; shares and losses of rows [N] f32.
// Passes     One launch. A block goes over its row forwards for the maximum and the sum of what is
//            not listed, and backwards for the gradient. As much of the row's beginning as fits
//            stays in shared memory. Between the two it computes D, a class a thread.
// Grid       N blocks.
// Block      512 threads, side by side along the row. Chunks as in kernels/kd_kl.cu.
// Shared     Dynamic: a bit a class that says whether it is listed, then [kept][THREADS] chunks;
//            the thread that writes a chunk reads it. 768 bytes for reductions.
// Registers  at most 128.
// SASS       LDG.E.128, STG.E.128, STS.128, LDS.128
// Work       A row takes C elements read and 4 C bytes written. An exponential and a bit of shared
//            memory for each element forwards, an exponential backwards; k/512 classes a thread in
//            f64.
// Floor      Bandwidth: (element + 4) N C bytes.
// Numerics   The tail is a sum of its own and not 1 less the others, so a small one keeps its
//            digits. D is computed in f64. With a tail its terms are never negative (Mixture).
//            NaN and +∞ make loss and gradient NaN.
// Order      Fixed: by thread, by warp, by block. The last block adds up the rows.
// Reference  src/reference/kd_kl.rs.
#include "common/collective.cuh"
#include "common/divergence_kind.cuh"
#include "common/element.cuh"
#include "common/logits_row.cuh"
#include "common/row_mean.cuh"
#include "common/softmax_row.cuh"

namespace {

constexpr unsigned THREADS = 512;

// Mirrored in src/gpu/logits/top_k.rs.
struct Arguments {
    const void* student;
    const uint32_t* ids;
    const float* log_p;
    float* gradient;
    double* partials;
    float* value;
    unsigned* counter;
    const float* row_shares;  // of each row in the mean, or null where all are alike
    float* row_losses;        // or null
    double loss_factor;       // T²/N, or T² where rows have shares
    double row_factor;        // T²
    double inverse_temperature;
    double share;  // 1 − α, 1 − β
    double rest;   // α, β
    double least_tail;
    float gradient_factor;  // upstream · T/N, or upstream · T
    uint32_t classes;       // that are compared
    uint32_t columns;       // of student and gradient
    uint32_t k;
    uint32_t kind;
    uint32_t tail;  // whether the other classes count as one
    uint32_t words;  // of the bits, a multiple of 4
    uint32_t kept;   // chunks of a thread that stay in shared memory
};
ARGUMENTS(Arguments, student, ids, log_p, gradient, partials, value, counter, row_shares,
          row_losses, loss_factor, row_factor, inverse_temperature, share, rest, least_tail,
          gradient_factor, classes, columns, k, kind, tail, words, kept);

// Of a class: its term of D, and q times the derivative by q.
struct Term {
    double term, slope;
};

// v log(v/m) + m − v of KL(v‖m), m = v + share (w − v): never negative, and nothing cancels near
// v = w. The sum of m − v is 0.
struct Mixture {
    double term;
    double z;    // m/v − 1
    double u;    // m/v
    double log;  // log(m/v)
    double excess;  // z − log(1 + z), where |z| is small

    // `ratio` is log(v/w).
    DEVICE Mixture(double share, double rest, double v, double w, double ratio) {
        z = share * expm1(-ratio);
        u = rest + share * exp(-ratio);
        const bool small = fabs(z) < 0.1;
        if (rest == 0)
            log = -ratio;
        else if (fabs(z) < 0.5)
            log = log1p(z);
        else
            log = z * 0 == 0 ? ::log(u) : ::log(share) - ratio;
        // The direct difference cancels.
        excess = 0;
        if (small)
            for (int n = 19; n > 1; n--) excess = z * (1.0 / n - excess);
        excess *= z;
        if (v == 0)
            term = share * w;
        else
            term = small ? v * excess : share * (w - v) - v * log;
    }
};

// With a tail.
DEVICE_CALL Term term_of(uint32_t kind, double share, double rest, double log_p, double log_q) {
    const double p = exp(log_p), q = exp(log_q), ratio = log_p - log_q;
    if (p == 0 && q == 0) return {0, 0};
    if (kind == FORWARD) {
        const Mixture of_p(1, 0, p, q, ratio);
        return {of_p.term, fabs(ratio) < 0.5 ? p * expm1(-ratio) : q - p};
    }
    if (kind == JS) {
        const Mixture of_p(share, rest, p, q, ratio), of_q(rest, share, q, p, -ratio);
        const double slope = q > 0 ? -share * q * of_q.log : 0;
        return {rest * of_p.term + share * of_q.term, slope};
    }
    if (kind == SKEW) {
        const Mixture of_p(share, rest, p, q, ratio);
        const double slope = of_p.z * 0 == 0 ? of_p.z / of_p.u : 1;
        return {of_p.term, share * q * slope};
    }
    const double part = kind == REVERSE ? 1 : share, other = kind == REVERSE ? 0 : rest;
    const Mixture of_q(part, other, q, p, -ratio);
    if (q == 0) return {of_q.term, 0};
    const double fraction = of_q.z * 0 == 0 ? of_q.z / of_q.u : 1;
    // rest · z/u − log u = −share · z/u + ψ(z) − z²/u.
    const double near = of_q.excess - fraction * (part + of_q.z);
    const double far = (other == 0 ? 0 : other * fraction) - of_q.log;
    return {of_q.term, q * (fabs(of_q.z) < 0.1 ? near : far)};
}

// Without.
DEVICE_CALL Term plain_term_of(uint32_t kind, double share, double rest, double log_p,
                               double log_q) {
    const double p = exp(log_p), q = exp(log_q);
    if (kind == FORWARD) return {p > 0 ? p * (log_p - log_q) : 0, -p};
    if (kind == REVERSE) {
        const double term = q > 0 ? q * (log_q - log_p) : 0;
        return {term, term + q};
    }
    const double m = kind == SKEW_REVERSE ? rest * q + share * p : rest * p + share * q;
    const double of_p = p > 0 ? p * (log_p - log(m)) : 0, of_q = q > 0 ? q * (log_q - log(m)) : 0;
    if (kind == JS) return {rest * of_p + share * of_q, share * of_q};
    if (m == 0) return {0, 0};
    if (kind == SKEW) return {of_p, -share * p * q / m};
    return {of_q, of_q + q * (share * p / m)};
}

// This thread's part of the student's row.
template <typename T>
struct Row : RowChunks<T, THREADS> {
    using Chunks = RowChunks<T, THREADS>;
    using Chunks::count;
    using Chunks::first;
    using Chunks::has;
    using Chunks::single;
    using Chunks::STEP;

    const T* x;
    float* gradient;
    Bytes16* shared;
    bool wide;
    uint32_t kept;

    DEVICE Row(const Arguments& arguments, Bytes16* memory)
        : wide(aligned16(arguments.student) && aligned16(arguments.gradient)) {
        const uint64_t start = static_cast<uint64_t>(blockIdx.x) * arguments.columns;
        x = static_cast<const T*>(arguments.student) + start;
        gradient = arguments.gradient + start;
        Chunks::partition(start, arguments.classes);
        kept = count < arguments.kept ? count : arguments.kept;
        shared = memory + threadIdx.x;
    }

    // Calls `add(column, elements)`, forwards.
    template <typename Add>
    DEVICE void read(const Add& add) const {
        for (uint32_t s = 0; s < count; s++) {
            const uint32_t at = first + s * STEP;
            const Chunk<T> chunk = fetch_chunk(x + at, wide, CHUNK<T>);
            if (s < kept) shared[s * THREADS] = chunk.bytes;
            float elements[CHUNK<T>];
            unpack(chunk, elements);
            add(at, elements);
        }
        UNROLL
        for (unsigned i = 0; i < 2; i++) {
            if (!has[i]) continue;
            float element[1] = {to_float(x[single[i]])};
            add(single[i], element);
        }
    }

    // The gradient is `slope` of each element, backwards: what was read last is likeliest to be in
    // L2.
    template <typename Slope>
    DEVICE void store_backwards(const Slope& slope) const {
        UNROLL
        for (unsigned i = 0; i < 2; i++)
            if (has[i]) gradient[single[i]] = slope(to_float(x[single[i]]));
        for (uint32_t s = count; s > 0; s--) {
            const uint32_t at = first + (s - 1) * STEP;
            const Chunk<T> chunk = s <= kept ? Chunk<T>{shared[(s - 1) * THREADS]}
                                             : fetch_chunk(x + at, wide, CHUNK<T>);
            float elements[CHUNK<T>];
            unpack(chunk, elements);
            UNROLL
            for (unsigned i = 0; i < CHUNK<T>; i += 4)
                store4(gradient + at + i, wide, slope(elements[i]), slope(elements[i + 1]),
                       slope(elements[i + 2]), slope(elements[i + 3]));
        }
    }
};

template <typename T>
DEVICE void kd_top_k(const Arguments& arguments) {
    DYNAMIC_SHARED(Bytes16, shared);
    unsigned* bits = reinterpret_cast<unsigned*>(shared);
    const Row<T> row(arguments, shared + arguments.words / 4);
    const uint64_t list = static_cast<uint64_t>(blockIdx.x) * arguments.k;
    const uint32_t* ids = arguments.ids + list;
    const float* log_p = arguments.log_p + list;
    const float share = share_of_row(arguments);
    clear_gradient<THREADS>(row.gradient, arguments.classes, arguments.columns);
    if (share == 0) {
        clear_gradient<THREADS>(row.gradient, 0, arguments.classes);
        finish_row<THREADS>(arguments, share, 0.0);
        return;
    }

    // Which classes are listed
    for (uint32_t w = threadIdx.x; w < arguments.words; w += THREADS) bits[w] = 0;
    block_barrier();
    double listed = 0, largest = -infinity();
    for (uint32_t j = threadIdx.x; j < arguments.k; j += THREADS) {
        if (log_p[j] == -infinity()) continue;
        listed += 1;
        largest = fmax(largest, static_cast<double>(to_float(row.x[ids[j]])));
        atomic_or(bits + ids[j] / 32, 1u << ids[j] % 32);
    }
    block_barrier();

    // The softmax of the others
    const float scale = static_cast<float>(arguments.inverse_temperature) * LOG2_E;
    OnlineSoftmax others;
    row.read([&](uint32_t at, auto& x) {
        UNROLL
        for (unsigned i = 0; i < sizeof x / sizeof x[0]; i++) {
            const uint32_t c = at + i;
            if (bits[c / 32] >> c % 32 & 1) x[i] = -infinity();
        }
        others.add(x, scale);
    });
    others = others.template of_block<THREADS>(scale);
    largest = fmax(block_reduce<THREADS>(largest, Max()), static_cast<double>(others.maximum));
    listed = block_reduce<THREADS>(listed, Sum());
    // No class is left where all logits are −∞.
    const double origin = largest == -infinity() ? 0.0 : largest;
    const double per = arguments.inverse_temperature;

    // Logarithms of q
    double sums[2] = {0, 0};  // Σ e^a and Σ p of the listed classes
    for (uint32_t j = threadIdx.x; j < arguments.k; j += THREADS) {
        if (log_p[j] == -infinity()) continue;
        sums[0] += exp((to_float(row.x[ids[j]]) - origin) * per);
        sums[1] += log_p[j] < infinity() ? exp(static_cast<double>(log_p[j])) : nan();
    }
    block_sums<THREADS>(sums);
    // The logarithm of what an exponential of the tail is in units of the largest class. The tail's
    // sum may be no number in these units, but it has a logarithm.
    const double below = (others.origin() - origin) * per;
    const double sum = others.sum * exp(below) + sums[0], log_sum = log(sum);

    // D, and Σ q g
    const bool has_tail = arguments.tail != 0 && listed < arguments.classes;
    const auto term_at = [&](double log_of_p, double log_of_q) {
        const double part = arguments.share, rest = arguments.rest;
        return has_tail ? term_of(arguments.kind, part, rest, log_of_p, log_of_q)
                        : plain_term_of(arguments.kind, part, rest, log_of_p, log_of_q);
    };
    const auto log_q_of = [&](uint32_t j) {
        return (to_float(row.x[ids[j]]) - origin) * per - log_sum;
    };
    double totals[2] = {0, 0};
    for (uint32_t j = threadIdx.x; j < arguments.k; j += THREADS) {
        if (log_p[j] == -infinity()) continue;
        const Term term = term_at(log_p[j], log_q_of(j));
        totals[0] += term.term;
        totals[1] += term.slope;
    }
    Term tail = {0, 0};
    if (has_tail) {
        const double rest = 1 - sums[1];
        const double floor = others.sum > 0 ? arguments.least_tail : 0.0;
        const double p = rest > arguments.least_tail ? rest : floor;
        tail = term_at(log(p), log(static_cast<double>(others.sum)) + below - log_sum);
    }
    block_sums<THREADS>(totals);
    double d = totals[0] + tail.term;
    const double mean = totals[1] + tail.slope;
    if (sum == 0) d = arguments.kind == FORWARD ? infinity() : nan();
    if (sum != sum || sums[1] != sums[1]) d = nan();
    // The rounding of what is 0 may be negative.
    if (has_tail && d < 0) d = 0;
    // +∞ − +∞ is NaN.
    const bool has_gradient = d - d == 0;

    // Gradient
    const double factor = has_gradient ? arguments.gradient_factor * share : nan();
    const double per_other = others.sum > 0 ? tail.slope / others.sum : 0.0;
    const double per_class = exp(below) / sum * mean;
    const float slope = static_cast<float>(factor * (per_other - per_class));
    const float from = others.origin();
    // A listed class may be far above the others: what it is here is written over.
    row.store_backwards(
        [&](float x) { return exp2_fast(fminf((x - from) * scale, 0.0f)) * slope; });
    block_barrier();
    for (uint32_t j = threadIdx.x; j < arguments.k; j += THREADS) {
        if (log_p[j] == -infinity()) continue;
        const double log_of_q = log_q_of(j);
        const Term term = term_at(log_p[j], log_of_q);
        row.gradient[ids[j]] = static_cast<float>(factor * (term.slope - exp(log_of_q) * mean));
    }
    finish_row<THREADS>(arguments, share, d);
}

}  // namespace

EXPORT_KERNEL(relata_kd_top_k_f32, THREADS, 1, Arguments, kd_top_k<float>);
EXPORT_KERNEL(relata_kd_top_k_f16, THREADS, 1, Arguments, kd_top_k<f16>);
EXPORT_KERNEL(relata_kd_top_k_bf16, THREADS, 1, Arguments, kd_top_k<bf16>);
