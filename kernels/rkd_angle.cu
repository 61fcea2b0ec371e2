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
// Block      tile of 64 ends i by 64 ends k, every unordered pair {i, k} once; for each vertex j all of the tile. A thread
//            has 4 rows and, in groups of 4, the columns 4 (l % 8) .. + 4 of each 32 that are its warp's:
//
//                     k: 0 .. 32     32 .. 64                     0 .. 32        32 .. 64           l: lane, l / 8 → row
//                    +-------------+-----------+                +-------------+-----------+
//            i: 16   | warp 0, 4 x 8 a thread  |           16   | warp 0, 4x4 | warp 1    |
//                    +-------------------------+                +-------------+-----------+
//            16      | warp 1                  |           16   | warp 2      | warp 3    |
//                    | ...              (fast) |                | ...         |(accurate) |
//
//            h_ik and G_ik of the tile stay in registers for all vertices. Of the sums over k a thread has those over
//            its own columns, of those over i those over its rows: they go to shared memory as they are, and are put
//            together for 4 vertices at a time.
// Shared     fast: 8 KiB for 4 vertices' edges, 25 KiB for sums; accurate: 12 and 33 KiB.
// Registers  at most 224.
// SASS       LDS.128, STS.128
// Loop       relata_rkd_angle at most 17.5 x 32; relata_rkd_angle_accurate at most 29.5 x 16 (an unordered triple)
// Work       fast: 16 FP32 instructions an unordered triple: 3 + 3 for the cosines and their difference, 2 to clamp,
//            2 for the penalty, 6 for the sums. accurate: 27.
// Floor      FP32 issue: 16 · N³/2 / 33.4e12 s on an H200: 4 µs at N = 256, 256 µs at 1024.
// Numerics   The law of cosines loses longest over shortest. The fast path is for spreads of at most 1.75, where
//            it is as good as the definition, and is given up where the mean penalty is below 1e-4: there the
//            difference of the cosines would be mostly rounding. In the accurate path the larger of h_ij and h_kj meets
//            h_ik first, with the low halves of both, which leaves cos an error of 1.5 ulp whatever the spread.
// Order      fixed: vertices in order, threads by place in the tile; slots by group and split.
// Reference  src/reference/rkd_angle.rs; docs/maths/rkd.md; Park et al., arXiv 1904.05068.
#include "common/collective.cuh"
#include "common/element.cuh"
#include "common/math.cuh"
#include "common/pair_tile.cuh"
#include "common/rkd.cuh"

namespace {

constexpr unsigned SIDE = 64;
// Vertices whose edges are in shared memory at a time.
constexpr unsigned VERTICES = 4;
// Ends i of a thread.
constexpr unsigned ROWS = 4;

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
    // Ends k of a thread.
    static constexpr unsigned COLUMNS = 8;
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
    // w r_k to the sum of end i, w r_i r_k to that of the edge between the ends.
    DEVICE static void add(float w, float r_i, float r_k, float& g, float& reach) {
        const float product = w * r_k;
        g = fmaf(product, r_i, g);
        reach += product;
    }
};

struct Accurate {
    static constexpr unsigned COLUMNS = 4;
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
    // The cosine has formed r_i r_k already.
    DEVICE static void add(float w, float r_i, float r_k, float& g, float& reach) {
        g = fmaf(w, r_i * r_k, g);
        reach = fmaf(w, r_k, reach);
    }
};

template <typename Path>
struct Triples {
    static constexpr unsigned COLUMNS = Path::COLUMNS, PARTS = Path::PARTS;
    // Warps side by side, and in all.
    static constexpr unsigned ACROSS = 8 / COLUMNS, WARPS = 4 * ACROSS, THREADS = WARPS * WARP;
    // What is in shared memory for a vertex. The edges to ends i and to ends k: [part of the student's, then of the
    // teacher's][end]. What threads have summed for an end i, over their columns: [which columns][i], and for an end k:
    // [which rows][k]. The pitch keeps the lanes of a row off each other's banks.
    static constexpr unsigned EDGES = 2 * PARTS * SIDE, PITCH = SIDE + 4;
    static constexpr unsigned OF_ROW = 8 * ACROSS, OF_COLUMN = SIDE / ROWS;
    static constexpr unsigned TO_K = EDGES, SUMS_I = 2 * EDGES, SUMS_K = SUMS_I + OF_ROW * PITCH;
    static constexpr unsigned RECORD = SUMS_K + OF_COLUMN * SIDE;

    const Arguments& arguments;
    float* records;  // [vertex][RECORD]
    // Kept here for want of registers: the penalty of each thread over all tiles, and which tiles a and b it is at.
    double* penalties;
    uint32_t* at;
    double unit[2];

    DEVICE unsigned row(unsigned p) const { return warp_index() / ACROSS * 16 + lane_index() / 8 * ROWS + p; }
    DEVICE unsigned column(unsigned q) const {
        return (warp_index() % ACROSS + q / 4) * 32 + lane_index() % 8 * 4 + q % 4;
    }

    // The edges from the vertices `j` .. to the ends of tile `tile`; 0 beyond the matrix and `stop`.
    DEVICE void stage(unsigned part_of_record, uint32_t tile, uint32_t j, uint32_t stop) const {
        const uint32_t n = arguments.n;
        // One at a time: the tile already takes most registers.
        UNROLL_BY(1)
        for (unsigned e = threadIdx.x; e < VERTICES * SIDE; e += THREADS) {
            const unsigned vertex = e / SIDE, end = e % SIDE;
            const bool inside = j + vertex < stop && tile * SIDE + end < n;
            const uint64_t edge = static_cast<uint64_t>(j + vertex) * n + tile * SIDE + end;
            float* to = records + vertex * RECORD + part_of_record + end;
            UNROLL
            for (unsigned which = 0; which < 2; which++) {
                float parts[PARTS] = {};
                if (inside) Path::parts(arguments.h[which], arguments.r[which], edge, unit[which], parts);
                UNROLL
                for (unsigned part = 0; part < PARTS; part++) to[(which * PARTS + part) * SIDE] = parts[part];
            }
        }
    }

    // All parts of the edges to 4 ends that lie side by side.
    DEVICE static void load_edges(const float* from, float (&to)[4][PARTS]) {
        UNROLL
        for (unsigned part = 0; part < PARTS; part++) {
            float values[4];
            pair_tile::load_side_by_side(from + part * SIDE, values);
            UNROLL
            for (unsigned i = 0; i < 4; i++) to[i][part] = values[i];
        }
    }

    // Where in a vertex's record this thread reads and writes: kept as addresses that move on from vertex to vertex, or
    // the compiler works each of them out again for every vertex.
    struct Place {
        const float* edges_i;
        const float* edges_k;
        float* sums_i;
        float* sums_k;

        DEVICE void next() {
            edges_i += RECORD;
            edges_k += RECORD;
            sums_i += RECORD;
            sums_k += RECORD;
        }
    };

    DEVICE Place first_place() const {
        const unsigned i = row(0), k = column(0);
        return {records + i, records + TO_K + k, records + SUMS_I + k / 4 % OF_ROW * PITCH + i,
                records + SUMS_K + i / ROWS * SIDE + k};
    }

    // One vertex and this thread's pairs of ends. Adds the penalty to `penalty`, w r r to `g`.
    DEVICE void vertex(const Place& place, const typename Path::Edge (&x)[ROWS][COLUMNS],
                       const typename Path::Edge (&y)[ROWS][COLUMNS], float (&g)[ROWS][COLUMNS], float& penalty) const {
        float xi[ROWS][PARTS], yi[ROWS][PARTS];
        load_edges(place.edges_i, xi);
        load_edges(place.edges_i + PARTS * SIDE, yi);
        // Σ w r over the other ends, and Σ w cos.
        float reach_i[ROWS] = {}, along_i[ROWS] = {};
        const float delta = arguments.delta;
        // 4 columns at a time: registers are what there is least of.
        UNROLL
        for (unsigned q0 = 0; q0 < COLUMNS; q0 += 4) {
            float xk[4][PARTS], yk[4][PARTS], reach_k[4] = {}, along_k[4] = {};
            load_edges(place.edges_k + q0 * 8, xk);
            load_edges(place.edges_k + PARTS * SIDE + q0 * 8, yk);
            UNROLL
            for (unsigned p = 0; p < ROWS; p++) {
                UNROLL
                for (unsigned q = 0; q < 4; q++) {
                    const float cosine = Path::cosine_less(xi[p], xk[q], x[p][q0 + q], 0.0f);
                    // The teacher's less the student's, for the sake of one instruction.
                    const float e = Path::cosine_less(yi[p], yk[q], y[p][q0 + q], cosine);
                    const float w = fminf(fmaxf(e, -delta), delta);
                    penalty = fmaf(w, fmaf(-0.5f, w, e), penalty);
                    Path::add(w, xi[p][0], xk[q][0], g[p][q0 + q], reach_i[p]);
                    reach_k[q] = fmaf(w, xi[p][0], reach_k[q]);
                    along_i[p] = fmaf(w, cosine, along_i[p]);
                    along_k[q] = fmaf(w, cosine, along_k[q]);
                }
            }
            // Σ w r_i − r_k Σ w cos, with the sign that w has here. `store` multiplies by r_k, once for all threads.
            UNROLL
            for (unsigned q = 0; q < 4; q++) along_k[q] = fmaf(xk[q][0], along_k[q], -reach_k[q]);
            store4(place.sums_k + q0 * 8, along_k[0], along_k[1], along_k[2], along_k[3]);
        }
        UNROLL
        for (unsigned p = 0; p < ROWS; p++) along_i[p] = fmaf(xi[p][0], along_i[p], -reach_i[p]);
        store4(place.sums_i, along_i[0], along_i[1], along_i[2], along_i[3]);
    }

    // What has been summed over the ends of `group`, for the vertices `j` .., goes to that group's slot, or is added to
    // what this block put there: no other writes to these rows of it.
    template <unsigned SUMS, unsigned COUNT, unsigned PITCH_OF>
    DEVICE void store(uint32_t group, bool add, uint32_t tile, uint32_t j, uint32_t stop, unsigned edges) const {
        const uint32_t n = arguments.n;
        float* slot = arguments.sums_a + static_cast<uint64_t>(group) * n * n;
        UNROLL_BY(1)
        for (unsigned e = threadIdx.x; e < VERTICES * SIDE; e += THREADS) {
            const unsigned vertex = e / SIDE, end = e % SIDE;
            if (j + vertex >= stop || tile * SIDE + end >= n) continue;
            const float* record = records + vertex * RECORD;
            float sum = 0;
            UNROLL
            for (unsigned part = 0; part < COUNT; part++) sum += record[SUMS + part * PITCH_OF + end];
            sum *= record[edges + end];
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
            stage(0, at[0], j, stop);
            stage(TO_K, at[1], j, stop);
            block_barrier();
            Place place = first_place();
            // Few enough terms that f32 is as good as exact.
            float few = 0;
            UNROLL_BY(1)
            for (unsigned v = 0; v < VERTICES; v++) {
                vertex(place, x, y, g, few);
                place.next();
            }
            // All of a tile on the diagonal is counted; elsewhere {i, k} stands for (i, k) and (k, i).
            penalties[threadIdx.x] += at[0] == at[1] ? few : 2 * few;
            block_barrier();
            const uint32_t each = arguments.tiles_per_group;
            store<SUMS_I, OF_ROW, PITCH>(at[1] / each, stored_i(), at[0], j, stop, 0);
            if (at[0] != at[1]) store<SUMS_K, OF_COLUMN, SIDE>(at[0] / each, stored_k(), at[1], j, stop, TO_K);
            // Which reads r among the edges.
            block_barrier();
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
    SHARED_ARRAY(float, records, VERTICES * Block::RECORD);
    SHARED_ARRAY(double, penalties, Block::THREADS);
    SHARED_ARRAY(uint32_t, at, 2);
    Block{arguments, records, penalties, at, {}}.run();
}

}  // namespace

EXPORT_KERNEL(relata_rkd_angle, Triples<Fast>::THREADS, 2, Arguments, rkd_angle<Fast>);
EXPORT_KERNEL(relata_rkd_angle_accurate, Triples<Accurate>::THREADS, 1, Arguments, rkd_angle<Accurate>);
