// Computes   L = 1/N³ Σ_jik huber(cos_jik(X) − cos_jik(Y)) over all triples, and its derivatives by the edges'
//            h = ½ d². With r = 1/d and the vertex at j, by the law of cosines
//              cos_jik = r_ij r_kj (h_ij + h_kj − h_ik)                 w = huber'(cos(X) − cos(Y))
//              G_ik = Σ_j w r_ij r_kj                                   the edge between the ends
//              A_ij = Σ_k w (r_ij r_kj − cos_jik r_ij²)                 an edge from end i to vertex j
//              ∂L/∂h_ij = 2/N³ (A_ij + A_ji − G_ij)
// Buffers    h, symmetric tiles, f32 (fast) or f64 (accurate), r [P, P] f32, of student and teacher; sums, symmetric
//            tiles f32 in slots; P, the tiles and the slots as in common/rkd.cuh. Of an edge between rows i and k the sums are
//            S_ik = A_ik + A_ki − G_ik or, in a tile on the diagonal, a share of it such that S_ik + S_ki is that.
// Passes     `rkd_angle` in f32 by a sum of products; `rkd_angle_accurate`, which returns at once unless the scalars
//            ask for it, with h as a pair of f32. rkd_coefficients.cu adds up the slots. Of few rows it is rkd_angle_small_batch.cu.
// Grid       groups A ≤ B ≤ C of tiles times parts, more or fewer parts where all groups differ, two or all are the same;
//            the arguments say which of these kinds starts where. A block takes all triples with a row in each
//            group, the vertex in any of them; of the vertices of each group its part. It adds what belongs to the
//            edges between two of the groups to slot (third group, part), which nobody else writes there.
// Block      for each pair of tiles x ≤ y of two of the groups, and each vertex j of the third's: 64 ends i of x by 64
//            ends k of y, every unordered pair {i, k} once. A thread has 4 rows and, in groups of 4, the columns
//            4 (l % 8) .. + 4 of each 32 that are its warp's:
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
//            together for 4 vertices at a time. The edges of the next 4 are on their way meanwhile, in registers.
// Shared     dynamic; fast: 16 KiB for twice 4 vertices' edges, 25 KiB for sums; accurate: 24 and 33 KiB.
// Registers  at most 248.
// Resident   relata_rkd_angle 2 of 128 threads and 41600 bytes; relata_rkd_angle_accurate 1 of 256 threads and 58496 bytes
// SASS       LDG.E.128, LDS.128, STS.128
// Loop       relata_rkd_angle at most 17.5 x 32; relata_rkd_angle_accurate at most 29.5 x 16 (an unordered triple)
// Work       fast: 16 FP32 instructions an unordered triple: 3 + 3 for the cosines and their difference, 2 to clamp,
//            2 for the penalty, 6 for the sums. accurate: 27.
// Floor      FP32 issue: 16 · N³/2 / 33.4e12 s on an H200: 4 µs at N = 256, 256 µs at 1024.
// Numerics   The law of cosines loses longest over shortest. The fast path is for spreads of at most 1.75, where
//            it is as good as the definition, and is given up where the mean penalty is below 1e-4: there the
//            difference of the cosines would be mostly rounding. In the accurate path the larger of h_ij and h_kj meets
//            h_ik first, with the low halves of both, which leaves cos an error of 1.5 ulp up to a spread of some 1e7;
//            beyond 2^54 a pair counts as duplicates (docs/decisions/0008).
// Order      fixed: vertices in order, threads' sums by place in the tile; in a slot by group, tile and vertex; slots by
//            third group and part.
// Reference  src/reference/rkd_angle.rs; docs/maths/rkd.md; Park et al., arXiv 1904.05068.
#include "common/collective.cuh"
#include "common/element.cuh"
#include "common/pair_tile.cuh"
#include "common/rkd.cuh"
#include "common/triple.cuh"

namespace {

using triple::ROWS, triple::Unit, triple::Place;

// Ends of a tile.
constexpr unsigned SIDE = rkd::TILE;
// Vertices whose edges are in shared memory at a time, and whose sums.
constexpr unsigned VERTICES = 4;

// The blocks of triples of which all groups differ, two are the same, or all.
struct Kind {
    uint32_t first_block;
    uint32_t parts;              // of a group's vertices
    uint32_t vertices_per_part;  // a multiple of VERTICES
};

struct Arguments {
    const void* h[2];
    const float* r[2];
    float* sums;
    double* partials;
    rkd::Scalars* scalars;
    unsigned* counter;
    double penalty_limit;  // the fast path is trusted above
    uint32_t n;
    uint32_t groups;
    rkd::Slots slots;
    Kind kinds[3];  // of three groups, of two, of one, in whatever order they start
    float delta;
    uint32_t padding;
};

// Three groups of tiles, in ascending order, and which part of their vertices.
struct Job {
    uint32_t groups[3];
    unsigned kind;
    uint32_t part;
};

DEVICE Job job_of(uint32_t block, const Arguments& arguments) {
    const uint32_t groups = arguments.groups;
    const auto among = [&](unsigned kind, uint32_t triples) {
        return block - arguments.kinds[kind].first_block < triples * arguments.kinds[kind].parts;
    };
    const unsigned kind = among(0, groups * (groups - 1) * (groups - 2) / 6) ? 0 : among(1, groups * (groups - 1)) ? 1 : 2;
    block -= arguments.kinds[kind].first_block;
    const uint32_t part = block % arguments.kinds[kind].parts;
    uint32_t index = block / arguments.kinds[kind].parts;
    if (kind == 0) {
        uint32_t c = 2;
        for (; index >= c * (c - 1) / 2; c++) index -= c * (c - 1) / 2;
        const auto [a, b] = pair_tile::pair_of(index);
        return {{a, b + 1, c}, kind, part};
    }
    if (kind == 1) {
        const uint32_t twice = index / (groups - 1), rest = index % (groups - 1);
        return rest < twice ? Job{{rest, twice, twice}, kind, part} : Job{{twice, twice, rest + 1}, kind, part};
    }
    return {{index, index, index}, kind, part};
}

template <typename Path>
struct Triples {
    static constexpr unsigned COLUMNS = Path::COLUMNS, PARTS = Path::PARTS;
    // Warps side by side, and in all.
    static constexpr unsigned ACROSS = 8 / COLUMNS, WARPS = 4 * ACROSS, THREADS = WARPS * WARP;
    // The edges of a vertex: [ends i, ends k][student, teacher][part][end]. There are two buffers of them.
    static constexpr unsigned EDGES = 2 * 2 * PARTS * SIDE, TO_K = EDGES / 2, BUFFER = VERTICES * EDGES;
    // What threads have summed for a vertex: over their columns for an end i, [which columns][i], and over their rows
    // for an end k, [which rows][k]. Pitches keep lanes off each other's banks.
    static constexpr unsigned OF_ROW = 8 * ACROSS, ROW_PITCH = SIDE + 4, OF_COLUMN = SIDE / ROWS;
    static constexpr unsigned SUMS_K = OF_ROW * ROW_PITCH, SUMS = SUMS_K + OF_COLUMN * SIDE + 8;
    // Mirrored in src/gpu/rkd/deal.rs.
    static constexpr unsigned SHARED = 2 * BUFFER + VERTICES * SUMS;
    // Where the next edges come from, four at a time: 64 fours for each of student and teacher and of ends i and k.
    static constexpr unsigned FOURS = 4 * SIDE / THREADS;

    const Arguments& arguments;
    float* edges;
    float* sums;
    // Kept here for want of registers: the penalty of each thread over all tiles; and where the block is.
    double* penalties;
    struct At {
        // Of the ends i and the ends k.
        uint32_t tiles[2];
        // Of the vertices.
        uint32_t group;
        Job job;
        // Where the sums are of their edges to ends i, to ends k, and of the edges between the ends.
        uint64_t sums[3];
    };
    At* at;
    Unit student, teacher;

    DEVICE unsigned row(unsigned p) const { return warp_index() / ACROSS * 16 + lane_index() / 8 * ROWS + p; }
    DEVICE unsigned column(unsigned q) const {
        return (warp_index() % ACROSS + q / 4) * 32 + lane_index() % 8 * 4 + q % 4;
    }

    // Where the edges between two tiles have what this block finds of triples with the third row in this group. Slots are
    // in the order of the third group; where that is one of the edge's own, the triple is of one group fewer.
    DEVICE uint64_t sums_of(uint32_t tile, uint32_t other, uint32_t third) const {
        const uint32_t a = tile < other ? tile : other, b = tile < other ? other : tile;
        const uint32_t each = arguments.slots.tiles_per_group, first = a / each, last = b / each;
        const unsigned kind = first == last ? 1 : 0;
        const uint32_t below = (first < third) + (last < third && first != last);
        const uint32_t slot = (third - below) * arguments.kinds[kind].parts + below * arguments.kinds[kind + 1].parts;
        return static_cast<uint64_t>(arguments.slots.before(a, b) + slot + at->job.part) * rkd::TILE_ELEMENTS;
    }

    // Puts down where vertices of this tile have the sums of their edges.
    DEVICE void aim(uint32_t v) const {
        const uint32_t each = arguments.slots.tiles_per_group, x = at->tiles[0], y = at->tiles[1];
        at->sums[0] = sums_of(v, x, y / each);
        at->sums[1] = sums_of(v, y, x / each);
    }

    using Four = triple::Four<Path>;
    // Which of them is a thread's `f`th.
    struct Which {
        unsigned to_k, of_teacher, four;
    };
    DEVICE static Which which(unsigned f) {
        return {FOURS == 2 ? f : threadIdx.x / (2 * SIDE), threadIdx.x / SIDE % 2, threadIdx.x % SIDE};
    }

    DEVICE void fetch(uint32_t j, Four (&fours)[FOURS]) const {
        const uint32_t pitch = rkd::padded(arguments.n), v = j / SIDE;
        UNROLL
        for (unsigned f = 0; f < FOURS; f++) {
            const auto [to_k, of_teacher, four] = which(f);
            const auto* h = static_cast<const typename Path::Length*>(arguments.h[of_teacher]);
            const float* r = arguments.r[of_teacher];
            const uint32_t tile = at->tiles[to_k];
            if (v <= tile) {
                const unsigned vertex = j % SIDE + four / 16, end = four % 16 * 4;
                h += rkd::tile_at(v, tile) + vertex * SIDE + end;
                r += static_cast<uint64_t>(v * SIDE + vertex) * pitch + tile * SIDE + end;
            } else {
                h += rkd::tile_at(tile, v) + four * SIDE + j % SIDE;
                r += static_cast<uint64_t>(tile * SIDE + four) * pitch + j;
            }
            pair_tile::load_side_by_side(h, fours[f].h);
            pair_tile::load_side_by_side(r, fours[f].r);
        }
    }

    DEVICE void put(uint32_t j, const Four (&fours)[FOURS], unsigned buffer) const {
        UNROLL
        for (unsigned f = 0; f < FOURS; f++) {
            const auto [to_k, of_teacher, four] = which(f);
            float* to = edges + buffer + to_k * TO_K + of_teacher * PARTS * SIDE;
            const bool along = j / SIDE <= at->tiles[to_k];
            triple::put_edges<SIDE, EDGES>(fours[f], of_teacher ? teacher : student, four, along, to);
        }
    }

    DEVICE Place first_place(unsigned buffer) const {
        const unsigned i = row(0), k = column(0);
        return {edges + buffer + i, edges + buffer + TO_K + k, sums + k / 4 % OF_ROW * ROW_PITCH + i, sums + SUMS_K + i / ROWS * SIDE + k};
    }

    template <unsigned COUNT, unsigned EVERY>
    DEVICE static void add_up(const float* from, float (&to)[4]) {
        UNROLL
        for (unsigned at = 0; at < COUNT; at++) {
            float some[4];
            pair_tile::load_side_by_side(from + at * EVERY, some);
            UNROLL
            for (unsigned i = 0; i < 4; i++) to[i] += some[i];
        }
    }

    // Adds what has been summed for the vertices `j` .. to the slots of their edges: to ends i and, off the diagonal,
    // where they are others, to ends k. No other block writes there.
    DEVICE void store(uint32_t j, unsigned buffer) const {
        const unsigned to_k = threadIdx.x / SIDE, vertex = threadIdx.x % VERTICES, end = threadIdx.x % SIDE / VERTICES * 4;
        if (to_k > 1 || (to_k == 1 && at->tiles[0] == at->tiles[1])) return;
        // The edges lie along the rows of their tile or, where the vertices come later, across.
        const uint32_t v = j / SIDE, tile = at->tiles[to_k];
        const bool along = v <= tile;
        float* to = arguments.sums + at->sums[to_k];
        to += along ? (j % SIDE + vertex) * SIDE + end : end * SIDE + j % SIDE + vertex;
        float old[4], all[4] = {}, r[4];
        if (along) {
            pair_tile::load_side_by_side(to, old);
        } else {
            UNROLL
            for (unsigned i = 0; i < 4; i++) old[i] = to[i * SIDE];
        }
        const float* from = sums + vertex * SUMS + end;
        if (to_k) {
            add_up<OF_COLUMN, SIDE>(from + SUMS_K, all);
        } else {
            add_up<OF_ROW, ROW_PITCH>(from, all);
        }
        pair_tile::load_side_by_side(edges + buffer + vertex * EDGES + to_k * TO_K + end, r);
        UNROLL
        for (unsigned i = 0; i < 4; i++) all[i] = fmaf(r[i], all[i], old[i]);
        if (along) {
            store4(to, all[0], all[1], all[2], all[3]);
        } else {
            UNROLL
            for (unsigned i = 0; i < 4; i++) to[i * SIDE] = all[i];
        }
    }

    // The ends of tiles x ≤ y, and the block's part of the vertices of the group.
    DEVICE void tile() const {
        const uint32_t of_group = arguments.slots.tiles_per_group * SIDE, of_part = arguments.kinds[at->job.kind].vertices_per_part;
        uint32_t j = at->group * of_group, stop = j + of_group < arguments.n ? j + of_group : arguments.n;
        j += at->job.part * of_part;
        if (j + of_part < stop) stop = j + of_part;
        if (j >= stop) return;

        typename Path::Edge x[ROWS][COLUMNS], y[ROWS][COLUMNS];
        UNROLL
        for (unsigned p = 0; p < ROWS; p++) {
            UNROLL
            for (unsigned q0 = 0; q0 < COLUMNS; q0 += 4) {
                const uint64_t edge = rkd::tile_at(at->tiles[0], at->tiles[1]) + row(p) * SIDE + column(q0);
                typename Path::Length h[4];
                pair_tile::load_side_by_side(static_cast<const typename Path::Length*>(arguments.h[0]) + edge, h);
                UNROLL
                for (unsigned q = 0; q < 4; q++) x[p][q0 + q] = Path::edge(h[q], student);
                pair_tile::load_side_by_side(static_cast<const typename Path::Length*>(arguments.h[1]) + edge, h);
                UNROLL
                for (unsigned q = 0; q < 4; q++) y[p][q0 + q] = Path::edge(h[q], teacher);
            }
        }
        float g[ROWS][COLUMNS] = {};
        Four next[FOURS];
        fetch(j, next);
        unsigned buffer = 0;
        put(j, next, buffer);
        if (threadIdx.x == 0) aim(j / SIDE);
        block_barrier();
        for (; j < stop; j += VERTICES) {
            if (threadIdx.x == 0 && j % SIDE == 0) aim(j / SIDE);
            // On their way while the vertices at hand are worked on.
            const bool more = j + VERTICES < stop;
            if (more) fetch(j + VERTICES, next);
            Place place = first_place(buffer);
            // Few enough terms that f32 is as good as exact.
            float few = 0;
            UNROLL_BY(1)
            for (unsigned v = 0; v < VERTICES; v++) {
                triple::vertex<Path, SIDE>(place, x, y, arguments.delta, g, few);
                place.next(EDGES, SUMS);
            }
            // All of a tile on the diagonal is counted; elsewhere {i, k} stands for (i, k) and (k, i).
            penalties[threadIdx.x] += at->tiles[0] == at->tiles[1] ? few : 2 * few;
            if (more) put(j + VERTICES, next, BUFFER - buffer);
            block_barrier();
            store(j, buffer);
            buffer = BUFFER - buffer;
            block_barrier();
        }
        // −G, by the sign that w has here. In a tile on the diagonal, whose two halves are added up in the end, half of it.
        const float share = at->tiles[0] == at->tiles[1] ? 0.5f : 1.0f;
        float* to = arguments.sums + at->sums[2];
        UNROLL
        for (unsigned p = 0; p < ROWS; p++) {
            UNROLL
            for (unsigned q = 0; q < COLUMNS; q += 4) {
                float* const four = to + row(p) * SIDE + column(q);
                float old[4];
                pair_tile::load_side_by_side(four, old);
                store4(four, fmaf(share, g[p][q], old[0]), fmaf(share, g[p][q + 1], old[1]), fmaf(share, g[p][q + 2], old[2]),
                       fmaf(share, g[p][q + 3], old[3]));
            }
        }
    }

    // What the block adds to, before it does.
    DEVICE void clear() const {
        float* to = arguments.sums + at->sums[2];
        for (unsigned e = 4 * threadIdx.x; e < rkd::TILE_ELEMENTS; e += 4 * THREADS) store4(to + e, 0, 0, 0, 0);
    }

    // Goes through the job's pairs of tiles x ≤ y and the third group of each: `clear`s their sums, or adds to them.
    template <bool CLEAR>
    DEVICE void each_pair() const {
        const uint32_t each = arguments.slots.tiles_per_group, tiles = rkd::tiles_of(arguments.n);
        for (unsigned role = 0; role < 3; role++) {
            const uint32_t third = at->job.groups[role];
            // The group has had its turn.
            if (role > 0 && third == at->job.groups[role - 1]) continue;
            const uint32_t a = at->job.groups[role == 0 ? 1 : 0] * each, b = at->job.groups[role == 2 ? 1 : 2] * each;
            for (uint32_t pair = 0; pair < each * each; pair++) {
                const uint32_t x = a + pair / each, y = b + pair % each;
                if (x > y || y >= tiles) continue;
                block_barrier();
                if (threadIdx.x == 0) {
                    at->tiles[0] = x;
                    at->tiles[1] = y;
                    at->group = third;
                    at->sums[2] = sums_of(x, y, third);
                }
                block_barrier();
                CLEAR ? clear() : tile();
            }
        }
    }

    DEVICE void run() {
        if (threadIdx.x == 0) at->job = job_of(blockIdx.x, arguments);
        penalties[threadIdx.x] = 0;
        block_barrier();
        each_pair<true>();
        each_pair<false>();
        const double penalty = block_reduce<THREADS>(penalties[threadIdx.x], Sum());
        if (threadIdx.x == 0) arguments.partials[blockIdx.x] = penalty;
        // Whether f32 was good enough is known in the end. The loss is made by whoever makes the coefficients.
        if (Path::ACCURATE || !is_last_block(arguments.counter)) return;
        const double all = block_sum_of<THREADS>(arguments.partials, gridDim.x);
        if (threadIdx.x == 0) {
            const double n = arguments.n, mean = all / n / n / n;
            // Also where it is NaN: then it is the accurate path that says so.
            if (!(mean >= arguments.penalty_limit)) arguments.scalars->accurate = 1;
        }
    }
};

template <typename Path>
DEVICE void rkd_angle(const Arguments& arguments) {
    using Block = Triples<Path>;
    if ((arguments.scalars->accurate != 0) != Path::ACCURATE) return;
    DYNAMIC_SHARED(float, shared);
    SHARED_ARRAY(double, penalties, Block::THREADS);
    SHARED_ARRAY(typename Block::At, at, 1);
    const double* unit = arguments.scalars->unit;
    Block{arguments, shared, shared + 2 * Block::BUFFER, penalties, at, triple::unit_of(unit[0]), triple::unit_of(unit[1])}.run();
}

}  // namespace

EXPORT_KERNEL(relata_rkd_angle, Triples<triple::Fast>::THREADS, 2, Arguments, rkd_angle<triple::Fast>);
EXPORT_KERNEL(relata_rkd_angle_accurate, Triples<triple::Accurate>::THREADS, 1, Arguments, rkd_angle<triple::Accurate>);
