// Computes   The coefficients C_ik = ∂L/∂h_ik, and the sums of the penalties of which the loss
//            consists. The angle and the distance contribute if they take part:
//              angle     2 weight/N³ (A_ik + A_ki − G_ik), from the partial buffers of rkd_angle
//                        or rkd_angle_small_batch
//              distance  L = 1/N² Σ_ik huber(d_ik/μ_x − t_ik/μ_y), where μ is the mean length.
//                        With w = huber'(·), r = 1/d and P = N (N − 1), the derivative has two
//                        parts: ∂L/∂h_ik = 2 r_ik/N² (w_ik/μ_x − Σ_jl w_jl d_jl/(μ_x² P)). The
//                        first part is added here. The second, a multiple of r, needs the sum
//                        over all pairs: the contraction adds it.
// Buffers    sums: [partial buffers of all tiles, tile, tile] f32, symmetric tiles of 64 or 32 rows
//            a side, see common/rkd.cuh. S_ik = A_ik + A_ki − G_ik; in a tile on the diagonal S_ik
//            + S_ki is this value. r: [P, P] f32 of student and teacher, P the rows rounded up to a
//            multiple of 64, 0 beyond N. penalties: [blocks of rkd_angle] f64. coefficients: [P, P]
//            f32, both triangles, zero beyond N, overwritten. partials: [blocks]. lengths: [2,
//            blocks of the relation]. scalars.
// Passes     One launch, after the relation and the angle. The contraction adds up the blocks'
//            partials. For the distance alone of a small batch each block also computes the scalars
//            for itself, from the relation's partials.
// Grid       As many blocks as a GPU holds, or as there are pairs of tiles a ≤ b of P rows, if
//            these are fewer. The blocks stride over the pairs.
// Block      256 threads. A tile of 32 x 32 pairs, four contiguous ones a thread, and its mirror
//            image. In small batches tiles of 16 x 16, where four groups of 64 threads share the
//            partial buffers.
// Shared     9 KiB: the groups' sums and mirror images, and 512 bytes for reductions.
// Registers  at most 64.
// Resident   relata_rkd_coefficients 4 of 256 threads
// SASS       LDG.E.128, STG.E.128
// Work       Distance: 12 flop an unordered pair; 8 bytes of it read, and 8 written. Angle: a sum
//            over partial buffers.
// Floor      Bandwidth: N² (4 + 4 + 2 partial buffers) bytes: 4 written, 4 for the distance, 2 a
//            partial buffer for the angle.
// Numerics   Angle: f32; each partial buffer is itself an f32 sum over its share of the triples.
//            Distance: d = 1/r, two roundings. Four pairs are summed in f32, and these sums in f64.
// Order      Fixed: partial buffers in order, in each of the groups. Sums by tile, thread, warp and
//            block.
// Reference  src/reference/rkd_distance.rs, rkd_angle.rs; docs/maths/rkd.md; Park et al., arXiv
//            1904.05068.
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
    const rkd::Lengths*
        lengths;  // [2, length_count] if no launch has computed the scalars yet; else null
    rkd::Scalars* scalars;
    uint32_t n;
    uint32_t length_count;
    uint32_t tile_side;     // of the coefficients: 16 or 32
    uint32_t angle_blocks;  // 0 if the angle takes no part
    uint32_t sums_side;     // side of the tiles of sums: 32 or 64
    rkd::PartialBuffers partial_buffers;
    uint32_t distance;  // whether the distance takes part
    float delta;
    float angle_factor;     // 2 weight / N³
    float distance_factor;  // 2 weight / N²
};
ARGUMENTS(Arguments, sums, r, coefficients, penalties, partials, lengths, scalars, n, length_count,
          tile_side, angle_blocks, sums_side, partial_buffers, distance, delta, angle_factor,
          distance_factor);

// The penalty of the distances, for four pairs at a time.
struct DistancePenalty {
    float per_unit[2], scale[2], delta, factor;

    DEVICE DistancePenalty(const Arguments& arguments, const rkd::Scalars& scalars)
        : delta(arguments.delta), factor(arguments.distance_factor) {
        UNROLL
        for (unsigned of = 0; of < 2; of++) {
            // A power of two, so its reciprocal is exact.
            per_unit[of] = 1.0f / static_cast<float>(scalars.unit[of]);
            // If all rows coincide there is no scale, and lengths count as 0.
            const auto mean = static_cast<float>(scalars.mean[of]);
            scale[of] = mean != 0 ? 1.0f / mean : 0.0f;
        }
    }

    // Adds the derivatives of the four pairs to `c`, and their penalties `times` so often to
    // `sums`.
    DEVICE void add(const float (&r_x)[4], const float (&r_y)[4], double times, float (&c)[4],
                    rkd::Penalties& sums) const {
        float partial_sum = 0, partial_weighted = 0;
        UNROLL
        for (unsigned q = 0; q < 4; q++) {
            // In the unit of the mean.
            const float x = rkd::in_unit(r_x[q], per_unit[0]),
                        y = rkd::in_unit(r_y[q], per_unit[1]);
            const float d_x = x > 0 ? 1.0f / x : 0.0f, d_y = y > 0 ? 1.0f / y : 0.0f;
            const float e = fmaf(d_x, scale[0], -(d_y * scale[1]));
            const float w = fminf(fmaxf(e, -delta), delta);
            partial_sum = fmaf(w, fmaf(-0.5f, w, e), partial_sum);
            partial_weighted = fmaf(w, d_x, partial_weighted);
            c[q] = fmaf(factor, x * (w * scale[0]), c[q]);
        }
        sums.distance += times * partial_sum;
        sums.weighted += times * partial_weighted;
    }
};

// A tile (a ≤ b) of the coefficients, and its mirror image.
template <unsigned SIDE>
struct CoefficientTile {
    // A quad is four contiguous coefficients. Quads of the tile, groups of threads that have one
    // quad each, and quads of a row.
    static constexpr unsigned QUADS = SIDE * SIDE / 4, GROUPS = THREADS / QUADS,
                              ROW_QUADS = SIDE / 4;
    // In shared memory. The odd pitch keeps a column off the banks of the next.
    static constexpr unsigned PITCH = SIDE + 1, SHARED = GROUPS * SIDE * PITCH;

    const Arguments& arguments;
    float* direct;
    float* mirror;
    uint32_t a, b;

    DEVICE static unsigned group() { return threadIdx.x / QUADS; }
    DEVICE static unsigned row() { return threadIdx.x % QUADS / ROW_QUADS; }
    DEVICE static unsigned column() { return threadIdx.x % ROW_QUADS * 4; }

    // The offset of this thread's quad of a tile in a matrix of P rows. The compiler can see that
    // it is a multiple of 4.
    DEVICE uint64_t quad_offset(uint32_t a, uint32_t b) const {
        const uint64_t quads = rkd::padded(arguments.n) / 4;
        return 4 * ((a * SIDE + row()) * quads + b * ROW_QUADS + threadIdx.x % ROW_QUADS);
    }

    // Stores this thread's quad to its place in shared memory, or to that of its mirror image.
    DEVICE static void store_quad(float* to, const float (&quad)[4]) {
        UNROLL
        for (unsigned q = 0; q < 4; q++) to[row() * PITCH + column() + q] = quad[q];
    }
    DEVICE static void store_mirrored(float* to, const float (&quad)[4]) {
        UNROLL
        for (unsigned q = 0; q < 4; q++) to[(column() + q) * PITCH + row()] = quad[q];
    }

    // Adds this group's share of `count` partial buffers to `sum`, in order: four sums of row i
    // from column k on. `at` is where the first buffer has them. No kernel has written the sums
    // beyond N.
    DEVICE void add_partial_buffers(const float* at, uint32_t i, uint32_t k, uint32_t count,
                                    float (&sum)[4]) const {
        if (i >= arguments.n || k >= arguments.n) return;
        const unsigned columns = arguments.n - k;
        const uint64_t stride = arguments.sums_side * arguments.sums_side;
        UNROLL_BY(4)
        for (uint32_t s = group(); s < count; s += GROUPS) {
            float partial[4] = {};
            if (columns >= 4) {
                pair_tile::load_side_by_side(at + s * stride, partial);
            } else {
                UNROLL
                for (unsigned q = 0; q < 3; q++) {
                    if (q < columns) partial[q] = at[s * stride + q];
                }
            }
            UNROLL
            for (unsigned q = 0; q < 4; q++) sum[q] += partial[q];
        }
    }

    // The angle's coefficients, in every group.
    DEVICE void angle(float (&c)[4]) const {
        const uint32_t n = arguments.n, side = arguments.sums_side, i = a * SIDE, k = b * SIDE;
        // There may be no tile of sums here.
        if (k >= n) return;
        // Accumulate this group's share
        const uint32_t tile_i = i / side, tile_k = k / side;
        const uint64_t stride = side * side;
        const float* tile =
            arguments.sums + arguments.partial_buffers.count_before(tile_i, tile_k) * stride;
        const bool diagonal = tile_i == tile_k;
        const uint32_t count = arguments.partial_buffers.count(tile_i, tile_k);
        add_partial_buffers(tile + (i % side + row()) * side + k % side + column(), i + row(),
                            k + column(), count, c);
        if (diagonal) {
            float other[4] = {};
            add_partial_buffers(tile + (k % side + row()) * side + i % side + column(), k + row(),
                                i + column(), count, other);
            store_mirrored(mirror + group() * SIDE * PITCH, other);
        }
        store_quad(direct + group() * SIDE * PITCH, c);
        block_barrier();
        // Reduce over the groups
        UNROLL
        for (unsigned q = 0; q < 4; q++) {
            const unsigned at = row() * PITCH + column() + q;
            float sum = 0;
            UNROLL
            for (unsigned g = 0; g < GROUPS; g++) sum += direct[g * SIDE * PITCH + at];
            if (diagonal) {
                UNROLL
                for (unsigned g = 0; g < GROUPS; g++) sum += mirror[g * SIDE * PITCH + at];
            }
            c[q] = i + row() < n && k + column() + q < n ? arguments.angle_factor * sum : 0.0f;
        }
    }

    DEVICE void run(const DistancePenalty& distance, rkd::Penalties& sums) const {
        // Load
        const uint64_t at = quad_offset(a, b);
        const bool first = group() == 0, has_distance = first && arguments.distance;
        float c[4] = {}, r[2][4];
        if (has_distance) {
            pair_tile::load_side_by_side(arguments.r[0] + at, r[0]);
            pair_tile::load_side_by_side(arguments.r[1] + at, r[1]);
        }
        // Accumulate
        if (arguments.angle_blocks > 0) angle(c);
        // Outside the diagonal (i, k) stands for (k, i) as well.
        if (has_distance) distance.add(r[0], r[1], a == b ? 1.0 : 2.0, c, sums);
        // Store
        if (first) store4(arguments.coefficients + at, c[0], c[1], c[2], c[3]);
        // All threads have read the angle's sums in shared memory.
        block_barrier();
        if (a == b) return;
        // Store the mirror image
        if (first) store_mirrored(direct, c);
        block_barrier();
        if (first) {
            const float* from = direct + row() * PITCH + column();
            store4(arguments.coefficients + quad_offset(b, a), from[0], from[1], from[2], from[3]);
        }
        block_barrier();
    }
};

// Visits this block's pairs of tiles.
template <unsigned SIDE>
DEVICE void for_each_tile(const Arguments& arguments, const DistancePenalty& distance,
                          float* direct, float* mirror, rkd::Penalties& sums) {
    const uint32_t tiles = rkd::padded(arguments.n) / SIDE, pairs = tiles * (tiles + 1) / 2;
    for (uint32_t index = blockIdx.x; index < pairs; index += gridDim.x) {
        const auto [a, b] = pair_tile::pair_of(index);
        CoefficientTile<SIDE>{arguments, direct, mirror, a, b}.run(distance, sums);
    }
}

DEVICE void coefficients(const Arguments& arguments) {
    constexpr unsigned SHARED = CoefficientTile<16>::SHARED > CoefficientTile<32>::SHARED
                                    ? CoefficientTile<16>::SHARED
                                    : CoefficientTile<32>::SHARED;
    SHARED_ARRAY(float, direct, SHARED);
    SHARED_ARRAY(float, mirror, SHARED);
    const rkd::Scalars scalars =
        arguments.lengths == nullptr
            ? *arguments.scalars
            : rkd::small_batch_scalars(arguments.lengths, arguments.length_count, arguments.n,
                                       arguments.scalars);
    const DistancePenalty distance(arguments, scalars);
    rkd::Penalties sums = {};
    // Add up the penalties of the angle's blocks
    for (uint64_t i = static_cast<uint64_t>(blockIdx.x) * THREADS + threadIdx.x;
         i < arguments.angle_blocks; i += static_cast<uint64_t>(gridDim.x) * THREADS)
        sums.angle += arguments.penalties[i];
    if (arguments.tile_side == 32) {
        for_each_tile<32>(arguments, distance, direct, mirror, sums);
    } else {
        for_each_tile<16>(arguments, distance, direct, mirror, sums);
    }
    // Reduce the penalties
    sums = block_reduce<THREADS>(sums, rkd::MergePenalties());
    if (threadIdx.x == 0) arguments.partials[blockIdx.x] = sums;
}

}  // namespace

EXPORT_KERNEL(relata_rkd_coefficients, THREADS, 4, Arguments, coefficients);
