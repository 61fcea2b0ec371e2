// Computes   for every row and split of the keys, with s_k = ⟨row, key_k⟩: the largest s, Σ_k w_k and Σ_k w_k key_k
//            of w_k = 2^(scale (s_k − largest)). Rows × keys are never stored. In a batch (keys are the rows of the
//            teacher, times a scale each) row i passes over key i.
// Buffers    rows [R, row_pitch] f16, keys [K, key_pitch] f16: zero from D on, pitches multiples of 8, aligned to 16
//            bytes; scales [R], key_scales [K] (of a batch) f32; state [2] u32 or null; stats [splits, R], means
//            [splits, R, mean_pitch] f32.
// Passes     the second of three: attention_rows, this, rrd or info_nce. One launch, one sweep over the split's keys
//            with a running maximum (FlashAttention-2, arXiv 2307.08691, with keys for values). For f16 and bf16 rows
//            of unit length or a known one, D ≤ WIDTH; attention_simt is for the rest.
// Grid       ⌈R / (64 TILES)⌉ × splits: 4 warps of TILES tiles of 16 rows; whole tiles of 64 keys. TILES is 2, so
//            that a key's fragments serve two tiles of rows from shared memory, or 1 where WIDTH is 256 and the means
//            alone take 128 registers.
// Block      128 threads. A warp holds 16 TILES rows over SPAN = 64 / TILES keys at a time; lane 4g + t, of each tile
//            of 16 rows (kernels/common/mma.cuh):
//
//                        keys 8n + 2t, 8n + 2t + 1 of the span (columns of the mean alike)
//              row g      sums[n][0..1]    means[n][0..1]
//              row g + 8  sums[n][2..3]    means[n][2..3]
//
//            The logits' layout is that of the left operand of the next product: weights never leave the registers.
// Shared     dynamic: rows, and two stages of 64 keys: (64 TILES + 128)(D' + 8) f16, D' = D to the next multiple of
//            16. The 8 put neighbouring rows' 16 bytes on different banks, for ldmatrix. Static: a batch's key
//            scales, 512 B.
// Registers  at most 255 (two blocks a multiprocessor); 64-wide 168 (three).
// SASS       HMMA.16816.F32, LDSM.16.M88.4, LDGSTS
// Work       6 R K D flop: logits, and each weight as a sum of two f16. R K exponentials. K D f16 read (from L2) for
//            each block of rows.
// Floor      arithmetic: 4 R K D flop of tensor cores for the loss as it is defined, 6 as it is computed here.
//            docs/kernels/rrd.md has them in microseconds.
// Numerics   Products of f16 are exact, sums f32: logits are as good as in f32. A weight is w = hi + lo, two f16 of
//            2^15 w, so that 2^-22 of it is lost where one f16 would lose 2^-12: near convergence O_s − O_t cancels,
//            and this is what is left. A tile's weighted keys are summed in accumulators of their own (tensor cores
//            truncate) and added to the split's by an FFMA that also rescales, so rescaling costs nothing and needs
//            no condition. Keys are as exact as f16: off by 2^-12, which no computation here can undo, unless they
//            are the batch's own: those come as the rows they are, exact, with their lengths as scales.
// Order      fixed: by key, by tile; splits by the finishing pass.
// Reference  src/reference/rrd.rs, src/reference/info_nce.rs.
#include "common/async.cuh"
#include "common/attention.cuh"
#include "common/collective.cuh"
#include "common/mma.cuh"

namespace {

constexpr unsigned THREADS = 128;
constexpr unsigned WARPS = THREADS / WARP;
// Elements of 16 bytes.
constexpr unsigned VECTOR = 8;

// Rows or keys in shared memory.
struct Stage {
    f16* memory;
    uint32_t stride;  // elements from one to the next
    uint32_t depth;   // elements of one, a multiple of 16

    DEVICE const f16* at(unsigned row, unsigned column) const { return memory + row * stride + column; }

    // Copies `COUNT` rows from `first` on; rows from `end` on become zero. WIDTH is at least the depth.
    template <unsigned COUNT, unsigned WIDTH>
    DEVICE void fill(const f16* from, uint32_t pitch, uint32_t first, uint32_t end) const {
        constexpr unsigned VECTORS = WIDTH / VECTOR;
        const unsigned column = threadIdx.x % VECTORS * VECTOR;
        if (column >= depth) return;
        UNROLL
        for (unsigned i = 0; i < COUNT * VECTORS / THREADS; i++) {
            const unsigned row = i * (THREADS / VECTORS) + threadIdx.x / VECTORS;
            const bool inside = row < end - first && column < pitch;
            const uint64_t offset = inside ? (static_cast<uint64_t>(first) + row) * pitch + column : 0;
            copy_async(memory + row * stride + column, from + offset, inside ? 16 : 0);
        }
    }
};

// The softmax of 16 rows as it runs, for the rows g and g + 8 of this lane.
struct Running {
    float scale[2];
    float largest[2] = {-infinity(), -infinity()};
    // Of this lane's keys.
    float sum[2] = {};
};

template <unsigned WIDTH, unsigned TILES, bool BATCH>
struct Attention {
    static constexpr unsigned ROWS = 16 * TILES * WARPS;
    static constexpr unsigned SPAN = KEYS / TILES;
    // The largest weight is 2^BIAS: f16 has most room below. A batch's key scales lie in (2^-15, 2^-14].
    static constexpr float BIAS = BATCH ? 29 : 15;
    static constexpr float UNBIAS = BATCH ? 0x1p-29f : 0x1p-15f;

    const AttentionArguments& arguments;
    const Stage rows;
    Stage keys;
    const uint32_t first_row;  // of this warp
    Running running[TILES];
    float means[TILES][WIDTH / 8][4] = {};
    float decays[TILES][2];
    // hi and lo of the weights: left operands of 16 keys.
    uint32_t hi[TILES][SPAN / 16][4], lo[TILES][SPAN / 16][4];

    DEVICE Attention(const AttentionArguments& arguments, Stage rows)
        : arguments(arguments), rows(rows), keys(rows), first_row(blockIdx.x * ROWS + warp_index() * TILES * 16) {
        UNROLL
        for (unsigned m = 0; m < TILES; m++) {
            UNROLL
            for (unsigned half = 0; half < 2; half++) {
                const uint32_t row = first_row + m * 16 + lane_index() / 4 + half * 8;
                running[m].scale[half] = row < arguments.row_count ? arguments.scales[row] : 1;
            }
        }
    }

    // Products of the warp's rows with the span's keys.
    DEVICE void multiply(unsigned span, float (&sums)[TILES][SPAN / 8][4]) const {
        const unsigned lane = lane_index();
        UNROLL_BY(2)
        for (unsigned d = 0; d < rows.depth; d += 16) {
            uint32_t a[TILES][4];
            UNROLL
            for (unsigned m = 0; m < TILES; m++)
                load_matrices(a[m], rows.at((warp_index() * TILES + m) * 16 + lane % 16, d + lane / 16 * 8));
            UNROLL
            for (unsigned n = 0; n < SPAN / 8; n += 2) {
                uint32_t b[4];
                load_matrices(b, keys.at(span + n * 8 + lane % 8 + lane / 16 * 8, d + lane / 8 % 2 * 8));
                UNROLL
                for (unsigned m = 0; m < TILES; m++) {
                    multiply_accumulate(sums[m][n], a[m], b[0], b[1]);
                    multiply_accumulate(sums[m][n + 1], a[m], b[2], b[3]);
                }
            }
        }
    }

    // Makes weights of products, and decays of what came before.
    DEVICE void weigh(unsigned m, uint32_t first_key, uint32_t end_key, const float* key_scales,
                      float (&products)[SPAN / 8][4]) {
        const unsigned g = lane_index() / 4, t = lane_index() % 4;
        Running& run = running[m];
        if (BATCH) {
            UNROLL
            for (unsigned n = 0; n < SPAN / 8; n++) {
                UNROLL
                for (unsigned i = 0; i < 4; i++) products[n][i] *= key_scales[n * 8 + 2 * t + i % 2];
            }
        }
        if (BATCH || first_key + SPAN > end_key) {
            UNROLL
            for (unsigned n = 0; n < SPAN / 8; n++) {
                UNROLL
                for (unsigned i = 0; i < 4; i++) {
                    const uint32_t key = first_key + n * 8 + 2 * t + i % 2;
                    const bool own = BATCH && key == first_row + m * 16 + g + i / 2 * 8;
                    if (own || key >= end_key) products[n][i] = -infinity();
                }
            }
        }
        float origin[2];
        UNROLL
        for (unsigned half = 0; half < 2; half++) {
            float next = run.largest[half];
            UNROLL
            for (unsigned n = 0; n < SPAN / 8; n++)
                next = fmaxf(next, fmaxf(products[n][2 * half], products[n][2 * half + 1]));
            next = fmaxf(next, shuffle_xor(next, 1));
            next = fmaxf(next, shuffle_xor(next, 2));
            // So far there may have been no key for the row but its own.
            origin[half] = next == -infinity() ? 0 : next;
            decays[m][half] = exp2_fast((run.largest[half] - origin[half]) * run.scale[half]);
            run.largest[half] = next;
        }
        float sum[2] = {};
        UNROLL
        for (unsigned n = 0; n < SPAN / 8; n++) {
            float high[4], low[4];
            UNROLL
            for (unsigned i = 0; i < 4; i++) {
                float weight = exp2_fast(fmaf(products[n][i] - origin[i / 2], run.scale[i / 2], BIAS));
                sum[i / 2] += weight;
                if (BATCH) weight *= key_scales[n * 8 + 2 * t + i % 2];
                // The eleven bits that an f16 keeps, so that the rest is a difference without rounding.
                high[i] = bits_to_float(float_to_bits(weight) & 0xFFFFE000u);
                low[i] = weight - high[i];
            }
            UNROLL
            for (unsigned half = 0; half < 2; half++) {
                hi[m][n / 2][n % 2 * 2 + half] = pack_f16(high[2 * half], high[2 * half + 1]);
                lo[m][n / 2][n % 2 * 2 + half] = pack_f16(low[2 * half], low[2 * half + 1]);
            }
        }
        UNROLL
        for (unsigned half = 0; half < 2; half++) run.sum[half] = fmaf(run.sum[half], decays[m][half], sum[half]);
    }

    // Adds the span's weighted keys to the means, which decay.
    DEVICE void gather(unsigned span) {
        const unsigned lane = lane_index();
        UNROLL
        for (unsigned c = 0; c < WIDTH / 8; c += 2) {
            if (c * 8 >= keys.depth) break;
            float fresh[TILES][2][4] = {};
            UNROLL
            for (unsigned k = 0; k < SPAN / 16; k++) {
                uint32_t b[4];
                load_matrices_transposed(b, keys.at(span + k * 16 + lane % 16, c * 8 + lane / 16 * 8));
                UNROLL
                for (unsigned m = 0; m < TILES; m++) {
                    multiply_accumulate(fresh[m][0], hi[m][k], b[0], b[1]);
                    multiply_accumulate(fresh[m][1], hi[m][k], b[2], b[3]);
                    multiply_accumulate(fresh[m][0], lo[m][k], b[0], b[1]);
                    multiply_accumulate(fresh[m][1], lo[m][k], b[2], b[3]);
                }
            }
            UNROLL
            for (unsigned m = 0; m < TILES; m++) {
                UNROLL
                for (unsigned i = 0; i < 8; i++) {
                    float& mean = means[m][c + i / 4][i % 4];
                    mean = fmaf(mean, decays[m][i % 4 / 2], fresh[m][i / 4][i % 4]);
                }
            }
        }
    }

    DEVICE void write(uint64_t split, bool any_keys) const {
        const unsigned g = lane_index() / 4, t = lane_index() % 4;
        UNROLL
        for (unsigned m = 0; m < TILES; m++) {
            UNROLL
            for (unsigned half = 0; half < 2; half++) {
                float sum = running[m].sum[half];
                sum += shuffle_xor(sum, 1);
                sum += shuffle_xor(sum, 2);
                const uint32_t row = first_row + m * 16 + g + half * 8;
                if (row >= arguments.row_count) continue;
                const uint64_t at = split * arguments.row_count + row;
                if (t == 0) arguments.stats[at] = {running[m].largest[half], sum * UNBIAS};
                UNROLL
                for (unsigned c = 0; c < WIDTH / 8; c++) {
                    const uint32_t column = c * 8 + 2 * t;
                    if (any_keys && column < arguments.mean_pitch)
                        store2(arguments.means + at * arguments.mean_pitch + column, means[m][c][2 * half] * UNBIAS,
                               means[m][c][2 * half + 1] * UNBIAS);
                }
            }
        }
    }
};

template <unsigned WIDTH, unsigned TILES, bool BATCH>
DEVICE void attend(const AttentionArguments& arguments) {
    using Rows = Attention<WIDTH, TILES, BATCH>;
    DYNAMIC_SHARED(f16, shared);
    SHARED_ARRAY(float, key_scales, 2 * KEYS);
    const uint32_t depth = (arguments.dim + 15) / 16 * 16, stride = depth + VECTOR;
    const Stage rows = {shared, stride, depth};
    f16* stages = shared + Rows::ROWS * stride;
    const f16* keys = static_cast<const f16*>(arguments.keys);
    const KeyRange range = keys_of_split(arguments);

    Rows warp(arguments, rows);
    const bool has_rows = warp.first_row < arguments.row_count;

    const auto prefetch = [&](uint32_t first_key, unsigned stage) {
        const Stage to = {stages + stage * KEYS * stride, stride, depth};
        to.template fill<KEYS, WIDTH>(keys, arguments.key_pitch, first_key, range.end);
        if (BATCH && threadIdx.x < KEYS)
            key_scales[stage * KEYS + threadIdx.x] =
                first_key + threadIdx.x < range.end ? arguments.key_scales[first_key + threadIdx.x] : 0;
        copy_commit();
    };
    if (range.begin < range.end) {
        rows.template fill<Rows::ROWS, WIDTH>(static_cast<const f16*>(arguments.rows), arguments.row_pitch,
                                              blockIdx.x * Rows::ROWS, arguments.row_count);
        prefetch(range.begin, 0);
    }
    unsigned stage = 0;
    for (uint32_t first_key = range.begin; first_key < range.end; first_key += KEYS, stage ^= 1) {
        copy_wait<0>();
        // This tile is there, and the one before it has been read by all.
        block_barrier();
        if (range.end - first_key > KEYS) prefetch(first_key + KEYS, stage ^ 1);
        if (!has_rows) continue;
        warp.keys = {stages + stage * KEYS * stride, stride, depth};
        UNROLL
        for (unsigned span = 0; span < KEYS; span += Rows::SPAN) {
            float sums[TILES][Rows::SPAN / 8][4] = {};
            warp.multiply(span, sums);
            UNROLL
            for (unsigned m = 0; m < TILES; m++)
                warp.weigh(m, first_key + span, range.end, key_scales + stage * KEYS + span, sums[m]);
            warp.gather(span);
        }
    }
    if (has_rows) warp.write(blockIdx.y, range.begin < range.end);
}

}  // namespace

EXPORT_KERNEL(relata_attention_mma_64, THREADS, 3, AttentionArguments, attend<64, 2, false>);
EXPORT_KERNEL(relata_attention_mma_64_batch, THREADS, 3, AttentionArguments, attend<64, 2, true>);
EXPORT_KERNEL(relata_attention_mma_128, THREADS, 2, AttentionArguments, attend<128, 2, false>);
EXPORT_KERNEL(relata_attention_mma_128_batch, THREADS, 2, AttentionArguments, attend<128, 2, true>);
EXPORT_KERNEL(relata_attention_mma_256, THREADS, 2, AttentionArguments, attend<256, 1, false>);
EXPORT_KERNEL(relata_attention_mma_256_batch, THREADS, 2, AttentionArguments, attend<256, 1, true>);
