// What attention by tensor cores has in shared memory, and how it comes there: rows of student and teacher in the order in
// which tiles take them, as f16 with a scale each, and keys.
#pragma once

#include "async.cuh"
#include "attention.cuh"
#include "attention_row.cuh"
#include "element.cuh"

namespace staging {

constexpr unsigned THREADS = 128;
constexpr unsigned WARPS = THREADS / WARP;
// Rows of a tile of mma.
constexpr unsigned TILE = 16;
// Elements of 16 bytes.
constexpr unsigned VECTOR = 8;

// What kernels/attention_mma.cu is launched with. Mirrored in src/gpu/attention/arguments.rs.
struct Arguments {
    Attending attending;
    const void* student;      // [samples, dim] f16 or bf16, aligned to its element
    const void* teacher;      // the same, or null where the student's rows attend alone
    const float* key_scales;  // [key_count], of keys that are rows of a batch: to length 1
    float per_temperature[2];  // log2(e)/τ of student and teacher
    uint32_t samples;
    uint32_t is_bf16;
};

// Rows or keys in shared memory, of up to WIDTH elements.
template <unsigned WIDTH>
struct Stage {
    // Neighbouring rows' 16 bytes lie on different banks. What keeps them apart has room for a scale.
    static constexpr unsigned STRIDE = WIDTH + VECTOR;

    f16* memory;
    uint32_t depth;  // elements in use; from the row's end on they are zero

    DEVICE f16* at(unsigned row, unsigned column) const { return memory + row * STRIDE + column; }
    DEVICE float& scale(unsigned row) const { return *reinterpret_cast<float*>(at(row, WIDTH)); }

    // Copies `COUNT` keys from `first` on; from `end` on the last of them, again and again.
    template <unsigned COUNT>
    DEVICE void fill(const f16* from, uint32_t pitch, uint32_t first, uint32_t end) const {
        constexpr unsigned VECTORS = WIDTH / VECTOR, AT_ONCE = THREADS / VECTORS;
        const unsigned row = threadIdx.x / VECTORS, column = threadIdx.x % VECTORS * VECTOR;
        if (column >= depth) return;
        const unsigned left = end - first, bytes = column < pitch ? 16 : 0;
        const uint64_t step = static_cast<uint64_t>(AT_ONCE) * pitch;
        const f16* key = from + (static_cast<uint64_t>(first) + row) * pitch + column;
        const f16* last = from + (static_cast<uint64_t>(end) - 1) * pitch + column;
        UNROLL
        for (unsigned i = 0; i < COUNT / AT_ONCE; i++, key += step)
            copy_async(at(row + i * AT_ONCE, column), row + i * AT_ONCE < left ? key : last, bytes);
    }
};

// Which of the rows that attend stand where in a tile: 16 of the student, or 8 of the student and in the other half
// the teacher's of the same samples, so that a lane has both.
struct Seat {
    uint32_t sample;
    unsigned set;  // 0 the student's, 1 the teacher's

    DEVICE Seat(const Arguments& arguments, uint32_t tile, unsigned g, unsigned half)
        : sample(arguments.teacher == nullptr ? tile * TILE + half * 8 + g : tile * 8 + g),
          set(arguments.teacher == nullptr ? 0 : half) {}

    DEVICE bool taken(const Arguments& arguments) const { return sample < arguments.samples; }
    // Among all that attend.
    DEVICE uint64_t row(const Arguments& arguments) const {
        return static_cast<uint64_t>(set) * arguments.samples + sample;
    }
};

// `row` rows on: in bytes, one multiplication.
template <typename T>
DEVICE const T* row_at(const T* rows, uint32_t row, uint32_t dim) {
    const uint32_t bytes = dim * static_cast<uint32_t>(sizeof(T));
    return reinterpret_cast<const T*>(reinterpret_cast<const char*>(rows) + static_cast<uint64_t>(row) * bytes);
}

// Brings ROWS rows of f16 or bf16, T, to shared memory from the tile `first_tile` on, as they are to be multiplied, each
// with its scale but for the temperature.
template <typename T, unsigned ROWS, unsigned WIDTH>
DEVICE void stage_rows(const Arguments& arguments, uint32_t first_tile, const Stage<WIDTH>& to) {
    // Lanes of a row, rows at a time, and how often until all are there: at once, so that memory is waited for once.
    constexpr unsigned LANES = WIDTH / PART, AT_ONCE = THREADS / LANES, TIMES = ROWS / AT_ONCE;
    const uint32_t dim = arguments.attending.dim;
    const unsigned first = threadIdx.x / LANES % AT_ONCE, column = threadIdx.x % LANES * PART;
    const uint32_t left = column < dim ? dim - column : 0;
    // The block's first sample in both halves of a tile; beyond the last sample stands the last again.
    const Seat seats[2] = {{arguments, first_tile, 0, 0}, {arguments, first_tile, 0, 1}};
    const uint32_t last = arguments.samples - 1 - seats[0].sample;
    const uint32_t of_half = seats[1].sample - seats[0].sample, of_tile = Seat(arguments, 1, 0, 0).sample;
    const uint64_t start = static_cast<uint64_t>(seats[0].sample) * dim;
    const T* student = static_cast<const T*>(arguments.student) + start;
    const T* other = seats[1].set == 0 ? student : static_cast<const T*>(arguments.teacher) + start;
    const auto load = [&](unsigned i, bool aligned) {
        const unsigned row = i * AT_ONCE + first, half = row / 8 % 2;
        const uint32_t sample = row / TILE * of_tile + half * of_half + row % 8;
        const T* from = row_at(half == 0 ? student : other, sample < last ? sample : last, dim);
        return fetch_chunk(from + column, aligned, left < PART ? left : PART);
    };
    const auto staged = [&](unsigned i) -> Bytes16& { return *reinterpret_cast<Bytes16*>(to.at(i * AT_ONCE + first, column)); };
    Chunk<T> chunks[TIMES];
    if (rows_aligned(student, dim) && aligned16(other)) {
        UNROLL
        for (unsigned i = 0; i < TIMES; i++) chunks[i] = load(i, true);
    } else {
        // Element by element: there are no registers for so many loads at once.
        UNROLL_BY(1)
        for (unsigned i = 0; i < TIMES; i++) staged(i) = load(i, false).bytes;
        UNROLL
        for (unsigned i = 0; i < TIMES; i++) chunks[i].bytes = staged(i);
    }
    float parts[TIMES][PART];
    UNROLL
    for (unsigned i = 0; i < TIMES; i++) unpack(chunks[i], parts[i]);
    const RowLength<T> length = lengths_of_parts<T, LANES>(parts);
    const float lift = length.lift();
    UNROLL
    for (unsigned i = 0; i < TIMES; i++) {
        const float lift_of_row = from_holder<LANES, TIMES>(lift, i);
        Bytes16 bytes;
        UNROLL
        for (unsigned j = 0; j < PART / 2; j++)
            bytes.words[j] = pack_f16(parts[i][2 * j] * lift_of_row, parts[i][2 * j + 1] * lift_of_row);
        staged(i) = bytes;
    }
    to.scale(held_value<LANES, TIMES>() * AT_ONCE + first) = length.scale();
}

}  // namespace staging
