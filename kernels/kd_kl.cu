// Computes   L = T²/N · Σ_i KL(softmax(y_i/T) ‖ softmax(x_i/T)) and ∂L/∂x = (T/N)(q − p), with p of
//            y and q of x.
// Buffers    student x, teacher y [N, C] f32, f16 or bf16, aligned to their element; gradient [N,
//            C] f32; partials [N] f64; value [2] f32;
//            losses of rows [N] f32, or none.
// Passes     One launch. A block goes over its row forwards for the maxima and sums, and backwards
//            for the divergence and the gradient. As much of the row's beginning as fits stays in
//            shared memory meanwhile. The rest is read again backwards: what was read last is
//            likeliest to be in L2. The last block adds up the rows.
// Grid       N blocks.
// Block      256 threads where both rows take at most 40 KiB, else 512 (`_long`). The threads lie
//            side by side along the row. Chunks are 16 bytes. They begin where the address is a
//            multiple of 16, if the matrix's address is one. Thread t takes chunks t, t + THREADS,
//            ... of both rows, and one element before the first chunk and one after the last.
// Shared     Dynamic: [kept][2][THREADS] chunks; the thread that writes a chunk reads it. 256 or
//            384 bytes for reductions.
// Registers  at most 64.
// Resident   relata_kd_kl_bf16 4 of 256 threads and 40960 bytes;
//            relata_kd_kl_long_bf16 1 of 512 threads and 229376 bytes
// SASS       LDG.E.128, LDG.E.EF.128, STG.E.EF.128, STS.128, LDS.128
// Work       60 issue slots for a pair of elements on sm_90a (20 forwards, 40 backwards), 5 of them
//            exponentials; a row takes 2 C elements read and 4 C bytes written.
// Floor      Bandwidth: (2 element + 4) N C bytes.
// Numerics   KL from Σ p (δ + e^{−δ} − 1), see Divergence. No term is negative, so nothing cancels
//            when the student is close to the teacher or T is large, until KL is below 1e-16. The
//            gradient is q − p, as in the formula: off by some units in the last place of p.
//            A class of −∞ in both rows is masked; in the teacher alone, p is 0; in the student
//            alone, KL is +∞ and the row's gradient NaN.
// Order      Fixed: by thread, by warp, by block. The last block adds up the rows.
// Reference  src/reference/kd_kl.rs; Hinton, Vinyals, Dean: arXiv 1503.02531.
#include "common/collective.cuh"
#include "common/divergence.cuh"
#include "common/logits_row.cuh"
#include "common/row_mean.cuh"
#include "common/softmax_row.cuh"

namespace {

constexpr unsigned THREADS = 256;
constexpr unsigned THREADS_LONG = 512;

// Mirrored in src/gpu/logits/mod.rs.
struct Arguments {
    const void* student;
    const void* teacher;
    float* gradient;
    double* partials;
    float* value;
    unsigned* counter;
    float* row_losses;  // or null
    double loss_factor;  // T²/N
    double row_factor;   // T²
    uint32_t classes;
    float inverse_temperature;
    float gradient_factor;  // upstream · T/N
    uint32_t kept;          // chunks of a thread that stay in shared memory
};
ARGUMENTS(Arguments, student, teacher, gradient, partials, value, counter, row_losses, loss_factor,
          row_factor, classes,
          inverse_temperature, gradient_factor, kept);

// Both softmaxes of a row, over the elements seen so far.
struct RowSoftmax {
    float scale;
    OnlineSoftmax student, teacher;
    // Whether the student alone excludes a class. Then KL is infinite.
    bool excludes = false;

    template <unsigned COUNT>
    DEVICE void add(const float (&x)[COUNT], const float (&y)[COUNT]) {
        student.add(x, scale);
        teacher.add(y, scale);
        UNROLL
        for (unsigned i = 0; i < COUNT; i++)
            excludes |= x[i] == -infinity() && y[i] > -infinity();
    }

    // Merges those of all threads of the block.
    template <unsigned THREADS>
    DEVICE RowSoftmax of_block() const {
        RowSoftmax whole = *this;
        whole.student = student.of_block_marked<THREADS>(scale, excludes);
        whole.teacher = teacher.of_block<THREADS>(scale);
        whole.excludes = whole.student.sum < 0;
        return whole;
    }
};

// The divergence over the elements seen so far.
//
// log p − log q of an element is (y − x)/T plus a number that is the same for all. Let δ be that
// with any error ε in the number, S = Σ p (δ + e^{−δ} − 1) and R = S − Σ p δ. Then S is KL and some
// ε²/2, R = e^{−ε} − 1, and KL = S − R + log(1 + R).
struct Divergence {
    // 1/Σ of each softmax. Either is NaN in a row without a gradient: the student's if a logit is
    // NaN or +∞ or the teacher excludes all classes, else the teacher's if KL is +∞.
    float inverse_student, inverse_teacher;
    float max_x, max_y;
    // δ/ln 2 = ((y − first_y) − (x − first_x)) · scale + shift
    float first_x, first_y, shift;
    float sum = 0;     // S
    float moment = 0;  // Σ p δ

    DEVICE explicit Divergence(const RowSoftmax& row)
        : inverse_student(inverse(row.student.sum)),
          inverse_teacher(row.excludes ? nan() : inverse(row.teacher.sum)),
          max_x(row.student.origin()),
          max_y(row.teacher.origin()),
          first_x(max_x),
          first_y(max_y),
          // log p − log q = ((y − max y) − (x − max x))/T − log Σ_y + log Σ_x, where each sum is
          // relative to its own maximum.
          shift((natural_log(row.student.sum) - natural_log(row.teacher.sum)) * LOG2_E) {
        const bool no_teacher = row.teacher.sum == 0 && row.student.sum != 0;
        inverse_student += no_teacher ? nan() : row.teacher.sum * 0.0f;
        // Near the teacher y − x is exact. Where an offset lies between the two rows, each logit's
        // own maximum is subtracted first.
        const float between = first_y - first_x;
        if (!(fabsf(between * row.scale) <= LOG2_E)) return;
        first_x = first_y = 0;
        shift -= between * row.scale;
    }

    // 1/Σ, or 0 where all classes are masked.
    DEVICE static float inverse(float sum) { return sum == 0 ? 0.0f : 1.0f / sum; }

    // What a row without a gradient adds to KL; 0 of other rows.
    DEVICE float no_gradient() const {
        if (inverse_student != inverse_student) return nan();
        return inverse_teacher != inverse_teacher ? infinity() : 0.0f;
    }

    // Adds the term of one pair of logits, and returns q − p.
    DEVICE float add(const RowSoftmax& row, float x, float y) {
        const float dx = (x - max_x) * row.scale;
        const float dy = (y - max_y) * row.scale;
        const float q = exp2_fast(dx) * inverse_student, p = exp2_fast(dy) * inverse_teacher;
        const float exponent = fmaf((y - first_y) - (x - first_x), row.scale, shift);
        const float delta = exponent * LN_2;
        const float near = excess_near(delta);
        const float far = delta - 1.0f + exp2_fast(-exponent);
        const float excess = fabsf(delta) < 0.5f ? near : far;
        // Where p is 0, or negligible against q, only p e^{−δ} = q remains. δ may be too large to
        // use.
        const bool usable = p > 1e-30f && delta > -20.0f;
        sum += usable ? p * excess : q;
        moment += usable ? p * delta : 0.0f;
        return q - p;
    }
};

template <typename T, unsigned THREADS, bool WIDE>
DEVICE void kd_kl(const Arguments& arguments) {
    DYNAMIC_SHARED(Bytes16, shared);
    const uint32_t classes = arguments.classes;
    const LogitsRow<T, THREADS> logits(WIDE, arguments, {classes, classes}, shared);

    // Softmax of both rows
    RowSoftmax row;
    row.scale = arguments.inverse_temperature * LOG2_E;
    logits.read([&](const auto& x, const auto& y) { row.add(x, y); });
    row = row.of_block<THREADS>();

    // Divergence and gradient
    Divergence divergence(row);
    const float factor = arguments.gradient_factor;
    logits.store_backwards(
        [&](float x, float y) { return factor * divergence.add(row, x, y); });

    // Reduce
    const double sum = block_reduce<THREADS>(static_cast<double>(divergence.sum), Sum());
    const double moment = block_reduce<THREADS>(static_cast<double>(divergence.moment), Sum());
    double kl = 0;
    if (threadIdx.x == 0) {
        const double rest = sum - moment;
        // Where KL is not small, the rest is the rounding of two large sums.
        kl = sum < 2.0 ? sum + (log1p(rest) - rest) : sum;
        // The rounding of what is 0 may be negative.
        kl = (kl < 0 ? 0.0 : kl) + divergence.no_gradient();
    }
    finish_row<THREADS>(arguments, 1.0f, kl);
}

template <typename T, unsigned THREADS>
DEVICE void kd_kl(const Arguments& arguments) {
    if (aligned16(arguments.student) && aligned16(arguments.teacher) &&
        aligned16(arguments.gradient))
        kd_kl<T, THREADS, true>(arguments);
    else
        kd_kl<T, THREADS, false>(arguments);
}

}  // namespace

EXPORT_KERNEL(relata_kd_kl_f32, THREADS, 4, Arguments, kd_kl<float, THREADS>);
EXPORT_KERNEL(relata_kd_kl_f16, THREADS, 4, Arguments, kd_kl<f16, THREADS>);
EXPORT_KERNEL(relata_kd_kl_bf16, THREADS, 4, Arguments, kd_kl<bf16, THREADS>);
EXPORT_KERNEL(relata_kd_kl_long_f32, THREADS_LONG, 2, Arguments, kd_kl<float, THREADS_LONG>);
EXPORT_KERNEL(relata_kd_kl_long_f16, THREADS_LONG, 2, Arguments, kd_kl<f16, THREADS_LONG>);
EXPORT_KERNEL(relata_kd_kl_long_bf16, THREADS_LONG, 2, Arguments, kd_kl<bf16, THREADS_LONG>);
