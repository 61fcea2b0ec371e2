// What the passes of the towers family share: rows that are compared with one another, in tiles of 64
// rows and 64 keys. kernels/towers_log_sums.cu, towers_rows.cu, towers_gradient.cu, towers_finish.cu.
#pragma once

#include "collective.cuh"
#include "element.cuh"
#include "math.cuh"
#include "pair_tile.cuh"

namespace towers {

constexpr unsigned TILE = 64;
// Rows and keys of a thread in a tile.
constexpr unsigned PER = 4;

// What a pair costs. Mirrored in src/gpu/towers/mod.rs.
enum Kind : uint32_t { SOFTMAX = 0, SIGMOID = 1, LABELS = 2, MASKED = 3 };

// CLIP, with masks or without.
DEVICE bool is_softmax(uint32_t kind) { return kind == SOFTMAX || kind == MASKED; }

// Which rows are compared with which: the first half with the second and back, or all with all. The
// own pair of a row, its partner in the other half or the row itself, is apart.
struct Compared {
    uint32_t rows;    // of all
    uint32_t halves;  // whether a row's keys are those of the other half

    DEVICE uint32_t of_side() const { return halves ? rows / 2 : rows; }
    DEVICE uint32_t partner(uint32_t row) const {
        if (!halves) return row;
        return row < rows / 2 ? row + rows / 2 : row - rows / 2;
    }
};
ARGUMENTS(Compared, rows, halves);

// A tile of rows, and their keys. Tiles do not cross from one half to the other.
struct Side {
    uint32_t first_row;  // of the tile
    uint32_t end_row;
    uint32_t first_key;
    uint32_t end_key;
    uint32_t own;  // from a row to its own key, as a difference that may wrap
};

// The keys of split blockIdx.y, in whole tiles.
DEVICE Side side_of_block(const Compared& compared) {
    const uint32_t of_side = compared.of_side(), tiles = (of_side + TILE - 1) / TILE;
    const uint32_t second = blockIdx.x / tiles, tile = blockIdx.x % tiles;
    const uint32_t row_start = second * of_side;
    const uint32_t key_start = compared.halves && !second ? of_side : 0;
    const uint64_t begin = static_cast<uint64_t>(tiles) * blockIdx.y / gridDim.y * TILE;
    const uint64_t end = static_cast<uint64_t>(tiles) * (blockIdx.y + 1) / gridDim.y * TILE;
    const uint32_t last = end < of_side ? static_cast<uint32_t>(end) : of_side;
    return {row_start + tile * TILE, row_start + of_side,
            key_start + static_cast<uint32_t>(begin), key_start + last, key_start - row_start};
}

// The largest product of a row with its keys but the own one, and Σ 2^(scale (product − largest)).
struct Stat {
    float largest;
    float sum;
};
ARGUMENTS(Stat, largest, sum);

// What a row brings to each of its pairs. The weight of a key in the row's softmax is
// 2^(scale (product − largest) − excess).
struct Record {
    float largest[2];  // of student and teacher
    float excess[2];
    float counts;      // labels: 1 if the row has others of its label, else 0
    union {
        float per_target;  // labels: 1 over their number, or 0
        float limit;       // masks: the guide's product beyond which the row leaves a key out
    };
    float own;         // what the row makes of its own pair
    uint32_t label;
};
ARGUMENTS(Record, largest, excess, counts, per_target, own, label);

// ⟨row, partner⟩, in every lane of the warp.
DEVICE double own_product(const float* rows, uint32_t dim, uint32_t row, uint32_t partner SITE) {
    const float* x = rows + static_cast<uint64_t>(row) * dim;
    const float* y = rows + static_cast<uint64_t>(partner) * dim;
    double sum = 0;
    for (uint32_t d = lane_index(); d < dim; d += WARP)
        sum = fma(static_cast<double>(x[d]), static_cast<double>(y[d]), sum);
    return warp_reduce(sum, Sum() PASS_SITE);
}

// The sum of the 16 lanes that hold the same rows, in each of them.
DEVICE float sum_of_row(float value) {
    UNROLL
    for (unsigned mask = 8; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
    return value;
}

}  // namespace towers
