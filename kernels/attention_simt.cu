// Computes   for every row and split of the keys, with s_k = ⟨row, key_k⟩: the largest s, Σ_k w_k and Σ_k w_k key_k of
//            w_k = 2^(scale (s_k − largest)). Rows × keys are never stored.
// Buffers    rows [R, row_pitch] f32, keys [K, key_pitch] f32 or f16: zero from D on, pitches whole 16 bytes, aligned
//            to 16 bytes; scales [R] f32; state [2] u32 or null; stats [splits, R], means [splits, R, mean_pitch]
//            f32.
// Passes     the second of three: attention_rows, this, rrd or info_nce. One launch, one sweep over the split's keys
//            with a running maximum (Milakov, Gimelshein, arXiv 1805.02867). For what attention_mma is not for: f32,
//            rows or keys of any length (normalize off), D > 256.
// Grid       ⌈R/64⌉ × splits × ⌈D/128⌉: 64 rows, whole tiles of 64 keys, 128 columns of the mean. With more than 128
//            columns the logits are formed again for each 128.
// Block      256 threads, 8 warps, as 4 × 2 over the 64 × 64 logits, 16 rows x 32 keys each, 4 × 8 lanes in a warp:
//
//              group of rows r = 4 (warp / 2) + lane / 8       group of keys c = 8 (warp % 2) + lane % 8
//              logits:  thread holds rows r, r + 16, r + 32, r + 48 and keys c, c + 16, c + 32, c + 48
//              means:   thread holds rows 4r .. 4r + 3 and columns 4c .. 4c + 3, 64 + 4c .. 64 + 4c + 3
//              softmax: thread t holds row t / 4, keys t % 4, t % 4 + 4, ...
//
//            so that a warp's loads from shared memory take one wavefront each: 4 rows and 8 keys (or 2 × 8 groups of
//            columns), as broadcasts.
// Shared     37 KiB: logits, then weights [key][row] 18 KiB; 32 elements of the rows and of the keys, each 64 × (32 +
//            4) f32, in whose place then 32 keys × 128 columns; what the tile's sums are worth 256 B.
// Registers  at most 128 (two blocks a multiprocessor): 16 logits, 32 means, 32 of a tile's means.
// Resident   relata_attention_simt_f32 2 of 256 threads
// Work       4 R K D flop (6 at D = 256, 8 at D = 384: the logits once more for each 128), R K exponentials a pass;
//            K D read (from L2) for each 64 rows.
// Floor      arithmetic: 2 R K D FFMA.
// Numerics   all f32. Products are summed over D in order; a tile's exponentials and weighted keys in sums of their
//            own, which are then added to the split's by one FFMA that also rescales: error grows with √(64 + tiles).
//            Products are subtracted, then scaled: exact where it matters, at any temperature.
// Order      fixed: by element, by key, by tile; splits by the finishing pass.
// Reference  src/reference/rrd.rs, src/cpu/attention.rs.
#include "common/attention.cuh"
#include "common/collective.cuh"

namespace {

constexpr unsigned THREADS = 256;
constexpr unsigned ROWS = 64;
// Elements of rows and keys in shared memory at a time, and keys when they serve as values.
constexpr unsigned DEPTH = 32;
constexpr unsigned VALUES = 32;
constexpr unsigned COLUMNS = 128;
// Four more than the elements: lanes on neighbouring rows read neighbouring 16 bytes of banks.
constexpr unsigned STRIDE = DEPTH + 4;
// Eight more than the rows: the softmax's four lanes of a row are 8 banks apart.
constexpr unsigned WEIGHT_STRIDE = ROWS + 8;

constexpr unsigned STAGE = 2 * 64 * STRIDE;
static_assert(ROWS == 64 && KEYS == 64 && STAGE >= VALUES * COLUMNS, "both uses of the stage");

// `COUNT` rows from `first` on, `WIDTH` columns of each from `column` on, to shared memory. Beyond `end` and `pitch`
// there are zeros.
template <unsigned COUNT, unsigned WIDTH, typename T>
DEVICE void stage(float* to, unsigned stride, const T* from, uint32_t pitch, uint32_t first, uint32_t end,
                  uint32_t column) {
    constexpr unsigned CHUNKS = WIDTH / CHUNK<T>;
    UNROLL_BY(2)
    for (unsigned i = threadIdx.x; i < COUNT * CHUNKS; i += THREADS) {
        const uint32_t row = i / CHUNKS, c = i % CHUNKS * CHUNK<T>;
        float chunk[CHUNK<T>] = {};
        if (row < end - first && column + c < pitch)
            load_chunk(from + (static_cast<uint64_t>(first) + row) * pitch + column + c, chunk);
        UNROLL
        for (unsigned j = 0; j < CHUNK<T>; j += 4)
            store4(to + row * stride + c + j, chunk[j], chunk[j + 1], chunk[j + 2], chunk[j + 3]);
    }
}

// Mirrored in src/gpu/attention/arguments.rs.
struct Arguments {
    Attending attending;
    const float* rows;    // [row_count, row_pitch], as attention_rows writes them
    const float* scales;  // [row_count], above 0: from products with a key to logits in base 2
    uint32_t row_pitch;
    uint32_t pass_over_own;  // whether row i passes over key i
};

struct Place {
    unsigned r, c;
};

// The products of the thread's rows and keys.
template <typename K>
DEVICE void products(const Arguments& arguments, Place at, uint32_t first_row, uint32_t first_key,
                     uint32_t end_key, float* shared, float (&sums)[4][4]) {
    const Attending& attending = arguments.attending;
    const K* keys = static_cast<const K*>(attending.keys);
    float* row_stage = shared;
    float* key_stage = shared + ROWS * STRIDE;
    for (uint32_t column = 0; column < attending.dim; column += DEPTH) {
        block_barrier();
        stage<ROWS, DEPTH>(row_stage, STRIDE, arguments.rows, arguments.row_pitch, first_row, attending.row_count, column);
        stage<KEYS, DEPTH>(key_stage, STRIDE, keys, attending.key_pitch, first_key, end_key, column);
        block_barrier();
        if (at.r >= attending.row_count - first_row) continue;
        const unsigned depth = attending.dim - column < DEPTH ? attending.dim - column : DEPTH;
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
                    for (unsigned j = 0; j < 4; j++) sums[i][j] = fmaf(row[i][e], key[j][e], sums[i][j]);
                }
            }
        }
    }
}

// Weighted keys of a tile, the columns from `column` on: added to `means`, which are rescaled.
template <typename K>
DEVICE void gather(const Attending& arguments, Place at, uint32_t first_row, uint32_t column,
                   uint32_t first_key, uint32_t end_key, const float* weights, const float* decays, float* values,
                   float (&means)[4][8]) {
    float sums[4][8] = {};
    const bool any = column + 4 * at.c < arguments.dim && 4 * at.r < arguments.row_count - first_row;
    for (uint32_t from = 0; from < KEYS; from += VALUES) {
        if (first_key + from >= end_key) break;
        block_barrier();
        stage<VALUES, COLUMNS>(values, COLUMNS, static_cast<const K*>(arguments.keys), arguments.key_pitch,
                               first_key + from, end_key, column);
        block_barrier();
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
                for (unsigned j = 0; j < 8; j++) sums[i][j] = fmaf(weight[i], value[j / 4][j % 4], sums[i][j]);
            }
        }
    }
    UNROLL
    for (unsigned i = 0; i < 4; i++) {
        const float decay = decays[4 * at.r + i];
        UNROLL
        for (unsigned j = 0; j < 8; j++) means[i][j] = fmaf(means[i][j], decay, sums[i][j]);
    }
}

template <typename K>
DEVICE void attend(const Arguments& arguments) {
    const Attending& attending = arguments.attending;
    SHARED_ARRAY(float, shared, STAGE);
    SHARED_ARRAY(float, weights, KEYS * WEIGHT_STRIDE);
    SHARED_ARRAY(float, decays, ROWS);
    const KeyRange range = keys_of_split(attending);
    const uint32_t first_row = blockIdx.x * ROWS, column = blockIdx.z * COLUMNS;
    const Place at = {4 * (warp_index() / 2) + lane_index() / 8, 8 * (warp_index() % 2) + lane_index() % 8};

    // The row whose softmax this thread takes part in.
    const unsigned own = threadIdx.x / 4, quarter = threadIdx.x % 4;
    const uint32_t own_row = first_row + own;
    const float scale = own_row < attending.row_count ? arguments.scales[own_row] : 1;
    float largest = -infinity(), sum = 0;
    float means[4][8] = {};

    for (uint32_t first_key = range.begin; first_key < range.end; first_key += KEYS) {
        float logits[4][4] = {};
        products<K>(arguments, at, first_row, first_key, range.end, shared, logits);
        UNROLL
        for (unsigned i = 0; i < 4; i++) {
            UNROLL
            for (unsigned j = 0; j < 4; j++) weights[(at.c + 16 * j) * WEIGHT_STRIDE + at.r + 16 * i] = logits[i][j];
        }
        block_barrier();

        float next = largest;
        UNROLL_BY(4)
        for (unsigned k = quarter; k < KEYS; k += 4) {
            const uint32_t key = first_key + k;
            if (key >= range.end || (arguments.pass_over_own && key == own_row))
                weights[k * WEIGHT_STRIDE + own] = -infinity();
            next = fmaxf(next, weights[k * WEIGHT_STRIDE + own]);
        }
        next = fmaxf(next, shuffle_xor(next, 1));
        next = fmaxf(next, shuffle_xor(next, 2));
        // So far there may have been no key for the row but its own.
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
        gather<K>(attending, at, first_row, column, first_key, range.end, weights, decays, shared, means);
    }

    sum += shuffle_xor(sum, 1);
    sum += shuffle_xor(sum, 2);
    const uint64_t start = static_cast<uint64_t>(blockIdx.y) * attending.row_count;
    if (blockIdx.z == 0 && quarter == 0 && own_row < attending.row_count)
        attending.stats[start + own_row] = {largest, sum, 0};
    UNROLL
    for (unsigned i = 0; i < 4; i++) {
        const uint32_t row = first_row + 4 * at.r + i;
        if (row >= attending.row_count) continue;
        UNROLL
        for (unsigned half = 0; half < 2; half++) {
            const uint32_t d = column + 64 * half + 4 * at.c;
            const float* mean = means[i] + 4 * half;
            if (d < attending.mean_pitch)
                store4(attending.means + (start + row) * attending.mean_pitch + d, mean[0], mean[1], mean[2], mean[3]);
        }
    }
}

}  // namespace

EXPORT_KERNEL(relata_attention_simt_f32, THREADS, 2, Arguments, attend<float>);
EXPORT_KERNEL(relata_attention_simt_f16, THREADS, 2, Arguments, attend<f16>);
