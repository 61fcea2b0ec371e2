// Computes   ∂L/∂h_ik = 2 weight/N³ (A_ik + A_ki − G_ik) of the angle loss, from the slots that rkd_angle has filled.
// Buffers    sums_a [groups, N, N] f32, vertex first; sums_g [splits, N, N] f32, of which the tiles (a ≤ b) are used;
//            coefficients [N, N] f32, both triangles.
// Passes     one launch, after rkd_angle.
// Grid       pairs of patches a ≤ b of 32 rows a side.
// Block      256 threads: lane → k, warp → i, i + 8, ...; a patch and its mirror image.
// Shared     4 KiB: A_ki, and then what goes to the mirror image.
// Registers  at most 64.
// Work       2 groups + splits + 2 numbers a pair.
// Floor      bandwidth: 4 N² (groups + splits/2 + 1) bytes.
// Numerics   f32; at most 8 slots of each kind (32 splits where N ≤ 256).
// Order      fixed: by slot.
// Reference  docs/maths/rkd.md.
#include "common/pair_tile.cuh"

namespace {

constexpr unsigned PATCH = 32;

struct Arguments {
    const float* sums_a;
    const float* sums_g;
    float* coefficients;
    uint32_t n;
    uint32_t groups;
    uint32_t splits;
    float factor;  // 2 weight / N³
};

DEVICE void coefficients(const Arguments& arguments) {
    SHARED_ARRAY(float, mirror, PATCH * (PATCH + 1));
    const uint32_t n = arguments.n;
    const auto [a, b] = pair_tile::pair_of(blockIdx.x);
    const uint64_t matrix = static_cast<uint64_t>(n) * n;
    const unsigned column = lane_index();
    // A_ki: the ends k lie along the rows of the slots' vertices i, and the other way round.
    for (unsigned row = warp_index(); row < PATCH; row += 8) {
        const uint32_t k = b * PATCH + row, i = a * PATCH + column;
        float sum = 0;
        if (k < n && i < n) {
            for (unsigned s = 0; s < arguments.groups; s++) sum += arguments.sums_a[s * matrix + static_cast<uint64_t>(k) * n + i];
        }
        mirror[row * (PATCH + 1) + column] = sum;
    }
    block_barrier();
    for (unsigned row = warp_index(); row < PATCH; row += 8) {
        const uint32_t i = a * PATCH + row, k = b * PATCH + column;
        const uint64_t at = static_cast<uint64_t>(i) * n + k;
        float ends = 0, sum = 0;
        if (i < n && k < n) {
            for (unsigned s = 0; s < arguments.splits; s++) ends += arguments.sums_g[s * matrix + at];
            for (unsigned s = 0; s < arguments.groups; s++) sum += arguments.sums_a[s * matrix + at];
            sum = arguments.factor * ((sum + mirror[column * (PATCH + 1) + row]) - ends);
            arguments.coefficients[at] = sum;
        }
        // Each thread's own element, read above by itself alone, now holds what its mirror image is to become.
        mirror[column * (PATCH + 1) + row] = sum;
    }
    block_barrier();
    if (a == b) return;
    for (unsigned row = warp_index(); row < PATCH; row += 8) {
        const uint32_t k = b * PATCH + row, i = a * PATCH + column;
        if (k < n && i < n) arguments.coefficients[static_cast<uint64_t>(k) * n + i] = mirror[row * (PATCH + 1) + column];
    }
}

}  // namespace

EXPORT_KERNEL(relata_rkd_angle_coefficients, 256, 4, Arguments, coefficients);
