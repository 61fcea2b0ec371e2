// What the kernels of RKD hand one another through the workspace.
#pragma once

#include "platform.cuh"

namespace rkd {

// src/gpu/rkd/mod.rs makes room for it, and its tests read `accurate`.
struct Scalars {
    // The student's lengths and the teacher's, in units in which the longest is about 1 where the accurate path runs,
    // and as they are where the fast one does. A power of two: `unit` times a length is exact.
    double unit[2];
    // Mean length in that unit.
    double mean[2];
    // NaN where a row isn't finite, else 0.
    double poison;
    // What times r_ij adds the distance's derivative through the mean to ∂L/∂h_ij.
    double through_mean;
    // Whether lengths and angles come from the accurate path.
    uint32_t accurate;
    uint32_t padding;
};
static_assert(sizeof(Scalars) == 56, "SCALARS in src/gpu/rkd/mod.rs");

// Matrices over pairs of rows are kept in tiles of 64 x 64, zero beyond the N rows there are, so that 16 bytes can be
// read anywhere. r and the coefficients are matrices of `padded(n)` rows. h and the angle's sums, which are symmetric and
// many, have the tiles (a ≤ b) only, in the order of pair_tile::pair_of, each of them whole.
constexpr unsigned TILE = 64, TILE_ELEMENTS = TILE * TILE;

DEVICE uint32_t tiles_of(uint32_t n) { return (n + TILE - 1) / TILE; }
DEVICE uint32_t padded(uint32_t n) { return tiles_of(n) * TILE; }
// How many tiles (a ≤ b) there are.
DEVICE uint64_t tile_pairs(uint32_t tiles) { return static_cast<uint64_t>(tiles) * (tiles + 1) / 2; }
// Where the tile (a ≤ b) starts.
DEVICE uint64_t tile_at(uint32_t a, uint32_t b) { return (tile_pairs(b) + a) * TILE_ELEMENTS; }

// What is known of some lengths.
struct Lengths {
    double sum;
    // Squared. Of no lengths, 0 and as long as can be.
    double longest, shortest;
};

}  // namespace rkd
