// Computes   L = 1/N³ Σ_jik huber(cos_jik(X) − cos_jik(Y)) over all triples, and its derivatives by the edges'
//            h = ½ d². With r = 1/d and the vertex at j, by the law of cosines
//              cos_jik = r_ij r_kj (h_ij + h_kj − h_ik)                 w = huber'(cos(X) − cos(Y))
//              G_ik = Σ_j w r_ij r_kj                                   the edge between the ends
//              A_ij = Σ_k w (r_ij r_kj − cos_jik r_ij²)                 an edge from end i to vertex j
//              ∂L/∂h_ij = 2/N³ (A_ij + A_ji − G_ij)
// Buffers    h [N, N] f32 (fast) or f64 (accurate), r [N, N] f32, of student and teacher; sums_a [groups, N, N] f32,
//            vertex first; sums_g [splits, N, N] f32, the tiles (a ≤ b) only.
// Passes     `rkd_angle` in f32 by a sum of products; `rkd_angle_accurate`, which returns at once unless the scalars
//            ask for it, with h as a pair of f32. rkd_angle_coefficients.cu adds up the slots.
// Grid       (pairs of groups A ≤ B, splits of the vertices). A group is N / groups rows in tiles of 64; a block runs
//            over its tiles a of A and b of B with a ≤ b.
// Block      tile of 64 ends i by 64 ends k, every unordered pair {i, k} once; for each vertex j all of the tile:
//
//                        k: 4 (l % 8) .. +4 and 32 + 4 (l % 8) .. +4
//                      +------+------+-- ... --+------+          l: lane
//            warp 0    | l=0  |  1   |         |  7   | R rows
//            i: 4 R    | l=8  |  9   |         |  15  |          fast:     4 warps, R = 4, 32 pairs a thread
//            rows a    | l=16 |      |         |  23  |          accurate: 8 warps, R = 2, 16 pairs a thread
//            warp      | l=24 |      |         |  31  |
//                      +------+------+-- ... --+------+
//            warp 1    | ...
//
//            h_ik and G_ik of the tile stay in registers for all vertices. Sums over k go across the 8 lanes of a row,
//            sums over i across the 4 lanes of a column and then the warps, each value of a lane's halved with a
//            partner's until every lane has its own (a butterfly that reduces and scatters).
// Shared     fast: 16 KiB for 8 vertices' edges, 10 KiB for sums; accurate: 24 and 18 KiB.
// Registers  at most 224.
// SASS       LDS.128
// Loop       relata_rkd_angle at most 21 x 32; relata_rkd_angle_accurate at most 35 x 16 (an unordered triple)
// Work       fast: 16 FP32 instructions an unordered triple: 3 + 3 for the cosines and their difference, 2 to clamp,
//            2 for the penalty, 6 for the sums. accurate: 31.
// Floor      FP32 issue: 16 · N³/2 / 33.4e12 s on an H200: 4 µs at N = 256, 256 µs at 1024.
// Numerics   The law of cosines loses longest over shortest. The fast path is for spreads of at most 1.75, where
//            it is as good as the definition, and is given up where the mean penalty is below 1e-4: there the
//            difference of the cosines would be mostly rounding. In the accurate path the larger of h_ij and h_kj meets
//            h_ik first, with the low halves of both, which leaves cos an error of 1.5 ulp whatever the spread.
// Order      fixed: vertices in order, lanes by butterfly, warps in order; slots by group and split.
// Reference  src/reference/rkd_angle.rs; docs/maths/rkd.md; Park et al., arXiv 1904.05068.
#include "common/collective.cuh"
#include "common/element.cuh"
#include "common/math.cuh"
#include "common/pair_tile.cuh"
#include "common/rkd.cuh"

namespace {

constexpr unsigned SIDE = 64;
// Vertices whose edges are in shared memory at a time.
constexpr unsigned VERTICES = 8;
// Ends k of a thread.
constexpr unsigned COLUMNS = 8;

struct Arguments {
    const void* h[2];
    const float* r[2];
    float* sums_a;
    float* sums_g;
    double* partials;
    rkd::Scalars* scalars;
    float* value;
    unsigned* counter;
    double value_factor;    // of the mean penalty in the loss
    double penalty_limit;   // the fast path is trusted above
    uint32_t n;
    uint32_t tiles_per_group;
    uint32_t vertices_per_split;
    float delta;
};

// How edges are kept and cosines computed.
struct Fast {
    static constexpr unsigned ROWS = 4;
    static constexpr bool ACCURATE = false;
    // r and a = r h = ½ d.
    static constexpr unsigned PARTS = 2;
    // h_ik as it lies in registers.
    struct Edge {
        float h;
    };

    DEVICE static Edge edge(const void* h, uint64_t at, double) { return {static_cast<const float*>(h)[at]}; }
    DEVICE static void parts(const void* h, const float* r, uint64_t at, double, float (&to)[PARTS]) {
        to[0] = r[at];
        to[1] = r[at] * static_cast<const float*>(h)[at];
    }
    // cos − other: r_i (a_k − r_k h_ik) + r_k a_i − other
    DEVICE static float cosine_less(const float (&i)[PARTS], const float (&k)[PARTS], Edge ik, float other) {
        return fmaf(i[0], fmaf(-k[0], ik.h, k[1]), fmaf(k[0], i[1], -other));
    }
};

struct Accurate {
    static constexpr unsigned ROWS = 2;
    static constexpr bool ACCURATE = true;
    // r, and h in two halves.
    static constexpr unsigned PARTS = 3;
    struct Edge {
        float high, low;
    };

    DEVICE static Edge edge(const void* h, uint64_t at, double unit) {
        const double scaled = static_cast<const double*>(h)[at] * unit * unit;
        const float high = static_cast<float>(scaled);
        return {high, static_cast<float>(scaled - high)};
    }
    DEVICE static void parts(const void* h, const float* r, uint64_t at, double unit, float (&to)[PARTS]) {
        const Edge e = edge(h, at, unit);
        to[0] = static_cast<float>(r[at] / unit);
        to[1] = e.high;
        to[2] = e.low;
    }
    DEVICE static float cosine_less(const float (&i)[PARTS], const float (&k)[PARTS], Edge ik, float other) {
        const float large = fmaxf(i[1], k[1]), small = fminf(i[1], k[1]);
        // The low half of the smaller one is too small to matter; it costs less than to leave it out.
        const float between = (large - ik.high) + ((i[2] + k[2]) - ik.low);
        return fmaf(i[0] * k[0], between + small, -other);
    }
};

template <typename Path>
struct Triples {
    static constexpr unsigned ROWS = Path::ROWS, PARTS = Path::PARTS;
    static constexpr unsigned WARPS = SIDE / (4 * ROWS), THREADS = WARPS * WARP;
    // Edges in shared memory: [vertex][part of the student's, then of the teacher's][end].
    static constexpr unsigned EDGES = VERTICES * 2 * PARTS * SIDE;

    const Arguments& arguments;
    float* ends_i;
    float* ends_k;
    float* sums_i;  // [vertex][i]
    float* sums_k;  // [warp][vertex][k]
    // Kept here for want of registers: the penalty of each thread over all tiles, and which tiles a and b it is at.
    double* penalties;
    uint32_t* at;
    double unit[2];

    DEVICE unsigned row(unsigned p) const { return warp_index() * 4 * ROWS + lane_index() / 8 * ROWS + p; }
    DEVICE unsigned column(unsigned q) const { return q / 4 * 32 + lane_index() % 8 * 4 + q % 4; }

    // The edges from the vertices `j` .. to the ends of tile `tile`; 0 beyond the matrix and `stop`.
    DEVICE void stage(float* shared, uint32_t tile, uint32_t j, uint32_t stop) const {
        const uint32_t n = arguments.n;
        // One at a time: the tile already takes most registers.
        UNROLL_BY(1)
        for (unsigned e = threadIdx.x; e < VERTICES * SIDE; e += THREADS) {
            const unsigned vertex = e / SIDE, end = e % SIDE;
            const bool inside = j + vertex < stop && tile * SIDE + end < n;
            const uint64_t edge = static_cast<uint64_t>(j + vertex) * n + tile * SIDE + end;
            UNROLL
            for (unsigned which = 0; which < 2; which++) {
                float parts[PARTS] = {};
                if (inside) Path::parts(arguments.h[which], arguments.r[which], edge, unit[which], parts);
                UNROLL
                for (unsigned part = 0; part < PARTS; part++)
                    shared[((vertex * 2 + which) * PARTS + part) * SIDE + end] = parts[part];
            }
        }
    }

    // All parts of the edges to COUNT ends that lie side by side.
    template <unsigned COUNT>
    DEVICE static void load_edges(const float* from, float (&to)[COUNT][PARTS]) {
        UNROLL
        for (unsigned part = 0; part < PARTS; part++) {
            float values[COUNT];
            pair_tile::load_side_by_side(from + part * SIDE, values);
            UNROLL
            for (unsigned i = 0; i < COUNT; i++) to[i][part] = values[i];
        }
    }

    // One vertex and this thread's pairs of ends. Adds the penalty to `penalty`, w r r to `g`.
    DEVICE void vertex(unsigned v, const typename Path::Edge (&x)[ROWS][COLUMNS],
                       const typename Path::Edge (&y)[ROWS][COLUMNS], float (&g)[ROWS][COLUMNS], float& penalty) const {
        const float* edges_i = ends_i + v * 2 * PARTS * SIDE;
        const float* edges_k = ends_k + v * 2 * PARTS * SIDE;
        float xi[ROWS][PARTS], yi[ROWS][PARTS];
        load_edges(edges_i + row(0), xi);
        load_edges(edges_i + PARTS * SIDE + row(0), yi);
        // Σ w r over the other ends, and Σ w cos.
        float reach_i[ROWS] = {}, along_i[ROWS] = {}, sums_of_k[COLUMNS];
        const float delta = arguments.delta;
        // Half of the columns at a time: registers are what there is least of.
        UNROLL
        for (unsigned half = 0; half < COLUMNS; half += 4) {
            float xk[4][PARTS], yk[4][PARTS], reach_k[4] = {}, along_k[4] = {};
            load_edges(edges_k + column(half), xk);
            load_edges(edges_k + PARTS * SIDE + column(half), yk);
            UNROLL
            for (unsigned p = 0; p < ROWS; p++) {
                UNROLL
                for (unsigned q = 0; q < 4; q++) {
                    const float cosine = Path::cosine_less(xi[p], xk[q], x[p][half + q], 0.0f);
                    // The teacher's less the student's, for the sake of one instruction.
                    const float e = Path::cosine_less(yi[p], yk[q], y[p][half + q], cosine);
                    const float w = fminf(fmaxf(e, -delta), delta);
                    penalty = fmaf(w, fmaf(-0.5f, w, e), penalty);
                    const float reach = w * xk[q][0];
                    g[p][half + q] = fmaf(reach, xi[p][0], g[p][half + q]);
                    reach_i[p] += reach;
                    reach_k[q] = fmaf(w, xi[p][0], reach_k[q]);
                    along_i[p] = fmaf(w, cosine, along_i[p]);
                    along_k[q] = fmaf(w, cosine, along_k[q]);
                }
            }
            // r_k (Σ w r_i − r_k Σ w cos), with the sign that w has here.
            UNROLL
            for (unsigned q = 0; q < 4; q++) sums_of_k[half + q] = xk[q][0] * fmaf(xk[q][0], along_k[q], -reach_k[q]);
        }
        UNROLL
        for (unsigned p = 0; p < ROWS; p++) reach_i[p] = xi[p][0] * fmaf(xi[p][0], along_i[p], -reach_i[p]);
        scatter_rows(v, reach_i);
        scatter_columns(v, sums_of_k);
    }

    // Half of what this lane has goes to the partner, half of the partner's comes.
    template <unsigned COUNT>
    DEVICE void halve(float (&values)[COUNT], unsigned count, unsigned mask) const {
        const bool upper = (lane_index() & mask) != 0;
        UNROLL
        for (unsigned i = 0; i < COUNT / 2; i++) {
            if (i < count / 2) {
                const float kept = upper ? values[count / 2 + i] : values[i];
                const float given = upper ? values[i] : values[count / 2 + i];
                values[i] = kept + shuffle_xor(given, mask);
            }
        }
    }

    // Sums over the 8 lanes of a row.
    DEVICE void scatter_rows(unsigned v, float (&values)[ROWS]) const {
        const unsigned lane = lane_index();
        unsigned index = 0;
        if constexpr (ROWS == 4) {
            halve(values, 4, 4);
            halve(values, 2, 2);
            index = (lane & 4) / 2 + (lane & 2) / 2;
            values[0] += shuffle_xor(values[0], 1);
            if (lane % 2 == 0) sums_i[v * SIDE + row(index)] = values[0];
        } else {
            halve(values, 2, 4);
            index = (lane & 4) / 4;
            values[0] += shuffle_xor(values[0], 2);
            values[0] += shuffle_xor(values[0], 1);
            if (lane % 4 == 0) sums_i[v * SIDE + row(index)] = values[0];
        }
    }

    // Sums over the 4 lanes of a column.
    DEVICE void scatter_columns(unsigned v, float (&values)[COLUMNS]) const {
        const unsigned lane = lane_index();
        halve(values, 8, 16);
        halve(values, 4, 8);
        const unsigned index = (lane & 16) / 4 + (lane & 8) / 4;
        float* to = sums_k + (warp_index() * VERTICES + v) * SIDE;
        to[column(index)] = values[0];
        to[column(index + 1)] = values[1];
    }

    // What has been summed over the ends of `group`, for the vertices `j` .., goes to that group's slot, or is added to
    // what this block put there: no other writes to these rows of it.
    DEVICE void store(uint32_t group, bool add, uint32_t tile, uint32_t j, uint32_t stop, const float* sums, unsigned parts) const {
        const uint32_t n = arguments.n;
        float* slot = arguments.sums_a + static_cast<uint64_t>(group) * n * n;
        UNROLL_BY(1)
        for (unsigned e = threadIdx.x; e < VERTICES * SIDE; e += THREADS) {
            const unsigned vertex = e / SIDE, end = e % SIDE;
            if (j + vertex >= stop || tile * SIDE + end >= n) continue;
            float sum = sums[e];
            for (unsigned part = 1; part < parts; part++) sum += sums[part * VERTICES * SIDE + e];
            float* to = slot + static_cast<uint64_t>(j + vertex) * n + tile * SIDE + end;
            *to = add ? *to + sum : sum;
        }
    }

    // Whether sums over the ends of b's group for the rows of tile a have been stored by this block before; and the
    // other way round.
    DEVICE bool stored_i() const {
        const uint32_t each = arguments.tiles_per_group, a = at[0], b = at[1];
        return b % each != 0 || (a % each != 0 && a / each == b / each);
    }
    DEVICE bool stored_k() const { return at[0] % arguments.tiles_per_group != 0; }

    // Tiles a ≤ b and the vertices of this block.
    DEVICE void tile() const {
        const uint32_t n = arguments.n;
        const uint32_t first = blockIdx.y * arguments.vertices_per_split;
        const uint32_t stop = first + arguments.vertices_per_split < n ? first + arguments.vertices_per_split : n;
        typename Path::Edge x[ROWS][COLUMNS], y[ROWS][COLUMNS];
        UNROLL
        for (unsigned p = 0; p < ROWS; p++) {
            UNROLL
            for (unsigned q = 0; q < COLUMNS; q++) {
                const uint32_t i = at[0] * SIDE + row(p), k = at[1] * SIDE + column(q);
                const uint64_t edge = static_cast<uint64_t>(i) * n + k;
                const bool inside = i < n && k < n;
                x[p][q] = inside ? Path::edge(arguments.h[0], edge, unit[0]) : typename Path::Edge{};
                y[p][q] = inside ? Path::edge(arguments.h[1], edge, unit[1]) : typename Path::Edge{};
            }
        }
        float g[ROWS][COLUMNS] = {};
        for (uint32_t j = first; j < stop; j += VERTICES) {
            stage(ends_i, at[0], j, stop);
            stage(ends_k, at[1], j, stop);
            block_barrier();
            // Few enough terms that f32 is as good as exact.
            float few = 0;
            UNROLL_BY(1)
            for (unsigned v = 0; v < VERTICES; v++) vertex(v, x, y, g, few);
            // All of a tile on the diagonal is counted; elsewhere {i, k} stands for (i, k) and (k, i).
            penalties[threadIdx.x] += at[0] == at[1] ? few : 2 * few;
            block_barrier();
            const uint32_t each = arguments.tiles_per_group;
            store(at[1] / each, stored_i(), at[0], j, stop, sums_i, 1);
            if (at[0] != at[1]) store(at[0] / each, stored_k(), at[1], j, stop, sums_k, WARPS);
        }
        float* to = arguments.sums_g + static_cast<uint64_t>(blockIdx.y) * n * n;
        UNROLL
        for (unsigned p = 0; p < ROWS; p++) {
            UNROLL
            for (unsigned q = 0; q < COLUMNS; q++) {
                const uint32_t i = at[0] * SIDE + row(p), k = at[1] * SIDE + column(q);
                if (i < n && k < n) to[static_cast<uint64_t>(i) * n + k] = -g[p][q];
            }
        }
    }

    DEVICE void run() {
        rkd::Scalars& scalars = *arguments.scalars;
        unit[0] = scalars.unit[0];
        unit[1] = scalars.unit[1];
        const auto [group_a, group_b] = pair_tile::pair_of(blockIdx.x);
        const uint32_t n = arguments.n, tiles = (n + SIDE - 1) / SIDE, each = arguments.tiles_per_group;
        penalties[threadIdx.x] = 0;
        for (uint32_t pair = 0; pair < each * each; pair++) {
            const uint32_t a = group_a * each + pair / each, b = group_b * each + pair % each;
            if (a > b || b >= tiles) continue;
            block_barrier();
            if (threadIdx.x == 0) {
                at[0] = a;
                at[1] = b;
            }
            block_barrier();
            tile();
        }
        const double penalty = block_reduce<THREADS>(penalties[threadIdx.x], Sum());
        if (threadIdx.x == 0) arguments.partials[blockIdx.y * gridDim.x + blockIdx.x] = penalty;
        if (!is_last_block(arguments.counter)) return;
        const double all = block_sum_of<THREADS>(arguments.partials, static_cast<uint64_t>(gridDim.x) * gridDim.y);
        if (threadIdx.x == 0) {
            const double mean = all / n / n / n;
            scalars.angle = mean;
            // Also where it is NaN: then it is the accurate path that says so.
            if (!Path::ACCURATE && !(mean >= arguments.penalty_limit)) scalars.accurate = 1;
            arguments.value[0] = static_cast<float>(arguments.value_factor * mean + scalars.poison);
        }
    }
};

template <typename Path>
DEVICE void rkd_angle(const Arguments& arguments) {
    using Block = Triples<Path>;
    if ((arguments.scalars->accurate != 0) != Path::ACCURATE) return;
    SHARED_ARRAY(float, ends_i, Block::EDGES);
    SHARED_ARRAY(float, ends_k, Block::EDGES);
    SHARED_ARRAY(float, sums_i, VERTICES * SIDE);
    SHARED_ARRAY(float, sums_k, Block::WARPS * VERTICES * SIDE);
    SHARED_ARRAY(double, penalties, Block::THREADS);
    SHARED_ARRAY(uint32_t, at, 2);
    Block{arguments, ends_i, ends_k, sums_i, sums_k, penalties, at, {}}.run();
}

}  // namespace

EXPORT_KERNEL(relata_rkd_angle, Triples<Fast>::THREADS, 2, Arguments, rkd_angle<Fast>);
EXPORT_KERNEL(relata_rkd_angle_accurate, Triples<Accurate>::THREADS, 1, Arguments, rkd_angle<Accurate>);
