// Sums over the dimensions of every pair of rows in a tile: Σ (x_i − x_j)² or Σ x_i x_j.
//
//   256 threads, PER x PER pairs a thread; tile of SIDE = 16 PER rows i by SIDE rows j:
//
//             j0 + PER (t % 16) ...
//           +----------------------+
//   i0 +    | t=0   1   2  ...  15 |
//   PER     | 16   17  ...         |     rows pass through shared memory DEPTH dimensions at a time,
//   (t/16)  | ...                  |     dimension by dimension: a thread's PER rows lie side by side
//           +----------------------+
#pragma once

#include "collective.cuh"
#include "element.cuh"

namespace pair_tile {

constexpr unsigned THREADS = 256;
constexpr unsigned LARGEST_SIDE = 64;

// Dimensions in shared memory at a time: 16 KiB for both sides.
template <typename Real>
constexpr unsigned DEPTH = 128 / sizeof(Real);
// Rows of a dimension lie this far apart: a multiple of 16 bytes, off the power of two.
template <typename Real>
constexpr unsigned PITCH = LARGEST_SIDE + 16 / sizeof(Real);
template <typename Real>
constexpr unsigned SHARED = DEPTH<Real> * PITCH<Real>;

struct SquaredDifference {
    template <typename Real>
    DEVICE Real operator()(Real a, Real b, Real sum) const {
        const Real difference = a - b;
        return fma(difference, difference, sum);
    }
};
struct Product {
    template <typename Real>
    DEVICE Real operator()(Real a, Real b, Real sum) const {
        return fma(a, b, sum);
    }
};

// COUNT elements that lie side by side, 16 bytes at a time where they fill them.
template <unsigned COUNT, typename Real>
DEVICE void load_side_by_side(const Real* from, Real (&to)[COUNT]) {
    if constexpr (COUNT * sizeof(Real) % 16 == 0) {
        constexpr unsigned EACH = 16 / sizeof(Real);
        UNROLL
        for (unsigned i = 0; i < COUNT / EACH; i++) {
            union {
                Bytes16 bytes;
                Real elements[EACH];
            } chunk = {reinterpret_cast<const Bytes16*>(from)[i]};
            UNROLL
            for (unsigned e = 0; e < EACH; e++) to[i * EACH + e] = chunk.elements[e];
        }
    } else {
        UNROLL
        for (unsigned i = 0; i < COUNT; i++) to[i] = from[i];
    }
}

// Rows `first` .. `first + side`, dimensions `depth` .. `depth + DEPTH` into shared memory; zero beyond the matrix.
template <typename Real, typename T>
DEVICE void stage(const T* rows, uint32_t n, uint32_t dim, uint32_t first, unsigned side, uint32_t depth, bool wide,
                  Real* shared) {
    constexpr unsigned D = DEPTH<Real>;
    if (wide) {
        constexpr unsigned CHUNKS = D / CHUNK<T>;
        for (unsigned at = threadIdx.x; at < side * CHUNKS; at += THREADS) {
            const unsigned row = at / CHUNKS, d = at % CHUNKS * CHUNK<T>;
            float values[CHUNK<T>] = {};
            if (first + row < n && depth + d < dim)
                load_chunk(rows + static_cast<uint64_t>(first + row) * dim + depth + d, values);
            UNROLL
            for (unsigned i = 0; i < CHUNK<T>; i++) shared[(d + i) * PITCH<Real> + row] = values[i];
        }
    } else {
        for (unsigned at = threadIdx.x; at < side * D; at += THREADS) {
            const unsigned row = at / D, d = at % D;
            const bool inside = first + row < n && depth + d < dim;
            shared[d * PITCH<Real> + row] =
                inside ? to_float(rows[static_cast<uint64_t>(first + row) * dim + depth + d]) : 0.0f;
        }
    }
}

// Gives sum[a][b] of rows i0 + PER (t/16) + a and j0 + PER (t%16) + b. `left` and `right` hold SHARED each. Sums of
// DEPTH dimensions are added up: two short sums round less than a long one.
template <unsigned PER, typename Op, typename Real, typename T>
DEVICE void sums(const T* rows, uint32_t n, uint32_t dim, uint32_t i0, uint32_t j0, Real* left, Real* right,
                 Real (&sum)[PER][PER]) {
    constexpr unsigned SIDE = 16 * PER, D = DEPTH<Real>;
    const bool wide = aligned16(rows) && dim % CHUNK<T> == 0;
    const unsigned ti = threadIdx.x / 16 * PER, tj = threadIdx.x % 16 * PER;
    UNROLL
    for (unsigned a = 0; a < PER; a++) {
        UNROLL
        for (unsigned b = 0; b < PER; b++) sum[a][b] = 0;
    }
    for (uint32_t depth = 0; depth < dim; depth += D) {
        block_barrier();
        stage(rows, n, dim, i0, SIDE, depth, wide, left);
        stage(rows, n, dim, j0, SIDE, depth, wide, right);
        block_barrier();
        Real part[PER][PER] = {};
        UNROLL_BY(8)
        for (unsigned d = 0; d < D; d++) {
            Real x[PER], y[PER];
            load_side_by_side(left + d * PITCH<Real> + ti, x);
            load_side_by_side(right + d * PITCH<Real> + tj, y);
            UNROLL
            for (unsigned a = 0; a < PER; a++) {
                UNROLL
                for (unsigned b = 0; b < PER; b++) part[a][b] = Op()(x[a], y[b], part[a][b]);
            }
        }
        UNROLL
        for (unsigned a = 0; a < PER; a++) {
            UNROLL
            for (unsigned b = 0; b < PER; b++) sum[a][b] += part[a][b];
        }
    }
}

// Tiles (a, b) with a ≤ b, counted column by column: (0,0) (0,1) (1,1) (0,2) ...
struct Pair {
    uint32_t a, b;
};

DEVICE Pair pair_of(uint32_t index) {
    auto b = static_cast<uint32_t>((sqrtf(8.0f * static_cast<float>(index) + 1.0f) - 1.0f) * 0.5f);
    // The root is rounded.
    while (static_cast<uint64_t>(b) * (b + 1) / 2 > index) b--;
    while (static_cast<uint64_t>(b + 1) * (b + 2) / 2 <= index) b++;
    return {static_cast<uint32_t>(index - static_cast<uint64_t>(b) * (b + 1) / 2), b};
}

}  // namespace pair_tile
