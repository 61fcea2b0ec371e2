// What the passes of an attention share. The rows of a batch attend to keys, and the keys serve as
// values too.
#pragma once

#include "element.cuh"
#include "math.cuh"

// Keys of a tile, in every attention kernel. A split of the keys is a run of whole tiles.
constexpr unsigned KEYS = 64;

// The statistics of a row over one split of the keys. `largest` is the row's largest product with a
// key, and `sum` is Σ_k w_k with w_k = 2^(scale (product_k − largest)). The weighted keys
// Σ_k w_k key_k lie in a matrix of their own. A split without keys has −inf and 0.
//
// Products are subtracted before they are scaled. So their difference is exact where it matters, at
// any temperature.
struct Stat {
    float largest;
    float sum;
    // Only attention_mma computes it, and only where student and teacher attend together:
    // Σ_k v_k (product_k − largest), with the teacher's weights v and the row's own products.
    float moment;
};

// The arguments that all attention kernels have. Mirrored in src/gpu/contrastive/arguments.rs.
struct AttentionCommon {
    const void* keys;       // [key_count, key_pitch]
    const uint32_t* state;  // [next, len] of a queue, or null where all keys are in use
    Stat* stats;            // [splits, row_count]
    float* means;           // [splits, row_count, mean_pitch]: Σ w key, not divided by the sum
    uint32_t row_count;
    uint32_t key_count;
    uint32_t dim;
    uint32_t key_pitch;
    uint32_t mean_pitch;
    uint32_t padding;
};
ARGUMENTS(AttentionCommon, keys, state, stats, means, row_count, key_count, dim, key_pitch,
          mean_pitch, padding);

struct KeyRange {
    uint32_t begin, end;
};

// The keys of split blockIdx.y, among the keys in use. All splits are whole tiles, and their
// numbers of tiles differ by at most one.
DEVICE KeyRange keys_of_split(const AttentionCommon& arguments) {
    uint32_t len = arguments.key_count;
    if (arguments.state != nullptr && arguments.state[1] < len) len = arguments.state[1];
    const uint64_t tiles = (len + static_cast<uint64_t>(KEYS) - 1) / KEYS;
    const uint64_t begin = tiles * blockIdx.y / gridDim.y * KEYS;
    const uint64_t end = tiles * (blockIdx.y + 1) / gridDim.y * KEYS;
    return {static_cast<uint32_t>(begin), static_cast<uint32_t>(end < len ? end : len)};
}
