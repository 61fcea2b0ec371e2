// Computes   L = 1/N³ Σ_jik huber(cos_jik(X) − cos_jik(Y)) over all triples, and ∂L/∂h of all
//            edges, where h = ½ d².
// Algorithm  With r = 1/d and the vertex at j, the law of cosines gives
//              cos_jik = r_ij r_kj (h_ij + h_kj − h_ik)          w = huber'(cos(X) − cos(Y))
//            and the derivatives are
//              G_ik = Σ_j w r_ij r_kj                            the edge between the ends i and k
//              A_ij = Σ_k w (r_ij r_kj − cos_jik r_ij²)          an edge from end i to vertex j
//              ∂L/∂h_ij = 2/N³ (A_ij + A_ji − G_ij)
//            In pseudo-code, one block does this:
//              groups A ≤ B ≤ C and a part of the vertices = work_of_block(blockIdx)
//              clear this block's partial sums
//              for each pair of tiles x ≤ y from two of the groups:
//                  load h_ik of all ends i in x, k in y into registers; G = 0
//                  for each vertex j of the third group that is in the part, 4 at a time:
//                      load the edges (i, j) and (k, j) into shared memory
//                      for each pair (i, k) of the thread:
//                          cos, w, penalty += huber; G_ik += w r_ij r_kj
//                          sum_wr_i += w r_kj;  sum_wcos_i += w cos;  the same for k
//                      reduce the sums over threads, times r; add A_ij, A_kj to the partial sums
//                  add −G to the partial sums
//              reduce the penalty over the block
//            1. The ends are in the tile and the vertices in the loop, so h_ik and G_ik stay in
//               registers for all vertices.
//            2. A thread takes each unordered pair {i, k} once. Outside the diagonal the penalty
//               counts twice.
//            3. A_ij factors into r_ij (Σ_k w r_kj − r_ij Σ_k w cos). Threads add up the two sums;
//               the factor r_ij is applied once, after the reduction.
//            4. Threads do not reduce their sums across lanes. They store them to shared memory,
//               where the sums of 4 vertices are added up at a time. Pitches keep lanes off each
//               other's banks.
//            5. The edges of the next 4 vertices are in flight, in registers, while these 4 are
//               processed.
//            6. Partial sums need no atomics: the triples of groups A, B, C add to the edges of two
//               groups in a buffer that belongs to the third group and the part. No other block
//               writes there.
//            7. The fast path folds r into h, a = r h = ½ d: cos = r_i (a_k − r_k h_ik) + r_k a_i
//               takes 3 instructions.
//            8. The accurate path stores h as a pair of f32, and first subtracts h_ik from the larger
//               of h_ij and h_kj.
// Buffers    h: symmetric tiles, f32 (fast) or f64 (accurate), of student and teacher. r: [P, P]
//            f32, of student and teacher. sums: symmetric tiles of f32 in partial buffers.
//            common/rkd.cuh defines P, the tiles and the partial buffers. The sums of the edge
//            between rows i and k are S_ik = A_ik + A_ki − G_ik. In a tile on the diagonal S_ik +
//            S_ki is this value.
// Passes     `rkd_angle` works in f32 with a sum of products. `rkd_angle_accurate` has h as a pair
//            of f32, and returns at once unless the scalars ask for it. rkd_coefficients.cu adds up
//            the partial buffers. Small batches use rkd_angle_small_batch.cu.
// Grid       Groups A ≤ B ≤ C of tiles times parts of their vertices. The number of parts depends
//            on the overlap of the groups: all three differ, two are the same, or all are. The
//            arguments say at which block each overlap starts. A block takes all triples with a row
//            in each group and the vertex in any of them. Of the vertices of each group it takes
//            its part. It adds the sums of the edges between two of the groups to the partial
//            buffer of the third group and the part. No other block writes to this partial buffer
//            in these tiles.
// Block      For each pair of tiles x ≤ y of two of the groups, and each vertex j of the third: 64
//            ends i of x by 64 ends k of y. Lane l of a warp has 4 rows, chosen by l / 8, and, in
//            groups of 4, the columns 4 (l % 8) .. + 4 of each 32 columns of its warp:
//
//                     k: 0 .. 32     32 .. 64                     0 .. 32        32 .. 64
//                    +-------------+-----------+                +-------------+-----------+
//            i: 16   | warp 0, 4 x 8 a thread  |           16   | warp 0, 4x4 | warp 1    |
//                    +-------------------------+                +-------------+-----------+
//            16      | warp 1                  |           16   | warp 2      | warp 3    |
//                    | ...              (fast) |                | ...         |(accurate) |
//
// Shared     Dynamic. Fast: 16 KiB for the edges of twice 4 vertices, 25 KiB for sums. Accurate: 24
//            and 33 KiB.
// Registers  at most 248.
// Resident   relata_rkd_angle 2 of 128 threads and 41600 bytes; relata_rkd_angle_accurate 1 of 256
//            threads and 58496 bytes
// SASS       LDG.E.128, LDS.128, STS.128
// Loop       relata_rkd_angle at most 17.5 x 32; relata_rkd_angle_accurate at most 29.5 x 16 (an
//            unordered triple)
// Work       Fast: 16 FP32 instructions an unordered triple: 3 + 3 for the cosines and their
//            difference, 2 to clamp, 2 for the penalty, 6 for the sums. Accurate: 27.
// Floor      FP32 issue: 16 · N³/2 / 33.4e12 s on an H200: 4 µs at N = 256, 256 µs at 1024.
// Numerics   The law of cosines loses accuracy in proportion to the spread, the longest length over
//            the shortest. The fast path is for spreads of at most 1.75, where it is as accurate as
//            the definition. Its result is discarded if the mean penalty is below 1e-4, because the
//            difference of the cosines is then mostly rounding. The accurate path first subtracts
//            h_ik from the larger of h_ij and h_kj, with the low halves of both. This leaves cos an
//            error of 1.5 ulp up to a spread of about 1e7. Beyond 2^54 a pair counts as duplicates
//            (docs/decisions/0008).
// Order      Fixed: vertices in order, and threads' sums by their place in the tile. Within a
//            partial buffer by group, tile and vertex. Partial buffers by third group and part.
// Reference  src/reference/rkd_angle.rs; docs/maths/rkd.md; Park et al., arXiv 1904.05068.
#include "common/collective.cuh"
#include "common/element.cuh"
#include "common/pair_tile.cuh"
#include "common/rkd.cuh"
#include "common/triple.cuh"

namespace {

using triple::ROWS, triple::ThreadPointers, triple::UnitScale;

// Ends of a tile.
constexpr unsigned SIDE = rkd::TILE;
// The number of vertices whose edges and sums are in shared memory at a time.
constexpr unsigned VERTICES = 4;

// The blocks whose three groups overlap in one way: all differ, two are the same, or all are.
struct GroupOverlap {
    uint32_t first_block;
    uint32_t parts;              // of the vertices of a group
    uint32_t vertices_per_part;  // a multiple of VERTICES
};
ARGUMENTS(GroupOverlap, first_block, parts, vertices_per_part);

struct Arguments {
    const void* h[2];
    const float* r[2];
    float* sums;
    double* partials;
    rkd::Scalars* scalars;
    unsigned* counter;
    double penalty_limit;  // below this mean penalty the fast path is not trusted
    uint32_t n;
    uint32_t groups;
    rkd::PartialBuffers partial_buffers;
    GroupOverlap
        overlaps[3];  // all groups differ, two are the same, all are; they start in any order
    float delta;
    uint32_t padding;
};
ARGUMENTS(Arguments, h, r, sums, partials, scalars, counter, penalty_limit, n, groups,
          partial_buffers, overlaps, delta, padding);

// What a block works on: three groups of tiles, in ascending order, and a part of their vertices.
struct BlockWork {
    uint32_t groups[3];
    unsigned overlap;  // 0: all differ, 1: two are the same, 2: all are
    uint32_t part;
};

DEVICE BlockWork work_of_block(uint32_t block, const Arguments& arguments) {
    const uint32_t groups = arguments.groups;
    const auto has = [&](unsigned overlap, uint32_t triples) {
        return block - arguments.overlaps[overlap].first_block <
               triples * arguments.overlaps[overlap].parts;
    };
    const unsigned overlap = has(0, groups * (groups - 1) * (groups - 2) / 6) ? 0
                             : has(1, groups * (groups - 1))                  ? 1
                                                                              : 2;
    block -= arguments.overlaps[overlap].first_block;
    const uint32_t part = block % arguments.overlaps[overlap].parts;
    uint32_t index = block / arguments.overlaps[overlap].parts;
    if (overlap == 0) {
        uint32_t c = 2;
        for (; index >= c * (c - 1) / 2; c++) index -= c * (c - 1) / 2;
        const auto [a, b] = pair_tile::pair_of(index);
        return {{a, b + 1, c}, overlap, part};
    }
    if (overlap == 1) {
        const uint32_t twice = index / (groups - 1), rest = index % (groups - 1);
        return rest < twice ? BlockWork{{rest, twice, twice}, overlap, part}
                            : BlockWork{{twice, twice, rest + 1}, overlap, part};
    }
    return {{index, index, index}, overlap, part};
}

template <typename Path>
struct AngleBlock {
    static constexpr unsigned COLUMNS = Path::COLUMNS, COMPONENTS = Path::COMPONENTS;
    // Warps along the ends k, and in all.
    static constexpr unsigned WARPS_K = 8 / COLUMNS, WARPS = 4 * WARPS_K, THREADS = WARPS * WARP;
    // Shared memory, in floats. The edges of a vertex: [ends i, ends k][student,
    // teacher][component][end]. There are two buffers, each for VERTICES vertices.
    static constexpr unsigned EDGES = 2 * 2 * COMPONENTS * SIDE, EDGES_K = EDGES / 2,
                              BUFFER = VERTICES * EDGES;
    // The threads' sums for a vertex. For the ends i, each summed over the columns of one thread:
    // [thread][i]. For the ends k, each summed over the rows of one thread: [thread][k]. Pitches
    // keep lanes off each other's banks.
    static constexpr unsigned PARTIALS_I = 8 * WARPS_K, PITCH_I = SIDE + 4,
                              PARTIALS_K = SIDE / ROWS;
    static constexpr unsigned SUMS_K = PARTIALS_I * PITCH_I, SUMS = SUMS_K + PARTIALS_K * SIDE + 8;
    static constexpr unsigned SHARED = 2 * BUFFER + VERTICES * SUMS;
    static_assert(SHARED * sizeof(float) == (Path::ACCURATE ? 58496 : 41600),
                  "SHARED in src/gpu/tuning.rs");
    // Quads of edges that a thread loads: 64 quads for each of student and teacher, and of ends i
    // and ends k.
    static constexpr unsigned QUADS = 4 * SIDE / THREADS;

    const Arguments& arguments;
    float* edges;
    float* sums;
    // These two are in shared memory because registers are scarce: each thread's penalty over all
    // tiles, and the position of the block.
    double* penalties;
    struct Position {
        // Of the ends i and the ends k.
        uint32_t tiles[2];
        // Of the vertices.
        uint32_t vertex_group;
        BlockWork work;
        // Offsets of the sums of the edges from the vertices to ends i, to ends k, and of the edges
        // between the ends.
        uint64_t sums[3];
    };
    Position* at;
    UnitScale student, teacher;

    // The ends of this thread's pairs.
    DEVICE unsigned row(unsigned p) const {
        return warp_index() / WARPS_K * 16 + lane_index() / 8 * ROWS + p;
    }
    DEVICE unsigned column(unsigned q) const {
        return (warp_index() % WARPS_K + q / 4) * 32 + lane_index() % 8 * 4 + q % 4;
    }

    // The offset of this block's partial sums for the edges between two tiles, from triples whose
    // third row is in group `third`. Partial buffers are in the order of the third group. If the
    // third group is one of the edge's own groups, the triple overlaps once more, and the number of
    // parts is that of the next overlap.
    DEVICE uint64_t sums_offset(uint32_t tile, uint32_t other, uint32_t third) const {
        const uint32_t a = tile < other ? tile : other, b = tile < other ? other : tile;
        const uint32_t each = arguments.partial_buffers.tiles_per_group, first = a / each,
                       last = b / each;
        const unsigned overlap = first == last ? 1 : 0;
        const uint32_t below = (first < third) + (last < third && first != last);
        const uint32_t index = (third - below) * arguments.overlaps[overlap].parts +
                               below * arguments.overlaps[overlap + 1].parts;
        return static_cast<uint64_t>(arguments.partial_buffers.count_before(a, b) + index +
                                     at->work.part) *
               rkd::TILE_ELEMENTS;
    }

    // Sets the offsets of the sums of the edges from the vertices of this tile to the ends.
    DEVICE void locate_vertex_sums(uint32_t v) const {
        const uint32_t each = arguments.partial_buffers.tiles_per_group, x = at->tiles[0],
                       y = at->tiles[1];
        at->sums[0] = sums_offset(v, x, y / each);
        at->sums[1] = sums_offset(v, y, x / each);
    }

    using EdgeQuad = triple::EdgeQuad<Path>;
    // Which quad a thread loads as its `f`th.
    struct QuadIndex {
        unsigned to_k, of_teacher, quad;
    };
    DEVICE static QuadIndex quad_index(unsigned f) {
        return {QUADS == 2 ? f : threadIdx.x / (2 * SIDE), threadIdx.x / SIDE % 2,
                threadIdx.x % SIDE};
    }

    // Loads this thread's edges of the vertices `j` .. `j + VERTICES` into registers.
    DEVICE void fetch_edges(uint32_t j, EdgeQuad (&quads)[QUADS]) const {
        const uint32_t pitch = rkd::padded(arguments.n), v = j / SIDE;
        UNROLL
        for (unsigned f = 0; f < QUADS; f++) {
            const auto [to_k, of_teacher, quad] = quad_index(f);
            const auto* h = static_cast<const typename Path::Length*>(arguments.h[of_teacher]);
            const float* r = arguments.r[of_teacher];
            const uint32_t tile = at->tiles[to_k];
            if (v <= tile) {
                const unsigned vertex = j % SIDE + quad / 16, end = quad % 16 * 4;
                h += rkd::tile_at(v, tile) + vertex * SIDE + end;
                r += static_cast<uint64_t>(v * SIDE + vertex) * pitch + tile * SIDE + end;
            } else {
                h += rkd::tile_at(tile, v) + quad * SIDE + j % SIDE;
                r += static_cast<uint64_t>(tile * SIDE + quad) * pitch + j;
            }
            pair_tile::load_side_by_side(h, quads[f].h);
            pair_tile::load_side_by_side(r, quads[f].r);
        }
    }

    // Stores them to shared memory.
    DEVICE void store_edges(uint32_t j, const EdgeQuad (&quads)[QUADS], unsigned buffer) const {
        UNROLL
        for (unsigned f = 0; f < QUADS; f++) {
            const auto [to_k, of_teacher, quad] = quad_index(f);
            float* to = edges + buffer + to_k * EDGES_K + of_teacher * COMPONENTS * SIDE;
            const bool vertex_is_row = j / SIDE <= at->tiles[to_k];
            triple::store_edges<SIDE, EDGES>(quads[f], of_teacher ? teacher : student, quad,
                                             vertex_is_row, to);
        }
    }

    DEVICE ThreadPointers first_pointers(unsigned buffer) const {
        const unsigned i = row(0), k = column(0);
        return {edges + buffer + i, edges + buffer + EDGES_K + k,
                sums + k / 4 % PARTIALS_I * PITCH_I + i, sums + SUMS_K + i / ROWS * SIDE + k};
    }

    // Adds COUNT partial sums, of 4 ends each, that lie STRIDE floats apart.
    template <unsigned COUNT, unsigned STRIDE>
    DEVICE static void add_partials(const float* from, float (&to)[4]) {
        UNROLL
        for (unsigned index = 0; index < COUNT; index++) {
            float partial[4];
            pair_tile::load_side_by_side(from + index * STRIDE, partial);
            UNROLL
            for (unsigned i = 0; i < 4; i++) to[i] += partial[i];
        }
    }

    // Reduces the threads' sums of the vertices `j` .. `j + VERTICES`, and adds them to the partial
    // buffers: those of the edges to ends i and, outside the diagonal, of the edges to ends k. No
    // other block writes there.
    DEVICE void store_vertex_sums(uint32_t j, unsigned buffer) const {
        const unsigned to_k = threadIdx.x / SIDE, vertex = threadIdx.x % VERTICES;
        const unsigned end = threadIdx.x % SIDE / VERTICES * 4;
        if (to_k > 1 || (to_k == 1 && at->tiles[0] == at->tiles[1])) return;
        // Load the old sums. If the vertices come after the ends, the vertex is the column of the
        // tile.
        const uint32_t v = j / SIDE, tile = at->tiles[to_k];
        const bool vertex_is_row = v <= tile;
        float* to = arguments.sums + at->sums[to_k];
        to += vertex_is_row ? (j % SIDE + vertex) * SIDE + end : end * SIDE + j % SIDE + vertex;
        float old[4], all[4] = {}, r[4];
        if (vertex_is_row) {
            pair_tile::load_side_by_side(to, old);
        } else {
            UNROLL
            for (unsigned i = 0; i < 4; i++) old[i] = to[i * SIDE];
        }
        // Reduce
        const float* from = sums + vertex * SUMS + end;
        if (to_k) {
            add_partials<PARTIALS_K, SIDE>(from + SUMS_K, all);
        } else {
            add_partials<PARTIALS_I, PITCH_I>(from, all);
        }
        pair_tile::load_side_by_side(edges + buffer + vertex * EDGES + to_k * EDGES_K + end, r);
        UNROLL
        for (unsigned i = 0; i < 4; i++) all[i] = fmaf(r[i], all[i], old[i]);
        // Store
        if (vertex_is_row) {
            store4(to, all[0], all[1], all[2], all[3]);
        } else {
            UNROLL
            for (unsigned i = 0; i < 4; i++) to[i * SIDE] = all[i];
        }
    }

    // Processes the ends of the pair of tiles x ≤ y with the block's part of the vertices.
    DEVICE void process_tile_pair() const {
        const uint32_t per_group = arguments.partial_buffers.tiles_per_group * SIDE;
        const uint32_t per_part = arguments.overlaps[at->work.overlap].vertices_per_part;
        uint32_t j = at->vertex_group * per_group;
        uint32_t stop = j + per_group < arguments.n ? j + per_group : arguments.n;
        j += at->work.part * per_part;
        if (j + per_part < stop) stop = j + per_part;
        if (j >= stop) return;

        // Load h of the pairs of ends
        typename Path::Edge x[ROWS][COLUMNS], y[ROWS][COLUMNS];
        UNROLL
        for (unsigned p = 0; p < ROWS; p++) {
            UNROLL
            for (unsigned q0 = 0; q0 < COLUMNS; q0 += 4) {
                const uint64_t edge =
                    rkd::tile_at(at->tiles[0], at->tiles[1]) + row(p) * SIDE + column(q0);
                typename Path::Length h[4];
                pair_tile::load_side_by_side(
                    static_cast<const typename Path::Length*>(arguments.h[0]) + edge, h);
                UNROLL
                for (unsigned q = 0; q < 4; q++) x[p][q0 + q] = Path::edge(h[q], student);
                pair_tile::load_side_by_side(
                    static_cast<const typename Path::Length*>(arguments.h[1]) + edge, h);
                UNROLL
                for (unsigned q = 0; q < 4; q++) y[p][q0 + q] = Path::edge(h[q], teacher);
            }
        }
        float g[ROWS][COLUMNS] = {};

        // Load the first edges
        EdgeQuad next[QUADS];
        fetch_edges(j, next);
        unsigned buffer = 0;
        store_edges(j, next, buffer);
        if (threadIdx.x == 0) locate_vertex_sums(j / SIDE);
        block_barrier();
        for (; j < stop; j += VERTICES) {
            if (threadIdx.x == 0 && j % SIDE == 0) locate_vertex_sums(j / SIDE);
            // Load the next edges while the present vertices are processed
            const bool more = j + VERTICES < stop;
            if (more) fetch_edges(j + VERTICES, next);
            // Accumulate
            ThreadPointers pointers = first_pointers(buffer);
            // It has so few terms that f32 is as good as exact.
            float partial_sum = 0;
            UNROLL_BY(1)
            for (unsigned v = 0; v < VERTICES; v++) {
                triple::accumulate_vertex<Path, SIDE>(pointers, x, y, arguments.delta, g,
                                                      partial_sum);
                pointers.advance(EDGES, SUMS);
            }
            // On the diagonal the tile has both (i, k) and (k, i). Elsewhere {i, k} stands for
            // both.
            penalties[threadIdx.x] += at->tiles[0] == at->tiles[1] ? partial_sum : 2 * partial_sum;
            if (more) store_edges(j + VERTICES, next, BUFFER - buffer);
            block_barrier();
            // Reduce and store the sums of the edges to the vertices
            store_vertex_sums(j, buffer);
            buffer = BUFFER - buffer;
            block_barrier();
        }

        // Store −G; w has the opposite sign here, so g is added. A tile on the diagonal gets half
        // of it, because its two halves are added up later.
        const float factor = at->tiles[0] == at->tiles[1] ? 0.5f : 1.0f;
        float* to = arguments.sums + at->sums[2];
        UNROLL
        for (unsigned p = 0; p < ROWS; p++) {
            UNROLL
            for (unsigned q = 0; q < COLUMNS; q += 4) {
                float* const quad = to + row(p) * SIDE + column(q);
                float old[4];
                pair_tile::load_side_by_side(quad, old);
                store4(quad, fmaf(factor, g[p][q], old[0]), fmaf(factor, g[p][q + 1], old[1]),
                       fmaf(factor, g[p][q + 2], old[2]), fmaf(factor, g[p][q + 3], old[3]));
            }
        }
    }

    // Clears the sums of the pair of tiles, to which the block adds later.
    DEVICE void clear_sums() const {
        float* to = arguments.sums + at->sums[2];
        for (unsigned e = 4 * threadIdx.x; e < rkd::TILE_ELEMENTS; e += 4 * THREADS)
            store4(to + e, 0, 0, 0, 0);
    }

    // Visits the block's pairs of tiles x ≤ y, each with the third group as the vertices. Clears
    // their sums, or adds to them.
    template <bool CLEAR>
    DEVICE void for_each_tile_pair() const {
        const uint32_t each = arguments.partial_buffers.tiles_per_group,
                       tiles = rkd::tiles_of(arguments.n);
        for (unsigned role = 0; role < 3; role++) {
            const uint32_t third = at->work.groups[role];
            // This group has already had the vertices.
            if (role > 0 && third == at->work.groups[role - 1]) continue;
            const uint32_t a = at->work.groups[role == 0 ? 1 : 0] * each;
            const uint32_t b = at->work.groups[role == 2 ? 1 : 2] * each;
            for (uint32_t pair = 0; pair < each * each; pair++) {
                const uint32_t x = a + pair / each, y = b + pair % each;
                if (x > y || y >= tiles) continue;
                block_barrier();
                if (threadIdx.x == 0) {
                    at->tiles[0] = x;
                    at->tiles[1] = y;
                    at->vertex_group = third;
                    at->sums[2] = sums_offset(x, y, third);
                }
                block_barrier();
                CLEAR ? clear_sums() : process_tile_pair();
            }
        }
    }

    DEVICE void run() {
        if (threadIdx.x == 0) at->work = work_of_block(blockIdx.x, arguments);
        penalties[threadIdx.x] = 0;
        block_barrier();
        for_each_tile_pair<true>();
        for_each_tile_pair<false>();
        // Reduce the penalty
        const double penalty = block_reduce<THREADS>(penalties[threadIdx.x], Sum());
        if (threadIdx.x == 0) arguments.partials[blockIdx.x] = penalty;
        // The last block decides whether f32 was accurate enough. The launch of the coefficients
        // computes the loss.
        if (Path::ACCURATE || !is_last_block(arguments.counter)) return;
        const double all = block_sum_of<THREADS>(arguments.partials, gridDim.x);
        if (threadIdx.x == 0) {
            const double n = arguments.n, mean = all / n / n / n;
            // This is also true if the mean is NaN: then the accurate path reports it.
            if (!(mean >= arguments.penalty_limit)) arguments.scalars->accurate = 1;
        }
    }
};

template <typename Path>
DEVICE void rkd_angle(const Arguments& arguments) {
    using Block = AngleBlock<Path>;
    if ((arguments.scalars->accurate != 0) != Path::ACCURATE) return;
    DYNAMIC_SHARED(float, shared);
    SHARED_ARRAY(double, penalties, Block::THREADS);
    SHARED_ARRAY(typename Block::Position, position, 1);
    const double* unit = arguments.scalars->unit;
    const UnitScale student = triple::unit_scale(unit[0]), teacher = triple::unit_scale(unit[1]);
    Block{arguments, shared, shared + 2 * Block::BUFFER, penalties, position, student, teacher}
        .run();
}

}  // namespace

EXPORT_KERNEL(relata_rkd_angle, AngleBlock<triple::Fast>::THREADS, 2, Arguments,
              rkd_angle<triple::Fast>);
EXPORT_KERNEL(relata_rkd_angle_accurate, AngleBlock<triple::Accurate>::THREADS, 1, Arguments,
              rkd_angle<triple::Accurate>);
