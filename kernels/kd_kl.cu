// Computes   L = T²/N · Σ_i KL(softmax(y_i/T) ‖ softmax(x_i/T)) and ∂L/∂x = (T/N)(q − p), p of y and q of x.
// Buffers    student x, teacher y [N, C] f32, f16 or bf16, aligned to their element; gradient [N, C] f32;
//            partials [N] f64; value [2] f32.
// Passes     one launch. A block goes over its row forwards for maxima and sums, and backwards for the divergence and the
//            gradient. The beginning of the row stays on the multiprocessor meanwhile, as much as fits; of the rest what
//            was read last, and so is likeliest to be in L2, is read again first. The last block adds up the rows.
// Grid       N blocks.
// Block      256 threads where both rows take at most 40 KiB, else 512 (`_long`), side by side along the row. Chunks are 16
//            bytes, beginning where the address is a multiple of 16 if the matrix's is; thread t takes chunks t,
//            t + THREADS, ... of both rows, and one element before the first chunk and one after the last.
// Shared     dynamic: [kept][2][THREADS] chunks, each read by the thread that wrote it; 256 or 384 bytes for reductions.
// Registers  at most 64.
// Resident   relata_kd_kl_bf16 4 of 256 threads and 40960 bytes; relata_kd_kl_long_bf16 1 of 512 threads and 229376 bytes
// SASS       LDG.E.128, LDG.E.EF.128, STG.E.EF.128, STS.128, LDS.128
// Work       54 issue slots for a pair of elements on sm_90a (18 forwards, 36 backwards), 5 of them exponentials; 2 C elements
//            read, 4 C bytes written a row.
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
constexpr unsigned THREADS_LONG = 512;

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
    uint32_t kept;          // chunks of a thread that stay in shared memory
};

struct Row {
    float scale;
    Softmax student, teacher;
    // 0, or NaN once a logit was not finite.
    float finite = 0;

    template <unsigned COUNT>
    DEVICE void add(const float (&x)[COUNT], const float (&y)[COUNT]) {
        student.add(x, scale);
        teacher.add(y, scale);
        UNROLL
        for (unsigned i = 0; i < COUNT; i++) finite = fmaf(x[i], 0.0f, fmaf(y[i], 0.0f, finite));
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
        // δ + e^{−δ} − 1 is δ²/2 and so on near 0, where it cancels.
        float series = fmaf(delta, 1.0f / 40320.0f, -1.0f / 5040.0f);
        series = fmaf(delta, series, 1.0f / 720.0f);
        series = fmaf(delta, series, -1.0f / 120.0f);
        series = fmaf(delta, series, 1.0f / 24.0f);
        series = fmaf(delta, series, -1.0f / 6.0f);
        series = fmaf(delta, series, 0.5f);
        const float near = delta * delta * series, far = delta - 1.0f + exp2_fast(-delta * LOG2_E);
        const float excess = fabsf(delta) < 0.5f ? near : far;
        // Where p has vanished or is nothing beside q, p e^{−δ} = q is all that is left, and δ may be too large to use.
        divergence += p > 1e-30f && delta > -20.0f ? p * excess : q;
        return q - p;
    }
};

// The chunks of a row, and the elements before and after them.
template <typename T, unsigned THREADS, bool WIDE>
struct Chunks {
    const T* x;
    const T* y;
    float* gradient;
    uint32_t count;  // this thread's chunks
    uint32_t kept;   // of them in shared memory
    Bytes16* shared;

    static constexpr uint32_t STEP = THREADS * CHUNK<T>;

    DEVICE Chunk<T> load(const T* from) const { return fetch_chunk(from, WIDE, CHUNK<T>); }
    DEVICE Chunk<T> load_again(const T* from) const {
        if constexpr (WIDE) return {load_streaming(from)};
        return load(from);
    }

    DEVICE static void add(Row& row, const Chunk<T>& student, const Chunk<T>& teacher) {
        float a[CHUNK<T>], b[CHUNK<T>];
        unpack(student, a);
        unpack(teacher, b);
        row.add(a, b);
    }

    DEVICE void read(Row& row) const {
        UNROLL_BY(2)
        for (uint32_t s = 0; s < kept; s++) {
            const Chunk<T> student = load(x + s * STEP), teacher = load(y + s * STEP);
            shared[2 * s * THREADS] = student.bytes;
            shared[(2 * s + 1) * THREADS] = teacher.bytes;
            add(row, student, teacher);
        }
        UNROLL_BY(2)
        for (uint32_t s = kept; s < count; s++) add(row, load(x + s * STEP), load(y + s * STEP));
    }

    DEVICE void take(const Row& row, Result& result, float factor, const Chunk<T>& student, const Chunk<T>& teacher,
                     float* to) const {
        float a[CHUNK<T>], b[CHUNK<T>];
        unpack(student, a);
        unpack(teacher, b);
        UNROLL
        for (unsigned i = 0; i < CHUNK<T>; i++) a[i] = factor * result.take(row, a[i], b[i]);
        UNROLL
        for (unsigned i = 0; i < CHUNK<T>; i += 4) {
            if constexpr (WIDE) {
                store4_streaming(to + i, a[i], a[i + 1], a[i + 2], a[i + 3]);
            } else {
                UNROLL
                for (unsigned j = i; j < i + 4; j++) to[j] = a[j];
            }
        }
    }

    DEVICE void read_again(const Row& row, Result& result, float factor) const {
        UNROLL_BY(2)
        for (uint32_t s = count; s > kept; s--) {
            const uint32_t at = (s - 1) * STEP;
            take(row, result, factor, load_again(x + at), load_again(y + at), gradient + at);
        }
        for (uint32_t s = kept; s > 0; s--) {
            const Bytes16* from = shared + 2 * (s - 1) * THREADS;
            take(row, result, factor, {from[0]}, {from[THREADS]}, gradient + (s - 1) * STEP);
        }
    }
};

template <typename T, unsigned THREADS, bool WIDE>
DEVICE void kd_kl(const Arguments& arguments) {
    DYNAMIC_SHARED(Bytes16, shared);
    const uint32_t classes = arguments.classes;
    const uint64_t start = static_cast<uint64_t>(blockIdx.x) * classes;
    const T* x = static_cast<const T*>(arguments.student) + start;
    const T* y = static_cast<const T*>(arguments.teacher) + start;
    float* gradient = arguments.gradient + start;

    // Where chunks begin depends on the row's place in the matrix but not on the matrix's address, or the bits would.
    const uint32_t past = static_cast<uint32_t>(start % CHUNK<T>), to_boundary = past == 0 ? 0 : CHUNK<T> - past;
    const uint32_t head = to_boundary < classes ? to_boundary : classes;
    const uint32_t chunks = (classes - head) / CHUNK<T>, tail = head + chunks * CHUNK<T>;
    const uint32_t mine = chunks > threadIdx.x ? (chunks - threadIdx.x - 1) / THREADS + 1 : 0;
    const uint32_t first = head + threadIdx.x * CHUNK<T>;
    const Chunks<T, THREADS, WIDE> body = {
        x + first, y + first, gradient + first, mine, mine < arguments.kept ? mine : arguments.kept, shared + threadIdx.x};
    // The elements that no chunk has: fewer than a chunk on either side.
    const bool has[2] = {threadIdx.x < head, threadIdx.x < classes - tail};
    const uint32_t odd[2] = {threadIdx.x, tail + threadIdx.x};

    Row row;
    row.scale = arguments.inverse_temperature * LOG2_E;
    body.read(row);
    UNROLL
    for (unsigned i = 0; i < 2; i++) {
        if (!has[i]) continue;
        const float a[1] = {to_float(x[odd[i]])}, b[1] = {to_float(y[odd[i]])};
        row.add(a, b);
    }
    row.student = row.student.of_block<THREADS>(row.scale);
    row.teacher = row.teacher.of_block<THREADS>(row.scale);

    Result result;
    result.inverse_student = 1.0f / row.student.sum;
    result.inverse_teacher = 1.0f / row.teacher.sum;
    // log p − log q = ((y − max y) − (x − max x))/T − log Σ_y + log Σ_x, each sum beside its own maximum.
    result.shift = logf(row.student.sum) - logf(row.teacher.sum);
    const float factor = arguments.gradient_factor;
    UNROLL
    for (unsigned i = 0; i < 2; i++)
        if (has[i]) gradient[odd[i]] = factor * result.take(row, to_float(x[odd[i]]), to_float(y[odd[i]]));
    body.read_again(row, result, factor);

    const double sum = block_reduce<THREADS>(static_cast<double>(result.divergence) + row.finite, Sum());
    if (threadIdx.x == 0) arguments.partials[blockIdx.x] = sum;
    if (is_last_block(arguments.counter)) {
        const double total = block_sum_of<THREADS>(arguments.partials, gridDim.x);
        if (threadIdx.x == 0) arguments.value[0] = static_cast<float>(total * arguments.loss_factor);
    }
}

template <typename T, unsigned THREADS>
DEVICE void kd_kl(const Arguments& arguments) {
    if (aligned16(arguments.student) && aligned16(arguments.teacher) && aligned16(arguments.gradient))
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
