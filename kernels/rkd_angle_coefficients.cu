// Computes   ∂L/∂h_ik = 2 weight/N³ (A_ik + A_ki − G_ik) of the angle loss, from the slots that rkd_angle has filled.
// Buffers    sums [slots, tile pairs, 64, 64] f32, see common/rkd.cuh: S_ik = A_ik + A_ki − G_ik or, in the tiles on the
//            diagonal, its halves, S_ik + S_ki; coefficients [P, P] f32, both triangles, zero beyond N.
// Passes     one launch, after rkd_angle.
// Grid       pairs of patches a ≤ b of 32 rows a side, of P rows.
// Block      256 threads: lane → k, warp → i, i + 8, ...; a patch and its mirror image.
// Shared     4 KiB: S_ki, and then what goes to the mirror image.
// Registers  at most 64.
// Work       slots/2 + 1 numbers a pair.
// Floor      bandwidth: 4 N² (slots/2 + 1) bytes.
// Numerics   f32; 16 slots, up to 48 where N ≤ 384, each itself a sum in f32 over its share of the triples.
// Order      fixed: by slot.
// Reference  docs/maths/rkd.md.
#include "common/pair_tile.cuh"
#include "common/rkd.cuh"

namespace {

constexpr unsigned PATCH = 32;

struct Arguments {
    const float* sums;
    float* coefficients;
    uint32_t n;
    uint32_t slots;
    float factor;  // 2 weight / N³
    uint32_t padding;
};

DEVICE void coefficients(const Arguments& arguments) {
    SHARED_ARRAY(float, mirror, PATCH * (PATCH + 1));
    const uint32_t n = arguments.n, tiles = rkd::tiles_of(n), pitch = rkd::padded(n);
    const auto [a, b] = pair_tile::pair_of(blockIdx.x);
    const uint32_t tile_a = a * PATCH / rkd::TILE, tile_b = b * PATCH / rkd::TILE;
    const uint64_t slot = rkd::tile_pairs(tiles) * rkd::TILE_ELEMENTS;
    const float* sums = arguments.sums + rkd::tile_at(tile_a, tile_b);
    const unsigned column = lane_index();
    // Of the slots in order, at this place of the tile.
    const auto sum_of = [&](uint32_t row, uint32_t column) {
        const uint64_t at = row % rkd::TILE * rkd::TILE + column % rkd::TILE;
        float sum = 0;
        for (unsigned s = 0; s < arguments.slots; s++) sum += sums[s * slot + at];
        return sum;
    };
    if (tile_a == tile_b) {
        for (unsigned row = warp_index(); row < PATCH; row += 8)
            mirror[row * (PATCH + 1) + column] = sum_of(b * PATCH + row, a * PATCH + column);
        block_barrier();
    }
    for (unsigned row = warp_index(); row < PATCH; row += 8) {
        const uint32_t i = a * PATCH + row, k = b * PATCH + column;
        float sum = sum_of(i, k);
        if (tile_a == tile_b) sum += mirror[column * (PATCH + 1) + row];
        sum = i < n && k < n ? arguments.factor * sum : 0.0f;
        arguments.coefficients[static_cast<uint64_t>(i) * pitch + k] = sum;
        // Each thread's own element, read above by itself alone, now holds what its mirror image is to become.
        mirror[column * (PATCH + 1) + row] = sum;
    }
    block_barrier();
    if (a == b) return;
    for (unsigned row = warp_index(); row < PATCH; row += 8) {
        const uint32_t k = b * PATCH + row, i = a * PATCH + column;
        arguments.coefficients[static_cast<uint64_t>(k) * pitch + i] = mirror[row * (PATCH + 1) + column];
    }
}

}  // namespace

EXPORT_KERNEL(relata_rkd_angle_coefficients, 256, 4, Arguments, coefficients);
