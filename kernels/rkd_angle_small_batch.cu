// Computes   What rkd_angle_accurate does (see rkd_angle.cu), of so few rows that groups of tiles would leave most of a GPU
//            idle: the penalty of all triples, and for each pair of rows the shares of A_ik + A_ki − G_ik.
// Buffers    h, symmetric tiles f64, r [P, P] f32, of student and teacher, P and the tiles as in common/rkd.cuh; sums,
//            symmetric tiles of 32 x 32 f32 in slots (rkd::Slots, every tile a group); partials [blocks] f64; lengths
//            [2, blocks of the relation]; scalars, which the first block writes. Slots:
//              share                   − G_xy of the share's vertices
//              shares + z              A from a vertex to an end in the same tile of 32 or a later one, the other end in z
//              shares + tiles + z      the same to an end in an earlier one: the tile lies across; none on the diagonal
//            Of a tile on the diagonal it is halves, S_ik + S_ki.
// Passes     one launch, after rkd_relation_small_batch, from whose partials each block finds the unit of length for itself;
//            rkd_coefficients adds up the slots.
// Grid       pairs of tiles x ≤ y of 32 rows, times shares of the vertices. Nobody else writes what a block writes.
// Block      256 threads: four vertices j at a time, each the matter of 64 threads, which have 32 ends i of x by 32 ends k of
//            y: a thread 4 x 4 of them.
//
//                     k: 0 .. 4   4 .. 8   ...                 s = t % 64; vertex j0 + t / 64
//                    +---------+---------+--
//            i: 0..4 | s = 0   |  1      |  ...  7
//               4..8 | 8       |  9      |
//                    | ...
//
//            h_ik lies in registers, as does G_ik until the four groups' are added up in the end. Eight vertices' edges are
//            in shared memory at a time, the next eight's on their way in registers.
// Shared     dynamic, 57 KiB: twice 12 KiB for 8 vertices' edges, 17 KiB for sums, 16 KiB for h and then for G.
// Registers  at most 192: beside a block there is room for one of the coefficients', or of the relation's, with 64 (decision 15).
// Resident   relata_rkd_angle_small_batch 1 of 256 threads and 58368 bytes
// SASS       LDG.E.128, LDS.128, STS.128, STG.E.128
// Loop       relata_rkd_angle_small_batch at most 29.5 x 16 (an unordered triple)
// Work       27 FP32 instructions an unordered triple; a tile of h, and edges to its ends from the share's vertices, read by
//            each block.
// Floor      FP32 issue: 27 · N³/2 / 33.4e12 s on an H200, 0.9 µs at N = 128; latency binds below that.
// Numerics   as rkd_angle_accurate.
// Order      fixed: in a block the vertices of a share in order, by fours; slots by share and by tile of the other end.
// Reference  src/reference/rkd_angle.rs; docs/maths/rkd.md; Park et al., arXiv 1904.05068.
#include "common/collective.cuh"
#include "common/element.cuh"
#include "common/pair_tile.cuh"
#include "common/rkd.cuh"
#include "common/triple.cuh"

namespace {

using Path = triple::Accurate;
using triple::ROWS;

// Ends of a tile. Mirrored in src/gpu/rkd/few.rs.
constexpr unsigned SIDE = 32, ELEMENTS = SIDE * SIDE;
constexpr unsigned THREADS = 256;
// Threads that have a vertex, and vertices at a time.
constexpr unsigned EACH = 64, VERTICES = THREADS / EACH;
// Vertices whose edges are in shared memory at a time.
constexpr unsigned STAGE = 2 * VERTICES;
constexpr unsigned PARTS = Path::PARTS;
// The edges of a vertex: [ends i, ends k][student, teacher][part][end].
constexpr unsigned EDGES = 2 * 2 * PARTS * SIDE, TO_K = EDGES / 2, BUFFER = STAGE * EDGES;
// What threads have summed for a vertex: over their columns, [which columns][i], and over their rows, [which rows][k].
constexpr unsigned OF_ROW = SIDE / 4, ROW_PITCH = SIDE + 4, SUMS_K = OF_ROW * ROW_PITCH, SUMS = SUMS_K + SIDE / ROWS * SIDE;
// h_ik: [student, teacher][high, low][i][k]; then G of each group of threads.
constexpr unsigned TILE = 4 * ELEMENTS;
// Mirrored in src/gpu/rkd/few.rs.
constexpr unsigned SHARED = 2 * BUFFER + STAGE * SUMS + TILE;
static_assert(SHARED == 14592, "SHARED in src/gpu/rkd/few.rs");

struct Arguments {
    const double* h[2];
    const float* r[2];
    float* sums;
    double* partials;
    const rkd::Lengths* lengths;  // [2, length_count]
    rkd::Scalars* scalars;
    uint32_t n;
    uint32_t length_count;
    uint32_t shares;
    uint32_t vertices_per_share;  // a multiple of VERTICES
    float delta;
    uint32_t padding;
};

using Four = triple::Four<Path>;

struct Block {
    const Arguments& arguments;
    float* edges;
    float* sums;
    float* tile;
    // Of ends i and of ends k.
    uint32_t tile_i, tile_k;
    triple::Unit student = {}, teacher = {};

    // Which edges this thread brings: of student or teacher, to ends i or k; of which four vertices, and which of the
    // fours of edges between these and the ends.
    DEVICE static unsigned to_k() { return threadIdx.x / 128; }
    DEVICE static unsigned of_teacher() { return threadIdx.x / 64 % 2; }
    DEVICE static unsigned vertices() { return threadIdx.x / 32 % 2 * VERTICES; }
    DEVICE uint32_t ends() const { return to_k() ? tile_k : tile_i; }
    // Whether the edges from the vertices at `j` lie along the rows of their tile of 64.
    DEVICE bool along(uint32_t j) const { return j / rkd::TILE <= ends() * SIDE / rkd::TILE; }

    DEVICE Four fetch(uint32_t j) const {
        const uint32_t pitch = rkd::padded(arguments.n), first = ends() * SIDE, lane = lane_index();
        Four four = {};
        j += vertices();
        if (j >= pitch) return four;
        const double* h = arguments.h[of_teacher()];
        const float* r = arguments.r[of_teacher()];
        const uint32_t v = j / rkd::TILE, e = first / rkd::TILE;
        if (along(j)) {
            const uint32_t vertex = j + lane / 8, end = first + lane % 8 * 4;
            h += rkd::tile_at(v, e) + vertex % rkd::TILE * rkd::TILE + end % rkd::TILE;
            r += 4 * (vertex * static_cast<uint64_t>(pitch / 4) + end / 4);
        } else {
            const uint32_t end = first + lane;
            h += rkd::tile_at(e, v) + end % rkd::TILE * rkd::TILE + j % rkd::TILE;
            r += 4 * (end * static_cast<uint64_t>(pitch / 4) + j / 4);
        }
        pair_tile::load_side_by_side(h, four.h);
        pair_tile::load_side_by_side(r, four.r);
        return four;
    }

    DEVICE void put(uint32_t j, const Four& four, float* buffer) const {
        float* to = buffer + vertices() * EDGES + to_k() * TO_K + of_teacher() * PARTS * SIDE;
        triple::put_edges<SIDE, EDGES>(four, of_teacher() ? teacher : student, lane_index(), along(j + vertices()), to);
    }

    // h of the pairs of ends: four of the student's and of the teacher's to a thread.
    DEVICE void fetch_tile(double (&h)[2][4]) const {
        const uint32_t i = tile_i * SIDE + threadIdx.x / 8, k = tile_k * SIDE + threadIdx.x % 8 * 4;
        const uint64_t at = rkd::tile_at(i / rkd::TILE, k / rkd::TILE) + i % rkd::TILE * rkd::TILE + k % rkd::TILE;
        UNROLL
        for (unsigned of = 0; of < 2; of++) pair_tile::load_side_by_side(arguments.h[of] + at, h[of]);
    }

    DEVICE void put_tile(const double (&h)[2][4]) const {
        UNROLL
        for (unsigned of = 0; of < 2; of++) {
            Path::Edge e[4];
            UNROLL
            for (unsigned q = 0; q < 4; q++) e[q] = Path::edge(h[of][q], of ? teacher : student);
            float* to = tile + of * 2 * ELEMENTS + threadIdx.x * 4;
            store4(to, e[0].high, e[1].high, e[2].high, e[3].high);
            store4(to + ELEMENTS, e[0].low, e[1].low, e[2].low, e[3].low);
        }
    }

    // This thread's pairs of ends, of the student (0) or the teacher.
    DEVICE void load_pairs(unsigned of, unsigned i, unsigned k, Path::Edge (&to)[ROWS][4]) const {
        UNROLL
        for (unsigned p = 0; p < ROWS; p++) {
            float high[4], low[4];
            const float* from = tile + of * 2 * ELEMENTS + (i + p) * SIDE + k;
            pair_tile::load_side_by_side(from, high);
            pair_tile::load_side_by_side(from + ELEMENTS, low);
            UNROLL
            for (unsigned q = 0; q < 4; q++) to[p][q] = {high[q], low[q]};
        }
    }

    // Where the tile (a ≤ b) of a slot starts.
    DEVICE uint64_t slot(uint32_t index, uint32_t a, uint32_t b) const {
        const uint32_t tiles = (arguments.n + SIDE - 1) / SIDE, on_diagonal = arguments.shares + tiles;
        return static_cast<uint64_t>(rkd::Slots{on_diagonal + tiles, on_diagonal, 1}.before(a, b) + index) * ELEMENTS;
    }

    // Σ over the other ends for the edges from the `count` vertices at `j` to the ends, four of a vertex to a thread; where
    // the other ends are in the same tile, ends i have it all.
    DEVICE void store(uint32_t j, uint32_t count, const float* edges) const {
        const unsigned vertex = threadIdx.x / 16, of_k = threadIdx.x / 8 % 2, end = threadIdx.x % 8 * 4;
        if (vertex >= count || (of_k && tile_i == tile_k)) return;
        const float* from = sums + vertex * SUMS + (of_k ? SUMS_K : 0) + end;
        float sum[4] = {}, r[4];
        UNROLL
        for (unsigned some = 0; some < SIDE / 4; some++) {
            float four[4];
            pair_tile::load_side_by_side(from + some * (of_k ? SIDE : ROW_PITCH), four);
            UNROLL
            for (unsigned q = 0; q < 4; q++) sum[q] += four[q];
        }
        pair_tile::load_side_by_side(edges + vertex * EDGES + of_k * TO_K + end, r);
        UNROLL
        for (unsigned q = 0; q < 4; q++) sum[q] *= r[q];
        const uint32_t of_vertex = (j + vertex) / SIDE, in_tile = (j + vertex) % SIDE;
        const uint32_t ends = of_k ? tile_k : tile_i, other = arguments.shares + (of_k ? tile_i : tile_k);
        if (of_vertex <= ends) {
            float* to = arguments.sums + 4 * ((slot(other, of_vertex, ends) + in_tile * SIDE + end) / 4);
            store4(to, sum[0], sum[1], sum[2], sum[3]);
        } else {
            const uint32_t tiles = (arguments.n + SIDE - 1) / SIDE;
            float* to = arguments.sums + slot(other + tiles, ends, of_vertex) + end * SIDE + in_tile;
            UNROLL
            for (unsigned q = 0; q < 4; q++) to[q * SIDE] = sum[q];
        }
    }

    DEVICE void run() {
        const uint32_t share = blockIdx.x % arguments.shares;
        uint32_t j = share * arguments.vertices_per_share;
        const uint32_t stop = j + arguments.vertices_per_share < arguments.n ? j + arguments.vertices_per_share : arguments.n;
        const unsigned group = threadIdx.x / EACH, i = threadIdx.x % EACH / 8 * ROWS, k = threadIdx.x % 8 * 4;
        double h[2][4];
        fetch_tile(h);
        Four next = fetch(j);
        const rkd::Scalars scalars =
            rkd::settle(arguments.lengths, arguments.length_count, arguments.n, arguments.scalars);
        student = triple::unit_of(scalars.unit[0]);
        teacher = triple::unit_of(scalars.unit[1]);
        put_tile(h);
        put(j, next, edges);
        block_barrier();
        Path::Edge x[ROWS][4], y[ROWS][4];
        load_pairs(0, i, k, x);
        load_pairs(1, i, k, y);
        float g[ROWS][4] = {};
        double penalty = 0;
        unsigned buffer = 0;
        for (; j < stop; j += STAGE) {
            const float* const at = edges + buffer;
            const bool more = j + STAGE < stop;
            if (more) next = fetch(j + STAGE);
            // Beyond N all edges are 0, and add nothing.
            const uint32_t count = stop - j < STAGE ? stop - j : STAGE;
            triple::Place place{at + group * EDGES + i, at + group * EDGES + TO_K + k, sums + group * SUMS + k / 4 * ROW_PITCH + i,
                                sums + group * SUMS + SUMS_K + i / ROWS * SIDE + k};
            // Few enough terms that f32 is as good as exact.
            float few = 0;
            UNROLL_BY(1)
            for (unsigned v = 0; v < count; v += VERTICES) {
                triple::vertex<Path, SIDE>(place, x, y, arguments.delta, g, few);
                place.next(VERTICES * EDGES, VERTICES * SUMS);
            }
            penalty += few;
            if (more) put(j + STAGE, next, edges + (BUFFER - buffer));
            block_barrier();
            store(j, count, at);
            buffer = BUFFER - buffer;
            block_barrier();
        }
        // −G, by the sign that w has here; half of it where the two halves of a tile are added up in the end.
        UNROLL
        for (unsigned p = 0; p < ROWS; p++)
            store4(tile + group * ELEMENTS + (i + p) * SIDE + k, g[p][0], g[p][1], g[p][2], g[p][3]);
        block_barrier();
        float all[4] = {};
        UNROLL
        for (unsigned of = 0; of < VERTICES; of++) {
            float some[4];
            pair_tile::load_side_by_side(tile + of * ELEMENTS + threadIdx.x * 4, some);
            UNROLL
            for (unsigned q = 0; q < 4; q++) all[q] += some[q];
        }
        const float half = tile_i == tile_k ? 0.5f : 1.0f;
        float* to = arguments.sums + 4 * (slot(share, tile_i, tile_k) / 4 + threadIdx.x);
        store4(to, half * all[0], half * all[1], half * all[2], half * all[3]);
        penalty = block_reduce<THREADS>(penalty, Sum());
        // All of a tile on the diagonal is counted; elsewhere {i, k} stands for (i, k) and (k, i).
        if (threadIdx.x == 0) arguments.partials[blockIdx.x] = tile_i == tile_k ? penalty : 2 * penalty;
    }
};

DEVICE void rkd_angle_small_batch(const Arguments& arguments) {
    DYNAMIC_SHARED(float, shared);
    const auto [x, y] = pair_tile::pair_of(blockIdx.x / arguments.shares);
    float* const sums = shared + 2 * BUFFER;
    Block{arguments, shared, sums, sums + STAGE * SUMS, x, y}.run();
}

}  // namespace

EXPORT_KERNEL_REGISTERS(relata_rkd_angle_small_batch, THREADS, 192, Arguments, rkd_angle_small_batch);
