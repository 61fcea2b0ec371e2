// Sums over the dimensions of every pair of rows in a tile: Σ (x_i − x_j)² or Σ x_i x_j.
//
//   256 threads, PER x PER pairs a thread; tile of SIDE = 16 PER rows i by SIDE rows j:
//
//             j0 + PER (t % 16) ...
//           +----------------------+
//   i0 +    | t=0   1   2  ...  15 |
//   PER     | 16   17  ...         |
//   (t/16)  | ...                  |
//           +----------------------+
//
//   Rows pass through shared memory DEPTH dimensions at a time, dimension by dimension: the PER
//   rows of a thread are contiguous. The next dimensions are in flight meanwhile, in registers.
#pragma once

#include "collective.cuh"
#include "element.cuh"

namespace pair_tile {

constexpr unsigned THREADS = 256;
constexpr unsigned LARGEST_SIDE = 64;

// Dimensions in shared memory at a time. Both sides take 17 KiB, twice.
template <typename Real>
constexpr unsigned DEPTH = 128 / sizeof(Real);
// The distance between dimensions in shared memory: a multiple of 16 bytes, but no power of two.
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

// Loads COUNT contiguous elements, 16 or 8 bytes at a time if they fill them.
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

// Stores COUNT contiguous elements, 16 bytes at a time if they fill them.
template <unsigned COUNT, typename Real>
DEVICE void store_side_by_side(Real* to, const Real (&from)[COUNT]) {
    if constexpr (COUNT * sizeof(Real) % 16 == 0) {
        constexpr unsigned EACH = 16 / sizeof(Real);
        UNROLL
        for (unsigned i = 0; i < COUNT / EACH; i++) {
            union {
                Real elements[EACH];
                Bytes16 bytes;
            } chunk;
            UNROLL
            for (unsigned e = 0; e < EACH; e++) chunk.elements[e] = from[i * EACH + e];
            reinterpret_cast<Bytes16*>(to)[i] = chunk.bytes;
        }
    } else {
        UNROLL
        for (unsigned i = 0; i < COUNT; i++) to[i] = from[i];
    }
}

// Carries rows `first` .. `first + SIDE` of a matrix to shared memory, DEPTH dimensions at a time.
template <unsigned SIDE, typename Real, typename T>
struct Stage {
    // Two neighbouring lanes read 32 bytes of a row, and 32 lanes write to 32 banks.
    static constexpr unsigned CHUNKS = SIDE * DEPTH<Real> / CHUNK<T>,
                              EACH = (CHUNKS + THREADS - 1) / THREADS;

    const T* rows;
    uint32_t n, dim, first;
    // Whether all chunks are aligned to 16 bytes.
    bool aligned;
    Chunk<T> chunks[EACH];

    DEVICE static unsigned row(unsigned at) { return at / 2 % SIDE; }
    DEVICE static unsigned dimension(unsigned at) {
        return (at / (2 * SIDE) * 2 + at % 2) * CHUNK<T>;
    }

    // Loads chunks into registers, with zeros beyond the matrix.
    DEVICE void fetch(uint32_t depth) {
        UNROLL
        for (unsigned c = 0; c < EACH; c++) {
            const unsigned at = threadIdx.x + c * THREADS;
            const uint32_t i = first + row(at), d = depth + dimension(at);
            const unsigned count = at < CHUNKS && i < n && d < dim ? dim - d : 0;
            chunks[c] = fetch_chunk(rows + static_cast<uint64_t>(i) * dim + d, aligned, count);
        }
    }

    // Stores them to shared memory.
    DEVICE void store(Real* shared) const {
        UNROLL
        for (unsigned c = 0; c < EACH; c++) {
            const unsigned at = threadIdx.x + c * THREADS;
            if (at >= CHUNKS) continue;
            UNROLL
            for (unsigned i = 0; i < CHUNK<T>; i++)
                shared[(dimension(at) + i) * PITCH<Real> + row(at)] =
                    to_float(chunks[c].elements[i]);
        }
    }
};

// Computes sum[a][b] of rows i0 + PER (t/16) + a and j0 + PER (t%16) + b. In f32 each DEPTH
// dimensions are summed on their own and then added, because two short sums round less than a long
// one. In f64 this would gain nothing and cost registers.
template <unsigned PER, typename Op, typename Real, typename T>
DEVICE void sums(const T* rows, uint32_t n, uint32_t dim, uint32_t i0, uint32_t j0, Real* shared,
                 Real (&sum)[PER][PER]) {
    constexpr unsigned D = DEPTH<Real>, BUFFER = D * PITCH<Real>;
    constexpr bool SHORT = sizeof(Real) < 8;
    const bool aligned = aligned16(rows) && dim % CHUNK<T> == 0;
    const unsigned ti = threadIdx.x / 16 * PER, tj = threadIdx.x % 16 * PER;
    UNROLL
    for (unsigned a = 0; a < PER; a++) {
        UNROLL
        for (unsigned b = 0; b < PER; b++) sum[a][b] = 0;
    }
    Stage<16 * PER, Real, T> left{rows, n, dim, i0, aligned, {}},
        right{rows, n, dim, j0, aligned, {}};
    // Load the first dimensions
    unsigned buffer = 0;
    left.fetch(0);
    right.fetch(0);
    left.store(shared);
    right.store(shared + BUFFER);
    block_barrier();
    for (uint32_t depth = 0; depth < dim; depth += D) {
        // Load the next dimensions while the present ones are processed
        const bool more = dim - depth > D;
        if (more) {
            left.fetch(depth + D);
            right.fetch(depth + D);
        }
        // Accumulate
        const Real* left_rows = shared + buffer + ti;
        const Real* right_rows = shared + buffer + BUFFER + tj;
        Real part[PER][PER];
        UNROLL
        for (unsigned a = 0; a < PER; a++) {
            UNROLL
            for (unsigned b = 0; b < PER; b++) part[a][b] = SHORT ? 0 : sum[a][b];
        }
        UNROLL_BY(8)
        for (unsigned d = 0; d < D; d++) {
            Real x[PER], y[PER];
            load_side_by_side(left_rows + d * PITCH<Real>, x);
            load_side_by_side(right_rows + d * PITCH<Real>, y);
            UNROLL
            for (unsigned a = 0; a < PER; a++) {
                UNROLL
                for (unsigned b = 0; b < PER; b++) part[a][b] = Op()(x[a], y[b], part[a][b]);
            }
        }
        UNROLL
        for (unsigned a = 0; a < PER; a++) {
            UNROLL
            for (unsigned b = 0; b < PER; b++)
                sum[a][b] = SHORT ? sum[a][b] + part[a][b] : part[a][b];
        }
        if (more) {
            buffer = 2 * BUFFER - buffer;
            left.store(shared + buffer);
            right.store(shared + buffer + BUFFER);
            block_barrier();
        }
    }
}

// The same for small batches, where latency counts more than work. A tile has SIDE = 4 PER rows
// squared, and each of the first SIDE² threads gets the sum of one pair. 16 groups of 16 threads,
// with PER x PER pairs a thread, take 4 of every 64 dimensions each:
//
//             j0 + PER (t % 4) ...
//           +-----------------+     dimensions d, of 64:  0 .. 4  | 4 .. 8  | ... | 60 .. 64
//   i0 +    | t=0   1   2   3 |     t / 16                0       | 1       |     | 15
//   PER     | 4     5  ...    |
//   (t/4%4) | ...             |
//           +-----------------+     The sums are added at the end: two groups of a warp, then
//                                   warps in order
template <unsigned PER, typename Real>
struct SmallTile {
    static constexpr unsigned SIDE = 4 * PER, PAIRS = SIDE * SIDE;
    // The rows of both sides are contiguous. The pitch is 16 bytes off a power of two, so that the
    // chunks of eight rows that two neighbouring groups of lanes store lie on different banks.
    static constexpr unsigned ROWS = 2 * SIDE, PITCH = ROWS + 16 / sizeof(Real);
    // Dimensions in shared memory at a time, as many as fit. The next are in flight, in registers.
    static constexpr unsigned DEPTH = PER == 2 ? 256 : 128, SHARED = DEPTH * PITCH;
};

template <unsigned PER, typename Op, typename Real, typename T>
DEVICE Real small_tile_sum(const T* rows, uint32_t n, uint32_t dim, uint32_t i0, uint32_t j0,
                           Real* shared) {
    using Tile = SmallTile<PER, Real>;
    constexpr unsigned PITCH = Tile::PITCH, SIDE = Tile::SIDE, DEPTH = Tile::DEPTH,
                       PAIRS = Tile::PAIRS;
    constexpr unsigned COLUMNS = DEPTH / CHUNK<T>, CHUNKS = Tile::ROWS * COLUMNS,
                       EACH = (CHUNKS + THREADS - 1) / THREADS;
    static_assert(THREADS / WARP * PAIRS <= Tile::SHARED && PAIRS <= THREADS,
                  "sums of all warps, a pair a thread");
    const bool aligned = aligned16(rows) && dim % CHUNK<T> == 0;
    const unsigned group = threadIdx.x / 16, ti = threadIdx.x / 4 % 4 * PER,
                   tj = threadIdx.x % 4 * PER;
    // Rows come in eights: eight lanes load chunks of eight rows.
    const auto row = [](unsigned at) { return at / (8 * COLUMNS) * 8 + at % 8; };
    const auto dimension = [](unsigned at) { return at / 8 % COLUMNS * CHUNK<T>; };
    const auto is_chunk = [](unsigned at) { return CHUNKS % THREADS == 0 || at < CHUNKS; };
    Chunk<T> chunks[EACH];
    const T* from[EACH];
    UNROLL
    for (unsigned c = 0; c < EACH; c++) {
        const unsigned at = threadIdx.x + c * THREADS, in_tile = row(at);
        const uint32_t i = in_tile < SIDE ? i0 + in_tile : j0 + in_tile - SIDE;
        // Beyond the last row it is loaded again; its extra pairs are never used.
        from[c] = rows + static_cast<uint64_t>(i < n ? i : n - 1) * dim + dimension(at);
    }
    const auto fetch = [&](uint32_t depth) {
        const auto each = [&](bool wide) {
            UNROLL
            for (unsigned c = 0; c < EACH; c++) {
                const unsigned at = threadIdx.x + c * THREADS, d = depth + dimension(at);
                chunks[c] =
                    fetch_chunk(from[c] + depth, wide, is_chunk(at) && d < dim ? dim - d : 0);
            }
        };
        if (aligned) {
            each(true);
        } else {
            each(false);
        }
    };
    Real sum[PER][PER] = {};
    // Load the first dimensions
    fetch(0);
    for (uint32_t depth = 0; depth < dim; depth += DEPTH) {
        // Store them to shared memory
        UNROLL
        for (unsigned c = 0; c < EACH; c++) {
            const unsigned at = threadIdx.x + c * THREADS;
            if (!is_chunk(at)) continue;
            Real* to = shared + dimension(at) * PITCH + row(at);
            UNROLL
            for (unsigned e = 0; e < CHUNK<T>; e++) to[e * PITCH] = to_float(chunks[c].elements[e]);
        }
        block_barrier();
        // Load the next dimensions while the present ones are processed
        if (dim - depth > DEPTH) fetch(depth + DEPTH);
        // Accumulate
        const uint32_t rest = dim - depth < DEPTH ? dim - depth : DEPTH;
        const Real* group_rows = shared + 4 * group * PITCH;
        UNROLL_BY(1)
        for (unsigned d = 0; d < rest; d += 64, group_rows += 64 * PITCH) {
            UNROLL
            for (unsigned e = 0; e < 4; e++) {
                Real x[PER], y[PER];
                load_side_by_side(group_rows + e * PITCH + ti, x);
                load_side_by_side(group_rows + e * PITCH + SIDE + tj, y);
                UNROLL
                for (unsigned a = 0; a < PER; a++) {
                    UNROLL
                    for (unsigned b = 0; b < PER; b++) sum[a][b] = Op()(x[a], y[b], sum[a][b]);
                }
            }
        }
        block_barrier();
    }
    // Reduce over the groups
    UNROLL
    for (unsigned a = 0; a < PER; a++) {
        UNROLL
        for (unsigned b = 0; b < PER; b++) {
            sum[a][b] += shuffle_xor(sum[a][b], 16);
            if (group % 2 == 0) shared[warp_index() * PAIRS + (ti + a) * SIDE + tj + b] = sum[a][b];
        }
    }
    block_barrier();
    Real all = 0;
    if (threadIdx.x < PAIRS) {
        UNROLL
        for (unsigned w = 0; w < THREADS / WARP; w++) all += shared[w * PAIRS + threadIdx.x];
    }
    return all;
}

// Tiles (a, b) with a ≤ b, counted column by column: (0,0) (0,1) (1,1) (0,2) ...
struct Pair {
    uint32_t a, b;
};

// The number of tiles before column b, computed without overflowing 32 bits on the way.
DEVICE uint32_t pairs_before(uint32_t b) { return b % 2 == 0 ? b / 2 * (b + 1) : (b + 1) / 2 * b; }

DEVICE Pair pair_of(uint32_t index) {
    auto b = static_cast<uint32_t>((sqrtf(8.0f * static_cast<float>(index) + 1.0f) - 1.0f) * 0.5f);
    // The root is rounded, by less than 0.02 at any index.
    if (pairs_before(b) > index) b--;
    if (b < 92681 && pairs_before(b + 1) <= index) b++;
    return {index - pairs_before(b), b};
}

}  // namespace pair_tile
