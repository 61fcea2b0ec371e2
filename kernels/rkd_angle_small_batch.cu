// Computes   What rkd_angle_accurate computes (see rkd_angle.cu), for batches so small that groups
//            of tiles would leave most of a GPU idle: the penalty of all triples, and for each pair
//            of rows its partial sums of A_ik + A_ki − G_ik.
// Buffers    h: symmetric tiles of f64. r: [P, P] f32. Both of student and teacher; common/rkd.cuh
//            defines P and the tiles. sums: symmetric tiles of 32 x 32 f32 in partial buffers
//            (rkd::PartialBuffers, where every tile is a group). partials: [blocks] f64. lengths:
//            [2, blocks of the relation]. scalars: the first block writes them. A tile of sums has
//            these partial buffers:
//              range               − G_xy of the vertices of the range
//              ranges + z          A from a vertex to an end in the same tile of 32 or a later
//                                  one, where the other end is in tile z
//              ranges + tiles + z  the same, to an end in an earlier tile; the vertex is the
//                                  column; there is none of these for a tile on the diagonal
//            In a tile on the diagonal S_ik + S_ki is the sum.
// Passes     One launch, after rkd_relation_small_batch. Each block computes the unit of length for
//            itself from the partials of that launch. rkd_coefficients adds up the partial buffers.
// Grid       Pairs of tiles x ≤ y of 32 rows, times ranges of the vertices. No two blocks write to
//            the same place.
// Block      256 threads. They take four vertices j at a time, 64 threads each. These have 32 ends
//            i of x by 32 ends k of y, 4 x 4 pairs a thread:
//
//                     k: 0 .. 4   4 .. 8   ...                 s = t % 64; vertex j0 + t / 64
//                    +---------+---------+--
//            i: 0..4 | s = 0   |  1      |  ...  7
//               4..8 | 8       |  9      |
//                    | ...
//
//            h_ik stays in registers. So does G_ik, until the four groups' G are added up at the
//            end. The edges of eight vertices are in shared memory at a time. Those of the next
//            eight are in flight, in registers.
// Shared     Dynamic, 57 KiB: twice 12 KiB for the edges of 8 vertices, 17 KiB for sums, 16 KiB for
//            h and then for G.
// Registers  at most 192: this leaves room next to a block for one of the coefficients, or of the
//            relation, with 64 (decision 15).
// Resident   relata_rkd_angle_small_batch 1 of 256 threads and 58368 bytes
// SASS       LDG.E.128, LDS.128, STS.128, STG.E.128
// Loop       relata_rkd_angle_small_batch at most 29.5 x 16 (an unordered triple)
// Work       27 FP32 instructions an unordered triple. Each block reads a tile of h, and the edges
//            from the vertices of its range to the ends of the tile.
// Floor      FP32 issue: 27 · N³/2 / 33.4e12 s on an H200, 0.9 µs at N = 128. Below that size
//            latency dominates.
// Numerics   As rkd_angle_accurate.
// Order      Fixed: in a block the vertices of a range in order, four at a time. Partial buffers by
//            range, then by the tile of the other end.
// Reference  src/reference/rkd_angle.rs; docs/maths/rkd.md; Park et al., arXiv 1904.05068.
#include "common/collective.cuh"
#include "common/element.cuh"
#include "common/pair_tile.cuh"
#include "common/rkd.cuh"
#include "common/triple.cuh"

namespace {

using Path = triple::Accurate;
using triple::ROWS;

// Ends of a tile. Mirrored in src/gpu/tuning.rs.
constexpr unsigned SIDE = 32, ELEMENTS = SIDE * SIDE;
constexpr unsigned THREADS = 256;
// Threads that process one vertex, and vertices at a time.
constexpr unsigned THREADS_PER_VERTEX = 64, VERTICES = THREADS / THREADS_PER_VERTEX;
// The number of vertices whose edges are in shared memory at a time.
constexpr unsigned STAGE = 2 * VERTICES;
constexpr unsigned COMPONENTS = Path::COMPONENTS;
// Shared memory, in floats. The edges of a vertex: [ends i, ends k][student,
// teacher][component][end].
constexpr unsigned EDGES = 2 * 2 * COMPONENTS * SIDE, EDGES_K = EDGES / 2, BUFFER = STAGE * EDGES;
// The threads' sums for a vertex: for the ends i, [thread's columns][i], and for the ends k,
// [thread's rows][k].
constexpr unsigned PARTIALS = SIDE / 4, PITCH_I = SIDE + 4;
constexpr unsigned SUMS_K = PARTIALS * PITCH_I, SUMS = SUMS_K + SIDE / ROWS * SIDE;
// First h_ik, [student, teacher][high, low][i][k]; at the end the G of each group of threads.
constexpr unsigned TILE = 4 * ELEMENTS;
constexpr unsigned SHARED = 2 * BUFFER + STAGE * SUMS + TILE;
static_assert(SHARED * sizeof(float) == 58368, "SHARED in src/gpu/tuning.rs");

struct Arguments {
    const double* h[2];
    const float* r[2];
    float* sums;
    double* partials;
    const rkd::Lengths* lengths;  // [2, length_count]
    rkd::Scalars* scalars;
    uint32_t n;
    uint32_t length_count;
    uint32_t ranges;              // of the vertices
    uint32_t vertices_per_range;  // a multiple of VERTICES
    float delta;
    uint32_t padding;
};
ARGUMENTS(Arguments, h, r, sums, partials, lengths, scalars, n, length_count, ranges,
          vertices_per_range, delta, padding);

using EdgeQuad = triple::EdgeQuad<Path>;

struct Block {
    const Arguments& arguments;
    float* edges;
    float* sums;
    float* tile;
    // Of the ends i and of the ends k.
    uint32_t tile_i, tile_k;
    triple::UnitScale student = {}, teacher = {};

    // The edges that this thread loads: to the ends i or k, of the student or the teacher, from the
    // first or the second four vertices. Its lane is the index of its quad.
    DEVICE static unsigned to_k() { return threadIdx.x / 128; }
    DEVICE static unsigned of_teacher() { return threadIdx.x / 64 % 2; }
    DEVICE static unsigned first_vertex() { return threadIdx.x / 32 % 2 * VERTICES; }
    DEVICE uint32_t ends() const { return to_k() ? tile_k : tile_i; }
    // Whether the vertices at `j` are rows of the tile of 64 that holds their edges. Else they are
    // columns.
    DEVICE bool vertex_is_row(uint32_t j) const {
        return j / rkd::TILE <= ends() * SIDE / rkd::TILE;
    }

    // Loads a quad of edges of the vertices `j` .. `j + STAGE` into registers.
    DEVICE EdgeQuad fetch_edges(uint32_t j) const {
        const uint32_t pitch = rkd::padded(arguments.n), first = ends() * SIDE, lane = lane_index();
        EdgeQuad quad = {};
        j += first_vertex();
        if (j >= pitch) return quad;
        const double* h = arguments.h[of_teacher()];
        const float* r = arguments.r[of_teacher()];
        const uint32_t v = j / rkd::TILE, e = first / rkd::TILE;
        if (vertex_is_row(j)) {
            const uint32_t vertex = j + lane / 8, end = first + lane % 8 * 4;
            h += rkd::tile_at(v, e) + vertex % rkd::TILE * rkd::TILE + end % rkd::TILE;
            r += 4 * (vertex * static_cast<uint64_t>(pitch / 4) + end / 4);
        } else {
            const uint32_t end = first + lane;
            h += rkd::tile_at(e, v) + end % rkd::TILE * rkd::TILE + j % rkd::TILE;
            r += 4 * (end * static_cast<uint64_t>(pitch / 4) + j / 4);
        }
        pair_tile::load_side_by_side(h, quad.h);
        pair_tile::load_side_by_side(r, quad.r);
        return quad;
    }

    // Stores it to shared memory.
    DEVICE void store_edges(uint32_t j, const EdgeQuad& quad, float* buffer) const {
        float* to =
            buffer + first_vertex() * EDGES + to_k() * EDGES_K + of_teacher() * COMPONENTS * SIDE;
        triple::store_edges<SIDE, EDGES>(quad, of_teacher() ? teacher : student, lane_index(),
                                         vertex_is_row(j + first_vertex()), to);
    }

    // Loads h of the pairs of ends: four of the student and four of the teacher for each thread.
    DEVICE void fetch_tile(double (&h)[2][4]) const {
        const uint32_t i = tile_i * SIDE + threadIdx.x / 8, k = tile_k * SIDE + threadIdx.x % 8 * 4;
        const uint64_t at =
            rkd::tile_at(i / rkd::TILE, k / rkd::TILE) + i % rkd::TILE * rkd::TILE + k % rkd::TILE;
        UNROLL
        for (unsigned of = 0; of < 2; of++)
            pair_tile::load_side_by_side(arguments.h[of] + at, h[of]);
    }

    DEVICE void store_tile(const double (&h)[2][4]) const {
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

    // Loads this thread's pairs of ends, of the student (0) or the teacher (1), from shared memory.
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

    // The offset of tile (a ≤ b) in a partial buffer.
    DEVICE uint64_t sums_offset(uint32_t index, uint32_t a, uint32_t b) const {
        const uint32_t tiles = (arguments.n + SIDE - 1) / SIDE,
                       on_diagonal = arguments.ranges + tiles;
        const rkd::PartialBuffers partial_buffers{on_diagonal + tiles, on_diagonal, 1};
        return static_cast<uint64_t>(partial_buffers.count_before(a, b) + index) * ELEMENTS;
    }

    // Reduces the threads' sums of the `count` vertices at `j`, and stores them: A of the edges to
    // the ends, four of one vertex for each thread. If the other ends are in the same tile, the
    // ends i have all of it.
    DEVICE void store_vertex_sums(uint32_t j, uint32_t count, const float* edges) const {
        const unsigned vertex = threadIdx.x / 16, of_k = threadIdx.x / 8 % 2,
                       end = threadIdx.x % 8 * 4;
        if (vertex >= count || (of_k && tile_i == tile_k)) return;
        // Reduce
        const float* from = sums + vertex * SUMS + (of_k ? SUMS_K : 0) + end;
        float sum[4] = {}, r[4];
        UNROLL
        for (unsigned index = 0; index < PARTIALS; index++) {
            float partial[4];
            pair_tile::load_side_by_side(from + index * (of_k ? SIDE : PITCH_I), partial);
            UNROLL
            for (unsigned q = 0; q < 4; q++) sum[q] += partial[q];
        }
        pair_tile::load_side_by_side(edges + vertex * EDGES + of_k * EDGES_K + end, r);
        UNROLL
        for (unsigned q = 0; q < 4; q++) sum[q] *= r[q];
        // Store
        const uint32_t vertex_tile = (j + vertex) / SIDE, in_tile = (j + vertex) % SIDE;
        const uint32_t ends = of_k ? tile_k : tile_i,
                       other = arguments.ranges + (of_k ? tile_i : tile_k);
        if (vertex_tile <= ends) {
            float* to = arguments.sums +
                        4 * ((sums_offset(other, vertex_tile, ends) + in_tile * SIDE + end) / 4);
            store4(to, sum[0], sum[1], sum[2], sum[3]);
        } else {
            const uint32_t tiles = (arguments.n + SIDE - 1) / SIDE;
            float* to = arguments.sums + sums_offset(other + tiles, ends, vertex_tile) +
                        end * SIDE + in_tile;
            UNROLL
            for (unsigned q = 0; q < 4; q++) to[q * SIDE] = sum[q];
        }
    }

    DEVICE void run() {
        const uint32_t range = blockIdx.x % arguments.ranges;
        uint32_t j = range * arguments.vertices_per_range;
        const uint32_t stop = j + arguments.vertices_per_range < arguments.n
                                  ? j + arguments.vertices_per_range
                                  : arguments.n;
        const unsigned group = threadIdx.x / THREADS_PER_VERTEX;
        const unsigned i = threadIdx.x % THREADS_PER_VERTEX / 8 * ROWS, k = threadIdx.x % 8 * 4;

        // Load h of the pairs of ends and the first edges, and meanwhile compute the scalars
        double h[2][4];
        fetch_tile(h);
        EdgeQuad next = fetch_edges(j);
        const rkd::Scalars scalars = rkd::small_batch_scalars(
            arguments.lengths, arguments.length_count, arguments.n, arguments.scalars);
        student = triple::unit_scale(scalars.unit[0]);
        teacher = triple::unit_scale(scalars.unit[1]);
        store_tile(h);
        store_edges(j, next, edges);
        block_barrier();
        Path::Edge x[ROWS][4], y[ROWS][4];
        load_pairs(0, i, k, x);
        load_pairs(1, i, k, y);

        float g[ROWS][4] = {};
        double penalty = 0;
        unsigned buffer = 0;
        for (; j < stop; j += STAGE) {
            const float* const at = edges + buffer;
            // Load the next edges while the present vertices are processed
            const bool more = j + STAGE < stop;
            if (more) next = fetch_edges(j + STAGE);
            // Accumulate. Beyond N all edges are 0, and add nothing.
            const uint32_t count = stop - j < STAGE ? stop - j : STAGE;
            triple::ThreadPointers pointers{at + group * EDGES + i,
                                            at + group * EDGES + EDGES_K + k,
                                            sums + group * SUMS + k / 4 * PITCH_I + i,
                                            sums + group * SUMS + SUMS_K + i / ROWS * SIDE + k};
            // It has so few terms that f32 is as good as exact.
            float partial_sum = 0;
            UNROLL_BY(1)
            for (unsigned v = 0; v < count; v += VERTICES) {
                triple::accumulate_vertex<Path, SIDE>(pointers, x, y, arguments.delta, g,
                                                      partial_sum);
                pointers.advance(VERTICES * EDGES, VERTICES * SUMS);
            }
            penalty += partial_sum;
            if (more) store_edges(j + STAGE, next, edges + (BUFFER - buffer));
            block_barrier();
            // Reduce and store the sums of the edges to the vertices
            store_vertex_sums(j, count, at);
            buffer = BUFFER - buffer;
            block_barrier();
        }

        // Reduce G over the groups of threads
        UNROLL
        for (unsigned p = 0; p < ROWS; p++)
            store4(tile + group * ELEMENTS + (i + p) * SIDE + k, g[p][0], g[p][1], g[p][2],
                   g[p][3]);
        block_barrier();
        float all[4] = {};
        UNROLL
        for (unsigned of = 0; of < VERTICES; of++) {
            float partial[4];
            pair_tile::load_side_by_side(tile + of * ELEMENTS + threadIdx.x * 4, partial);
            UNROLL
            for (unsigned q = 0; q < 4; q++) all[q] += partial[q];
        }
        // Store −G; w has the opposite sign here, so g is stored. A tile on the diagonal gets half
        // of it, because its two halves are added up later.
        const float factor = tile_i == tile_k ? 0.5f : 1.0f;
        float* to = arguments.sums + 4 * (sums_offset(range, tile_i, tile_k) / 4 + threadIdx.x);
        store4(to, factor * all[0], factor * all[1], factor * all[2], factor * all[3]);
        // Reduce the penalty. On the diagonal the tile has both (i, k) and (k, i). Elsewhere {i, k}
        // stands for both.
        penalty = block_reduce<THREADS>(penalty, Sum());
        if (threadIdx.x == 0)
            arguments.partials[blockIdx.x] = tile_i == tile_k ? penalty : 2 * penalty;
    }
};

DEVICE void rkd_angle_small_batch(const Arguments& arguments) {
    DYNAMIC_SHARED(float, shared);
    const auto [x, y] = pair_tile::pair_of(blockIdx.x / arguments.ranges);
    float* const sums = shared + 2 * BUFFER;
    Block{arguments, shared, sums, sums + STAGE * SUMS, x, y}.run();
}

}  // namespace

EXPORT_KERNEL_REGISTERS(relata_rkd_angle_small_batch, THREADS, 192, Arguments,
                        rkd_angle_small_batch);
