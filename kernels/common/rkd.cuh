// What the kernels of RKD pass to one another through the workspace.
#pragma once

#include "collective.cuh"
#include "element.cuh"
#include "pair_tile.cuh"

namespace rkd {

// src/gpu/triplet/workspace.rs reserves memory for it, and its tests read `accurate`. Index 0 is
// the student, 1 the teacher.
struct Scalars {
    // A power of two: `unit` times a length is exact. On the accurate path the longest length in
    // this unit is about 1; on the fast path the unit is 1.
    double unit[2];
    // The mean length in that unit.
    double mean[2];
    // NaN if a row is not finite, else 0.
    double poison;
    // Whether lengths and angles come from the accurate path.
    uint32_t accurate;
    uint32_t padding;
};
static_assert(sizeof(Scalars) == 48, "SCALARS in src/gpu/triplet/workspace.rs");

// Matrices over pairs of rows are stored in tiles of 64 x 64 and are zero beyond the N rows, so
// that 16 bytes can be read anywhere. r and the coefficients are matrices of `padded(n)` rows. h
// and the sums of the angle are symmetric: only their tiles (a ≤ b) are stored, each of them whole,
// in the order of pair_tile::pair_of.
constexpr unsigned TILE = 64, TILE_ELEMENTS = TILE * TILE;

DEVICE uint32_t tiles_of(uint32_t n) { return (n + TILE - 1) / TILE; }
DEVICE uint32_t padded(uint32_t n) { return tiles_of(n) * TILE; }
// The offset of tile (a ≤ b), in elements.
DEVICE uint64_t tile_at(uint32_t a, uint32_t b) {
    return static_cast<uint64_t>(pair_tile::pairs_before(b) + a) * TILE_ELEMENTS;
}

// The sums of the angle have several partial buffers for each tile (a ≤ b), one after the other. A
// tile between two groups of tiles has a different number of them than a tile within one group.
// Mirrored in src/gpu/triplet/arguments.rs.
struct PartialBuffers {
    uint32_t between_groups;  // of a tile between two groups
    uint32_t within_group;    // of a tile within one group
    uint32_t tiles_per_group;

    // The number of partial buffers of this tile.
    DEVICE uint32_t count(uint32_t a, uint32_t b) const {
        return a / tiles_per_group == b / tiles_per_group ? within_group : between_groups;
    }
    // The number of partial buffers of all tiles before this one. 32 bits suffice: 2^32 buffers of
    // 16 KiB are 64 TiB.
    DEVICE uint32_t count_before(uint32_t a, uint32_t b) const {
        using pair_tile::pairs_before;
        const uint32_t group = b / tiles_per_group, first = group * tiles_per_group;
        const uint32_t within = group * pairs_before(tiles_per_group) + pairs_before(b - first) +
                                (a > first ? a - first : 0);
        return (pairs_before(b) + a - within) * between_groups + within * within_group;
    }
};
ARGUMENTS(PartialBuffers, between_groups, within_group, tiles_per_group);

// Statistics of a set of lengths.
struct Lengths {
    double sum;
    // Squared. An empty set has longest = 0 and a huge `shortest`.
    double longest, shortest;
};

// Merges the statistics of two sets. If any length is not finite, `sum` is not finite and the other
// fields are meaningless.
struct MergeLengths {
    DEVICE Lengths operator()(const Lengths& a, const Lengths& b) const {
        return {a.sum + b.sum, a.longest > b.longest ? a.longest : b.longest,
                a.shortest < b.shortest ? a.shortest : b.shortest};
    }
};

// Statistics of the lengths of all pairs, of the student and the teacher.
struct PairStats {
    Lengths lengths[2];
};

// Reduces the partial statistics of `count` blocks of the relation, [2, count]. Every thread of the
// block gets the result.
DEVICE PairStats reduce_lengths(const Lengths* partials, uint32_t count SITE) {
    PairStats stats;
    reduce_sets(partials, count, {0, 0, 1e30}, MergeLengths(), stats.lengths PASS_SITE);
    return stats;
}

// r = 1/d in the unit of the lengths. Rows that are closer than 2^-100 of the unit count as 2^-100
// apart: then all that is computed from r stays within the range of f32.
DEVICE float in_unit(float r, float per_unit) { return fminf(r * per_unit, 0x1p100f); }

DEVICE double mean_of(double sum, uint32_t n) {
    return n > 1 ? sum / (0.5 * static_cast<double>(n) * (n - 1.0)) : sum;
}

// The scalars of the accurate path, from lengths computed in f64.
DEVICE Scalars accurate_scalars(const PairStats& stats, uint32_t n) {
    Scalars scalars = {};
    UNROLL
    for (unsigned which = 0; which < 2; which++) {
        const Lengths& all = stats.lengths[which];
        // If all rows are this close to one another, 1/d does not fit into f32. The result is then
        // NaN rather than a plausible wrong number.
        const bool vanishing = all.longest > 0 && all.longest < 0x1p-240;
        scalars.poison +=
            vanishing ? static_cast<double>(bits_to_float(0x7FC00000u)) : all.sum * 0.0;
        // The power of two next to 1/√longest, clamped to the range of f32, where it is used.
        const bool finite = all.longest > 0 && all.longest < 1e300;
        const int exponent = finite ? -(ilogb(all.longest) >> 1) : 0;
        const double unit = scalbn(1.0, exponent < -126 ? -126 : exponent > 126 ? 126 : exponent);
        scalars.unit[which] = unit;
        scalars.mean[which] = mean_of(all.sum, n) * unit;
    }
    scalars.accurate = 1;
    return scalars;
}

// The scalars of a small batch, from the relation's partial statistics, in every thread. Each block
// of the next launch computes them for itself: this takes less time than if all blocks waited for a
// last one. The first block writes them for later launches.
DEVICE Scalars small_batch_scalars(const Lengths* partials, uint32_t count, uint32_t n,
                                   Scalars* to SITE) {
    const Scalars scalars = accurate_scalars(reduce_lengths(partials, count PASS_SITE), n);
    if (blockIdx.x == 0 && threadIdx.x == 0) *to = scalars;
    return scalars;
}

// Sums of the penalties, over pairs of rows and over triples.
struct Penalties {
    // The penalties of the distances, and the sum of w d.
    double distance, weighted;
    // The penalties of the angles.
    double angle;
};
struct MergePenalties {
    DEVICE Penalties operator()(const Penalties& a, const Penalties& b) const {
        return {a.distance + b.distance, a.weighted + b.weighted, a.angle + b.angle};
    }
};

// Reduces the partial sums of `count` blocks of the coefficients. Every thread of the block gets
// the result.
DEVICE Penalties reduce_penalties(const Penalties* partials, uint32_t count SITE) {
    Penalties all[1];
    reduce_sets(partials, count, {}, MergePenalties(), all PASS_SITE);
    return all[0];
}

}  // namespace rkd
