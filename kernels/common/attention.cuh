// What the passes of an attention hand to one another: rows of a batch over keys that are values too.
#pragma once

#include "element.cuh"
#include "math.cuh"

// Keys of a tile, in every attention kernel: splits are cut between tiles.
constexpr unsigned KEYS = 64;

// What a row got from a split of the keys: its largest product with a key, and Σ_k w_k with w_k = 2^(scale (product_k -
// largest)). Beside it lies Σ_k w_k key_k. Without keys, -inf and 0.
//
// Products are subtracted before they are scaled: their difference is exact where it matters, and stays so at any
// temperature.
struct Stat {
    float largest;
    float sum;
    // Of a student's row and a teacher's, in attention_mma alone: Σ_k v_k (product_k − largest) with the teacher's weights
    // v, the products being the row's own.
    float moment;
};

// The keys, and what attending to them gives. Mirrored in src/gpu/attention/arguments.rs.
struct Attending {
    const void* keys;       // [key_count, key_pitch]
    const uint32_t* state;  // [next, len] of a queue, or null where all keys are in use
    Stat* stats;            // [splits, row_count]
    float* means;           // [splits, row_count, mean_pitch]: not divided by the sum
    uint32_t row_count;
    uint32_t key_count;
    uint32_t dim;
    uint32_t key_pitch;
    uint32_t mean_pitch;
    uint32_t padding;
};

struct KeyRange {
    uint32_t begin, end;
};

// The keys of split blockIdx.y: whole tiles, as even as they come, of the keys in use.
DEVICE KeyRange keys_of_split(const Attending& arguments) {
    uint32_t len = arguments.key_count;
    if (arguments.state != nullptr && arguments.state[1] < len) len = arguments.state[1];
    const uint64_t tiles = (len + static_cast<uint64_t>(KEYS) - 1) / KEYS;
    const uint64_t begin = tiles * blockIdx.y / gridDim.y * KEYS, end = tiles * (blockIdx.y + 1) / gridDim.y * KEYS;
    return {static_cast<uint32_t>(begin), static_cast<uint32_t>(end < len ? end : len)};
}
