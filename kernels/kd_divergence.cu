// Computes   L = T_s²/N · Σ_i D(p_i, q_i), p_i = softmax(y_i/T_t), q_i = softmax(x_i/T_s), and
//            ∂L/∂x = T_s/N · q (g − Σ q g), g = ∂D/∂q. D is one of Kind. KL(p‖q) with one
//            temperature has a faster kernel of its own, kernels/kd_kl.cu, unless rows have
//            weights or more columns than classes: the first C columns are compared.
// Buffers    student x, teacher y [N, C] f32, f16 or bf16, aligned to their element; gradient [N,
//            C] f32; partials [N] f64; value [2] f32;
//            shares and losses of rows [N] f32, or none.
// Passes     One launch. A block goes over its row three times: forwards for the maxima and sums,
//            backwards for D and Σ q g, forwards for the gradient. As much of the row's beginning
//            as fits stays in shared memory. The rest is read again, from L2.
// Grid       N blocks.
// Block      512 threads, side by side along the row. Chunks as in kernels/kd_kl.cu.
// Shared     Dynamic: [kept][2][THREADS] chunks; the thread that writes a chunk reads it. 384
//            bytes for reductions.
// Registers  at most 128.
// Resident   relata_kd_divergence_bf16 1 of 512 threads and 229376 bytes
// SASS       LDG.E.128, LDG.E.EF.128, STG.E.EF.128, STS.128, LDS.128
// Work       Issue slots for a pair of elements on sm_90a, bf16, in three readings: FORWARD 111,
//            REVERSE 130, JS 350, SKEW 233, SKEW_REVERSE 317. A row takes 2 C elements read and
//            4 C bytes written.
// Floor      Bandwidth: (2 element + 4) N C bytes.
// Numerics   D is a sum of terms that are never negative, see Terms: nothing cancels when the
//            student is close to the teacher or T is large. Below D = 1e-16 rounding shows. The
//            gradient's q g − q Σ q g is as exact as log p − log q, which is off by a number that
//            is the same for all classes.
//            What logits of −∞ do depends on D: src/loss/divergence.rs.
// Order      Fixed: by thread, by warp, by block. The last block adds up the rows.
// Reference  src/reference/kd_kl.rs.
#include "common/collective.cuh"
#include "common/divergence.cuh"
#include "common/divergence_kind.cuh"
#include "common/logits_row.cuh"
#include "common/row_mean.cuh"
#include "common/softmax_row.cuh"

namespace {

constexpr unsigned THREADS = 512;

// Mirrored in src/gpu/logits/mod.rs, as DivergenceArguments.
struct Arguments {
    const void* student;
    const void* teacher;
    float* gradient;
    double* partials;
    float* value;
    unsigned* counter;
    const float* row_shares;  // of each row in the mean, or null where all are alike
    float* row_losses;        // or null
    double loss_factor;  // T_s²/N, or T_s² where rows have shares
    double row_factor;   // T_s²
    uint32_t classes;  // that are compared
    uint32_t student_columns;
    uint32_t teacher_columns;
    float student_inverse_temperature;
    float teacher_inverse_temperature;
    float gradient_factor;  // upstream · T_s/N, or upstream · T_s
    uint32_t kept;          // chunks of a thread that stay in shared memory
    uint32_t kind;
    float share;  // 1 − α, 1 − β
    float rest;   // α, β
};
ARGUMENTS(Arguments, student, teacher, gradient, partials, value, counter, row_shares, row_losses,
          loss_factor, row_factor, classes, student_columns, teacher_columns,
          student_inverse_temperature, teacher_inverse_temperature, gradient_factor, kept, kind,
          share, rest);

// Both softmaxes of a row, over the elements seen so far.
template <Kind KIND>
struct RowSoftmaxes {
    float student_scale, teacher_scale;
    OnlineSoftmax student, teacher;
    // Whether a class is excluded that makes D infinite.
    bool excludes = false;

    template <unsigned COUNT>
    DEVICE void add(const float (&x)[COUNT], const float (&y)[COUNT]) {
        student.add(x, student_scale);
        teacher.add(y, teacher_scale);
        UNROLL
        for (unsigned i = 0; i < COUNT; i++) {
            if (KIND == FORWARD) excludes |= x[i] == -infinity() && y[i] > -infinity();
            if (KIND == REVERSE) excludes |= y[i] == -infinity() && x[i] > -infinity();
        }
    }

    // Merges those of all threads of the block.
    template <unsigned THREADS>
    DEVICE RowSoftmaxes of_block() const {
        RowSoftmaxes whole = *this;
        whole.student = student.of_block_marked<THREADS>(student_scale, excludes);
        whole.teacher = teacher.of_block<THREADS>(teacher_scale);
        whole.excludes = whole.student.sum < 0;
        return whole;
    }

    // What D is in a row without a gradient; 0 of other rows.
    DEVICE float no_gradient() const {
        const bool no_teacher = teacher.sum == 0 && student.sum != 0;
        // KL(p‖q) of no q is +∞, which `excludes` says.
        const bool no_student = student.sum == 0 && teacher.sum != 0;
        if (no_teacher || no_student) return nan();
        if (student.sum != student.sum || teacher.sum != teacher.sum) return nan();
        return excludes ? infinity() : 0.0f;
    }
};

// A class's part of KL(v‖m), m = v + share (w − v).
struct Mixture {
    float term;    // v log(v/m) + m − v = v ψ(z), ψ(z) = z − log(1 + z)
    float z;       // m/v − 1
    float u;       // m/v
    float log;     // log(m/v)
    float excess;  // ψ(z); only where |z| ≤ ½

    // `exponent` is log2(v/w), and `delta` is log(v/w).
    DEVICE Mixture(float share, float rest, float v, float w, float exponent, float delta) {
        // Ratios beyond these bounds are not told apart: only the larger one of v and w counts.
        const float ratio = exp2_fast(fminf(fmaxf(-exponent, -100.0f), 100.0f));
        const bool close = fabsf(delta) < 0.5f;
        z = share * (close ? excess_near(delta) - delta : ratio - 1.0f);
        u = close ? 1.0f + z : fmaf(share, ratio, rest);
        // log(1 + z) = 2t + t · series and z = 2t + t z.
        const float t = z / (2.0f + z), square = t * t;
        float series = fmaf(square, 2.0f / 11.0f, 2.0f / 9.0f);
        series = fmaf(series, square, 2.0f / 7.0f);
        series = fmaf(series, square, 2.0f / 5.0f);
        series = fmaf(series, square, 2.0f / 3.0f) * square;
        const bool small = fabsf(z) < 1.0f / 3.0f;
        log = small ? fmaf(t, series, 2.0f * t) : natural_log(u);
        excess = small ? t * (z - series) : z - log;
        // Where w is far above v, v z is share (w − v), which needs no ratio.
        term = z > 1.0f ? share * (w - v) - v * log : v * excess;
    }
};

// A class's term of D, and g, the term's derivative by q. The terms are those of D and a multiple of
// q − p, which adds nothing to the sum: none is negative, none cancels near p = q, and g is 0 where
// p = q.
struct Terms {
    float term;
    float slope;       // g; not of FORWARD, where q g is q − p
    float difference;  // q − p
};

template <Kind KIND>
DEVICE Terms terms_of(float share, float rest, float p, float q, float exponent) {
    const float delta = exponent * LN_2;
    const bool close = fabsf(delta) < 0.5f;
    const float excess = excess_near(delta);
    Terms terms;
    terms.difference = close ? p * (excess - delta) : q - p;
    if constexpr (KIND == FORWARD) {
        const float first = p > 0 ? p * delta : 0.0f;
        terms.term = close ? p * excess : q - p + first;
        terms.slope = 0;
    } else if constexpr (KIND == REVERSE) {
        const float first = q > 0 ? q * delta : 0.0f;
        terms.term = close ? q * excess_near(-delta) : p - q - first;
        terms.slope = q > 0 ? -delta : 0.0f;
    } else if constexpr (KIND == JS) {
        const Mixture of_p(share, rest, p, q, exponent, delta);
        const Mixture of_q(rest, share, q, p, -exponent, -delta);
        terms.term = fmaf(rest, of_p.term, share * of_q.term);
        terms.slope = -share * of_q.log;
    } else if constexpr (KIND == SKEW) {
        const Mixture of_p(share, rest, p, q, exponent, delta);
        terms.term = of_p.term;
        terms.slope = share * (of_p.z / of_p.u);
    } else {
        const Mixture of_q(share, rest, q, p, -exponent, -delta);
        terms.term = of_q.term;
        // g = rest · z/u − log u = −share · z/u + ψ(z) − z²/u. The first form cancels near p = q,
        // the second far from it.
        const float ratio = of_q.z / of_q.u;
        const float near = of_q.excess - ratio * (share + of_q.z);
        terms.slope = fabsf(of_q.z) < 0.5f ? near : rest * ratio - of_q.log;
    }
    return terms;
}

// A sum of products in twice the digits of f32. Where one class has most of q, its gradient is the
// small difference of g and the mean of g, which that class dominates.
struct LongSum {
    float high = 0, low = 0;

    DEVICE void add_product(float a, float b) {
        const float product = a * b;
        const float sum = high + product, added = sum - high;
        low += (high - (sum - added)) + (product - added) + fmaf(a, b, -product);
        high = sum;
    }
    DEVICE double value() const { return static_cast<double>(high) + low; }
};

// What the second and the third reading know of a row.
template <Kind KIND>
struct Row {
    float student_scale, teacher_scale;
    float inverse_student, inverse_teacher;
    float max_x, max_y;
    // log2(p/q) = ((y − first_y) − (x − first_x)) · scale + shift with one temperature.
    float first_x, first_y, shift;
    bool one_temperature;
    float share, rest;

    DEVICE Row(const RowSoftmaxes<KIND>& row, const Arguments& arguments)
        : student_scale(row.student_scale),
          teacher_scale(row.teacher_scale),
          inverse_student(inverse(row.student.sum)),
          inverse_teacher(inverse(row.teacher.sum)),
          max_x(row.student.origin()),
          max_y(row.teacher.origin()),
          first_x(max_x),
          first_y(max_y),
          shift((natural_log(row.student.sum) - natural_log(row.teacher.sum)) * LOG2_E),
          one_temperature(student_scale == teacher_scale),
          share(arguments.share),
          rest(arguments.rest) {
        // Near the teacher y − x is exact. Where an offset lies between the two rows, each logit's
        // own maximum is subtracted first.
        const float between = first_y - first_x;
        if (!one_temperature || !(fabsf(between * student_scale) <= LOG2_E)) return;
        first_x = first_y = 0;
        shift -= between * student_scale;
    }

    // 1/Σ, or 0 where all classes are masked.
    DEVICE static float inverse(float sum) { return sum == 0 ? 0.0f : 1.0f / sum; }

    DEVICE float student(float x) const {
        return exp2_fast((x - max_x) * student_scale) * inverse_student;
    }

    // `q` is student(x).
    DEVICE Terms terms(float x, float y, float q) const {
        const float dx = (x - max_x) * student_scale, dy = (y - max_y) * teacher_scale;
        const float p = exp2_fast(dy) * inverse_teacher;
        const float exponent =
            one_temperature ? fmaf((y - first_y) - (x - first_x), student_scale, shift)
                            : dy - dx + shift;
        return terms_of<KIND>(share, rest, p, q, exponent);
    }

    // D from Σ of the terms, Σ q g and Σ (q − p).
    //
    // log(p/q) has an error ε that is the same for all classes: q is off by e^−ε, and Σ (q − p) is
    // e^−ε − 1. By Taylor's theorem the sum of the terms is off by −ε Σ q g − ½ ε² D'', where D''
    // is the curvature at p = q. It counts where D is as small as ε².
    DEVICE double divergence(double sum, double mean, double difference) const {
        const double curvature = KIND == JS ? share * rest : share * share;
        const double error = -log1p(difference);
        const double corrected = sum + error * mean + 0.5 * curvature * error * error;
        const double d = fabs(difference) < 1e-3 ? corrected : sum;
        // The rounding of what is 0 may be negative.
        return d < 0 ? 0.0 : d;
    }
};

template <typename T, unsigned THREADS, Kind KIND>
DEVICE void kd_divergence(const Arguments& arguments) {
    DYNAMIC_SHARED(Bytes16, shared);
    const LogitsColumns columns = {arguments.student_columns, arguments.teacher_columns};
    // Whether a chunk of both matrices, and of the gradient, lies on a multiple of 16 bytes.
    const bool wide = aligned16(arguments.student) && aligned16(arguments.teacher) &&
                      aligned16(arguments.gradient) &&
                      (columns.student - columns.teacher) % CHUNK<T> == 0;
    const LogitsRow<T, THREADS> logits(wide, arguments, columns, shared);
    clear_gradient<THREADS>(logits.gradient, arguments.classes, columns.student);
    const float share = share_of_row(arguments);
    if (share == 0) {
        clear_gradient<THREADS>(logits.gradient, 0, arguments.classes);
        finish_row<THREADS>(arguments, share, 0.0);
        return;
    }

    // Softmax of both rows
    RowSoftmaxes<KIND> softmaxes;
    softmaxes.student_scale = arguments.student_inverse_temperature * LOG2_E;
    softmaxes.teacher_scale = arguments.teacher_inverse_temperature * LOG2_E;
    logits.read([&](const auto& x, const auto& y) { softmaxes.add(x, y); });
    softmaxes = softmaxes.template of_block<THREADS>();

    // Divergence, and the mean of g
    const Row<KIND> row(softmaxes, arguments);
    float sum_of_thread = 0, difference_of_thread = 0;
    LongSum slopes, students;
    logits.read_backwards([&](float x, float y) {
        const float q = row.student(x);
        const Terms terms = row.terms(x, y, q);
        sum_of_thread += terms.term;
        difference_of_thread += terms.difference;
        if constexpr (KIND == FORWARD) return;
        slopes.add_product(q, terms.slope);
        students.add_product(q, 1.0f);
    });
    const double sum = block_reduce<THREADS>(static_cast<double>(sum_of_thread), Sum());
    const double difference =
        block_reduce<THREADS>(static_cast<double>(difference_of_thread), Sum());
    double mean = difference;
    if constexpr (KIND != FORWARD) {
        const double slope = block_reduce<THREADS>(slopes.value(), Sum());
        const double student = block_reduce<THREADS>(students.value(), Sum());
        mean = student == 0 ? 0.0 : slope / student;
    }
    const float no_gradient = softmaxes.no_gradient();
    const bool has_gradient = no_gradient == 0;

    // Gradient
    const float factor = has_gradient ? arguments.gradient_factor * share : nan();
    const float high = static_cast<float>(mean), low = static_cast<float>(mean - high);
    logits.store_forwards([&](float x, float y) {
        const float q = row.student(x);
        const Terms terms = row.terms(x, y, q);
        if constexpr (KIND == FORWARD) return factor * fmaf(-q, high, terms.difference);
        return factor * (q * (terms.slope - high - low));
    });

    finish_row<THREADS>(arguments, share,
                        has_gradient ? row.divergence(sum, mean, difference) : no_gradient);
}

template <typename T, unsigned THREADS>
DEVICE void kd_divergence(const Arguments& arguments) {
    switch (arguments.kind) {
        case FORWARD: return kd_divergence<T, THREADS, FORWARD>(arguments);
        case REVERSE: return kd_divergence<T, THREADS, REVERSE>(arguments);
        case JS: return kd_divergence<T, THREADS, JS>(arguments);
        case SKEW: return kd_divergence<T, THREADS, SKEW>(arguments);
        default: return kd_divergence<T, THREADS, SKEW_REVERSE>(arguments);
    }
}

}  // namespace

EXPORT_KERNEL(relata_kd_divergence_f32, THREADS, 1, Arguments, kd_divergence<float, THREADS>);
EXPORT_KERNEL(relata_kd_divergence_f16, THREADS, 1, Arguments, kd_divergence<f16, THREADS>);
EXPORT_KERNEL(relata_kd_divergence_bf16, THREADS, 1, Arguments, kd_divergence<bf16, THREADS>);
