// Sums over the dimensions of every pair of rows in a tile: Σ (x_i − x_j)² or Σ x_i x_j.
//
//   256 threads, PER x PER pairs a thread; tile of SIDE = 16 PER rows i by SIDE rows j:
//
//             j0 + PER (t % 16) ...
//           +----------------------+
//   i0 +    | t=0   1   2  ...  15 |
//   PER     | 16   17  ...         |     rows pass through shared memory DEPTH dimensions at a time,
//   (t/16)  | ...                  |     dimension by dimension: a thread's PER rows lie side by side
//           +----------------------+     While some are worked on the next are on their way, in registers
#pragma once

#include "collective.cuh"
#include "element.cuh"

namespace pair_tile {

constexpr unsigned THREADS = 256;
constexpr unsigned LARGEST_SIDE = 64;

// Dimensions in shared memory at a time: 17 KiB for both sides, twice.
template <typename Real>
constexpr unsigned DEPTH = 128 / sizeof(Real);
// Rows of a dimension lie this far apart: a multiple of 16 bytes, off the power of two.
template <typename Real>
constexpr unsigned PITCH = LARGEST_SIDE + 16 / sizeof(Real);
template <typename Real>
constexpr unsigned SHARED = 4 * DEPTH<Real> * PITCH<Real>;

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

// COUNT elements that lie side by side, 16 or 8 bytes at a time where they fill them.
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
    } else if constexpr (COUNT * sizeof(Real) == 8) {
        struct alignas(8) Bytes8 {
            Real elements[COUNT];
        };
        const Bytes8 chunk = *reinterpret_cast<const Bytes8*>(from);
        UNROLL
        for (unsigned i = 0; i < COUNT; i++) to[i] = chunk.elements[i];
    } else {
        UNROLL
        for (unsigned i = 0; i < COUNT; i++) to[i] = from[i];
    }
}

// Rows `first` .. `first + SIDE` of a matrix, on their way to shared memory DEPTH dimensions at a time.
template <unsigned SIDE, typename Real, typename T>
struct Stage {
    // Two neighbours read 32 bytes of a row, and 32 write to 32 banks.
    static constexpr unsigned CHUNKS = SIDE * DEPTH<Real> / CHUNK<T>, EACH = (CHUNKS + THREADS - 1) / THREADS;

    const T* rows;
    uint32_t n, dim, first;
    // Whether all chunks lie on multiples of 16 bytes.
    bool aligned;
    Chunk<T> chunks[EACH];

    DEVICE static unsigned row(unsigned at) { return at / 2 % SIDE; }
    DEVICE static unsigned dimension(unsigned at) { return (at / (2 * SIDE) * 2 + at % 2) * CHUNK<T>; }

    // Zeros beyond the matrix.
    DEVICE void fetch(uint32_t depth) {
        UNROLL
        for (unsigned c = 0; c < EACH; c++) {
            const unsigned at = threadIdx.x + c * THREADS;
            const uint32_t i = first + row(at), d = depth + dimension(at);
            const unsigned count = at < CHUNKS && i < n && d < dim ? dim - d : 0;
            chunks[c] = fetch_chunk(rows + static_cast<uint64_t>(i) * dim + d, aligned, count);
        }
    }

    DEVICE void put(Real* shared) const {
        UNROLL
        for (unsigned c = 0; c < EACH; c++) {
            const unsigned at = threadIdx.x + c * THREADS;
            if (at >= CHUNKS) continue;
            UNROLL
            for (unsigned i = 0; i < CHUNK<T>; i++)
                shared[(dimension(at) + i) * PITCH<Real> + row(at)] = to_float(chunks[c].elements[i]);
        }
    }
};

// Gives sum[a][b] of rows i0 + PER (t/16) + a and j0 + PER (t%16) + b. Sums of DEPTH dimensions are added up: two short
// sums round less than a long one. Not in f64, where there is nothing to gain by it and registers to lose.
template <unsigned PER, typename Op, typename Real, typename T>
DEVICE void sums(const T* rows, uint32_t n, uint32_t dim, uint32_t i0, uint32_t j0, Real* shared, Real (&sum)[PER][PER]) {
    constexpr unsigned D = DEPTH<Real>, BUFFER = D * PITCH<Real>;
    constexpr bool SHORT = sizeof(Real) < 8;
    const bool aligned = aligned16(rows) && dim % CHUNK<T> == 0;
    const unsigned ti = threadIdx.x / 16 * PER, tj = threadIdx.x % 16 * PER;
    UNROLL
    for (unsigned a = 0; a < PER; a++) {
        UNROLL
        for (unsigned b = 0; b < PER; b++) sum[a][b] = 0;
    }
    Stage<16 * PER, Real, T> left{rows, n, dim, i0, aligned, {}}, right{rows, n, dim, j0, aligned, {}};
    unsigned buffer = 0;
    left.fetch(0);
    right.fetch(0);
    left.put(shared);
    right.put(shared + BUFFER);
    block_barrier();
    for (uint32_t depth = 0; depth < dim; depth += D) {
        const bool more = dim - depth > D;
        if (more) {
            left.fetch(depth + D);
            right.fetch(depth + D);
        }
        const Real* of_left = shared + buffer + ti;
        const Real* of_right = shared + buffer + BUFFER + tj;
        Real part[PER][PER];
        UNROLL
        for (unsigned a = 0; a < PER; a++) {
            UNROLL
            for (unsigned b = 0; b < PER; b++) part[a][b] = SHORT ? 0 : sum[a][b];
        }
        UNROLL_BY(8)
        for (unsigned d = 0; d < D; d++) {
            Real x[PER], y[PER];
            load_side_by_side(of_left + d * PITCH<Real>, x);
            load_side_by_side(of_right + d * PITCH<Real>, y);
            UNROLL
            for (unsigned a = 0; a < PER; a++) {
                UNROLL
                for (unsigned b = 0; b < PER; b++) part[a][b] = Op()(x[a], y[b], part[a][b]);
            }
        }
        UNROLL
        for (unsigned a = 0; a < PER; a++) {
            UNROLL
            for (unsigned b = 0; b < PER; b++) sum[a][b] = SHORT ? sum[a][b] + part[a][b] : part[a][b];
        }
        if (more) {
            buffer = 2 * BUFFER - buffer;
            left.put(shared + buffer);
            right.put(shared + buffer + BUFFER);
            block_barrier();
        }
    }
}

// The same of so few rows that it is time and not work which counts: one pair of 8 x 8 rows a thread, of the first 64 of
// them. 16 groups of 16 threads, with 2 x 2 pairs a thread, have 4 of every 64 dimensions each:
//
//             j0 + 2 (t % 4) ...
//           +-----------------+     dimensions d, of 64:  0 .. 4  | 4 .. 8  | ... | 60 .. 64
//   i0 +    | t=0   1   2   3 |     t / 16                0       | 1       |     | 15
//   2       | 4     5  ...    |
//   (t/4%4) | ...             |     their sums are put together in the end: two groups of a warp, then warps in order
//           +-----------------+
constexpr unsigned FEW = 8;
// Dimensions in shared memory at a time: 20 KiB of f64 for each side. The next are on their way in registers.
constexpr unsigned DEPTH_FEW = 256;
// 16 bytes off the power of two: 4 dimensions on are half the banks on, for the two groups of a warp.
template <typename Real>
constexpr unsigned PITCH_FEW = FEW + 16 / sizeof(Real);
template <typename Real>
constexpr unsigned SHARED_FEW = 2 * DEPTH_FEW * PITCH_FEW<Real>;

template <typename Op, typename Real, typename T>
DEVICE Real sum_of_few(const T* rows, uint32_t n, uint32_t dim, uint32_t i0, uint32_t j0, Real* shared) {
    constexpr unsigned PITCH = PITCH_FEW<Real>, OF_SIDE = FEW * DEPTH_FEW / CHUNK<T>, CHUNKS = 2 * OF_SIDE / THREADS;
    const bool aligned = aligned16(rows) && dim % CHUNK<T> == 0;
    const unsigned group = threadIdx.x / 16, ti = threadIdx.x / 4 % 4 * 2, tj = threadIdx.x % 4 * 2;
    // Eight lanes have chunks of eight rows, so that what they put lies on different banks.
    const unsigned row = threadIdx.x % FEW;
    const auto dimension = [](unsigned c) { return (threadIdx.x + c * THREADS) % OF_SIDE / FEW * CHUNK<T>; };
    Chunk<T> chunks[CHUNKS];
    const auto fetch = [&](uint32_t depth) {
        UNROLL
        for (unsigned c = 0; c < CHUNKS; c++) {
            const uint32_t i = (c < CHUNKS / 2 ? i0 : j0) + row, d = depth + dimension(c);
            chunks[c] = fetch_chunk(rows + static_cast<uint64_t>(i) * dim + d, aligned, i < n && d < dim ? dim - d : 0);
        }
    };
    Real sum[2][2] = {};
    fetch(0);
    for (uint32_t depth = 0; depth < dim; depth += DEPTH_FEW) {
        UNROLL
        for (unsigned c = 0; c < CHUNKS; c++) {
            Real* to = shared + (c < CHUNKS / 2 ? 0 : DEPTH_FEW * PITCH) + dimension(c) * PITCH + row;
            UNROLL
            for (unsigned e = 0; e < CHUNK<T>; e++) to[e * PITCH] = to_float(chunks[c].elements[e]);
        }
        block_barrier();
        if (dim - depth > DEPTH_FEW) fetch(depth + DEPTH_FEW);
        const uint32_t rest = dim - depth < DEPTH_FEW ? dim - depth : DEPTH_FEW;
        const Real* of_left = shared + 4 * group * PITCH + ti;
        const Real* of_right = shared + (DEPTH_FEW + 4 * group) * PITCH + tj;
        UNROLL_BY(1)
        for (unsigned d = 0; d < rest; d += 64) {
            UNROLL
            for (unsigned e = 0; e < 4; e++) {
                Real x[2], y[2];
                load_side_by_side(of_left + (d + e) * PITCH, x);
                load_side_by_side(of_right + (d + e) * PITCH, y);
                UNROLL
                for (unsigned a = 0; a < 2; a++) {
                    UNROLL
                    for (unsigned b = 0; b < 2; b++) sum[a][b] = Op()(x[a], y[b], sum[a][b]);
                }
            }
        }
        block_barrier();
    }
    UNROLL
    for (unsigned a = 0; a < 2; a++) {
        UNROLL
        for (unsigned b = 0; b < 2; b++) {
            sum[a][b] += shuffle_xor(sum[a][b], 16);
            if (group % 2 == 0) shared[warp_index() * FEW * FEW + (ti + a) * FEW + tj + b] = sum[a][b];
        }
    }
    block_barrier();
    Real all = 0;
    if (threadIdx.x < FEW * FEW) {
        UNROLL
        for (unsigned w = 0; w < THREADS / WARP; w++) all += shared[w * FEW * FEW + threadIdx.x];
    }
    return all;
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
