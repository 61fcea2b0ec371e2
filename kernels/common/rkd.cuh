// What the kernels of RKD hand one another through the workspace.
#pragma once

#include "collective.cuh"
#include "element.cuh"
#include "pair_tile.cuh"

namespace rkd {

// src/gpu/rkd/workspace.rs makes room for it, and its tests read `accurate`.
struct Scalars {
    // The student's lengths and the teacher's, in units in which the longest is about 1 where the accurate path runs,
    // and as they are where the fast one does. A power of two: `unit` times a length is exact.
    double unit[2];
    // Mean length in that unit.
    double mean[2];
    // NaN where a row isn't finite, else 0.
    double poison;
    // Whether lengths and angles come from the accurate path.
    uint32_t accurate;
    uint32_t padding;
};
static_assert(sizeof(Scalars) == 48, "SCALARS in src/gpu/rkd/workspace.rs");

// Matrices over pairs of rows are kept in tiles of 64 x 64, zero beyond the N rows there are, so that 16 bytes can be
// read anywhere. r and the coefficients are matrices of `padded(n)` rows. h and the angle's sums, which are symmetric,
// have the tiles (a ≤ b) only, in the order of pair_tile::pair_of, each of them whole.
constexpr unsigned TILE = 64, TILE_ELEMENTS = TILE * TILE;

DEVICE uint32_t tiles_of(uint32_t n) { return (n + TILE - 1) / TILE; }
DEVICE uint32_t padded(uint32_t n) { return tiles_of(n) * TILE; }
// Where the tile (a ≤ b) starts.
DEVICE uint64_t tile_at(uint32_t a, uint32_t b) {
    return static_cast<uint64_t>(pair_tile::pairs_before(b) + a) * TILE_ELEMENTS;
}

// The angle's sums have several slots for each tile (a ≤ b), side by side: those of a tile between two groups of tiles are
// not as many as those of a tile within one. Mirrored in src/gpu/rkd/arguments.rs.
struct Slots {
    uint32_t across;  // of a tile between two groups
    uint32_t within;  // of a tile within one
    uint32_t tiles_per_group;

    DEVICE uint32_t of(uint32_t a, uint32_t b) const {
        return a / tiles_per_group == b / tiles_per_group ? within : across;
    }
    // Those of all tiles before this one. In 32 bits: 2^32 of 16 KiB are 64 TiB.
    DEVICE uint32_t before(uint32_t a, uint32_t b) const {
        using pair_tile::pairs_before;
        const uint32_t group = b / tiles_per_group, first = group * tiles_per_group;
        const uint32_t inner = group * pairs_before(tiles_per_group) + pairs_before(b - first) + (a > first ? a - first : 0);
        return (pairs_before(b) + a - inner) * across + inner * within;
    }
};

// What is known of some lengths.
struct Lengths {
    double sum;
    // Squared. Of no lengths, 0 and as long as can be.
    double longest, shortest;
};

// Of two sets of lengths together. Whether all are finite the sum tells: where it says no, the others may be anything.
struct Together {
    DEVICE Lengths operator()(const Lengths& a, const Lengths& b) const {
        return {a.sum + b.sum, a.longest > b.longest ? a.longest : b.longest,
                a.shortest < b.shortest ? a.shortest : b.shortest};
    }
};

// The student's lengths and the teacher's.
struct Both {
    Lengths of[2];
};

// Those of all pairs, in every thread of the block, from what `count` blocks of the relation know of each: [2, count].
DEVICE Both lengths_of(const Lengths* partials, uint32_t count SITE) {
    Both both;
    reduce_sets(partials, count, {0, 0, 1e30}, Together(), both.of PASS_SITE);
    return both;
}

// 1/d in the unit of the lengths, of one whose r is this. Of rows that are closer than 2^-100 of it, as if they were not: what
// is made of it stays within f32's range.
DEVICE float in_unit(float r, float per_unit) { return fminf(r * per_unit, 0x1p100f); }

DEVICE double mean_of(double sum, uint32_t n) {
    return n > 1 ? sum / (0.5 * static_cast<double>(n) * (n - 1.0)) : sum;
}

// The accurate path's scalars, of lengths found in f64.
DEVICE Scalars accurate_scalars(const Both& both, uint32_t n) {
    Scalars scalars = {};
    UNROLL
    for (unsigned which = 0; which < 2; which++) {
        const Lengths& all = both.of[which];
        // Rows so close to one another, all of them, have no 1/d in f32: NaN, and no plausible number.
        const bool vanishing = all.longest > 0 && all.longest < 0x1p-240;
        scalars.poison += vanishing ? static_cast<double>(bits_to_float(0x7FC00000u)) : all.sum * 0.0;
        // The power of two next to 1/√longest, within f32's range, where it is used.
        const bool finite = all.longest > 0 && all.longest < 1e300;
        const int exponent = finite ? -(ilogb(all.longest) >> 1) : 0;
        const double unit = scalbn(1.0, exponent < -126 ? -126 : exponent > 126 ? 126 : exponent);
        scalars.unit[which] = unit;
        scalars.mean[which] = mean_of(all.sum, n) * unit;
    }
    scalars.accurate = 1;
    return scalars;
}

// The same from the partials of few rows' relation, in every thread: each block of the launch that follows it finds them for
// itself, which takes less time than if all waited for a last block. The first block writes them for later launches.
DEVICE Scalars settle(const Lengths* partials, uint32_t count, uint32_t n, Scalars* to SITE) {
    const Scalars scalars = accurate_scalars(lengths_of(partials, count PASS_SITE), n);
    if (blockIdx.x == 0 && threadIdx.x == 0) *to = scalars;
    return scalars;
}

// What a block of the coefficients knows of the penalties; sums over pairs of rows and over triples.
struct Penalties {
    // Of the distance's penalty, and of w d.
    double distance, weighted;
    // Of the angle's.
    double angle;
};
struct PenaltiesTogether {
    DEVICE Penalties operator()(const Penalties& a, const Penalties& b) const {
        return {a.distance + b.distance, a.weighted + b.weighted, a.angle + b.angle};
    }
};

// Those of all `count` blocks, in every thread of this one.
DEVICE Penalties penalties_of(const Penalties* partials, uint32_t count SITE) {
    Penalties all[1];
    reduce_sets(partials, count, {}, PenaltiesTogether(), all PASS_SITE);
    return all[0];
}

}  // namespace rkd
