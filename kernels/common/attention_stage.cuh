// How attention_mma brings its inputs to shared memory: the rows of student and teacher in the
// order in which tiles take them, as f16 with a scale each, and the keys.
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
// f16 elements in 16 bytes.
constexpr unsigned VECTOR = 8;

// The arguments of kernels/attention_mma.cu. Mirrored in src/gpu/contrastive/arguments.rs.
struct Arguments {
    AttentionCommon common;
    const void* student;       // [samples, dim] f16 or bf16, aligned to its element
    const void* teacher;       // the same, or null where only the student's rows attend
    const float* key_scales;   // [key_count], where the keys are rows of the batch: to length 1
    float per_temperature[2];  // log2(e)/τ of student and teacher
    uint32_t samples;
    uint32_t is_bf16;
};
ARGUMENTS(Arguments, common, student, teacher, key_scales, per_temperature, samples, is_bf16);

// Rows or keys in shared memory, of up to WIDTH elements.
template <unsigned WIDTH>
struct StagedRows {
    // The 8 extra elements put the 16 bytes of neighbouring rows on different banks. They also have
    // room for the row's scale.
    static constexpr unsigned STRIDE = WIDTH + VECTOR;

    f16* memory;
    uint32_t depth;  // elements in use; those beyond the row's end are zero

    DEVICE f16* at(unsigned row, unsigned column) const { return memory + row * STRIDE + column; }
    DEVICE float& scale(unsigned row) const { return *reinterpret_cast<float*>(at(row, WIDTH)); }

    // Copies `COUNT` keys from `first` on. In the place of keys from `end` on it copies the last
    // key.
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

// Which row stands in a row of a tile. A tile holds 16 rows of the student. Where the teacher
// attends too, it holds 8 rows of the student and then the teacher's rows of the same samples: so a
// lane has both rows of a sample.
struct RowSlot {
    uint32_t sample;
    unsigned set;  // 0: the student's row; 1: the teacher's

    // Row g + 8 half of a tile.
    DEVICE RowSlot(const Arguments& arguments, uint32_t tile, unsigned g, unsigned half)
        : sample(arguments.teacher == nullptr ? tile * TILE + half * 8 + g : tile * 8 + g),
          set(arguments.teacher == nullptr ? 0 : half) {}

    // Whether the batch has this row.
    DEVICE bool exists(const Arguments& arguments) const { return sample < arguments.samples; }
    // Its index among all rows that attend.
    DEVICE uint64_t row(const Arguments& arguments) const {
        return static_cast<uint64_t>(set) * arguments.samples + sample;
    }
};

// The address `row` rows after `rows`. Computed in bytes, it takes one multiplication.
template <typename T>
DEVICE const T* row_at(const T* rows, uint32_t row, uint32_t dim) {
    const uint32_t bytes = dim * static_cast<uint32_t>(sizeof(T));
    return reinterpret_cast<const T*>(reinterpret_cast<const char*>(rows) +
                                      static_cast<uint64_t>(row) * bytes);
}

// Brings ROWS rows of type T, f16 or bf16, to shared memory, from the tile `first_tile` on. They
// are in SCALED_F16, each with its scale; the scale does not have the temperature yet.
template <typename T, unsigned ROWS, unsigned WIDTH>
DEVICE void stage_rows(const Arguments& arguments, uint32_t first_tile,
                       const StagedRows<WIDTH>& to) {
    // A row has LANES lanes, AT_ONCE rows go together, and TIMES of those make ROWS. All loads are
    // issued at once, so the thread waits for memory once.
    constexpr unsigned LANES = WIDTH / PER_LANE, AT_ONCE = THREADS / LANES, TIMES = ROWS / AT_ONCE;
    const uint32_t dim = arguments.common.dim;
    const unsigned first = threadIdx.x / LANES % AT_ONCE, column = threadIdx.x % LANES * PER_LANE;
    const uint32_t left = column < dim ? dim - column : 0;
    // The block's first sample, in both halves of a tile. In the place of samples beyond the last
    // stands the last.
    const RowSlot slots[2] = {{arguments, first_tile, 0, 0}, {arguments, first_tile, 0, 1}};
    const uint32_t last = arguments.samples - 1 - slots[0].sample;
    const uint32_t samples_of_half = slots[1].sample - slots[0].sample;
    const uint32_t samples_of_tile = RowSlot(arguments, 1, 0, 0).sample;
    const uint64_t start = static_cast<uint64_t>(slots[0].sample) * dim;
    const T* student = static_cast<const T*>(arguments.student) + start;
    const T* other = slots[1].set == 0 ? student : static_cast<const T*>(arguments.teacher) + start;
    const auto load = [&](unsigned i, bool aligned) {
        const unsigned row = i * AT_ONCE + first, half = row / 8 % 2;
        const uint32_t sample = row / TILE * samples_of_tile + half * samples_of_half + row % 8;
        const T* from = row_at(half == 0 ? student : other, sample < last ? sample : last, dim);
        return fetch_chunk(from + column, aligned, left < PER_LANE ? left : PER_LANE);
    };
    const auto staged = [&](unsigned i) -> Bytes16& {
        return *reinterpret_cast<Bytes16*>(to.at(i * AT_ONCE + first, column));
    };
    // Load the rows
    Chunk<T> chunks[TIMES];
    if (rows_aligned(student, dim) && aligned16(other)) {
        UNROLL
        for (unsigned i = 0; i < TIMES; i++) chunks[i] = load(i, true);
    } else {
        // Load element by element, through shared memory: so many loads at once do not fit in
        // registers.
        UNROLL_BY(1)
        for (unsigned i = 0; i < TIMES; i++) staged(i) = load(i, false).bytes;
        UNROLL
        for (unsigned i = 0; i < TIMES; i++) chunks[i].bytes = staged(i);
    }
    float parts[TIMES][PER_LANE];
    UNROLL
    for (unsigned i = 0; i < TIMES; i++) unpack(chunks[i], parts[i]);
    // Compute their lengths
    const RowLength<T> length = lengths_of_parts<T, LANES>(parts);
    const float lift = length.lift();
    // Store them in SCALED_F16, with their scales
    UNROLL
    for (unsigned i = 0; i < TIMES; i++) {
        const float lift_of_row = read_scattered<LANES, TIMES>(lift, i);
        Bytes16 bytes;
        UNROLL
        for (unsigned j = 0; j < PER_LANE / 2; j++)
            bytes.words[j] =
                pack_f16(parts[i][2 * j] * lift_of_row, parts[i][2 * j + 1] * lift_of_row);
        staged(i) = bytes;
    }
    to.scale(scattered_index<LANES, TIMES>() * AT_ONCE + first) = length.scale();
}

}  // namespace staging
