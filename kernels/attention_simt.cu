// Computes   For every row and every split of the keys, with s_k = ⟨row, key_k⟩: the largest s, Σ_k
//            w_k and Σ_k w_k key_k, where w_k = 2^(scale (s_k − largest)). The matrix of rows ×
//            keys is never stored.
// Buffers    rows [R, row_pitch] f32, keys [K, key_pitch] f32 or f16: zero from D on, pitches whole
//            16 bytes, aligned to 16 bytes; scales [R] f32; state [2] u32 or null; stats [splits,
//            R], means [splits, R, mean_pitch] f32.
// Passes     The second: attention_rows, this, then rrd and rrd_divergence, or info_nce. One launch,
//            with one sweep over the split's keys and a running maximum (Milakov, Gimelshein, arXiv 1805.02867).
//            It does what attention_mma does not: f32, rows or keys of any length (normalize off),
//            D > 256.
// Grid       ⌈R/64⌉ × splits × ⌈D/128⌉: 64 rows, whole tiles of 64 keys, 128 columns of the mean.
//            With more than 128 columns, each 128 columns compute the logits again.
// Block      256 threads, 8 warps. Over the 64 × 64 logits the warps lie 4 × 2, with 16 rows x 32
//            keys each; the lanes of a warp lie 4 × 8:
//
//              group of rows r = 4 (warp / 2) + lane / 8
//              group of keys c = 8 (warp % 2) + lane % 8
//              logits:  rows r, r + 16, r + 32, r + 48 and keys c, c + 16, c + 32, c + 48
//              means:   rows 4r .. 4r + 3 and columns 4c .. 4c + 3, 64 + 4c .. 64 + 4c + 3
//              softmax: thread t holds row t / 4, keys t % 4, t % 4 + 4, ...
//
//            A warp's load from shared memory then takes one wavefront: it reads 4 rows and 8 keys,
//            or 2 × 8 groups of columns, as broadcasts.
// Shared     37 KiB. Logits, then weights, [key][row]: 18 KiB. 32 elements of the rows and of the
//            keys, 64 × (32 + 4) f32 each; later 32 keys × 128 columns take their place. The
//            factors that rescale the rows' sums: 256 B.
// Registers  at most 128 (two blocks a multiprocessor): 16 logits, 32 means, 32 means of a tile.
// Resident   relata_attention_simt_f32 2 of 256 threads
// Work       4 R K D flop, R K exponentials a pass; K D elements read, from L2, for each 64 rows.
//            It is 6 R K D at D = 256 and 8 R K D at D = 384, since each 128 columns compute the
//            logits again.
// Floor      Arithmetic: 2 R K D FFMA.
// Numerics   All in f32. Products are summed over D in order. A tile's exponentials and weighted
//            keys have sums of their own; one FFMA adds them to the split's and rescales those. So
//            the error grows with √(64 + tiles). Products are subtracted, then scaled: that is
//            exact where it matters, at any temperature.
// Order      Fixed: by element, by key, by tile. The last pass adds up the splits in order.
// Reference  src/reference/rrd.rs, src/cpu/contrastive/attention.rs.
#include "common/attention.cuh"
#include "common/collective.cuh"
#include "common/stage.cuh"

namespace {

constexpr unsigned THREADS = 256;
constexpr unsigned ROWS = 64;
// Elements of rows and keys in shared memory at a time.
constexpr unsigned DEPTH = 32;
// Keys in shared memory at a time when they serve as values.
constexpr unsigned VALUES = 32;
constexpr unsigned COLUMNS = 128;
// Four more than the elements: lanes on neighbouring rows then read neighbouring 16 bytes of banks.
constexpr unsigned STRIDE = DEPTH + 4;
// Eight more than the rows: the four lanes of a row in the softmax are then 8 banks apart.
constexpr unsigned WEIGHT_STRIDE = ROWS + 8;

constexpr unsigned STAGE = 2 * 64 * STRIDE;
static_assert(ROWS == 64 && KEYS == 64 && STAGE >= VALUES * COLUMNS, "both uses of the stage");

// Mirrored in src/gpu/contrastive/arguments.rs.
struct Arguments {
    AttentionCommon common;
    const float* rows;    // [row_count, row_pitch], as attention_rows writes them
    const float* scales;  // [row_count], above 0: from products with a key to logits in base 2
    uint32_t row_pitch;
    uint32_t skip_own_key;  // whether row i skips key i
};
ARGUMENTS(Arguments, common, rows, scales, row_pitch, skip_own_key);

// A thread's place among the 16 × 16 groups: r and c of the header.
struct ThreadGroup {
    unsigned r, c;
};

// Adds the products of the thread's rows and keys to `sums`.
template <typename K>
DEVICE void add_products(const Arguments& arguments, ThreadGroup at, uint32_t first_row,
                         uint32_t first_key, uint32_t end_key, float* shared,
                         float (&sums)[4][4]) {
    const AttentionCommon& common = arguments.common;
    const K* keys = static_cast<const K*>(common.keys);
    float* row_stage = shared;
    float* key_stage = shared + ROWS * STRIDE;
    for (uint32_t column = 0; column < common.dim; column += DEPTH) {
        // Load rows and keys
        block_barrier();
        stage_rows<THREADS, ROWS, DEPTH>(row_stage, STRIDE, arguments.rows, arguments.row_pitch,
                                         first_row, common.row_count, column);
        stage_rows<THREADS, KEYS, DEPTH>(key_stage, STRIDE, keys, common.key_pitch, first_key,
                                         end_key, column);
        block_barrier();
        // Multiply
        if (at.r >= common.row_count - first_row) continue;
        const unsigned depth = common.dim - column < DEPTH ? common.dim - column : DEPTH;
        UNROLL_BY(1)
        for (unsigned d = 0; d < depth; d += 4) {
            float row[4][4], key[4][4];
            UNROLL
            for (unsigned i = 0; i < 4; i++) {
                load_chunk(row_stage + (at.r + 16 * i) * STRIDE + d, row[i]);
                load_chunk(key_stage + (at.c + 16 * i) * STRIDE + d, key[i]);
            }
            UNROLL
            for (unsigned e = 0; e < 4; e++) {
                UNROLL
                for (unsigned i = 0; i < 4; i++) {
                    UNROLL
                    for (unsigned j = 0; j < 4; j++)
                        sums[i][j] = fmaf(row[i][e], key[j][e], sums[i][j]);
                }
            }
        }
    }
}

// Rescales `means` by `decays` and adds the weighted keys of a tile, in the columns from `column`
// on.
template <typename K>
DEVICE void accumulate_means(const AttentionCommon& arguments, ThreadGroup at, uint32_t first_row,
                             uint32_t column, uint32_t first_key, uint32_t end_key,
                             const float* weights, const float* decays, float* values,
                             float (&means)[4][8]) {
    float sums[4][8] = {};
    const bool any =
        column + 4 * at.c < arguments.dim && 4 * at.r < arguments.row_count - first_row;
    for (uint32_t from = 0; from < KEYS; from += VALUES) {
        if (first_key + from >= end_key) break;
        // Load the keys
        block_barrier();
        stage_rows<THREADS, VALUES, COLUMNS>(values, COLUMNS,
                                             static_cast<const K*>(arguments.keys),
                                             arguments.key_pitch, first_key + from, end_key,
                                             column);
        block_barrier();
        // Multiply
        if (!any) continue;
        UNROLL_BY(4)
        for (unsigned k = 0; k < VALUES; k++) {
            float weight[4], value[2][4];
            load_chunk(weights + (from + k) * WEIGHT_STRIDE + 4 * at.r, weight);
            load_chunk(values + k * COLUMNS + 4 * at.c, value[0]);
            load_chunk(values + k * COLUMNS + 64 + 4 * at.c, value[1]);
            UNROLL
            for (unsigned i = 0; i < 4; i++) {
                UNROLL
                for (unsigned j = 0; j < 8; j++)
                    sums[i][j] = fmaf(weight[i], value[j / 4][j % 4], sums[i][j]);
            }
        }
    }
    // Accumulate
    UNROLL
    for (unsigned i = 0; i < 4; i++) {
        const float decay = decays[4 * at.r + i];
        UNROLL
        for (unsigned j = 0; j < 8; j++) means[i][j] = fmaf(means[i][j], decay, sums[i][j]);
    }
}

template <typename K>
DEVICE void attention_forward(const Arguments& arguments) {
    const AttentionCommon& common = arguments.common;
    SHARED_ARRAY(float, shared, STAGE);
    SHARED_ARRAY(float, weights, KEYS * WEIGHT_STRIDE);
    SHARED_ARRAY(float, decays, ROWS);
    const KeyRange range = keys_of_split(common);
    const uint32_t first_row = blockIdx.x * ROWS, column = blockIdx.z * COLUMNS;
    const ThreadGroup at = {4 * (warp_index() / 2) + lane_index() / 8,
                            8 * (warp_index() % 2) + lane_index() % 8};

    // The row whose softmax this thread shares with three others.
    const unsigned own = threadIdx.x / 4, quarter = threadIdx.x % 4;
    const uint32_t own_row = first_row + own;
    const float scale = own_row < common.row_count ? arguments.scales[own_row] : 1;
    float largest = -infinity(), sum = 0;
    float means[4][8] = {};

    for (uint32_t first_key = range.begin; first_key < range.end; first_key += KEYS) {
        // Products
        float products[4][4] = {};
        add_products<K>(arguments, at, first_row, first_key, range.end, shared, products);
        UNROLL
        for (unsigned i = 0; i < 4; i++) {
            UNROLL
            for (unsigned j = 0; j < 4; j++)
                weights[(at.c + 16 * j) * WEIGHT_STRIDE + at.r + 16 * i] = products[i][j];
        }
        block_barrier();

        // Mask, and update the maximum
        float next = largest;
        UNROLL_BY(4)
        for (unsigned k = quarter; k < KEYS; k += 4) {
            const uint32_t key = first_key + k;
            if (key >= range.end || (arguments.skip_own_key && key == own_row))
                weights[k * WEIGHT_STRIDE + own] = -infinity();
            next = fmaxf(next, weights[k * WEIGHT_STRIDE + own]);
        }
        next = fmaxf(next, shuffle_xor(next, 1));
        next = fmaxf(next, shuffle_xor(next, 2));
        // Softmax. The row may have met no key yet but its own, which it skips.
        const float origin = next == -infinity() ? 0 : next;
        const float decay = exp2_fast((largest - origin) * scale);
        float tile = 0;
        UNROLL_BY(4)
        for (unsigned k = quarter; k < KEYS; k += 4) {
            const float weight = exp2_fast((weights[k * WEIGHT_STRIDE + own] - origin) * scale);
            weights[k * WEIGHT_STRIDE + own] = weight;
            tile += weight;
        }
        sum = fmaf(sum, decay, tile);
        largest = next;
        if (quarter == 0) decays[own] = decay;
        // Accumulate
        accumulate_means<K>(common, at, first_row, column, first_key, range.end, weights, decays,
                            shared, means);
    }

    // Store
    sum += shuffle_xor(sum, 1);
    sum += shuffle_xor(sum, 2);
    const uint64_t start = static_cast<uint64_t>(blockIdx.y) * common.row_count;
    if (blockIdx.z == 0 && quarter == 0 && own_row < common.row_count)
        common.stats[start + own_row] = {largest, sum, 0};
    UNROLL
    for (unsigned i = 0; i < 4; i++) {
        const uint32_t row = first_row + 4 * at.r + i;
        if (row >= common.row_count) continue;
        UNROLL
        for (unsigned half = 0; half < 2; half++) {
            const uint32_t d = column + 64 * half + 4 * at.c;
            const float* mean = means[i] + 4 * half;
            if (d < common.mean_pitch)
                store4(common.means + (start + row) * common.mean_pitch + d, mean[0], mean[1],
                       mean[2], mean[3]);
        }
    }
}

}  // namespace

EXPORT_KERNEL(relata_attention_simt_f32, THREADS, 2, Arguments, attention_forward<float>);
EXPORT_KERNEL(relata_attention_simt_f16, THREADS, 2, Arguments, attention_forward<f16>);
