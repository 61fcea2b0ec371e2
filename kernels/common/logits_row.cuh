// A block's row of student's and teacher's logits, which is read from memory once: kernels/kd_kl.cu,
// kernels/kd_divergence.cu. As much of the row's beginning as fits stays in shared memory. The rest
// is read again, from L2.
#pragma once

#include "element.cuh"
#include "platform.cuh"

// The columns of both matrices: the classes that are compared, or more.
struct LogitsColumns {
    uint32_t student, teacher;
};

// Which elements of a row of `classes` are this thread's. Chunks are 16 bytes. Thread t takes chunks
// t, t + THREADS, ..., and one element before the first chunk and one after the last.
template <typename T, unsigned THREADS>
struct RowChunks {
    // This thread's first chunk in the row.
    uint32_t first;
    uint32_t count;  // chunks of this thread
    // The elements that no chunk has: fewer than a chunk on either side.
    bool has[2];
    uint32_t single[2];

    static constexpr uint32_t STEP = THREADS * CHUNK<T>;

    // `start` is the row's place in its matrix. Where chunks begin depends on it but not on the
    // matrix's address: else the bits would depend on the address.
    DEVICE void partition(uint64_t start, uint32_t classes) {
        const uint32_t past = static_cast<uint32_t>(start % CHUNK<T>);
        const uint32_t to_boundary = past == 0 ? 0 : CHUNK<T> - past;
        const uint32_t head = to_boundary < classes ? to_boundary : classes;
        const uint32_t chunks = (classes - head) / CHUNK<T>, tail = head + chunks * CHUNK<T>;
        count = chunks > threadIdx.x ? (chunks - threadIdx.x - 1) / THREADS + 1 : 0;
        first = head + threadIdx.x * CHUNK<T>;
        has[0] = threadIdx.x < head;
        has[1] = threadIdx.x < classes - tail;
        single[0] = threadIdx.x;
        single[1] = tail + threadIdx.x;
    }
};

// This thread's part of a row of both matrices.
template <typename T, unsigned THREADS>
struct LogitsRow : RowChunks<T, THREADS> {
    using Chunks = RowChunks<T, THREADS>;
    using Chunks::count;
    using Chunks::first;
    using Chunks::has;
    using Chunks::single;
    using Chunks::STEP;

    // Whether the matrices' addresses are multiples of 16: chunks are then one load.
    bool wide;
    // The row.
    const T* x;
    const T* y;
    float* gradient;
    // The place of this thread's first chunk in shared memory.
    Bytes16* shared;
    uint32_t kept;  // how many chunks of this thread stay in shared memory

    // The first `arguments.classes` columns of row blockIdx.x. At most `arguments.kept` chunks stay.
    template <typename Arguments>
    DEVICE LogitsRow(bool is_wide, const Arguments& arguments, LogitsColumns columns,
                     Bytes16* memory)
        : wide(is_wide) {
        const uint64_t start = static_cast<uint64_t>(blockIdx.x) * columns.student;
        x = static_cast<const T*>(arguments.student) + start;
        y = static_cast<const T*>(arguments.teacher) +
            static_cast<uint64_t>(blockIdx.x) * columns.teacher;
        gradient = arguments.gradient + start;
        Chunks::partition(start, arguments.classes);
        kept = count < arguments.kept ? count : arguments.kept;
        shared = memory + threadIdx.x;
    }

    DEVICE Chunk<T> load(const T* from) const { return fetch_chunk(from, wide, CHUNK<T>); }
    DEVICE Chunk<T> load_again(const T* from) const {
        if (wide) return {load_streaming(from)};
        return load(from);
    }

    // Calls `add` with the elements of a chunk.
    template <typename Add>
    DEVICE static void add(const Add& add, const Chunk<T>& student, const Chunk<T>& teacher) {
        float a[CHUNK<T>], b[CHUNK<T>];
        unpack(student, a);
        unpack(teacher, b);
        add(a, b);
    }

    // The first reading, forwards: calls `add` with arrays of elements of student and teacher, and
    // keeps the first chunks.
    template <typename Add>
    DEVICE void read(const Add& add_elements) const {
        const T *xs = x + first, *ys = y + first;
        UNROLL_BY(2)
        for (uint32_t s = 0; s < kept; s++) {
            const Chunk<T> student = load(xs + s * STEP), teacher = load(ys + s * STEP);
            shared[2 * s * THREADS] = student.bytes;
            shared[(2 * s + 1) * THREADS] = teacher.bytes;
            add(add_elements, student, teacher);
        }
        UNROLL_BY(2)
        for (uint32_t s = kept; s < count; s++)
            add(add_elements, load(xs + s * STEP), load(ys + s * STEP));
        UNROLL
        for (unsigned i = 0; i < 2; i++) {
            if (!has[i]) continue;
            const float a[1] = {to_float(x[single[i]])}, b[1] = {to_float(y[single[i]])};
            add_elements(a, b);
        }
    }

    // Stores `slope` of each pair of elements of a chunk.
    template <typename Slope>
    DEVICE void store(const Slope& slope, const Chunk<T>& student, const Chunk<T>& teacher,
                      float* to) const {
        float a[CHUNK<T>], b[CHUNK<T>];
        unpack(student, a);
        unpack(teacher, b);
        UNROLL
        for (unsigned i = 0; i < CHUNK<T>; i++) a[i] = slope(a[i], b[i]);
        UNROLL
        for (unsigned i = 0; i < CHUNK<T>; i += 4) {
            if (wide) {
                store4_streaming(to + i, a[i], a[i + 1], a[i + 2], a[i + 3]);
            } else {
                UNROLL
                for (unsigned j = i; j < i + 4; j++) to[j] = a[j];
            }
        }
    }

    template <typename Slope>
    DEVICE void store_singles(const Slope& slope) const {
        UNROLL
        for (unsigned i = 0; i < 2; i++)
            if (has[i])
                gradient[single[i]] = slope(to_float(x[single[i]]), to_float(y[single[i]]));
    }

    // Another reading, backwards: what was read last is likeliest to be in L2. The gradient is
    // `slope` of each pair of elements.
    template <typename Slope>
    DEVICE void store_backwards(const Slope& slope) const {
        store_singles(slope);
        const T *xs = x + first, *ys = y + first;
        float* to = gradient + first;
        UNROLL_BY(2)
        for (uint32_t s = count; s > kept; s--) {
            const uint32_t at = (s - 1) * STEP;
            store(slope, load_again(xs + at), load_again(ys + at), to + at);
        }
        for (uint32_t s = kept; s > 0; s--) {
            const Bytes16* from = shared + 2 * (s - 1) * THREADS;
            store(slope, {from[0]}, {from[THREADS]}, to + (s - 1) * STEP);
        }
    }

    // A chunk of student and one of teacher.
    struct Pair {
        Chunk<T> student, teacher;
    };
    // Loads the chunks `s` of this thread again.
    DEVICE Pair again(uint32_t s, bool last) const {
        if (s < kept) {
            const Bytes16* from = shared + 2 * s * THREADS;
            return {{from[0]}, {from[THREADS]}};
        }
        const T *from_x = x + first + s * STEP, *from_y = y + first + s * STEP;
        if (last) return {load_again(from_x), load_again(from_y)};
        return {load(from_x), load(from_y)};
    }

    // Another reading, backwards, that stores nothing: calls `add` with each pair of elements.
    template <typename Add>
    DEVICE void read_backwards(const Add& add_pair) const {
        UNROLL_BY(1)
        for (unsigned i = 0; i < 2; i++) {
            const uint32_t at = i == 0 ? single[0] : single[1];
            if (i == 0 ? has[0] : has[1]) add_pair(to_float(x[at]), to_float(y[at]));
        }
        UNROLL_BY(1)
        for (uint32_t s = count; s > 0; s--) {
            const Pair pair = again(s - 1, false);
            float a[CHUNK<T>], b[CHUNK<T>];
            unpack(pair.student, a);
            unpack(pair.teacher, b);
            UNROLL
            for (unsigned i = 0; i < CHUNK<T>; i++) add_pair(a[i], b[i]);
        }
    }

    // Another reading, forwards, after one that went backwards.
    template <typename Slope>
    DEVICE void store_forwards(const Slope& slope) const {
        UNROLL_BY(1)
        for (uint32_t s = 0; s < count; s++) {
            const Pair pair = again(s, true);
            store(slope, pair.student, pair.teacher, gradient + first + s * STEP);
        }
        UNROLL_BY(1)
        for (unsigned i = 0; i < 2; i++) {
            const uint32_t at = i == 0 ? single[0] : single[1];
            if (i == 0 ? has[0] : has[1]) gradient[at] = slope(to_float(x[at]), to_float(y[at]));
        }
    }
};
