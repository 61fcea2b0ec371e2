// Computes   For every row and every split of its keys but the own one, with s_k = ⟨row, key_k⟩: the
//            largest s, and Σ_k 2^(scale (s_k − largest)). With masks, keys of the row's label and those
//            that the guide finds more alike than its own count as none.
// Buffers    rows of student and teacher [N, D], [N, D_t] f32 at length 1, the keys too; labels [N] u32
//            or null; stats [sets, splits, N].
// Passes     The second: normalize, this, towers_rows, towers_gradient, towers_finish. Not for a
//            sigmoid.
// Grid       ⌈side/64⌉ tiles of rows of each side × splits × sets: student, and teacher if it is a
//            target.
// Block      256 threads, 4 rows x 4 keys a thread; layout as in common/pair_tile.cuh.
// Shared     34 KiB.
// Registers  at most 128.
// Work       N² D/2 FMA where halves are compared, N² D else, of each set; as many pairs have an
//            exponential. A guide's products come on top, for each set.
// Floor      FP32 issue: N² D/2 / 33.4e12 s on an H200.
// Numerics   32 dimensions are summed in f32, then added. Products are subtracted, then scaled.
// Order      Fixed: by key of a thread, by tile, by lane. Products have the same bits in both orders
//            of a pair.
// Reference  src/reference/clip.rs, src/cpu/towers/log_sums.rs.
#include "common/towers.cuh"

namespace {

using namespace towers;

constexpr unsigned THREADS = pair_tile::THREADS;

// Mirrored in src/gpu/towers/arguments.rs.
struct Arguments {
    const float* rows[2];
    const uint32_t* labels;
    Stat* stats;
    double guide_margin;  // less the slack
    Compared compared;
    uint32_t dim[2];
    float scale[2];  // log2(e)/τ
    uint32_t has_guide;
    uint32_t padding;
};
ARGUMENTS(Arguments, rows, labels, stats, guide_margin, compared, dim, scale, has_guide, padding);

// The guide's products beyond which each row of the tile leaves a key out.
DEVICE void store_limits(const Arguments& arguments, const Side& side, float* limits) {
    for (unsigned i = warp_index(); i < TILE; i += THREADS / WARP) {
        const uint32_t row = side.first_row + i;
        if (row >= side.end_row) break;
        const double own = own_product(arguments.rows[1], arguments.dim[1], row,
                                       arguments.compared.partner(row));
        if (lane_index() == 0) limits[i] = static_cast<float>(own - arguments.guide_margin);
    }
}

// A bit for each pair of the thread that is left out, by row and then by key.
DEVICE uint32_t masks_of(const Arguments& arguments, const Side& side, uint32_t row, uint32_t first,
                         const float* limits, float* shared) {
    uint32_t masks = 0;
    if (arguments.has_guide) {
        float products[PER][PER];
        pair_tile::sums<PER, pair_tile::Product>(arguments.rows[1], arguments.compared.rows,
                                                 arguments.dim[1], side.first_row, first, shared,
                                                 products);
        block_barrier();
        UNROLL
        for (unsigned a = 0; a < PER; a++) {
            const float limit = limits[row - side.first_row + a];
            UNROLL
            for (unsigned b = 0; b < PER; b++)
                if (products[a][b] > limit) masks |= 1u << (a * PER + b);
        }
    }
    if (arguments.labels == nullptr) return masks;
    const uint32_t key = first + threadIdx.x % 16 * PER;
    UNROLL
    for (unsigned a = 0; a < PER; a++) {
        UNROLL
        for (unsigned b = 0; b < PER; b++) {
            const bool is_pair = row + a < side.end_row && key + b < side.end_key;
            if (is_pair && arguments.labels[row + a] == arguments.labels[key + b])
                masks |= 1u << (a * PER + b);
        }
    }
    return masks;
}

template <bool MASKED>
DEVICE void log_sums(const Arguments& arguments) {
    SHARED_ARRAY(float, shared, pair_tile::SHARED<float>);
    SHARED_ARRAY(float, limits, MASKED ? TILE : 1);
    const unsigned set = blockIdx.z;
    const uint32_t n = arguments.compared.rows;
    const float scale = arguments.scale[set];
    const Side side = side_of_block(arguments.compared);
    const uint32_t row = side.first_row + threadIdx.x / 16 * PER, lane = threadIdx.x % 16;

    if constexpr (MASKED) {
        if (arguments.has_guide) store_limits(arguments, side, limits);
    }
    float largest[PER], sums[PER] = {};
    UNROLL
    for (unsigned a = 0; a < PER; a++) largest[a] = -infinity();
    for (uint32_t first = side.first_key; first < side.end_key; first += TILE) {
        // Products
        float products[PER][PER];
        block_barrier();
        uint32_t masks = 0;
        if constexpr (MASKED) masks = masks_of(arguments, side, row, first, limits, shared);
        pair_tile::sums<PER, pair_tile::Product>(arguments.rows[set], n, arguments.dim[set],
                                                 side.first_row, first, shared, products);
        UNROLL
        for (unsigned a = 0; a < PER; a++) {
            // Mask, and update the maximum
            float next = largest[a];
            UNROLL
            for (unsigned b = 0; b < PER; b++) {
                const uint32_t key = first + lane * PER + b;
                const bool left_out = MASKED && (masks >> (a * PER + b) & 1) != 0;
                if (key >= side.end_key || key == row + a + side.own || left_out)
                    products[a][b] = -infinity();
                next = fmaxf(next, products[a][b]);
            }
            UNROLL
            for (unsigned mask = 8; mask > 0; mask /= 2) next = fmaxf(next, shuffle_xor(next, mask));
            // Sum. The row may have met no key yet but its own.
            const float origin = next == -infinity() ? 0 : next;
            float tile = 0;
            UNROLL
            for (unsigned b = 0; b < PER; b++)
                tile += exp2_fast((products[a][b] - origin) * scale);
            sums[a] = fmaf(sums[a], exp2_fast((largest[a] - origin) * scale), tile);
            largest[a] = next;
        }
    }
    Stat* stats = arguments.stats + (static_cast<uint64_t>(set) * gridDim.y + blockIdx.y) * n;
    UNROLL
    for (unsigned a = 0; a < PER; a++) {
        const float sum = sum_of_row(sums[a]);
        if (lane == 0 && row + a < side.end_row) stats[row + a] = {largest[a], sum};
    }
}

}  // namespace

EXPORT_KERNEL(relata_towers_log_sums, THREADS, 2, Arguments, log_sums<false>);
EXPORT_KERNEL(relata_towers_log_sums_masked, THREADS, 2, Arguments, log_sums<true>);
