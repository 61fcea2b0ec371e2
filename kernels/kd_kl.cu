// Computes   L = T²/N · Σ_i KL(softmax(y_i/T) ‖ softmax(x_i/T)) and ∂L/∂x = (T/N)(q − p), p of y and q of x.
// Buffers    student x, teacher y [N, C] f32, f16 or bf16, aligned to their element; gradient [N, C] f32;
//            partials [N] f64; value [2] f32.
// Passes     one launch: maxima and sums of both rows in one read; a second read (from L2 where the row fits) for
//            the divergence and the gradient. The last block adds up the rows.
// Grid       N blocks.
// Block      256 threads, side by side along the row: thread t takes the 16 bytes t, t + 256, ... of both rows, in one
//            load where the row is aligned to that; what is left of the row goes element by element.
// Shared     200 bytes for reductions.
// Registers  at most 64.
// SASS       LDG.E.128
// Work       14 C flop and 4 C exponentials a row; 2 C elements read, 4 C bytes written.
// Floor      bandwidth: (2 element + 4) N C bytes.
// Numerics   KL = Σ p (δ + e^{−δ} − 1) with δ = log p − log q: no term is negative, so nothing cancels when the
//            student has all but become the teacher, and an error in log Σ exp enters squared.
// Order      fixed: by thread, by warp, by block; rows by the last block.
// Reference  src/reference/kd_kl.rs; Hinton, Vinyals, Dean: arXiv 1503.02531.
#include "common/collective.cuh"
#include "common/element.cuh"
#include "common/softmax_row.cuh"

namespace {

constexpr unsigned THREADS = 256;

struct Arguments {
    const void* student;
    const void* teacher;
    float* gradient;
    double* partials;
    float* value;
    unsigned* counter;
    double loss_factor;  // T²/N
    uint32_t classes;
    float inverse_temperature;
    float gradient_factor;  // upstream · T/N
    uint32_t padding;
};

// δ + e^{−δ} − 1, which is δ²/2 near 0 and cancels there.
DEVICE float excess(float delta) {
    if (fabsf(delta) < 0.125f) {
        float series = fmaf(delta, -1.0f / 5040.0f, 1.0f / 720.0f);
        series = fmaf(delta, series, -1.0f / 120.0f);
        series = fmaf(delta, series, 1.0f / 24.0f);
        series = fmaf(delta, series, -1.0f / 6.0f);
        series = fmaf(delta, series, 0.5f);
        return delta * delta * series;
    }
    return delta - 1.0f + exp2_fast(-delta * LOG2_E);
}

struct Row {
    float scale;
    Softmax student, teacher;
    // 0, or NaN once a logit was not finite.
    float finite = 0;

    DEVICE void add(float x, float y) {
        student.add(x, scale);
        teacher.add(y, scale);
        finite = fmaf(x, 0.0f, fmaf(y, 0.0f, finite));
    }
};

struct Result {
    float inverse_student, inverse_teacher;  // of the sums
    float shift;                             // log Σ exp(x/T) − log Σ exp(y/T)
    float divergence = 0;

    // Gives q − p.
    DEVICE float take(const Row& row, float x, float y) {
        const float dx = (x - row.student.maximum) * row.scale, dy = (y - row.teacher.maximum) * row.scale;
        const float q = exp2_fast(dx) * inverse_student, p = exp2_fast(dy) * inverse_teacher;
        const float delta = fmaf(dy - dx, LN_2, shift);
        // Where p has vanished, all that is left of p (δ + e^{−δ} − 1) is q, and δ may be too large to use.
        divergence += p > 1e-30f ? (delta < -20.0f ? fmaf(p, delta - 1.0f, q) : p * excess(delta)) : q;
        return q - p;
    }
};

template <typename T>
DEVICE void kd_kl(const Arguments& arguments) {
    const uint32_t classes = arguments.classes;
    const uint64_t start = static_cast<uint64_t>(blockIdx.x) * classes;
    const T* x = static_cast<const T*>(arguments.student) + start;
    const T* y = static_cast<const T*>(arguments.teacher) + start;
    float* gradient = arguments.gradient + start;
    // Which thread takes what does not depend on addresses, or the bits would.
    const bool wide_x = aligned16(x), wide_y = aligned16(y), wide_gradient = aligned16(gradient);
    const uint32_t chunked = classes - classes % CHUNK<T>;
    float a[CHUNK<T>], b[CHUNK<T>];

    Row row;
    row.scale = arguments.inverse_temperature * LOG2_E;
    for (uint32_t c = threadIdx.x * CHUNK<T>; c < chunked; c += THREADS * CHUNK<T>) {
        load_chunk(x + c, wide_x, a);
        load_chunk(y + c, wide_y, b);
        UNROLL
        for (unsigned i = 0; i < CHUNK<T>; i++) row.add(a[i], b[i]);
    }
    for (uint32_t c = chunked + threadIdx.x; c < classes; c += THREADS) row.add(to_float(x[c]), to_float(y[c]));
    row.student = row.student.of_block<THREADS>(row.scale);
    row.teacher = row.teacher.of_block<THREADS>(row.scale);

    Result result;
    result.inverse_student = 1.0f / row.student.sum;
    result.inverse_teacher = 1.0f / row.teacher.sum;
    // log p − log q = ((y − max y) − (x − max x))/T − log Σ_y + log Σ_x, each sum beside its own maximum.
    result.shift = logf(row.student.sum) - logf(row.teacher.sum);
    const float factor = arguments.gradient_factor;
    for (uint32_t c = threadIdx.x * CHUNK<T>; c < chunked; c += THREADS * CHUNK<T>) {
        load_chunk(x + c, wide_x, a);
        load_chunk(y + c, wide_y, b);
        UNROLL
        for (unsigned i = 0; i < CHUNK<T>; i++) a[i] = factor * result.take(row, a[i], b[i]);
        UNROLL
        for (unsigned i = 0; i < CHUNK<T>; i += 4) store4(gradient + c + i, wide_gradient, a[i], a[i + 1], a[i + 2], a[i + 3]);
    }
    for (uint32_t c = chunked + threadIdx.x; c < classes; c += THREADS)
        gradient[c] = factor * result.take(row, to_float(x[c]), to_float(y[c]));

    const double sum = block_reduce<THREADS>(static_cast<double>(result.divergence) + row.finite, Sum());
    if (threadIdx.x == 0) arguments.partials[blockIdx.x] = sum;
    if (is_last_block(arguments.counter)) {
        const double total = block_sum_of<THREADS>(arguments.partials, gridDim.x);
        if (threadIdx.x == 0) arguments.value[0] = static_cast<float>(total * arguments.loss_factor);
    }
}

}  // namespace

EXPORT_KERNEL(relata_kd_kl_f32, THREADS, 4, Arguments, kd_kl<float>);
EXPORT_KERNEL(relata_kd_kl_f16, THREADS, 4, Arguments, kd_kl<f16>);
EXPORT_KERNEL(relata_kd_kl_bf16, THREADS, 4, Arguments, kd_kl<bf16>);
