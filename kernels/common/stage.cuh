// Rows of a matrix on their way to shared memory, as f32.
#pragma once

#include "element.cuh"

// Brings `COUNT` rows from `first` on to shared memory, `WIDTH` columns of each from `column` on.
// Rows from `end` on and columns from `pitch` on are zeros. A block of THREADS threads calls it.
template <unsigned THREADS, unsigned COUNT, unsigned WIDTH, typename T>
DEVICE void stage_rows(float* to, unsigned stride, const T* from, uint32_t pitch, uint32_t first,
                       uint32_t end, uint32_t column) {
    constexpr unsigned CHUNKS = WIDTH / CHUNK<T>;
    UNROLL_BY(2)
    for (unsigned i = threadIdx.x; i < COUNT * CHUNKS; i += THREADS) {
        const uint32_t row = i / CHUNKS, c = i % CHUNKS * CHUNK<T>;
        float chunk[CHUNK<T>] = {};
        if (row < end - first && column + c < pitch)
            load_chunk(from + (static_cast<uint64_t>(first) + row) * pitch + column + c, chunk);
        UNROLL
        for (unsigned j = 0; j < CHUNK<T>; j += 4)
            store4(to + row * stride + c + j, chunk[j], chunk[j + 1], chunk[j + 2], chunk[j + 3]);
    }
}
