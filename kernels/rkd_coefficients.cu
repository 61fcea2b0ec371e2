// Computes   The coefficients C_ik = ∂L/∂h_ik, and what the loss is a sum of, of the penalties that take part:
//              angle      2 weight/N³ (A_ik + A_ki − G_ik), from the slots that rkd_angle or rkd_angle_small_batch has filled
//              distance   L = 1/N² Σ_ik huber(d_ik/μ_x − t_ik/μ_y), μ the mean length, and with w = huber'(·) the first
//                         part of ∂L/∂h_ik = 2 r_ik/N² (w_ik/μ_x − Σ_jl w_jl d_jl/(μ_x² P)), r = 1/d, P = N (N − 1). The
//                         second, a multiple of r, waits for the sum over all pairs: the contraction adds it.
// Buffers    sums [tiles and their slots, tile, tile] f32, in symmetric tiles of 64 or 32 rows a side, see common/rkd.cuh:
//            S_ik = A_ik + A_ki − G_ik or, in the tiles on the diagonal, halves, S_ik + S_ki; r [P, P] f32 of student and
//            teacher, P the rows up to a multiple of 64, 0 beyond N; penalties [blocks of rkd_angle] f64; coefficients
//            [P, P] f32, both triangles, zero beyond N, overwritten; partials [blocks]; lengths [2, blocks of the relation];
//            scalars.
// Passes     one launch, after the relation and the angle; the contraction adds up the blocks' partials. Of few rows'
//            distances alone it also finds the scalars, from the relation's partials: each block for itself.
// Grid       as many blocks as a GPU holds, or pairs of patches a ≤ b of P rows; they stride over those pairs.
// Block      256 threads; a patch of 32 x 32 pairs, four side by side a thread, and its mirror image. Of few rows, patches
//            of 16 x 16, whose slots four groups of 64 threads share.
// Shared     9 KiB: sums of the groups and mirror images, and 512 bytes for reductions.
// Registers  at most 64.
// Resident   relata_rkd_coefficients 4 of 256 threads
// SASS       LDG.E.128, STG.E.128
// Work       distance: 12 flop an unordered pair; 8 bytes read of it, and 8 written. angle: a sum of slots.
// Floor      bandwidth: N² (4 + 4 + 2 slots) bytes: 4 written, 4 for the distance, 2 a slot for the angle.
// Numerics   angle: f32, each slot itself a sum in f32 over its share of the triples. distance: d = 1/r, two roundings; sums
//            of four pairs in f32, of those in f64.
// Order      fixed: slots in order, in each of the groups; sums by patch, thread, warp and block.
// Reference  src/reference/rkd_distance.rs, rkd_angle.rs; docs/maths/rkd.md; Park et al., arXiv 1904.05068.
#include "common/collective.cuh"
#include "common/pair_tile.cuh"
#include "common/rkd.cuh"

namespace {

constexpr unsigned THREADS = 256;

struct Arguments {
    const float* sums;
    const float* r[2];
    float* coefficients;
    const double* penalties;
    rkd::Penalties* partials;
    const rkd::Lengths* lengths;  // [2, length_count] where nobody has made scalars of them; or null
    rkd::Scalars* scalars;
    uint32_t n;
    uint32_t length_count;
    uint32_t patch;  // its side
    // Of the angle; 0 where it takes no part.
    uint32_t angle_blocks;
    uint32_t tile;  // its side
    rkd::Slots slots;
    uint32_t distance;  // whether it takes part
    float delta;
    float angle_factor;     // 2 weight / N³
    float distance_factor;  // 2 weight / N²
};

// The penalty of the distances of four pairs.
struct Distance {
    float per_unit[2], scale[2], delta, factor;

    DEVICE Distance(const Arguments& arguments, const rkd::Scalars& scalars)
        : delta(arguments.delta), factor(arguments.distance_factor) {
        UNROLL
        for (unsigned of = 0; of < 2; of++) {
            // A power of two, so nothing is lost.
            per_unit[of] = 1.0f / static_cast<float>(scalars.unit[of]);
            // With all rows in one place there is no scale: lengths count as 0.
            const auto mean = static_cast<float>(scalars.mean[of]);
            scale[of] = mean != 0 ? 1.0f / mean : 0.0f;
        }
    }

    // Adds to the coefficients, and `times` to the sums.
    DEVICE void add(const float (&r_x)[4], const float (&r_y)[4], double times, float (&c)[4], rkd::Penalties& sums) const {
        float few = 0, few_weighted = 0;
        UNROLL
        for (unsigned q = 0; q < 4; q++) {
            // In the unit of the mean.
            const float x = rkd::in_unit(r_x[q], per_unit[0]), y = rkd::in_unit(r_y[q], per_unit[1]);
            const float d_x = x > 0 ? 1.0f / x : 0.0f, d_y = y > 0 ? 1.0f / y : 0.0f;
            const float e = fmaf(d_x, scale[0], -(d_y * scale[1]));
            const float w = fminf(fmaxf(e, -delta), delta);
            few = fmaf(w, fmaf(-0.5f, w, e), few);
            few_weighted = fmaf(w, d_x, few_weighted);
            c[q] = fmaf(factor, x * (w * scale[0]), c[q]);
        }
        sums.distance += times * few;
        sums.weighted += times * few_weighted;
    }
};

template <unsigned PATCH>
struct Patch {
    // Fours, the groups of threads that have one each, and fours side by side.
    static constexpr unsigned FOURS = PATCH * PATCH / 4, GROUPS = THREADS / FOURS, ACROSS = PATCH / 4;
    // In shared memory: an odd pitch keeps a column off the banks of the next.
    static constexpr unsigned PITCH = PATCH + 1, SHARED = GROUPS * PATCH * PITCH;

    const Arguments& arguments;
    float* direct;
    float* mirror;
    uint32_t a, b;

    DEVICE static unsigned group() { return threadIdx.x / FOURS; }
    DEVICE static unsigned row() { return threadIdx.x % FOURS / ACROSS; }
    DEVICE static unsigned column() { return threadIdx.x % ACROSS * 4; }

    // Where this thread's four of a patch is in a matrix of P rows. A multiple of 4, as the compiler can see.
    DEVICE uint64_t four_of(uint32_t a, uint32_t b) const {
        const uint64_t fours = rkd::padded(arguments.n) / 4;
        return 4 * ((a * PATCH + row()) * fours + b * ACROSS + threadIdx.x % ACROSS);
    }

    // This thread's four of a matrix in shared memory, to it and from it, or from its mirror image.
    DEVICE static void put(float* to, const float (&four)[4]) {
        UNROLL
        for (unsigned q = 0; q < 4; q++) to[row() * PITCH + column() + q] = four[q];
    }
    DEVICE static void put_mirrored(float* to, const float (&four)[4]) {
        UNROLL
        for (unsigned q = 0; q < 4; q++) to[(column() + q) * PITCH + row()] = four[q];
    }

    // What this group has of the slots at `at`, in order.
    // Four of row i from column k on, of those that the rows have: beyond, nobody has written.
    DEVICE void add_slots(const float* at, uint32_t i, uint32_t k, uint32_t slots, float (&sum)[4]) const {
        if (i >= arguments.n || k >= arguments.n) return;
        const unsigned count = arguments.n - k;
        const uint64_t slot = arguments.tile * arguments.tile;
        UNROLL_BY(4)
        for (uint32_t s = group(); s < slots; s += GROUPS) {
            float some[4] = {};
            if (count >= 4) {
                pair_tile::load_side_by_side(at + s * slot, some);
            } else {
                UNROLL
                for (unsigned q = 0; q < 3; q++) {
                    if (q < count) some[q] = at[s * slot + q];
                }
            }
            UNROLL
            for (unsigned q = 0; q < 4; q++) sum[q] += some[q];
        }
    }

    // The angle's coefficients, in every group.
    DEVICE void angle(float (&c)[4]) const {
        const uint32_t n = arguments.n, side = arguments.tile, i = a * PATCH, k = b * PATCH;
        // No tile has it.
        if (k >= n) return;
        const uint32_t tile_i = i / side, tile_k = k / side;
        const uint64_t slot = side * side;
        const float* tile = arguments.sums + arguments.slots.before(tile_i, tile_k) * slot;
        const bool diagonal = tile_i == tile_k;
        const uint32_t slots = arguments.slots.of(tile_i, tile_k);
        add_slots(tile + (i % side + row()) * side + k % side + column(), i + row(), k + column(), slots, c);
        if (diagonal) {
            float other[4] = {};
            add_slots(tile + (k % side + row()) * side + i % side + column(), k + row(), i + column(), slots, other);
            put_mirrored(mirror + group() * PATCH * PITCH, other);
        }
        put(direct + group() * PATCH * PITCH, c);
        block_barrier();
        UNROLL
        for (unsigned q = 0; q < 4; q++) {
            const unsigned at = row() * PITCH + column() + q;
            float sum = 0;
            UNROLL
            for (unsigned g = 0; g < GROUPS; g++) sum += direct[g * PATCH * PITCH + at];
            if (diagonal) {
                UNROLL
                for (unsigned g = 0; g < GROUPS; g++) sum += mirror[g * PATCH * PITCH + at];
            }
            c[q] = i + row() < n && k + column() + q < n ? arguments.angle_factor * sum : 0.0f;
        }
    }

    DEVICE void run(const Distance& distance, rkd::Penalties& sums) const {
        const uint64_t at = four_of(a, b);
        const bool first = group() == 0, counts = first && arguments.distance;
        float c[4] = {}, r[2][4];
        if (counts) {
            pair_tile::load_side_by_side(arguments.r[0] + at, r[0]);
            pair_tile::load_side_by_side(arguments.r[1] + at, r[1]);
        }
        if (arguments.angle_blocks > 0) angle(c);
        // Off the diagonal (i, k) stands for (k, i) as well.
        if (counts) distance.add(r[0], r[1], a == b ? 1.0 : 2.0, c, sums);
        if (first) store4(arguments.coefficients + at, c[0], c[1], c[2], c[3]);
        // The angle's sums have been read.
        block_barrier();
        if (a == b) return;
        if (first) put_mirrored(direct, c);
        block_barrier();
        if (first) {
            const float* from = direct + row() * PITCH + column();
            store4(arguments.coefficients + four_of(b, a), from[0], from[1], from[2], from[3]);
        }
        block_barrier();
    }
};

// All pairs of patches that are this block's.
template <unsigned PATCH>
DEVICE void each_patch(const Arguments& arguments, const Distance& distance, float* direct, float* mirror,
                       rkd::Penalties& sums) {
    const uint32_t patches = rkd::padded(arguments.n) / PATCH, pairs = patches * (patches + 1) / 2;
    for (uint32_t index = blockIdx.x; index < pairs; index += gridDim.x) {
        const auto [a, b] = pair_tile::pair_of(index);
        Patch<PATCH>{arguments, direct, mirror, a, b}.run(distance, sums);
    }
}

DEVICE void coefficients(const Arguments& arguments) {
    constexpr unsigned SHARED = Patch<16>::SHARED > Patch<32>::SHARED ? Patch<16>::SHARED : Patch<32>::SHARED;
    SHARED_ARRAY(float, direct, SHARED);
    SHARED_ARRAY(float, mirror, SHARED);
    const rkd::Scalars scalars =
        arguments.lengths == nullptr
            ? *arguments.scalars
            : rkd::settle(arguments.lengths, arguments.length_count, arguments.n, arguments.scalars);
    const Distance distance(arguments, scalars);
    rkd::Penalties sums = {};
    for (uint64_t i = static_cast<uint64_t>(blockIdx.x) * THREADS + threadIdx.x; i < arguments.angle_blocks;
         i += static_cast<uint64_t>(gridDim.x) * THREADS)
        sums.angle += arguments.penalties[i];
    if (arguments.patch == 32) {
        each_patch<32>(arguments, distance, direct, mirror, sums);
    } else {
        each_patch<16>(arguments, distance, direct, mirror, sums);
    }
    sums = block_reduce<THREADS>(sums, rkd::PenaltiesTogether());
    if (threadIdx.x == 0) arguments.partials[blockIdx.x] = sums;
}

}  // namespace

EXPORT_KERNEL(relata_rkd_coefficients, THREADS, 4, Arguments, coefficients);
